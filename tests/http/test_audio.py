"""OpenAI's audio routes: fields, shapes and bounds, with scripted models; the `openai` client's calls as they are."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from freehold.base.errors import EngineLost, UsageError
from freehold.serve.http.core.forms import Spools
from freehold.serve.http.core.keys import Ring
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.openai.audio import LANGUAGES, language_name
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_door import bearer, key
from tests.http.test_streams import connect, eventually

URL = "/v1/audio/transcriptions"
SAID = "Hello there. It is late."
HEARS = Script(text=SAID, hears=True)
SOUND = b"RIFF" + bytes(range(256)) * 8


def ask(server: Running, sound: bytes = SOUND, **fields: Any):
    form = {"model": "fake:1b", **fields}
    return server.client.post(URL, data=form, files={"file": ("../secret name.wav", sound)})


def client(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def heard(server: Running) -> Any:
    return server.models.served["fake:1b"].hearings[-1]


def test_a_recording_becomes_text_with_what_is_billed(serving):
    server = serving(HEARS)
    answer = ask(server)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["text"] == SAID and body["usage"] == {"type": "duration", "seconds": 5}
    receipt = body["freehold"]
    assert (receipt["duration_s"], receipt["speech_s"], receipt["chunks"]) == (4.25, 4.0, 2)
    assert receipt["language"] == "en" and receipt["warnings"] == []
    assert heard(server).data == SOUND and heard(server).closed


def test_the_openai_client_transcribes_in_every_form(serving):
    server = serving(HEARS)
    with client(server) as c:

        def text(**more: Any) -> Any:
            return c.audio.transcriptions.create(file=("a.wav", SOUND), model="fake:1b", **more)

        assert text().text == SAID and text().usage.seconds == 5
        assert text(response_format="text") == SAID + "\n"
        srt = text(response_format="srt")
        assert srt.startswith("1\n00:00:00,000 --> 00:00:01,500\nHello there.\n")
        vtt = text(response_format="vtt")
        assert vtt.startswith("WEBVTT\n") and "00:00:02.000 --> 00:00:03.500\nIt is late.\n" in vtt
        verbose: Any = text(response_format="verbose_json")
        assert (verbose.language, verbose.duration, verbose.text) == ("english", 4.25, SAID)
        assert verbose.words is None and verbose.to_dict()["task"] == "transcribe"
        first, second = verbose.segments
        assert "".join(s.text for s in verbose.segments).strip() == SAID
        assert (first.id, first.seek, first.start, first.end) == (0, 0, 0, 1.5)
        assert (second.id, second.seek, second.tokens, second.avg_logprob) == (1, 200, [7, 8], -0.25)
        assert (second.compression_ratio, second.no_speech_prob, second.temperature) == (1.5, 0.01, 0)


@pytest.mark.parametrize("granularities", [["word"], ["segment"], ["word", "segment"]])
def test_times_of_words_and_segments_come_as_they_are_asked_for(serving, granularities):
    server = serving(HEARS)
    with client(server) as c:
        verbose: Any = c.audio.transcriptions.create(
            file=SOUND, model="fake:1b", response_format="verbose_json", timestamp_granularities=granularities
        )
    assert (verbose.segments is not None) == ("segment" in granularities)
    assert heard(server).job.words == ("word" in granularities)
    if "word" in granularities:
        assert [w.word for w in verbose.words] == SAID.split() and verbose.words[2].start == 2.0


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_openai_client_streams_deltas_and_the_whole_text_at_the_end(serving, form):
    server = serving(HEARS)
    with client(server) as c:
        stream: Any = c.audio.transcriptions.create(
            file=SOUND, model="fake:1b", stream=True, response_format=form
        )
        events = [*stream]
    assert [e.type for e in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert "".join(e.delta for e in events[:-1]) == events[-1].text == SAID
    assert events[-1].to_dict()["usage"] == {"type": "duration", "seconds": 5} and heard(server).job.soon


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_the_openai_client_translates(serving):
    server = serving(HEARS)
    with client(server) as c:
        assert c.audio.translations.create(file=SOUND, model="fake:1b").text == SAID
        verbose: Any = c.audio.translations.create(
            file=SOUND, model="fake:1b", response_format="verbose_json"
        )
    assert heard(server).job.task == "translate" and verbose.language == "english"
    assert verbose.to_dict()["task"] == "translate" and len(verbose.segments) == 2


def test_fields_reach_the_model(serving):
    server = serving(HEARS)
    more: Any = {"language": "DE", "prompt": "Ada", "temperature": "0.4", "keep_alive": "5m"}
    assert ask(server, **more).status_code == 200
    job = heard(server).job
    assert (job.language, job.prompt, job.temperature, job.words, job.soon) == (
        "de",
        "Ada",
        0.4,
        False,
        False,
    )
    assert server.models.served["fake:1b"].keep_alives[-1] == 300 and job.most_s == 4 * 3600
    ask(server, temperature="0")
    assert heard(server).job.temperature is None, "0 is the ladder"


@pytest.mark.parametrize(
    "strategy", [{"chunking_strategy": "auto"}, {"chunking_strategy[type]": "server_vad"}]
)
def test_speech_is_found_first_whatever_strategy_is_named(serving, strategy):
    assert ask(serving(HEARS), SOUND, **strategy).status_code == 200


def test_an_unknown_field_is_served_with_a_warning(serving):
    (warning,) = ask(serving(HEARS), langauge="de").json()["freehold"]["warnings"]
    assert "langauge" in warning and "did you mean language" in warning


@pytest.mark.parametrize(
    "fields, param, words",
    [
        ({"model": ""}, "model", "model"),
        ({"temperature": "1.5"}, "temperature", "1.5"),
        ({"temperature": "warm"}, "temperature", "warm"),
        ({"response_format": "docx"}, "response_format", "docx"),
        ({"response_format": "diarized_json"}, "response_format", "speakers"),
        ({"known_speaker_names[]": "ann"}, "known_speaker_names", "speakers"),
        ({"known_speaker_references[]": "data:"}, "known_speaker_references", "speakers"),
        ({"keywords[]": "ann"}, "keywords", "prompt"),
        ({"languages[]": "de"}, "languages", "language"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities", "verbose_json"),
        (
            {"timestamp_granularities[]": "day", "response_format": "verbose_json"},
            "timestamp_granularities",
            "word",
        ),
        ({"include[]": "logprobs"}, "include", "avg_logprob"),
        ({"stream": "maybe"}, "stream", "maybe"),
        ({"stream": "true", "response_format": "srt"}, "stream", "srt"),
        ({"stream": "true", "response_format": "verbose_json"}, "stream", "verbose_json"),
        ({"chunking_strategy": "loud"}, "chunking_strategy", "loud"),
        (
            {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.2"},
            "chunking_strategy",
            "threshold",
        ),
        (
            {"chunking_strategy": '{"type": "server_vad", "silence_duration_ms": 9}'},
            "chunking_strategy",
            "silence",
        ),
        ({"language": "x" * 40}, "language", "32"),
        ({"prompt": "x" * 5000}, None, "prompt"),
    ],
)
def test_a_field_that_is_wrong_or_not_built_is_refused_by_name(serving, fields, param, words):
    server = serving(HEARS)
    answer = ask(server, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and words in error["message"], answer.text
    assert (error["param"] or "").partition("[")[0] == (param or "")
    assert not server.models.served["fake:1b"].hearings


@pytest.mark.parametrize(
    "body, param",
    [
        ({"files": {"file": ("a", b"")}}, "file"),
        ({"files": {"sound": ("a", b"x")}}, "file"),
        ({"json": {}}, None),
    ],
)
def test_a_form_without_a_recording_is_refused(serving, body, param):
    more = {} if "json" in body else {"data": {"model": "fake:1b"}}
    answer = serving(HEARS).client.post(URL, **body, **more)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize("stated", [True, False])
def test_a_recording_too_long_is_refused_with_the_numbers(serving, stated):
    server = serving(HEARS, limits=ServerLimits(sound_bytes=10_000))
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    body = head + b"x" * 600_000
    sent = body if stated else (body[i : i + 50_000] for i in range(0, len(body), 50_000))
    answer = server.client.post(
        URL, content=sent, headers={"content-type": "multipart/form-data; boundary=b"}
    )
    error = answer.json()["error"]
    assert answer.status_code == 413 and error["code"] == "body_too_large"
    assert "10,000" in error["message"] and "cut it" in error["message"]
    small = ask(server, sound=b"x" * 10_001)
    assert small.status_code == 413 and "10,001" in small.json()["error"]["message"]
    assert ask(server, sound=b"x" * 10_000).status_code == 200


@pytest.mark.parametrize("stated", [True, False])
def test_recordings_that_lie_on_the_disk_are_bounded_by_caller_and_together(serving, stated):
    """Four of 5,000 bytes wait for the model; one more of ann is beyond hers, one of bob beyond all."""
    limits = ServerLimits(sound_bytes=20_000, caller_sounds_bytes=21_500, sounds_bytes=22_500)
    keys = Ring([key("ann"), key("bob"), key("eve")])
    server = serving(Script(text="Word. " * 500, hears=True, delay=0.05), keys=keys, limits=limits)
    spools: Any = lambda: server.doors.server.parts.get(Spools)  # noqa: E731

    def post(name: str, client: Any) -> Any:
        head = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        fields = ((b"model", b"", b"fake:1b"), (b"file", b'; filename="x"', b"x" * 5000))
        body = b"".join(head % each for each in fields) + b"--b--\r\n"
        more = bearer(name) | {"content-type": "multipart/form-data; boundary=b"}
        return client.post(URL, content=body if stated else iter([body]), headers=more)

    def waits(_: int) -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client, suppress(httpx2.HTTPError):
            post("ann", client)

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(waits, i) for i in range(4)]
        assert eventually(lambda: spools() is not None and spools().counts.total() > 4 * 5000)
        for name, whose in (("ann", "your recordings in progress"), ("bob", "of all clients")):
            refused = post(name, server.client)
            error = refused.json()["error"]
            assert refused.status_code == 429 and error["code"] == "too_many_recordings", refused.text
            assert whose in error["message"] and refused.headers["retry-after"] == "30"
        server.stop(now=True)
        for each in waiting:
            each.result()
    assert not spools().counts


def test_a_language_has_the_name_that_openai_sends():
    assert (language_name("de"), language_name("yue"), language_name("EN")) == (
        "german",
        "cantonese",
        "english",
    )
    assert language_name("english") == "english" and language_name("") == "", "a name stays one"
    assert len(LANGUAGES) == 100 and all(name == name.lower().strip() for name in LANGUAGES.values())


def test_a_model_that_reads_text_is_refused_by_name(serving):
    answer = ask(serving(Script()))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "unsupported_model" and error["param"] == "model"
    assert "fake:1b cannot transcribe recordings" in error["message"]


def test_an_unknown_model_is_404(serving):
    assert ask(serving(HEARS), model="nothing").status_code == 404


def test_what_the_engine_finds_wrong_names_its_field(serving):
    broken = UsageError("the recording is no sound", "send a WAV", "file")
    server = serving(Script(hears=True, fail=broken, fail_at="start"))
    answer = ask(server)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "file"


def test_a_stream_that_fails_says_so_in_its_last_event(serving):
    server = serving(Script(text=SAID, hears=True, fail=EngineLost("the engine died"), fail_at=1))
    answer = ask(server, stream="true")
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[0])["delta"] == "Hello there." and "the engine died" in events[1]
    assert events[2] == "[DONE]" and heard(server).closed


def test_nothing_is_left_on_the_disk_and_no_name_of_a_file_is_logged(serving, caplog):
    caplog.set_level(logging.DEBUG)
    server = serving(HEARS)
    folder = Path(server.doors.settings.home) / "serve" / "sounds"
    ask(server)
    ask(server, temperature="9")
    assert not list(folder.iterdir()) and (folder.stat().st_mode & 0o777) == 0o700
    assert "secret" not in caplog.text


def test_a_form_whose_client_leaves_is_dropped(serving):
    server = serving(HEARS)
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000\r\n" % URL.encode()
    with connect(server) as sock:
        sock.sendall(head + b"content-type: multipart/form-data; boundary=b\r\n\r\n--b\r\n")
        assert eventually(lambda: server.doors.server.requests.total() == 1)
    assert eventually(lambda: not server.doors.server.requests.total())
    assert not server.models.served["fake:1b"].hearings


def test_a_client_that_leaves_ends_the_work(serving):
    server = serving(Script(text="Word. " * 500, hears=True, delay=0.01))
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % each
        for each in (
            (b"model", b"", b"fake:1b"),
            (b"stream", b"", b"true"),
            (b"file", b'; filename="x"', SOUND),
        )
    ]
    body = b"".join(parts) + b"--b--\r\n"
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n" % (URL.encode(), len(body))
    with connect(server) as sock:
        sock.sendall(head + b"content-type: multipart/form-data; boundary=b\r\n\r\n" + body)
        assert b"200" in sock.recv(100)
    assert eventually(lambda: heard(server).closed)
    made = heard(server).made
    assert made < 500


def test_a_request_leaves_its_seconds_in_the_log_and_the_metrics(serving, caplog):
    caplog.set_level(logging.INFO, "freehold.requests")
    server = serving(HEARS, keys=Ring([key("ann")]))
    answer = server.client.post(URL, data={"model": "fake:1b"}, files={"file": SOUND}, headers=bearer("ann"))
    assert answer.status_code == 200, answer.text
    assert eventually(lambda: bool(caplog.records))
    line = caplog.records[-1].args[0]
    assert (line.fields["sound_s"], line.fields["speech_s"], line.fields["model"]) == (4.25, 4.0, "fake:1b")
    assert "sound 4.2 s (speech 4.0 s)" in str(line) and SAID.split(".")[0] not in caplog.text
    text = server.admin.get("/metrics").text
    for name, value in (("recordings", 1.0), ("sound_seconds", 4.25), ("speech_seconds", 4.0)):
        assert f'freehold_{name}_total{{engine="0",model_name="fake:1b"}} {value}' in text


def test_a_key_s_budget_is_spent_by_the_second_of_speech(serving):
    server = serving(HEARS, keys=Ring([key("ann", tokens="1000/day")]))

    def post() -> Any:
        form = {"data": {"model": "fake:1b"}, "files": {"file": SOUND}}
        return server.client.post(URL, **form, headers=bearer("ann"))

    assert post().status_code == 200
    assert server.doors.server.accounts.spent("ann") == 4 * 50 + 2 * 2
    assert post().status_code == 200, "it may cost 648, and 796 are left"
    refused = post()
    error = refused.json()["error"]
    assert refused.status_code == 429 and error["code"] == "insufficient_quota"
    assert "592 tokens left" in error["message"] and "648" in error["message"], error
    assert heard(server).closed and server.doors.server.accounts.spent("ann") == 408


def test_a_key_outside_the_model_s_scope_hears_of_no_model(serving):
    server = serving(HEARS, keys=Ring([key("ann", models=("other",))]))
    form = {"data": {"model": "fake:1b"}, "files": {"file": SOUND}}
    assert server.client.post(URL, **form, headers=bearer("ann")).status_code == 404
    assert server.client.post(URL, **form).status_code == 401


def test_a_speech_model_is_listed_with_what_it_can_do(serving):
    server = serving(HEARS)
    ask(server)
    card = server.client.get("/v1/models/fake:1b").json()
    assert card["freehold"]["capabilities"] == ["transcription"]


def test_many_recordings_at_once_are_each_their_own(serving):
    server = serving(HEARS)
    sounds = [os.urandom(400_000) for _ in range(6)]

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as c:
            made = [c.audio.transcriptions.create(file=each, model="fake:1b") for each in sounds]
            return [each.text for each in await asyncio.gather(*made)]

    assert asyncio.run(all_at_once()) == [SAID] * 6
    hearings = server.models.served["fake:1b"].hearings
    assert sorted(each.data for each in hearings) == sorted(sounds)
