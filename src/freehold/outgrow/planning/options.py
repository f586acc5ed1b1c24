"""From what a user asks for to a plan: the model's facts, the hardware, the engine and where it comes from.

    plan = plan_deployment("qwen3:8b", on="2xh100")       # pure for --on: nothing of an engine is needed here
    print(plan.shell())

Reads headers and finds programs; starts no engine. An environment is looked at, and asked for its engine's version.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.base.config import Settings, check_names, load_settings
from freehold.base.errors import ModelNotFound, UsageError
from freehold.base.options import options_of
from freehold.outgrow.contract import (
    DeployedModel,
    DeployPlan,
    EngineFacts,
    EngineName,
    Nodes,
    PlanRequest,
)
from freehold.outgrow.options import OPTIONS, DeployOptions

if TYPE_CHECKING:
    from freehold.choose.advisor.fit import Fit

_DESKTOP_GIB = 32  # of a GPU that people have in a machine of their own, at most
_MOST = 1 << 30  # of what is counted: tokens of a context are the most
SOCKET = Path("{folder}/s.sock")  # each replica's own: its folder is made at its start


def plan_deployment(model: str, *, settings: Settings | None = None, **options: Any) -> DeployPlan:
    """Plan an engine for `model` with the options of `freehold deploy`: engine, on, nodes, replicas, context, streams,
    quant, cache_type, flags, name, python, env, command, attach.

    Raises UsageError for flags that the engine does not know or that weaken security, and for a model that does not
    fit, with one that would; ModelNotFound with the nearest names. `freehold.deploy` accepts the same options, except
    `on` for other hardware, starts the engine and returns it as a ChatModel.
    """
    check_names(options, OPTIONS)
    return planned(settings or load_settings(), DeployOptions(model, **options))


def planned(
    settings: Settings,
    options: DeployOptions,
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
    from freehold.outgrow.ray.plan import is_ray, over_ray

    if is_ray(options.on):
        return over_ray(
            _planned(settings, replace(options, on=""), start, show, here), options.on, start=start
        )
    if start and options.on:
        raise UsageError(
            f"--on {options.on} plans for hardware that may be elsewhere, and a start is on this machine",
            "leave it out, or plan alone: freehold.plan_deployment, or --dry-run",
        )
    if options.engine == "freehold" and options.on:
        raise UsageError(
            f"--on {options.on}: Freehold's own engine is planned for this machine, or over Ray",
            "leave it out, or --on ray",
        )
    return _planned(settings, options, start, show, here, shared=True)


def _planned(
    settings: Settings,
    options: DeployOptions,
    start: bool,
    show: Callable[[str], object],
    here: Nodes | None,
    *,
    shared: bool = False,
) -> DeployPlan:
    """Plan one engine. `shared`: replicas of our own share this machine and its data folder."""
    from freehold.outgrow import drivers
    from freehold.outgrow.planning import facts

    check(options)
    if options.attach:
        return _attached(options)
    model = facts.deployed(settings, options.model, name=options.name, quant=options.quant)
    if options.on:
        nodes = facts.nodes_on(options.on, options.nodes)
    elif options.engine == "freehold" and shared:
        before = here if here is not None and here.rig.device.kind == "cpu" else None
        nodes = before or facts.processor_here(settings.home)
    else:
        nodes = here or facts.nodes_here(settings.home)
    copied = ""
    if options.on and options.engine == "auto" and not options.quant:
        model, copied = _for_one_gpu(model, nodes, options.context or None)
    search = _EngineSearch(settings, options, model, nodes, start, show)
    engine, facts_of_engine, notes = search.engine()
    notes = (copied, *notes) if copied else notes
    request = PlanRequest(
        socket=None if options.on else SOCKET,
        model=model,
        nodes=nodes,
        engine=facts_of_engine,
        context=options.context,
        streams=options.streams,
        replicas=options.replicas,
        cache_type=options.cache_type,
        flags=options.flags,
    )
    if engine == "freehold" and shared:
        request = replace(request, home=settings.home, stored=_stored(settings, options.model))
    plan = drivers.driver(engine).plan(request)
    if start and not facts_of_engine.command:
        raise UsageError(
            f"{engine} is not at hand here: not on PATH, and in no environment of the data folder",
            "freehold deploy takes --python PATH, --env DIR or --command WORDS; its --dry-run needs no engine",
        )
    if start:
        _ask_its_parser(plan, facts_of_engine)
    return replace(plan, notes=(*notes, *plan.notes)) if notes else plan


def _ask_its_parser(plan: DeployPlan, facts_of_engine: EngineFacts) -> None:
    """Let the engine's own parser read the command line where ours knows the flags of another version only.

    Raises UsageError. For its own version the start itself is the first to parse, and nothing is gained.
    """
    from freehold.outgrow.process import environments

    if not facts_of_engine.checked or plan.schema == f"{plan.engine} {plan.version}":
        return
    environment = environments.read(Path(facts_of_engine.command[0]), plan.engine)
    environments.last_word(environment, plan.argv()[len(facts_of_engine.command) :])


def _stored(settings: Settings, model: str) -> str:
    """Return a model's name in the store; "" for a file or folder that is named by its path."""
    from freehold.run.store import Store
    from freehold.run.store.refs import parse_ref

    try:
        return "" if parse_ref(model).kind == "path" else Store(settings).resolve(model).name
    except ModelNotFound:
        return ""


