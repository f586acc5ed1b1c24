"""/v1/files: uploads in bounds, listed, read, deleted, and each tenant's its own."""

from __future__ import annotations

import asyncio
import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.run.store import space
from freehold.serve.http.batches.desk import Desk
from freehold.serve.http.batches.filestore import FileBounds, Files
from freehold.serve.http.core import bodies
from freehold.serve.http.core.forms import read_form
from freehold.serve.http.core.keys import Ring, key_of
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.problems import Refused
from tests.http.conftest import Running
from tests.http.test_streams import connect, eventually, until

URL = "/v1/files"


def upload(server: Running, content: bytes = b"{}\n", purpose: str = "batch", **more: str):
    form = {"purpose": purpose, **more}
    return server.client.post(URL, data=form, files={"file": ("../lines.jsonl", content)})


def test_the_openai_client_uploads_lists_reads_and_deletes(serving):
    server = serving()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as c:
        made = c.files.create(file=("a.jsonl", b"one\n"), purpose="batch")
        assert (made.filename, made.bytes, made.purpose, made.object) == ("a.jsonl", 4, "batch", "file")
        later = c.files.create(
            file=b"two", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert later.expires_at == later.created_at + 3600
        assert {made.id, later.id} <= {f.id for f in c.files.list(purpose="batch", limit=1)}
        assert c.files.retrieve(made.id) == made
        assert c.files.content(made.id).read() == b"one\n"
        assert c.files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError):
            c.files.content(made.id)
        c.files.delete(later.id)


@pytest.mark.parametrize("limit", ["0", "10001", "1e3", "-1", "00000001" + "9" * 5000])
def test_a_limit_that_is_none_is_refused(serving, limit):
    answer = serving().client.get(f"{URL}?limit={limit}")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "limit"


def test_a_page_behind_no_entry_is_refused(serving):
    answer = serving().client.get(f"{URL}?after=file-gone")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "after"


def test_a_file_is_given_back_byte_for_byte(serving):
    server, content = serving(), os.urandom(700_000)
    made = upload(server, content).json()
    assert made["filename"] == "lines.jsonl" and made["bytes"] == len(content)
    assert server.client.get(f"{URL}/{made['id']}/content").content == content
    server.client.delete(f"{URL}/{made['id']}")


@pytest.mark.parametrize(
    "form, words",
    [
        ({"content": b""}, "empty"),
        ({"purpose": "fine-tune"}, "'fine-tune'"),
        ({"expires_after[anchor]": "created_at"}, "expires_after"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"}, "expires_after"),
        ({"mood": "good"}, "mood"),
        ({"purpose": "x" * 5000}, "longer than"),
    ],
)
def test_a_wrong_form_is_refused_and_leaves_nothing(serving, form, words):
    server = serving()
    before = server.client.get(URL).json()["data"]  # other tests may share this server
    answer = upload(server, **form)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
    assert server.client.get(URL).json()["data"] == before


@pytest.mark.parametrize(
    "kind, body",
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"nonsense"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx'),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n" * 20 + b"--b--\r\n"),
        ("multipart/form-data; boundary=" + "b" * 300, b"x"),
    ],
)
def test_what_is_no_form_is_refused(serving, kind, body):
    answer = serving().client.post(URL, content=body, headers={"content-type": kind})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_form", answer.text


@pytest.mark.parametrize("stated", [True, False])
def test_an_upload_too_long_is_refused_and_leaves_nothing(serving, tmp_path, stated):
    server = serving(limits=ServerLimits(upload_bytes=10_000))
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"x" * 20_000
    sent = body if stated else (body[i : i + 1000] for i in range(0, len(body), 1000))
    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = server.client.post(URL, content=sent, headers=kind)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert not list(Path(server.doors.settings.home).rglob("file-*"))


def test_files_are_private_and_each_tenants_own(serving):
    keys = {"ann": "a" * 20, "bob": "b" * 20}
    server = serving(keys=Ring(key_of(*pair) for pair in keys.items()))
    ann, bob = ({"Authorization": f"Bearer {key}"} for key in keys.values())
    form = {"files": {"file": ("x", b"secret")}, "data": {"purpose": "batch"}}
    id = server.client.post(URL, headers=ann, **form).json()["id"]
    for ask in (server.client.get, server.client.delete):
        assert ask(f"{URL}/{id}", headers=bob).status_code == 404
    assert server.client.get(f"{URL}/{id}/content", headers=bob).status_code == 404
    assert server.client.get(URL, headers=bob).json()["data"] == []
    assert server.client.get(f"{URL}/{id}/content", headers=ann).content == b"secret"
    root = Path(server.doors.settings.home) / "files"
    for path in root.rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@pytest.mark.parametrize("id", ["..", "file-x", "%2e%2e%2f%2e%2e", "file-" + "0" * 24])
def test_an_id_leads_nowhere_else(serving, id):
    assert serving().client.get(f"{URL}/{id}/content").status_code == 404


def test_bounds_expiry_and_what_a_crash_left(tmp_path):
    clock = [1000.0]
    files = Files(tmp_path, FileBounds(files=2, bytes=100), now=lambda: clock[0])

    def add(content: bytes, seconds: int | None = None):
        part = files.begin("ann", len(content))
        part.write_bytes(content)
        return files.add("ann", part, "x", "batch", seconds)

    first, second = add(b"x" * 60, 3600), add(b"x" * 40)
    with pytest.raises(Refused, match="2 files"):
        files.begin("ann", 1)
    clock[0] += 3600
    assert [f.id for f in files.all("ann")] == [second.id]
    add(b"x" * 60)
    files.delete("ann", second.id)
    assert files.begin("ann", 1).name.endswith(".part") and files.begin("bob", 1)
    folder = next(tmp_path.iterdir())
    for name in ("file-a.part", "file-b.data", ".file-c.json.1.new"):
        (folder / name).write_bytes(b"x")
    files.sweep()
    assert len(files.all("ann")) == 1
    assert sorted(p.suffix for p in tmp_path.rglob("*.*")) == [".data", ".json"]
    assert first.expires_at == 4600


