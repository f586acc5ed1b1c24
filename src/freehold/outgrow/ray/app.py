"""A Ray Serve app of one file: each replica starts an engine as a child process and passes HTTP through to it.

    FREEHOLD_INGRESS_KEY=... RAY_AUTH_MODE=token python app.py           # deploy it, or roll it
    FREEHOLD_INGRESS_KEY=... RAY_AUTH_MODE=token python app.py --delete

It needs `ray[serve]`, which brings aiohttp, and the engine's command on each machine, nothing else: no line of Freehold
runs inside Ray. Who asks must send the key; the app holds only its hash. The key of an engine is made at random by its
replica and never leaves it. SETTINGS is the one thing that differs between two apps. Knows no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import aiohttp

ROUTES = {
    "POST": ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"),
    "GET": ("/v1/models", "/metrics"),
}
MOST_BODY = 64 << 20  # bytes
ENDED_S = 15.0  # a replica that reported nothing for so long has ended, or hangs
MOST_REPLICAS = 200  # whose metrics are kept
_SERIES = re.compile(r"(?m)^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)")
# An engine that dies prints the requests it computed; SGLang prints its keys. As process/process.py has it.
_REQUESTS = re.compile(r"Dumping |[Ss]ampling_?[Pp]arams|prompt_token_ids=|scheduled_new_reqs")
_COUNTERS = ("_total", "_sum", "_count", "_bucket")  # how names of what only grows end
# Ends the engine, all below it and its folder when its stdin ends: when the replica ends, however that happened. It
# adopts what loses its parent (36), so its own children are all that is left in the end; the kernel ends the engine
# with it (1): <linux/prctl.h>.
GUARD = """
import ctypes, os, select, shutil, signal, subprocess, sys, time
call = getattr(ctypes.CDLL(None), "prctl", lambda *_: 0)
call(36, 1, 0, 0, 0)
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, preexec_fn=lambda: call(1, 9, 0, 0, 0))
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
while child.poll() is None and not (select.select([0], [], [], 0.2)[0] and not os.read(0, 1)):
    pass
status, until = child.poll(), time.monotonic() + 8
child.kill()
while time.monotonic() < until:
    try:
        for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split():
            os.kill(int(pid), signal.SIGKILL)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        time.sleep(0.02)
    except OSError:
        break
