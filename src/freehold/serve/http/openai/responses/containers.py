"""Containers: a folder for each chat, in which the tools of a server run code and commands, confined.

What runs there reads the system's programs and its own folder, writes in that folder alone and reaches no network
(sandbox/notebook.py, sandbox/enclosed.py). A container belongs to a key, has the labels of all requests that used it,
and is removed when it was idle for IDLE_S, or with the server. Knows folders and processes; knows no item.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from freehold.base import private
from freehold.base.errors import Overloaded, UsageError
from freehold.base.sandbox.enclosed import can_enclose, run_enclosed
from freehold.base.sandbox.notebook import Notebook
from freehold.serve.http.core.problems import Refused

SERVER_TOOLS = ("code_interpreter", "shell")
IDLE_S = 1200.0
MOST, MOST_OF_KEY = 16, 4
RUNNING = 4  # calls of all containers at once
MAX_FILES_BYTES = 256 << 20  # in the folder of a container
SEEN_AT = "/mnt/data"  # the folder, as commands see it
_LOOK_S = 0.5
_START_S = 30.0
T = TypeVar("T")


@dataclass(slots=True)
class ToolContainer:
    """One container. `users`: requests that have it now; one without any may be removed."""

    id: str
    tenant: str
    folder: Path
    scratch: Path
    labels: tuple[str, ...] = ()
    used_at: float = field(default_factory=time.monotonic)
    users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    notebook: Notebook | None = None

    def label(self, labels: Sequence[str]) -> None:
        """Add the labels of a request that uses it."""
        self.labels = tuple(dict.fromkeys((*self.labels, *labels)))

    def put(self, name: str, source: Path) -> None:
        """Copy a file into the folder. Raises Refused (400) where a folder has its name.

        What runs in the container may put a link to a file of the server there at any moment: so nothing is opened by
        that path, and the rename replaces a link without following it.
        """
        beside = self.folder.parent / f"put-{secrets.token_hex(8)}"  # what runs there does not see it
        try:
            shutil.copyfile(source, beside)
            os.replace(beside, self.folder / name)
        except IsADirectoryError:
            message = f"file_ids: the container has a folder by the name {name[:80]!r}"
            raise Refused(400, message, param="file_ids", code="invalid_value") from None
        finally:
            beside.unlink(missing_ok=True)

    def remove(self) -> None:
        """End its interpreter, and remove its files."""
        if self.notebook is not None:
            self.notebook.close()
        shutil.rmtree(self.folder.parent, ignore_errors=True)


class ToolContainers:
    """Every container of a server. `allowed`: the tools that its owner allows."""

    def __init__(self, home: Path, allowed: Sequence[str]) -> None:
        self._home, self.allowed = home, frozenset(allowed)
        self._kept: dict[str, ToolContainer] = {}
        self._running = asyncio.Semaphore(RUNNING)
        self._sweeper: asyncio.Task[None] | None = None
        shutil.rmtree(self._above, ignore_errors=True)  # of a server that was killed

    @property
    def _above(self) -> Path:
        return self._home / "tools" / "containers"

    def find(self, tenant: str, id: str) -> ToolContainer | None:
        """Return a key's container, or None."""
        container = self._kept.get(id)
        return container if container is not None and container.tenant == tenant else None

    async def make(self, tenant: str) -> ToolContainer:
        """Make an empty container, and remove the one that was idle longest where there are too many.

        Raises Overloaded where all are in use.
        """
        own = [each for each in self._kept.values() if each.tenant == tenant]
        for kept, most in ((own, MOST_OF_KEY), (list(self._kept.values()), MOST)):
            if len(kept) >= most:
                idle = [each for each in kept if not each.users]
                if not idle:
                    raise Overloaded(f"all {most} containers of tools are in use", "try again in a moment")
                await self._drop(min(idle, key=lambda each: each.used_at))
        id = f"cntr_{secrets.token_hex(16)}"
        files, scratch = (
            private.folder(self._above / id / name, self._home) for name in ("files", "scratch")
        )
        container = self._kept[id] = ToolContainer(id, tenant, files, scratch)
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(), name="idle containers")
        return container

    async def run_code(self, container: ToolContainer, code: str, seconds: float) -> dict[str, Any]:
        """Run code in the container's interpreter; return the fields of its result."""
        if container.notebook is None:
            container.notebook = Notebook(container.folder, container.scratch)
        notebook = container.notebook
        done = await self._watched(container, lambda: notebook.run(code, seconds), notebook.kill)
        urls = [f"data:image/png;base64,{base64.b64encode(each).decode()}" for each in done.pictures]
        return {"text": done.text, "images": urls, "failed": done.failed, "ended": done.ended}

    async def run_command(self, container: ToolContainer, command: str, seconds: float) -> dict[str, Any]:
        """Run a command in the container's folder; return OpenAI's fields of its result."""
        ended: list[bool] = []

        def work() -> dict[str, Any]:
            done = run_enclosed(
                command, container.folder, at=SEEN_AT, seconds=seconds, apart=True, ended=lambda: bool(ended)
            )
            late = done.late and not ended
            outcome = {"type": "timeout"} if late else {"type": "exit", "exit_code": done.status}
            return {"stdout": done.output, "stderr": done.errors, "outcome": outcome}

        return await self._watched(container, work, lambda: ended.append(True))

    async def _watched(self, container: ToolContainer, work: Callable[[], T], end: Callable[[], None]) -> T:
        """Run work in a thread. It is ended where its caller leaves, or it has written too much, which is removed."""
        async with container.lock, self._running:
            running = asyncio.create_task(asyncio.to_thread(work))
            try:
                while not (await asyncio.wait({running}, timeout=_LOOK_S))[0]:
                    if await asyncio.to_thread(_bytes_of, container.folder.parent) > MAX_FILES_BYTES:
                        end()
                        break
                result = await running
            finally:
                if not running.done():  # the caller has left
                    end()
                await asyncio.gather(running, return_exceptions=True)
                container.used_at = time.monotonic()
            if await asyncio.to_thread(_bytes_of, container.folder.parent) > MAX_FILES_BYTES:
                await asyncio.to_thread(_empty, container)
                raise UsageError(
                    f"the call wrote more than {MAX_FILES_BYTES:,} bytes: the container's files are removed"
                )
            return result

    async def check(self, kind: str) -> None:
        """Raise Refused (403) for a tool that the owner does not allow, UsageError where it cannot be confined."""
        if kind not in self.allowed:
            raise not_allowed(kind)
        await asyncio.to_thread(check_confined, kind)

    async def aclose(self) -> None:
        """Remove all containers."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for container in list(self._kept.values()):
            await self._drop(container)

    async def _drop(self, container: ToolContainer) -> None:
        self._kept.pop(container.id, None)
        await asyncio.to_thread(container.remove)

    async def _sweep(self) -> None:
        while self._kept:
            await asyncio.sleep(IDLE_S / 20)
            since = time.monotonic() - IDLE_S
            for container in [c for c in self._kept.values() if not c.users and c.used_at < since]:
                await self._drop(container)


def not_allowed(kind: str) -> Refused:
    """Return the refusal of a tool that the owner of the server has not allowed."""
    message = f"this server does not run {kind}; its owner allows it with freehold serve --tool {kind}"
    return Refused(403, message, param="tools", code="tool_not_allowed")


def check_confined(kind: str) -> None:
    """Raise UsageError where this machine cannot confine a tool. Blocks for a moment, the first time."""
    if kind in _confined:
        return
    if why := can_enclose():
        raise UsageError(f"the tool {kind} cannot be confined here: {why}", f"leave --tool {kind} out")
    if kind == "shell":
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            run_enclosed("true", Path(folder), seconds=_START_S)
    _confined.add(kind)


_confined: set[str] = set()  # tools that were seen to be confined here


def _bytes_of(folder: Path) -> int:
    total = 0
    for where, folders, files in os.walk(folder):  # passes over what is removed meanwhile
        for name in (*folders, *files):
            with suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_blocks * 512 + 256  # empty ones count too
    return total


def _empty(container: ToolContainer) -> None:
    if container.notebook is not None:
        container.notebook.close()
    for folder in (container.folder, container.scratch):
        shutil.rmtree(folder, ignore_errors=True)
        private.folder(folder)
