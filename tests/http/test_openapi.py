"""The OpenAPI document says what the routes do; a fuzzer that believes it finds no failure of ours."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from starlette.routing import Route

from freehold.serve.http.app import document, routes
from freehold.serve.http.core.call import endpoint_of
from tests.http.fakes import Script
from tests.http.ollama_rig import with_tiny
from tests.http.test_chat import CHAT
from tests.http.test_tools import OFFER

DOCUMENT = document(routes())
# Liveness, the page's files, who asks, and the ways to a session and out of it.
OPEN = {
    "/health",
    "/",
    "/assets/{name}",
    "/console/api/me",
    *(f"/console/{way}" for way in ("login", "owner", "logout")),
}


def methods(route: Route) -> list[str]:
    """Return the methods a route was made for: starlette lets each GET have a HEAD too."""
    return sorted((route.methods or set()) - {"HEAD"}) or ["HEAD"]


def test_the_document_has_each_route_and_no_other():
    described = {(m, path) for path, item in DOCUMENT["paths"].items() for m in item}
    served = {(m.lower(), re.sub(r":\w+", "", r.path)) for r in routes() for m in methods(r)}
    assert described == served
    names = [op["operationId"] for item in DOCUMENT["paths"].values() for op in item.values()]
    assert len(names) == len(set(names))


def test_each_body_has_the_fields_of_the_struct_that_the_handler_reads():
    for route in routes():
        struct, form = endpoint_of(route).request, endpoint_of(route).form
        method = methods(route)[0].lower()
        operation = DOCUMENT["paths"][re.sub(r":\w+", "", route.path)][method]
        assert ("requestBody" in operation) == (struct is not None or bool(form))
        if struct is not None:
            content = operation["requestBody"]["content"]
            schema = content["multipart/form-data"]["schema"]["allOf"][1] if form else None
            name = (schema or content["application/json"]["schema"])["$ref"].rpartition("/")[2]
            fields = {f.encode_name for f in msgspec.structs.fields(struct)}
            assert set(DOCUMENT["components"]["schemas"][name]["properties"]) == fields


def test_every_route_says_what_it_does_and_who_may():
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            assert operation["summary"].endswith("."), path
            assert (operation["security"] == []) == (path in OPEN)


def test_an_upload_is_said_to_be_made_or_known():
    said = DOCUMENT["paths"]["/api/blobs/{digest}"]["post"]["responses"]
    assert {"200", "201"} <= said.keys()
    assert "201" not in DOCUMENT["paths"]["/v1/files"]["post"]["responses"]


def test_every_reference_leads_somewhere():
    for ref in re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(DOCUMENT)):
        assert ref in DOCUMENT["components"]["schemas"]


def test_the_server_serves_it(serving):
    server = serving()
    store, console = server.doors.server.store is not None, server.doors.server.console
    served = document(routes(store=store, console=console))
    assert server.client.get("/openapi.json").json() == msgspec.json.decode(msgspec.json.encode(served))


ASKED = {"model": "fake:1b", "max_tokens": 9, "return_token_ids": True, "n": 2}
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**ASKED, **CHAT, "logprobs": True, "top_logprobs": 2, "tools": [OFFER]},
    "/v1/completions": {**ASKED, "prompt": ["a b", "c"], "logprobs": 2, "echo": True},
    "/v1/embeddings": {"model": "fake:1b", "input": ["a"], "encoding_format": "base64"},
}


PLAIN = dict.fromkeys(["logprobs", "top_logprobs", "return_token_ids", "tools"])
CALLING = Script(text="a b", thinking="hm", calls=(("get_weather", "{}"),))


def test_whole_answers_have_the_fields_that_the_document_names_and_no_others(serving, tmp_path):
    server = serving(drain_s=0.1)
    with_tiny(server.store, tmp_path)
    replies = {r.path: reply for r in routes() if (reply := endpoint_of(r).reply) is not None}
    for path, reply in replies.items():
        asked = ASKS.get(path)
        server.models.play(CALLING if "tools" in (asked or {}) else Script(text="a b"))
        path = path.replace("{id:path}", "fake:1b")
        for body in (asked, {**asked, **PLAIN}) if asked else (None,):
            given = server.client.get(path) if body is None else server.client.post(path, json=body)
            assert given.status_code == 200, (path, given.text)
            msgspec.convert(given.json(), reply)
    assert len(replies) >= 11


UNENDING = "/console/api/live"  # streams until the viewer leaves, which a fuzzer does not
NEWEST = "/console/api/models"  # seconds, where a list computed after the question is asked for


@pytest.mark.heavy
@pytest.mark.long
def test_a_fuzzer_of_the_document_finds_no_failure_of_ours(serving):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import response_schema_conformance

    server = serving()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in ("/admin/stop", UNENDING):
            continue
        examples = 2 if operation.path == NEWEST else 15

        @given(case=operation.as_strategy())
        @settings(
            max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        def no_failure(case) -> None:  # type: ignore[no-untyped-def]
            answer = case.call(base_url=server.url, timeout=300)
            offline = (
                answer.status_code == 503 and "offline mode" in answer.text
            )  # the documented answer to a download
            assert answer.status_code < 500 or offline, (
                answer.status_code,
                answer.text,
                case.as_curl_command(),
            )
            case.validate_response(answer, checks=[response_schema_conformance])

        no_failure()
    assert server.client.get("/health").status_code == 200
