"""`freehold run` on a tiny random model: streams, exit codes, JSON, sessions."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from freehold.base.errors import UsageError
from freehold.base.serving import ModelInfo
from freehold.base.types import MAX_FORMAT_CHARS, Format, Message, SamplingParams, Usage
from freehold.cli import main
from freehold.cli.chat import answer as answers
from freehold.cli.chat import opened as opened_module
from freehold.cli.chat.answer import StreamedAnswer
from freehold.cli.chat.request import RunRequest
from freehold.cli.chat.sessions import ChatSession, Sessions
from freehold.serve.fake import FakeModel, Reply
from tests.vectors.files import write_gguf


class FakeLLM(FakeModel):
    """A scripted model with the few facts the command line asks an LLM for."""

    facts = ModelInfo(
        "", "Q4_K_M", 8192, 8192, 8192, 2, 0.5, 1000, 96, True, False, SamplingParams(temperature=0.7),
        context_note="as asked",
    )  # fmt: skip

    @property
    def info(self):
        return replace(self.facts, name=self.name)

    path = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FREEHOLD_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_gguf("llama", tmp_path_factory.mktemp("run") / "tiny.gguf", dtype="Q8_0"))


@pytest.fixture
def freehold(capsys, monkeypatch):
    """Run a command line; return (exit status, stdout, stderr)."""

    def call(*args: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = main.run(list(args))
        out = capsys.readouterr()
        return status, out.out, out.err

    return call


@pytest.fixture
def scripted(monkeypatch):
    """Make `run` answer from a script; return the model."""

    def script(*replies, **facts) -> FakeLLM:
        model = FakeLLM(replies)
        model.facts = replace(FakeLLM.facts, **facts)
        monkeypatch.setattr(opened_module, "open_llm", lambda store, name, request: model)
        return model

    return script


def test_stdout_is_the_answer_and_nothing_else(freehold, scripted):
    scripted("Hello **you**.")
    assert freehold("run", "smollm2:135m", "Hi") == (0, "Hello **you**.\n", "")


def test_stdin_is_context_before_the_prompt(freehold, scripted):
    model = scripted("ok")
    freehold("run", "smollm2:135m", "Finish", "this", stdin=b"def add(a, b):\n")
    assert model.calls[0].messages == (Message("user", "def add(a, b):\n\nFinish this"),)


def test_stdin_alone_is_the_prompt_of_the_default_model(freehold, scripted):
    model = scripted("ok")
    freehold("run", stdin=b"Why?\n")
    assert model.calls[0].messages == (Message("user", "Why?"),)


def test_options_may_follow_the_prompt(freehold, scripted):
    model = scripted("a b c")
    options = ["--temperature", "0.2", "--top-k", "5", "--typical", "0.9", "--max-tokens", "2", "--stop", "X"]
    options += ["--system", "be brief", "--seed", "3", "--logit-bias", "7=-2", "--logit-bias", "8=1.5"]
    freehold("run", "smollm2:135m", "Hi", *options)
    call = model.calls[0]
    assert call.messages[0] == Message("system", "be brief")
    assert (call.max_tokens, call.stop) == (2, ("X",))
    assert call.sampling == SamplingParams(
        temperature=0.2, top_k=5, typical_p=0.9, seed=3, logit_bias={7: -2.0, 8: 1.5}
    )


def test_model_s_own_sampling_holds_where_nothing_is_said(freehold, scripted):
    model = scripted("ok")
    freehold("run", "smollm2:135m", "Hi")
    assert model.calls[0].sampling.temperature == 0.7 and model.calls[0].sampling.seed is not None


def test_json_is_one_object_with_everything(freehold, scripted):
    scripted(Reply("42", thinking="hm", dropped_messages=2))
    status, out, err = freehold(
        "run", "smollm2:135m", "Hi", "--json", "--seed", "5", "--overflow", "drop-oldest"
    )
    got = json.loads(out)
    assert status == 0 and out.count("\n") == 1
    assert (got["text"], got["thinking"], got["seed"], got["model"]) == ("42", "hm", 5, "fake")
    assert got["finish_reason"] == "stop" and got["usage"]["completion_tokens"] == 2
    assert got["timings"]["load_s"] == 0.5 and got["context"]["dropped_messages"] == 2
    assert "2 oldest messages" in got["warnings"][0] and "2 oldest messages" in err


def test_note_on_the_model_is_said_once_and_is_in_the_json(freehold, scripted):
    scripted("ok", notes=("it is blind",))
    _, out, err = freehold("run", "smollm2:135m", "Hi", "--json", "--verbose")
    assert json.loads(out)["warnings"] == ["it is blind"] and err.count("it is blind") == 1


def test_thinking_stays_out_of_a_pipe(freehold, scripted):
    scripted(Reply("42", thinking="hm"))
    assert freehold("run", "smollm2:135m", "Hi")[1] == "42\n"


def test_cut_answer_is_said_on_stderr(freehold, scripted):
    scripted("a b c")
    assert "cut after --max-tokens 2" in freehold("run", "smollm2:135m", "Hi", "--max-tokens", "2")[2]


def test_continue_goes_on_with_the_latest_session(freehold, scripted, home):
    Sessions(home).save(
        ChatSession("old", "smollm2:135m", (Message("user", "one"), Message("assistant", "A")))
    )
    model = scripted("B")
    assert freehold("run", "and now two", "--continue")[0] == 0
    assert [m.content for m in model.calls[0].messages] == ["one", "A", "and now two"]
    assert [m.content for m in Sessions(home).load("old").messages] == ["one", "A", "and now two", "B"]


def test_named_session_is_started_and_continued(freehold, scripted, home):
    scripted("A", "B")
    freehold("run", "smollm2:135m", "one", "--session", "s1")
    scripted("B")
    freehold("run", "smollm2:135m", "two", "--session", "s1")
    assert [m.content for m in Sessions(home).load("s1").messages] == ["one", "A", "two", "B"]


def test_search_prints_where_it_was_said(freehold, home):
    Sessions(home).save(ChatSession("bread", "m", (Message("user", "How do I bake bread?"),)))
    assert freehold("run", "--search", "BAKE")[:2] == (0, "bread               user: How do I bake bread?\n")
    row = json.loads(freehold("run", "--search", "bake", "--json")[1])
    assert row["session"] == "bread"
    assert freehold("run", "--search", "nowhere")[0] == 1


@pytest.mark.parametrize(
    "args, part",
    [
        (["--image", "cat.png", "What is this?"], "cat.png cannot be read: No such file or directory"),
        (["a b", "--raw", "--image", __file__], "--image is for chats"),
        (["a b", "--logprobs", "2"], "--logprobs needs --json"),
        (["a b", "--raw", "--system", "x"], "--system is for chats"),
        (["a b", "--raw", "--think"], "--think is for chats"),
        (["a b", "--raw", "--overflow", "drop-oldest"], "--overflow is for chats"),
        (["a b", "--continue", "--session", "x"], "name two sessions"),
        (["a b", "--stop", ""], "--stop is empty"),
        (["a b", "--logit-bias", "seven"], "is not ID=B"),
        (["a b", "--temperature", "-1"], "temperature"),
        (["a b", "--temprature", "1"], "there is no option --temprature"),
        (["a b", "--overflow", "drop"], "overflow"),
        (["a b", "--session", "../x"], "is not a valid session name"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(freehold, args, part):
    status, out, err = freehold("run", *args)
    assert (status, out) == (2, "")
    assert part in err and err.count("error:") == 1 and "Traceback" not in err


@pytest.fixture
def without_gpt_oss(monkeypatch: pytest.MonkeyPatch):
    """A registry that lacks a family: every model of the catalogue that has a short name runs."""
    from freehold.run.models.binding import bind
    from freehold.run.models.families import naming

    monkeypatch.setattr(bind, "naming", lambda name: () if name == "gpt-oss" else naming(name))


@pytest.mark.parametrize("verb", [["run", "gpt-oss:20b", "Hi"], ["bench", "gpt-oss:20b"]])
def test_model_that_could_not_be_run_is_not_fetched(freehold, monkeypatch, verb, without_gpt_oss):
    monkeypatch.setattr("freehold.run.store.Store.pull", lambda *_: pytest.fail("fetched"))
    status, _, err = freehold(*verb)
    assert status == 1 and "does not support the architecture gpt-oss" in err


def test_pull_refuses_beforehand_what_cannot_be_run(freehold, without_gpt_oss):
    status, _, err = freehold("pull", "gpt-oss:20b", "--offline")
    assert status == 1 and "does not support the architecture gpt-oss" in err


def test_nothing_to_continue_is_said(freehold):
    assert "no session to continue" in freehold("run", "a b", "--continue")[2]


# A tiny model, loaded for real.


def test_tiny_model_answers_and_verbose_tells_speeds(freehold, tiny):
    status, _, err = freehold(
        "run", tiny, "Hi", "--max-tokens", "5", "--verbose", "--context", "128", "--seed", "1"
    )
    assert status == 0
    assert "context 128 tokens (as asked)" in err
    assert re.search(r"loaded in [\d.]+ s", err) and re.search(r"prefill .* tok/s; decode .* tok/s", err)


def test_a_prompt_from_stdin_is_counted_as_it_is_read(freehold, tiny, monkeypatch):
    counts: list[tuple[int, int]] = []
    monkeypatch.setattr(answers.Waiting, "__call__", lambda self, done, total: counts.append((done, total)))
    status, _, _ = freehold("run", tiny, "Sum up.", "--max-tokens", "2", stdin=b"a word " * 20)
    assert status == 0 and counts == sorted(counts)
    assert counts[0][0] < counts[-1][0] <= counts[-1][1] and counts[-1][1] > 40


def test_no_pack_keeps_no_packed_copy(freehold, tiny, home, monkeypatch):
    monkeypatch.setattr("freehold.run.formats.filemap.RACY_S", -1e9)  # the file is as old as this test
    ask = ("run", tiny, "Hi", "--max-tokens", "2", "--context", "128", "--seed", "1")
    one = freehold(*ask, "--no-pack")
    assert not list((home / "packs").glob("*.pack"))
    assert freehold(*ask) == one
    assert len(list((home / "packs").glob("*.pack"))) == 1


def test_verbose_tells_how_many_guesses_held():
    answer = StreamedAnswer(
        usage=Usage(10, 31, prefill_s=1.0, decode_s=1.0, drafted_tokens=30, accepted_tokens=20)
    )
    assert answers.speeds(answer).endswith("; 20 of 30 drafted tokens accepted, 3.00 tokens per step")


def test_draft_without_speculation_is_refused(freehold, tiny):
    status, _, err = freehold("run", tiny, "Hi", "--draft", tiny, "--no-speculation")
    assert status == 2 and "--draft needs speculation" in err


def test_model_may_draft_for_itself(freehold, tiny):
    asked = ("run", tiny, "Hi", "--max-tokens", "30", "--context", "128", "--seed", "1", "--raw")
    assert freehold(*asked, "--draft", tiny)[:2] == freehold(*asked, "--no-speculation")[:2]


def test_context_that_memory_cuts_is_said_without_verbose(freehold, tiny, monkeypatch):
    monkeypatch.setattr("freehold.run.engine.cache.capacity.available_bytes", lambda: 400_000)
    status, _, err = freehold("run", tiny, "Hi", "--max-tokens", "2")
    assert status == 0 and "cut from the model's" in err


def test_f32_cache_takes_twice_the_memory(freehold, tiny, monkeypatch):
    monkeypatch.setattr("freehold.run.engine.cache.capacity.available_bytes", lambda: 600_000)
    sizes = {}
    for kind in ("f16", "f32"):
        out = freehold("run", tiny, "Hi", "--max-tokens", "2", "--json", "--kv-type", kind)[1]
        sizes[kind] = json.loads(out)["context"]["limit"]
    assert sizes == {"f16": 512, "f32": 288}


def test_seed_in_json_gives_the_same_answer_again(freehold, tiny):
    first = json.loads(freehold("run", tiny, "Hi", "--max-tokens", "8", "--context", "128", "--json")[1])
    again = freehold(
        "run", tiny, "Hi", "--max-tokens", "8", "--context", "128", "--json", "--seed", str(first["seed"])
    )
    assert json.loads(again[1])["text"] == first["text"]


def test_raw_completes_without_a_template(freehold, tiny):
    args = ["run", tiny, "abc", "--raw", "--max-tokens", "4", "--json", "--logprobs", "1", "--context", "128"]
    got = json.loads(freehold(*args)[1])
    assert got["usage"]["prompt_tokens"] == 3
    assert len(got["logprobs"]) == got["usage"]["completion_tokens"]
    assert {"token_id", "logprob", "top", "text"} <= got["logprobs"][0].keys()


def test_think_is_refused_where_the_model_has_no_switch(freehold, tiny):
    status, _, err = freehold("run", tiny, "Hi", "--no-think", "--context", "128", "--think")
    assert status == 2 and "thinking" in err


# Whole processes: signals and terminals.

# --- a format ------------------------------------------------------------------------------------------


def test_format_is_json_a_schema_in_a_file_or_a_grammar(freehold, scripted, tmp_path: Path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "short.lark").write_text('start: "a"')
    for given, format in (
        ("json", Format("json")),
        (str(tmp_path / "schema.json"), Format("json_schema", '{"type": "object"}')),
        (str(tmp_path / "short.lark"), Format("lark", 'start: "a"')),
    ):
        model = scripted("{}")
        status, _, err = freehold("run", "two words", "--format", given)
        assert status == 0, err
        assert model.calls[0].format == format


def test_format_that_is_no_file_is_refused_before_a_model_is_loaded(freehold, scripted, tmp_path: Path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_text("a" * (MAX_FORMAT_CHARS + 1))
    model = scripted("{}")
    for name, words in (
        ("none", "No such file"),
        ("binary", "it is not UTF-8 text"),
        ("long", "more than 262,144"),
    ):
        status, _, err = freehold("run", "two words", "--format", str(tmp_path / name))
        assert status == 2 and words in err
    assert model.calls == []


CHAT = """
import sys
sys.path.insert(0, {tests!r})
from freehold.cli import main
from freehold.cli.chat import opened
from tests.cli.test_run import FakeLLM
model = FakeLLM({replies!r}, name="fake", delay={delay})
opened.open_llm = lambda store, name, request: model
sys.exit(main.run({args!r}))
"""


def script(args: list[str], replies: list[str], delay: float = 0.0) -> list[str]:
    root = str(Path(__file__).parents[2])
    return [sys.executable, "-c", CHAT.format(tests=root, replies=replies, delay=delay, args=args)]


@pytest.mark.heavy
def test_ctrl_c_prints_what_was_there_and_exits_130():
    words = " ".join(f"word{i}" for i in range(200))
    command = script(["run", "smollm2:135m", "Hi"], [words], delay=0.05)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as p:
        assert p.stdout is not None and p.stderr is not None
        first = os.read(p.stdout.fileno(), 100)
        p.send_signal(signal.SIGINT)
        rest, err = p.stdout.read(), p.stderr.read()
        assert p.wait(60) == 130
    assert first.startswith(b"word0") and rest.endswith(b"\n") and b"Traceback" not in err


class Terminal:
    """A child process on a pseudo-terminal."""

    def __init__(self, command: list[str], **env: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(env)
            os.execv(command[0], command)
        self.seen = ""

    def expect(self, text: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        start = len(self.seen)
        while text not in self.seen[start:]:
            ready, _, _ = select.select([self.fd], [], [], max(end - time.monotonic(), 0))
            assert ready, f"no {text!r} in {self.seen[start:]!r}"
            try:
                piece = os.read(self.fd, 65536).decode("utf-8", "replace")
            except OSError:
                piece = ""
            assert piece, f"ended without {text!r}: {self.seen[start:]!r}"
            self.seen += piece
            if "\x1b[6n" in piece:  # prompt-toolkit asks where the cursor is
                self.send("\x1b[1;1R")

    def send(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait(self, seconds: float = 60.0) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode("utf-8", "replace")
                except OSError:
                    continue
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"still running: {self.seen[-300:]!r}")


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_chat_on_a_terminal_from_greeting_to_ctrl_d(home):
    terminal = Terminal(script(["run", "smollm2:135m"], ["Hello **you**.", "Fine."]), TERM="xterm")
    terminal.expect("/help lists the commands")
    terminal.expect(">>>")
    terminal.send("Hi\r")
    terminal.expect("you")
    terminal.expect("tok/s")
    terminal.send("/undo\r")
    terminal.expect("removed")
    terminal.expect(">>>")
    terminal.send("\x04")
    assert terminal.wait() == 0
    assert "\x1b[1myou\x1b[0m" in terminal.seen and "**" not in terminal.seen


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_chat_works_in_a_dumb_terminal(home):
    terminal = Terminal(script(["run", "smollm2:135m"], ["Hello **you**."]), TERM="dumb")
    terminal.expect(">>>")
    terminal.send("Hi\r")
    terminal.expect("Hello **you**.")
    terminal.send("/bye\r")
    assert terminal.wait() == 0


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ctrl_c_stops_an_answer_in_a_terminal_and_keeps_the_chat(home):
    replies = [" ".join(f"word{i}" for i in range(400)), "Second."]
    terminal = Terminal(script(["run", "smollm2:135m"], replies, delay=0.03), TERM="xterm")
    terminal.expect(">>>")
    terminal.send("Hi\r")
    terminal.expect("word3")
    terminal.send("\x03")
    terminal.expect("(stopped)")
    terminal.expect(">>>")
    terminal.send("again\r")
    terminal.expect("Second.")
    terminal.expect(">>>")
    terminal.send("\x04")
    assert terminal.wait() == 0


def test_model_that_cannot_be_opened_leaves_the_chats_own_open(monkeypatch):
    first, second = FakeModel([]), FakeModel([])
    answers = iter([first, UsageError("no room"), second])

    def opened(*_: object) -> FakeModel:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(opened_module.Opened, "_open", opened)
    monkeypatch.setattr(opened_module.Opened, "facts", None)
    request = RunRequest(**dict.fromkeys(RunRequest.__dataclass_fields__))
    with opened_module.Opened(None, None, request, "a") as held:
        with pytest.raises(UsageError):
            held.switch("b")
        assert held.model is first and not first.closed
        assert held.switch("c")[0] is second and first.closed
    assert second.closed


def test_a_model_saved_in_a_chat_has_its_system_prompt_and_changed_settings(freehold, tiny, home):
    from freehold.base.config import load_settings
    from freehold.cli.chat.answer import AnswerSettings
    from freehold.cli.run import _kept
    from freehold.run.store import Store

    assert freehold("pull", tiny)[0] == 0
    settings = load_settings()
    llm = FakeLLM([], name="tiny")
    answers = AnswerSettings(sampling=SamplingParams(temperature=0.1), max_tokens=50, stop=("END",))
    assert _kept(SimpleNamespace(model=llm), settings, answers, "brief", "Be brief.") == "brief"  # type: ignore[arg-type]
    made = Store(settings).resolve("brief").overlay
    assert made is not None and made.system == "Be brief."
    assert (made.read.sampling, made.read.max_tokens, made.read.stop) == ({"temperature": 0.1}, 50, ("END",))
