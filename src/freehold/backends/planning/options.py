"""From what a user asks for to a plan: the model's facts, the hardware, the engine and where it comes from.

    plan = plan_deployment("qwen3:8b", on="2xh100")       # pure for --on: nothing of an engine is needed here
    print(plan.shell())

Reads headers and finds programs; starts no engine. An environment is looked at, and asked for its engine's version.
Path: freehold.plan_deployment, cli/deploying/options.py -> planned -> EngineDriver.plan -> DeployPlan
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.backends.contract import (
    DeployedModel,
    DeployPlan,
    EngineFacts,
    EngineName,
    Nodes,
    PlanRequest,
)
from freehold.config import Settings, check_names, load_settings
from freehold.errors import UsageError

if TYPE_CHECKING:
    from freehold.advisor.fit import Fit

_DESKTOP_GIB = 32  # of a GPU that people have in a machine of their own, at most
_MOST = 1 << 30  # of what is counted: tokens of a context are the most
SOCKET = Path("{folder}/s.sock")  # each replica's own: its folder is made at its start


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """What `freehold deploy` was asked for. 0 and "" are choices left to the plan."""

    model: str  # a folder, a GGUF, a name of the store or of the catalogue
    name: str = ""  # under which clients ask for it
    engine: str = "auto"
    on: str = ""  # hardware that is not here; or ray, ray:PYTHON, ray://HOST:PORT
    nodes: int = 0
    replicas: int = 0
    context: int = 0
    streams: int = 0
    quant: str = ""  # of a model of the catalogue: which published copy
    cache_type: str = ""  # of keys and values: fp8, or a type of llama.cpp's
    flags: tuple[str, ...] = ()
    python: str = ""  # an interpreter whose environment has the engine
    env: str = ""  # an environment's folder; it is made where there is none
    command: str = ""  # a program and its first words
    attach: str = ""  # URL of an engine that runs already
    attach_key_env: str = ""  # the variable of our environment that has its key
    attach_cleartext: bool = False  # plain http to another machine is allowed
    fallback: str = ""  # a model of our own engine that answers while no replica can


OPTIONS = tuple(each.name for each in fields(DeployOptions) if each.name != "model")


def plan_deployment(model: str, *, settings: Settings | None = None, **options: Any) -> DeployPlan:
    """Plan an engine for `model` with the options of `freehold deploy`: engine, on, nodes, replicas, context, streams,
    quant, cache_type, flags, name, python, env, command, attach.

    Raises UsageError for flags that the engine does not know or that open a door, and for a model that does not fit,
    with what would; ModelNotFound with the nearest names. `freehold.deploy` takes the same, but for `on` other
    hardware, starts the engine and returns it as a ChatModel.
    """
    check_names(options, OPTIONS)
    return planned(settings or load_settings(), DeployOptions(model, **options))


def planned(
    settings: Settings,
    asked: DeployOptions,
    *,
    start: bool = False,
    show: Callable[[str], object] = lambda line: None,
    here: Nodes | None = None,
) -> DeployPlan:
    """Plan what was asked for.

    `start`: for a start here, so that a missing engine is an error and a missing environment of --env is made; `show`
    gets the installer's lines then. Without it nothing is installed. `here`: this machine as it was before the engines
    that the plan replaces took its memory.
    """
    from freehold.backends.ray.target import is_ray, over_ray

    if is_ray(asked.on):
        return over_ray(_planned(settings, replace(asked, on=""), start, show, here), asked.on, start=start)
    if start and asked.on:
        raise UsageError(
            f"--on {asked.on} plans for hardware that may be elsewhere, and a start is on this machine",
            "leave it out, or plan alone: freehold.plan_deployment, or --dry-run",
        )
    if asked.engine == "freehold":
        raise UsageError(
            "Freehold's own engine runs in freehold serve on this machine", "--on ray starts it on others"
        )
    return _planned(settings, asked, start, show, here)


def _planned(
    settings: Settings,
    asked: DeployOptions,
    start: bool,
    show: Callable[[str], object],
    here: Nodes | None,
) -> DeployPlan:
    from freehold.backends import drivers
    from freehold.backends.planning import facts

    check(asked)
    if asked.attach:
        return _attached(asked)
    model = facts.deployed(settings, asked.model, name=asked.name, quant=asked.quant)
    if asked.on:
        nodes = facts.nodes_on(asked.on, asked.nodes)
    else:
        nodes = here or facts.nodes_here(settings.home)
    copied = ""
    if asked.on and asked.engine == "auto" and not asked.quant:
        model, copied = _for_one_gpu(model, nodes, asked.context or None)
    search = _EngineSearch(settings, asked, model, nodes, start, show)
    engine, found, notes = search.engine()
    notes = (copied, *notes) if copied else notes
    request = PlanRequest(
        socket=None if asked.on else SOCKET,
        model=model,
        nodes=nodes,
        engine=found,
        context=asked.context,
        streams=asked.streams,
        replicas=asked.replicas,
        cache_type=asked.cache_type,
        flags=asked.flags,
    )
    plan = drivers.driver(engine).plan(request)
    if start and not found.command:
        raise UsageError(
            f"{engine} is not at hand here: not on PATH, and in no environment of the data folder",
            "freehold deploy takes --python PATH, --env DIR or --command WORDS; its --dry-run needs no engine",
        )
    if start:
        _ask_its_parser(plan, found)
    return replace(plan, notes=(*notes, *plan.notes)) if notes else plan


def _ask_its_parser(plan: DeployPlan, found: EngineFacts) -> None:
    """Let the engine's own parser read the command line where ours knows the flags of another version only.

    Raises UsageError. For its own version the start itself is the first to parse, and nothing is gained.
    """
    from freehold.backends.process import environments

    if not found.checked or plan.schema == f"{plan.engine} {plan.version}":
        return
    environment = environments.read(Path(found.command[0]), plan.engine)
    environments.last_word(environment, plan.argv()[len(found.command) :])


def _attached(asked: DeployOptions) -> DeployPlan:
    from freehold.backends import drivers
    from freehold.backends.engines.survey import attached_plan

    return attached_plan(
        asked.attach,
        asked.model,
        name=asked.name,
        engine="" if asked.engine == "auto" else drivers.driver(asked.engine).name,
        key_env=asked.attach_key_env,
        cleartext=asked.attach_cleartext,
    )


def check(asked: DeployOptions) -> None:
    """Raise UsageError for options that contradict each other, and for counts that cannot be."""
    for option in ("nodes", "replicas", "context", "streams"):
        value = getattr(asked, option)
        if type(value) is not int or not 0 <= value <= _MOST:
            raise UsageError(f"{option} is {value!r}", f"give a whole number from 1 to {_MOST:,}")
    if isinstance(asked.flags, str):
        raise UsageError(f"flags is the text {asked.flags[:60]!r}", "give a list of flags: [...]")
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


@dataclass(frozen=True, slots=True)
class _EngineSearch:
    """Where the engine of a plan comes from."""

    settings: Settings
    asked: DeployOptions
    model: DeployedModel
    nodes: Nodes
    start: bool
    show: Callable[[str], object]

    def engine(self) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
        """Return the engine, what was found of it, and why it was chosen."""
        from freehold.backends import drivers

        asked = self.asked
        if asked.python:
            return *_of_python(Path(asked.python).expanduser(), asked.engine), ()
        if asked.env:
            return self._environment(environment_folder(self.settings.home, asked.env))
        if asked.engine == "auto" and asked.command:
            raise UsageError("--command needs --engine: whose flags it takes", "for example --engine vllm")
        if asked.command:
            return drivers.driver(asked.engine).name, EngineFacts(command=tuple(_words(asked.command))), ()
        if asked.engine == "freehold":
            return "freehold", EngineFacts(command=(str(Path(sys.executable).with_name("freehold")),)), ()
        if asked.engine != "auto":
            name = drivers.driver(asked.engine).name
            return name, EngineFacts() if asked.on else self._at_hand(name), ()
        if asked.on:
            return _fastest(self.model, self.nodes, asked.context or None)
        return self._chosen()

    def _environment(self, folder: Path) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
        """Return the engine of --env; one that is missing is made before a start."""
        from freehold.backends import drivers
        from freehold.backends.process import environments

        python = environments.in_folder(folder)
        unfinished = environments.is_unfinished(folder)
        if python.exists() and not unfinished:
            return *_of_python(python, self.asked.engine), ()
        wanted = "vllm" if self.asked.engine == "auto" else self.asked.engine
        driver = drivers.driver(wanted)
        if not self.start:
            what = "is not finished" if unfinished else "does not exist yet"
            return driver.name, EngineFacts(), (f"{folder} {what}: a start makes it",)
        made = environments.make(
            folder,
            driver.name,
            cpu=self.nodes.rig.device.kind == "cpu",
            least=driver.least,
            offline=self.settings.offline,
            note=self.show,
        )
        return made.engine, made.facts, ()

    def _at_hand(self, name: EngineName) -> EngineFacts:
        """Return an engine that is found here; without a command where none is."""
        from freehold.backends.finding import named

        found = named(self.settings.home, name)
        if found is not None and name in ("vllm", "sglang") and found.python is not None:
            return _of_python(found.python, name)[1]
        if found is None:
            return EngineFacts()
        # llama.cpp and Ollama are no packages of Python: they are asked when they start.
        version = _version_in(found.python, name) if found.python is not None else ""
        return EngineFacts(version, (str(found.program),))

    def _chosen(self) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
        """Choose among the engines at hand here, by prediction where an accelerator is found."""
        from freehold.backends.finding import choose, look, place_of

        model, context = self.model, self.asked.context or None
        found = look(self.settings.home, always=True)
        if found.accelerated:
            choice = choose(model.anatomy, model.files, found, place_of(self.settings), context)
            if choice.engine != "freehold":
                return choice.engine, self._at_hand(choice.engine), (choice.reason,)
            raise UsageError(f"{model.name}: {choice.reason}", choice.advice or _serve(self.asked))
        wanted: EngineName = "llamacpp" if model.files == "gguf" else "vllm"
        if wanted not in [e.name for e in found.engines]:
            raise UsageError(f"no engine for {model.name} is at hand here, and no GPU", _serve(self.asked))
        return wanted, self._at_hand(wanted), (f"{wanted} was found here; it computes on the processor",)


def environment_folder(home: Path, env: str) -> Path:
    """Return the folder of --env. A bare name is one of the data folder, where --engine auto and doctor look."""
    return home / "environments" / env if env == Path(env).name else Path(env).expanduser().absolute()


def advised(engine: str) -> str:
    """Return what advisor/engines.toml calls an engine of a plan; another name stays."""
    from freehold.backends.finding import ADVISED

    return next((name for planned, (name, _) in ADVISED.items() if planned == engine), engine)


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
    """Return the engine of an interpreter's environment. Raises UsageError, with the cure."""
    from freehold.backends.process import environments

    found = environments.cured(environments.read(python, wanted))
    for trouble in found.troubles:
        raise UsageError(trouble.message, trouble.cure)
    return found.engine, found.facts


