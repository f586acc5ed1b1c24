"""The table of routes. A new route is a line here: method, path, handler, the struct it reads, who may ask.

Knows every handler and no protocol. Path: serve.py -> make_app -> Gate -> Starlette's router -> Endpoint -> handler
"""

from __future__ import annotations

import asyncio
from functools import cache

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Receive, Scope, Send

from freehold.server.anthropic import models as anthropic_models
from freehold.server.anthropic.errors import anthropic_error, speaks
from freehold.server.anthropic.fields import CountRequest, MessagesRequest
from freehold.server.anthropic.messages import count_tokens, messages
from freehold.server.console.page import asset, page
from freehold.server.core.auth import ASSETS, CONSOLE, Headers
from freehold.server.core.call import Endpoint, HttpCall, Server, endpoint_of, route
from freehold.server.core.gate import Gate
from freehold.server.core.problems import Refused, Wording, openai_error
from freehold.server.ollama import routes as ollama
from freehold.server.openai import batches, files
from freehold.server.openai import models as openai_models
from freehold.server.openai.chat import chat
from freehold.server.openai.completions import CompletionRequest, completions
from freehold.server.openai.embeddings import EmbeddingRequest, embeddings
from freehold.server.openai.fields.chat import ChatRequest
from freehold.server.openai.infill import InfillRequest, infill
from freehold.server.openai.replies import ChatCompletion, EmbeddingList, ModelCard, ModelList, TextCompletion
from freehold.server.openai.rerank import RerankRequest, ScoreRequest, rerank, score
from freehold.server.openai.responses import routes as responses
from freehold.server.openai.responses.fields import ResponseRequest
from freehold.server.openai.tokens import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenize,
    tokenize,
    tokenizer_info,
)
from freehold.server.openapi import document
from freehold.server.system.admin import admin_routes
from freehold.server.system.deployments import deployment_routes
from freehold.server.system.probes import (
    HealthReply,
    ReadyReply,
    VersionReply,
    health,
    metrics,
    ready,
    version,
)

_ASSETS = ("text/javascript", "text/css", "text/plain")
_STREAMED = ("application/json", "text/event-stream")
_PAGE = ("limit", "after", "order")  # of OpenAI's lists


