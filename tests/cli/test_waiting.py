"""The line shown while no text comes: tokens read and the seconds left; taken away by text."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.base.terminal import Ticking
from freehold.base.types import Chunk, Usage
from freehold.cli import main as cli_main
from freehold.cli import ps
from freehold.cli.chat import answer as module
from freehold.cli.chat.answer import Waiting
from freehold.cli.chat.opened import tell
from freehold.cli.progress import StatusLine


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_line_tells_tokens_read_and_seconds_left(clock):
    shown = Waiting(clock=clock)
    clock.now = 3.0
    assert shown.line() == "waiting for the model, 3.0 s"
    shown(0, 4600)
    assert shown.line() == "reading the prompt: 0 of 4,600 tokens, 3.0 s"
    clock.now = 6.0
    shown(1200, 4600)  # 400 tokens a second
    assert shown.line() == "reading the prompt: 1,200 of 4,600 tokens, 8 s left"


def test_cached_tokens_are_not_counted_as_speed(clock):
    shown = Waiting(clock=clock)
    shown(4000, 4600)
    clock.now = 2.0
    shown(4200, 4600)
    assert shown.line() == "reading the prompt: 4,200 of 4,600 tokens, 4 s left"


def test_the_result_of_a_tool_is_a_prompt_of_its_own(clock):
    shown = Waiting(clock=clock)
    shown(0, 100)
    shown.chunk(Chunk("text", token_ids=(1,)))
    clock.now = 10.0
    shown(100, 300)
    clock.now = 11.0
    shown(200, 300)
    assert shown.line() == "reading the prompt: 200 of 300 tokens, 1 s left"


def test_tokens_of_which_nothing_is_shown_are_counted(clock):
    shown = Waiting(clock=clock)
    shown(0, 100)
    shown.chunk(Chunk(token_ids=(1, 2, 3)))  # a tool call's
    clock.now = 2.0
    assert shown.line() == "answering: 3 tokens, 2.0 s"
    silent = Waiting(silent=True, clock=clock)  # --json
    silent.chunk(Chunk("text", token_ids=(1,)))
    assert silent.line() == "answering: 1 tokens, 0.0 s"


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_not_silent_and_the_line_goes_before_the_text(monkeypatch: pytest.MonkeyPatch):
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "FIRST_S", 0.0)
    monkeypatch.setattr(module, "EVERY_S", 0.001)
    with Waiting() as shown:
        shown(10, 20)
        while "reading the prompt: 10 of 20 tokens" not in err.getvalue():
            time.sleep(0.001)
        shown.chunk(Chunk("text", token_ids=(1,)))
        assert err.getvalue().endswith("\r\x1b[K")
        before = err.getvalue()
        shown.chunk(Chunk(usage=Usage(20, 1), finish_reason="stop"))
    assert err.getvalue() == before


def test_without_a_terminal_nothing_is_shown(capsys):
    with Waiting() as shown:
        shown(10, 20)
        shown.chunk(Chunk("text"))
    assert capsys.readouterr().err == ""


def test_work_that_reports_nothing_shows_its_seconds(monkeypatch: pytest.MonkeyPatch):
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Ticking, "EVERY_S", 0.001)
    with Ticking("loading m") as ticking:
        while "loading m (" not in err.getvalue():
            time.sleep(0.001)
        ticking.show("preparing the weights: 12%")
        while "preparing the weights: 12% (" not in err.getvalue():
            time.sleep(0.001)
    assert err.getvalue().endswith("\r\x1b[K")


def test_a_long_verbs_line_moves_while_its_work_says_nothing(monkeypatch: pytest.MonkeyPatch):
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Ticking, "EVERY_S", 0.001)
    with StatusLine("nothing") as line:
        line.show("step 1 of 2")
        drawn = err.getvalue().count("step 1 of 2")
        wait_for(lambda: err.getvalue().count("step 1 of 2") > drawn + 2)
        line.note("the licence")
        assert "\r\x1b[Knote: the licence\n" in err.getvalue()
        drawn = err.getvalue().count("step 1 of 2")
        wait_for(lambda: err.getvalue().count("step 1 of 2") > drawn)
        line.blank()
        assert err.getvalue().endswith("\r\x1b[K")


def test_one_line_moves_at_a_time_the_innermost(monkeypatch: pytest.MonkeyPatch):
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with Ticking("outer") as outer:
        outer.draw()
        with Ticking("inner") as inner:
            before = err.getvalue()
            outer.draw()
            assert err.getvalue() == before
            inner.draw()
        outer.draw()
    shown = err.getvalue()
    assert shown.index("outer (") < shown.index("inner (") < shown.rindex("outer (")


def test_a_message_takes_the_moving_line_away_first(monkeypatch: pytest.MonkeyPatch):
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with Ticking("loading m") as line:
        line.draw()
        tell("note: m is small")
        assert err.getvalue().endswith("\r\x1b[Knote: m is small\n")


def test_a_line_is_cut_to_the_terminal_and_keeps_its_seconds(monkeypatch: pytest.MonkeyPatch):
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with Ticking("x" * 200) as line:
        line.draw()
    shown = err.getvalue().split("\x1b[K")[1].rstrip("\r")
    assert len(shown) == 79 and shown.startswith("xxx") and shown.endswith(" s)")


class Reached(Exception):
    """Ends a verb where its line would begin to move."""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["advise", "chat"], "ranking models: this machine is measured once"),
        (["fit", "qwen3:8b"], "predicting qwen3:8b: this machine is measured once"),
        (["why", "smollm2:135m"], "collecting what is known about smollm2:135m"),
        (["pull", "smollm2:135m"], "looking up smollm2:135m"),
        (["run", "smollm2:135m", "Hi"], "loading smollm2:135m"),
        (["launch", "aider"], "looking for models that run well on this machine"),
        (["finetune", "m", "--data", __file__, "-o", "out"], "starting torch"),
        (["align", "m", "--pairs", __file__, "-o", "out"], "starting torch"),
        (["hardware", "qwen3:8b", "--users", "2"], "comparing hardware for qwen3:8b"),
        (["cost", "qwen3:8b", "--on", "l4", "--against", "gpt-5-mini"], "comparing prices"),
        (["models", "refresh"], "asking the hub"),
        (["serve"], "starting the server"),
        (["stop"], "the server ends"),
    ],
)
def test_a_silent_wait_of_a_verb_has_its_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], line: str
):
    def begin(shown: Ticking) -> None:
        if shown.text == line:
            raise Reached

    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(ps, "_ask", lambda *_, **__: None)
    monkeypatch.setattr(Ticking, "start", begin)
    with pytest.raises(Reached):
        cli_main.run(words)