def _version_in(python: Path, name: EngineName) -> str:
    """Return the version of a program's package; "" where its interpreter has none: it is taken as it is."""
    from freehold.backends.process import environments

    try:
        return environments.read(python, name).version if name in environments.PACKAGES else ""
    except UsageError:
        return ""


def _fits(model: DeployedModel, nodes: Nodes, context: int | None) -> dict[EngineName, Fit]:
    """Return by prediction what the engines that load its files give on named hardware, the usual one first."""
    from freehold.advisor.fit import Fit, fit, place_on
    from freehold.backends.finding import ADVISED
    from freehold.catalog.hardware import Rig

    rig = Rig(nodes.rig.device, nodes.rig.count * nodes.count)
    found: dict[EngineName, Fit] = {}
    for name, (known, files) in ADVISED.items():
        if (files == "gguf") == (model.files == "gguf"):
            told = fit(model.anatomy, place_on(rig, known), context)
            if isinstance(told, Fit):
                found[name] = told
    return found


def _fastest(
    model: DeployedModel, nodes: Nodes, context: int | None
) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
    """Choose by prediction among the engines that load its files and run on named hardware.

    The usual one is taken unless another is faster by more than the prediction's own error. Where none has room, the
    one that is usual there plans, and says what would fit.
    """
    from freehold.catalog.hardware import Rig

    rig = Rig(nodes.rig.device, nodes.rig.count * nodes.count)
    fitting = _fits(model, nodes, context)
    if not fitting:
        usual: EngineName = "mlx" if rig.device.kind == "mac" else "vllm"
        return "llamacpp" if model.files == "gguf" else usual, EngineFacts(), ()
    usual_high = next(iter(fitting.values())).decode.high

    def rank(name: EngineName) -> float:  # others keep their places behind it
        speed = fitting[name].decode.mid
        return -speed if speed > usual_high else 0.0

    best, *others = sorted(fitting, key=rank)
    beyond = rank(best) < 0
    speeds = [f"about {fitting[best].decode.mid:.0f} tokens/s of one answer"]
    speeds += [f"{fitting[name].decode.mid:.0f} by {name}" for name in others]
    over = f" over all {rig.count} devices" if rig.count > 1 else ""
    how = (
        "is the fastest by prediction"
        if beyond
        else "is taken: no engine is faster beyond the prediction's error"
    )
    why = f"{best} {how} on {rig.name}: {', '.join(speeds)}{over}"
    return best, EngineFacts(), (why,)


