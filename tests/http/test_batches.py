"""/v1/batches: lines in, results out, each exactly once, whatever becomes of the server meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.base.errors import ContextOverflow, Overloaded
from freehold.base.types import Image
from freehold.serve.http.batches import desk as desks
from freehold.serve.http.batches import filestore
from freehold.serve.http.batches import record as linefiles
from freehold.serve.http.batches.desk import Desk, NewBatch
from freehold.serve.http.batches.filestore import FileBounds
from freehold.serve.http.batches.record import ERRORS, OUTPUT, Journal, check_lines
from freehold.serve.http.core.keys import LOOK_S, KeyFile, Ring, key_of, made
from freehold.serve.http.core.problems import Refused
from tests.http.conftest import Running
from tests.http.fakes import Script, failing
from tests.http.test_files import with_free
from tests.http.test_streams import eventually
from tests.tools.hostile import png

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi", "store": False},
    "/v1/embeddings": {"input": ["hi", "ho"]},
}


def line(id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"model": "fake:1b", **BODIES.get(url, {}), **body}
    return {"custom_id": id, "method": "POST", "url": url, "body": asked}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class Batches:
    """A client of one server, or of one key's part of it."""

    def __init__(self, url: str, key: str = "none") -> None:
        self.api = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)

    def begin(self, lines: list[Any], url: str = CHAT, window: str = "24h", **more: Any):
        file = self.api.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch")
        return self.api.batches.create(
            input_file_id=file.id,
            endpoint=url,
            completion_window=window,
            **more,  # type: ignore[arg-type]
        )

    def end(self, batch: Any, seconds: float = 60.0) -> Any:
        ends = ("completed", "failed", "expired", "cancelled")
        assert eventually(lambda: self.api.batches.retrieve(batch.id).status in ends, seconds)
        return self.api.batches.retrieve(batch.id)

    def lines(self, id: str | None) -> dict[str, Any]:
        """Return a result file by custom id; each must be there once."""
        if id is None:
            return {}
        results = [json.loads(text) for text in self.api.files.content(id).read().splitlines()]
        assert not [name for name, n in Counter(r["custom_id"] for r in results).items() if n > 1]
        return {r["custom_id"]: r for r in results}


@pytest.fixture
def batches(serving):
    made = []

    def make(script: Script | None = None, **settings: object) -> tuple[Running, Batches]:
        server = serving(script, drain_s=0.2, **settings)
        made.append(Batches(server.url))
        return server, made[-1]

    yield make
    for each in made:
        each.api.close()


@pytest.mark.parametrize("url", BODIES)
def test_every_endpoint_is_answered_as_a_client_is(batches, url):
    server, client = batches(Script(text="Yes."))
    begun = client.begin([line(f"n{i}", url) for i in range(20)], url, metadata={"a": "b"})
    assert begun.object == "batch" and begun.status == "validating" and begun.metadata == {"a": "b"}
    ended = client.end(begun)
    assert ended.status == "completed" and ended.error_file_id is None
    assert (ended.request_counts.total, ended.request_counts.completed, ended.request_counts.failed) == (
        20,
        20,
        0,
    )
    assert ended.created_at <= ended.in_progress_at <= ended.completed_at <= ended.expires_at
    results = client.lines(ended.output_file_id)
    assert set(results) == {f"n{i}" for i in range(20)}
    one = results["n3"]
    assert one["error"] is None and one["response"]["status_code"] == 200 and one["response"]["request_id"]
    asked = server.client.post(url, json=line("", url)["body"]).json()
    assert one["response"]["body"].keys() == asked.keys()
    assert not one["response"]["body"].get("freehold", {}).get("warnings")
    served = server.models.served["fake:1b"]
    *lines, mine = [job.priority for job in (*served.jobs, *served.embeddings)]
    assert set(lines) == {"batch"} and mine == "interactive"
    assert client.api.files.retrieve(ended.output_file_id).purpose == "batch_output"


def test_lines_that_fail_are_in_the_error_file(batches):
    _, client = batches(Script(text="Yes."))
    lines = [
        line("good"),
        line("model", model="nix"),
        line("field", temperature="hot"),
        line("stream", stream=True),
    ]
    ended = client.end(client.begin(lines))
    assert ended.status == "completed" and ended.request_counts.failed == 3
    assert set(client.lines(ended.output_file_id)) == {"good"}
    errors = client.lines(ended.error_file_id)
    codes = {
        id: (e["response"]["status_code"], e["response"]["body"]["error"]["param"])
        for id, e in errors.items()
    }
    assert codes == {"model": (404, "model"), "field": (400, "temperature"), "stream": (400, "stream")}


