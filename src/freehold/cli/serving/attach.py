"""Finds this home's running server and calls its admin routes; the lock that makes it the home's only one.

Knows the Unix socket and the admin routes; streams are remote/openai.py's. A server of another version with the same
admin protocol is used, with a note; one with another protocol is an error that names both versions.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from freehold.base import private
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, ServerUnreachable, UpstreamFailed
from freehold.base.serving import EngineStats, ModelInfo
from freehold.base.version import __version__
from freehold.serve.remote import ADMIN_PROTOCOL, Api

if TYPE_CHECKING:
    from filelock import BaseFileLock


GREETING_S = 10.0  # a server answers in milliseconds; on a machine that swaps, in seconds
WAY_OUT = "stop it (freehold serve printed its pid) and start it again"


class Greeting(msgspec.Struct):
    """What a server reports about itself."""

    version: str
    protocol: int
    pid: int
    url: str
    started_at: float = 0.0


class _Row(msgspec.Struct):
    name: str
    stats: EngineStats
    in_flight: int
    restarts: int
    expires_at: float | None = None


class _LoadProgress(msgspec.Struct):
    """Bytes of a model that are in memory, and bytes in all."""

    done: int
    total: int


class _Listing(msgspec.Struct):
    models: list[msgspec.Raw]
    loading: dict[str, _LoadProgress] = {}


class _Name(msgspec.Struct):
    id: str


class _Names(msgspec.Struct):
    data: list[_Name]


class _Need(msgspec.Struct):
    name: str
    needs: str


class _Needs(msgspec.Struct):
    models: list[_Need]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in the server's memory, or being loaded: then `info` is None. `plain`: the whole JSON object."""

    name: str
    info: ModelInfo | None
    stats: EngineStats
    in_flight: int
    restarts: int
    loading: float  # the part that is loaded
    expires_at: float | None  # seconds since 1970; None: never, or not while busy
    plain: dict[str, Any]


class RunningServer:
    """A running server with the same admin protocol."""

    def __init__(self, api: Api, greeting: Greeting) -> None:
        self.api, self.greeting = api, greeting

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.api.close()

    @property
    def note(self) -> str:
        """The difference of versions between the server and this command; "" if there is none."""
        theirs, ours = self.greeting.version, __version__
        return "" if theirs == ours else f"the server is freehold {theirs}, this command is {ours}"

    def names(self) -> set[str]:
        """Return the names of all models."""
        return {model.id for model in self.api.call("GET", "/v1/models", as_=_Names).data}

    def loaded(self) -> list[Loaded]:
        """List the models in memory, then those being loaded."""
        listing = self.api.call("GET", "/admin/ps", as_=_Listing)
        here = [self._loaded(row) for row in listing.models]
        known = {model.name for model in here}
        for name, progress in listing.loading.items():
            if name not in known:
                share = progress.done / max(progress.total, 1)
                plain = {"name": name, "loading": msgspec.to_builtins(progress)}
                here.append(Loaded(name, None, EngineStats(), 0, 0, share, None, plain))
        return here

    def needs(self) -> dict[str, str]:
        """Return what models here need in memory, as the page's list says; nothing from a server without a page."""
        with suppress(FreeholdError):
            rows = self.api.call("GET", "/console/api/models?held=1", as_=_Needs).models
            return {row.name: row.needs for row in rows if row.needs}
        return {}

    def load(self, name: str) -> Loaded:
        """Load a model, without a time limit. Raises what loading raised."""
        return self._loaded(self.api.call("POST", "/admin/load", {"model": name}, as_=msgspec.Raw))

    def unload(self, name: str) -> None:
        """Unload a model; its answers end. Raises ModelNotFound if it is not in memory."""
        self.api.call("POST", "/admin/unload", {"model": name})

    def stop(self, *, now: bool) -> None:
        """Stop the server: after running answers, or at once."""
        self.api.call("POST", "/admin/stop", {"now": now})

    def _loaded(self, raw: msgspec.Raw) -> Loaded:
        row = self.api.read(raw, _Row)
        return Loaded(
            row.name,
            self.api.read(raw, ModelInfo),
            row.stats,
            row.in_flight,
            row.restarts,
            1.0,
            row.expires_at,
            self.api.read(raw, dict),
        )


def running(settings: Settings) -> RunningServer | None:
    """Connect to this home's server; None if there is none. Raises ServerUnreachable for an unexpected answer."""
    if not _listens(settings.socket):
        return None
    api = Api(socket=settings.socket)
    try:
        return RunningServer(api, _greeted(api))
    except _Ended:
        api.close()
        return None
    except BaseException:
        api.close()
        raise


def _listens(path: Path) -> bool:
    """Return whether the socket accepts connections; a killed server leaves its socket file."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def server_here(settings: Settings) -> RunningServer:
    """Return this home's server; raise ServerUnreachable if none accepts connections."""
    server = running(settings)
    if server is not None:
        return server
    if pid := holder(settings):
        raise ServerUnreachable(
            f"the server of {settings.home} (pid {pid}) is starting or stopping",
            "wait for it; freehold stop --now stops it at once",
        )
    raise ServerUnreachable(f"no server runs for {settings.home}", "freehold serve starts one")


class _Ended(Exception):
    """The server closed its socket meanwhile."""


def _greeted(api: Api) -> Greeting:
    try:
        greeting = api.call("GET", "/admin/hello", as_=Greeting, patience_s=GREETING_S)
    except ServerUnreachable as e:
        raise _Ended from e
    except UpstreamFailed as e:
        raise ServerUnreachable(
            f"the server with this data folder does not answer as expected: {e.message}", WAY_OUT
        ) from e
    if greeting.protocol != ADMIN_PROTOCOL:
        raise ServerUnreachable(
            f"the server (freehold {greeting.version}, pid {greeting.pid}) uses protocol {greeting.protocol}, "
            f"this command (freehold {__version__}) protocol {ADMIN_PROTOCOL}",
            f"stop it with its own freehold stop or kill {greeting.pid}, then start freehold serve again",
        )
    return greeting


# --- the lock that makes one server a home's only one, and the process id of its holder -------------


def lock_of(settings: Settings) -> BaseFileLock:
    """Return the lock that this home's server holds for as long as it lives."""
    from filelock import FileLock

    folder = settings.socket.parent
    private.folder(folder, settings.home)
    return FileLock(private.file(folder / "server.lock"), thread_local=False)


def pid_file(settings: Settings) -> Path:
    """Return where the holder of the lock writes its pid."""
    return settings.socket.with_name("server.pid")


def holder(settings: Settings) -> int:
    """Return the pid of this home's server, whether it accepts connections or not; 0 if there is none."""
    from filelock import Timeout

    if not pid_file(settings).exists():
        return 0
    try:
        with lock_of(settings).acquire(timeout=0):
            return 0
    except Timeout:
        with suppress(FileNotFoundError):  # it stopped meanwhile
            return int(pid_file(settings).read_text(encoding="utf-8") or 0)
        return 0


def ended(settings: Settings) -> None:
    """Wait until this home's server is gone."""
    with lock_of(settings).acquire(poll_interval=0.05):
        pass
