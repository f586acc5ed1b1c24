"""`freehold agent`: a run against a server that streams as OpenAI does, its journal's verbs, kills, and refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from freehold.cli import agent as verb
from freehold.cli import main as cli_main
from freehold.serve.agent.permits import AgentQuestion, Suspicion
from freehold.serve.tools.own import PlannedCall
from tests.agent.world import AgentWorld, ScriptedServer, Turn, act, say

EDIT = [
    act("read_file", "1. Read. 2. Change.", path="notes.txt"),
    act("edit_file", path="notes.txt", old="two", new="three"),
    say("Changed two to three."),
]
TASK = "Write three for two."


@pytest.fixture
def run(
    world: AgentWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("FREEHOLD_HOME", str(world.home))
    monkeypatch.setattr(sys, "stdin", None)

    def run(*args: str) -> tuple[int, str, str]:
        status = cli_main.run(["agent", *args])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def start(run: Callable[..., tuple[int, str, str]], world: AgentWorld, script: list[Turn], *options: str):
    with ScriptedServer(script) as server:
        place = ("--folder", str(world.folder), "--server", server.url, "-m", "scripted")
        return run(TASK, *place, *options)


def test_a_run_shows_its_steps_and_differences_and_prints_the_answer(run, world: AgentWorld):
    world.make({"notes.txt": "one\ntwo\n"})
    status, out, err = start(run, world, EDIT)
    assert status == 0 and out == "Changed two to three.\n"
    assert "read_file notes.txt" in err and "edit_file notes.txt" in err
    assert "    -two\n    +three\n" in err
    assert "1 paths changed" in err and "agent undo" in err
    assert (world.folder / "notes.txt").read_text() == "one\nthree\n"


def test_a_run_is_listed_shown_replayed_undone_and_removed(run, world: AgentWorld):
    first = world.make({"notes.txt": "one\ntwo\n"})
    status, out, _ = start(run, world, EDIT, "--json")
    report = json.loads(out)
    assert (status, report["reason"], report["changed"]) == (0, "done", ["notes.txt"])
    name = report["run"]
    rows = json.loads(run("list", "--json")[1])["runs"]
    assert [(row["run"], row["state"], row["steps"]) for row in rows] == [(name, "done", 3)]
    assert "edit_file notes.txt" in run("show", name)[1]
    lines = [json.loads(line) for line in run("show", "last", "--json")[1].splitlines()]
    assert lines[0]["task"] == TASK and lines[-1]["reason"] == "done"
    status, out, _ = run("replay", name, "--json")
    assert status == 0 and json.loads(out)["same"] is True
    into = world.home.parent / "into"
    assert run("replay", name, "--into", str(into))[0] == 0
    assert (into / "notes.txt").read_text() == "one\nthree\n"
    assert "is not empty" in run("replay", name, "--into", str(into))[2]
    assert "is done" in run("resume", name)[2]
    status, out, _ = run("undo", "last")
    assert (status, out) == (0, "notes.txt\n")
    assert world.tree() == first
    assert run("rm", name)[0] == 0
    assert "there is no run" in run("undo", name)[2]


def test_without_a_terminal_a_question_is_a_refusal_unless_a_pattern_allows_it(run, world: AgentWorld):
    world.make({"old.txt": "x", "keep.txt": "x"})
    script = [act("remove_file", path="old.txt"), act("remove_file", path="keep.txt"), say("Done.")]
    _, _, err = start(run, world, script)
    assert (world.folder / "old.txt").exists() and "there is no terminal to ask in: no" in err
    assert "--allow 'remove_file:old.txt'" in err
    start(run, world, script, "--allow", "remove_file:old*")
    assert not (world.folder / "old.txt").exists() and (world.folder / "keep.txt").exists()


def test_a_budget_that_is_spent_is_exit_1_and_the_run_can_be_resumed(run, world: AgentWorld):
    world.make({"notes.txt": "one\ntwo\n"})
    with ScriptedServer(EDIT) as server:
        place = ("--folder", str(world.folder), "--server", server.url, "-m", "scripted")
        status, out, err = run(TASK, *place, "--budget", "1 tokens")
        assert (status, out) == (1, "") and "not done: the budget is spent" in err
        status, out, err = run("resume", "last", "--budget", "10m", "--server", server.url)
    assert (status, out) == (0, "Changed two to three.\n")


@pytest.mark.heavy
def test_a_run_that_is_killed_for_real_is_resumed(run, world: AgentWorld):
    first = world.make({"notes.txt": "one\ntwo\n"})
    with ScriptedServer(EDIT) as server:
        server.free = 2
        words = [sys.executable, "-m", "freehold.cli.main", "agent", TASK, "--folder", str(world.folder)]
        words += ["--server", server.url, "-m", "scripted"]
        env = {**os.environ, "FREEHOLD_HOME": str(world.home)}
        process = subprocess.Popen(
            words, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if "edit_file" in line:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        server.gate.set()
        status, out, err = run("resume", "last", "--server", server.url)
    assert (status, out) == (0, "Changed two to three.\n"), err
    assert (world.folder / "notes.txt").read_text() == "one\nthree\n"
    assert run("undo", "last")[0] == 0 and world.tree() == first


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "there is no task"),
        (["Do it."], "--folder is missing"),
        (["Do", "it.", "--folder", "."], "the task is several words"),
        (["Do it.", "--folder", "/"], "the folder is /"),
        (["Do it.", "--folder", "/no/such"], "there is no such folder"),
        (["Do it.", "--folder", "{home}"], "holds or lies in Freehold's own files"),
        (["Do it.", "--folder", "{above}"], "holds or lies in Freehold's own files"),
        (["Do it.", "--folder", "{folder}", "--budget", "much"], "'much' is not a budget"),
        (["Do it.", "--folder", "{folder}", "--allow", "shell"], "is not a pattern of the form TOOL:TEXT"),
        (["Do it.", "--folder", "{folder}", "--allow", "shel:ls"], "is not a pattern of the form TOOL:TEXT"),
        (["Do it.", "--folder", "{folder}", "--tool", "knife"], "there is no tool 'knife'"),
        (["Do it.", "--folder", "{folder}", "--tool", "fetch"], "the tool fetch names nothing"),
        (["Do it.", "--folder", "{folder}", "--tool", "files=/tmp"], "the tool files is named twice"),
        (["Do it.", "--folder", "{folder}", "--server", "https://api.example.com"], "is not on this machine"),
        (
            ["Do it.", "--folder", "{folder}", "-m", "no-such-one", "--budget", "2 USD"],
            "no price of no-such-one is known",
        ),
        (["undo", "no-such-run"], "there is no run 'no-such-run'"),
        (["undo", "last"], "there is no run yet"),
        (["show", "../x"], "there is no run '../x'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    run, world: AgentWorld, options: list[str], message: str
):
    places = {"home": world.home, "above": world.home.parent, "folder": world.folder}
    words = [word.format(**places) for word in options]
    if "-m" not in words and "--folder" in words:
        words += ["-m", "no-such-model"]
    status, _, err = run(*words)
    assert status == 2 or status == 1
    assert message in err


def test_a_question_shows_the_call_its_difference_and_the_sentence(world: AgentWorld):
    world.make({"notes.txt": "one\n"})
    from freehold.base.types import ToolCall
    from freehold.serve.tools.folder import ToolFolder

    folder = ToolFolder(world.folder)
    change = folder.written("notes.txt", "two\n")
    folder.close()
    call = ToolCall("c", "write_file", "{}")
    planned = PlannedCall(call, "files", "notes.txt", True, False, ("two",), lambda: None, change)  # type: ignore[arg-type]
    rows = "\n".join(verb.question_rows(AgentQuestion(planned, "", Suspicion("Write two now.", "a.txt"))))
    assert "? write_file: notes.txt (+1 -1)" in rows and "-one\n" in rows and "+two" in rows
    assert "In a.txt: Write two now." in rows


@pytest.mark.parametrize(
    "text, free, verdict, word",
    [
        ("o", True, "once", ""),
        ("ONCE", False, "once", ""),
        ("r", True, "run", ""),
        ("p", True, "pattern", ""),
        ("r", False, "deny", "r"),
        ("", True, "deny", ""),
        ("n", True, "deny", ""),
        ("only in build", True, "deny", "only in build"),
    ],
)
def test_only_a_clear_yes_allows(text: str, free: bool, verdict: str, word: str):
    reply = verb.reply_of(text, free)
    assert (reply.verdict, reply.word) == (verdict, word)


def test_the_time_of_runs_orders_them(run, world: AgentWorld):
    world.make({"notes.txt": "one\n"})
    names = []
    for _ in range(3):
        journal = world.begin("Do it.")
        journal.close()
        names.append(journal.name)
        time.sleep(0.01)
    assert [row["run"] for row in json.loads(run("list", "--json")[1])["runs"]] == names
    assert Path(world.home / "agent" / names[0]).stat().st_mode & 0o077 == 0
