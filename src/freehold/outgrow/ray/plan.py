"""Plans an engine as a Ray Serve app, and drives that app as one engine.

    inner = driver("vllm").plan(replace(request, socket=Path("{folder}/s.sock")))
    plan = over(inner, EngineFacts("2.60.0", ("/…/python",)), fenced=can_fence())
    app_text(inner)                                     # the app's one file
    engine = await RayDriver(drivers.driver("vllm")).launch(plan, folder)

The wrapped plan is one replica of our deployment: our server sees one engine, behind one Unix socket. Its cluster is
one process tree of ours: process.py starts the head, as it starts any engine. It speaks as the engine of its replicas
does, with a header by which Serve keeps a prompt's beginning on one replica. A plan is pure: no process, no network, no
clock.
"""

from __future__ import annotations

import ipaddress
import pprint
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from freehold.base import private
from freehold.base.errors import UsageError
from freehold.base.serving import Job
from freehold.outgrow.contract import (
    DeployPlan,
    EngineDriver,
    EngineFacts,
    EngineName,
    EngineNumbers,
    LaunchedEngine,
    Listens,
    PlannedFlag,
    PlanRequest,
    SecretRef,
    fill,
)
from freehold.outgrow.engines import StartedEngine
from freehold.outgrow.flags import number
from freehold.outgrow.replicas.affinity import prefix_key
from freehold.route.providers.contract import Outgoing, RemoteModel

if TYPE_CHECKING:
    from freehold.outgrow.engines.wire import EngineWire

# --- Ray's doors: the ports of a cluster, each with a number of ours, and what keeps others from them -------------
# On one machine a cluster stays on loopback: in a network namespace of its own, outside which nothing listens, or,
# where the system allows none, by Ray's own switch, which leaves one port of each replica on all interfaces. A cluster
# of several machines has to be reached by its members: then `firewall` is the rule.

BASE = 26300
WORKERS = 200  # ports: one for each process of Ray's; beyond them it starts no more
# Serve's replicas open one more port each, for calls between apps, at a number that the kernel chooses; it takes no
# option. Linux's net.ipv4.ip_local_port_range, unless it was changed.
CHOSEN_BY_KERNEL = (32768, 60999)
_FLAGS = (
    ("--port", 0, "the cluster's state (GCS)"),
    ("--object-manager-port", 1, "objects between machines"),
    ("--node-manager-port", 2, "the raylet"),
    ("--dashboard-port", 3, "dashboard and jobs"),
    ("--dashboard-agent-listen-port", 4, "the dashboard's agent"),
    ("--dashboard-agent-grpc-port", 5, "the dashboard's agent, by gRPC"),
    ("--runtime-env-agent-port", 6, "environments of jobs"),
    ("--metrics-export-port", 7, "Ray's metrics"),
    ("--ray-client-server-port", 8, "drivers outside the cluster"),
)
_VARIABLES = (("AUTOSCALER_METRIC_PORT", 9), ("DASHBOARD_METRIC_PORT", 10))
INGRESS = 11  # after BASE
_FIRST_WORKER = 20


def named_ports(base: int = BASE) -> dict[str, int]:
    """Return every port that has a number of ours, by what names it; the workers' range is beside it."""
    named = {flag: base + at for flag, at, _ in _FLAGS} | {name: base + at for name, at in _VARIABLES}
    return named | {"ingress": base + INGRESS}


def worker_ports(base: int = BASE) -> tuple[int, int]:
    """Return the first and the last port of Ray's workers."""
    return base + _FIRST_WORKER, base + _FIRST_WORKER + WORKERS - 1


def start_flags(base: int = BASE, *, cpus: float, gpus: float, folder: str) -> tuple[PlannedFlag, ...]:
    """Return the flags of `ray start` for the head of a cluster on this machine alone."""
    first, last = worker_ports(base)
    return (
        PlannedFlag(
            "--node-ip-address", "127.0.0.1", "loopback; Ray keeps it only if it finds no other network"
        ),
        *(PlannedFlag(flag, str(base + at), f"named: {what}") for flag, at, what in _FLAGS),
        PlannedFlag("--min-worker-port", str(first), "named: Ray's own processes"),
        PlannedFlag("--max-worker-port", str(last), f"{WORKERS} of them"),
        PlannedFlag("--dashboard-host", "127.0.0.1", "the dashboard can start jobs"),
        PlannedFlag("--num-cpus", f"{cpus:g}", "what the replicas ask for; Ray's own actors ask for none"),
        PlannedFlag("--num-gpus", f"{gpus:g}", "as many as the replicas ask for"),
        PlannedFlag(
            "--object-store-memory", str(128 << 20), "requests are small; the default is 30 % of memory"
        ),
        PlannedFlag("--disable-usage-stats", None, "nothing is reported"),
        PlannedFlag("--temp-dir", folder, "logs and sockets, in a private folder"),
    )


