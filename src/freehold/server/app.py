"""Puts the routes together: one application for the network, one with admin routes for the Unix socket.

Knows every handler and no protocol. Path: serve.py -> make_apps -> Gate -> Starlette's router -> Endpoint -> handler
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import freehold
from freehold.server.admin import admin_routes
from freehold.server.anthropic import models as anthropic_models
from freehold.server.anthropic.errors import anthropic_error, speaks
from freehold.server.anthropic.messages import count_tokens, messages
from freehold.server.auth import Headers
from freehold.server.call import Call, Endpoint, Gate, Server
from freehold.server.ollama import routes as ollama
from freehold.server.openai import batches, files
from freehold.server.openai import models as openai_models
from freehold.server.openai.chat import chat
from freehold.server.openai.completions import completions
from freehold.server.openai.embeddings import embeddings
from freehold.server.openai.responses import routes as responses
from freehold.server.problems import Refused, Wording, openai_error
from freehold.server.rerank import rerank, score
from freehold.server.tokens import detokenize, tokenize, tokenizer_info

_EXPOSITION = b"text/plain; version=1.0.0; charset=utf-8"


def make_app(server: Server, *, admin: bool = False) -> Starlette:
    """Return the application; `admin` adds what only the owner may do, for a socket only the owner reaches."""
    routes = public_routes() + (admin_routes() if admin else [])
    if server.store is not None:
        routes += ollama.store_routes()
    layers = [Middleware(Gate, server=server, wording=wording)]
    if server.guard.origins and not admin:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=server.guard.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
        layers.insert(0, cors)
    # Redirecting /v1/models/ to /v1/models would name the Host header's choice of server.
    app = Starlette(routes=routes, middleware=layers, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False
    return app


def public_routes() -> list[BaseRoute]:
    """Return what anybody with a key may ask."""
    return [
        _route("POST", "/v1/chat/completions", chat),
        _route("POST", "/v1/completions", completions),
        _route("POST", "/v1/messages", messages),
        _route("POST", "/v1/messages/count_tokens", count_tokens),
        _route("POST", "/v1/embeddings", embeddings),
        *(_route("POST", path, rerank) for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
        *(_route("POST", path, score) for path in ("/v1/score", "/score")),
        _route("POST", "/v1/responses", responses.create),
        _route("GET", "/v1/responses/{id}", responses.retrieve),
        _route("DELETE", "/v1/responses/{id}", responses.delete),
        _route("POST", "/v1/responses/{id}/cancel", responses.cancel),
        _route("GET", "/v1/responses/{id}/input_items", responses.input_items),
        _route("POST", "/v1/files", files.upload),
        _route("GET", "/v1/files", files.files),
        _route("GET", "/v1/files/{id}", files.file),
        _route("GET", "/v1/files/{id}/content", files.content),
        _route("DELETE", "/v1/files/{id}", files.delete),
        _route("POST", "/v1/batches", batches.create),
        _route("GET", "/v1/batches", batches.batches),
        _route("GET", "/v1/batches/{id}", batches.batch),
        _route("POST", "/v1/batches/{id}/cancel", batches.cancel),
        _route("GET", "/v1/models", models),
        _route("GET", "/v1/models/{id:path}", model),
        _route("POST", "/tokenize", tokenize),
        _route("POST", "/detokenize", detokenize),
        _route("GET", "/tokenizer_info", tokenizer_info),
        _route("GET", "/health", health),
        _route("GET", "/ready", ready),
        _route("GET", "/metrics", metrics),
        _route("GET", "/version", version),
        *ollama.routes(),
    ]


def endpoints() -> dict[str, Endpoint]:
    """Return the endpoints that a batch may ask, by path."""
    found = {r.path: r.endpoint for r in public_routes() if isinstance(r, Route)}
    asked = {path: found[path] for path in batches.ENDPOINTS}
    return {path: endpoint for path, endpoint in asked.items() if isinstance(endpoint, Endpoint)}


def _route(method: str, path: str, handle) -> Route:  # type: ignore[no-untyped-def]
    return Route(path, Endpoint(path, handle), methods=[method])


def wording(path: str, headers: Headers) -> Wording:
    """Return how errors are worded to whoever sent `headers`."""
    if ollama.is_ours(path):
        return ollama.ollama_error
    return anthropic_error if speaks(path, headers) else openai_error


async def models(call: Call) -> None:
    """List every model: in Anthropic's shape with an `anthropic-version` header, otherwise in OpenAI's."""
    of = anthropic_models if speaks(call.scope["path"], call.headers) else openai_models
    await of.models(call)


async def model(call: Call) -> None:
    """Describe one, in either shape; its id may hold `/` and `:`."""
    of = anthropic_models if speaks(call.scope["path"], call.headers) else openai_models
    await of.model(call)


async def health(call: Call) -> None:
    """Say 200 while idle or while steps progress, 503 with the reason when an engine stands still."""
    stuck = call.server.health.stuck()
    if stuck:
        await call.answer({"status": "stuck", "reason": "; ".join(stuck)}, 503)
    else:
        await call.answer({"status": "ok"})


async def ready(call: Call) -> None:
    """Say 200 when new requests may come."""
    why = call.server.health.not_ready()
    await call.answer(
        {"status": "not ready", "reason": why} if why else {"status": "ready"}, 503 if why else 200
    )


async def metrics(call: Call) -> None:
    """Answer a scrape."""
    await call.answer(call.server.metrics.exposition(), kind=_EXPOSITION)


async def version(call: Call) -> None:
    """Say which version this is."""
    await call.answer({"version": freehold.__version__})


async def _http_error(request: Request, e: Exception) -> Response:
    """Hand the router's own refusals to the Gate, which answers in our shape."""
    if isinstance(e, HTTPException) and e.status_code == 405:
        allow = (e.headers or {}).get("Allow", "")
        raise Refused(
            405,
            f"{request.method} is not a method of this route",
            code="method_not_allowed",
            headers=((b"allow", allow.encode()),),
        )
    raise Refused(404, f"no route {request.url.path[:200]!r}", code="no_route")
