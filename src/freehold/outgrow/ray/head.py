"""The head of a Ray cluster of one machine, as one process: Ray, the app on it, and a Unix socket before its ingress.

    python head.py --socket s.sock --ingress-port 26399 [--fenced] [--address ray://HOST:PORT] -- FLAGS OF ray start

Runs in the environment that has Ray, in a folder with app.py; no line of Freehold is imported. `--fenced`: it has a
network namespace of its own, whose loopback it switches on; its socket is then the only way in. SIGTERM drains the
app, SIGHUP replaces every replica, and the end of Ray is its end. With `--address` it starts no Ray and only deploys
its app there. Keys come by environment. Knows no engine and no request: bytes pass through.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from urllib.parse import urlsplit

_RAY = "from ray.scripts.scripts import main; main()"  # what the program `ray` is
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1  # <linux/sockios.h>, <linux/if.h>
_CHUNK = 1 << 16


def loopback_up() -> None:
    """Switch on the loopback interface of a new network namespace. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


class Relay:
    """Passes bytes between a Unix socket and the ingress, and counts open connections."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.open = 0

    async def serve(self, path: str) -> asyncio.AbstractServer:
        """Listen at `path`, for its owner alone."""
        Path(path).unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(self._pass, path)
        finally:
            os.umask(old)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            there, to = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            self.open -= 1
            return
        sides = asyncio.gather(_pump(reader, to), _pump(there, writer))
        try:
            await sides
        finally:
            self.open -= 1
            for each in (writer, to):
                each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end, then close the other side too: HTTP has no half-closed connection that is of use."""
    with contextlib.suppress(OSError):
        while part := await reader.read(_CHUNK):
            writer.write(part)
            await writer.drain()
    writer.close()


class RayHead:
    """One cluster and one app."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.address = args.address or f"127.0.0.1:{args.gcs_port}"
        self.revision = 0
        self.relay = Relay(urlsplit(args.address).hostname or "127.0.0.1", args.ingress_port)
        self._orders: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> int:
        """Stay until asked to end, or until Ray has ended; return the status of this process."""
        loop = asyncio.get_running_loop()
        for number, word in ((signal.SIGTERM, "end"), (signal.SIGINT, "end"), (signal.SIGHUP, "roll")):
            loop.add_signal_handler(number, self._orders.put_nowait, word)
        ray = None if self.args.address else await self._started()
        try:
            await self._until_listening(ray)
            if not await self._deployed():
                return 1
            server = await self.relay.serve(self.args.socket)
            say("the app is ready")
            status = await self._stay(ray)
            server.close()
            return status
        finally:
            if ray is not None and ray.returncode is None:
                ray.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ray.wait(), 15)

    async def _stay(self, ray: asyncio.subprocess.Process | None) -> int:
        ended = asyncio.create_task(ray.wait() if ray else asyncio.Event().wait())
        while True:
            order = asyncio.create_task(self._orders.get())
            await asyncio.wait((ended, order), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                say(f"Ray has ended with status {ended.result()}")
                return 1
            if order.result() == "end":
                say("draining")
                await self._app("--delete")
                return 0
            self.revision += 1
            say("replacing every replica")
            say("every replica is new" if await self._deployed() else "the old replicas stay")

    async def _started(self) -> asyncio.subprocess.Process:
        say("starting Ray")
        words = [sys.executable, "-c", _RAY, "start", "--head", "--block", *self.args.ray]
        return await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL)

    async def _until_listening(self, ray: asyncio.subprocess.Process | None) -> None:
        """Wait for the cluster's own port; how long is the business of the process that watches this one."""
        if ray is None:
            return
        while ray.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.args.gcs_port)
                writer.close()
                return
            await asyncio.sleep(0.2)
        raise SystemExit(f"Ray has ended with status {ray.returncode} while it started")

    async def _deployed(self) -> bool:
        say("starting replicas")
        return await self._app() == 0

    async def _app(self, *words: str) -> int:
        """Run app.py against the cluster: it deploys itself, rolls, or leaves."""
        held = {**os.environ, "RAY_ADDRESS": self.address, "FREEHOLD_REVISION": str(self.revision)}
        command = (sys.executable, "app.py", *words)
        app = await asyncio.create_subprocess_exec(*command, env=held, stdin=asyncio.subprocess.DEVNULL)
        return await app.wait()


def say(what: str) -> None:
    """Tell the process that watches this one."""
    sys.stdout.write(f"head: {what}\n")
    sys.stdout.flush()


def main() -> None:
    """Run one cluster until its end."""
    parser = argparse.ArgumentParser(description="The head of a Ray cluster of one machine.")
    parser.add_argument("--socket", required=True, help="Unix socket before the app's ingress")
    parser.add_argument("--ingress-port", type=int, required=True)
    parser.add_argument("--gcs-port", type=int, default=0)
    parser.add_argument("--fenced", action="store_true", help="switch on this namespace's loopback")
    parser.add_argument("--address", default="", help="a cluster that runs: ray://HOST:PORT")
    parser.add_argument("ray", nargs="*", help="flags of ray start")
    args = parser.parse_args()
    if args.fenced:
        loopback_up()
    raise SystemExit(asyncio.run(RayHead(args).run()))


if __name__ == "__main__":
    main()
