"""Ten tasks with a model that follows a script: done, resumed after kills, replayed, undone, and mostly cached."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base.platforms import can_confine
from freehold.serve.agent.journal import AgentJournal, TreeStore, differing, tree_at
from freehold.serve.agent.loop import replayed, undone
from freehold.serve.remote import Api
from freehold.serve.remote.openai import HttpModel
from tests.agent.tasks import TASKS, AgentTask
from tests.agent.test_loop import Killed, MortalJournal
from tests.agent.world import AgentWorld, ScriptedServer

pytestmark = pytest.mark.skipif(not can_confine(), reason="this kernel confines no process")


def killed_run(world: AgentWorld, task: AgentTask, model: HttpModel, every: int) -> AgentJournal:
    """Run a task in processes that each die after `every` lines, until one ends it."""
    journal = world.begin(task.task, task.tools)
    name = journal.name
    journal.close()
    for death in range(30):
        mortal = MortalJournal.open(world.home, name)
        assert isinstance(mortal, MortalJournal)
        mortal.lives, mortal.before = every, bool(death % 2)
        tools = world.tools(mortal, task.tools)
        try:
            loop = world.loop(model, mortal)
            loop.run()
        except Killed:
            continue
        finally:
            mortal.close()
            tools.close()
        return mortal
    raise AssertionError("it does not end")


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_a_task_is_done_replayed_and_undone(world: AgentWorld, task: AgentTask, tmp_path: Path):
    first = world.make(task.files)
    with ScriptedServer(task.script) as server, HttpModel(Api(server.url), "scripted") as model:
        journal = world.begin(task.task, task.tools)
        end = world.loop(model, journal).run()
        journal.close()
    assert end.reason == "done" and end.text == task.script[-1].text
    assert task.right(world.folder)
    assert not world.questions  # honest work is not asked about
    copy = tmp_path / "copy"
    copy.mkdir()
    trees = TreeStore(copy, journal.blobs)
    trees.restore(tree_at(journal.lines[:1]))
    tools = world.tools(journal, task.tools, copy)
    rows = list(replayed(journal.lines, tools, trees))
    tools.close()
    assert len(rows) == len(task.script) - 1 and all(row.same for row in rows)
    assert not differing(tree_at(journal.lines), trees.scan()) and task.right(copy)
    undone(journal.path, journal.lines)
    assert world.tree() == first


@pytest.mark.heavy
@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_a_task_is_done_although_its_process_is_killed_again_and_again(world: AgentWorld, task: AgentTask):
    first = world.make(task.files)
    with ScriptedServer(task.script) as server, HttpModel(Api(server.url), "scripted") as model:
        journal = killed_run(world, task, model, 2)
    assert journal.lines[-1].reason == "done" and task.right(world.folder)
    assert sum(line.kind == "resume" for line in journal.lines) >= 2
    undone(journal.path, journal.lines)
    assert world.tree() == first


def test_nine_tenths_of_a_prompt_are_cached_from_the_third_step_on(world: AgentWorld):
    cached = prompts = 0
    for task in TASKS:
        for path in sorted(world.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        world.make(task.files)
        _, journal = world.run(task.script, task.task, words=task.tools)
        for line in [line for line in journal.lines if line.kind == "answer"][2:]:
            cached, prompts = cached + line.cached_tokens, prompts + line.prompt_tokens
    assert cached / prompts >= 0.9
