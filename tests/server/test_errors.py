"""Every named error has its status, body and headers, before the first byte and after it."""

from __future__ import annotations

import pytest

from freehold import errors
from freehold.errors import FreeholdError
from freehold.server.problems import STATUS, openai_error, problem, without_paths
from tests.server.fakes import Script, failing
from tests.server.test_chat import CHAT, events

URL = "/v1/chat/completions"
CASES = [
    (errors.UsageError("no"), 400, "invalid_value"),
    (errors.BadPrompt("no"), 400, "invalid_prompt"),
    (errors.BadTemplate("no"), 400, "template_refused"),
    (errors.ContextOverflow("no"), 400, "context_length_exceeded"),
    (errors.UnsupportedModel("no"), 400, "unsupported_model"),
    (errors.AccessDenied("no"), 403, "access_denied"),
    (errors.ModelNotFound("no"), 404, "model_not_found"),
    (errors.Overloaded("no", wait_s=2.2), 429, "overloaded"),
    (errors.BadModelFile("no"), 500, "bad_model_file"),
    (errors.NonFiniteLogits("no"), 500, "non_finite_logits"),
    (errors.StepFailed("no"), 500, "step_failed"),
    (errors.StoreError("no"), 500, "store_error"),
    (errors.EngineLost("no"), 502, "engine_lost"),
    (errors.CapacityExceeded("no"), 503, "capacity_exceeded"),
    (errors.EngineClosed("no"), 503, "stopping"),
    (errors.DownloadFailed("no"), 503, "download_failed"),
    (errors.Offline("no"), 503, "offline"),
    (errors.DeadlineExceeded("no"), 504, "deadline_exceeded"),
    (FreeholdError("no"), 500, "internal_error"),
    (RuntimeError("secret /etc/passwd"), 500, "internal_error"),
]


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
    missing = [k for k in leaves(FreeholdError) if k.__module__ == "freehold.errors" and k not in unreachable]
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
