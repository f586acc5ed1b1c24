"""Which processors have memory of their own near them: NUMA nodes, as Linux lists them; macOS has one.

Knows /sys; knows no thread. Path: backends/planning/siblings.py -> memory_nodes
"""

from __future__ import annotations

from collections.abc import Iterable

from freehold.machine.host import HERE, Host
from freehold.platforms import processors

_NODES = "sys/devices/system/node"
_MOST = 1024  # nodes that are looked for


def memory_nodes(allowed: Iterable[int], host: Host = HERE) -> tuple[frozenset[int], ...]:
    """Return the `allowed` logical processors of each node that has some; where nodes are not listed, all as one."""
    usable, nodes = frozenset(allowed), list[frozenset[int]]()
    try:
        for node in sorted(processors(host.text(f"{_NODES}/online")))[:_MOST]:
            nodes.append(usable & processors(host.text(f"{_NODES}/node{node}/cpulist")))
    except ValueError:
        nodes.clear()
    found = tuple(node for node in nodes if node)
    return found if frozenset().union(*found) == usable else (usable,)


def listed(processors: Iterable[int]) -> str:
    """Write processors as Linux does: "0-15,32-47"."""
    runs: list[list[int]] = []
    for each in sorted(processors):
        if runs and runs[-1][1] == each - 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