def _attached(options: DeployOptions) -> DeployPlan:
    from freehold.outgrow import drivers
    from freehold.outgrow.engines.attach import attached_plan

    return attached_plan(
        options.attach,
        options.model,
        name=options.name,
        engine="" if options.engine == "auto" else drivers.driver(options.engine).name,
        key_env=options.attach_key_env,
        cleartext=options.attach_cleartext,
    )


def check(options: DeployOptions) -> None:
    """Raise UsageError for a value that the command line refuses too, and for options that contradict each other."""
    for field in options_of(DeployOptions).values():
        if field.field != "engine":  # drivers.py takes other spellings too, and names the nearest
            field.check(getattr(options, field.field))
    for option in ("context", "streams"):
        if not 0 <= (value := getattr(options, option)) <= _MOST:
            raise UsageError(f"{option} is {value!r}", f"give a whole number from 1 to {_MOST:,}")
    if isinstance(options.flags, str):
        raise UsageError(f"flags is the text {options.flags[:60]!r}", "give a list of flags: [...]")
    chosen = [f"--{place}" for place in ("python", "env", "command", "attach") if getattr(options, place)]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} name two places of an engine", "give one of them")
    if options.on and chosen:
        raise UsageError(f"--on plans for other hardware, and {chosen[0]} is here", "leave one of them out")
    if options.attach and options.flags:
        raise UsageError("--engine-flag: an attached engine runs already", "start it with the flag yourself")
    if options.attach and options.replicas > 1:
        raise UsageError("--replicas: an attached engine is one", "leave it out")
    if (options.attach_key_env or options.attach_cleartext) and not options.attach:
        raise UsageError("--attach-key-env and --attach-cleartext are for --attach", "add --attach URL")
    if options.nodes > 1 and not options.on:
        raise UsageError("--nodes counts boxes of --on HARDWARE", "for example --on 8xh100 --nodes 2")


