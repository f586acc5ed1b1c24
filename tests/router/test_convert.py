"""A LiteLLM proxy's config.yaml becomes a sound gateway.toml; what it cannot become is listed, and no key is copied."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.route.providers.contract import HOUSE
from freehold.route.router.convert import GatewayDraft, read_yaml
from freehold.route.router.convert.litellm import converted
from freehold.route.router.gateway import Gateway
from freehold.route.router.labels import Labeller
from freehold.route.router.price import Price, TokenRates
from freehold.route.router.reading import read_text
from freehold.route.router.toml.table import Outside

CONFIGS = Path(__file__).parent / "configs"
ANY = Outside(
    environment=defaultdict(lambda: "a-key"),
    price_of=lambda kind, model: Price(TokenRates(1, 1, 1, 1, 1)),
)
SECRETS = ("sk-proj-this", "sk-master", "dbpassword", "redis-secret", "value-must-not", "me:pass")


class Environment(dict):  # type: ignore[type-arg]
    def get(self, name, default=None):  # type: ignore[no-untyped-def]
        return "a-key"


def made(name: str) -> tuple[Gateway, GatewayDraft]:
    draft = converted(read_yaml(CONFIGS / name), name)
    outside = Outside(environment=Environment(), price_of=ANY.price_of)
    return read_text(draft.text(), outside), draft


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.iterdir()))
def test_what_is_made_of_a_config_is_sound_and_holds_no_secret(name: str):
    gateway, draft = made(name)
    assert gateway.routes
    for secret in SECRETS:
        assert secret not in draft.text() and secret not in str(draft.left)
    assert all(f"# - {each}" in draft.text() for each in draft.left)


def test_deployments_are_models_and_names_are_routes_with_their_fallbacks():
    gateway, draft = made("team.yaml")
    route = gateway.routes["gpt-4o"]
    assert route.targets == ("azure/gpt-4o-sweden", "openai/gpt-4o", "anthropic/claude-sonnet-5-5")
    assert gateway.routes["gpt-4"].targets == ("azure/gpt-4o-sweden", "openai/gpt-4o")
    assert gateway.routes["house"].targets[-1] == "anthropic/claude-sonnet-5-5", "a larger window"
    assert (route.retries, route.timeout_s, route.breaker.failures, route.breaker.cooldown_s) == (
        3,
        120.0,
        4,
        30.0,
    )
    assert gateway.routes["claude"].timeout_s == 90.0
    assert gateway.providers["azure"].url == "https://acme-sweden.openai.azure.com/openai/v1"
    assert "fallbacks: claude to gone, which model_list does not have" in draft.left


def test_prices_a_token_become_prices_a_million_with_their_tier():
    gateway, _ = made("team.yaml")
    price = gateway.models["anthropic/claude-sonnet-5-5"].price
    assert price is not None and price.rates.input == 3_000_000 and price.rates.output == 15_000_000
    assert price.tiers[0][0] == 200_000 and price.tiers[0][1].output == 22_500_000
    azure = gateway.models["azure/gpt-4o-sweden"]
    assert azure.price is not None and azure.price.rates.cached == 1_250_000
    assert azure.remote is not None and azure.remote.context == 128_000


@pytest.mark.parametrize(
    ("key", "value"), [("id", "nan"), ("max_tokens", float("nan")), ("input_cost_per_token", "nan")]
)
def test_what_is_no_number_among_a_models_facts_is_no_price(key: str, value: object):
    info = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, key: value}
    model = {"model_name": "m", "litellm_params": {"model": "openai/gpt-4o"}, "model_info": info}
    assert "gpt-4o" in converted({"model_list": [model]}, "config.yaml").text()


def test_a_machine_at_a_private_address_is_never_guessed_to_be_owned():
    gateway, draft = made("team.yaml")
    assert not gateway.providers["hosted-vllm"].owned
    assert "# If this machine is yours, add owned = true" in draft.text()


def test_a_tag_is_a_label_that_stays_where_its_deployments_are():
    gateway, draft = made("private.yaml")
    places = Labeller(gateway).places
    assert places(["private"]) == {HOUSE, "ollama-chat"}
    assert places(["eu-region"]) == {HOUSE, "mistral"}
    assert gateway.routes["chat"].targets[0] == "ollama-chat/llama3.3", "by its order"
    assert any(each.startswith("tags: default") for each in draft.left)


def test_a_content_filter_is_a_label_that_keeps_what_it_finds_in_the_house():
    gateway, draft = made("private.yaml")
    label = gateway.labels["guarded"]
    assert (label.stay, label.detect, label.patterns) == (None, ("pii", "secrets"), (r"ACME-\d{6}",))
    for part in ("a pattern that is not an expression of RE2", "blocked_words", "jailbreak (lakera_v2)"):
        assert any(part in each for each in draft.left), part


def test_time_limits_fit_together():
    gateway, _ = made("private.yaml")
    assert (gateway.routes["chat"].timeout_s, gateway.routes["chat"].first_token_s) == (20.0, 2.5)


def test_sellers_are_reached_at_their_own_doors_and_two_keys_are_two_providers():
    gateway, draft = made("sellers.yaml")
    assert gateway.providers["groq"].url == "https://api.groq.com/openai/v1"
    assert gateway.providers["anthropic"].url == "https://api.anthropic.com/v1"
    assert gateway.providers["gemini"].kind == "gemini"
    assert {"openai", "openai-2"} <= gateway.providers.keys()
    assert gateway.routes["old"].breaker.failures == 1
    door = gateway.models[gateway.routes["door"].targets[0]].remote
    assert door is not None and door.provider.url == "http://10.1.1.1:9/v1"
    assert door.provider.key is None, "the seller's key is not sent to a machine of the house"
    assert "openrouter/qwen/qwen3-coder-route" in gateway.routes
    for part in (
        "bedrock is not supported",
        "vertex_ai is not supported",
        "no api_base",
        "nameless",
        "modelless",
    ):
        assert any(part in each for each in draft.left), part


@pytest.mark.parametrize(
    "part",
    [
        "general_settings: master_key: freehold keys add NAME --admin",
        "general_settings: database_url: keys are in keys.json",
        "litellm_settings: max_budget: a budget is a key's",
        "litellm_settings: cache_params",
        "the spread of gpt-4o over 2 deployments",
        "its api_key, which was in the file: export OPENAI_API_KEY",
        "model_list: gpt-4o (azure/gpt-4o-sweden): rpm",
        "model_list: dall-e (openai/dall-e-3): image_generation",
        "model_list: bedrock/* (bedrock/*): a pattern",
        "model_group_alias: nothing",
    ],
)
def test_what_has_no_counterpart_is_listed(part: str):
    _, draft = made("team.yaml")
    assert any(each.startswith(part) or part in each for each in draft.left), draft.left


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.heavy
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_document_of_any_shape_is_converted_to_something_that_is_toml(data: st.DataObject):
    config = read_yaml(CONFIGS / data.draw(st.sampled_from(["team.yaml", "private.yaml", "sellers.yaml"])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = config
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(list(keys)))
            if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
                place[key] = data.draw(ANYTHING)
                break
            place = place[key]
    import tomllib

    tomllib.loads(converted(config, "config.yaml").text())


@pytest.mark.parametrize("value", [None, 3, "text", [], {"model_list": 3}])
def test_a_document_without_models_says_so(value: object):
    assert any(each.startswith("model_list:") for each in converted(value, "x").left)


def test_yaml_that_is_none_is_refused_with_its_line_and_quotes_nothing(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("model_list:\n  - a: [sk-secret-0123456789\n  b: }\n")
    with pytest.raises(UsageError) as caught:
        read_yaml(file)
    assert "(line 3)" in caught.value.message and "sk-secret" not in caught.value.message


def test_yaml_makes_no_object(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(f"a: !!python/object/apply:os.system ['touch {tmp_path}/made']\n")
    with pytest.raises(UsageError):
        read_yaml(file)
    assert not (tmp_path / "made").exists()
