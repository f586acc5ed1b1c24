"""A gateway.toml of one provider, which a stand-in plays, and the key it asks for: `{url}` is to be filled in."""

KEY = "sk-standin-0123456789abcdef"
SELLER = """\
[providers.seller]
kind = "openai"
url = "{url}"
key = "env:SELLER_KEY"
[models.big]
provider = "seller"
model = "gpt-test"
price = {{ input = 2.0, output = 8.0 }}
[labels.private]
stay = "owned"
"""
