"""The table of routes. A new route is a line here: method, path, handler, the struct it reads, who may ask.

Knows every handler and no protocol.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from freehold.base.version import __version__
from freehold.serve.http.anthropic import messages as anthropic_models
from freehold.serve.http.anthropic.fields import CountRequest, MessagesRequest
from freehold.serve.http.anthropic.messages import count_tokens, messages
from freehold.serve.http.anthropic.shape import anthropic_error, speaks
from freehold.serve.http.console.page import asset, page
from freehold.serve.http.core.auth import ASSETS, CONSOLE, Headers
from freehold.serve.http.core.call import Endpoint, HttpCall, Server, endpoint_of, route
from freehold.serve.http.core.gate import Gate
from freehold.serve.http.core.problems import Refused, Wording, openai_error
from freehold.serve.http.ollama import routes as ollama
from freehold.serve.http.ollama.shape import greeting, is_ours, ollama_error
from freehold.serve.http.openai import audio, embeddings, files
from freehold.serve.http.openai import models as openai_models
from freehold.serve.http.openai import vector_stores as vectors
from freehold.serve.http.openai.chat import chat
from freehold.serve.http.openai.completions import CompletionRequest, InfillRequest, completions, infill
from freehold.serve.http.openai.fields.chat import ChatRequest
from freehold.serve.http.openai.responses import routes as responses
from freehold.serve.http.openai.responses.fields import ResponseRequest
from freehold.serve.http.openai.shape import (
    ChatCompletion,
    EmbeddingList,
    ModelCard,
    ModelList,
    TextCompletion,
)
from freehold.serve.http.system import admin
from freehold.serve.http.system.deployments import deployment_routes

_ASSETS = ("text/javascript", "text/css", "text/plain")
_STREAMED = ("application/json", "text/event-stream")
_HEARD = ("application/json", "text/plain", "text/event-stream")
_PAGE = ("limit", "after", "before", "order")  # of OpenAI's lists


def make_app(server: Server) -> ASGIApp:
    """Return the application; its guard decides about access.

    The gate answers every exception and finds the endpoints that most requests ask, so it comes first: an application
    around it costs each request a tenth of what the server does for it.
    """
    routes = _routes(store=server.store is not None, page=server.console)
    posted = {r.path: endpoint_of(r) for r in routes if r.methods == {"POST"} and "{" not in r.path}
    # Redirecting /v1/models/ to /v1/models would name the Host header's choice of server.
    router = Router([*routes, *([_ConsoleRoutes()] if server.console else ())], redirect_slashes=False)
    handled = ExceptionMiddleware(router, {HTTPException: _http_error})

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # without it the router words by itself what it does not find
        await handled(scope, receive, send)

    app = Gate(routed, server, wording, posted)
    if not server.guard.origins or server.guard.trusted:
        return app
    return _ApiCors(
        app,
        allow_origins=server.guard.origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
    )


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
    from freehold.serve.http.console.routes import console_routes

    return console_routes()


def _routes(*, store: bool, page: bool) -> list[Route]:
    """Return the routes beside those below /console/."""
    return [
        route("POST", "/v1/chat/completions", chat, ChatRequest, answer=_STREAMED, reply=ChatCompletion),
        route(
            "POST", "/v1/completions", completions, CompletionRequest, answer=_STREAMED, reply=TextCompletion
        ),
        route("POST", "/v1/messages", messages, MessagesRequest, answer=_STREAMED),
        route("POST", "/v1/messages/count_tokens", count_tokens, CountRequest),
        route(
            "POST",
            "/v1/audio/transcriptions",
            audio.transcriptions,
            audio.TranscriptionRequest,
            form=["file"],
            answer=_HEARD,
        ),
        route(
            "POST",
            "/v1/audio/translations",
            audio.translations,
            audio.TranslationRequest,
            form=["file"],
            answer=_HEARD,
        ),
        route("POST", "/v1/embeddings", embeddings.embed, embeddings.EmbeddingRequest, reply=EmbeddingList),
        *(
            route("POST", f"{at}/rerank", embeddings.rerank, embeddings.RerankRequest)
            for at in ("/v1", "/v2", "")
        ),
        *(route("POST", f"{at}/score", embeddings.score, embeddings.ScoreRequest) for at in ("/v1", "")),
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
        *_vector_routes(),
        route("POST", "/v1/batches", files.create, files.BatchRequest),
        route("GET", "/v1/batches", files.batches, query=_PAGE),
        route("GET", "/v1/batches/{id}", files.batch),
        route("POST", "/v1/batches/{id}/cancel", files.cancel),
        route("GET", "/v1/models", models, audience="any", reply=ModelList),
        route("GET", "/v1/models/{id:path}", model, audience="any", reply=ModelCard),
        route("POST", "/infill", infill, InfillRequest, answer=_STREAMED),
        route("POST", "/tokenize", openai_models.tokenize, openai_models.TokenizeRequest),
        route("POST", "/detokenize", openai_models.detokenize, openai_models.DetokenizeRequest),
        route("GET", "/tokenizer_info", openai_models.tokenizer_info, query=["model"]),
        route("GET", "/health", admin.health, audience="all", reply=admin.HealthReply),
        route("GET", "/ready", admin.ready, audience="any", reply=admin.ReadyReply),
        route("GET", "/metrics", admin.metrics, audience="operator", answer=["text/plain"]),
        route("GET", "/version", admin.version, audience="any", reply=admin.VersionReply),
        route("GET", "/openapi.json", openapi, audience="any"),
        route("GET", "/", root, audience="page", answer=["text/plain", "text/html"]),
        *ollama.routes(),
        *(ollama.store_routes() if store else ()),
        *admin.admin_routes(),
        *deployment_routes(),
        *([route("GET", "/assets/{name}", asset, audience="page", answer=_ASSETS)] if page else ()),
    ]


def _vector_routes() -> list[Route]:
    """Return the routes of vector stores."""
    at, of = "/v1/vector_stores", vectors
    one = f"{at}/{{id}}"
    files_at, batches_at = f"{one}/files", f"{one}/file_batches"
    return [
        route("POST", at, of.create, of.VectorStoreRequest),
        route("GET", at, of.stores, query=_PAGE),
        route("GET", one, of.store),
        route("POST", one, of.change, of.VectorStoreChange),
        route("DELETE", one, of.delete),
        route("POST", f"{one}/search", of.search, of.StoreSearchRequest),
        route("POST", files_at, of.attach, of.StoreFileRequest),
        route("GET", files_at, of.files, query=(*_PAGE, "filter")),
        route("GET", f"{files_at}/{{file_id}}", of.file),
        route("POST", f"{files_at}/{{file_id}}", of.change_file, of.StoreFileChange),
        route("GET", f"{files_at}/{{file_id}}/content", of.content),
        route("DELETE", f"{files_at}/{{file_id}}", of.detach),
        route("POST", batches_at, of.attach_batch, of.FileBatchRequest),
        route("GET", f"{batches_at}/{{batch_id}}", of.batch),
        route("POST", f"{batches_at}/{{batch_id}}/cancel", of.cancel_batch),
        route("GET", f"{batches_at}/{{batch_id}}/files", of.batch_files, query=(*_PAGE, "filter")),
    ]


def endpoints() -> dict[str, Endpoint]:
    """Return the endpoints that a batch may ask, by path."""
    return {r.path: endpoint_of(r) for r in routes(console=False) if r.path in files.ENDPOINTS}


def wording(path: str, headers: Headers) -> Wording:
    """Return how errors of this path and these headers are worded."""
    if is_ours(path):
        return ollama_error
    return anthropic_error if speaks(path, headers) else openai_error


async def models(call: HttpCall) -> None:
    """List all models, in Anthropic's format with an `anthropic-version` header, otherwise in OpenAI's."""
    of = anthropic_models if speaks(call.scope["path"], call.headers) else openai_models
    await of.models(call)


async def model(call: HttpCall) -> None:
    """Return one model, in the same formats; its id may contain `/` and `:`."""
    of = anthropic_models if speaks(call.scope["path"], call.headers) else openai_models
    await of.model(call)


async def root(call: HttpCall) -> None:
    """Serve the web console to browsers, and the sentence that Ollama's clients expect to others."""
    browser = call.scope["method"] == "GET" and b"text/html" in call.headers.get(b"accept", b"")
    if browser and call.server.console:
        await page(call)
    else:
        await greeting(call)


