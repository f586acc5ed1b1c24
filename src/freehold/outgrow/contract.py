"""What an engine beyond ours is: planned as data, started as a process, asked on its wire, watched by its counters.

    driver = drivers.driver("vllm")
    plan = driver.plan(request, facts)       # pure: no process, no network, no clock; raises UsageError
    plan.argv(), plan.shell(), printed.text(plan)   # what would be started, and why each flag
    engine = await driver.launch(plan, folder)
    engine.progress(), engine.log, await engine.ended

One file an engine implements `EngineDriver`; this folder has what they share: flags, sizes, processes, replicas. What
a server has of them is a deployment: a name, and its engines. Knows no HTTP and no server.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import quote

from freehold.base.catalog.hardware import Rig
from freehold.base.errors import EngineLost, UsageError
from freehold.choose.advisor.anatomy import Anatomy
from freehold.choose.advisor.interval import Interval

if TYPE_CHECKING:
    import asyncio

    from freehold.outgrow.engines.wire import EngineWire


# "compatible": a server that speaks OpenAI's routes and is none of the others; only attached.
EngineName = Literal["vllm", "sglang", "trtllm", "llamacpp", "ollama", "mlx", "freehold", "ray", "compatible"]


# --- what a plan is made from -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeployedTower:
    """The tower of a model that sees; its weights are among the model's parts."""

    file: str = ""  # the mmproj beside a GGUF; "": in the model's own files
    name: str = ""  # which of ours it is (models/towers); "": none of them, so no count is known
    least: int = 0  # tokens that a picture becomes, by our arithmetic and the model's own limits
    most: int = 0
    whole: bool = False  # rows of a picture see each other, so an engine computes them in one batch


@dataclass(frozen=True, slots=True)
class DeployedModel:
    """A model as an engine is given it; read from config.json or a GGUF's header, never by an engine."""

    name: str  # under which clients ask for it
    source: str  # what the engine loads: a folder, a file, or a name at the hub
    files: Literal["safetensors", "gguf"]
    anatomy: Anatomy
    family: str = ""  # whose parsers it takes; "": none is known
    heads: int = 0  # of queries; 0: not known
    kv_heads: int = 0
    head_size: int = 0
    experts: int = 0
    quantised: str = ""  # as config.json has it: fp8, awq, gptq, compressed-tensors, ...
    own_code: str = ""  # where the files name Python code to run (`auto_map`); "": nowhere
    tools: bool | None = None  # whether its chat template takes tools; None: not known
    thinks: bool | None = None  # whether it may think before it answers; None: not known
    template: bool | None = None  # whether it has a chat template at all; None: not known
    mistral: bool = False  # has Mistral's own tokenizer, tekken.json
    here: bool = True  # its files are on this machine
    blocks: int = 0  # quantised blocks along the width that a tensor group slices; 0: none, or not known
    base: str = ""  # the catalogue's id, of a model that is not here
    tower: DeployedTower | None = None  # None: it reads text alone, or its files are not here

    @property
    def sees(self) -> bool:
        """Whether it has a tower for pictures, as far as is known."""
        return any(part.role == "towers" for part in self.anatomy.parts)

    @property
    def gives_text(self) -> bool:
        """Whether it makes text, as far as is known; others make vectors of texts."""
        return self.anatomy.role in ("generator", "")


@dataclass(frozen=True, slots=True)
class Nodes:
    """Hardware of a deployment: `count` equal boxes. A Rig of kind "cpu" is this or a rented machine's processor."""

    rig: Rig
    count: int = 1
    here: bool = True  # the plan is for this machine
    free: float = 1.0  # share of each device's memory that nothing else takes now


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The engine that a plan is for, as it was found or as `--on` assumes it."""

    version: str = ""  # "": none is at hand; the newest schema is used then
    command: tuple[str, ...] = ()  # how it starts here; empty: the driver's own words
    cpu: bool = False  # a build for processors
    checked: bool = False  # its own parser can be asked before the start


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user asked for. 0 and "" are choices left to the plan."""

    model: DeployedModel
    nodes: Nodes
    engine: EngineFacts = EngineFacts()
    context: int = 0
    streams: int = 0  # requests at a time, of one replica
    replicas: int = 0  # 0: as many as the hardware holds
    cache_type: str = ""
    flags: tuple[str, ...] = ()  # of --engine-flag, "--name=value" or "--name"; they replace the plan's
    socket: Path | None = None  # where the engine listens, if it can do so on a Unix socket
    port: int = 0  # on loopback, where it can not; 0: chosen at the start
    # The data folder that replicas of our own engine share; None: they are elsewhere
    home: Path | None = None
    stored: str = ""  # the model's name there; "": it is a file of the user's