def _for_one_gpu(model: DeployedModel, nodes: Nodes, context: int | None) -> tuple[DeployedModel, str]:
    """Return a GGUF copy where one GPU of a desktop does not hold a model's own weights, and a note; else the model."""
    from freehold import catalog
    from freehold.backends.planning import facts
    from freehold.catalog import copies

    rig = nodes.rig
    desktop = rig.device.kind == "gpu" and rig.device.memory_gib <= _DESKTOP_GIB
    own = model.base and model.source == model.base
    if not (desktop and own and rig.count * nodes.count == 1) or _fits(model, nodes, context):
        return model, ""
    known = catalog.model(model.base)
    copy = copies.chosen(known, facts.USUAL_GGUF)
    found = facts.of_catalogue(known, facts.USUAL_GGUF, copy) if copy else None
    if copy is None or found is None or not _fits(found, nodes, context):
        return model, ""
    quant = found.anatomy.quant
    note = f"{model.source} in {model.anatomy.quant} does not fit {rig.name}: this is {copy.repository} in {quant}"
    return replace(found, name=model.name), note


def _serve(asked: DeployOptions) -> str:
    return (
        f"freehold serve {shlex.quote(asked.model)} runs it on the processor; --engine vllm --env DIR makes an "
        "environment for vLLM; --on HARDWARE plans for other hardware"
    )
