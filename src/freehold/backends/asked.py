"""From what a user asks for to a plan: the model's facts, the hardware, the engine and where it comes from.

    plan = plan_deployment("qwen3:8b", on="2xh100")       # pure for --on: nothing of an engine is needed here
    print(plan.shell())

Reads headers and finds programs; starts no engine. An environment is looked at, and asked for its engine's version.
Path: freehold.plan_deployment, cli/deploying/options.py -> planned -> EngineDriver.plan -> DeployPlan
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from freehold.backends.contract import (
    DeployedModel,
    DeployPlan,
    EngineFacts,
    EngineName,
    Nodes,
    PlanRequest,
)
from freehold.config import Settings, load_settings
from freehold.errors import UsageError

# What advisor/engines.toml calls an engine, and a plan.
_NAMES: dict[str, EngineName] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "tensorrt-llm": "trtllm",
    "llama.cpp": "llamacpp",
    "mlx": "mlx",
}


SOCKET = Path("{folder}/s.sock")  # each replica's own: its folder is made at its start


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """What `freehold deploy` was asked for. 0 and "" are choices left to the plan."""

    model: str  # a folder, a GGUF, a name of the store or of the catalogue
    name: str = ""  # under which clients ask for it
    engine: str = "auto"
    on: str = ""  # hardware that is not here
    nodes: int = 0
    replicas: int = 0
    context: int = 0
    streams: int = 0
    flags: tuple[str, ...] = ()
    python: str = ""  # an interpreter whose environment has the engine
    env: str = ""  # an environment's folder; it is made where there is none
    command: str = ""  # a program and its first words
    attach: str = ""  # URL of an engine that runs already
    attach_key_env: str = ""  # the variable that has its key
    attach_cleartext: bool = False  # plain http to another machine: the way there is private already
    fallback: str = ""  # a model of our own engine that answers while no replica can


def plan_deployment(model: str, *, settings: Settings | None = None, **options: Any) -> DeployPlan:
    """Plan an engine for `model` with the options of `freehold deploy`: engine, on, nodes, replicas, context, streams,
    flags, name, python, env, command, attach.

    Raises UsageError for flags that the engine does not know or that open a door, and for a model that does not fit,
    with what would; ModelNotFound with the nearest names.
    """
    return planned(settings or load_settings(), DeployOptions(model, **options))


def planned(settings: Settings, asked: DeployOptions) -> DeployPlan:
    """Plan what was asked for."""
    from freehold.backends import drivers, facts

    check(asked)
    if asked.attach:
        from freehold.backends.survey import attached_plan

        return attached_plan(
            asked.attach,
            asked.model,
            name=asked.name,
            engine="" if asked.engine == "auto" else drivers.driver(asked.engine).name,
            key_env=asked.attach_key_env,
            cleartext=asked.attach_cleartext,
        )
    model = facts.deployed(settings, asked.model, name=asked.name)
    nodes = facts.nodes_on(asked.on, asked.nodes) if asked.on else facts.nodes_here(settings.home)
    engine, found, notes = _engine(settings, asked, model, nodes)
    driver = drivers.driver(engine)
    request = PlanRequest(
        socket=None if asked.on else SOCKET,
        model=model,
        nodes=nodes,
        engine=found,
        context=asked.context,
        streams=asked.streams,
        replicas=asked.replicas,
        flags=asked.flags,
    )
    plan = driver.plan(request)
    return replace(plan, notes=(*notes, *plan.notes)) if notes else plan


def check(asked: DeployOptions) -> None:
    """Raise UsageError for options that contradict each other."""
    places = {
        "--python": asked.python,
        "--env": asked.env,
        "--command": asked.command,
        "--attach": asked.attach,
    }
    given = [option for option, value in places.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} name two places of an engine", "give one of them")
    if asked.on and given:
        raise UsageError(f"--on plans for other hardware, and {given[0]} is here", "leave one of them out")
    if asked.attach and asked.flags:
        raise UsageError("--engine-flag: an attached engine runs already", "start it with the flag yourself")
    if asked.attach and asked.replicas > 1:
        raise UsageError("--replicas: an attached engine is one", "leave it out")
    if (asked.attach_key_env or asked.attach_cleartext) and not asked.attach:
        raise UsageError("--attach-key-env and --attach-cleartext are for --attach", "add --attach URL")
    if asked.nodes > 1 and not asked.on:
        raise UsageError("--nodes counts boxes of --on HARDWARE", "for example --on 8xh100 --nodes 2")


def _engine(
    settings: Settings, asked: DeployOptions, model: DeployedModel, nodes: Nodes
) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
    """Return the engine, what was found of it, and why it was chosen."""
    from freehold.backends import drivers

    if asked.python:
        return *_of_python(Path(asked.python).expanduser(), asked.engine), ()
    if asked.engine == "auto" and asked.command:
        raise UsageError("--command needs --engine: whose flags and dialect", "for example --engine vllm")
    if asked.command:
        return drivers.driver(asked.engine).name, EngineFacts(command=tuple(_words(asked.command))), ()
    if asked.engine != "auto":
        name = drivers.driver(asked.engine).name
        return name, EngineFacts(), ()
    if asked.on:
        return _fastest(model, nodes, asked.context or None)
    return _chosen(settings, asked, model)


def _words(command: str) -> list[str]:
    """Split --command as a shell would. Raises UsageError."""
    try:
        found = shlex.split(command)
    except ValueError as e:
        raise UsageError(f"--command {command!r}: {e}", "quote it as for a shell") from e
    if not found:
        raise UsageError("--command is empty", "give the engine's program and its first words")
    return found


def _of_python(python: Path, wanted: str) -> tuple[EngineName, EngineFacts]:
    """Return the engine of an interpreter's environment, by the metadata of its packages."""
    if not python.exists():
        raise UsageError(f"--python {python} does not exist", "name the interpreter of an environment")
    modules: dict[EngineName, str] = {
        "vllm": "vllm.entrypoints.openai.api_server",
        "sglang": "sglang.launch_server",
    }
    for name, module in modules.items():
        version, cpu = package_version(python, name)
        if version and wanted in ("auto", name):
            return name, EngineFacts(version, (str(python), "-m", module), cpu)
    what = "engine" if wanted == "auto" else wanted
    raise UsageError(f"{python} has no {what} beside it", "--env DIR makes an environment")