# --- what a plan is -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannedFlag:
    """One flag of a command line, and why it is there."""

    name: str  # --tensor-parallel-size
    value: str | None  # None: a switch
    reason: str

    def words(self) -> tuple[str, ...]:
        """Return it as arguments."""
        return (self.name,) if self.value is None else (self.name, self.value)


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A secret of a plan by reference: made at random for each start, or taken from `source`; never in the plan."""

    variable: str  # of the engine's environment; in a file: its key there
    source: str = "random"  # random | env:NAME | secret:NAME/KEY (a cluster's)
    file: str = ""  # of the replica's folder, YAML: SGLang reads its keys from its configuration file alone


@dataclass(frozen=True, slots=True)
class Listens:
    """Where an engine listens: a Unix socket in a folder of ours, or a port of loopback."""

    socket: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0  # 0: chosen at the start


@dataclass(frozen=True, slots=True)
class ParallelSizes:
    """How a model is spread over devices."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What an engine is given, and what it then takes. `why`: a reason by field's name."""

    sizes: ParallelSizes = ParallelSizes()
    replicas: int
    across: int = 1  # nodes of one replica
    context: int
    streams: int
    memory_share: float = 0.0  # of a device; 0: none is set (processors)
    cache_bytes: int  # of keys and values, on each device
    cache_type: str = ""  # fp8; "": as the model
    cache_tokens: int = 0  # that a replica's cache holds; 0: not counted
    quantise: str = ""  # fp8: the engine rounds while it loads; "": nothing
    memory_bytes: int  # of one replica, on all its devices
    decode: Interval | None = None
    prefill: Interval | None = None
    basis: str = ""
    why: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""  # why it serves hardly anyone
    notes: tuple[str, ...] = ()

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on processors."""
        return not self.memory_share


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployPlan:
    """An engine's start as data. It holds no secret: print it, keep it, send it."""

    engine: EngineName
    version: str  # of the engine it is for; "" where none is at hand
    schema: str = ""  # the flag schema it was checked against: "vllm 0.32.0"
    model: DeployedModel
    nodes: Nodes
    command: tuple[str, ...] = ()  # the program, before its flags
    flags: tuple[PlannedFlag, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRef, ...] = ()
    listens: Listens = Listens()
    sizes: ParallelSizes = ParallelSizes()
    context: int
    streams: int  # at a time, of one replica
    replicas: int = 1
    memory_bytes: int = 0  # expected of one replica, on all its devices; 0: not predicted
    cache_bytes: int = 0  # of keys and values, on each device; 0: not planned
    cache_tokens: int = 0  # of a replica's cache, in conversations of the usual length; 0: not planned
    cache_type: str = ""  # of it; "": as the model
    quantise: str = ""  # what the engine rounds weights of 16 bits to while it loads; "": nothing
    decode: Interval | None = None  # tokens a second of one answer
    prefill: Interval | None = None
    basis: str = ""  # what memory and speeds rest on
    warning: str = ""  # why the plan serves hardly anyone; "": it serves
    notes: tuple[str, ...] = ()  # what the user should know: nearest schema used, a parser that was guessed
    across: int = 1  # nodes that one replica takes
    follower: tuple[PlannedFlag, ...] = ()  # flags that every node but the first has besides
    inner: DeployPlan | None = None  # of "ray": what each replica of its app starts
    attached: str = ""  # URL of an engine of another owner; nothing of its life is ours then
    served: str = ""  # what the engine itself calls the model, where that is not among its flags
    links: Mapping[str, str] = field(default_factory=dict)  # in the replica's folder -> to what they lead
    shared_bytes: int = 0  # of memory_bytes: what all replicas have once, such as weights that they map
    places: tuple[str, ...] = ()  # processors of each replica, as Linux lists them: "0-15,32-47"; (): any

    @staticmethod
    def of(request: PlanRequest, layout: Layout, **own: Any) -> DeployPlan:
        """Return the plan of a request in a layout. `own`: its other fields, and what differs from the layout."""
        common: dict[str, Any] = {name: getattr(layout, name) for name in _OF_LAYOUT}
        common |= {"model": request.model, "nodes": request.nodes, "version": request.engine.version}
        return DeployPlan(**{**common, **own})

    def argv(
        self,
        rank: int | str = 0,
        head: str = "127.0.0.1",
        *,
        folder: str = "{folder}",
        port: int | str = "{port}",
    ) -> tuple[str, ...]:
        """Return the argument vector of a node of a replica.

        `rank` and `head`, the first node's address, fill {rank} and {head} where a replica takes several nodes;
        a cluster's own variables may stand for them. `folder` of the replica and `port`, chosen at the start, fill
        {folder} and {port} where the plan leaves them open.
        """
        flags = self.flags if rank == 0 else (*self.flags, *self.follower)
        places = {"{rank}": str(rank), "{head}": head, "{folder}": folder, "{port}": str(port)}
        return (*self.command, *(fill(word, places) for flag in flags for word in flag.words()))

    @property
    def sees(self) -> bool:
        """Whether its engine has a tower: MLX's server reads text alone, llama.cpp what --mmproj names or fetches."""
        if self.engine == "llamacpp":
            return any(flag.name in _MMPROJ for flag in self.flags)
        return self.engine != "mlx" and self.model.sees

    @property
    def called(self) -> str:
        """What the engine itself calls the model; of an app of Ray Serve, its replicas'."""
        plan = self.inner or self
        names = (flag.value for flag in plan.flags if flag.name in _NAMES and flag.value)
        return plan.served or next(names, plan.model.name)

    @property
    def total_bytes(self) -> int:
        """Memory expected of all replicas together."""
        return self.shared_bytes + self.replicas * (self.memory_bytes - self.shared_bytes)

    def of_replica(self, number: int) -> DeployPlan:
        """Return the plan of one of several replicas on this machine: it sees its own devices, if there are enough.

        On processors it runs on its own, where the plan gives each some.
        """
        if self.places:
            return replace(self, places=(self.places[number % len(self.places)],))
        rig, each = self.nodes.rig, self.sizes.devices
        variable = _VISIBLE.get(rig.device.vendor) if rig.device.kind == "gpu" else None
        if variable is None or not self.nodes.here or self.replicas == 1 or self.replicas * each > rig.count:
            return self
        seen = ",".join(map(str, range(number * each, (number + 1) * each)))
        return replace(self, environment={**self.environment, variable: seen})

    def room_beside(self, other: DeployPlan) -> bool:
        """Return whether a new engine of `other` finds room while this plan's engines run; True if that is not known.

        On GPUs it takes the devices of the one that it replaces, on a processor what all of them leave.
        """
        rig = self.nodes.rig
        if rig.device.kind == "gpu":
            devices = max(self.sizes.devices, other.sizes.devices)
            room = self.nodes.free * devices * rig.device.memory_bytes
            return self.memory_bytes + other.memory_bytes <= room
        again = min(self.shared_bytes, other.shared_bytes) if self.model.source == other.model.source else 0
        return self.total_bytes + other.memory_bytes - again <= rig.memory_bytes

    def shell(self, rank: int = 0) -> str:
        """Return a node's line for a shell in a folder of its own: secrets are variables, HEAD is node 0's address."""
        here = {"{folder}": ".", "{port}": "8000"}
        held = [f"{name}={shlex.quote(fill(value, here))}" for name, value in self.environment.items()]
        keys = [f"{s.variable}=${s.variable}" for s in self.secrets if not s.file]
        words = self.argv(rank, "HEAD", folder=here["{folder}"], port=here["{port}"])
        return " ".join([*held, *keys, *map(shlex.quote, words)])