shutil.rmtree(sys.argv[1], ignore_errors=True)
os._exit(1 if status is None else status & 255)
"""


class EngineEnded(RuntimeError):
    """The engine of a replica has ended, or does not answer a token."""


class EngineChild:
    """One engine: started, asked for a token, watched, ended. Use from one event loop."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.folder = tempfile.mkdtemp(prefix="fhe-")  # 0700
        self._keys = {variable: secrets.token_hex(32) for variable, _ in settings["keys"]}
        self.socket = settings["socket"].replace("{folder}", self.folder)
        self.port = 0 if self.socket else _free_port()
        self.moved_at = time.monotonic()  # when an answer last grew, or the engine's counters did
        self.running = 0
        self.log: deque[str] = deque(maxlen=200)  # the newest lines of its output
        self._counters: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._session: Any = None

    def start(self) -> None:
        """Start the process. It ends with this one, also when this one is killed."""
        for name, target in self.settings["links"].items():
            os.symlink(target, os.path.join(self.folder, name))
        files: dict[str, dict[str, str]] = {}
        for variable, file in self.settings["keys"]:
            files.setdefault(file, {})[variable] = self._keys[variable]
        variables = files.pop("", {})
        for name, held in files.items():
            with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
                json.dump(held, file)  # JSON is YAML
        words = [self._filled(word) for word in self.settings["argv"]]
        held = {name: self._filled(value) for name, value in self.settings["environment"].items()}
        command = [sys.executable, "-I", "-S", "-c", GUARD, self.folder, *words]
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "FREEHOLD_INGRESS"))}
        pipe, env = subprocess.PIPE, {**inherited, **held, **variables}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=env)
        threading.Thread(target=self._keep_log, args=(self._process.stdout,), daemon=True).start()

    def _keep_log(self, output: Any) -> None:
        with output:
            for line in output:
                self.log.append(self._clean(line.decode(errors="replace"))[:500])
                sys.stderr.write(self.log[-1] + "\n")  # to Ray's log of this replica, a file

    def _clean(self, line: str) -> str:
        """Return a line without keys and requests."""
        if match := _REQUESTS.search(line):
            line = line[: match.start()] + "[text of requests is left out]"
        for key in self._keys.values():
            line = line.replace(key, "[secret]")
        return line.rstrip()

    def check(self) -> None:
        """Raise EngineEnded, with the last lines of its log, once the process has ended."""
        status = self._process.poll() if self._process else 0
        if status is not None:
            raise EngineEnded(
                "\n".join([f"the engine has ended with status {status}", *list(self.log)[-30:]])
            )

    async def first_token(self) -> None:
        """Wait until the engine answers one real token, or one vector; its own word that it is ready is not asked."""
        answer, seen, seen_at = "nothing", (0.0, ""), time.monotonic()
        while time.monotonic() - seen_at < self.settings["still_s"]:
            self.check()
            try:
                async with asyncio.timeout(60):
                    status, answer = await self._proof()
            except (OSError, TimeoutError, aiohttp.ClientError) as e:
                status, answer = 0, str(e) or type(e).__name__
            if status == 200:
                self.moved_at = time.monotonic()
                return
            if 400 <= status < 500 and status != 429:
                raise EngineEnded(f"the engine refused its first token with {status}: {answer[:300]}")
            if (now := (_cpu_s(self._process), self.log[-1] if self.log else "")) != seen:
                seen, seen_at = now, time.monotonic()
            await asyncio.sleep(0.3)
        raise EngineEnded(
            f"the engine stopped making progress while starting; its last answer: {answer[:300]}"
        )

    async def _proof(self) -> tuple[int, str]:
        """Ask for what the model gives; return the status and the body of the answer, an empty one as a failure."""
        if self.settings["vectors"]:
            path, member, fields = "/v1/embeddings", '"embedding"', {"input": "1 2 3"}
        else:
            path, member = "/v1/completions", '"choices"'
            fields = {"prompt": "1 2 3", "max_tokens": 1, "temperature": 0}
        body = json.dumps({"model": self.settings["model"], **fields}).encode()
        async with self.request("POST", path, body) as reply:
            text = (await reply.read()).decode(errors="replace")
            empty = reply.status == 200 and member not in text
            return (500 if empty else reply.status, text)

    def request(self, method: str, path: str, body: bytes = b"", query: str = "") -> Any:
        """Return an aiohttp request to the engine, as a context."""
        headers = {"Content-Type": "application/json"} if body else {}
        if self._keys:
            headers["Authorization"] = f"Bearer {next(iter(self._keys.values()))}"
        base = "http://engine" if self.socket else f"http://127.0.0.1:{self.port}"
        url = f"{base}{path}?{query}".rstrip("?")
        return self._opened().request(method, url, data=body or None, headers=headers)

    def _opened(self) -> Any:
        if self._session is None:
            connector: Any = aiohttp.UnixConnector(self.socket, limit=0) if self.socket else None
            self._session = aiohttp.ClientSession(
                connector=connector or aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                auto_decompress=False,
            )
        return self._session

    async def metrics(self) -> str:
        """Return the engine's metrics, "" where it has none or does not answer, and note whether a counter moved."""
        text = ""
        with contextlib.suppress(OSError, TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(5), self.request("GET", "/metrics") as reply:
                text = (await reply.read()).decode(errors="replace") if reply.status == 200 else ""
        counters = re.findall(r"(?m)^[^#\n]*token[^\n]*$", text)
        if counters and counters != self._counters:
            self._counters, self.moved_at = counters, time.monotonic()
        return text

    def check_moving(self) -> None:
        """Raise EngineEnded where it has ended, or requests run while neither answers nor its counters move."""
        self.check()
        still = time.monotonic() - self.moved_at
        if self.running and still > self.settings["stall_s"]:
            raise EngineEnded(f"{self.running} requests run and no counter moved for {still:.0f} s")

    async def close(self) -> None:
        """End the process, all below it and its folder. Requests have ended by now."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.stdin is not None:
            self._process.terminate()  # the guard passes it on
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, 10)
            self._process.stdin.close()
            await asyncio.to_thread(self._process.wait)

    def _filled(self, word: str) -> str:
        word = word.replace("{folder}", self.folder).replace("{socket}", self.socket)
        return word.replace("{port}", str(self.port))


class Passed(NamedTuple):
    """An answer on its way through, of the engine or of the replica itself."""

    status: int
    media_type: str
    parts: AsyncIterator[bytes]


class Passage:
    """What a replica does with a request: the key, the route, then the engine's own answer as it comes."""

    def __init__(self, engine: EngineChild, digest: str, metrics: Callable[[], Awaitable[str]]) -> None:
        """`digest`: SHA-256 of the key, in hex. `metrics`: of all replicas."""
        self.engine, self._digest, self._metrics = engine, digest, metrics

    async def answer(
        self, method: str, path: str, query: str, authorization: str, coming: AsyncIterator[bytes]
    ) -> Passed:
        """Return the engine's answer, or a refusal of this replica's own.

        `coming`: the request's body. It is read once the key is right, and no further than MOST_BODY.
        """
        key = authorization.removeprefix("Bearer ").encode()
        if not hmac.compare_digest(hashlib.sha256(key).hexdigest(), self._digest):
            return _refused(401, "this app needs its key", "authentication_error")
        if path not in ROUTES.get(method, ()):
            return _refused(404, f"{method} {path[:80]} is not a route of this app", "not_found_error")
        if path == "/metrics":
            return Passed(200, "text/plain; version=0.0.4", _whole((await self._metrics()).encode()))
        body = await _read(coming)
        if body is None:
            return _refused(413, f"the request has more than {MOST_BODY} bytes")
        try:
            self.engine.check()
            context = self.engine.request(method, path, body, query)
            reply = await context.__aenter__()
        except (EngineEnded, OSError, aiohttp.ClientError) as e:
            return _refused(503, f"{type(e).__name__}: the engine of this replica is gone", "server_error")
        return Passed(reply.status, reply.headers.get("Content-Type", ""), self._parts(context, reply))

    async def _parts(self, context: Any, reply: Any) -> AsyncIterator[bytes]:
        """Give out what comes, and close the connection when the client has left: the engine stops then.

        A connection that breaks raises: the answer has no proper end then, and no reader takes it for whole.
        """
        self.engine.running += 1
        try:
            async for part in reply.content.iter_any():
                self.engine.moved_at = time.monotonic()
                yield part
        finally:
            self.engine.running -= 1
            if not reply.content.at_eof():
                reply.close()
            await context.__aexit__(None, None, None)


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _read(coming: AsyncIterator[bytes]) -> bytes | None:
    """Return a request's body; None for one of more than MOST_BODY bytes, whose rest stays unread."""
    body = bytearray()
    async for part in coming:
        body += part
        if len(body) > MOST_BODY:
            return None
    return bytes(body)


def _refused(status: int, message: str, kind: str = "invalid_request_error") -> Passed:
    error = {"message": message, "type": kind, "code": status}
    return Passed(status, "application/json", _whole(json.dumps({"error": error}).encode()))


class MetricsTally:
    """The metrics of all replicas, each line with a label `replica`; counters stay when their replica has ended."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[float, str]] = {}

    def tell(self, replica: str, text: str) -> None:
        """Take what a replica's engine tells; nothing is taken of one that does not answer."""
        if text:
            self._texts[replica] = (time.monotonic(), text)
        while len(self._texts) > MOST_REPLICAS:
            del self._texts[min(self._texts, key=lambda name: self._texts[name][0])]

    def text(self) -> str:
        """Return all lines."""
        lines: list[str] = []
        for replica, (at, text) in self._texts.items():
            ended = time.monotonic() - at > ENDED_S
            for name, labels, value in _SERIES.findall(text):
                if not ended or name.endswith(_COUNTERS):
                    label = f'replica="{replica}"' + (f",{labels[1:-1]}" if labels[1:-1] else "")
                    lines.append(f"{name}{{{label}}} {value}")
        return "\n".join([*lines, ""])


def _below(pid: int) -> list[int]:
    """Return the ids of all processes below `pid`; none where the system does not say."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            direct = [int(word) for word in file.read().split()]
    except OSError:
        return []
    return [each for one in direct for each in (one, *_below(one))]


def _cpu_s(process: subprocess.Popen[bytes] | None) -> float:
    """Return the processor seconds of an engine's processes, in steps of 0.1."""
    ticks = 0
    for pid in _below(process.pid) if process else ():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return round(ticks / os.sysconf("SC_CLK_TCK"), 1)


def _free_port() -> int:
    """Return a free port below those lent to outgoing connections, which would take it while the engine starts."""
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port of loopback among 100 drawn by chance")


# --- the app ------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "name": "freehold",  # of the app
    "model": "",  # as the engine knows it
    "vectors": False,  # it returns vectors, not text
    "argv": [],  # {folder}, {socket}, {port} are filled in by each replica
    "environment": {},
    "links": {},  # names in {folder} for files: an engine that calls a model as its file is called
    "keys": [],  # (variable, file in {folder} or ""): each a random key of the engine; requests carry the first
    "socket": "{folder}/s.sock",  # where the engine listens; "": on {port} of loopback
    "replicas": 1,
    "most_replicas": 1,  # more than `replicas`: their number follows the queue
    "streams": 8,  # requests at a time, of one replica
    "cpus": 1.0,
    "gpus": 0.0,
    "per_machine": 0,  # replicas at most; 0: as many as it has room for
    "still_s": 180.0,  # a start may be idle for this long: no processor time, no line of its log
    "stall_s": 120.0,  # requests run and the engine's counters have stopped: it hangs
    "drain_s": 60.0,
    "ingress_host": "127.0.0.1",
    "ingress_port": 8000,
    "proxies": "HeadOnly",
}
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
ASIDE = 4  # requests beside the streams: metrics, lists of models
REPORT_S = 2.0


