"""Help in groups, an example for each verb, and what Tab offers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from freehold.cli import main as cli_main
from freehold.cli.verbs import GROUPS, VERBS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.toml").write_text("adopt = false\noffline = true\n")
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    return tmp_path


def offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What bash is offered for the last word."""
    monkeypatch.setenv("_FREEHOLD_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["freehold", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit):
        cli_main.run([])
    return [line.split(",", 1)[1] for line in capsys.readouterr().out.splitlines() if line]


def test_help_lists_each_group_with_its_verbs(capsys):
    assert cli_main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"{title}:") for title in GROUPS]
    assert places == sorted(places)
    assert all(f"\n  {name} " in shown for name in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_shows_its_example(verb: str, capsys):
    assert cli_main.run(["help", verb]) == 0
    shown = capsys.readouterr().out
    assert f"Example: {VERBS[verb].example}" in " ".join(shown.split())
    assert cli_main.run([verb, "--help"]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    "words",
    [
        "gateway check", "gateway convert", "route explain", "route admit", "ledger show", "bar run", "bar list",
        "doctor providers",
    ],
)  # fmt: skip
def test_each_verb_of_the_gateway_fits_a_screen_and_has_an_example(words: str, capsys):
    assert cli_main.run([*words.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: freehold {words} " in " ".join(shown.split()) and len(shown.splitlines()) <= 25


def test_help_of_a_verb_within_a_verb_and_of_none(capsys):
    assert cli_main.run(["help", "keys", "add"]) == 0
    assert "Usage: freehold keys add" in capsys.readouterr().out
    assert cli_main.run(["help", "keys", "add", "x"]) == 2
    assert cli_main.run(["help", "nope"]) == 2


def test_help_is_styled_in_a_terminal_alone(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1m" in cli_main.styled("x", bold=True)
    cli_main.run(["--help"])
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli_main.styled("x", bold=True) == "x"


@pytest.mark.parametrize(
    "words, name",
    [
        (["fi"], "fit"),
        (["run", "smollm2:13"], "smollm2:135m"),
        (["fit", "qwen3:8b", "--on", "rtx-409"], "rtx-4090"),
        (["why", "qwen/qwen3-8"], "Qwen/Qwen3-8B"),
        (["help", "doc"], "doctor"),
        (["launch", "open"], "open-webui"),
        (["run", "--kv-type", "q"], "q8"),
        (["fit", "--cont"], "--context"),
    ],
)
def test_tab_offers(words: list[str], name: str, monkeypatch, capsys):
    assert name in offered(monkeypatch, capsys, *words)


def test_tab_offers_nothing_where_the_home_cannot_be_read(home, monkeypatch, capsys):
    (home / "config.toml").write_text("adopt = 7\n")
    assert offered(monkeypatch, capsys, "rm", "x") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_printed_for_each_shell(shell: str, capsys):
    assert cli_main.run(["completion", shell]) == 0
    assert "_FREEHOLD_COMPLETE" in capsys.readouterr().out


def test_bash_accepts_its_script_and_keeps_colons_in_words(capsys):
    cli_main.run(["completion", "bash"])
    script = capsys.readouterr().out + '\necho "breaks: $COMP_WORDBREAKS"\n'
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ":}" in script


def options() -> set[tuple[str, str]]:
    """Every option of every verb, as (verb, option)."""

    def of(ctx: click.Context, command: click.Command, path: str) -> Iterator[tuple[str, str]]:
        for param in command.params:
            yield from ((path, name) for name in param.opts if isinstance(param, click.Option))
        for name in command.list_commands(ctx) if isinstance(command, click.Group) else ():
            if found := command.get_command(ctx, name):
                yield from of(click.Context(found, ctx), found, f"{path} {name}".strip())

    return set(of(click.Context(cli_main.cli), cli_main.cli, ""))


def test_one_thing_has_one_spelling():
    """Quantisation is --quant, a purpose --for, an answer's length --max-tokens, a training's --max-length."""
    spelled = options()
    for verb, name in spelled:
        assert name not in ("--max-answer", "--answer", "--output", "--type", "--quantize", "--purpose"), verb
    assert {verb for verb, name in spelled if name == "--licence"} == {"models list"}  # an id, not a purpose
    assert {verb for verb, name in spelled if name == "--max-length"} == {"finetune", "align", "distil"}
    assert {verb for verb, name in spelled if name == "--quant"} >= {
        "pull",
        "fit",
        "quantize",
        "deploy",
        "cost",
    }