def test_uploads_that_come_together_share_one_bound(tmp_path):
    files = Files(tmp_path, FileBounds(files=3, bytes=100))
    first = files.begin("ann", 60)  # of which nothing has come yet
    with pytest.raises(Refused, match="would hold 120 bytes; expected at most 100"):
        files.begin("ann", 60)
    second, third = files.begin("ann", 30), files.begin("ann", 10)
    with pytest.raises(Refused, match="3 files"):
        files.begin("ann", 0)
    for part, size in ((first, 60), (second, 40)):
        part.write_bytes(b"x" * size)
        files.add("ann", part, "x", "batch") if part == first else None
    files.end(third)
    third = files.begin("ann", 10)
    with pytest.raises(Refused, match="would hold 110 bytes"):  # it is longer than it said
        files.add("ann", second, "x", "batch")
    files.end(third)
    assert files.begin("ann", 40)


def test_uploads_in_progress_count_as_long_as_they_may_be(serving):
    server = serving(limits=ServerLimits())  # its own: the shared one has files that other tests left
    sent = (
        f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 104857600\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    ).encode()
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connect(server)).sendall(sent)
        files = server.doors.server.part(Desk).files
        assert eventually(lambda: len(files._coming) == 40)
        with connect(server) as sock:
            sock.sendall(sent)
            assert b"files would hold 4,299,161,600 bytes" in until(sock, b"}}")
    assert eventually(lambda: not files._coming)


def with_free(monkeypatch, *free: int) -> None:
    """Have the disk that many bytes beside its reserve, a number a look and the last one from then on."""
    left = [*free]
    total = 1 << 40
    monkeypatch.setattr(
        space.shutil,
        "disk_usage",
        lambda _: SimpleNamespace(total=total, free=space.RESERVE + (left.pop(0) if left[1:] else left[0])),
    )


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes."""
    resource = pytest.importorskip("resource", reason="file sizes are limited by POSIX alone")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_upload_longer_than_a_file_may_be_leaves_nothing(serving):
    server = serving()
    with files_of_at_most(1_000_000):
        answer = upload(server, b"x" * 5_000_000)
    assert answer.status_code == 507 and "no file become that long" in answer.text
    assert not list(Path(server.doors.settings.home).rglob("*.part"))
    assert upload(server, b"x" * 5_000_000).status_code == 200


def test_an_upload_that_would_touch_the_disk_s_reserve_is_refused_before_it_is_written(serving, monkeypatch):
    server = serving()
    before = server.client.get(URL).json()["data"]
    with_free(monkeypatch, 50_000)
    answer = upload(server, b"x" * 60_000)
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "disk_full", answer.text
    assert "50.0 kB" in answer.json()["error"]["message"]
    assert server.client.get(URL).json()["data"] == before
    assert not list(Path(server.doors.settings.home).rglob("*.part"))
    assert upload(server, b"x" * 40_000).status_code == 200


def test_an_upload_ends_where_others_take_the_disk_meanwhile(serving, monkeypatch):
    server = serving()
    monkeypatch.setattr(bodies, "EVERY", 10_000)
    with_free(monkeypatch, 50_000, 0)  # all may come in one piece
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"x" * 90_000
    sent = (body[i : i + 1000] for i in range(0, len(body), 1000))  # of no stated length
    kind = {"content-type": "multipart/form-data; boundary=b"}
    before = server.client.get(URL).json()["data"]  # other tests may share this server
    answer = server.client.post(URL, content=sent, headers=kind)
    assert answer.status_code == 507 and answer.json()["error"]["code"] == "disk_full", answer.text
    assert server.client.get(URL).json()["data"] == before
    assert not list(Path(server.doors.settings.home).rglob("*.part"))


def test_uploads_at_once_fit_the_disk_together(tmp_path, monkeypatch):
    with_free(monkeypatch, 100)
    both, half = bodies.Uploads(), {b"content-length": b"60"}
    with both.into(tmp_path, half) as first:
        with pytest.raises(Refused, match="in progress announced"), both.into(tmp_path, half):
            pass
        first.came(30)
        with both.into(tmp_path, half):
            pass
    assert both.coming == 0


def test_a_server_without_a_folder_says_so(serving):
    answer = serving(home=None).client.get(URL)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_files"


PART = b'Content-Disposition: form-data; name="%b"; filename="x"\r\n\r\nhello'
parts = st.sampled_from(
    [b"--x\r\n", b"\r\n--x--\r\n", b"\r\n", PART % b"file", PART % b"purpose"]
) | st.binary(max_size=12)


@pytest.mark.heavy
@given(st.lists(parts, max_size=8).map(b"".join), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_any_body_is_a_form_or_a_named_error(body, size):
    async def pieces():
        for at in range(0, len(body), size):
            yield body[at : at + size]

    sink = io.BytesIO()
    try:
        form = asyncio.run(read_form(b"multipart/form-data; boundary=x", pieces(), sink))
    except Refused as e:
        assert e.status == 400
        return
    assert form.whole and form.bytes == len(sink.getvalue())
