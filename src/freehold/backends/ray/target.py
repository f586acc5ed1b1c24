"""What `--on ray` means: whose Ray, which cluster, and the plan around the engine's.

    --on ray                      a cluster on this machine, by the `ray` on PATH
    --on ray:/env/bin/python      the same, by this environment's
    --on ray://HOST:10001         an app on a cluster that runs; RAY_AUTH_TOKEN has its token

Finds programs and reads their metadata; starts nothing.
Path: planning.options.planned -> over_ray -> ray.plan.over
"""

from __future__ import annotations

import shutil
from pathlib import Path

from freehold.backends.contract import DeployPlan, EngineFacts
from freehold.backends.ray import doors
from freehold.backends.ray.plan import over
from freehold.errors import UsageError


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
