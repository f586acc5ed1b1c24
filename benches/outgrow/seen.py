"""What a process tree shows to other users: sockets that listen, connections, command lines, environments.

Reads /proc alone, as `ss` and `ps` do; asks neither Freehold nor the engine. Linux.
Path: guard.py -> Tree -> listeners, remote, command_lines, environment
"""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_LISTEN, _ESTABLISHED = "0A", "01"
_UNCONNECTED_UDP = "07"


@dataclass(frozen=True)
class Listener:
    """A socket that takes connections or datagrams."""

    kind: str  # tcp, tcp6, udp, udp6
    address: str
    port: int

    @property
    def beyond(self) -> bool:
        """Whether other machines reach it."""
        return not ipaddress.ip_address(self.address).is_loopback


@dataclass
class Tree:
    """A process and all that was ever seen below it."""

    root: int
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def look(self) -> list[psutil.Process]:
        """Return the processes that live now, and remember them."""
        try:
            top = psutil.Process(self.root)
            found = [top, *top.children(recursive=True)]
        except psutil.Error:
            found = []
        self.seen |= {process.pid: process for process in found}
        return [process for process in self.seen.values() if alive(process)]

    def named(self, word: str) -> list[psutil.Process]:
        """Return the living processes with a word in their command line."""
        return [process for process in self.look() if word in command_line(process.pid)]

    def listeners(self) -> set[Listener]:
        """Return every port on which a process of it listens."""
        ours = self._sockets()
        return {
            Listener(kind, address, port)
            for kind, state, address, port, _, inode in _table()
            if inode in ours and state == (_LISTEN if kind.startswith("tcp") else _UNCONNECTED_UDP)
        }

    def remote(self) -> set[str]:
        """Return the other machines that a process of it is connected to."""
        ours = self._sockets()
        return {
            other
            for _, state, _, _, other, inode in _table()
            if inode in ours and state == _ESTABLISHED and not ipaddress.ip_address(other).is_loopback
        }

    def _sockets(self) -> set[str]:
        found: set[str] = set()
        for process in self.look():
            for name in _links(process.pid):
                if match := re.fullmatch(r"socket:\[(\d+)\]", name):
                    found.add(match[1])
        return found


def alive(process: psutil.Process) -> bool:
    """Return whether a process still runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def command_line(pid: int) -> str:
    """Return what `ps` shows of a process to all users."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)


def _links(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{folder}/{name}")
        except OSError:
            continue


def _table() -> Iterator[tuple[str, str, str, int, str, str]]:
    """Yield kind, state, address, port, the other end's address, inode of each socket of this network namespace."""
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        try:
            lines = Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            address, port = words[1].split(":")
            yield kind, words[3], _address(address), int(port, 16), _address(words[2].split(":")[0]), words[9]


def _address(text: str) -> str:
    """Read an address as the kernel prints it: words of 32 bits in the machine's own order."""
    raw = b"".join(struct.pack("=I", int(text[i : i + 8], 16)) for i in range(0, len(text), 8))
    found = ipaddress.ip_address(raw)
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
