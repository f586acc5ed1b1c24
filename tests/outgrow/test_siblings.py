"""How replicas of our own engine share one machine: cores, memory nodes, weights once and a cache each."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.catalog.hardware import Rig
from freehold.base.config import Settings
from freehold.base.errors import UsageError
from freehold.base.platforms import allowed_processors
from freehold.outgrow.contract import DeployPlan, Nodes, PlanRequest
from freehold.outgrow.engines import own
from freehold.outgrow.engines.own import DRIVER
from freehold.outgrow.options import DeployOptions
from freehold.outgrow.planning.options import plan_deployment, planned
from freehold.outgrow.process.process import launch
from tests.outgrow import dialects
from tests.outgrow.plans import CPU, plan_of
from tests.vectors.files import write_gguf

GIB = 1 << 30


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have eight cores on two memory nodes."""
    nodes = (frozenset(range(4)), frozenset(range(4, 8)))
    monkeypatch.setattr(own, "default_threads", lambda: 8)
    monkeypatch.setattr(own, "memory_nodes", lambda allowed: nodes)
    monkeypatch.setattr(own, "usable_cores", lambda chip, allowed, quota: len(allowed))


def request(free_gib: float = 8.0, **more: object) -> PlanRequest:
    nodes = Nodes(Rig(replace(CPU, memory_gib=free_gib)))
    return replace(dialects.request("llamacpp"), nodes=nodes, flags=(), home=Path("/home"), **more)  # type: ignore[arg-type]


def refused(asked: PlanRequest) -> str:
    with pytest.raises(UsageError) as error:
        DRIVER.plan(asked)
    return f"{error.value.message} | {error.value.hint}"


@pytest.mark.parametrize(
    ("replicas", "threads", "places"),
    [
        (1, 8, ()),
        (2, 4, ("0-3", "4-7")),
        (3, 2, ("0-3", "4-7", "0-3")),
        (4, 2, ("0-3", "4-7", "0-3", "4-7")),
        (8, 1, ("0-3", "4-7") * 4),
    ],
)
@pytest.mark.usefixtures("cores")
def test_replicas_divide_the_cores_and_have_memory_nodes_of_their_own(
    replicas: int, threads: int, places: tuple[str, ...]
) -> None:
    plan = DRIVER.plan(request(replicas=replicas))
    assert {flag.name: flag.value for flag in plan.flags}["--threads"] == str(threads)
    assert plan.places == places
    if places:
        assert [plan.of_replica(n).places[0] for n in range(replicas)] == list(places)


def test_fewer_replicas_than_nodes_have_whole_nodes() -> None:
    nodes = tuple(frozenset({n}) for n in range(4))
    assert own.places_of(2, nodes) == [frozenset({0, 1}), frozenset({2, 3})]
    assert own.places_of(3, nodes) == [frozenset({0}), frozenset({1}), frozenset({2, 3})]


@pytest.mark.usefixtures("cores")
def test_weights_count_once_and_caches_for_each() -> None:
    one, two = (DRIVER.plan(request(replicas=n, context=1024, streams=2)) for n in (1, 2))
    weights = one.model.anatomy.weight_bytes
    assert one.shared_bytes == two.shared_bytes == weights
    assert two.total_bytes - one.total_bytes == two.memory_bytes - weights > two.cache_bytes > 0
    assert two.room_beside(two)


@pytest.mark.usefixtures("cores")
def test_too_few_cores_and_too_little_memory_are_refused_with_a_way_out() -> None:
    assert "9 replicas need a core each, and this machine has 8" in refused(request(replicas=9))
    assert "--replicas 8" in refused(request(replicas=9))
    said = refused(request(1.5, replicas=4, context=8192))
    assert "4 replicas take" in said and "weights of" in said and "are free for them" in said
    assert "--replicas" in said
    assert "choose a smaller model" in refused(request(0.05))
    assert "does not accept --engine-flag" in refused(replace(request(), flags=("--port=1",)))
    assert "is not a cache" in refused(request(cache_type="fp8"))
    wordy = replace(dialects.request("llamacpp").model, here=False, base="x")
    assert "freehold pull x" in refused(replace(request(), model=wordy))


def test_plan_names_the_model_by_links_and_auto_never_takes_it(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "home", offline=True, adopt=False)
    path = write_gguf("qwen2", tmp_path / "Tiny.gguf")
    plan = plan_deployment(str(path), settings=settings, engine="freehold", replicas=1)
    assert plan.argv()[len(plan.command) :][:2] == ("serve", "{folder}/tiny.gguf") and plan.served == "tiny"
    assert plan.links == {"home/packs": str(settings.home / "packs"), "tiny.gguf": str(path)}
    held = settings.home / "models" / "held-0"
    held.mkdir(parents=True)
    model = replace(plan.model, source=str(held / "model.gguf"))
    asked = PlanRequest(model, plan.nodes, home=settings.home, stored="held:1b")
    assert DRIVER.plan(asked).links["home/models/held-0"] == str(held)
    assert DRIVER.plan(asked).flags[0].value == DRIVER.plan(asked).served == "held:1b"
    with pytest.raises(UsageError, match="for this machine, or over Ray"):
        plan_deployment(str(path), settings=settings, engine="freehold", on="8xh100")
    for options in (DeployOptions(str(path)), DeployOptions(str(path), on="rtx-4090")):
        try:
            assert planned(settings, options).engine != "freehold"
        except UsageError as e:
            assert "freehold serve" in e.hint


@pytest.mark.skipif(sys.platform != "linux", reason="macOS binds no process to processors")
def test_an_engine_runs_on_its_processors_with_its_links_and_its_folder_filled_in(tmp_path: Path) -> None:
    (tmp_path / "packs").mkdir()
    told = "os.environ['HOME_OF_IT'], sorted(os.sched_getaffinity(0)), os.readlink('home/packs')"
    program = f"import os; print({told})"
    place = min(allowed_processors())
    plan = replace(
        plan_of(program, environment={"HOME_OF_IT": "{folder}/home"}),
        links={"home/packs": str(tmp_path / "packs")},
        places=(str(place),),
    )
    folder = tmp_path / "0"
    folder.mkdir(0o700)

    async def said(of: DeployPlan) -> list[str]:
        engine = await launch(of, folder, phase=lambda line: "", title="Engine")
        async with asyncio.timeout(60):
            await engine.ended
        return list(engine.log)

    expected = [f"{folder}/home [{place}] {tmp_path / 'packs'}"]
    assert asyncio.run(said(plan)) == expected
    assert asyncio.run(said(plan)) == expected  # again, over the links of before
