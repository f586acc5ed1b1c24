"""Plans an engine as a Ray Serve app: the plan of one replica, wrapped in that of a cluster or of an app on one.

    inner = driver("vllm").plan(replace(request, socket=Path("{folder}/s.sock")))
    over(inner, EngineFacts("2.60.0", ("/…/python",)), fenced=can_fence())
    app_text(inner)                                     # the app's one file

The wrapped plan is one replica of our deployment: our server sees one engine, behind one Unix socket. Pure, as every
plan: no process, no network, no clock.
Path: cli/deploy -> over -> DeployPlan -> RayDriver.launch -> app_text
"""

from __future__ import annotations

import ast
import pprint
import re
import shlex
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from freehold.backends.contract import DeployPlan, EngineFacts, Listens, PlannedFlag, SecretRef
from freehold.backends.flags.schema import number
from freehold.backends.ray import doors
from freehold.errors import UsageError

LEAST = "2.54.0"  # CVE-2026-27482: DELETE is open before
INGRESS_KEY, MOST = "FREEHOLD_INGRESS_KEY", "FREEHOLD_MOST_REPLICAS"
RAY_FOLDER = "{folder}/ray"  # logs and sockets of Ray
_DOOR = Path("{folder}/ray.sock")
_UNDER_RAY = ("vllm", "sglang", "llamacpp", "freehold")
_AFTER_DOCSTRING = '"""\n\nfrom __future__ import annotations\n\n'
_HEAD = Path(str(files("freehold.backends.ray") / "head.py"))


def settings_of(inner: DeployPlan, *, base: int = doors.BASE, elsewhere: bool = False) -> dict[str, Any]:
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
        "model": called(inner),
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
        "ingress_port": doors.named_ports(base)["ingress"],
        "proxies": "HeadOnly",
    }


def app_text(inner: DeployPlan, **how: Any) -> str:
    """Return the app's file: child.py, then app.py with this plan's settings. `how`: as settings_of has it."""
    room = files("freehold.backends.ray")
    docstring, _, app = room.joinpath("app.py").read_text(encoding="utf-8").partition(_AFTER_DOCSTRING)
    child = room.joinpath("child.py").read_text(encoding="utf-8").partition(_AFTER_DOCSTRING)[2]
    app_imports, _, app = app.partition("SETTINGS: ")
    child_imports, _, child = child.partition("ROUTES = ")
    own, _, app = app.partition("\n}\n")
    told = pprint.pformat(settings_of(inner, **how), indent=4, width=100, sort_dicts=False)
    return "".join(
        (
            *(docstring, _AFTER_DOCSTRING, _imports(app_imports + child_imports), "\n\nROUTES = ", child),
            *("\nSETTINGS: ", own, "\n}\nSETTINGS |= ", told, "\n", app),
        )
    )


def _imports(text: str) -> str:
    """Return the imports of two files as those of one, without what the one takes from the other."""
    names: dict[str, set[str]] = {}
    for line in ast.parse(text).body:
        if isinstance(line, ast.ImportFrom) and not (line.module or "").startswith("freehold"):
            names.setdefault(f"from {line.module} import ", set()).update(each.name for each in line.names)
        elif isinstance(line, ast.Import):
            names.update({f"import {each.name}": set() for each in line.names})
    return "\n".join(sorted(start + ", ".join(sorted(imported)) for start, imported in names.items()))


def called(inner: DeployPlan) -> str:
    """Return what an engine calls its model: as its flags say, else as clients do."""
    told = (flag.value for flag in inner.flags if flag.name in ("--served-model-name", "--alias"))
    return next((name for name in told if name), inner.model.name)


def moved(plan: DeployPlan, base: int) -> DeployPlan:
    """Return the plan of a local cluster with other ports: a roll has two clusters for a while."""
    assert plan.inner is not None
    python = plan.command[:-2]
    ray_plan = over(
        plan.inner, EngineFacts(plan.version, python), base=base, most=int(plan.environment[MOST])
    )
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
    base: int = doors.BASE,
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
    _check_address(address)
    python = ray.command or ("python3",)
    return DeployPlan(
        engine="ray",
        version=ray.version,
        schema="ray start 2.60.0",
        model=inner.model,
        nodes=replace(inner.nodes, here=not address),
        command=(*(doors.FENCE if fenced and not address else ()), *python, "-u", str(_HEAD)),
        flags=_flags(inner, address, fenced, base, max(most, inner.replicas)),
        environment={**doors.environment(base, alone=not address), MOST: str(max(most, inner.replicas))},
        secrets=(SecretRef(INGRESS_KEY), _token(address)),
        listens=Listens(socket=_DOOR),
        sizes=inner.sizes,
        context=inner.context,
        streams=inner.streams * inner.replicas,
        replicas=1,
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
    gpus, ports = settings_of(inner)["gpus"], doors.named_ports(base)
    flags = [
        PlannedFlag("--socket", str(_DOOR), "the one way in, in a folder of ours"),
        PlannedFlag("--ingress-port", str(ports["ingress"]), "named; Serve's token does not cover it"),
    ]
    if address:
        return (*flags, PlannedFlag("--address", address, "a cluster that runs"))
    flags.append(PlannedFlag("--gcs-port", str(ports["--port"]), "open: Ray has started"))
    if fenced:
        flags.append(PlannedFlag("--fenced", None, "nothing listens outside its network namespace"))
    started = doors.start_flags(base, cpus=float(machines), gpus=gpus * machines, folder=RAY_FOLDER)
    return (*flags, PlannedFlag("--", None, "for ray start"), *started)


def _check_address(address: str) -> None:
    """Raise UsageError for an address that is not a cluster's; "" is none."""
    try:
        parts = urlsplit(address)
        good = parts.scheme == "ray" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if address and not good:
        raise UsageError(f"{address!r} is not the address of a Ray cluster", "ray://HOST:10001")


def text_for(plan: DeployPlan) -> str:
    """Return the app's file of a plan that `over` made."""
    assert plan.inner is not None
    flags = {flag.name: flag.value or "" for flag in plan.flags}
    base = int(flags["--ingress-port"]) - doors.INGRESS
    return app_text(plan.inner, base=base, elsewhere="--address" in flags)


def _token(address: str) -> SecretRef:
    return SecretRef("RAY_AUTH_TOKEN", "env:RAY_AUTH_TOKEN" if address else "random")


def _doors_note(address: str, fenced: bool) -> str:
    if address:
        return (
            "Ray's ports are open to every machine that reaches this cluster's: all but Serve's ingress want Ray's "
            "token, and that one our key; freehold deploy --emit ray --member ADDRESS writes the firewall's rules"
        )
    if fenced:
        return "Ray runs in a network namespace of its own: nothing of it listens outside"
    first, last = doors.CHOSEN_BY_KERNEL
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
    return over(inner, facts, address=address, fenced=not address and doors.can_fence())


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
    roots = (python.parent.parent, python.resolve().parent.parent)
    for root in roots:
        for folder in root.glob("lib/python3*/site-packages/ray-*.dist-info"):
            return EngineFacts(folder.name.removesuffix(".dist-info").removeprefix("ray-"), (str(python),))
    raise UsageError(f"{python} has no Ray beside it", 'pip install "ray[serve]" there')