def deployment_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `serve.deployment`, without those that are objects of Ray's."""
    options: dict[str, Any] = {
        "max_ongoing_requests": settings["streams"]
        + ASIDE,  # more wait in the proxy, or go to another replica
        "ray_actor_options": {"num_cpus": settings["cpus"], "num_gpus": settings["gpus"]},
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": settings["drain_s"],
        "graceful_shutdown_wait_loop_s": 1,
    }
    if settings["per_machine"]:
        options["max_replicas_per_node"] = settings["per_machine"]
    if settings["most_replicas"] > settings["replicas"]:
        options["autoscaling_config"] = {
            "min_replicas": settings["replicas"],
            "max_replicas": settings["most_replicas"],
            "target_ongoing_requests": max(1, settings["streams"] * 3 // 4),  # running and waiting
            "upscale_delay_s": 10,
            "downscale_delay_s": 300,  # a start costs more than an idle replica
        }
    else:
        options["num_replicas"] = settings["replicas"]
    return options


class EngineReplica:
    """What Serve starts as often as there are replicas: an engine, and the passage to it."""

    async def __init__(self, settings: dict[str, Any], digest: str) -> None:
        import ray  # type: ignore[import-not-found]

        self.child = EngineChild(settings)
        try:
            self.child.start()
            await self.child.first_token()
        except BaseException:
            await self.child.close()
            raise
        self.tally = ray.remote(MetricsTally).options(**tally_options(settings)).remote()
        self.passage = Passage(self.child, digest, self.metrics)
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self.leave_with_engine()), loop.create_task(self.report())]

    async def metrics(self) -> str:
        return await self.tally.text.remote()

    async def report(self) -> None:
        """Tell the tally this engine's counters: one replica answers with the metrics of all."""
        import ray  # type: ignore[import-not-found]
        from ray import serve  # type: ignore[import-not-found]

        replica = serve.get_replica_context().replica_id.unique_id
        while True:
            text = await self.child.metrics()
            with contextlib.suppress(ray.exceptions.RayError):
                await self.tally.tell.remote(replica, text)
            await asyncio.sleep(REPORT_S)

    async def leave_with_engine(self) -> None:
        """End this process soon after its engine: Serve then routes elsewhere at once, not at the next check."""
        with contextlib.suppress(EngineEnded):
            while True:
                self.child.check()
                await asyncio.sleep(0.1)
        until = time.monotonic() + 2
        while self.child.running and time.monotonic() < until:
            await asyncio.sleep(0.05)  # its last words go to the clients
        os._exit(1)

    async def check_health(self) -> None:
        self.child.check_moving()

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import StreamingResponse

        url, authorization = request.url, request.headers.get("authorization", "")
        passed = await self.passage.answer(
            request.method, url.path, url.query, authorization, request.stream()
        )
        return StreamingResponse(passed.parts, passed.status, {"content-type": passed.media_type})

    async def __del__(self) -> None:
        for task in getattr(self, "tasks", ()):
            task.cancel()
        await self.child.close()


