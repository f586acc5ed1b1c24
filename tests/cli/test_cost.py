"""freehold cost as a user meets it: table, tornado, JSON, page, and bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import jsonschema
import pytest

from freehold.base.catalog import prices

Run = Callable[..., tuple[int, str, str]]
OWN = ("--on", "h100", "--tokens-per-second", "1500-2500")
RANGE = {
    "type": "object",
    "properties": {key: {"type": ["number", "null"]} for key in ("low", "mid", "high", "level")},
    "required": ["low", "mid", "high", "level"],
    "additionalProperties": False,
}
SWINGS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "key": {"type": "string"},
            "at_low": {"type": ["number", "null"]},
            "at_high": {"type": ["number", "null"]},
        },
        "required": ["key", "at_low", "at_high"],
        "additionalProperties": False,
    },
}


def closed(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


NUMBER, TEXT, WHETHER = {"type": "number"}, {"type": "string"}, {"type": "boolean"}
DAY = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"}
SCHEMA = closed(
    schema={"const": 1},
    day=DAY,
    prices=closed(version=TEXT, noted=DAY, age_days={"type": "integer"}),
    traffic=closed(
        source=TEXT, tokens_per_day=NUMBER, input=NUMBER, cached=NUMBER, output=NUMBER, requests=NUMBER
    ),
    owned=closed(
        model={"type": ["string", "null"]},
        on=TEXT,
        bought=WHETHER,
        machines={"type": "integer"},
        utilisation=NUMBER,
        dollars_a_month=RANGE,
        parts={"type": "object", "additionalProperties": NUMBER},
        swings=SWINGS,
    ),
    bills={
        "type": "array",
        "items": closed(
            api=TEXT,
            same_model=WHETHER,
            batch=WHETHER,
            source=TEXT,
            noted={"type": ["string", "null"]},
            dollars_a_month=RANGE,
            break_even_tokens_per_day=RANGE,
            break_even_utilisation=RANGE,
            swings=SWINGS,
        ),
    },
    left_out={"type": "array", "items": TEXT},
    assumptions={
        "type": "array",
        "items": closed(
            key=TEXT, title=TEXT, unit=TEXT, value=RANGE, source=TEXT, checked=DAY, given=WHETHER
        ),
    },
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "cost")


def test_the_table_names_every_option_what_moves_it_and_every_assumption(run: Run):
    status, out, _ = run("openai/gpt-oss-120b", "--on", "2xh100", "--tokens-per-day", "1B")
    assert status == 0
    assert "2xh100, rented" in out and "(same model)" in out and "never" in out
    assert re.search(r"^speed +[\d,]+ \([\d,]+ to [\d,]+\) tokens/s .*predicted for vLLM, MXFP4", out, re.M)
    assert re.search(
        r"^openai:gpt-6.2-sol +108,\d{3} +3.57 +[\d.]+M \([\d.]+M to [\d.]+M\) +[\d.]+ % \(", out, re.M
    )
    assert re.search(r"^What changes the break-even with \S+, [\d.]+M tokens a day:$", out, re.M)
    assert re.search(r"staff time to run it +\S+ +█+\|█+ +\S+ +8 … 120 hours a month", out)
    for key in ("peak", "load", "spare", "people", "wage", "migration", "months", "api", "speed", "hourly"):
        assert len(re.findall(rf"^{key} ", out, re.M)) >= 2, f"{key} has no range or no source"
    assert re.search(r"genai-prices [\d.]+, newest note 20\d\d-\d\d-\d\d, \d+ days old", out)


def test_json_is_as_documented(run: Run):
    for more in ((), ("--buy",), ("--batch",), ("--against", "claude-haiku-5-5")):
        status, out, _ = run(*OWN, *more, "--json")
        assert status == 0
        found = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
        jsonschema.validate(found, SCHEMA)
    assert found["bills"][0]["break_even_tokens_per_day"]["mid"] is None
    assert found["traffic"] == pytest.approx(
        found["traffic"] | {"tokens_per_day": 10e6, "input": 7.5e6, "cached": 2.25e6, "requests": 5000}
    )


def test_options_change_the_assumptions_and_the_answer(run: Run):
    def asked(*args: str) -> dict:
        return json.loads(run(*OWN, "--against", "gpt-6.2-sol", "--json", *args)[1])

    plain, told = asked(), asked("--people", "0", "--wage", "50-200", "--hourly", "1:2:3")
    values = {a["key"]: a for a in told["assumptions"]}
    assert values["people"]["given"] and values["people"]["value"]["high"] == 0
    assert values["wage"]["value"]["mid"] == 100 and values["hourly"]["value"]["low"] == 1
    even = "break_even_tokens_per_day"
    assert told["bills"][0][even]["mid"] < plain["bills"][0][even]["mid"]
    assert asked("--growth", "10")["traffic"]["tokens_per_day"] > 30e6
    later = json.loads(run(*OWN, "--against", "gemini-4-argon", "--date", "2027-01-01", "--json")[1])
    now = json.loads(run(*OWN, "--against", "gemini-4-argon", "--date", "2026-11-25", "--json")[1])
    month = [found["bills"][0]["dollars_a_month"]["mid"] for found in (later, now)]
    assert month[0] == pytest.approx(2 * month[1], rel=1e-3)


def test_traffic_may_come_from_a_csv(run: Run, tmp_path: Path):
    path = tmp_path / "use.csv"
    rows = [f"2026-11-{d:02}T{h:02}:00,400,600000,200000" for d in (3, 4) for h in range(8, 18)]
    path.write_text("time,requests,input_tokens,output_tokens\n" + "\n".join(rows), encoding="utf-8")
    status, out, _ = run(*OWN, "--csv", str(path))
    assert status == 0
    assert "8M tokens a day: use.csv, 2026-11-03 to 2026-11-04; 75% prompts" in out
    assert re.search(r"^peak +2.4 +2.4 +2.4", out, re.M)


def test_a_page_is_written_whole_and_fetches_nothing(run: Run, tmp_path: Path):
    page = tmp_path / "cost.html"
    page.write_text("before", encoding="utf-8")
    status, out, err = run("qwen3:8b", "--on", "rtx-4090", "--html", str(page))
    assert (status, out) == (0, "") and f"wrote {page}" in err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.endswith("</html>\n")
    assert "Self-hosting Qwen/Qwen3-8B compared with APIs" in text
    assert not re.search(r"""(src|href)\s*=|url\(|@import|<script""", text)
    assert [p.name for p in tmp_path.iterdir()] == ["cost.html"]
    assert len(text) < 200_000


def test_what_takes_no_such_request_or_no_batch_is_left_out_with_its_reason(run: Run):
    _, out, err = run(*OWN, "--request", "500k", "--batch")
    assert "left out: openai:gpt-5-mini takes 400,000 tokens, and requests have 500,000" in err
    assert "left out: deepseek:deepseek-flash has no batch price" in err
    assert "gpt-5-mini" not in out and "openai:gpt-6.2-sol (batch)" in out


def test_machines_that_cost_nothing_pay_from_the_first_token(run: Run):
    free = ("--hourly", "0", "--people", "0", "--migration", "0", "--against", "gpt-5-mini")
    assert "It breaks even at 0 tokens a day." in run(*OWN, *free)[1]
    status, out, _ = run(*OWN, *free, "--hourly", "0-2")
    assert status == 0 and "rent of h100" in out


def test_old_prices_say_their_age(run: Run, monkeypatch: pytest.MonkeyPatch):
    old = prices.Table("0.2.3", date(2026, 1, 1))
    monkeypatch.setattr(prices, "table", lambda: old)
    _, out, _ = run(*OWN, "--against", "gpt-5-mini")
    assert re.search(r"newest note 2026-01-01, \d{3} days old: update the package genai-prices", out)


@pytest.mark.parametrize(
    "args, said, hint",
    [
        ((), "how fast would it answer", "--tokens-per-second and --on"),
        (("qwen3:8bb",), "qwen3:8bb", "qwen3:8b"),
        (("qwen3:8b", "--on", "h10"), "no hardware named 'h10'", "h100"),
        (("qwen3:8b", "--on", "1024xh100"), "1,024 devices are not within 1..72", "one machine"),
        (("--tokens-per-second", "9", "--on", "1024xh100"), "1,024 devices are not within 1..72", ""),
        (("qwen3:8b", "--on", "m4-max"), "no price to rent Apple", "--hourly"),
        (("qwen3:8b", "--on", "m4-max", "--engine", "vllm"), "does not run on", "--on"),
        (
            ("qwen3:8b", "--on", "c8g.8xlarge", "--engine", "freehold"),
            "no operations a second",
            "--tokens-per-second",
        ),
        (("qwen3:8b", "--engine", "vlm"), "no engine named 'vlm'", "vllm"),
        (("deepseek-ai/DeepSeek-V3", "--on", "rtx-4090"), "rtx-4090", "--on 8xh200"),
        ((*OWN, "--against", "gpt-5-minni"), "no price is known for 'gpt-5-minni'", "gpt-5-mini"),
        ((*OWN, "--against", "deepseek-flash", "--batch"), "no batch price", "--against"),
        ((*OWN, "--against", "gpt-5-mini", "--request", "500k"), "takes 400,000 tokens", "request"),
        ((*OWN, "--tokens-per-day", "0"), "0 tokens a day", "nothing to compare"),
        ((*OWN, "--tokens-per-day", "many"), "'many' is not a valid number", "help"),
        ((*OWN, "--input-share", "1"), "leaves no answers", "0.75"),
        ((*OWN, "--cached", "2"), "cached share of 2", "input"),
        ((*OWN, "--growth", "200"), "growth of 200 %", ""),
        ((*OWN, "--people", "9-3"), "'9-3' is not a valid range", "help"),
        ((*OWN, "--load", "1.2"), "--load 1.2", "0.7"),
        ((*OWN, "--peak", "0.5"), "--peak 0.5", "3"),
        ((*OWN, "--rack", "100"), "--rack says nothing of rented machines", "--buy"),
        (("--tokens-per-second", "0", "--on", "h100"), "answer nothing", "writes a second"),
        (("--tokens-per-second", "10", "--on", "m4-max"), "no price to rent", "--hourly"),
        ((*OWN, "--csv", "/nowhere.csv"), "/nowhere.csv", "takes a file"),
        ((*OWN, "--html", "/nowhere/x.html"), "cannot be written", "folder"),
    ],
)
def test_bad_input_names_the_value_and_the_way_out(run: Run, args: tuple[str, ...], said: str, hint: str):
    status, out, err = run(*args)
    assert status in (1, 2) and out == ""
    lines = err.splitlines()
    assert len(lines) <= 2 and said in lines[0], err
    assert hint in "".join(lines[1:]), err
