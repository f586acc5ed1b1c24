"""gateway.toml of a running server: read again when it changes; a file with mistakes is not put in force.

A request keeps the Gateway it began with, as Gateways are never changed but replaced. The file is looked at as
server/core/keys.py looks at the keys, and read once two looks found it unchanged, so that a file in the middle of
being written is not taken for a bad one. Knows the file and when it changed; knows no request.
Path: cli/serve.py -> LiveGateway.watch -> reading.py
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from freehold.errors import FreeholdError
from freehold.router.gateway import Gateway
from freehold.router.labels import prepare
from freehold.router.reading import read
from freehold.router.toml.mistakes import BadGateway, Mistake
from freehold.router.toml.outside import Outside

LOOK_S = 0.5  # between two looks at the file
_log = logging.getLogger("freehold.router")

Mark = tuple[int, ...]
Changed = Callable[[Gateway], None]


class LiveGateway:
    """The Gateway in force. Raises BadGateway if the file is not sound at the start."""

    def __init__(self, path: Path, outside: Outside | None = None) -> None:
        self.path, self._outside = path, outside or Outside()
        self._mark = self._seen = self._marked()
        self.current: Gateway = self._read()
        self.trouble = ""  # why the file's latest state is not in force; "" while it is
        self._changed: list[Changed] = []

    def on_change(self, changed: Changed) -> None:
        """Call `changed` with each Gateway that takes the place of another; in the loop of `watch`."""
        self._changed.append(changed)

    async def watch(self) -> None:
        """Look at the file again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> bool:
        """Read the file if it changed, but not since the last look; return whether another Gateway is in force."""
        mark = self._marked()
        stands, self._seen = mark == self._seen, mark
        if mark == self._mark or not stands:
            return False
        self._mark = mark
        try:
            gateway = await asyncio.to_thread(self._reread)
        except BadGateway as e:
            count = len(e.mistakes)
            return self._stays("has a mistake" if count == 1 else f"has {count} mistakes", e.message)
        except FreeholdError as e:
            return self._stays("could not be read", e.message)
        except Exception as e:  # whatever a keyring raises: the next change is read all the same
            return self._stays("could not be read", type(e).__name__)
        return self._take(gateway)

    def _stays(self, what: str, why: str) -> bool:
        self.trouble = f"the gateway's file {what} and is in force as it was; the log says more"
        _log.error("%s stays as it was: %s", self.path, why)
        return False

    def _take(self, gateway: Gateway) -> bool:
        self.trouble = ""
        if gateway == self.current:  # keys are compared too: touching the file takes a new one
            return False
        self.current = gateway
        _log.info("%s was read again: %s", self.path, gateway.digest[:12])
        for changed in self._changed:
            changed(gateway)
        return True

    def _reread(self) -> Gateway:
        gateway = self._read()
        if gateway.ledger == self.current.ledger:
            prepare(gateway)  # in this thread
            return gateway
        moved = Mistake(0, "ledger", "the ledger cannot move while the server runs", "start the server again")
        raise BadGateway(str(self.path), (moved,))

    def _read(self) -> Gateway:
        if (
            self.path.exists() and not self.path.is_file()
        ):  # a pipe without a writer would wait for one for ever
            what = "it is a folder" if self.path.is_dir() else "it is a pipe or a device"
            wrong = Mistake(0, "", f"{what}, and is read again when it changes", "name an ordinary file")
            raise BadGateway(str(self.path), (wrong,))
        return read(self.path, self._outside)

    def _marked(self) -> Mark:
        """Return what changes when the file does; () where there is none."""
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode, status.st_uid