def package_version(python: Path, package: str) -> tuple[str, bool]:
    """Return the version of a package in an interpreter's environment, and whether it is a build for processors."""
    root = python.parent.parent
    for found in sorted(root.glob(f"lib/python3*/site-packages/{package}*.dist-info")):
        name, _, version = found.name.removesuffix(".dist-info").partition("-")
        if name in (package, f"{package}_cpu"):
            return version, "cpu" in found.name
    return "", False


def _fastest(
    model: DeployedModel, nodes: Nodes, context: int | None
) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
    """Choose by prediction among the engines that run on named hardware. Raises UsageError where none does."""
    from freehold.advisor.fit import Fit, Misfit, fit, place_on
    from freehold.backends import drivers
    from freehold.catalog.hardware import Rig

    rig = Rig(nodes.rig.device, nodes.rig.count * nodes.count)
    told: dict[EngineName, Fit | Misfit] = {
        name: fit(model.anatomy, place_on(rig, advised), context)
        for advised, name in _NAMES.items()
        if name in drivers.names()
    }
    fitting: dict[EngineName, Fit] = {name: found for name, found in told.items() if isinstance(found, Fit)}
    if not fitting:
        why = next(found for found in told.values() if isinstance(found, Misfit))
        raise UsageError(f"{model.name} on {rig.name}: {why.reason}", why.hint)
    best: EngineName = max(fitting, key=lambda name: fitting[name].decode.mid)
    speed = f"about {fitting[best].decode.mid:.0f} tokens/s of one answer"
    return best, EngineFacts(), (f"{best} is the fastest by prediction on {rig.name}: {speed}",)


def _chosen(
    settings: Settings, asked: DeployOptions, model: DeployedModel
) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
    """Choose among the engines at hand here, by prediction where an accelerator is found."""
    from freehold.backends.finding import choose, look, place_of

    found = look(settings.home, always=True)
    if found.accelerated:
        choice = choose(model.anatomy, model.files, found, place_of(settings), asked.context or None)
        if choice.engine != "freehold":
            return choice.engine, EngineFacts(), (choice.reason,)
        raise UsageError(f"{model.name}: {choice.reason}", choice.advice or _serve(asked))
    names = [e.name for e in found.engines]
    wanted: EngineName = "llamacpp" if model.files == "gguf" else "vllm"
    if wanted not in names:
        raise UsageError(f"no engine for {model.name} is at hand here, and no GPU", _serve(asked))
    return wanted, EngineFacts(), (f"{wanted}: found here, on the processor",)


def _serve(asked: DeployOptions) -> str:
    return (
        f"freehold serve {shlex.quote(asked.model)} runs it on the processor; --engine vllm --env DIR makes an "
        "environment for vLLM; --on HARDWARE plans for other hardware"
    )
