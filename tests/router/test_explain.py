"""`freehold route explain`: the same reasons as a request's, and nothing sent, started or looked up."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from freehold.base.serving import Origin
from freehold.route.router.attempts import Explanation, explain
from freehold.route.router.hearing import explain_recording
from freehold.route.router.routing import GatewayPlan
from freehold.run.sounds.opening import MeasuredSound
from tests.cli.test_serve import freehold
from tests.router.house import FILE, gateway_of, job, within
from tests.router.test_recordings import ROUTES, sound

TALK = ROUTES.replace("{url}", "http://127.0.0.1:9")
ROUTE = """
[routes.chat]
targets = ["own", "box-70b", "big"]
[labels.people]
stay = "owned"
detect = ["pii"]
[keys.alice]
budget = { usd = 20, per = "day" }
label = "private"
"""


def explained(text: str, name: str = "chat", **origin) -> Explanation:
    plan = GatewayPlan(gateway_of(ROUTE))
    return asyncio.run(explain(plan, name, job(text, max_tokens=1000), Origin(**origin)))


def test_verdicts_are_those_of_the_request(tmp_path):
    found = explained("joe@example.com")

    async def test() -> None:
        async with within(tmp_path, ROUTE) as house:
            await house.text("chat", job("joe@example.com", max_tokens=1000))
            (row,) = house.rows
            assert [t.verdict for t in found.targets] == ["chosen", "fallback", "skipped"]
            assert [c.taken for c in row.candidates] == [True, False, False]
            assert row.candidates[2].reason == found.targets[2].reason
            assert row.labels == found.labels

    asyncio.run(test())


def test_detected_and_keys_labels_are_named_with_what_set_them():
    found = explained("my mail is joe@example.com", key="alice")
    assert [(label.name, label.by.partition(":")[0]) for label in found.labels] == [
        ("private", "key alice"),
        ("people", "pii"),
    ]
    assert "joe" not in json.dumps([label.by for label in found.labels])
    assert found.places == {"this machine", "box"}


def test_price_of_a_target_that_is_passed_over_is_not_reserved():
    open_, kept = explained("hello"), explained("hello", labels=("private",))
    assert open_.reserved > open_.targets[2].likely > 0 and kept.reserved == 0


def test_refusal_is_the_requests_own():
    found = explained("hello", "big", labels=("private",))
    assert found.refused == (
        "no target of big can answer this request: big: label private does not allow far"
    )


def test_command_shows_reasons_prices_and_budget_without_keys_or_models(tmp_path: Path):
    (tmp_path / "gateway.toml").write_text(
        FILE.replace('local = "fake:1b"', 'provider = "box"\nmodel = "m"') + ROUTE
    )
    file = str(tmp_path / "gateway.toml")
    done = freehold(tmp_path, "route", "explain", "hello", "--gateway", file, "--key", "alice")
    assert (done.status, done.err) == (0, "")
    assert "labels: private (by key alice)" in done.out
    assert "skipped" in done.out and "label private does not allow far" in done.out
    assert "budget: 20 USD a day; this request would set aside 0 USD" in done.out
    said = json.loads(freehold(tmp_path, "route", "explain", "hello", "--gateway", file, "--json").out)
    assert [t["verdict"] for t in said["targets"]] == ["chosen", "fallback", "fallback"]
    assert said["reserved"] == said["targets"][2]["most"] > 0


def test_a_recording_has_the_verdicts_and_the_price_of_its_seconds():
    plan, talk = GatewayPlan(gateway_of("", base=TALK)), MeasuredSound("WAV", 90.0)
    plain = explain_recording(plan, "talk", talk, 2_880_044, Origin())
    own, cloud = plain.targets
    assert (own.verdict, own.likely, own.most, own.reason) == ("chosen", 0, 0, "on this machine")
    assert cloud.verdict == "fallback" and cloud.most > cloud.likely == 9_000_000, "0.6 cents a minute"
    assert plain.seconds == 90 and plain.reserved == cloud.most
    kept = explain_recording(plan, "talk", talk, 2_880_044, Origin(labels=("private",)))
    assert kept.targets[1].verdict == "skipped" and kept.reserved == 0
    alone = explain_recording(plan, "away", talk, 2_880_044, Origin(labels=("private",)))
    assert "cloud: label private does not allow far" in alone.refused


def test_a_recording_and_a_prompt_have_routes_of_their_own(tmp_path: Path):
    file, talk = tmp_path / "gateway.toml", tmp_path / "talk.wav"
    file.write_text(TALK.replace('local = "fake:1b"', 'provider = "far"\nmodel = "gpt-4o-mini-transcribe"'))
    talk.write_bytes(sound())
    more = ("--gateway", str(file))
    done = freehold(tmp_path, "route", "explain", "--recording", str(talk), *more)
    assert (done.status, done.err) == (0, "")
    assert "route talk; labels: none" in done.out and "estimated cost for a recording of 1.5 s" in done.out
    for args, words in (
        (("--recording", str(talk), "--route", "text"), "text is a text route"),
        (("hello", "--route", "talk"), "talk only transcribes recordings"),
        (("hello", "--recording", str(talk)), "either PROMPT or --recording"),
        ((), "either PROMPT or --recording"),
        (("--recording", str(file)), "known audio format"),
    ):
        done = freehold(tmp_path, "route", "explain", *args, *more)
        assert done.status and words in done.err, (args, done.err)


def test_unknown_key_or_label_is_refused_with_the_known_ones(tmp_path: Path):
    (tmp_path / "gateway.toml").write_text(
        FILE.replace('local = "fake:1b"', 'provider = "box"\nmodel = "m"') + ROUTE
    )
    file = str(tmp_path / "gateway.toml")
    done = freehold(tmp_path, "route", "explain", "hello", "--gateway", file, "--key", "alic")
    assert done.status == 2 and "alice" in done.err
    done = freehold(tmp_path, "route", "explain", "hello", "--gateway", file, "--label", "privat")
    assert done.status == 2 and "did you mean private?" in done.err


def test_a_name_that_neither_the_file_nor_the_store_has_is_refused(tmp_path: Path):
    file = tmp_path / "gateway.toml"
    file.write_text(FILE.replace('local = "fake:1b"', 'provider = "box"\nmodel = "m"') + ROUTE)
    done = freehold(tmp_path, "route", "explain", "hello", "--gateway", str(file), "--route", "chta")
    assert done.status != 0 and not done.out
    assert "neither gateway.toml nor the store has 'chta'" in done.err and "chat" in done.err
