"""A plan as a Ray Serve app of one file; for a cluster of several machines its commands and the firewall's rules too.

    sh cluster.sh head 10.0.0.7; sh cluster.sh worker 10.0.0.7 10.0.0.8; sh cluster.sh deploy 10.0.0.7

The machines need `ray[serve]`, the engine's command and the model's files; none of them needs Freehold, unless it is
the engine. Knows no container.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit import EmitOptions, EmittedFile, file_text
from freehold.outgrow.ray.plan import app_text, environment, firewall, named_ports, start_flags, text_for

_HEAD_ONLY = ("--port", "--dashboard-port", "--dashboard-host", "--ray-client-server-port")
_OF_ONE_MACHINE = ("--node-ip-address", "--num-cpus", "--num-gpus", "--temp-dir")


def ray_files(plan: DeployPlan, options: EmitOptions) -> Sequence[EmittedFile]:
    """Return the app; where members of a cluster are named also its commands and rules.

    Raises UsageError for an engine that cannot be a replica, and for a replica over several nodes.
    """
    inner = plan.inner or plan
    if inner.across > 1:
        raise UsageError(
            f"a replica of Ray Serve runs on one machine, and one of this plan takes {inner.across}",
            "--emit k8s",
        )
    if not options.members:
        text = text_for(plan) if plan.inner else app_text(plan, elsewhere=not plan.nodes.here)
        return [EmittedFile("app.py", text)]
    return [
        EmittedFile("app.py", app_text(inner, elsewhere=True)),
        EmittedFile("cluster.sh", _script()),
        EmittedFile("firewall.nft", firewall(options.members)),
    ]


def _script() -> str:
    ports = named_ports()
    flags = [f for f in start_flags(cpus=0, gpus=0, folder="") if f.name not in _OF_ONE_MACHINE]
    variables = environment(alone=False)
    return file_text(
        "cluster.sh",
        ingress=ports["ingress"],
        gcs=ports["--port"],
        variables=" ".join(f"{name}={value}" for name, value in variables.items()),
        head=shlex.join(word for flag in flags for word in flag.words()),
        worker=shlex.join(word for flag in flags if flag.name not in _HEAD_ONLY for word in flag.words()),
    )
