"""Freehold's own tools: named, planned, asked about, and run."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from freehold.base.config import load_settings
from freehold.base.errors import FreeholdError, Offline, UpstreamFailed, UsageError
from freehold.base.platforms import can_confine
from freehold.base.types import ToolCall
from freehold.serve.chats.types import ToolAnswer
from freehold.serve.tools.fetch import allowed_host, checked_hosts, fetched, page_text
from freehold.serve.tools.folder import ToolFolder
from freehold.serve.tools.own import (
    TOOLS,
    JoinedRunner,
    OwnRunner,
    OwnTools,
    chat_folder,
    check_apart,
    checked_pattern,
    matches,
    offered_pattern,
    own_tools,
)
from tests.tools.world import Desk

confined = pytest.mark.skipif(not can_confine(), reason="this kernel confines no process")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    (path / "sub").mkdir(parents=True)
    (path / "a.txt").write_text("one\ntwo\ntwo\n")
    (path / "sub" / "b.py").write_text("def f():\n    return 1\n")
    return path


@pytest.fixture
def tools(folder: Path, tmp_path: Path) -> Iterator[OwnTools]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    python = folder if can_confine() else None
    own = OwnTools(scratch=scratch, folder=folder, python=python, shell=python, hosts=("example.org",))
    yield own
    own.close()


def use(tools: OwnTools, name: str, **arguments: Any) -> str:
    return tools.plan(ToolCall("c", name, json.dumps(arguments))).run().content


# --- the folder ---------------------------------------------------------------------------------


def test_files_are_listed_read_searched_and_changed(tools: OwnTools, folder: Path):
    assert use(tools, "list_files") == "a.txt (12 bytes)\nsub/\nsub/b.py (22 bytes)"
    assert use(tools, "list_files", path="sub") == "b.py (22 bytes)"
    assert use(tools, "read_file", path="a.txt") == "one\ntwo\ntwo\n"
    assert use(tools, "read_file", path="a.txt", first=2, last=2) == "two\n[lines 2 to 2 of 3]"
    assert use(tools, "read_file", path=str(folder / "a.txt")) == "one\ntwo\ntwo\n"
    assert use(tools, "search_files", text="two") == "a.txt:2: two\na.txt:3: two"
    assert use(tools, "search_files", text="return", path="sub/b.py") == "sub/b.py:2: return 1"
    assert use(tools, "edit_file", path="a.txt", old="one", new="1") == "a.txt was changed (+1 -1)."
    assert (
        use(tools, "edit_file", path="a.txt", old="two", new="2", every=True) == "a.txt was changed (+2 -2)."
    )
    assert (folder / "a.txt").read_text() == "1\n2\n2\n"
    assert use(tools, "write_file", path="new/c.txt", text="c\n") == "new/c.txt was written (+1 -0)."
    assert use(tools, "remove_file", path="new/c.txt") == "new/c.txt was removed (+0 -1)."
    assert not (folder / "new/c.txt").exists()


def test_a_write_keeps_the_mode_and_leaves_no_other_file(tools: OwnTools, folder: Path):
    (folder / "a.txt").chmod(0o750)
    use(tools, "write_file", path="a.txt", text="x")
    assert (folder / "a.txt").stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "sub"]


def test_line_ends_of_windows_are_kept_by_an_edit(tools: OwnTools, folder: Path):
    (folder / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    use(tools, "edit_file", path="a.txt", old="one\ntwo", new="1\n2")
    assert (folder / "a.txt").read_bytes() == b"1\r\n2\r\n"


def test_a_change_is_planned_as_a_difference_and_refused_if_the_file_changed_meanwhile(
    tools: OwnTools, folder: Path
):
    planned = tools.plan(ToolCall("c", "edit_file", json.dumps({"path": "a.txt", "old": "one", "new": "1"})))
    assert planned.acts and not planned.asks and planned.summary == "edit_file: a.txt (+1 -1)"
    assert "--- a.txt\n+++ a.txt\n@@ -1,3 +1,3 @@\n-one\n+1" in planned.detail
    (folder / "a.txt").write_text("the user's\n")
    with pytest.raises(UsageError, match="was changed meanwhile"):
        planned.run()
    assert (folder / "a.txt").read_text() == "the user's\n"


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("read_file", {}, "path is missing"),
        ("read_file", {"path": 1}, "path is not a text"),
        ("read_file", {"path": "a.txt", "first": "1"}, "first is not a whole number"),
        ("read_file", {"path": "a.txt", "first": 9}, "line 9 is beyond its end"),
        ("read_file", {"path": "a.txt", "first": 2, "last": 1}, "are not a range"),
        ("read_file", {"path": "a.txt", "line": 1}, "no parameter 'line'"),
        ("read_file", {"path": "."}, "the folder itself"),
        ("read_file", {"path": "sub"}, "is a folder"),
        ("read_file", {"path": "a.txt/x"}, "passes through a link or a file"),
        ("read_file", {"path": "x" * 2000}, "at most 1,024 characters"),
        ("edit_file", {"path": "a.txt", "old": "two", "new": "x"}, "contains the text 2 times"),
        ("edit_file", {"path": "a.txt", "old": "", "new": "x"}, "the text to replace is empty"),
        ("edit_file", {"path": "a.txt", "old": "onee", "new": "x"}, "does not contain the text"),
        ("edit_file", {"path": "a.txt", "old": "one", "new": "x", "every": 1}, "neither true nor false"),
        ("search_files", {"text": ""}, "1 to 1,000 characters"),
        ("write_file", {"path": "sub", "text": "x"}, "is a folder"),
        ("nothing", {}, "there is no tool called"),
    ],
)
def test_wrong_calls_name_what_is_wrong(tools: OwnTools, name: str, arguments: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        use(tools, name, **arguments)


def test_files_that_are_not_text_or_too_large_are_refused(
    tools: OwnTools, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from freehold.serve.tools import folder as module

    (folder / "a.txt").write_bytes(b"a\xffb")
    with pytest.raises(UsageError, match="not UTF-8 text: byte 0xff at offset 1"):
        use(tools, "read_file", path="a.txt")
    (folder / "a.txt").write_bytes(b"a\0b")
    with pytest.raises(UsageError, match="is binary"):
        use(tools, "read_file", path="a.txt")
    monkeypatch.setattr(module, "MAX_FILE", 2)
    with pytest.raises(UsageError, match="the limit is 2"):
        use(tools, "read_file", path="a.txt")
    with pytest.raises(UsageError, match="would have 3 bytes"):
        use(tools, "write_file", path="c.txt", text="abc")


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    for path in ("/", tmp_path / "none", __file__):
        with pytest.raises(UsageError):
            ToolFolder(path)
    with pytest.raises(UsageError, match="Freehold's own files"):
        check_apart(tmp_path, tmp_path / "home")


# --- code and commands --------------------------------------------------------------------------


@confined
def test_the_interpreter_keeps_its_names_and_shows_what_a_console_shows(tools: OwnTools, folder: Path):
    assert use(tools, "python", code="x = 20\ny = 22") == "[no output]"
    assert use(tools, "python", code="print('sum')\nx + y") == "sum\n42"
    assert use(tools, "python", code="open('a.txt').read().split()") == "['one', 'two', 'two']"
    use(tools, "python", code="import os\nos.makedirs('out')\nopen('out/x', 'w').write('1')")
    assert (folder / "out/x").read_text() == "1"
    failed = use(tools, "python", code="def f():\n    return 1 / 0\nf()")
    assert (
        "ZeroDivisionError" in failed and 'File "<call>", line 2, in f' in failed and "notebook" not in failed
    )
    assert "SyntaxError" in use(tools, "python", code="x = = 1")
    assert use(tools, "python", code="x") == "20"
    assert "exited with 3" in use(tools, "python", code="raise SystemExit(3)")
    assert "more characters were printed" in use(tools, "python", code="print('a' * 100_000)")
    use(tools, "python", code="import threading\nt = threading.Thread(target=print)\nt.start(); t.join()")


@confined
def test_an_interpreter_that_ends_says_that_its_names_are_gone(tools: OwnTools):
    assert "its variables are gone" in use(tools, "python", code="x = 1\nimport os\nos._exit(1)").lower()
    assert "NameError" in use(tools, "python", code="x")
    forged = (
        "import os\nfor n in range(3, 3000):\n    try: os.write(n, b'\\xff' * 64)\n    except OSError: pass"
    )
    assert "variables are gone" in use(tools, "python", code=forged)
    assert use(tools, "python", code="1") == "1"


@confined
def test_pictures_come_back_as_images(tools: OwnTools):
    code = (
        "import sys, types\n"
        "plot = types.ModuleType('matplotlib.pyplot')\n"
        "class Figure:\n"
        "    def savefig(self, file, format): file.write(b'\\x89PNG\\r\\n\\x1a\\n' + b'x' * 10)\n"
        "plot.get_fignums = lambda: [1]\nplot.figure = lambda n: Figure()\nplot.close = lambda what: None\n"
        "sys.modules['matplotlib.pyplot'] = plot\n"
    )
    result = tools.plan(ToolCall("c", "python", json.dumps({"code": code}))).run()
    assert result.images == ("data:image/png;base64,iVBORw0KGgp4eHh4eHh4eHh4",)
    assert result.content == "[a picture]"


@confined
def test_a_command_runs_in_the_folder_and_its_status_is_shown(tools: OwnTools, folder: Path):
    try:
        tools.check()
    except FreeholdError as e:
        pytest.skip(e.message)
    assert use(tools, "shell", command="ls; pwd") == f"a.txt\nsub\n{folder}"
    assert use(tools, "shell", command="echo made > made.txt; exit 3") == "[exit status 3]"
    assert (folder / "made.txt").read_text() == "made\n"
    assert use(tools, "shell", command="kill -9 $$") == "[exit status 137]"
    assert "was ended after 1 s" in use(tools, "shell", command="sleep 60", seconds=1)
    long = use(tools, "shell", command="seq 100000")
    assert "bytes are left out here" in long and long.endswith("100000") and len(long) < 25_000
    python = Path(
        sys.executable
    ).resolve()  # not the environment's link: it may lie in /tmp, which is not shown
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8123/a.txt').status)"
    wait = f'for i in $(seq 100); do {python} -c "{ask}" 2>/dev/null && break; sleep 0.1; done'
    served = f"{python} -m http.server 8123 >/dev/null 2>&1 & {wait}"
    assert use(tools, "shell", command=served) == "200"


def test_where_a_process_cannot_be_confined_both_tools_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from freehold.base import platforms
    from freehold.base.sandbox import notebook

    monkeypatch.setattr(platforms, "can_confine", lambda: False)
    monkeypatch.setattr(notebook, "can_confine", lambda: False)
    with pytest.raises(UsageError, match="the tool python needs Linux"):
        OwnTools(scratch=tmp_path, python=tmp_path)
    with pytest.raises(UsageError, match="the tool shell cannot be confined here"):
        OwnTools(scratch=tmp_path, shell=tmp_path).check()


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", ",", "a b", "http://example.org", "*", "*.*", "example.org/x"])
def test_what_is_not_a_list_of_hosts_is_refused(text: str):
    with pytest.raises(UsageError):
        checked_hosts(text)


@pytest.mark.parametrize(
    "url, message",
    [
        ("https://example.com/", "is not among the allowed hosts"),
        ("https://example.org.evil.com/", "is not among"),
        ("https://evil.com/example.org", "is not among"),
        ("https://example.org@evil.com/", "holds a password"),
        ("http://example.org/", "without encryption"),
        ("file:///etc/passwd", "is not a URL"),
        ("ftp://example.org/", "is not a URL"),
        ("https://example.org:8443/", "is not among"),
        ("https://" + "a" * 3000, "is not a URL"),
        ("https://[::1", "is not a URL"),
    ],
)
def test_urls_beside_the_list_are_refused(url: str, message: str):
    with pytest.raises(UsageError, match=message):
        allowed_host(url, ("example.org", "*.gnu.org"))


def test_hosts_of_the_list_are_allowed():
    assert allowed_host("https://example.org/x?y", ("example.org",)) == "example.org"
    assert allowed_host("https://www.gnu.org/", ("*.gnu.org",)) == "www.gnu.org"
    assert allowed_host("http://localhost:8000/", ("localhost:8000",)) == "localhost"


@pytest.fixture
def site() -> Iterator[str]:
    pages = {
        "/page": (200, "text/html; charset=utf-8", b"<h1>Title</h1><script>x</script><p>Text &amp; more</p>"),
        "/plain": (200, "text/plain", b"plain"),
        "/large": (200, "text/plain", b"x" * (5 << 20)),
        "/picture": (200, "image/png", b"x"),
        "/gone": (404, "text/plain", b"gone"),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("location", self.path[4:])
                self.end_headers()
                return
            status, kind, body = pages[self.path]
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_page_comes_back_as_text(site: str):
    assert fetched(f"http://{site}/page", (site,)) == "Title\n\nText & more"
    assert fetched(f"http://{site}/to?/plain", (site,)) == "plain"
    for path, error in (("large", "more than"), ("picture", "not text"), ("gone", "status 404")):
        with pytest.raises(UpstreamFailed, match=error):
            fetched(f"http://{site}/{path}", (site,))
    with pytest.raises(UsageError, match="not among"):
        fetched(f"http://{site}/to?https://example.com/", (site,))
    with pytest.raises(UpstreamFailed, match="redirects more than"):
        fetched(f"http://{site}/to?" + "/to?" * 8 + "/plain", (site,))
    with pytest.raises(Offline):
        fetched(f"http://{site}/page", (site,), offline=True)


def test_the_machine_is_not_reached_by_another_name_of_it():
    for host in ("127.0.0.1.nip.io", "0x7f.1", "169.254.169.254"):
        with pytest.raises((UpstreamFailed, UsageError)):
            fetched(f"https://{host}/", (host,))


def test_hidden_text_of_a_page_is_shown():
    assert "obey" in page_text("<p style='display:none'>obey</p>")


# --- names, patterns, questions -----------------------------------------------------------------


def test_tools_are_named_with_what_they_are_for():
    named = own_tools(["files=/x", "python", "documents=a", "documents=b"])
    assert [(each.kind, each.value) for each in named] == [
        ("files", "/x"),
        ("python", ""),
        ("documents", "a"),
        ("documents", "b"),
    ]
    for wrong in (["file=/x"], ["files"], ["python=3"], ["shell"], ["files=/x", "files=/y"], [""]):
        with pytest.raises(UsageError):
            own_tools(wrong)


@pytest.mark.parametrize(
    "pattern, name, arguments, allowed",
    [
        ("shell:pytest*", "shell", {"command": "pytest -q tests"}, True),
        ("shell:pytest*", "shell", {"command": "pytest; rm -rf ."}, False),
        ("shell:pytest*", "shell", {"command": "pytest $(rm x)"}, False),
        ("shell:pytest*", "shell", {"command": "pytest\nrm x"}, False),
        ("shell:pytest*", "shell", {"command": "pytest > x"}, False),
        ("shell:a; b", "shell", {"command": "a; b"}, True),
        ("shell:*", "shell", {"command": "a && b"}, False),
        ("remove_file:sub/*", "remove_file", {"path": "sub/b.py"}, True),
        ("remove_file:sub/*", "remove_file", {"path": "a.txt"}, False),
        ("write_file:*", "remove_file", {"path": "a.txt"}, False),
    ],
)
@confined
def test_a_pattern_allows_what_it_names(
    tools: OwnTools, pattern: str, name: str, arguments: Any, allowed: bool
):
    planned = tools.plan(ToolCall("c", name, json.dumps(arguments)))
    assert matches(checked_pattern(pattern), planned) is allowed


@confined
def test_the_pattern_that_a_question_offers_allows_the_call(tools: OwnTools):
    for name, arguments, pattern in (
        ("shell", {"command": "pytest -q"}, "shell:pytest *"),
        ("shell", {"command": "make; make"}, "shell:make; make"),
        ("shell", {"command": "ls"}, "shell:ls"),
        ("remove_file", {"path": "sub/b.py"}, "remove_file:sub/*"),
        ("remove_file", {"path": "a.txt"}, "remove_file:a.txt"),
        ("fetch", {"url": "https://example.org/a/b"}, "fetch:https://example.org/*"),
    ):
        planned = tools.plan(ToolCall("c", name, json.dumps(arguments)))
        assert offered_pattern(planned) == pattern and matches(pattern, planned)


def test_in_a_chat_a_write_is_asked_about_with_its_difference(tools: OwnTools, folder: Path, tmp_path: Path):
    runner = OwnRunner(tools, tmp_path / "home", "chat")
    call = ToolCall("c", "write_file", json.dumps({"path": "a.txt", "text": "new\n"}))
    desk = Desk("deny")
    result = asyncio.run(runner.use(call, desk))
    assert result.state == "denied" and (folder / "a.txt").read_text().startswith("one")
    assert "-one" in desk.asked[0].claims["description"] and desk.asked[0].tool == "write_file"
    desk = Desk("chat")
    assert asyncio.run(runner.use(call, desk)).state == "done"
    assert desk.states == ["running", "done"]
    again = ToolCall("c", "write_file", json.dumps({"path": "b.txt", "text": "x"}))
    assert asyncio.run(OwnRunner(tools, tmp_path / "home", "chat").use(again, desk)).state == "done"
    assert len(desk.asked) == 1
    other = Desk("deny")
    assert asyncio.run(OwnRunner(tools, tmp_path / "home", "another").use(again, other)).state == "denied"
    reading = ToolCall("c", "read_file", json.dumps({"path": "a.txt"}))
    assert asyncio.run(runner.use(reading, other)).content == "new\n" and len(other.asked) == 1


@confined
def test_in_a_chat_a_command_that_was_allowed_always_is_that_command(tools: OwnTools, tmp_path: Path):
    runner = OwnRunner(tools, tmp_path / "home", "chat")
    desk = Desk(ToolAnswer(verdict="always"), ToolAnswer(verdict="deny", word="not that"))
    first = ToolCall("c", "shell", json.dumps({"command": "echo 1"}))
    asyncio.run(runner.use(first, desk))
    asyncio.run(runner.use(first, desk))
    assert len(desk.asked) == 1
    denied = asyncio.run(runner.use(ToolCall("c", "shell", json.dumps({"command": "echo 2"})), desk))
    assert denied.content == "The user denied this call. not that"


def test_runners_are_joined_by_the_names_that_they_offer(tools: OwnTools, tmp_path: Path):
    joined = JoinedRunner([OwnRunner(tools, tmp_path / "home", "chat")])
    offered = asyncio.run(joined.offer())
    assert {tool.name for tool in offered} <= TOOLS.keys()
    assert joined.server_of("read_file") == "files" and joined.server_of("x") == ""
    result = asyncio.run(joined.use(ToolCall("c", "read_files", "{}"), Desk("deny")))
    assert result.state == "failed" and "Did you mean read_file?" in result.content
    twice = JoinedRunner([OwnRunner(tools, tmp_path, "a"), OwnRunner(tools, tmp_path, "b")])
    with pytest.raises(UsageError, match="two tools are called"):
        asyncio.run(twice.offer())


def test_a_chat_has_a_folder_whatever_its_name_is(tmp_path: Path):
    assert chat_folder(tmp_path, "my-chat") == tmp_path / "tools/chats/my-chat"
    for name in ("../x", "a/b", "", "ä" * 100):
        assert chat_folder(tmp_path, name).parent == tmp_path / "tools/chats"


@confined
def test_a_run_offers_them_and_removes_the_files_of_a_chat_that_is_not_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from freehold.cli.chat.tools import TerminalTools

    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    tools = TerminalTools(load_settings(), (), "", own=(f"files={folder}", "python"))
    tools.open()
    assert (tools.offered[0].name, tools.offered[-1].name) == ("list_files", "python")
    result = tools.use(ToolCall("c", "python", json.dumps({"code": "open('x', 'w').write('1')"})))
    assert result.content == "1"
    chats = tmp_path / "home/tools/chats"
    assert len(list(chats.rglob("x"))) == 1
    tools.close()
    assert not list(chats.iterdir())
