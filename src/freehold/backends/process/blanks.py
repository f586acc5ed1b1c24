"""Fills what a plan leaves open until the start: a port of loopback, the replica's folder, files and links there.

Knows placeholders; knows no engine. Path: EngineDriver.launch -> launch -> filled, make_links, write_keys -> OwnProcess
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from freehold import private
from freehold.backends.contract import DeployPlan, Listens, PlannedFlag

# Below the ports that systems lend to outgoing connections (32768 on for Linux, 49152 on for macOS): an engine that
# needs a minute to start would else find its port taken by some program's request.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """Return a port of loopback that was free just now, and that no outgoing connection is lent meanwhile.

    Raises:
        OSError: none of 100 ports drawn by chance was free.
    """
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port of loopback among 100 drawn from {_PORTS.start} to {_PORTS.stop - 1}")


def filled(plan: DeployPlan, folder: Path) -> DeployPlan:
    """Return the plan with the replica's folder, and a port in place of 0, in its flags and variables too."""
    listens = plan.listens
    if listens.socket is not None:
        listens = Listens(Path(str(listens.socket).replace("{folder}", str(folder))))
    elif not listens.port:
        listens = Listens(host=listens.host, port=free_port())
    places = {"{folder}": str(folder), "{port}": str(listens.port)}
    return replace(
        plan,
        listens=listens,
        flags=tuple(_filled(flag, places) for flag in plan.flags),
        environment={name: _put(value, places) for name, value in plan.environment.items()},
    )


def _filled(flag: PlannedFlag, places: Mapping[str, str]) -> PlannedFlag:
    return flag if flag.value is None else replace(flag, value=_put(flag.value, places))


def _put(text: str, places: Mapping[str, str]) -> str:
    for blank, value in places.items():
        text = text.replace(blank, value)
    return text


def make_links(plan: DeployPlan, folder: Path) -> None:
    """Make the plan's links in the replica's folder, in place of those of an earlier start."""
    for name, target in plan.links.items():
        link = folder / name
        private.folder(link.parent, folder)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def write_keys(plan: DeployPlan, folder: Path, held: Mapping[str, str]) -> None:
    """Write the secrets that an engine reads from files, where it takes them from no variable."""
    for name in {reference.file for reference in plan.secrets if reference.file}:
        keys = {r.variable: held[r.variable] for r in plan.secrets if r.file == name}
        write_settings(folder / name, keys)


def write_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Write a file of settings that its user alone can read. JSON is YAML."""
    with open(path, "w", encoding="utf-8", opener=private.opener) as file:
        json.dump(dict(settings), file)
