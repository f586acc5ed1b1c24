"""Memory nodes of a machine, by recorded files of /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base.machine import Host, listed, memory_nodes
from freehold.base.platforms import processors


def host(root: Path, **nodes: str) -> Host:
    folder = root / "sys/devices/system/node"
    for name, text in nodes.items():
        file = folder / ("online" if name == "online" else f"{name}/cpulist")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return Host("linux", root)


@pytest.mark.parametrize(
    ("nodes", "allowed", "expected"),
    [
        ({"online": "0-1", "node0": "0-3,8-11", "node1": "4-7,12-15"}, range(16), ["0-3,8-11", "4-7,12-15"]),
        ({"online": "0-1", "node0": "0-3", "node1": "4-7"}, range(2, 6), ["2-3", "4-5"]),
        ({"online": "0-1", "node0": "0-7", "node1": ""}, range(8), ["0-7"]),  # memory without processors
        ({"online": "0-1", "node0": "0-3", "node1": "4-7"}, range(2), ["0-1"]),  # bound to one of them
        ({"online": "0", "node0": "0-1"}, range(4), ["0-3"]),  # it does not tell of all: not used
        ({"online": "nodes"}, range(2), ["0-1"]),
        ({}, range(2), ["0-1"]),
    ],
)
def test_nodes_are_those_that_have_processors_of_ours(
    tmp_path: Path, nodes: dict[str, str], allowed: range, expected: list[str]
) -> None:
    assert [listed(node) for node in memory_nodes(allowed, host(tmp_path, **nodes))] == expected


@pytest.mark.parametrize("text", ["", "0", "0-3", "0-3,8-11", "1,3,5"])
def test_a_list_of_processors_is_written_as_linux_writes_it(text: str) -> None:
    assert listed(processors(text)) == text
