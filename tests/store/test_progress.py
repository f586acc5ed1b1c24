"""Where a pull from Python is shown: a terminal, a notebook, a function, or nowhere."""

from __future__ import annotations

import io
import sys

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from freehold.run.store import progress
from freehold.run.store.contract import Finished, Planned, Progress
from freehold.run.store.progress import watching

EVENTS = (
    Planned("m", "a source", "", 1, 2_000_000, 0),
    Progress("m", "m.gguf", 1_000_000, 2_000_000),
    Finished("m", "m.gguf", 2_000_000, 2_000_000, 1.0),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch):
    """A real IPython shell that says it belongs to a kernel; yields what it was asked to display."""
    shell = InteractiveShell.instance()
    monkeypatch.setattr(shell, "kernel", object(), raising=False)
    published = CapturingDisplayPublisher()
    monkeypatch.setattr(shell, "display_pub", published)
    monkeypatch.setattr(progress.NotebookLine, "EVERY_S", 0.0)
    yield published
    InteractiveShell.clear_instance()


def show(given: progress.ProgressLike = None) -> None:
    with watching(given) as on_event:
        for event in EVENTS:
            on_event(event)


def test_nothing_is_written_where_nobody_looks(capsys: pytest.CaptureFixture[str]):
    show()
    assert capsys.readouterr() == ("", "")


def test_lines_are_written_on_demand(capsys: pytest.CaptureFixture[str]):
    show(True)
    out, err = capsys.readouterr()
    assert out == "" and "m: 2.0 MB" in err and "2.0 MB in 1.0 s" in err


def test_terminal_gets_a_bar_and_false_silences_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show(False)
    assert terminal.getvalue() == ""
    show()
    assert "m: 2.0 MB" in terminal.getvalue()
    assert "[##########..........] 1.0 MB of 2.0 MB (50 %)" in terminal.getvalue()


def test_notebook_gets_one_output_that_is_replaced(notebook: CapturingDisplayPublisher):
    show()
    assert len({out["transient"]["display_id"] for out in notebook.outputs}) == 1
    assert [out["update"] for out in notebook.outputs] == [False, True, True]
    texts = [out["data"]["text/plain"] for out in notebook.outputs]
    assert "1.0 MB of 2.0 MB (50 %)" in texts[1] and "2.0 MB in 1.0 s" in texts[2]


def test_notebook_shows_nothing_for_a_model_that_is_here(notebook: CapturingDisplayPublisher):
    with watching() as on_event:
        on_event(Finished("m", "m.gguf", 2_000_000, 0, 0.0))
    assert notebook.outputs == []


def test_function_gets_the_events():
    got: list[object] = []
    show(got.append)
    assert tuple(got) == EVENTS
