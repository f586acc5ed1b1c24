"""gateway.toml is read whole, or refused with every mistake: its line, its value, the way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from freehold.route.providers.contract import HOUSE, KINDS
from freehold.route.router.reading import read, read_text
from freehold.route.router.toml.models import SELLERS
from freehold.route.router.toml.table import BadGateway, Mistake, Outside, line_numbers
from tests.router.mistaken import KEY, SOUND, WRONG

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


def mistakes_of(text: str | bytes, outside: Outside = OUTSIDE) -> tuple[Mistake, ...]:
    with pytest.raises(BadGateway) as caught:
        read_text(text, outside)
    return caught.value.mistakes


def line_of(text: str, part: str) -> int:
    assert text.count(part) == 1, part
    return text.count("\n", 0, text.index(part) + part.startswith("\n")) + 1


HELD = Outside(
    environment=OUTSIDE.environment,
    keyring=OUTSIDE.keyring,
    has_model={"qwen2.5-coder:1.5b", "smollm2:135m"}.__contains__,
)


@pytest.mark.parametrize("old, new, part, key, message, hint", WRONG.values(), ids=WRONG)
def test_a_mistake_is_refused_with_its_line_value_and_way_out(
    old: str, new: str, part: str, key: str, message: str, hint: str
):
    assert old == "+" or SOUND.count(old) == 1
    text = SOUND + new if old == "+" else SOUND.replace(old, new)
    found = [m for m in mistakes_of(text, HELD) if m.key == key and message in m.message]
    assert len(found) == 1, mistakes_of(text, HELD)
    assert found[0].line == line_of(text, part)
    assert hint in found[0].hint
    assert KEY not in str(mistakes_of(text, HELD)), "a message quotes a secret"


@pytest.mark.parametrize(
    "text, line, message, hint",
    [
        ('[a]\nb = "x\n', 2, "not TOML: illegal character", "a string ends on its line"),
        ("[a]\nb = \n", 2, "not TOML: invalid value", "quotes"),
        ("[a]\nb = cheap\n", 2, "not TOML: invalid value", "quotes"),
        ("[a]\n\nb c = 1\n", 3, "not TOML: expected '='", "quotes"),
        ("[a]\nb = 1\nb = 2\n", 3, "not TOML: cannot overwrite", "twice"),
        ("[a.b]\n[c]\n[a.b]\n", 3, "not TOML: cannot declare", "declared twice"),
        ("a = { b = 1, b = 2 }\n", 1, "not TOML: duplicate", "twice"),
        ("[a]\nb = [1,\n", 3, "not TOML:", ""),
        ("a = " + "[" * 5000, 0, "nested too deeply", "levels"),
        (b"[a]\n\xff = 1\n", 2, "byte 0xff is not UTF-8", "UTF-8"),
        (b"#" * (1 << 20) + b"\n", 0, "longer than 1,048,576 bytes", "thousand models"),
        ("providers = 3", 1, "3 is not a table", "a table"),
        ("[[routes]]\nx = 1\n", 1, "an array of 1 is not a table", "a table"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_line(text: str | bytes, line: int, message: str, hint: str):
    mistake = mistakes_of(text)[0]
    assert (mistake.line, hint in mistake.hint) == (line, True)
    assert message in mistake.message


def test_all_mistakes_come_at_once_in_the_order_of_the_file():
    text = SOUND.replace('kind = "openai"', 'kind = "opnai"').replace('"60s"', '"soon"').replace("0.85", "85")
    found = mistakes_of(text)
    assert [m.key for m in found] == [
        "providers.openai.kind",
        "routes.chat.timeout",
        "tasks.support-answers.bar",
    ]
    with pytest.raises(BadGateway) as caught:
        read_text(text, OUTSIDE, name="gateway.toml")
    assert "gateway.toml has 3 mistakes:" in caught.value.message
    assert all(str(m) in caught.value.message and m.hint in caught.value.message for m in found)


def test_a_wrong_provider_is_not_reported_again_by_what_names_it():
    found = mistakes_of(SOUND.replace('kind = "openai"', 'kind = "opnai"'))
    assert [m.key for m in found] == ["providers.openai.kind"]


def test_a_file_that_others_may_write_is_refused(tmp_path: Path):
    file = tmp_path / "gateway.toml"
    file.write_text(SOUND)
    file.chmod(0o666)
    with pytest.raises(BadGateway) as caught:
        read(file, OUTSIDE)
    assert caught.value.mistakes[0].hint == f"chmod go-w {file}"
    file.chmod(0o644)
    assert read(file, OUTSIDE).routes


@pytest.mark.parametrize(
    "name, message", [("gone.toml", "no such file"), (".", "cannot be read"), ("a\0b", "its name")]
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, message: str):
    with pytest.raises(BadGateway) as caught:
        read(tmp_path / name, OUTSIDE)
    assert message in caught.value.mistakes[0].message and caught.value.mistakes[0].hint


def test_paths_begin_at_the_folder_of_the_file(tmp_path: Path):
    (tmp_path / "cases.jsonl").write_text("{}\n")
    file = tmp_path / "gateway.toml"
    file.write_text('[tasks.t]\nbar = 0.5\nfile = "cases.jsonl"\n')
    assert read(file, OUTSIDE).tasks["t"].file == str(tmp_path / "cases.jsonl")


def test_an_empty_file_is_a_gateway_of_owned_models_alone():
    gateway = read_text("", OUTSIDE)
    assert gateway.all_places == {HOUSE}


@pytest.mark.parametrize(
    "host, inside",
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("[::1]", True),
        ("10.1.2.3", True),
        ("192.168.0.9", True),
        ("172.16.0.1", True),
        ("vllm", True),
        ("box.local", True),
        ("box.internal", True),
        ("8.8.8.8", False),
        ("172.32.0.1", False),
        ("box.example.com", False),
        ("10.0.0.7.example.com", False),
        ("[2606:4700::1111]", False),
    ],
)
def test_http_is_for_private_networks_unless_the_file_says_otherwise(host: str, inside: bool):
    text = f'[providers.x]\nkind = "openai-compatible"\nurl = "http://{host}:80/v1"\n'
    if inside:
        assert read_text(text).providers["x"].url == f"http://{host}:80/v1"
    else:
        assert mistakes_of(text)[0].key == "providers.x.url"
        assert read_text(text + "plain_http = true\n").providers["x"].url


def test_lines_are_found_however_a_key_is_written():
    text = (
        "a.b = 1\n'q uoted'.\"\\u0041\" = '''\n]]\n'''\n# c = 2\n[t . u]\n"
        'x = [\n  1, # ]\n  { y = "}", z = 1979-05-27 07:32:00 },\n]\n[[l]]\nk = """\n"" \\"""""\n[[l]]\n[l.m]\n'
        "last = 1"
    )
    lines = line_numbers(text)
    assert lines["a", "b"] == 1
    assert lines["q uoted", "A"] == 2
    assert ("c",) not in lines
    assert lines["t", "u"] == 6 and lines["t", "u", "x"] == 7
    assert lines["t", "u", "x", 0] == 8 and lines["t", "u", "x", 1, "z"] == 9
    assert lines["l", 0, "k"] == 12 and lines["l", 1] == 14
    assert lines["l", 1, "m", "last"] == 16


def test_a_model_without_a_price_of_the_files_has_that_of_the_sellers_table():
    provider = '[providers.o]\nkind = "openai"\nkey = "env:OPENAI_API_KEY"\n'
    text = provider + '[models.m]\nprovider = "o"\nmodel = "gpt-6.2-sol"\n'
    gateway = read_text(text, OUTSIDE)
    price = gateway.models["m"].price
    assert price is not None and price.rates.input > 0
    assert price.version.startswith("genai-prices ")


@pytest.mark.parametrize(
    "provider, model, terms, may_teach",
    [
        ('kind = "openai"\nkey = "env:OPENAI_API_KEY"', "gpt-6.2-sol", "LicenseRef-openai-services", False),
        (
            'kind = "deepseek"\nkey = "env:OPENAI_API_KEY"',
            "deepseek-chat",
            "LicenseRef-deepseek-open-platform",
            True,
        ),
        ('kind = "openai-compatible"\nurl = "http://box"\nowned = true', "qwen3:8b", "Apache-2.0", True),
        ('kind = "openai-compatible"\nurl = "https://seller.example"', "qwen3:8b", "Apache-2.0", None),
        ('kind = "openai-compatible"\nurl = "http://box"\nowned = true', "of-our-own", "", None),
    ],
)
def test_terms_are_those_of_the_sellers_door_or_of_the_weights(
    provider: str, model: str, terms: str, may_teach: bool | None
):
    price = "price = { input = 1, output = 1 }\n"
    text = f'[providers.p]\n{provider}\n[models.m]\nprovider = "p"\nmodel = "{model}"\n{price}'
    found = read_text(text, OUTSIDE).models["m"]
    assert (found.terms, found.may_teach) == (terms, may_teach)
    stated = read_text(text + 'terms = "ours"\nmay_teach = true\n', OUTSIDE).models["m"]
    assert (stated.terms, stated.may_teach) == ("ours", True)


def test_offline_mode_forbids_providers_beyond_private_addresses():
    found = mistakes_of(SOUND, replace(OUTSIDE, offline=True))
    assert [(m.line, m.key) for m in found] == [(1, "providers.openai.url"), (4, "providers.mistral.url")]
    assert "offline mode forbids calls of api.openai.com" in found[0].message


def test_no_host_that_a_kind_of_provider_has_can_be_called_owned():
    """A private request may go to what is owned, so each kind's own host must be known as a seller's."""
    hosts = {name: urlsplit(facts.url).hostname for name, facts in KINDS.items() if facts.url}
    assert len(hosts) > 4 and not [name for name, host in hosts.items() if not SELLERS.fullmatch(host or "")]
