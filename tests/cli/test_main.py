"""The command line itself: dispatch, refusals, exit statuses, start-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from freehold.base.errors import CapacityExceeded, UsageError
from freehold.cli import main as cli_main
from freehold.cli.progress import StatusLine
from freehold.cli.shared import Amount
from freehold.cli.verbs import ALIASES, MEANT, VERBS
from freehold.run.local.opening import QUEUED

SOURCES = str(Path(__file__).parents[2] / "src")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and no other program's models."""
    (tmp_path / "config.toml").write_text("adopt = false\noffline = true\n")
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    monkeypatch.delenv("FREEHOLD_DEBUG", raising=False)
    return tmp_path


@pytest.mark.parametrize("verb", ["pull", "list", "show", "rm"])
def test_every_verb_of_the_store_has_a_command_and_help(verb: str, capsys):
    command = cli_main.command_of(verb)
    assert isinstance(command, click.Command)
    assert cli_main.run([verb, "--help"]) == 0
    assert "Usage: freehold" in capsys.readouterr().out


def test_help_of_serve_names_the_queues_own_limit(capsys):
    assert cli_main.run(["serve", "--help"]) == 0
    assert f"(429). Default: {QUEUED}." in " ".join(capsys.readouterr().out.split())


def test_help_lists_every_verb_without_importing_one():
    code = "import sys; from freehold.cli.main import run; run(['--help']); "
    code += "print([m for m in sys.modules if m.startswith('freehold.cli.')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": SOURCES}
    )
    assert all(verb in done.stdout for verb in cli_main.VERBS)
    assert "['freehold.cli.helping', 'freehold.cli.verbs', 'freehold.cli.main']" in done.stdout


def test_help_of_serve_imports_no_web_framework():
    code = "import sys; from freehold.cli import main; main.run(['serve', '--help']); "
    code += "print([m for m in sys.modules if m.partition('.')[0] in ('starlette', 'uvicorn', 'msgspec')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": SOURCES}
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["pul"], "there is no verb 'pul'", "did you mean freehold pull?"),
        (["xyzzy"], "there is no verb 'xyzzy'", "freehold --help lists the verbs"),
        (["list", "--jsno"], "there is no option --jsno", "did you mean --json?"),
        (["pull"], "missing argument 'MODEL'", "freehold pull --help shows how"),
    ],
)
def test_wrong_usage_exits_2_with_the_nearest_name(args: list[str], message: str, hint: str, capsys):
    assert cli_main.run(args) == 2
    assert capsys.readouterr().err == f"error: {message}\nhint: {hint}\n"


def test_no_verb_shows_the_help_and_complains_of_nothing(capsys):
    assert cli_main.run([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("Start with: freehold") and "error:" not in err


def test_a_named_failure_is_two_lines_and_exit_1(capsys):
    assert cli_main.run(["show", "smolm2:135m"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["error: the catalogue has no model 'smolm2:135m'", err.splitlines()[1]]
    assert err.splitlines()[1].startswith("hint: did you mean smollm2:135m")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FREEHOLD_DEBUG", "1")
    with pytest.raises(UsageError):
        cli_main.run(["pul"])


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (CapacityExceeded("full"), 1),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "/x"), 1),
    ],
)
def test_every_failure_has_its_exit_status(failure: BaseException, status: int, monkeypatch, capsys):
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(cli_main.cli, "main", fail)
    assert cli_main.run([]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_failure(tmp_path: Path):
    program = tmp_path / "endless.py"
    program.write_text(
        "import click, sys\nfrom freehold.cli import main\n"
        "@main.cli.command('endless')\ndef endless():\n    while True:\n        click.echo('y' * 1000)\n"
        "main.VERBS['endless'] = ''\nmain.LazyGroup.get_command = lambda *_: endless\nsys.exit(main.run(['endless']))\n"
    )
    command = f"set -o pipefail; {sys.executable} {program} | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={"PYTHONPATH": SOURCES}, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "y", "")


def test_a_wrong_config_is_one_line(home: Path, capsys):
    (home / "config.toml").write_text("ofline = true")
    assert cli_main.run(["list"]) == 2
    assert "unknown key 'ofline'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8192", 8192),
        ("32k", 32_000),
        ("1.5 bn", 1.5e9),
        ("20 million", 20e6),
        ("$3M", 3e6),
        ("250_000", 250_000),
        ("1,000", 1000),
        ("2T", 2e12),
    ],
)
def test_amounts_are_read_as_people_write_them(text: str, number: float):
    assert Amount().convert(text, None, None) == number
    whole = Amount(whole=True).convert(text, None, None)
    assert whole == number and isinstance(whole, int)


@pytest.mark.parametrize("text", ["", "many", "k", "-5", "1e3", "3 apples", "9" * 400])
def test_what_is_no_amount_is_refused_with_an_example(text: str):
    with pytest.raises(
        click.BadParameter, match=f"'{text}' is not a valid number; write 8192, 32k, 20M or 1.5bn"
    ):
        Amount(whole=True).convert(text, None, None)


def test_names_out_of_files_control_no_terminal(capsys):
    cli_main.complain("m\x1b[2J\u202e.gguf: \x9b1m é", "a\tb\nc\x07")
    assert capsys.readouterr().err == "error: m\\x1b[2J\\u202e.gguf: \\x9b1m é\nhint: a\tb\nc\\x07\n"


def test_notes_of_long_work_control_no_terminal(capsys):
    """They name models and licences, which come out of strangers' files."""
    with StatusLine("") as line:
        line.note("the licence of m is \x1b]0;x\x07")
    assert capsys.readouterr().err == "note: the licence of m is \\x1b]0;x\\x07\n"


@pytest.mark.parametrize(
    ("word", "verb"),
    [("chta", "chat"), ("download", "pull"), ("delete", "rm"), ("copy", "cp"), ("train", "finetune")],
)
def test_a_word_of_another_program_leads_to_the_verb(word: str, verb: str, capsys):
    assert cli_main.run([word, "x"]) == 2
    assert f"did you mean freehold {verb}?" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "verb"), [("chat", "run"), ("search", "models")])
def test_words_that_mean_a_verb_are_that_verb(word: str, verb: str, capsys):
    assert cli_main.run([word, "--help"]) == 0
    first = capsys.readouterr().out
    assert cli_main.run([verb, "--help"]) == 0
    assert first.replace(f"freehold {word} ", f"freehold {verb} ") == capsys.readouterr().out


def test_every_hint_for_a_word_names_a_verb():
    assert set(MEANT.values()) <= {*VERBS, *ALIASES} and not MEANT.keys() & {*VERBS, *ALIASES}
