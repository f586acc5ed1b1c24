"""Every named error has its status, body and headers, before the first byte and after it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freehold.base import errors
from freehold.base.errors import FreeholdError
from freehold.route.providers.contract import UpstreamFault
from freehold.serve.http.core.keys import Ring, key_of
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.problems import STATUS, openai_error, problem, without_paths
from tests.http.fakes import Script, failing
from tests.http.test_chat import CHAT, events

URL = "/v1/chat/completions"
CASES = [
    (errors.UsageError("no"), 400, "invalid_value"),
    (errors.BadPrompt("no"), 400, "invalid_prompt"),
    (errors.BadTemplate("no"), 400, "template_refused"),
    (errors.ContextOverflow("no"), 400, "context_length_exceeded"),
    (errors.UnsupportedModel("no"), 400, "unsupported_model"),
    (errors.BudgetSpent("no"), 402, "insufficient_quota"),
    (errors.AccessDenied("no"), 403, "access_denied"),
    (errors.PolicyRefused("no"), 403, "policy_refused"),
    (errors.ModelNotFound("no"), 404, "model_not_found"),
    (errors.SlowReader("no"), 408, "slow_reader"),
    (errors.Overloaded("no", wait_s=2.2), 429, "overloaded"),
    (errors.BadModelFile("no"), 500, "bad_model_file"),
    (errors.NonFiniteLogits("no"), 500, "non_finite_logits"),
    (errors.StepFailed("no"), 500, "step_failed"),
    (errors.StoreError("no"), 500, "store_error"),
    (errors.EngineLost("no"), 502, "engine_lost"),
    (errors.UpstreamFailed("no"), 502, "upstream_failed"),
    (UpstreamFault("request", "no", status=422), 400, "upstream_refused"),
    (UpstreamFault("context", "no", status=400), 400, "context_length_exceeded"),
    (UpstreamFault("rate", "no", status=429), 429, "upstream_rate_limited"),
    (UpstreamFault("auth", "no", status=401), 502, "upstream_auth"),
    (UpstreamFault("redirect", "no", status=302), 502, "upstream_redirect"),
    (UpstreamFault("server", "no", status=500), 502, "upstream_failed"),
    (UpstreamFault("connect", "no"), 502, "upstream_unreachable"),
    (UpstreamFault("broken", "no"), 502, "upstream_broken"),
    (UpstreamFault("invalid", "no"), 502, "upstream_invalid"),
    (UpstreamFault("timeout", "no"), 504, "upstream_timeout"),
    (errors.CapacityExceeded("no"), 503, "capacity_exceeded"),
    (errors.EngineClosed("no"), 503, "stopping"),
    (errors.DownloadFailed("no"), 503, "download_failed"),
    (errors.Offline("no"), 503, "offline"),
    (errors.DeadlineExceeded("no"), 504, "deadline_exceeded"),
    (FreeholdError("no"), 500, "internal_error"),
    (RuntimeError("secret /etc/passwd"), 500, "internal_error"),
]


# protocol -> its route, and what a sound request has besides a model and messages
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": (URL, {}),
    "ollama": ("/api/chat", {"stream": False}),
    "anthropic": ("/v1/messages", {"max_tokens": 9}),
}
OVERFLOW = errors.ContextOverflow(
    "prompt has 5,000 tokens; fake:1b is loaded with a context of 4,096",
    "load it with --context 8192, or shorten the prompt",
)
# case -> the server that refuses it, where the usual one would not
SERVERS: dict[str, dict[str, Any]] = {
    "overflow": {"script": failing("start", OVERFLOW)},
    "schema": {"script": failing("start", errors.UsageError("the JSON schema has the type 'hue'"))},
    "alternation": {"script": failing("start", errors.BadTemplate("the template refuses: roles alternate"))},
    "key": {"keys": Ring([key_of("ann", "a" * 20)])},
    "body": {"limits": ServerLimits(body_bytes=1000)},
}
HUE = {"type": "hue"}
TURNED = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "hi"}]
TOOL = [{"role": "tool", "tool_call_id": "c1", "content": "x"}]
ROBOT = [{"role": "robot", "content": "x"}]
# (case, protocol, what is asked, status, OpenAI's code or Anthropic's type, words of the text)
REFUSALS: list[tuple[str, str, dict[str, Any], int, str | None, list[str]]] = [
    ("model", "openai", {"model": "nope"}, 404, "model_not_found", ["'nope'", "GET /v1/models"]),
    ("model", "ollama", {"model": "nope"}, 404, None, ["model 'nope' not found", "GET /v1/models"]),
    ("model", "anthropic", {"model": "nope"}, 404, "not_found_error", ["'nope'", "GET /v1/models"]),
    ("near", "openai", {"model": "fake:1c"}, 404, "model_not_found", ["'fake:1c'", "nearest here: fake:1b"]),
    ("near", "ollama", {"model": "fake:1c"}, 404, None, ["model 'fake:1c' not found", "nearest here: fake:1b"]),
    ("near", "anthropic", {"model": "fake:1c"}, 404, "not_found_error", ["nearest here: fake:1b"]),
    ("known", "openai", {"model": "smollm2:136m"}, 404, "model_not_found",
     ["nearest in the catalogue: ", "smollm2:135m", "GET /v1/models"]),
    ("overflow", "openai", {}, 400, "context_length_exceeded", ["5,000", "4,096", '"overflow": "drop-oldest"']),
    ("overflow", "ollama", {}, 400, None, ["5,000", "4,096", '"truncate": true']),
    ("overflow", "anthropic", {}, 400, "invalid_request_error", ["prompt is too long: 5000 tokens > 4096 maximum"]),
    ("schema", "openai", {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": HUE}}},
     400, "invalid_value", ["'hue'"]),
    ("schema", "ollama", {"format": HUE}, 400, None, ["'hue'"]),
    ("schema", "anthropic", {"output_config": {"format": {"type": "json_schema", "schema": HUE}}},
     400, "invalid_request_error", ["'hue'"]),
    ("no schema", "openai", {"response_format": {"type": "json_schema"}}, 400, None, ["json_schema.schema"]),
    ("no schema", "ollama", {"format": "yaml"}, 400, None, ["format is 'yaml'"]),
    ("no schema", "anthropic", {"output_config": {"format": {"type": "json_schema", "schema": []}}},
     400, "invalid_request_error", ["output_config.format.schema"]),
    ("alternation", "openai", {"messages": TURNED}, 400, "template_refused", ["roles alternate"]),
    ("alternation", "ollama", {"messages": TURNED}, 400, None, ["roles alternate"]),
    ("alternation", "anthropic", {"messages": TURNED}, 400, "invalid_request_error",
     ["messages does not begin with a user's turn"]),
    ("order", "openai", {"messages": TOOL}, 400, None, ["messages[0]"]),
    ("order", "anthropic", {"messages": TOOL}, 400, "invalid_request_error", ["messages[0].role is 'tool'"]),
    ("role", "openai", {"messages": ROBOT}, 400, "invalid_value", ["messages[0].role is 'robot'"]),
    ("role", "ollama", {"messages": ROBOT}, 400, None, ["messages[0].role is 'robot'"]),
    ("role", "anthropic", {"messages": ROBOT}, 400, "invalid_request_error", ["messages[0].role is 'robot'"]),
    ("n", "openai", {"n": 1000}, 400, "invalid_value", ["n is 1000", "<= 128"]),
    ("key", "openai", {}, 401, "invalid_api_key", ["key"]),
    ("key", "ollama", {}, 401, None, ["key"]),
    ("key", "anthropic", {}, 401, "authentication_error", ["key"]),
    ("body", "openai", {"x": "y" * 1000}, 413, "body_too_large", ["longer than 1,000 bytes"]),
    ("body", "ollama", {"x": "y" * 1000}, 413, None, ["longer than 1,000 bytes"]),
    ("body", "anthropic", {"x": "y" * 1000}, 413, "request_too_large", ["longer than 1,000 bytes"]),
]  # fmt: skip


@pytest.mark.parametrize("case, protocol, asked, status, kind, words", REFUSALS)
def test_a_refusal_has_the_status_and_the_body_of_its_protocol(
    serving, case, protocol, asked, status, kind, words
):
    route, more = ROUTES[protocol]
    headers = {"Authorization": f"Bearer {'b' * 20}"}  # which only a server with keys reads
    server = serving(**SERVERS.get(case, {}))
    answer = server.client.post(route, json={**CHAT, **more, **asked}, headers=headers)
    body = answer.json()
    assert answer.status_code == status, answer.text
    if protocol == "ollama":
        assert list(body) == ["error"]
        message = body["error"]
    elif protocol == "openai":
        assert list(body) == ["error"] and body["error"].keys() >= {"message", "type", "param"}
        assert body["error"]["code"] == kind
        message = body["error"]["message"]
    else:
        assert body["type"] == "error" and body["request_id"] == answer.headers["request-id"]
        assert body["error"].keys() == {"type", "message"} and body["error"]["type"] == kind
        message = body["error"]["message"]
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    "route, asked, param",
    [
        (
            URL,
            {"response_format": {"type": "json_schema", "json_schema": {"schema": HUE}}},
            "response_format",
        ),
        (URL, {"response_format": {"type": "text"}, "guided_json": HUE}, "guided_json"),
        (URL, {}, None),  # its tools asked for one
        ("/v1/completions", {"prompt": "x", "structured_outputs": {"json": HUE}}, "structured_outputs"),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_object"}}}, "text.format"),
        ("/v1/responses", {"input": "x", "guided_json": HUE}, "guided_json"),
    ],
)
def test_a_format_that_the_engine_refuses_is_named_as_the_request_named_it(serving, route, asked, param):
    error = errors.UsageError("format: the type 'hue' is unknown", field="format")
    asked = asked if route != URL else {**CHAT, **asked}
    answer = serving(failing("start", error)).client.post(route, json={"model": "fake:1b", **asked})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


@pytest.mark.parametrize("protocol", ROUTES)
def test_a_field_that_nobody_knows_is_named_in_the_warnings_of_every_protocol(serving, protocol):
    route, more = ROUTES[protocol]
    answer = serving().client.post(route, json={**CHAT, **more, "colour": "red"})
    assert answer.json()["freehold"]["warnings"] == ["unknown field 'colour' was ignored"]


@pytest.mark.parametrize("protocol", ["ollama", "anthropic"])
def test_many_answers_are_of_openais_protocol_alone(serving, protocol):
    route, more = ROUTES[protocol]
    server = serving()
    said = server.client.post(route, json={**CHAT, **more, "n": 1000}).json()["freehold"]["warnings"]
    assert said == ["unknown field 'n' was ignored"] and server.models.served["fake:1b"].jobs[-1].n == 1


@pytest.mark.parametrize("error, status, code", CASES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("at", ["use", "start", 0])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_has_its_status_until_the_first_token(serving, error, status, code, at, stream):
    server = serving(failing(at, error))
    answer = server.client.post(URL, json={**CHAT, "stream": stream})
    assert answer.status_code == status
    body = answer.json()
    assert body["error"]["code"] == code
    assert body["error"].keys() >= {"message", "type", "param", "code"}
    assert "secret" not in answer.text
    assert server.models.in_flight == 0


def test_a_stream_that_fails_midway_ends_with_the_error_and_done(serving):
    server = serving(failing(2, errors.EngineLost("the engine died four times")))
    got = events(server.client.post(URL, json={**CHAT, "stream": True}).text)
    assert [e["choices"][0]["delta"].get("content") for e in got[1:3]] == ["Hello", " there,"]
    assert got[-1]["error"]["name"] == "EngineLost"


def test_overload_says_how_long_to_wait(serving):
    server = serving(failing("start", errors.Overloaded("the queue is full", "ask later", 2.2)))
    answer = server.client.post(URL, json=CHAT)
    assert answer.headers["retry-after"] == "3"
    error = answer.json()["error"]
    assert error["expected_wait_s"] == 2.2 and error["message"] == "the queue is full; ask later"
    assert error["hint"] == "ask later" and error["type"] == "rate_limit_error"


def test_what_cannot_get_better_at_once_is_not_asked_again(serving):
    server = serving(failing("use", errors.CapacityExceeded("needs 9 GB, 3 are free")))
    assert server.client.post(URL, json=CHAT).headers["x-should-retry"] == "false"


def test_a_requests_time_runs_while_its_model_is_loaded(serving):
    server = serving(Script(use_delay=30.0))
    answer = server.client.post(URL, json={**CHAT, "timeout": 0.1})
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
    assert not server.models.served["fake:1b"].jobs


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_who_ran_out_of_time_is_told_the_limit_he_gave(serving, prompt):
    late = errors.DeadlineExceeded("the time limit passed after 3 tokens", "give it more time")
    asked = {"model": "fake:1b", "prompt": prompt, "timeout": 2.5}
    answer = serving(failing("start", late)).client.post("/v1/completions", json=asked)
    assert answer.status_code == 504
    message = answer.json()["error"]["message"]
    assert message.endswith("after 3 tokens; the request's own limit is 2.5 s; give it more time")


def test_one_failing_prompt_of_many_fails_the_request_and_frees_the_others(serving):
    server = serving(failing(1, errors.NonFiniteLogits("damaged weights")))
    answer = server.client.post("/v1/completions", json={"model": "fake:1b", "prompt": ["a", "b", "c"]})
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "non_finite_logits"
    assert server.models.in_flight == 0


SPENT = errors.BudgetSpent(
    "key alice has spent 19.98 of 20.00 dollars a day; this request may cost 0.41",
    "ask again tomorrow",
    3600.5,
    spent=19_980_000_000,
    asked=410_000_000,
    limit=20_000_000_000,
)
FORBIDDEN = errors.PolicyRefused("no target of chat may answer a request labelled private")
# (failure, protocol, status, OpenAI's type or Anthropic's, words of the text)
OF_GATEWAY: list[tuple[FreeholdError, str, int, str | None, list[str]]] = [
    (SPENT, "openai", 402, "insufficient_quota", ["19.98 of 20.00", "0.41", "tomorrow"]),
    (SPENT, "anthropic", 402, "billing_error", ["19.98 of 20.00", "0.41", "tomorrow"]),
    (SPENT, "ollama", 402, None, ["19.98 of 20.00", "0.41", "tomorrow"]),
    (FORBIDDEN, "openai", 403, "permission_error", ["labelled private"]),
    (FORBIDDEN, "anthropic", 403, "permission_error", ["labelled private"]),
    (FORBIDDEN, "ollama", 403, None, ["labelled private"]),
    *(
        (fault, protocol, status, kind if protocol == "openai" else other if protocol == "anthropic" else None, words)
        for fault, status, kind, other, words in [
            (UpstreamFault("rate", "too many"), 429, "rate_limit_error", "rate_limit_error", ["too many"]),
            (UpstreamFault("request", "max_tokens is odd"), 400, "invalid_request_error", "invalid_request_error",
             ["max_tokens is odd"]),
            (UpstreamFault("auth", "invalid key"), 502, "server_error", "api_error", ["gateway's own key", "invalid"]),
            (UpstreamFault("timeout", "slow"), 504, "timeout_error", "timeout_error", ["slow"]),
            (UpstreamFault("connect", "refused"), 502, "server_error", "api_error", ["refused"]),
        ]
        for protocol in ROUTES
    ),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error, protocol, status, kind, words", OF_GATEWAY)
def test_a_failure_of_the_gateway_is_worded_in_each_protocol(
    serving, error, protocol, status, kind, words, stream
):
    route, more = ROUTES[protocol]
    answer = serving(failing("start", error)).client.post(route, json={**CHAT, **more, "stream": stream})
    assert answer.status_code == status
    body = answer.json()
    message = body["error"] if protocol == "ollama" else body["error"]["message"]
    assert [word for word in words if word not in message] == []
    if kind is not None:
        assert body["error"]["type"] == kind


def test_a_spent_budget_says_when_it_renews_and_is_not_asked_again(serving):
    answer = serving(failing("start", SPENT)).client.post(URL, json=CHAT)
    assert answer.headers["retry-after"] == "3601" and answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert error["renews_s"] == 3600.5 and error["nano_dollars"]["asked"] == 410_000_000


@pytest.mark.parametrize(
    "cause, asked_s, header, again",
    [
        ("rate", 1.2, "2", None),
        ("rate", None, None, None),
        ("rate", 1e9, "86400", None),
        ("server", 3.0, "3", None),
        ("request", 3.0, None, "false"),
        ("auth", 3.0, None, "false"),
        ("redirect", None, None, "false"),
    ],
)
def test_what_a_provider_says_of_retries_is_passed_on(serving, cause, asked_s, header, again):
    fault = UpstreamFault(cause, "no", retry_after_s=asked_s)
    headers = serving(failing("start", fault)).client.post(URL, json=CHAT).headers
    assert headers.get("retry-after") == header and headers.get("x-should-retry") == again


def test_a_providers_words_colour_no_terminal(serving):
    fault = UpstreamFault("request", "bad \x1b[31m\r\nfield")
    message = serving(failing("start", fault)).client.post(URL, json=CHAT).json()["error"]["message"]
    assert message.startswith("bad  [31m  field")


@pytest.mark.parametrize("protocol", ROUTES)
def test_a_stream_that_a_provider_breaks_is_told_in_the_protocols_own_words(serving, protocol):
    route, more = ROUTES[protocol]
    broken = UpstreamFault("broken", "the stream of big ended without its end")
    server = serving(failing(2, broken))
    text = server.client.post(route, json={**CHAT, **more, "stream": True}).text
    assert "Hello" in text and "ended without its end" in text
    *_, last = [line for line in text.splitlines() if line]
    if protocol == "openai":
        assert last == "data: [DONE]" and '"finish_reason":"' not in text
        assert events(text)[-1]["error"]["code"] == "upstream_broken"
    elif protocol == "anthropic":
        assert "message_stop" not in text and 'stop_reason":"' not in text
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "api_error"
    else:
        assert '"done":true' not in text and list(json.loads(last)) == ["error"]
    assert server.models.in_flight == 0


def test_messages_carry_no_folders():
    assert without_paths("/home/ann/models/x.gguf is truncated") == "x.gguf is truncated"
    assert without_paths("cannot open '/a/b/c': no") == "cannot open 'c': no"
    assert without_paths("C:\\models\\x.gguf is bad") == "x.gguf is bad"
    same = "org/model:1b needs 3/4 of http://127.0.0.1:80/v1/models; GET /v1/models lists them"
    assert without_paths(same) == same
    assert without_paths("POST /api/blobs/sha256:HEX sends it") == "POST /api/blobs/sha256:HEX sends it"


def test_every_named_error_has_a_status():
    def leaves(kind):
        for sub in kind.__subclasses__():
            yield sub
            yield from leaves(sub)

    unreachable = {errors.ServerUnreachable}  # a client's
    missing = [
        k for k in leaves(FreeholdError) if k.__module__ == "freehold.base.errors" and k not in unreachable
    ]
    assert [k for k in missing if not any(issubclass(k, known) for known in STATUS)] == []
    # The first match wins, so a subclass must stand before its class.
    order = list(STATUS)
    assert not [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if issubclass(b, a)]


def test_a_long_value_is_cut_in_the_message():
    assert len(openai_error(problem(errors.UsageError("x" * 5000)))) < 1500


@pytest.mark.parametrize("path, status", [("/nope", 404), ("/v1/models/", 404), ("/admin/nope", 404)])
def test_unknown_routes_answer_in_the_same_shape(serving, path, status):
    answer = serving().client.get(path)
    assert answer.status_code == status and answer.json()["error"]["type"] == "not_found_error"


def test_a_wrong_method_names_the_right_one(serving):
    answer = serving().client.get("/v1/chat/completions")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_request_ids_are_taken_or_made(serving):
    client = serving().client
    assert client.get("/version", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = [
        client.get("/version", headers={"X-Request-Id": bad}).headers["x-request-id"] for bad in ("", "a b")
    ]
    assert len(set(made)) == 2 and all(len(m) == 24 for m in made)
    assert client.get("/nope").headers["x-request-id"]
