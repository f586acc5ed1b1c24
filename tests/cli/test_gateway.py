"""`freehold gateway check` says what a file means, or every mistake in it; `serve --gateway` begins with the same."""

from __future__ import annotations

import json
from pathlib import Path

from freehold.base.config import Settings
from freehold.serve.reports.gateway_file import ledger_file, outside_of
from tests.cli.test_serve import freehold
from tests.router.mistaken import KEY, SOUND

KEYS = {"OPENAI_API_KEY": KEY, "MISTRAL_KEY": KEY}
FILE = SOUND.replace('local = "qwen2.5-coder:1.5b"', 'provider = "box"\nmodel = "coder"').replace(
    "keyring:mistral", "env:MISTRAL_KEY"
)


def written(home: Path, text: str) -> str:
    file = home / "gateway.toml"
    file.write_text(text)
    return str(file)


def test_a_sound_file_is_shown_with_targets_places_labels_and_prices(tmp_path: Path):
    done = freehold(tmp_path, "gateway", "check", written(tmp_path, FILE), **KEYS)
    assert (done.status, done.err) == (0, "")
    assert "is valid: 1 route, 3 models, 3 providers, 2 labels, 1 task, 1 key" in done.out
    big = next(line for line in done.out.splitlines() if line.startswith("  big "))
    assert big.split() == ["big", "openai", "no", "gpt-6.2-sol", "2", "0.2", "12", "none"]
    assert "label private: allowed at box, this machine" in done.out
    assert "key alice: $20 a day, always private" in done.out
    assert KEY not in done.out


def test_a_price_of_longer_prompts_is_shown_beside_the_other(tmp_path: Path):
    file = written(tmp_path, FILE)
    done = freehold(tmp_path, "gateway", "check", file, **KEYS)
    assert "  big: for prompts of more than 200,000 tokens $/M 4 input, 0.4 cached, 18 output\n" in done.out
    said = json.loads(freehold(tmp_path, "gateway", "check", file, "--json", **KEYS).out)
    assert said["models"]["big"]["longer_prompts"] == [
        {"over": 200_000, "usd_per_million": {"input": 4.0, "cached": 0.4, "output": 18.0}}
    ]


def test_a_sound_file_is_shown_as_json(tmp_path: Path):
    done = freehold(tmp_path, "gateway", "check", written(tmp_path, FILE), "--json", **KEYS)
    said = json.loads(done.out)
    assert said["mistakes"] == [] and said["labels"]["eu"] == ["box", "mistral", "this machine"]
    assert said["routes"]["chat"]["targets"][2]["usd_per_million"] == {
        "input": 2.0,
        "cached": 0.2,
        "output": 12.0,
    }
    assert said["routes"]["chat"]["targets"][2]["labels"] == []


def test_a_route_whose_answers_will_train_a_model_names_the_targets_that_may(tmp_path: Path):
    text = FILE.replace('model = "coder"', 'model = "coder"\nmay_teach = true')
    file = written(tmp_path, text.replace("retries = 1", "retries = 1\nmay_teach = true"))
    done = freehold(tmp_path, "gateway", "check", file, **KEYS)
    assert "  answers may train models: uses only coder\n" in done.out, done


def test_kept_texts_are_said_to_be_in_a_file_of_their_own(tmp_path: Path):
    file = written(tmp_path, FILE.replace("retries = 1", 'retries = 1\nkeep = "text"'))
    done = freehold(tmp_path, "gateway", "check", file, **KEYS)
    assert "prompts and answers of requests without labels are stored in a file beside the ledger" in done.out


def test_every_mistake_is_printed_with_its_line_and_the_status_is_one(tmp_path: Path):
    file = written(
        tmp_path, FILE.replace("bar = 0.85", "bar = 85").replace('kind = "openai"', 'kind = "opnai"')
    )
    line = FILE.count("\n", 0, FILE.index("bar = 0.85")) + 1
    done = freehold(tmp_path, "gateway", "check", file, **KEYS)
    assert done.status == 1 and done.err == f"error: {file} has 2 mistakes\n"
    assert (
        f'{file}:2: providers.openai.kind: "opnai" is not a known kind\n  hint: did you mean openai?'
        in done.out
    )
    assert f"{file}:{line}: tasks.support-answers.bar: 85 is not within 0..1" in done.out
    rows = json.loads(freehold(tmp_path, "gateway", "check", file, "--json", **KEYS).out)["mistakes"]
    assert [(row["line"], row["key"]) for row in rows] == [
        (2, "providers.openai.kind"),
        (line, "tasks.support-answers.bar"),
    ]


def test_keys_need_not_be_there_for_a_check_elsewhere(tmp_path: Path):
    file = written(tmp_path, FILE)
    assert freehold(tmp_path, "gateway", "check", file).status == 1
    assert freehold(tmp_path, "gateway", "check", file, "--without-keys").status == 0


def test_a_local_model_that_is_not_held_is_a_mistake_and_the_hint_fetches_it(tmp_path: Path):
    file = written(tmp_path, '[models.coder]\nlocal = "qwen2.5-coder:1.5b"\n')
    done = freehold(tmp_path, "gateway", "check", file)
    assert done.status == 1 and "hint: freehold pull qwen2.5-coder:1.5b fetches it" in done.out


def test_a_config_of_litellm_becomes_a_file_on_stdout_and_a_list_on_stderr(tmp_path: Path):
    config = Path(__file__).parent.parent / "router" / "configs" / "team.yaml"
    done = freehold(tmp_path, "gateway", "convert", str(config))
    assert done.status == 0 and "[routes.gpt-4o]" in done.out
    assert "not taken over: router_settings: routing_strategy" in done.err
    assert "sk-" not in done.out + done.err
    house = done.out.replace(
        'url = "http://10.0.0.7:8000/v1"', 'url = "http://10.0.0.7:8000/v1"\nowned = true'
    )
    checked = freehold(tmp_path, "gateway", "check", written(tmp_path, house), "--without-keys")
    assert (checked.status, checked.err) == (0, ""), checked.out


def test_verbs_read_the_ledger_that_the_homes_file_names(tmp_path: Path):
    settings = Settings(home=tmp_path)
    assert ledger_file(settings, None) == tmp_path / "ledger.sqlite"
    assert ledger_file(settings, tmp_path / "x") == tmp_path / "x"
    written(tmp_path, 'ledger = "books.sqlite"\nbroken = "but readable"\n')
    named = Settings(home=tmp_path, gateway=str(tmp_path / "gateway.toml"))
    assert ledger_file(named, None) == tmp_path / "books.sqlite"
    written(tmp_path, "[[[")
    assert ledger_file(named, None) == tmp_path / "ledger.sqlite"


def test_a_model_that_serve_fetches_first_is_no_mistake(tmp_path: Path):
    settings = Settings(home=tmp_path)
    assert not outside_of(settings).has_model("smollm2:135m")  # type: ignore[misc]
    assert outside_of(settings, coming=["smollm2:135m"]).has_model("smollm2:135m")  # type: ignore[misc]


def test_a_route_says_that_it_asks_the_least_busy_first(tmp_path: Path):
    text = """
[providers.box]
kind = "openai-compatible"
url = "http://127.0.0.1:9/v1"
owned = true
[models.a]
provider = "box"
model = "a"
[routes.chat]
targets = ["a"]
spread = "least-busy"
"""
    done = freehold(tmp_path, "gateway", "check", written(tmp_path, text))
    assert done.status == 0 and "at most 2 attempts per target, the least busy first" in done.out