@pytest.mark.parametrize(
    "content, code, at",
    [
        (b"\n\n", "empty_file", None),
        (b"{]\n", "invalid_json_line", 1),
        (jsonl([line("a"), {"custom_id": "b"}]), "invalid_request", 2),
        (jsonl([line("a"), line("a")]), "duplicate_custom_id", 2),
        (jsonl([line("a", "/v1/completions")]), "mismatched_url", 1),
        (jsonl([{**line("a"), "method": "GET"}]), "invalid_request", 1),
    ],
)
def test_a_file_with_wrong_lines_fails_whole_and_says_where(batches, content, code, at):
    server, client = batches()
    file = client.api.files.create(file=("x", content), purpose="batch")
    begun = client.api.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    ended = client.end(begun)
    assert ended.status == "failed" and ended.failed_at
    assert (ended.errors.data[0].code, ended.errors.data[0].line) == (code, at)
    assert not server.models.served["fake:1b"].jobs


def test_bounds_on_lines_hold(tmp_path, monkeypatch):
    from freehold.serve.http.batches import record as bounds

    path = tmp_path / "x"
    path.write_bytes(jsonl([line(str(i)) for i in range(5)]))
    assert check_lines(path, CHAT).total == 5
    monkeypatch.setattr(bounds, "MAX_LINES", 4)
    assert check_lines(path, CHAT).errors[0].code == "too_many_lines"
    monkeypatch.setattr(bounds, "MAX_LINE", 20)
    assert check_lines(path, CHAT).errors[0].code == "line_too_long"


@pytest.mark.parametrize(
    "field, value, param",
    [
        ("input_file_id", "file-" + "0" * 24, "file_id"),
        ("endpoint", "/v1/models", "endpoint"),
        ("completion_window", "soon", "completion_window"),
        ("completion_window", "9999h", "completion_window"),
        ("metadata", {"a": 1}, "metadata"),
        ("mood", "good", "mood"),
    ],
)
def test_a_wrong_batch_is_refused(batches, field, value, param):
    server, client = batches()
    file = client.api.files.create(file=b"x", purpose="batch")
    asked = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", field: value}
    answer = server.client.post("/v1/batches", json=asked)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param


def test_a_batch_of_recordings_is_refused_with_where_they_go(batches):
    server, client = batches()
    file = client.api.files.create(file=b"x", purpose="batch")
    url = "/v1/audio/transcriptions"
    body = {"input_file_id": file.id, "endpoint": url, "completion_window": "24h"}
    answer = server.client.post("/v1/batches", json=body)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert (
        url in message
        and "/v1/chat/completions" in message
        and "A line cannot contain a recording" in message
    )


def test_a_cancelled_batch_keeps_what_it_has_answered(batches):
    server, client = batches(Script(text="a", delay=0.05))
    begun = client.begin([line(f"n{i}") for i in range(1000)])
    assert eventually(lambda: client.api.batches.retrieve(begun.id).request_counts.completed > 8)
    assert client.api.batches.cancel(begun.id).status == "cancelling"
    ended = client.end(begun)
    assert ended.status == "cancelled" and ended.cancelling_at and ended.cancelled_at
    assert len(client.lines(ended.output_file_id)) == ended.request_counts.completed < 1000
    assert eventually(lambda: server.models.in_flight == 0)
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.api.batches.cancel(begun.id)


def test_what_is_left_when_the_window_ends_expires(batches):
    _, client = batches(Script(text="a", delay=0.3))
    ended = client.end(client.begin([line(f"n{i}") for i in range(40)], window="1s"))
    assert ended.status == "expired" and ended.request_counts.completed < 40
    good, late = client.lines(ended.output_file_id), client.lines(ended.error_file_id)
    assert set(good) | set(late) == {f"n{i}" for i in range(40)} and not set(good) & set(late)
    assert late.popitem()[1]["error"]["code"] == "batch_expired"


