"""gateway.toml is read whole, or refused with every mistake: its line, its value, the way out."""

from __future__ import annotations

from freehold.providers.cleared import HOUSE
from freehold.router.reading import read_text
from freehold.router.toml.outside import Outside

SOUND = """\
[providers.openai]
kind = "openai"
key = "env:OPENAI_API_KEY"
[providers.mistral]
kind = "mistral"
key = "keyring:mistral"
[providers.box]
kind = "openai-compatible"
url = "http://10.0.0.7:8000/v1"
owned = true

[models.big]
provider = "openai"
model = "gpt-6.2-sol"
price = { input = 2.0, cached = 0.2, output = 12.0, over = 200_000, long = { input = 4, cached = 0.4, output = 18 } }
[models.coder]
local = "qwen2.5-coder:1.5b"
[models.box-70b]
provider = "box"
model = "llama3.3:70b"

[labels.private]
stay = "owned"
detect = ["pii", "secrets"]
patterns = ['ACME-\\d{6}']
[labels.eu]
stay = ["box", "mistral"]

[routes.chat]
targets = ["coder", "box-70b", "big"]
task = "support-answers"
timeout = "60s"
first_token = "5s"
retries = 1
breaker = { failures = 3, cooldown = "30s" }
escalate = { when = "logprob", below = 0.2, check = 64 }
shadow = { target = "big", share = 0.02 }

[tasks.support-answers]
bar = 0.85
[keys.alice]
budget = { usd = 20, per = "day" }
label = "private"
"""
KEY = "sk-this-is-the-secret-0123456789"
OUTSIDE = Outside(environment={"OPENAI_API_KEY": KEY}, keyring={"mistral": "m" + KEY}.get)


def test_the_example_of_the_guide_is_read_whole():
    gateway = read_text(SOUND, OUTSIDE)
    assert gateway.providers["openai"].key is not None
    assert gateway.providers["openai"].key.value == KEY
    assert gateway.owned_places == {HOUSE, "box"}
    big = gateway.models["big"]
    assert big.price is not None and big.price.rates.cached == 200_000
    assert big.price.tiers[0][0] == 200_000 and big.price.tiers[0][1].output == 18_000_000
    route = gateway.routes["chat"]
    assert route.targets == ("coder", "box-70b", "big")
    assert (route.timeout_s, route.first_token_s, route.breaker.cooldown_s) == (60.0, 5.0, 30.0)
    assert route.shadow is not None and route.shadow.share == 0.02
    assert gateway.keys["alice"].budget is not None
    assert gateway.keys["alice"].budget.nano == 20_000_000_000
    assert KEY not in repr(gateway)
