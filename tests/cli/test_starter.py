"""The model of a command that names none: asked once in a terminal, chosen elsewhere, remembered."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import click
import pytest

from freehold.base import catalog
from freehold.base.config import Settings, load_settings
from freehold.choose import choosing
from freehold.choose.advisor.advice import Download, Starter
from freehold.choose.advisor.interval import Interval
from freehold.cli import main
from freehold.cli.chat import starter
from freehold.cli.chat.starter import default_model


def made(name: str, source: str = "package index") -> Starter:
    speed = Interval.within(20.0, 1.2)
    return Starter(name, catalog.model(name), Download(500_000_000, source), 10**9, speed, 20.0)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Starter]:
    """Return the starters of this machine, for a test to fill; the list is asked for once a call."""
    known: list[Starter] = []
    monkeypatch.setattr(choosing, "starters", lambda settings: tuple(known))
    return known


def test_without_a_terminal_the_first_starter_is_taken_and_kept(found, tmp_path: Path, capsys):
    found += [made("qwen2.5-coder:1.5b"), made("smollm2:135m")]
    (tmp_path / "config.toml").write_text('# mine\noffline = false\n\n[company]\npurpose = "research"\n')
    assert default_model(Settings(home=tmp_path)) == "qwen2.5-coder:1.5b"
    said = capsys.readouterr().err
    assert "500.0 MB download, 1.0 GB on disk; about 20 tokens per second" in said
    text = (tmp_path / "config.toml").read_text()
    assert tomllib.loads(text)["default_model"] == "qwen2.5-coder:1.5b" and "# mine" in text
    kept = load_settings({"FREEHOLD_HOME": str(tmp_path)})
    found.clear()  # it is not looked for again
    assert default_model(kept) == "qwen2.5-coder:1.5b"


def test_a_terminal_is_asked_once_and_shows_three(found, tmp_path: Path, monkeypatch):
    found += [made("qwen2.5-coder:1.5b"), made("qwen2.5-coder:0.5b", "here"), made("smollm2:135m")]
    shown = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal("2\n"))
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr(click, "prompt", lambda text, default, **_: 2)
    assert starter.first_model(Settings(home=tmp_path)) == "qwen2.5-coder:0.5b"
    said = shown.getvalue()
    assert "Three models that run well on this machine:" in said and "already downloaded" in said
    assert "Alibaba (Qwen): code and chat, 29 languages, Apache-2.0" in said
    assert tomllib.loads((tmp_path / "config.toml").read_text()) == {"default_model": "qwen2.5-coder:0.5b"}


def test_without_any_starter_nothing_is_kept(found, tmp_path: Path):
    assert default_model(Settings(home=tmp_path)) == catalog.default_model().name
    assert not (tmp_path / "config.toml").exists()


def test_freehold_alone_chats_in_a_terminal(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []
    monkeypatch.setattr(main.cli, "main", lambda args, **_: seen.append(args))
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", Terminal())
    main.run([])
    monkeypatch.setattr("sys.stdout", io.StringIO())
    main.run([])
    assert seen == [["run"], []]