def tally_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the actor with all replicas' metrics is started: by the first replica, once for the app."""
    name = f"{settings['name']}-tally"
    return {"name": name, "get_if_exists": True, "lifetime": "detached", "num_cpus": 0}


def build(settings: Mapping[str, Any], key: str) -> Any:
    """Return the Serve app. Replicas are given the hash of `key`."""
    from ray import serve  # type: ignore[import-not-found]
    from ray.serve.config import RequestRouterConfig  # type: ignore[import-not-found]

    if len(key) < 32:
        raise SystemExit("FREEHOLD_INGRESS_KEY needs 32 characters or more: openssl rand -hex 32 makes one")

    decorated = serve.deployment(
        name=f"{settings['name']}-engine",
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        **deployment_options(settings),
    )(EngineReplica)
    return decorated.bind(dict(settings), hashlib.sha256(key.encode()).hexdigest())


def main() -> None:
    """Deploy the app to the cluster at RAY_ADDRESS and wait until each replica has answered a token."""
    import ray  # type: ignore[import-not-found]
    from ray import serve  # type: ignore[import-not-found]

    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise SystemExit("RAY_AUTH_MODE=token is not set: without it, any client of Ray's ports runs code")
    ray.init(log_to_driver=False, namespace="serve")  # where Serve and its replicas are
    # Another revision replaces every replica: they are given other arguments.
    settings = {**SETTINGS, "revision": os.environ.get("FREEHOLD_REVISION", "")}
    settings["most_replicas"] = int(os.environ.get("FREEHOLD_MOST_REPLICAS") or settings["most_replicas"])
    if "--delete" in sys.argv:
        serve.delete(settings["name"])
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(tally_options(settings)["name"]))
        return
    app = build(settings, os.environ.get("FREEHOLD_INGRESS_KEY", ""))
    at = {"host": settings["ingress_host"], "port": settings["ingress_port"]}
    serve.start(http_options=at, proxy_location=settings["proxies"])
    serve.run(app, name=settings["name"], route_prefix="/")


def __getattr__(name: str) -> Any:
    """Make `app` for `serve run` and `serve deploy`, which import this file."""
    if name == "app":
        return build(SETTINGS, os.environ.get("FREEHOLD_INGRESS_KEY", ""))
    raise AttributeError(name)


if __name__ == "__main__":
    main()