@dataclass(frozen=True, slots=True)
class _EngineSearch:
    """Where the engine of a plan comes from."""

    settings: Settings
    options: DeployOptions
    model: DeployedModel
    nodes: Nodes
    start: bool
    show: Callable[[str], object]

    def engine(self) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
        """Return the engine, what was found of it, and why it was chosen."""
        from freehold.outgrow import drivers

        options = self.options
        if options.python:
            return *_of_python(Path(options.python).expanduser(), options.engine), ()
        if options.env:
            return self._environment(environment_folder(self.settings.home, options.env))
        if options.engine == "auto" and options.command:
            raise UsageError("--command needs --engine: whose flags it takes", "for example --engine vllm")
        if options.command:
            return drivers.driver(options.engine).name, EngineFacts(command=_words(options.command)), ()
        if options.engine == "freehold":
            script = Path(sys.executable).with_name("freehold")
            module = (sys.executable, "-P", "-m", "freehold.cli.main")
            return "freehold", EngineFacts(command=(str(script),) if script.exists() else module), ()
        if options.engine != "auto":
            name = drivers.driver(options.engine).name
            return name, EngineFacts() if options.on else self._at_hand(name), ()
        if options.on:
            return _fastest(self.model, self.nodes, options.context or None)
        return self._chosen()

    def _environment(self, folder: Path) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
        """Return the engine of --env; one that is missing is made before a start."""
        from freehold.outgrow import drivers
        from freehold.outgrow.process import environments

        python = environments.in_folder(folder)
        unfinished = environments.is_unfinished(folder)
        if python.exists() and not unfinished:
            return *_of_python(python, self.options.engine), ()
        driver = drivers.driver("vllm" if self.options.engine == "auto" else self.options.engine)
        if not self.start:
            what = "is not finished" if unfinished else "does not exist yet"
            return driver.name, EngineFacts(), (f"{folder} {what}: a start makes it",)
        installed = environments.make(
            folder,
            driver.name,
            cpu=self.nodes.rig.device.kind == "cpu",
            least=driver.least,
            offline=self.settings.offline,
            note=self.show,
        )
        return installed.engine, installed.facts, ()

    def _at_hand(self, name: EngineName) -> EngineFacts:
        """Return an engine that is found here; without a command where none is."""
        from freehold.outgrow.finding import named

        engine = named(self.settings.home, name)
        if engine is None:
            return EngineFacts()
        if engine.python is not None and name in ("vllm", "sglang"):
            return _of_python(engine.python, name)[1]
        # llama.cpp and Ollama are no packages of Python: they are asked when they start.
        version = _version_in(engine.python, name) if engine.python is not None else ""
        return EngineFacts(version, (str(engine.program),))

    def _chosen(self) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
        """Choose among the engines at hand here, by prediction where an accelerator is found."""
        from freehold.outgrow.finding import choose, look, place_of

        model, context = self.model, self.options.context or None
        serve = (
            f"freehold serve {shlex.quote(self.options.model)} runs it on the CPU; --engine vllm --env DIR makes "
            "an environment for vLLM; --on HARDWARE plans for other hardware"
        )
        here = look(self.settings.home, always=True)
        if here.accelerated:
            choice = choose(model.anatomy, model.files, here, place_of(self.settings), context)
            if choice.engine != "freehold":
                return choice.engine, self._at_hand(choice.engine), (choice.reason,)
            raise UsageError(f"{model.name}: {choice.reason}", choice.advice or serve)
        wanted: EngineName = "llamacpp" if model.files == "gguf" else "vllm"
        if wanted not in [e.name for e in here.engines]:
            raise UsageError(f"no engine for {model.name} is at hand here, and no GPU", serve)
        return wanted, self._at_hand(wanted), (f"{wanted} was found here; it runs on the CPU",)


def environment_folder(home: Path, env: str) -> Path:
    """Return the folder of --env. A bare name is one of the data folder, where --engine auto and doctor look."""
    return home / "environments" / env if env == Path(env).name else Path(env).expanduser().absolute()


def _words(command: str) -> tuple[str, ...]:
    """Split --command as a shell would. Raises UsageError."""
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise UsageError(f"--command {command!r}: {e}", "quote it as for a shell") from e
    if not words:
        raise UsageError("--command is empty", "give the engine's program and its first words")
    return tuple(words)