def test_a_full_queue_is_waited_for_and_a_prompt_too_long_is_not(batches, monkeypatch):
    monkeypatch.setattr(desks, "PAUSE_S", 0.01)
    monkeypatch.setattr(desks, "_retry_after", lambda headers: 0.0)
    server, client = batches(failing("start", Overloaded("full", wait_s=9)))
    begun = client.begin([line("a")])
    assert eventually(lambda: len(server.models.served["fake:1b"].jobs) > 2)
    server.models.script.fail = None
    assert client.end(begun).request_counts.completed == 1
    server.models.script.fail = ContextOverflow("too long")
    assert client.end(client.begin([line("a")])).request_counts.failed == 1


def test_few_lines_are_abreast_whatever_waits(batches):
    server, client = batches(Script(text="a", delay=0.05))
    begun = [client.begin([line(f"n{i}") for i in range(20)]) for _ in range(6)]
    most = 0
    while client.api.batches.retrieve(begun[-1].id).status != "completed":
        most = max(most, server.models.in_flight)
        time.sleep(0.005)
    assert 2 <= most <= desks.ABREAST
    assert all(client.end(b).status == "completed" for b in begun)
    assert [b.id for b in client.api.batches.list(limit=2)] == sorted(
        (b.id for b in begun), key=lambda id: (client.api.batches.retrieve(id).created_at, id), reverse=True
    )


def test_a_file_may_be_deleted_while_its_batch_runs(batches):
    _, client = batches(Script(text="a", delay=0.02))
    begun = client.begin([line(f"n{i}") for i in range(30)])
    client.api.files.delete(begun.input_file_id)
    assert client.end(begun).request_counts.completed == 30


