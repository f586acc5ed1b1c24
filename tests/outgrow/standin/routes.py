"""The stand-in's routes: those that every engine has, and those of its dialect."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.outgrow.standin import text
from tests.outgrow.standin.server import Answer, StandIn, problem

OWNERS = {"trtllm": "tensorrt_llm", "ollama": "library"}
VERSIONS = {"vllm": "0.32.0", "sglang": "0.5.23", "trtllm": "1.2.1", "ollama": "0.35.0"}


def application(standin: StandIn) -> web.Application:
    """Return the routes of one stand-in."""
    app = web.Application(middlewares=[_guard(standin)], client_max_size=64 << 20)
    doors = Doors(standin)
    add = app.router.add_route
    add("POST", "/v1/chat/completions", doors.chat)
    add("POST", "/v1/completions", doors.complete)
    add("POST", "/v1/embeddings", doors.embed)
    add("GET", "/v1/models", doors.models)
    if standin.dialect.health != "none" and standin.settings.dialect != "ollama":
        add("GET", "/health", doors.health)
    if standin.dialect.metrics is not None:
        add("GET", "/metrics", doors.metrics)
    for method, path, door in doors.own():
        add(method, path, door)
    return app


def _guard(standin: StandIn) -> Any:
    dialect = standin.dialect

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> Any:
        path = request.path
        if standin.loading and standin.settings.dialect == "llamacpp":
            return problem(503, "Loading model", "unavailable_error")
        asks = (
            standin.key
            and path.startswith(dialect.key_guards)
            and not path.startswith(dialect.key_spares or "\0")
        )
        if asks and request.headers.get("Authorization") != f"Bearer {standin.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    return guard


class Doors:
    """Handlers."""

    def __init__(self, standin: StandIn) -> None:
        self.standin = standin
        self.created: set[str] = set()  # ollama: names of models
        self.blobs: set[str] = set()

    def own(self) -> list[tuple[str, str, Any]]:
        """Return the dialect's own routes."""
        name = self.standin.settings.dialect
        version = ("GET", "/version", self.version)
        if name == "vllm":
            return [version, ("POST", "/tokenize", self.tokenize), ("POST", "/detokenize", self.detokenize)]
        if name == "sglang":
            same = [("GET", path, self.health) for path in ("/health_generate", "/ready")]
            return [
                *same,
                ("GET", "/server_info", self.server_info),
                ("GET", "/model_info", self.server_info),
            ]
        if name == "trtllm":
            return [version, ("GET", "/health_generate", self.health)]
        if name == "llamacpp":
            return [
                ("GET", "/props", self.props),
                ("GET", "/slots", self.slots),
                ("POST", "/tokenize", self.tokenize),
            ]
        if name == "ollama":
            return [
                ("GET", "/", self.root),
                ("GET", "/api/version", self.version),
                ("GET", "/api/tags", self.tags),
                ("GET", "/api/ps", self.tags),
                ("HEAD", "/api/blobs/{digest}", self.has_blob),
                ("POST", "/api/blobs/{digest}", self.put_blob),
                ("POST", "/api/create", self.create),
                ("POST", "/api/generate", self.generate),
            ]
        return []

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await request.json()
        if refusal := self._refusal(chat=chat):
            return refusal
        known = {self.standin.settings.model, *self.created}
        if self.standin.settings.dialect in ("vllm", "ollama") and body.get("model") not in known:
            return problem(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
        if self.standin.death in ("error", "abort"):
            return problem(500, "EngineCore encountered an issue.", "InternalServerError")
        only = self.standin.dialect.only
        if only is not None and (unknown := body.keys() - only):
            return web.json_response({"error": f"extra_forbidden: {sorted(unknown)}"}, status=400)
        if (
            self.standin.settings.dialect == "sglang"
            and chat
            and body.get("stream")
            and body.get("return_token_ids")
        ):
            return problem(400, "return_token_ids is not supported with streaming", "BadRequestError")
        if self.standin.settings.dialect == "mlx" and body.get("model") != "default_model":
            return problem(404, f"{body.get('model')} would be fetched from the hub", "not_found")
        answer = Answer(self.standin, chat, body)
        length = len(text.encode(answer.prompt()))
        if length + 1 > self.standin.settings.context:
            limit = self.standin.settings.context
            message = (
                f"This model's maximum context length is {limit} tokens. However, your request has {length}"
            )
            return problem(400, f"{message} input tokens.", "BadRequestError")
        return await (answer.stream(request) if body.get("stream") else answer.whole())

    def _refusal(self, *, chat: bool) -> web.Response | None:
        """Refuse, as an engine that was started for vectors does."""
        s = self.standin.settings
        if "--embedding" in s.flags and s.dialect == "llamacpp":
            return problem(501, "This server does not support completions.", "not_supported_error")
        if "--runner" in s.flags:
            return problem(501, "The model does not support Completions API", "NotImplementedError")
        if "--chats-only" in s.flags and not chat:  # a server without that route
            return problem(404, "Not Found", "not_found")
        return None

    async def embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        rows = [
            {
                "object": "embedding",
                "index": i,
                "embedding": [b / 255 for b in hashlib.sha256(t.encode()).digest()[:8]],
            }
            for i, t in enumerate(texts)
        ]
        tokens = sum(len(text.encode(t)) for t in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": rows, "model": body.get("model"), "usage": usage})

    async def models(self, request: web.Request) -> web.Response:
        s = self.standin.settings
        names = sorted(self.created) if s.dialect == "ollama" else [s.model]
        rows: list[dict[str, Any]] = [
            {
                "id": n,
                "object": "model",
                "owned_by": OWNERS.get(s.dialect, s.dialect),
                "max_model_len": s.context,
            }
            for n in names
        ]
        return web.json_response({"object": "list", "data": rows})

    async def health(self, request: web.Request) -> web.Response:
        s = self.standin
        if s.death in ("error", "abort"):
            return web.Response(status=503)
        if s.dialect.health == "token" and s.death == "hang":
            await asyncio.sleep(20)  # SGLang's own time limit of the check
            return web.Response(status=503)
        if s.settings.dialect == "llamacpp":
            return web.json_response({"status": "ok"})
        return web.Response(status=s.dialect.draining_status if s.draining else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        s = self.standin
        if s.dialect.metrics_flag and s.dialect.metrics_flag not in s.settings.flags:
            if s.settings.dialect == "llamacpp":
                return problem(501, "This server does not support metrics endpoint.", "not_supported_error")
            return web.Response(status=404)
        assert s.dialect.metrics is not None
        body = s.dialect.metrics(s.counted, s.settings.model)
        return web.Response(body=body.encode(), headers={"Content-Type": s.dialect.metrics_type})

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": VERSIONS[self.standin.settings.dialect]})

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "messages" in body:
            said = text.rendered(body["messages"], open_end=not body.get("add_generation_prompt", True))
        else:
            said = body.get("prompt", body.get("content", ""))
        ids = text.encode(said)
        if self.standin.settings.dialect == "llamacpp":
            return web.json_response({"tokens": ids})
        return web.json_response(
            {"count": len(ids), "max_model_len": self.standin.settings.context, "tokens": ids}
        )

    async def detokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": text.decode((await request.json())["tokens"])})

    async def server_info(self, request: web.Request) -> web.Response:
        s = self.standin.settings
        said = {"version": VERSIONS["sglang"], "model_path": s.source, "served_model_name": s.model}
        return web.json_response(said | {"max_total_num_tokens": 65536, "context_length": s.context})

    async def props(self, request: web.Request) -> web.Response:
        s = self.standin.settings
        settings = {"n_ctx": s.context // s.slots}
        said = {"default_generation_settings": settings, "total_slots": s.slots, "model_path": s.source}
        return web.json_response(said | {"build_info": "b10434-7e4c0a9", "chat_template": ""})

    async def slots(self, request: web.Request) -> web.Response:
        c = self.standin.counted
        return web.json_response(
            [{"id": i, "is_processing": i < c.running} for i in range(self.standin.settings.slots)]
        )

    async def root(self, request: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def tags(self, request: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": n, "model": n} for n in sorted(self.created)]})

    async def has_blob(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._blob(request.match_info["digest"]) else 404)

    def _blob(self, digest: str) -> bool:
        """Whether its store has a blob: one that was sent, or a file that was put there."""
        store = os.environ.get("OLLAMA_MODELS", "")
        there = bool(store) and (Path(store) / "blobs" / digest.replace(":", "-")).exists()
        return there or digest in self.blobs

    async def put_blob(self, request: web.Request) -> web.Response:
        digest = request.match_info["digest"]
        found = hashlib.sha256()
        async for part in request.content.iter_chunked(1 << 20):
            found.update(part)
        if f"sha256:{found.hexdigest()}" != digest.replace("-", ":"):
            return web.json_response({"error": "digest mismatch"}, status=400)
        self.blobs.add(digest)
        return web.Response(status=201)

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        missing = [d for d in body.get("files", {}).values() if not self._blob(d)]
        if missing:
            return web.json_response({"error": f"blob {missing[0]} not found"}, status=400)
        name = body["model"] if ":" in body["model"] else body["model"] + ":latest"
        self.created |= {name, body["model"]}
        return web.json_response({"status": "success"})

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["model"] not in self.created:
            return web.json_response({"error": f"model '{body['model']}' not found"}, status=404)
        return web.json_response(
            {"model": body["model"], "response": "", "done": True, "done_reason": "load"}
        )
