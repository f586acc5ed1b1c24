"""A Ray Serve app of one file: each replica starts an engine as a child process and passes HTTP through to it.

    FREEHOLD_INGRESS_KEY=... RAY_AUTH_MODE=token python app.py           # deploy it, or roll it
    FREEHOLD_INGRESS_KEY=... RAY_AUTH_MODE=token python app.py --delete

It needs `ray[serve]` and the engine's command on each machine, nothing else: no line of Freehold runs inside Ray. Who
asks must send the key; the app holds only its hash. The key of an engine is made at random by its replica and never
leaves it. SETTINGS is the one thing that differs between two apps. Knows no model.
Path: main -> build -> Passage.answer -> EngineChild -> the engine
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from freehold.backends.ray.child import EngineChild, EngineEnded, MetricsTally, Passage

SETTINGS: dict[str, Any] = {
    "name": "freehold",  # of the app
    "model": "",  # as the engine knows it
    "vectors": False,  # it gives vectors, not text
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
