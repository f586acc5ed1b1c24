"""Adapters behind the worker's door: `base+adapter` is a model like any other, and outlives an engine's death."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.base.config import Settings
from freehold.base.errors import BadModelFile, ModelNotFound, UsageError
from freehold.base.serving import EmbedJob, Job
from freehold.run.formats.lora import CONFIG, WEIGHTS
from freehold.run.store import ModelRef, Store
from freehold.run.store.create import Recipe, make
from freehold.serve.http.core.problems import problem
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.models import AdaptedHandle, EngineModels, OverlaidHandle
from tests.vectors.adapters import ATTENTION, Case, write_gguf, write_peft
from tests.worker.conftest import answers, tokens

Refs = dict[str, ModelRef]
Serve = Callable[..., None]
JOB = Job(prompt=tuple(range(5, 60)), max_tokens=12, sampling={"temperature": 0.0})


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worker-adapters")
    return {
        "one": write_peft(Case("qwen2", seed=1), folder / "one"),
        "two": write_gguf(Case("qwen2", seed=2, r=16, targets=ATTENTION), folder / "two.gguf", dtype="F16"),
        "foreign": write_peft(Case("qwen3", seed=1), folder / "foreign"),
    }


def options(paths: dict[str, Path], *names: str, **more: Any) -> EngineOptions:
    return EngineOptions(context=512, adapters={"tiny": {name: paths[name] for name in names}}, **more)


def test_names_with_a_plus_answer_with_their_adapters(tiny: Refs, serve: Serve, paths: dict[str, Path]):
    async def body(models: EngineModels) -> None:
        spelled = ["tiny", "tiny+one", "tiny+two"]
        assert [m.name for m in await models.names() if m.name.startswith("tiny")] == spelled
        said = [tokens((await answers(await models.use(name), JOB))[0]) for name in spelled]
        assert len({tuple(each) for each in said}) == 3
        served = await models.use("tiny+one")
        assert isinstance(served, AdaptedHandle) and served.name == "tiny+one"
        assert await models.name_of("tiny+one") == "tiny"
        assert [a.name for a in served.info.adapters] == ["one", "two"]
        assert served.info.memory_bytes > sum(a.memory_bytes for a in served.info.adapters) > 0

    serve(body, options(paths, "one", "two"), paths=tiny)


@pytest.mark.parametrize("name", ["tiny+three", "tiny+", "tiny+one+one", "other+one"])
def test_an_unknown_adapter_is_refused_with_the_known_ones(
    tiny: Refs, serve: Serve, paths: dict[str, Path], name: str
):
    async def body(models: EngineModels) -> None:
        with pytest.raises(ModelNotFound) as told:
            await models.use(name)
        assert name == "tiny+one+one" or "has no adapter" in told.value.message or name.endswith("+")
        if name == "tiny+three":
            assert told.value.hint == "its adapters: tiny+one, tiny+two"

    serve(body, options(paths, "one", "two"), paths=tiny)


def test_an_answer_goes_on_with_its_adapter_through_a_death(tiny: Refs, serve: Serve, paths: dict[str, Path]):
    async def body(models: EngineModels) -> None:
        job = replace(JOB, max_tokens=300, ignore_eos=True)
        served = await models.use("tiny+one")
        whole = tokens((await answers(served, job))[0])
        assert isinstance(served, AdaptedHandle)
        job = replace(job, adapter="one")
        assert tokens((await answers(served.handle, job, kill_at=[3]))[0]) == whole
        assert served.handle.restarts == 1

    serve(body, options(paths, "one"), paths=tiny)


def test_an_adapter_comes_and_goes_while_its_model_lives(tiny: Refs, serve: Serve, paths: dict[str, Path]):
    async def body(models: EngineModels) -> None:
        base = tokens((await answers(await models.use("tiny"), JOB))[0])
        await models.add_adapter("tiny", "one", paths["one"])
        assert tokens((await answers(await models.use("tiny+one"), JOB))[0]) != base
        assert "tiny+one" in [m.name for m in await models.names()]
        with pytest.raises(UsageError, match="tiny has"):
            await models.add_adapter("tiny", "foreign", paths["foreign"])
        with pytest.raises(UsageError, match="cannot be an adapter's name"):
            await models.add_adapter("tiny", "a+b", paths["one"])
        await models.remove_adapter("tiny", "one")
        with pytest.raises(ModelNotFound):
            await models.use("tiny+one")
        with pytest.raises(ModelNotFound):
            await models.remove_adapter("tiny", "one")
        assert tokens((await answers(await models.use("tiny"), JOB))[0]) == base

    serve(body, options(paths), paths=tiny)


def test_a_path_that_is_no_adapter_is_the_caller_s_fault(
    tiny: Refs, serve: Serve, paths: dict[str, Path], tmp_path: Path
):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / CONFIG)
    (tmp_path / "piped" / WEIGHTS).symlink_to("/dev/zero")
    (tmp_path / "text").write_text("no adapter")
    wrong = [*map(Path, ("/dev/zero", "/dev/null", "/no/such/file")), *tmp_path.iterdir()]

    async def body(models: EngineModels) -> None:
        for path in wrong:
            with pytest.raises(UsageError) as refused:
                await models.add_adapter("tiny", "one", path)
            told = problem(refused.value, owner=True)
            assert told.status == 400 and path.name in told.message and refused.value.hint
        with pytest.raises(ModelNotFound):
            await models.add_adapter("nope", "one", paths["one"])

    serve(body, options(paths), paths=tiny)


def test_a_model_whose_adapter_does_not_fit_is_not_loaded(tiny: Refs, serve: Serve, paths: dict[str, Path]):
    async def body(models: EngineModels) -> None:
        with pytest.raises(BadModelFile, match="foreign"):
            await models.use("tiny")

    serve(body, options(paths, "foreign"), paths=tiny)


@pytest.mark.heavy
@pytest.mark.parametrize("template", ["", "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_a_model_made_with_an_adapter_computes_with_it(
    tiny: Refs, serve: Serve, paths: dict[str, Path], tmp_path: Path, template: str
):
    store = Store(Settings(tmp_path, offline=True))
    store.pull(str(tiny["tiny"].path))
    make(store, "made", Recipe("tiny", adapter=str(paths["one"]), template=template or None), lambda _: None)
    make(store, "wrong", Recipe("tiny", adapter=str(paths["foreign"])), lambda _: None)

    async def body(models: EngineModels) -> None:
        spelled = ["tiny+one", "made", "tiny"]
        said = [tokens((await answers(await models.use(name), JOB))[0]) for name in spelled]
        assert said[0] == said[1] != said[2]
        assert [m.name for m in await models.names()] == ["made", "tiny", "tiny+one", "wrong"]
        with pytest.raises(BadModelFile):
            await models.use("wrong")
        served = await models.use("made")
        if isinstance(served, OverlaidHandle):  # its base's engine comes back with the adapter
            job = replace(JOB, adapter=sorted(a.name for a in served.info.adapters)[0])
            assert tokens((await answers(await models.use("tiny"), job, kill_at=[4]))[0]) == said[1]
        assert len((await served.embed(EmbedJob(("hi",)))).data) == 4 * served.info.width

    serve(body, options(paths, "one"))