# All of a layout but what its driver words itself.
_OF_LAYOUT = [each.name for each in fields(Layout) if each.name not in ("memory_share", "why")]
# Flags that name the model for clients, and so for us.
_NAMES = ("--served-model-name", "--served_model_name", "--alias")
_MMPROJ = ("--mmproj", "-mm", "--mmproj-auto")
_VISIBLE = {"NVIDIA": "CUDA_VISIBLE_DEVICES", "AMD": "HIP_VISIBLE_DEVICES"}


def fill(word: str, places: Mapping[str, str]) -> str:
    """Return a word with values in its places, such as {folder}."""
    for name, value in places.items():
        word = word.replace(name, value)
    return word


# --- what runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartProgress:
    """How far a start is, from the process alone: no port is open yet."""

    phase: str  # in words, from its log: "loading weights", "compiling", "starting"
    cpu_s: float  # of all its processes together
    memory_bytes: int
    lines: int  # of its log so far
    since_s: float  # since any of these changed: how long a start made no progress


@dataclass(frozen=True, slots=True)
class EngineDeath:
    """The end of an engine that was not asked for."""

    sentence: str  # one line: what ended, how, and the cause found in its log
    cause: str = ""  # the name of a known one; "": none was found
    status: int | None = None
    fatal: bool = False  # another start would end the same way: a missing file, a wrong flag


