"""Recordings over a gateway: labels, fallback, prices and rows, against a stand-in that keeps every byte."""

from __future__ import annotations

import io
import random
import sqlite3
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import EngineLost, Overloaded
from freehold.route.router.gateway import Gateway
from freehold.route.router.ledger.rows import COLUMNS, audit, of_row, rows_in, sums
from freehold.route.router.ledger.store import Ledger
from freehold.route.router.opening import ProviderModels
from freehold.route.router.price import resolve, resolve_at
from freehold.route.router.toml.table import BadGateway
from tests.http.fakes import Script
from tests.providers.standin import Answer, Fault, StandIn, Tokens
from tests.providers.standin.openai import form_of
from tests.router.house import House, gateway_of, open_house
from tests.router.ledger.rows import row as a_row

URL = "/v1/audio/transcriptions"
SAID = "Hello there. It is late."
HEARS = Script(text=SAID, hears=True)
FAR = ("A text", "from afar.")
DEAD = Script(text=SAID, hears=True, fail=EngineLost("the engine died"), fail_at="start")
ROUTES = """
[providers.far]
kind = "openai"
url = "{url}"
key = "env:REMOTE_KEY"
[models.own]
local = "fake:1b"
[models.cloud]
provider = "far"
model = "whisper-1"
[models.mini]
provider = "far"
model = "gpt-4o-transcribe"
[models.chatty]
provider = "far"
model = "gpt-5-mini"
[labels.private]
stay = "owned"
[routes.talk]
task = "transcription"
targets = ["own", "cloud"]
breaker = { failures = 1000, cooldown = "50ms" }
[routes.away]
task = "transcription"
targets = ["cloud"]
retries = 0
breaker = { failures = 1000, cooldown = "50ms" }
[routes.counted]
task = "transcription"
targets = ["mini"]
breaker = { failures = 1000, cooldown = "50ms" }
[routes.text]
targets = ["chatty"]
"""