async def openapi(call: HttpCall) -> None:
    """Return a description of all routes (OpenAPI 3.1)."""
    parts = call.server.store is not None, call.server.console
    if parts not in _descriptions:
        await call.in_thread(_describe, *parts)
    await call.answer(_descriptions[parts])


_descriptions: dict[tuple[bool, bool], bytes] = {}
_describing = (
    threading.Lock()
)  # one thread at a time: together they would keep the loop from running for 0.2 s


def _describe(store: bool, console: bool) -> None:
    with _describing:
        if (store, console) not in _descriptions:
            described = document(routes(store=store, console=console))
            _descriptions[store, console] = msgspec.json.encode(described)


async def _http_error(request: Request, e: Exception) -> Response:
    """Hand the router's own refusals to the Gate, which answers in our shape."""
    if isinstance(e, HTTPException) and e.status_code == 405:
        allow = (e.headers or {}).get("Allow", "")
        message = f"{request.method} is not a method of this route"
        raise Refused(405, message, code="method_not_allowed", headers=((b"allow", allow.encode()),))
    raise Refused(404, f"no route {request.url.path[:200]!r}", code="no_route")


# --- the OpenAPI document, made from the route table and the structs of requests, so that it matches them
# Answers without a struct of theirs, and all streams, are described by their media type alone.

