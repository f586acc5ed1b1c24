"""The OpenAPI document, made from the route table and the structs of requests, so that it matches them.

Knows routes, structs and statuses; knows no handler's insides. Answers without a struct (replies.py), and all streams,
are described by their media type alone.
Path: app.py's routes -> document -> GET /openapi.json
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.routing import Route

from freehold.server.core.call import Endpoint, endpoint_of
from freehold.version import __version__

VERSION = "3.1.0"
_REFUSALS = {
    "400": "Malformed: what, where, and what was expected.",
    "401": "No key, or none of this server's.",
    "403": "Not for this key, or not for this page.",
    "404": "No such model, or no such thing.",
    "413": "The body is too long.",
    "429": "The key's rate or budget is spent, or too many wait; Retry-After says for how long.",
    "503": "The server has no room, or is stopping.",
}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the whole document."""
    table = [(method, route, endpoint_of(route)) for route in routes for method in _methods(route)]
    named = {each for _, _, e in table for each in (e.request, e.reply) if each is not None}
    structs = sorted(named, key=lambda s: s.__name__)
    schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    refs = dict(zip(structs, schemas[0], strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for method, route, endpoint in table:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[method.lower()] = _operation(method, route, endpoint, refs)
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
    if endpoint.request is not None:
        content = {"application/json": {"schema": refs[endpoint.request]}}
        operation["requestBody"] = {"required": True, "content": content}
    if endpoint.form:
        operation["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": _form(endpoint)}},
        }
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