def sound(seconds: float = 1.5, mark: bytes = b"") -> bytes:
    """Return a WAV whose samples begin with a mark."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes((mark + bytes(round(seconds * 32_000)))[: round(seconds * 32_000)])
    return file.getvalue()


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as server:
        server.behave = lambda received: Answer(FAR, tokens=Tokens(1200, 300, written=200))
        yield server


@pytest.fixture
def housing(tmp_path: Path, standin: StandIn) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def make(script: Script = HEARS, more: str = "", **settings: Any) -> House:
        base = ROUTES.replace("{url}", standin.url("openai"))
        gateway = gateway_of(more, base=base)
        rent = lambda: ProviderModels(gateway.providers.values())  # noqa: E731
        houses.append(open_house(tmp_path, more, script=script, rent=rent, base=base, **settings))
        return houses[-1]

    yield make
    for each in houses:
        each.end()


def ask(house: House, model: str = "talk", data: bytes = b"", **more: Any) -> Any:
    headers = more.pop("headers", {})
    files = {"file": ("secret name.wav", data or sound())}
    return house.client.post(URL, data={"model": model, **more}, files=files, headers=headers)


def last_row(house: House) -> Any:
    return house.rows[-1]


# --- owned and rented -----------------------------------------------------------------------------------


def test_an_owned_target_hears_first_and_has_a_row_in_seconds(housing, standin):
    house = housing()
    answer = ask(house)
    assert answer.status_code == 200 and answer.json()["text"] == SAID, answer.text
    row = last_row(house)
    assert (row.asked, row.target, row.outcome, row.task) == ("talk", "own", "whole", "transcription")
    assert (row.sound_ms, row.nano, row.left_house, row.usage.completion_tokens) == (4250, 0, False, 4)
    assert not standin.received


def test_a_plain_owned_model_has_a_row_too(housing):
    house = housing()
    assert ask(house, "own").status_code == 200
    assert (last_row(house).target, last_row(house).sound_ms) == ("own", 4250)


def test_a_rented_model_gets_the_recording_as_a_form_and_costs_what_it_counted(housing, standin):
    house, data = housing(), sound(1.5, b"abc\r\n--")
    answer = ask(house, "away", data, prompt="Ada", language="en", temperature="0.2")
    assert answer.status_code == 200 and answer.json()["text"] == "A text from afar.", answer.text
    assert answer.json()["freehold"]["model"] == "cloud" and answer.json()["usage"]["seconds"] == 2
    form = form_of(standin.received[0].body)
    assert form["file"] == data and form["filename"] == "recording.wav" and form["prompt"] == b"Ada"
    assert (form["model"], form["language"], form["temperature"]) == (b"whisper-1", b"en", b"0.2")
    assert b"secret name" not in standin.bytes_received
    row = last_row(house)
    assert (row.target, row.place, row.sound_ms, row.left_house) == ("cloud", "far", 1500, True)
    assert row.nano == 200_000 and not row.estimated, "two seconds, as it counted, at $0.006 a minute"
    assert "genai-prices" in row.price_version


def test_a_model_sold_by_tokens_costs_its_tokens(housing):
    house = housing()
    assert ask(house, "counted").json()["text"] == "A textfrom afar."
    row = last_row(house)
    assert (row.usage.prompt_tokens, row.usage.completion_tokens) == (1200, 300)
    assert row.nano == 1000 * 6_000 + 200 * 2_500 + 300 * 10_000


def test_times_come_from_a_rented_model_that_has_them_and_another_is_passed_over(housing, standin):
    house = housing()
    body = ask(house, "away", response_format="verbose_json").json()
    assert [s["text"] for s in body["segments"]] == [" A text", " from afar."] and body[
        "language"
    ] == "english"
    assert form_of(standin.received[-1].body)["response_format"] == b"verbose_json"
    refused = ask(house, "counted", response_format="srt")
    assert refused.status_code == 400 and "returns no times" in refused.text and len(standin.received) == 1


def test_a_rented_text_streams_as_events(housing):
    lines = ask(housing(), "away", stream="true").text
    assert lines.count("transcript.text.delta") == 2 and lines.count("transcript.text.done") == 1


def test_translations_go_to_their_own_path(housing, standin):
    house = housing()
    files = {"file": ("a.wav", sound())}
    answer = house.client.post("/v1/audio/translations", data={"model": "away"}, files=files)
    assert answer.status_code == 200 and standin.received[0].path.endswith("/audio/translations")
    answer = house.client.post("/v1/audio/translations", data={"model": "counted"}, files=files)
    assert answer.status_code == 400 and "does not translate" in answer.text


def test_what_is_no_recording_is_refused_at_home(housing, standin):
    answer = ask(housing(), "away", b"#EXTM3U\nhttp://example.org/a.mp3")
    assert answer.status_code == 400 and "a playlist" in answer.text and not standin.received
    assert answer.json()["error"]["param"] == "file"


def test_texts_and_recordings_have_routes_of_their_own(housing, standin):
    house = housing()
    assert house.chat("talk").status_code == 400 and house.chat("cloud").status_code == 400
    assert ask(house, "text").status_code == 400
    assert not standin.received


# --- failures -------------------------------------------------------------------------------------------


def test_a_failed_owned_target_falls_over_to_a_rented_one(housing):
    house = housing(DEAD)
    assert ask(house).json()["text"] == "A text from afar."
    causes = [(a.target, a.cause) for a in last_row(house).attempts]
    assert causes == [("own", "server"), ("own", "server"), ("cloud", "")]


def test_a_busy_owned_target_passes_the_recording_on(housing):
    busy = Script(text=SAID, hears=True, fail=Overloaded("full", "wait", 60.0), fail_at="start")
    assert ask(housing(busy)).json()["text"] == "A text from afar."


@pytest.mark.parametrize(
    "kind, status, cause",
    [("status", 502, "server"), ("status", 429, "rate"), ("reset", 502, "connect"), ("html", 502, "invalid")],
)
def test_a_provider_s_fault_reaches_the_client_with_its_cause(housing, standin, kind, status, cause):
    house = housing()
    standin.behave = lambda received: Fault(kind, 500 if cause == "server" else 429)
    answer = ask(house, "away")
    assert answer.status_code == status, answer.text
    row = last_row(house)
    assert (row.outcome, row.attempts[0].cause) == ("failed", cause) and len(row.attempts) == 1
    assert (row.nano > 0) == (cause == "invalid"), "it may have been charged"


def test_a_provider_that_refuses_its_size_is_followed_by_the_next(housing, standin):
    house = housing(more='[routes.two]\ntask = "transcription"\ntargets = ["cloud", "own"]\n')
    standin.behave = lambda received: Fault("status", 413, "Maximum content size limit exceeded")
    assert ask(house, "two").json()["text"] == SAID


def test_a_refused_field_is_the_client_s_own(housing, standin):
    house = housing(more='[routes.two]\ntask = "transcription"\ntargets = ["cloud", "own"]\n')
    standin.behave = lambda received: Fault("status", 400, "Invalid language")
    answer = ask(house, "two")
    assert answer.status_code == 400 and "Invalid language" in answer.text


def test_a_text_that_breaks_off_is_not_continued_by_another_target(housing, standin):
    house = housing(Script(text=SAID, hears=True, fail=EngineLost("the engine died"), fail_at=1))
    assert ask(house).status_code == 502
    row = last_row(house)
    assert (row.outcome, row.target, row.usage.completion_tokens) == ("broken", "own", 2)
    assert not standin.received


def test_a_client_that_leaves_has_a_row_that_says_so(housing, standin):
    house = housing()
    standin.behave = lambda received: Fault("hang")
    with pytest.raises(Exception, match="timed out"):
        house.client.post(URL, data={"model": "away"}, files={"file": sound()}, timeout=0.5)
    assert standin.wait_for(lambda: bool(house.rows))
    row = last_row(house)
    assert (row.outcome, row.estimated, row.left_house) == ("left", True, True) and row.nano == 150_000


# --- labels ---------------------------------------------------------------------------------------------


def test_a_private_recording_is_refused_by_name_when_its_owned_target_fails(housing, standin):
    house = housing(DEAD)
    answer = ask(house, headers={"X-Freehold-Label": "private"})
    assert answer.status_code == 502 and "label private does not allow far" in answer.text
    answer = ask(house, "away", headers={"X-Freehold-Label": "private"})
    assert answer.status_code == 403 and "label private" in answer.text
    assert not standin.received and [row.outcome for row in house.rows] == ["failed", "refused"]


def test_a_label_that_reads_texts_holds_for_every_recording(housing, standin):
    house = housing(DEAD, '[labels.careful]\nstay = "owned"\ndetect = ["secrets"]\n')
    answer = ask(house, "away")
    assert answer.status_code == 403 and "label careful" in answer.text and not standin.received
    assert last_row(house).labels[0].by == "a recording, which is not read"


def test_of_200_mixed_recordings_no_byte_of_a_labelled_one_goes_out(housing, standin, tmp_path):
    more = '[keys.alice]\nlabel = "private"\n[keys.bob]\n[routes.sealed]\ntask = "transcription"\n'
    more += (
        'targets = ["own", "cloud"]\nlabel = "private"\nbreaker = { failures = 1000, cooldown = "50ms" }\n'
    )
    keys = {"alice": "alice-0123456789abcdef", "bob": "bob-0123456789abcdef"}
    house = housing(DEAD, more, keys=keys)
    draw = random.Random(36)
    cases = []
    for number in range(200):
        mark, model = f"kq{number:04x}z".encode(), draw.choice(("talk", "away", "sealed", "counted"))
        key, header = draw.choice(("alice", "bob")), draw.random() < 0.3
        private = key == "alice" or header or model == "sealed"
        fault = Fault("status", 500) if draw.random() < 0.1 else None
        cases.append((mark, model, key, header, private, fault))
    faults = {mark: fault for mark, *_, fault in cases}
    standin.behave = lambda received: faults[form_of(received.body)["file"][44:51]] or Answer(FAR)

    def one(case: Any) -> int:
        mark, model, key, header, *_ = case
        headers = {
            "Authorization": f"Bearer {keys[key]}",
            **({"X-Freehold-Label": "private"} if header else {}),
        }
        return ask(house, model, sound(0.1, mark), headers=headers).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = [*pool.map(one, cases)]
    sent = standin.bytes_received
    private = [(case, status) for case, status in zip(cases, statuses, strict=True) if case[4]]
    assert [case for case, _ in private if case[0] in sent] == []
    assert len(private) > 60 and {status for _, status in private} <= {403, 502, 503}
    assert sum(case[0] in sent for case in cases if not case[4]) > 30
    result = audit(tmp_path / "ledger.sqlite", "private", 0, 4e9)
    assert (result.left, result.unknown, result.rows) == (0, 0, len(private))


# --- money ----------------------------------------------------------------------------------------------


def test_a_budget_that_a_recording_may_exceed_refuses_it_before_a_byte_is_sent(housing, standin):
    house = housing(
        more='[keys.carol]\nbudget = { usd = 0.0003, per = "day" }\n',
        keys={"carol": "carol-0123456789abcdef"},
    )
    headers = {"Authorization": "Bearer carol-0123456789abcdef"}
    refused = ask(house, "away", sound(60), headers=headers)
    assert refused.status_code == 402 and not standin.received
    assert ask(house, "away", sound(0.5), headers=headers).status_code == 200
    assert ask(house, "talk", sound(60), headers=headers).status_code == 200, "an owned target is free"


def test_sums_and_metrics_are_in_seconds_of_sound(housing, tmp_path):
    house = housing()
    ask(house, "away")
    ask(house, "talk")
    path = tmp_path / "ledger.sqlite"
    assert sums(path, 0, time.time() + 9)[0].sound_ms == 5750
    by_task = sums(path, 0, time.time() + 9, ["task", "model"])
    assert {each.group: each.sound_ms for each in by_task} == {
        ("transcription", "cloud"): 1500,
        ("transcription", "own"): 4250,
    }
    tables = {table.name: table.values for table in house.models.counters()}
    assert tables["freehold_gateway_sound_seconds"] == {("cloud",): 1.5, ("own",): 4.25}


def test_prices_of_sound_are_the_table_s():
    openai, groq = resolve("openai", "whisper-1"), resolve_at("groq", "whisper-large-v3-turbo")
    assert openai is not None and openai.of_sound(60, None) == 6_000_000
    assert groq is not None and groq.of_sound(3600, None) == 40_000_000
    assert groq.of_sound(1, None) == groq.of_sound(10, None) == 111_111, "ten seconds at least"
    for seconds in (0.1, 1, 59.6, 3600.2):
        assert groq.most_of_sound(seconds, 0) >= groq.of_sound(seconds, None)


def test_a_ledger_of_the_version_before_is_read_and_gets_the_column(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    Ledger.open(path)._db.close()
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE requests DROP COLUMN sound_ms")
    old = [*of_row(a_row())][:-1]
    names = ", ".join([*COLUMNS][:-1])
    db.execute(f"INSERT INTO requests ({names}) VALUES ({', '.join('?' * len(old))})", old)
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    assert [row.sound_ms for row in rows_in(path, 0, 4e9)] == [0] and sums(path, 0, 4e9)[0].sound_ms == 0
    Ledger.open(path)._db.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT sound_ms FROM requests").fetchall() == [(0,)]
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()


# --- the file -------------------------------------------------------------------------------------------


def read(text: str) -> Gateway:
    return gateway_of(text, base=ROUTES.replace("{url}", "https://api.openai.com/v1"))


def test_groq_is_reached_as_a_compatible_server_at_its_own_price():
    groq = '[providers.groq]\nkind = "openai-compatible"\nkey = "env:REMOTE_KEY"\n'
    groq += 'url = "https://api.groq.com/openai/v1"\n'
    gateway = read(groq + '[models.fast]\nprovider = "groq"\nmodel = "whisper-large-v3-turbo"\n')
    model = gateway.models["fast"]
    assert model.price is not None and model.price.of_sound(3600, None) == 40_000_000
    assert model.remote is not None and model.remote.abilities.transcription


def test_a_file_may_state_the_price_of_a_minute():
    gateway = read('[models.x]\nprovider = "far"\nmodel = "scribe"\nprice = { minute = 0.0045 }\n')
    price = gateway.models["x"].price
    assert price is not None and price.of_sound(60, None) == 4_500_000 and price.version == "file"


@pytest.mark.parametrize(
    "text, words",
    [
        ('[routes.r]\ntask = "transcription"\ntargets = ["chatty"]\n', "is not known to transcribe"),
        ('[routes.r]\ntask = "transcription"\ntargets = ["cloud"]\ncache = "60s"\n', "cache is for texts"),
        ('[routes.r]\ntask = "transcription"\ntargets = ["cloud"]\nkeep = "text"\n', "keep is for texts"),
        ("[tasks.transcription]\nbar = 0.5\n", "the task of routes that take recordings"),
        ('[models.x]\nprovider = "far"\nmodel = "whisper-9"\n', "no price for audio is known"),
        (
            '[models.x]\nprovider = "far"\nmodel = "whisper-9"\nprice = { input = 1.0, output = 2.0 }\n',
            "the price has no minute",
        ),
        ('[models.x]\nprovider = "far"\nmodel = "x"\nprice = { minute = 500 }\n', "is not within 0..100"),
    ],
)
def test_a_file_that_does_not_fit_recordings_is_refused_by_name(text: str, words: str):
    with pytest.raises(BadGateway, match=words):
        read(text)