def _of_python(python: Path, wanted: str) -> tuple[EngineName, EngineFacts]:
    """Return the engine of an interpreter's environment. Raises UsageError, with the cure."""
    from freehold.outgrow.process import environments

    environment = environments.cured(environments.read(python, wanted))
    for trouble in environment.troubles:
        raise UsageError(trouble.message, trouble.cure)
    return environment.engine, environment.facts


def _version_in(python: Path, name: EngineName) -> str:
    """Return the version of a program's package; "" where its interpreter has none: it is taken as it is."""
    from freehold.outgrow.process import environments

    try:
        return environments.read(python, name).version if name in environments.PACKAGES else ""
    except UsageError:
        return ""


def _fits(model: DeployedModel, nodes: Nodes, context: int | None) -> dict[EngineName, Fit]:
    """Return by prediction what the engines that load its files give on named hardware, the usual one first."""
    from freehold.base.catalog.hardware import Rig
    from freehold.choose.advisor.fit import Fit, fit, place_on
    from freehold.outgrow.finding import ADVISED

    rig = Rig(nodes.rig.device, nodes.rig.count * nodes.count)
    fits: dict[EngineName, Fit] = {}
    for name, (known, files) in ADVISED.items():
        if (files == "gguf") == (model.files == "gguf"):
            verdict = fit(model.anatomy, place_on(rig, known), context)
            if isinstance(verdict, Fit):
                fits[name] = verdict
    return fits


def _fastest(
    model: DeployedModel, nodes: Nodes, context: int | None
) -> tuple[EngineName, EngineFacts, tuple[str, ...]]:
    """Choose by prediction among the engines that load its files and run on named hardware.

    Where none has room, the one that is usual there plans, and says what would fit.
    """
    from freehold.base.catalog.hardware import Rig
    from freehold.choose.advisor.roofline import preferred

    rig = Rig(nodes.rig.device, nodes.rig.count * nodes.count)
    fitting = _fits(model, nodes, context)
    if not fitting:
        usual: EngineName = "mlx" if rig.device.kind == "mac" else "vllm"
        return "llamacpp" if model.files == "gguf" else usual, EngineFacts(), ()
    best, *others = preferred(list(fitting), lambda name: fitting[name].decode)
    speeds = [f"about {fitting[best].decode.mid:.0f} tokens/s of one answer"]
    speeds += [f"{fitting[name].decode.mid:.0f} by {name}" for name in others]
    over = f" over all {rig.count} devices" if rig.count > 1 else ""
    how = "is the fastest by prediction"
    if best == next(iter(fitting)):
        how = "is taken: no engine is faster beyond the prediction's error"
    why = f"{best} {how} on {rig.name}: {', '.join(speeds)}{over}"
    return best, EngineFacts(), (why,)


def _for_one_gpu(model: DeployedModel, nodes: Nodes, context: int | None) -> tuple[DeployedModel, str]:
    """Return a GGUF copy where one GPU of a desktop does not hold a model's own weights, and a note; else the model."""
    from freehold.base import catalog
    from freehold.base.catalog import quants
    from freehold.outgrow.planning import facts

    rig = nodes.rig
    desktop = rig.device.kind == "gpu" and rig.device.memory_gib <= _DESKTOP_GIB
    own = model.base and model.source == model.base
    if not (desktop and own and rig.count * nodes.count == 1) or _fits(model, nodes, context):
        return model, ""
    known = catalog.model(model.base)
    copy = quants.chosen(known, facts.USUAL_GGUF)
    deployed = facts.of_catalogue(known, facts.USUAL_GGUF, copy) if copy else None
    if copy is None or deployed is None or not _fits(deployed, nodes, context):
        return model, ""
    quant = deployed.anatomy.quant
    note = f"{model.source} in {model.anatomy.quant} does not fit {rig.name}: this is {copy.repository} in {quant}"
    return replace(deployed, name=model.name), note
