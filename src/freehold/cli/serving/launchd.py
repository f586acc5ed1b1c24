"""Writes launchd's description of the server, where macOS starts it at login.

Knows launchd.plist(5) and the server's needs; runs no launchctl.
Path: service.install -> agent, agent_path
"""

from __future__ import annotations

import plistlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from freehold.errors import UsageError

LABEL = "freehold.serve"


def agent(command: Sequence[str], home: Path, drain_s: float) -> str:
    """Return the property list. Interactive: launchd would otherwise give a job slow cores and throttle its reads.

    A failed server is started again after 10 s, launchd's least; it has no way to leave out usage errors. Raises
    UsageError for a word with control characters, which a property list cannot hold.
    """
    if wrong := next((w for w in (*command, str(home)) if any(ord(c) < 32 for c in w)), None):
        raise UsageError(f"{wrong!r} cannot be written in a property list")
    described = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "EnvironmentVariables": {"FREEHOLD_HOME": str(home)},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Interactive",
        "ExitTimeOut": round(drain_s) + 15,
        "Umask": 0o077,
        "StandardErrorPath": str(log_path(home)),
    }
    return plistlib.dumps(described).decode()


def agent_path() -> Path:
    """Return the path of the user's agent."""
    return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"


def log_path(home: Path) -> Path:
    """Return where launchd writes what the server says."""
    return home / "launchd.log"


def commands(path: Path) -> tuple[str, ...]:
    """Return what starts the agent now and at each login; one that is loaded already has to be unloaded first."""
    unload = f"launchctl bootout gui/$(id -u)/{LABEL} 2>/dev/null"
    return (f"{unload}; launchctl bootstrap gui/$(id -u) {shlex.quote(str(path))}",)
