"""Find the server that runs for this home, greet it, and ask it what only its owner may.

Knows the Unix socket and the admin routes; streams are remote/openai.py's. A server of another version is greeted as
such: one with the same admin protocol is used and named, one with another is an error that names both.
Path: cli/run, ps, stop -> running -> GET /admin/hello -> RunningServer
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

import freehold
from freehold.cli.serving.lock import holder
from freehold.config import Settings
from freehold.errors import ServerUnreachable, UpstreamFailed
from freehold.remote.http import ADMIN_PROTOCOL, Api
from freehold.serving import EngineStats, ModelInfo

if TYPE_CHECKING:
    pass

GREETING_S = 10.0  # a server answers in milliseconds; on a machine that swaps, in seconds
WAY_OUT = "end it (freehold serve said its pid) and start it again"


class Greeting(msgspec.Struct):
    """What a server says of itself."""

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


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in the server's memory, or on its way there: then `info` is None. `plain` is all that was said."""

    name: str
    info: ModelInfo | None
    stats: EngineStats
    in_flight: int
    restarts: int
    loading: float  # the part that is loaded
    expires_at: float | None  # seconds since 1970; None: never, or not while it is busy
    plain: dict[str, Any]


class RunningServer:
    """A running server of this version, or of another that speaks the same admin protocol."""

    def __init__(self, api: Api, greeting: Greeting) -> None:
        self.api, self.greeting = api, greeting

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.api.close()

    @property
    def note(self) -> str:
        """What differs between the server and this command; "" if nothing does."""
        theirs, ours = self.greeting.version, freehold.__version__
        return "" if theirs == ours else f"the server is freehold {theirs}, this command is {ours}"

    def names(self) -> set[str]:
        """Return every name that may be asked for."""
        return {model.id for model in self.api.call("GET", "/v1/models", as_=_Names).data}

    def loaded(self) -> list[Loaded]:
        """List the models in memory, then those on their way there for the first time."""
        listing = self.api.call("GET", "/admin/ps", as_=_Listing)
        here = [self._loaded(row) for row in listing.models]
        known = {model.name for model in here}
        return here + [_coming(name, p) for name, p in listing.loading.items() if name not in known]

    def load(self, name: str) -> Loaded:
        """Bring a model into memory, however long it takes. Raises what loading raised."""
        return self._loaded(self.api.call("POST", "/admin/load", {"model": name}, as_=msgspec.Raw))

    def unload(self, name: str) -> None:
        """Take a model out of memory; its answers end. Raises ModelNotFound if it is not there."""
        self.api.call("POST", "/admin/unload", {"model": name})

    def stop(self, *, now: bool) -> None:
        """Begin the end: after the answers under way, or at once."""
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


def _coming(name: str, progress: _LoadProgress) -> Loaded:
    plain = {"name": name, "loading": msgspec.to_builtins(progress)}
    return Loaded(name, None, EngineStats(), 0, 0, progress.done / max(progress.total, 1), None, plain)


def running(settings: Settings) -> RunningServer | None:
    """Greet this home's server; None if there is none. Raises ServerUnreachable if it does not greet as ours do."""
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
    """Return whether somebody takes connections there; a server that was killed leaves its socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def found(settings: Settings) -> RunningServer:
    """Return this home's server; raise ServerUnreachable if there is none that takes connections."""
    server = running(settings)
    if server is not None:
        return server
    if pid := holder(settings):
        raise ServerUnreachable(
            f"the server of {settings.home} (pid {pid}) is starting, or ending",
            "wait for it; freehold stop --now ends it at once",
        )
    raise ServerUnreachable(f"no server runs for {settings.home}", "freehold serve starts one")


class _Ended(Exception):
    """The server shut its doors between two looks."""


def _greeted(api: Api) -> Greeting:
    try:
        greeting = api.call("GET", "/admin/hello", as_=Greeting, patience_s=GREETING_S)
    except ServerUnreachable as e:
        raise _Ended from e
    except UpstreamFailed as e:
        raise ServerUnreachable(f"the server of this home does not greet: {e.message}", WAY_OUT) from e
    if greeting.protocol != ADMIN_PROTOCOL:
        raise ServerUnreachable(
            f"the server (freehold {greeting.version}, pid {greeting.pid}) speaks protocol {greeting.protocol}, "
            f"this command (freehold {freehold.__version__}) protocol {ADMIN_PROTOCOL}",
            f"end it with its own freehold stop or kill {greeting.pid}, then start freehold serve again",
        )
    return greeting