@dataclass(frozen=True, slots=True)
class EngineNumbers:
    """An engine's counters as its metrics tell them. Counters only grow; None: it does not tell."""

    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int | None = None
    steps: int | None = None  # forward passes: moves also where tokens are only counted at an answer's end
    cache_usage: float | None = None  # of its KV cache, 0 to 1
    series: Mapping[str, float] = field(default_factory=dict)  # other series, by name, for our page


class LaunchedEngine(Protocol):
    """A process of ours that is an engine, with all its children; or an engine of another owner (attached)."""

    plan: DeployPlan
    ended: asyncio.Future[EngineDeath | None]  # None: it ended because `stop` was asked

    @property
    def pid(self) -> int: ...  # 0: not ours
    @property
    def url(self) -> str: ...  # of its API, as a Provider has it: http://engine/v1 on a socket
    @property
    def socket(self) -> Path | None: ...
    @property
    def key(self) -> str: ...  # "" for none; never logged
    @property
    def log(self) -> Sequence[str]: ...  # the newest lines, bounded
    def progress(self) -> StartProgress: ...
    async def stop(self, drain_s: float) -> None:
        """Let its answers end for up to `drain_s`, then end every process and remove what it left in shared memory."""
        ...

    def kill(self, why: str) -> None:
        """End every process at once; `ended` says why."""
        ...


