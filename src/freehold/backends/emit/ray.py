"""A plan as a Ray Serve app of one file, and the firewall's rules for the machines of its cluster.

Ray's ports cannot be held to loopback where a cluster has several machines, so the rules name its members.
Path: emit.emit -> ray_files -> app_text, firewall
"""

from __future__ import annotations

from freehold.backends.contract import DeployPlan
from freehold.backends.emit.contract import EmitOptions, EmittedFile
from freehold.errors import UsageError


def ray_files(plan: DeployPlan, options: EmitOptions) -> list[EmittedFile]:
    """Return the app, and rules where the members are named. Raises UsageError for a replica over several nodes."""
    from freehold.backends.ray.doors import firewall
    from freehold.backends.ray.plan import app_text, text_for

    inner = plan.inner or plan
    if inner.across > 1:
        raise UsageError(
            f"a replica of Ray Serve runs on one machine, and one of this plan takes {inner.across}",
            "--emit k8s",
        )
    text = text_for(plan) if plan.inner else app_text(plan, elsewhere=not plan.nodes.here)
    rules = [EmittedFile("firewall.nft", firewall(options.members))] if options.members else []
    return [EmittedFile("app.py", text), *rules]