def test_no_key_sees_anothers_batches(batches):
    keys = {"ann": "a" * 20, "bob": "b" * 20}
    server, _ = batches(keys=Ring(key_of(*pair) for pair in keys.items()))
    ann, bob = (Batches(server.url, key) for key in keys.values())
    ended = ann.end(ann.begin([line("a")]))
    assert ended.status == "completed" and server.models.served["fake:1b"].jobs[-1].tenant == "ann"
    assert not list(bob.api.batches.list())
    for ask in (bob.api.batches.retrieve, bob.api.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(ended.id)
    with pytest.raises(openai.NotFoundError):
        bob.api.files.content(ended.output_file_id)
    with pytest.raises(openai.NotFoundError):
        bob.api.batches.create(input_file_id=ended.input_file_id, endpoint=CHAT, completion_window="24h")
    ann.api.close()
    bob.api.close()


def test_lines_of_a_key_that_was_revoked_meanwhile_are_errors(batches, tmp_path):
    file, secret = KeyFile(tmp_path / "keys.json"), "a" * 20
    file.add(made("ann", secret, admin=False, models=(), rate="", tokens=""))
    ring = Ring(file=file, needed=True, clock=itertools.count(step=LOOK_S).__next__)
    server, _ = batches(Script(text="a", delay=0.05), keys=ring)
    ann = Batches(server.url, secret)
    begun = ann.begin([line(f"n{i}") for i in range(400)])
    assert eventually(lambda: ann.api.batches.retrieve(begun.id).request_counts.completed > 8)
    file.remove("ann")
    ann.api.close()
    desk = server.doors.server.part(Desk)
    assert eventually(lambda: desk.get("ann", begun.id).over)
    ended = desk.get("ann", begun.id)
    assert ended.status == "completed" and ended.completed + ended.failed == 400 and ended.failed > 8
    refused = desk.files.path("ann", ended.error_file_id).read_text().splitlines()
    assert {json.loads(each)["response"]["status_code"] for each in refused} == {401}


def test_the_client_is_answered_async_too(batches):
    _, client = batches(Script(text="Yes."))

    async def main() -> str:
        async with openai.AsyncOpenAI(base_url=str(client.api.base_url), api_key="none") as a:
            file = await a.files.create(file=jsonl([line("x")]), purpose="batch")
            batch = await a.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            while batch.status != "completed":
                await asyncio.sleep(0.01)
                batch = await a.batches.retrieve(batch.id)
            return (await a.files.content(batch.output_file_id)).text

    assert json.loads(asyncio.run(main()))["custom_id"] == "x"


def test_half_a_line_that_a_crash_left_is_cut_off_and_done_again(tmp_path):
    whole = b'{"custom_id":"a"}\n{"custom_id":"b"}\n'
    (tmp_path / OUTPUT).write_bytes(whole + b'{"custom_id":"c')
    (tmp_path / ERRORS).write_bytes(b'{"custom_id":"d"}\nnonsense\n{"custom_id":"e"}\n')

    async def main() -> set[str]:
        journal = Journal(tmp_path)
        done = set(journal.done)
        await asyncio.gather(*(journal.add(n, lambda n=n: {"custom_id": n}, failed=False) for n in "cef"))
        await journal.close()
        return done

    assert asyncio.run(main()) == {"a", "b", "d"}
    again = Journal(tmp_path)
    assert again.done == set("abcdef") and again.counts == {OUTPUT: 5, ERRORS: 1}
    asyncio.run(again.close())
    assert (tmp_path / OUTPUT).read_bytes().startswith(whole)


SERVER = """
import asyncio, sys
from pathlib import Path
from freehold.serve.http.core.sockets import bind_tcp
from freehold.serve.http.serve import Doors, ServerSettings
from tests.http.fakes import FakeModels, Script

async def main():
    doors = Doors(FakeModels(Script(text="a b", delay=0.01)), ServerSettings(home=Path(sys.argv[1])))
    tcp = bind_tcp("127.0.0.1", 0)
    await doors.open(tcp, opened=lambda: print(doors.url, flush=True))

asyncio.run(main())
"""


class Process:
    """A server in a process of its own, to be killed."""

    def __init__(self, home: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(home)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


def test_a_batch_whose_server_is_killed_in_the_middle_has_each_line_exactly_once(tmp_path):
    ids = {f"n{i}" for i in range(80)}
    begun: Any = None
    for life in range(1, 3):
        server = Process(tmp_path)
        client = Batches(server.url)
        try:
            begun = begun or client.begin([line(id) for id in sorted(ids)])
            if life == 1:
                done = partial(
                    lambda c, id: c.api.batches.retrieve(id).request_counts.completed, client, begun.id
                )
                assert eventually(lambda done=done: done() >= 30)
            else:
                ended = client.end(begun)
                assert set(client.lines(ended.output_file_id)) == ids
        finally:
            client.api.close()
            server.kill()
    assert ended.status == "completed" and ended.request_counts.completed == 80
    Desk(tmp_path)  # a server that starts clears what a kill at the very end left
    assert not list((tmp_path / "batches").rglob("*.jsonl"))


good = st.builds(lambda id: json.dumps(line(id)).encode(), st.text(max_size=3))
bad = st.binary(max_size=40) | st.sampled_from([b"", b"[]", b"{}", b"null", b"[" * 9999, b'{"custom_id": 1}'])


@pytest.mark.heavy
@given(st.lists(good | bad, max_size=8).map(b"\n".join))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_lines_or_named_errors(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    checked = check_lines(path, CHAT)
    said = [text for text in data.split(b"\n") if text.strip()]
    assert checked.errors or checked.total == len(said)
    assert all(wrong.code and wrong.message for wrong in checked.errors)


def test_no_line_of_a_batch_whose_time_is_over_is_read_on_the_loop(batches, monkeypatch):
    read, readers = desks.read_lines, set()

    def noted(path: Path):
        for each in read(path):
            readers.add(threading.current_thread())
            yield each

    monkeypatch.setattr(desks, "read_lines", noted)
    server, client = batches(Script(text="word " * 2000, delay=0.05))
    ended = client.end(client.begin([line(f"n{i}") for i in range(20)], window="1s"))
    assert ended.status == "expired" and ended.request_counts.failed
    assert readers and server.thread not in readers


def test_a_file_of_empty_lines_is_refused_before_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(linefiles, "MAX_EMPTY", 3)
    path = tmp_path / "lines.jsonl"
    for empty, total in ((3, 2), (4, None)):
        path.write_bytes(jsonl([line("a")]) + b"\n" * empty + jsonl([line("b")]))
        checked = check_lines(path, CHAT)
        assert [each.code for each in checked.errors] == ([] if total else ["too_many_lines"])
        assert total is None or checked.total == total


def test_results_that_pass_the_key_s_room_end_their_batch(batches):
    server, client = batches(Script(text="word " * 400))
    files = server.doors.server.part(Desk).files
    lines = [line(f"n{i}") for i in range(40)]
    files._bounds = FileBounds(bytes=len(jsonl(lines)) + 20_000)  # some 8 results of 2.4 KB
    ended = client.end(client.begin(lines))
    (told,) = ended.errors.data
    assert ended.status == "failed" and told.code == "files_full" and "delete some first" in told.message
    kept = client.lines(ended.output_file_id)  # which are whole
    assert 0 < len(kept) == ended.request_counts.completed < 40
    assert len(server.models.served["fake:1b"].jobs) <= len(kept) + desks.ABREAST
    held = list(client.api.files.list())
    assert sum(each.bytes for each in held) <= files._bounds.bytes and not files._coming
    files._bounds = FileBounds(bytes=sum(each.bytes for each in held))
    with pytest.raises(
        openai.BadRequestError, match="delete some first"
    ):  # there is room for no result at all
        client.api.batches.create(input_file_id=ended.input_file_id, endpoint=CHAT, completion_window="24h")
    client.api.files.delete(ended.output_file_id)
    again = client.api.batches.create(
        input_file_id=ended.input_file_id, endpoint=CHAT, completion_window="24h"
    )
    assert client.end(again).status == "failed"


def test_batches_that_grow_together_share_their_key_s_room(tmp_path):
    desk = Desk(tmp_path)
    desk.files._bounds = FileBounds(bytes=filestore.STEP + 1000)
    one, other = (partial(desk.files.reserve, "ann", tmp_path / name) for name in ("one", "two"))
    one(600)  # takes STEP beside
    one(700)  # with which is meant what is not written yet, so it takes no more
    with pytest.raises(Refused, match="files would hold"):
        other(1001)
    desk.files.reserve("bob", tmp_path / "three", 1001)
    desk.files.release(tmp_path / "one")
    other(1001)


def test_results_wait_before_they_touch_the_disk_s_reserve(tmp_path, monkeypatch):
    files = Desk(tmp_path).files
    with_free(monkeypatch, 100)
    files.reserve("ann", tmp_path, 100)
    with pytest.raises(OSError, match="only its reserve"):  # as of a full disk, for which a batch waits
        files.reserve("ann", tmp_path, 101)


def test_no_result_is_written_once_there_was_no_room_for_one(tmp_path):
    written: list[int] = []

    def reserve(more: int) -> None:
        if sum(written) + more > 70:
            raise Refused(400, "full", code="files_full")

    async def body() -> None:
        journal = Journal(tmp_path, reserve=reserve, wrote=written.append)
        adding = [journal.add(f"n{i}", lambda i=i: {"custom_id": f"n{i}"}, failed=False) for i in range(9)]
        got = await asyncio.gather(*adding, return_exceptions=True)
        await journal.close()
        assert [type(each) for each in got] == [type(None)] * 3 + [Refused] * 6
        assert journal.done == {"n0", "n1", "n2"}
        assert len((tmp_path / OUTPUT).read_bytes().splitlines()) == 3

    asyncio.run(body())


def test_an_open_batch_s_input_takes_room_after_its_file_is_gone(tmp_path):
    desk, made = Desk(tmp_path), []  # nothing is answered: it does not run
    desk.files._bounds = FileBounds(bytes=2500)

    async def begin() -> None:
        part = desk.files.begin("ann", 1000)
        part.write_bytes(b"x" * 1000)
        file = desk.files.add("ann", part, "a", "batch")
        made.append(await desk.create("ann", NewBatch(CHAT, file.id, "24h", 86400.0, {})))
        desk.files.delete("ann", file.id)

    async def body() -> None:
        await begin()
        await begin()
        with pytest.raises(Refused, match="files would hold 3,000 bytes"):
            await begin()
        made[0].status = "cancelled"
        await begin()

    asyncio.run(body())


def test_lines_with_pictures_are_answered_and_a_text_model_s_are_refused_by_place(serving):
    server = serving(Script("A cat.", sees=True))
    url = Image.of(png() + bytes(2 << 20)).as_url  # of 2.8 MB in base64
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    asked = [line(f"l{i}", messages=[{"role": "user", "content": content}]) for i in range(3)]
    batches = Batches(server.url)
    done = batches.end(batches.begin(asked))
    assert (done.request_counts.completed, done.request_counts.failed) == (3, 0)
    assert {*batches.lines(done.output_file_id)} == {"l0", "l1", "l2"}
    jobs = server.models.served["fake:1b"].jobs
    assert all(job.messages[0].parts == (Image.at(url), "What?") for job in jobs) and len(jobs) == 3
    server.models.play(Script("Hm."))
    done = batches.end(batches.begin(asked[:1]))
    (error,) = batches.lines(done.error_file_id).values()
    assert "cannot read pictures" in json.dumps(error) and "messages[0].content[0]" in json.dumps(error)
