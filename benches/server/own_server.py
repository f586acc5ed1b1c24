"""Our own server for soak, chaos and tests: started with several names for one file, asked through its own socket.

Knows `freehold serve`, its admin routes and its engine processes; knows no traffic and no claim.
Path: soak.py, chaos.py or tests/server_clients -> own_server -> servers.Server
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benches.server.servers import KINDS, Server, free_port, get

ENGINE = "freehold.serve.worker.process"  # in the command line of every engine process
SETTLE_S = 30.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextlib.contextmanager
def own_server(
    path: Path,
    *,
    names: int = 1,
    room: int | None = None,
    context: int | None = None,
    options: tuple[str, ...] = (),
) -> Iterator[Server]:
    """Serve a file under so many names, with room for `room` of them at a time."""
    with tempfile.TemporaryDirectory(prefix="named-") as folder:
        links = [Path(folder) / f"copy-{i}.gguf" for i in range(names)]
        for link in links:
            link.symlink_to(path)
        port = free_port()
        command = [sys.executable, "-m", "freehold.cli.main", "serve", *map(str, links), "--port", str(port)]
        command += ["--max-models", str(room)] if room else []
        command += ["--context", str(context)] if context else []
        with Server([*command, *options], port, {}, KINDS["freehold"].health) as server:
            yield server


def admin(server: Server, path: str) -> Any:
    """Fetch an admin route through the Unix socket."""
    connection = _UnixConnection(server.home / "serve" / "server.sock")
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


async def rows_of(server: Server) -> list[dict[str, Any]]:
    """Fetch what `freehold ps` shows, without holding up what else this program does."""
    return (await asyncio.to_thread(admin, server, "/admin/ps"))["models"]


def names_of(server: Server) -> list[str]:
    """List the names that the server answers to."""
    return [model["id"] for model in json.loads(get(server.port, "/v1/models")[1])["data"]]


def engines(server: Server) -> list[psutil.Process]:
    """List the engine processes."""
    found = []
    for process in server.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            if ENGINE in " ".join(process.cmdline()):
                found.append(process)
    return found


async def settle(server: Server) -> None:
    """Wait until nothing is in flight, or for as long as that may take."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        if not any(row["in_flight"] or row["stats"]["blocks_live"] for row in await rows_of(server)):
            return
        await asyncio.sleep(0.2)


def tell(record: dict[str, Any], counts: str) -> int:
    """Print the counts of a record, whether its claims hold, and its JSON line; return 1 where one does not."""
    for what, count in record[counts].items():
        print(f"{count:>7}  {what}")
    print("\n".join(record["wrong"]) or "every claim holds")
    print(json.dumps(record))
    return int(bool(record["wrong"]))
