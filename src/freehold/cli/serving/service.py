"""Writes what starts `freehold serve` at login, with the options of this command line: a systemd user unit, on macOS
a launchd agent.

Knows systemd's file format and the server's needs; runs no systemctl.
"""

from __future__ import annotations

import json
import os
import plistlib
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from freehold.base.config import Settings
from freehold.base.errors import StoreError, UsageError
from freehold.base.platforms import IS_MAC

NAME = "freehold.service"
COMMANDS = ("systemctl --user daemon-reload", f"systemctl --user enable --now {NAME}")
_NOT_OURS = ("install_service", "force", "as_json")

# KillMode=mixed: the SIGTERM that begins the drain goes only to the server; its engines continue.
# OOMPolicy=continue: the server restarts an engine that the kernel killed for memory.
UNIT = """\
[Unit]
Description=Freehold: language models on this machine
StartLimitIntervalSec=120
StartLimitBurst=5

[Service]
Type=exec
ExecStart={command}
Environment={environment}
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2
KillMode=mixed
TimeoutStopSec={stop_s}
OOMPolicy=continue
UMask=0077
NoNewPrivileges=true

[Install]
WantedBy=default.target
"""


def install(
    ctx: click.Context,
    settings: Settings,
    models: Sequence[str],
    drain_s: float,
    *,
    force: bool,
    as_json: bool,
) -> int:
    """Write the unit and print how to start it. Raises UsageError for a different existing one without --force."""
    if settings.api_key:
        raise UsageError(
            "FREEHOLD_API_KEY would be readable in the unit",
            "freehold keys add NAME stores a hash instead",
        )
    command = [*own_program(), "serve", *given_options(ctx, _NOT_OURS), *models]
    manager = (_launchd if IS_MAC else _systemd)(command, settings.home, drain_s)
    path, text = manager.path, manager.text
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if before not in (None, text) and not force:
        raise UsageError(f"{path} exists and differs", "--force overwrites it")
    _write(path, text)
    if as_json:
        summary = {"path": str(path), "changed": before != text, "unit": text, "commands": manager.commands}
        click.echo(json.dumps(summary))
        return 0
    click.echo(text, nl=False)
    lines = [f"written: {path}", "start it with:", *(f"  {c}" for c in manager.commands), manager.log]
    if shutil.which(manager.program) is None:
        lines.append(f"note: there is no {manager.program} on this machine")
    click.echo("\n".join(lines), err=True)
    return 0


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """What a system's service manager reads, and how its user starts it."""

    path: Path
    text: str
    program: str
    commands: tuple[str, ...]
    log: str


def _systemd(command: Sequence[str], home: Path, drain_s: float) -> ServiceFile:
    log = f"its log: journalctl --user -u {NAME} -f; to run without a login: loginctl enable-linger"
    return ServiceFile(unit_path(), unit(command, home, drain_s), "systemctl", COMMANDS, log)


def _launchd(command: Sequence[str], home: Path, drain_s: float) -> ServiceFile:
    path = agent_path()
    log = f"its log: {log_path(home)}; to end it: launchctl bootout gui/$(id -u)/{LABEL}"
    return ServiceFile(path, agent(command, home, drain_s), "launchctl", commands(path), log)


def unit(command: Sequence[str], home: Path, drain_s: float) -> str:
    """Return the unit's text. TimeoutStopSec is the drain and 15 s for engines to exit."""
    return UNIT.format(
        command=" ".join(map(quoted, command)),
        environment=quoted(f"FREEHOLD_HOME={home}"),
        stop_s=round(drain_s) + 15,
    )


def quoted(word: str) -> str:
    """Quote a word for systemd: no specifier, no variable, no line end."""
    if any(ord(c) < 32 for c in word):
        raise UsageError(f"{word!r} cannot be written in a unit file")
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return plain if plain and not any(c in plain for c in " '\"\\;#") else f'"{plain}"'


def unit_path() -> Path:
    """Return the path of the user unit."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config).expanduser() / "systemd" / "user" / NAME


def own_program() -> list[str]:
    """Return the words that start Freehold as it runs now."""
    return [
        sys.executable,
        "-P",
        "-m",
        "freehold.cli.main",
    ]  # -P: nothing is imported from the working directory


def given_options(ctx: click.Context, but: Collection[str]) -> Iterator[str]:
    """Yield the options of this command line as words, except those named in `but`; files with absolute paths."""
    for param in ctx.command.params:
        on_command_line = ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
        if not on_command_line or not isinstance(param, click.Option) or param.name in but:
            continue
        value = ctx.params[param.name or ""]
        if param.is_flag:
            yield (param.opts if value else param.secondary_opts)[0]
            continue
        for one in value if param.multiple else [value]:
            yield f"{param.opts[0]}={_word(one)}"


def _word(value: object) -> str:
    if isinstance(value, Path):
        return str(value.expanduser().absolute())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> None:
    """Write the file atomically."""
    new = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror}") from e


# --- writes launchd's description of the server, where macOS starts it at login ---------------------

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