def environment(base: int = BASE, *, alone: bool = True) -> dict[str, str]:
    """Return the variables of every Ray process. `alone`: a cluster on this machine and no other."""
    held = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else engines run at +15 and starve beside anything
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # the app has drained by then
        **{name: str(base + at) for name, at in _VARIABLES},
    }
    if alone:
        # What macOS and Windows do by default: this node's address is loopback's, and Ray binds that.
        held["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return held


def free_base() -> int:
    """Return the first base whose named ports are all free on loopback just now. Raises UsageError."""
    for base in range(BASE, BASE + 10 * (_FIRST_WORKER + WORKERS), _FIRST_WORKER + WORKERS):
        if all(map(_is_free, named_ports(base).values())):
            return base
    raise UsageError(f"ports from {BASE} on are taken: ten clusters run here", "stop one of them")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@cache
def can_fence() -> bool:
    """Return whether this user may make a network namespace: not every distribution allows it, and macOS has none."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*FENCE, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    return tried.returncode == 0


# A user namespace, so that no right of root is needed; a network namespace, whose loopback is its only interface.
FENCE = ("unshare", "--user", "--map-root-user", "--net", "--")


def firewall(members: Iterable[str], base: int = BASE) -> str:
    """Return nftables' rules for each machine of a cluster: its ports are open to `members` alone.

    `members`: addresses or networks of the cluster's machines and of the one where our server runs.
    """
    four, six = [], []
    for member in members:
        try:
            network = ipaddress.ip_network(member, strict=False)
        except ValueError:
            what = f"{member!r} is not the address of a machine"
            raise UsageError(what, "10.0.0.7, or 10.0.0.0/24") from None
        (four if network.version == 4 else six).append(str(network))
    first, last = worker_ports(base)
    table = "table inet freehold_ray"
    lines = [f"# nft -f FILE on each machine of the cluster; nft delete {table} takes it back"]
    lines += [f"add {table}", f"delete {table}", f"{table} {{"]
    for version, addresses in (("4", four), ("6", six)):
        elements = f"elements = {{ {', '.join(addresses)} }}" if addresses else ""
        lines.append(f"  set members{version} {{ type ipv{version}_addr; flags interval; {elements} }}")
    lines += ["  chain input {", "    type filter hook input priority filter; policy accept;"]
    lines += ['    iif "lo" accept', "    ct state established,related accept"]
    lines += ["    ip saddr @members4 accept", "    ip6 saddr @members6 accept"]
    for name, port in named_ports(base).items():
        lines.append(f'    tcp dport {port} drop comment "{name}"')
    lines.append(f'    tcp dport {first}-{last} drop comment "Ray\'s workers"')
    kernel = "-".join(map(str, CHOSEN_BY_KERNEL))
    lines.append(f'    tcp dport {kernel} drop comment "replicas, at ports that the kernel chooses"')
    return "\n".join([*lines, "  }", "}", ""])


# --- the plan of an app ---------------------------------------------------------------------------------

LEAST = "2.54.0"  # CVE-2026-27482: DELETE is open before
INGRESS_KEY, MOST = "FREEHOLD_INGRESS_KEY", "FREEHOLD_MOST_REPLICAS"
RAY_FOLDER = "{folder}/ray"  # logs and sockets of Ray
_DOOR = Path("{folder}/ray.sock")
_UNDER_RAY = ("vllm", "sglang", "llamacpp", "freehold")
_HEAD = Path(str(files("freehold.outgrow.ray") / "head.py"))


def settings_of(inner: DeployPlan, *, base: int = BASE, elsewhere: bool = False) -> dict[str, Any]:
    """Return the settings of the app's file. `elsewhere`: the cluster is not this machine.

    Raises UsageError for an engine that cannot be a replica.
    """
    if inner.engine not in _UNDER_RAY:
        raise UsageError(
            f"{inner.engine} does not run as a replica of Ray Serve", f"one of {', '.join(_UNDER_RAY)}"
        )
    on_gpu = inner.nodes.rig.device.kind != "cpu"
    return {
        "name": app_name(inner.model.name),
        "model": inner.called,
        "vectors": not inner.model.gives_text,
        "argv": list(inner.argv()),
        "environment": dict(inner.environment),
        "links": dict(inner.links),
        "keys": [(secret.variable, secret.file) for secret in inner.secrets],
        "socket": str(inner.listens.socket or ""),
        "replicas": inner.replicas,
        "most_replicas": inner.replicas,
        "streams": inner.streams or 8,
        "cpus": 1.0,
        "gpus": float(inner.sizes.devices) if on_gpu else 0.0,
        "per_machine": 1 if elsewhere and not on_gpu else 0,
        "ingress_host": "0.0.0.0" if elsewhere else "127.0.0.1",
        "ingress_port": named_ports(base)["ingress"],
        "proxies": "HeadOnly",
    }


def app_text(inner: DeployPlan, **how: Any) -> str:
    """Return the app's file: app.py with this plan's settings. `how`: as settings_of has it."""
    text = files("freehold.outgrow.ray").joinpath("app.py").read_text(encoding="utf-8")
    before, start, rest = text.partition("SETTINGS: ")
    defaults, _, after = rest.partition("\n}\n")
    own = pprint.pformat(settings_of(inner, **how), indent=4, width=100, sort_dicts=False)
    return f"{before}{start}{defaults}\n}}\nSETTINGS |= {own}\n{after}"


def moved(plan: DeployPlan, base: int) -> DeployPlan:
    """Return the plan of a local cluster with other ports: a roll has two clusters for a while."""
    assert plan.inner is not None
    ray = EngineFacts(plan.version, plan.command[:-2])
    ray_plan = over(plan.inner, ray, base=base, most=int(plan.environment[MOST]))
    return replace(plan, flags=ray_plan.flags, environment=ray_plan.environment)


def app_name(model: str) -> str:
    """Return an app's name for a model's: letters, digits and dashes."""
    return "freehold-" + re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def over(
    inner: DeployPlan,
    ray: EngineFacts,
    *,
    address: str = "",
    fenced: bool = False,
    base: int = BASE,
    most: int = 0,
) -> DeployPlan:
    """Return the plan of a Ray Serve app whose replicas are `inner`; it starts a cluster, or uses the one at `address`.

    `ray`: its version and the Python that has it. `fenced`: in a network namespace of its own. `most`: replicas that
    the queue may ask for.
    """
    if ray.version and number(ray.version) < number(LEAST):
        raise UsageError(
            f"Ray {ray.version} is older than {LEAST}, whose dashboard others can delete from",
            'pip install "ray[serve]"',
        )
    if address and not _is_cluster(address):
        raise UsageError(f"{address!r} is not the address of a Ray cluster", "ray://HOST:10001")
    python, token = ray.command or ("python3",), "env:RAY_AUTH_TOKEN" if address else "random"
    return DeployPlan(
        engine="ray",
        version=ray.version,
        schema="ray start 2.60.0",
        model=inner.model,
        nodes=replace(inner.nodes, here=not address),
        command=(*(FENCE if fenced and not address else ()), *python, "-u", str(_HEAD)),
        flags=_flags(inner, address, fenced, base, max(most, inner.replicas)),
        environment={**environment(base, alone=not address), MOST: str(max(most, inner.replicas))},
        secrets=(SecretRef(INGRESS_KEY), SecretRef("RAY_AUTH_TOKEN", token)),
        listens=Listens(socket=_DOOR),
        sizes=inner.sizes,
        context=inner.context,
        streams=inner.streams * inner.replicas,
        memory_bytes=inner.memory_bytes * inner.replicas,
        decode=inner.decode,
        prefill=inner.prefill,
        basis=inner.basis,
        warning=inner.warning,
        notes=(
            *inner.notes,
            f"each of {inner.replicas} replicas starts {shlex.join(inner.argv())}",
            _doors_note(address, fenced),
        ),
        inner=inner,
    )


def _flags(
    inner: DeployPlan, address: str, fenced: bool, base: int, machines: int
) -> tuple[PlannedFlag, ...]:
    """Return the head's flags. `machines`: replicas at most, for which Ray gets processors and devices.

    Raises UsageError for an engine that cannot be a replica.
    """
    gpus, ports = settings_of(inner)["gpus"], named_ports(base)
    flags = [
        PlannedFlag("--socket", str(_DOOR), "the only way in, in a private folder"),
        PlannedFlag("--ingress-port", str(ports["ingress"]), "named; Serve's token does not cover it"),
    ]
    if address:
        return (*flags, PlannedFlag("--address", address, "a cluster that runs"))
    flags.append(PlannedFlag("--gcs-port", str(ports["--port"]), "open: Ray has started"))
    if fenced:
        flags.append(PlannedFlag("--fenced", None, "nothing listens outside its network namespace"))
    started = start_flags(base, cpus=float(machines), gpus=gpus * machines, folder=RAY_FOLDER)
    return (*flags, PlannedFlag("--", None, "for ray start"), *started)


def _is_cluster(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme == "ray" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def text_for(plan: DeployPlan) -> str:
    """Return the app's file of a plan that `over` made."""
    assert plan.inner is not None
    flags = {flag.name: flag.value or "" for flag in plan.flags}
    base = int(flags["--ingress-port"]) - INGRESS
    return app_text(plan.inner, base=base, elsewhere="--address" in flags)


def _doors_note(address: str, fenced: bool) -> str:
    if address:
        return (
            "Ray's ports are open to every machine that reaches this cluster's: all but Serve's ingress want Ray's "
            "token, and that one our key; freehold deploy --emit ray --member ADDRESS writes the firewall's rules"
        )
    if fenced:
        return "Ray runs in its own network namespace: none of its ports is reachable from outside"
    first, last = CHOSEN_BY_KERNEL
    return (
        "this system allows no network namespace: RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 holds Ray to loopback, all but "
        f"one port of each replica (of {first}-{last}), which wants Ray's token; a firewall closes it"
    )


# --- what `--on ray` means: whose Ray, which cluster, and the plan around the engine's --------------
#     --on ray                      a cluster on this machine, by the `ray` on PATH
#     --on ray:/env/bin/python      the same, by this environment's
#     --on ray://HOST:10001         an app on a cluster that runs; RAY_AUTH_TOKEN has its token
# Finds programs and reads their metadata; starts nothing.


def is_ray(on: str) -> bool:
    """Return whether --on names Ray and no hardware."""
    return on == "ray" or on.startswith("ray:")


def over_ray(inner: DeployPlan, on: str, *, start: bool = True) -> DeployPlan:
    """Return the plan of an app whose replicas are `inner`. `start`: no Ray at hand is a UsageError."""
    address = on if on.startswith("ray://") else ""
    named = "" if address else on.removeprefix("ray").removeprefix(":")
    if not (start or named or shutil.which("ray")):
        facts = EngineFacts()
    else:
        facts = _facts(Path(named).expanduser() if named else _on_path())
    return over(inner, facts, address=address, fenced=not address and can_fence())


def _on_path() -> Path:
    """Return the Python beside the program `ray`, through links to it."""
    program = shutil.which("ray")
    if program is None:
        raise UsageError(
            "no Ray is on PATH", 'pip install "ray[serve]" in an environment, then --on ray:/THAT/bin/python'
        )
    return Path(program).resolve().with_name("python")


def _facts(python: Path) -> EngineFacts:
    """Return an environment's Ray by its metadata. `ray[llm]` is not needed: engines are processes of their own."""
    for root in (python.parent.parent, python.resolve().parent.parent):
        for folder in root.glob("lib/python3*/site-packages/ray-*.dist-info"):
            return EngineFacts(folder.name.removesuffix(".dist-info").removeprefix("ray-"), (str(python),))
    raise UsageError(f"{python} has no Ray next to it", 'pip install "ray[serve]" there')


# --- the driver ------------------------------------------------------------------------------------

SESSION = "x-session-id"  # Ray's RAY_SERVE_SESSION_ID_HEADER_KEY
# Bytes of Ray's own sockets below its folder: /session_2026-11-28_04-45-03_452626_30086/sockets/plasma_store
_SOCKET_BYTES = 64
_PHASES = (
    ("^head: starting Ray", "starting Ray"),
    ("^head: starting replicas", "starting replicas"),
    ("^head: the app is ready", "asking for a token"),
    ("^head: draining", "draining"),
)
_REPLICA = re.compile(r'\{replica="([^"]*)",?')


class RayDriver(StartedEngine):
    """Implements contract.EngineDriver, around the driver of what its replicas are."""

    phases = _PHASES
    name: EngineName = "ray"
    title = "Ray Serve"
    package = "ray[serve]"
    least = LEAST
    drains = True

    def __init__(self, inner: EngineDriver) -> None:
        self.inner = inner
        self.metrics_path = "/metrics" if inner.metrics_path else ""
        self.wire = cast("EngineWire", SessionWire(inner.wire))  # the rest is the inner wire's own

    def plan(self, request: PlanRequest) -> DeployPlan:
        """Refuse: an app is planned around its replica's plan (plan.over)."""
        raise UsageError("Ray Serve computes nothing by itself", "--engine names what its replicas are")

    async def launch(self, plan: DeployPlan, folder: Path) -> LaunchedEngine:
        """Write the app's file and start the head. Raises UsageError, EngineLost."""
        if not {"--fenced", "--address"} & {flag.name for flag in plan.flags}:
            plan = moved(plan, free_base())
        (folder / "app.py").unlink(missing_ok=True)
        with open(folder / "app.py", "w", encoding="utf-8", opener=private.opener) as file:
            file.write(text_for(plan))
        short = _short_enough(folder)
        at = {"{folder}": str(short)}
        flags = (
            replace(f, value=fill(f.value or "", at)) if f.name == "--temp-dir" else f for f in plan.flags
        )
        try:
            engine = await super().launch(replace(plan, flags=tuple(flags)), folder)
        except BaseException:
            _removed(short, folder)
            raise
        engine.ended.add_done_callback(lambda _: _removed(short, folder))
        return engine

    def numbers(self, body: bytes, before: EngineNumbers | None = None) -> EngineNumbers:
        """Add up what all replicas tell; their series have a label `ray_replica`. `before` is not needed."""
        numbers = EngineNumbers()
        for replica, text in _by_replica(body.decode(errors="replace")).items():
            numbers = _sum(numbers, self.inner.numbers(text.encode()), replica)
        return numbers


class SessionWire:
    """An engine's wire whose requests name a session: the beginning of their prompt."""

    def __init__(self, wire: EngineWire) -> None:
        self._wire = wire

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        """Translate a job. Prompts too short for a cache have no session, and go to any replica."""
        sent = self._wire.request(model, job, stream=stream)
        key = prefix_key(job)
        if key is None:
            return sent
        return replace(sent, headers={**sent.headers, SESSION: f"{key:016x}"})


def _short_enough(folder: Path) -> Path:
    """Return where Ray's own folder is made: elsewhere where its sockets' paths would be too long in `folder`."""
    from freehold.base.platforms import SOCKET_PATH_BYTES

    if len(str(folder)) + len("/ray") + _SOCKET_BYTES <= SOCKET_PATH_BYTES:
        return folder
    return Path(tempfile.mkdtemp(prefix="fhr-"))


def _removed(short: Path, folder: Path) -> None:
    if short != folder:
        shutil.rmtree(short, ignore_errors=True)


def _by_replica(text: str) -> dict[str, str]:
    """Return each replica's lines as its engine gave them."""
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _REPLICA.search(line):
            plain = line[: match.start()] + "{" + line[match.end() :]
            lines.setdefault(match[1], []).append(plain.replace("{}", "", 1))
    return {replica: "\n".join([*each, ""]) for replica, each in lines.items()}


def _sum(a: EngineNumbers, b: EngineNumbers, replica: str) -> EngineNumbers:
    cached = [n for n in (a.cached_tokens, b.cached_tokens) if n is not None]
    labelled = {}
    for series, n in b.series.items():
        name, _, labels = series.partition("{")
        labelled[f'{name}{{ray_replica="{replica}"' + (f",{labels}" if labels else "}")] = n
    usages = [usage for usage in (a.cache_usage, b.cache_usage) if usage is not None]
    return EngineNumbers(
        running=a.running + b.running,
        waiting=a.waiting + b.waiting,
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        generated_tokens=a.generated_tokens + b.generated_tokens,
        cached_tokens=sum(cached) if cached else None,
        cache_usage=max(usages, default=None),  # the fullest decides
        series={**a.series, **labelled},
    )
