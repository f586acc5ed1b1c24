"""Help in groups, an example for each verb, and what Tab offers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import freehold
from freehold.adapt.evals.divergence import UNTIL
from freehold.adapt.settings import QuantizeSettings
from freehold.base.errors import UsageError
from freehold.base.options import check
from freehold.cli import main as cli_main
from freehold.cli.helping import REST, Context, sections_of, styled
from freehold.cli.verbs import GROUPS, VERBS
from freehold.outgrow.options import DeployOptions


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
    assert shown.startswith(f"Example: {VERBS[verb].example}\n\nUsage: ")
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
    assert "\x1b[1m" in styled("x", bold=True)
    cli_main.run(["--help"])
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("x", bold=True) == "x"


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


def verbs(ctx: click.Context | None = None) -> Iterator[click.Context]:
    """Every verb, those within verbs too."""
    ctx = ctx or Context(cli_main.cli, info_name="freehold", **cli_main.cli.context_settings)
    yield ctx
    for name in ctx.command.list_commands(ctx) if isinstance(ctx.command, click.Group) else ():
        if found := ctx.command.get_command(ctx, name):
            yield from verbs(Context(found, ctx, info_name=name))


def options() -> set[tuple[str, str]]:
    """Every option of every verb, as (verb, option)."""
    return {
        (ctx.command_path.removeprefix("freehold "), name)
        for ctx in verbs()
        for param in ctx.command.params
        if isinstance(param, click.Option)
        for name in param.opts
    }


def test_each_verb_begins_with_an_example_and_gives_ranges_in_words():
    for ctx in verbs():
        shown = ctx.get_help()
        assert shown.startswith(("Example: ", "Start with: freehold ")), ctx.command_path
        assert not re.search(r"FLOAT|INTEGER|<=?x|x>=?|%Y|92233720", shown), ctx.command_path


@pytest.mark.parametrize("verb", ["run", "serve", "deploy", "advise", "cost"])
def test_options_of_a_long_verb_are_in_sections(verb: str):
    ctx = next(each for each in verbs() if each.info_name == verb)
    found = sections_of(ctx)
    assert len(found) >= 5 and REST not in found
    assert all(len(options) <= 18 for options in found.values())
    assert next(reversed(found.values()))[-1][0] == "-h, --help"


@pytest.mark.parametrize(
    "words, says",
    [
        (["run", "--temperature", "200", "x"], "200.0 is outside the range: 0 to 100"),
        (["run", "--seed", "-1", "x"], "-1 is outside the range: 0 or more"),
        (["run", "--top-p", "0", "x"], "0.0 is outside the range: above 0, at most 1"),
    ],
)
def test_a_number_outside_its_range_is_refused_in_words(words: list[str], says: str, capsys):
    assert cli_main.run(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, asked",
    [
        (["deploy", "m", "--replicas", "2000"], lambda: freehold.plan_deployment("m", replicas=2000)),
        (["deploy", "m", "--nodes", "65"], lambda: freehold.plan_deployment("m", on="h100", nodes=65)),
        (["quantize", "m", "-o", "out", "--tokens", "9"], lambda: QuantizeSettings(tokens=9)),
        (["quantize", "m", "-o", "out", "--bits", "5"], lambda: QuantizeSettings(bits=5)),
        (["advise", "code", "--users", "0"], lambda: freehold.advise("code", users=0)),
        (["cost", "m", "--users", "5000"], lambda: freehold.cost("m", users=5000)),
    ],
)
def test_python_refuses_what_the_command_line_refuses_in_the_same_words(words, asked, capsys):
    assert cli_main.run(words) == 2
    with pytest.raises(UsageError) as refused:
        asked()
    assert refused.value.message.partition(": ")[2] in capsys.readouterr().err


def test_a_choice_left_to_the_plan_may_be_outside_its_range():
    check(DeployOptions("m"))
    assert QuantizeSettings().bits == 0 and QuantizeSettings().until == UNTIL


def test_one_thing_has_one_spelling():
    """Quantisation is --quant, a purpose --for, an answer's length --max-tokens, a training's --max-length."""
    spelled = options()
    for verb, name in spelled:
        assert name not in ("--max-answer", "--answer", "--output", "--type", "--quantize", "--purpose"), verb
    assert {verb for verb, name in spelled if name == "--licence"} == {"models list"}  # an id, not a purpose
    assert {verb for verb, name in spelled if name == "--max-length"} == {
        "finetune",
        "align",
        "distil",
        "graduate",
    }
    assert {verb for verb, name in spelled if name == "--quant"} >= {
        "pull",
        "fit",
        "quantize",
        "deploy",
        "cost",
    }