class EngineDriver(Protocol):
    """One engine."""

    name: EngineName
    title: str
    package: str  # that pip installs; "": none
    least: str  # the oldest version that is driven: below it are holes that a gateway cannot close
    metrics_path: str  # "" : it has none
    drains: bool  # ends its answers when it is asked to end
    busy_waits: bool  # its processes use a processor while they wait too, or nothing is known of it

    @property
    def wire(self) -> EngineWire: ...  # how jobs are said to it

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Plan. Raises UsageError: unknown and dangerous flags, a misfit with what would fit."""
        ...

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Start it. `folder`: 0700, of this replica. Raises UsageError, EngineLost."""
        ...

    def phase(self, line: str) -> str:
        """Return what a line of its log tells of the start; "" for nothing."""
        ...

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Read its metrics. `before`: what the last reading gave; trtllm-serve tells only what is new since then.

        Raises ValueError for a body that is not this engine's.
        """
        ...


# --- what runs of the deployments: a row for each name and each of its engines, and what may be done with them --------

ReplicaState = Literal["starting", "probing", "ready", "draining", "waiting", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One engine of a deployment, as `deploy status` shows it."""

    number: int  # from 0; it stays the same when the engine is started again
    state: ReplicaState  # waiting: until its next start, after a death; failed: it is not started again
    version: str
    pid: int = 0
    phase: str = ""  # of a start: "loading weights"
    since_s: float = 0.0  # in this state
    in_flight: int = 0
    restarts: int = 0  # starts after a death
    said: str = ""  # the latest death, in one sentence
    memory_bytes: int = 0
    numbers: EngineNumbers = field(default_factory=EngineNumbers)
    cpu_s: float = 0.0  # of all its processes together
    load_s: float = 0.0  # that its latest start took until the first token; 0: none came yet


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """A name and the engines that answer it."""

    name: str
    plan: DeployPlan
    replicas: tuple[ReplicaRow, ...]
    ready: bool  # at least one replica answers
    rolling: str = ""  # "restart" or "upgrade" while one runs
    requests: int = 0
    resumed: int = 0  # answers that another replica continued
    retried: int = 0  # requests asked again before their first token
    cut: int = 0  # answers that ended with an error after their first token
    fallback: str = ""  # the model of ours that answers while no replica is ready
    gap_s: float = 0.0  # that no replica was ready in its latest roll

    def answers(self, *, first: bool = False) -> bool:
        """Return whether a replica answers. `first`: at a first start one death of each replica is enough.

        Raises EngineLost with the cause where none will answer any more.
        """
        lost = [each.state == "failed" or (first and bool(each.said)) for each in self.replicas]
        if not self.ready and lost and all(lost):
            death = next((each.said for each in self.replicas if each.said), "no replica could be started")
            raise EngineLost(f"{self.name}: {death}", "freehold deploy MODEL --dry-run shows the command")
        return self.ready


class Deployments(Protocol):
    """The deployments of a server. Its models (serving.ModelManager) have them too; both are one object.

    Names are looked up as they are; ModelNotFound for one that is not deployed.
    """

    def rows(self) -> Sequence[DeploymentRow]: ...
    async def add(self, plan: DeployPlan, *, fallback: str = "") -> DeploymentRow:
        """Begin to start the plan's replicas and return at once; `rows` tells how far they are.

        Raises UsageError where a deployment or a local model has the name.
        """
        ...

    async def restart(self, name: str, *, drain_first: bool = False) -> None:
        """Replace every replica, one after the other, each by one that has answered a token. No answer is cut.

        `drain_first`: the old engine ends before the new one starts, as it does where both have no room.
        Raises EngineLost where a new one does not become ready: the old ones stay.
        """
        ...

    async def upgrade(
        self, name: str, plan: DeployPlan, *, fallback: str = "", drain_first: bool = False
    ) -> None:
        """Do the same with another plan: other flags, another version, more or fewer replicas; then with `fallback`."""
        ...

    async def stop(self, name: str, drain_s: float) -> None:
        """Let answers end for up to `drain_s`, then end its engines; the name is then unknown."""
        ...

    def log(self, name: str, replica: int) -> Sequence[str]:
        """Return the newest lines of a replica's engine, bounded."""
        ...


# --- what a deployment may be called: one line that can be read, of a length that a file of its name can have ---------
# Names come from folders and from engines that run already, which others made. They are written into command
# lines, comments of files for clusters, labels of metrics and terminals.

MOST_NAME = 128  # characters
_MOST_QUOTED = 200  # bytes of it in the name of a file, which has 255 with the text around it


def named(name: str) -> str:
    """Return the name. Raises UsageError for one that another program would read as something else."""
    if not 0 < len(name) <= MOST_NAME or len(quote(name, safe="+:@ ", errors="replace")) > _MOST_QUOTED:
        wrong = f"has {len(name)} characters, and 1 to {MOST_NAME} are taken"
    elif not name.isprintable() or name != name.strip():
        wrong = "has characters that do not print"
    elif name.startswith("-"):
        wrong = "begins with a dash, as an option does"
    elif set(name) & set("$`"):
        wrong = "has characters that a shell fills in"
    else:
        return name
    raise UsageError(f"the name {name[:60]!r} {wrong}", "give another with --name NAME", field="name")