def make_app(server: Server) -> Starlette:
    """Return the application; its guard decides about access."""
    routes = _routes(store=server.store is not None, page=server.console)
    posted = {r.path: endpoint_of(r) for r in routes if r.methods == {"POST"} and "{" not in r.path}
    layers = [Middleware(Gate, server=server, wording=wording, posted=posted)]
    if server.guard.origins and not server.guard.trusted:
        cors = Middleware(
            _ApiCors,
            allow_origins=server.guard.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
        layers.insert(0, cors)
    # Redirecting /v1/models/ to /v1/models would name the Host header's choice of server.
    app = Starlette(
        routes=[*routes, *([_ConsoleRoutes()] if server.console else ())],
        middleware=layers,
        exception_handlers={HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    return app


class _ApiCors(CORSMiddleware):
    """CORS for the API alone: no other page may read ours, or what only ours asks."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = scope["type"] == "http" and (
            scope["path"] == "/" or scope["path"].startswith((ASSETS, CONSOLE))
        )
        await (self.app(scope, receive, send) if own else super().__call__(scope, receive, send))


class _ConsoleRoutes(BaseRoute):
    """The routes that the page asks, imported with the first request for one: at a server's start there is none."""

    def __init__(self) -> None:
        self._router: Router | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        ours = scope["type"] == "http" and scope["path"].startswith(CONSOLE)
        return (Match.FULL if ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._router is None:  # in a thread, beside the streams of others
            self._router = Router(await asyncio.to_thread(_console_routes), redirect_slashes=False)
        await self._router(scope, receive, send)


def routes(*, store: bool = True, console: bool = True) -> list[Route]:
    """Return every route of a server; without `store` of one without models on disk, without `console` of no page."""
    return [*_routes(store=store, page=console), *(_console_routes() if console else ())]


def _console_routes() -> list[Route]:
    from freehold.server.console.routes import console_routes

    return console_routes()


def _routes(*, store: bool, page: bool) -> list[Route]:
    """Return the routes beside those below /console/."""
    return [
        route("POST", "/v1/chat/completions", chat, ChatRequest, answer=_STREAMED, reply=ChatCompletion),
        route(
            "POST",
            "/v1/completions",
            completions,
            CompletionRequest,
            answer=_STREAMED,
            reply=TextCompletion,
        ),
        route("POST", "/v1/messages", messages, MessagesRequest, answer=_STREAMED),
        route("POST", "/v1/messages/count_tokens", count_tokens, CountRequest),
        route("POST", "/v1/embeddings", embeddings, EmbeddingRequest, reply=EmbeddingList),
        *(route("POST", path, rerank, RerankRequest) for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
        *(route("POST", path, score, ScoreRequest) for path in ("/v1/score", "/score")),
        route("POST", "/v1/responses", responses.create, ResponseRequest, answer=_STREAMED),
        route("GET", "/v1/responses/{id}", responses.retrieve),
        route("DELETE", "/v1/responses/{id}", responses.delete),
        route("POST", "/v1/responses/{id}/cancel", responses.cancel),
        route("GET", "/v1/responses/{id}/input_items", responses.input_items, query=_PAGE),
        route("POST", "/v1/files", files.upload, form=["file", "purpose"]),
        route("GET", "/v1/files", files.files, query=_PAGE),
        route("GET", "/v1/files/{id}", files.file),
        route("GET", "/v1/files/{id}/content", files.content, answer=["application/octet-stream"]),
        route("DELETE", "/v1/files/{id}", files.delete),
        route("POST", "/v1/batches", batches.create, batches.BatchRequest),
        route("GET", "/v1/batches", batches.batches, query=_PAGE),
        route("GET", "/v1/batches/{id}", batches.batch),
        route("POST", "/v1/batches/{id}/cancel", batches.cancel),
        route("GET", "/v1/models", models, audience="any", reply=ModelList),
        route("GET", "/v1/models/{id:path}", model, audience="any", reply=ModelCard),
        route("POST", "/infill", infill, InfillRequest, answer=_STREAMED),
        route("POST", "/tokenize", tokenize, TokenizeRequest),
        route("POST", "/detokenize", detokenize, DetokenizeRequest),
        route("GET", "/tokenizer_info", tokenizer_info, query=["model"]),
        route("GET", "/health", health, audience="all", reply=HealthReply),
        route("GET", "/ready", ready, audience="any", reply=ReadyReply),
        route("GET", "/metrics", metrics, audience="operator", answer=["text/plain"]),
        route("GET", "/version", version, audience="any", reply=VersionReply),
        route("GET", "/openapi.json", openapi, audience="any"),
        route("GET", "/", root, audience="page", answer=["text/plain", "text/html"]),
        *ollama.routes(),
        *(ollama.store_routes() if store else ()),
        *admin_routes(),
        *deployment_routes(),
        *([route("GET", "/assets/{name}", asset, audience="page", answer=_ASSETS)] if page else ()),
    ]


def endpoints() -> dict[str, Endpoint]:
    """Return the endpoints that a batch may ask, by path."""
    return {r.path: endpoint_of(r) for r in routes(console=False) if r.path in batches.ENDPOINTS}


def wording(path: str, headers: Headers) -> Wording:
    """Return how errors of this path and these headers are worded."""
    if ollama.is_ours(path):
        return ollama.ollama_error
    return anthropic_error if speaks(path, headers) else openai_error


async def models(call: HttpCall) -> None:
    """List every model: in Anthropic's shape with an `anthropic-version` header, otherwise in OpenAI's."""
    of = anthropic_models if speaks(call.scope["path"], call.headers) else openai_models
    await of.models(call)


async def model(call: HttpCall) -> None:
    """Describe one, in either shape; its id may hold `/` and `:`."""
    of = anthropic_models if speaks(call.scope["path"], call.headers) else openai_models
    await of.model(call)


async def root(call: HttpCall) -> None:
    """Answer a browser with a page, and other clients with the sentence that Ollama's clients expect."""
    browser = call.scope["method"] == "GET" and b"text/html" in call.headers.get(b"accept", b"")
    await (page if browser and call.server.console else ollama.greeting)(call)


async def openapi(call: HttpCall) -> None:
    """Describe every route to programs (OpenAPI 3.1)."""
    server = call.server
    await call.answer(await asyncio.to_thread(_described, server.store is not None, server.console))


@cache
def _described(store: bool, console: bool) -> bytes:
    return msgspec.json.encode(document(routes(store=store, console=console)))


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