VERSION = "3.1.0"
_REFUSALS = {
    "400": "Malformed: what, where, and what was expected.",
    "401": "No key, or none of this server's.",
    "403": "Not for this key, or not for this page.",
    "404": "No such model, or no such thing.",
    "413": "The body is too long.",
    "429": "The key's rate or budget is spent, or too many wait; Retry-After says for how long.",
    "503": "The server is at capacity, or is stopping.",
}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the whole document."""
    table = [(method, each, endpoint_of(each)) for each in routes for method in _methods(each)]
    named = {each for _, _, e in table for each in (e.request, e.reply) if each is not None}
    structs = sorted(named, key=lambda s: s.__name__)
    schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    refs = dict(zip(structs, schemas[0], strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for method, each, endpoint in table:
        path = _PARAMETER.sub(r"{\1}", each.path)
        paths.setdefault(path, {})[method.lower()] = _operation(method, each, endpoint, refs)
    return {
        "openapi": VERSION,
        "info": {
            "title": "Freehold",
            "version": __version__,
            "description": "Local language models. Errors have the form of the request's protocol.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas[1],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _methods(route: Route) -> list[str]:
    return sorted((route.methods or set()) - {"HEAD"} or {"HEAD"})


def _operation(method: str, route: Route, endpoint: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    doc = inspect.getdoc(endpoint.handle) or ""
    name = re.sub(r"\W+", "_", _PARAMETER.sub(r"\1", route.path)).strip("_")
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}_{name}",
        "summary": doc.splitlines()[0] if doc else "",
        "tags": [endpoint.audience],
        "responses": _responses(endpoint, refs),
        "security": [] if endpoint.audience in ("all", "page") else [{"bearer": []}, {"header": []}],
    }
    parameters = [_parameter(p, "path") for p in _PARAMETER.findall(route.path)]
    parameters += [_parameter(q, "query") for q in endpoint.query]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.request is not None and not endpoint.form:
        content = {"application/json": {"schema": refs[endpoint.request]}}
        operation["requestBody"] = {"required": True, "content": content}
    if endpoint.form:
        schema = _form(endpoint)
        if endpoint.request is not None:
            schema = {"allOf": [schema, refs[endpoint.request]]}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return operation


def _form(endpoint: Endpoint) -> dict[str, Any]:
    fields: dict[str, Any] = {name: {"type": "string"} for name in endpoint.form}
    fields[endpoint.form[0]] = {"type": "string", "contentMediaType": "application/octet-stream"}
    return {"type": "object", "properties": fields, "required": list(endpoint.form)}


def _parameter(name: str, where: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": {"type": "string"}}


def _responses(endpoint: Endpoint, refs: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {media: {} for media in endpoint.answer}
    if endpoint.reply is not None:
        content["application/json"] = {"schema": refs[endpoint.reply]}
    ok = {"description": "The answer.", "content": content}
    error = {"application/json": {"schema": {"type": "object"}}}
    refusals = {status: {"description": text, "content": error} for status, text in _REFUSALS.items()}
    answers = dict.fromkeys(map(str, endpoint.status), ok)
    return {**answers, **({} if endpoint.audience in ("all", "page") else refusals)}
