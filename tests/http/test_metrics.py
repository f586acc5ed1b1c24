"""/metrics, /health, /ready, /version, /v1/models and the tokenizer's routes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from freehold.base.errors import ContextOverflow, EngineLost, Overloaded, SlowReader
from freehold.base.serving import CounterTable, EngineStats
from freehold.serve.http.core.metrics import Health, Histogram
from tests.http.conftest import JSON
from tests.http.fakes import FakeModels, Script, failing
from tests.http.test_chat import CHAT

URL = "/v1/chat/completions"
OF = (("engine", "0"), ("model_name", "fake:1b"))


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }


def test_every_series_parses_and_vllms_names_are_there(serving):
    server = serving()
    server.client.post(URL, json=CHAT)
    answer = server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    names = {name for name, _ in samples(answer.text)}
    assert names >= {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_sum",
        "vllm:request_time_per_output_token_seconds_count",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:request_prefill_time_seconds_bucket",
        "vllm:request_decode_time_seconds_bucket",
        "vllm:request_queue_time_seconds_bucket",
        "vllm:request_inference_time_seconds_sum",
        "vllm:prompt_tokens_cached_total",
        "vllm:num_requests_waiting_by_reason",
        "vllm:cache_config_info",
        "freehold_http_requests_total",
        "freehold_streams_open",
        "freehold_engine_restarts_total",
    }


def test_counts_are_those_of_the_answers(serving):
    server = serving(None, drain_s=0.5)
    for _ in range(3):
        server.client.post(URL, json=CHAT)
    server.client.post(URL, json={**CHAT, "max_tokens": 1, "stream": True})
    server.client.post(URL, content=b"{", headers=JSON)
    got = samples(server.client.get("/metrics").text)
    engine, model = OF
    assert got["vllm:request_success_total", (engine, ("finished_reason", "stop"), model)] == 3
    assert got["vllm:request_success_total", (engine, ("finished_reason", "length"), model)] == 1
    assert got["vllm:time_to_first_token_seconds_count", OF] == 4
    assert got["vllm:inter_token_latency_seconds_count", OF] == 6
    assert got["vllm:request_generation_tokens_sum", OF] == 10
    assert got["vllm:request_params_n_count", OF] == got["vllm:request_params_n_sum", OF] == 4
    assert got["vllm:request_params_max_tokens_count", OF] == 4
    assert got["vllm:request_max_num_generation_tokens_sum", OF] == 10
    assert got["vllm:request_num_preemptions_bucket", (engine, ("le", "1.0"), model)] == 4
    assert got["vllm:request_prefill_kv_computed_tokens_sum", OF] == 4 * 2
    route = ("route", URL)
    assert got["freehold_http_requests_total", (route, ("status", "200"))] == 4
    assert got["freehold_http_requests_total", (route, ("status", "400"))] == 1


def test_engines_numbers_come_from_their_stats(serving):
    server = serving()
    server.client.post(URL, json=CHAT)
    server.models.served["fake:1b"].loaded.stats = EngineStats(
        running=2,
        waiting=3,
        steps=5,
        batched_tokens=80,
        blocks=10,
        blocks_live=4,
        states=16,
        states_live=2,
        states_cached=9,
        state_bytes=1536,
        prompt_tokens=100,
        cached_tokens=60,
        computed_tokens=40,
        generated_tokens=7,
        step_sizes=(3, 0, 0, 1, *(0,) * 9, 1),
        drafts=9,
        accepted_at=(6, 4),
    )
    got = samples(server.client.get("/metrics").text)
    assert got["vllm:num_requests_running", OF] == 2 and got["vllm:num_requests_waiting", OF] == 3
    assert got["vllm:num_requests_waiting_by_reason", (*OF, ("reason", "capacity"))] == 3
    assert got["vllm:iteration_tokens_total_sum", OF] == 80
    assert got["vllm:iteration_tokens_total_count", OF] == 5
    steps = [got["vllm:iteration_tokens_total_bucket", (OF[0], ("le", le), OF[1])] for le in ("1.0", "32.0")]
    assert steps == [3, 4]
    assert got["vllm:kv_cache_usage_perc", OF] == 0.4
    states = ("freehold_cache_states", "freehold_cache_states_live", "freehold_cache_states_cached")
    assert [got[name, OF] for name in states] == [16, 2, 9] and got["freehold_cache_state_bytes", OF] == 1536
    assert got["vllm:prefix_cache_hits_total", OF] == 60
    assert got["vllm:generation_tokens_total", OF] == 7
    sources = ("local_compute", "local_cache_hit")
    assert [got["vllm:prompt_tokens_by_source_total", (*OF, ("source", s))] for s in sources] == [40, 60]
    held = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert [got[held, (*OF, ("position", str(i)))] for i in range(2)] == [6, 4]
    assert got["vllm:spec_decode_num_drafts_total", OF] == 9


def test_every_series_of_a_model_has_vllms_two_labels(serving):
    server = serving(keep_alive_s=9.0)  # its own: others have asked a shared one for more models
    server.client.post(URL, json=CHAT)
    of_models = [
        labels for _, labels in samples(server.client.get("/metrics").text) if dict(labels).get(OF[1][0])
    ]
    assert of_models and all({*OF} <= {*labels} for labels in of_models)


def test_an_engine_that_has_told_nothing_yet_is_scraped_as_zeros(serving):
    server = serving()
    server.client.post(URL, json=CHAT)
    got = samples(server.client.get("/metrics").text)
    assert got["vllm:iteration_tokens_total_count", OF] == got["vllm:spec_decode_num_drafts_total", OF] == 0
    assert not [name for name, _ in got if "per_pos" in name]


def test_rejections_are_counted_and_names_from_outside_add_no_series(serving):
    server = serving(failing("start", Overloaded("full")), drain_s=0.5)
    server.client.post(URL, json=CHAT)
    server.client.post(URL, json={**CHAT, "model": "invented/name"})
    server.client.get("/invented/name")
    text = server.client.get("/metrics").text
    rejected = (*OF, ("reason", "queue_full"))
    assert samples(text)["vllm:admission_rejections_total", rejected] == 1
    assert "invented" not in text


@pytest.mark.parametrize(
    "error, at, reason",
    [
        (SlowReader("the reader fell behind"), 1, "slow_reader"),
        (EngineLost("the engine died"), 1, "error"),
        (RuntimeError("a fault of ours"), "start", "error"),
        (ContextOverflow("the prompt is too long"), "start", None),
    ],
)
def test_only_what_failed_here_counts_as_an_error(serving, error, at, reason):
    server = serving(failing(at, error), drain_s=0.5)
    server.client.post(URL, json={**CHAT, "stream": True})
    record = server.doors.server.metrics.of("fake:1b")
    assert record.reasons == ({reason: 1} if reason else {}) and not record.rejected


def test_a_histograms_buckets_are_cumulative_and_closed():
    histogram = Histogram((1, 2, 5))
    for value in (0.5, 1, 1.5, 5, 9):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 3), ("5.0", 4), ("+Inf", 5)]
    assert histogram.sum == 17


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watched():
    models, clock = FakeModels(), Clock()
    served = models.in_memory["fake:1b"] = models.served["fake:1b"]
    return Health(models, stall_s=30.0, clock=clock), served.loaded, clock


def test_an_idle_engine_is_healthy_for_ever(watched):
    health, loaded, clock = watched
    loaded.stats = EngineStats(steps=5, running=1)  # its last word may be out of date
    health.look()
    clock.now += 1e6
    assert health.stuck() == []


def test_a_working_engine_that_stands_still_is_not(watched):
    health, loaded, clock = watched
    loaded.stats, loaded.in_flight = EngineStats(steps=5), 1
    health.look()
    clock.now += 29
    assert health.stuck() == []
    clock.now += 2
    assert health.stuck() == ["fake:1b has work and made no step for 31 seconds"]
    assert "no step" in health.not_ready()
    loaded.stats = replace(loaded.stats, steps=6)
    assert health.stuck() == []


def test_work_that_comes_after_a_long_rest_is_given_its_time(watched):
    health, loaded, clock = watched
    loaded.stats = EngineStats(steps=5)
    health.look()
    clock.now += 1e6
    health.look()
    loaded.in_flight = 1
    clock.now += 1
    assert health.stuck() == []


def test_an_engine_that_is_loaded_again_has_time_while_its_load_goes_on(watched, monkeypatch):
    health, loaded, clock = watched
    loaded.stats, loaded.in_flight = EngineStats(steps=5), 1
    for done in range(4):
        monkeypatch.setattr(health._models, "loading", lambda done=done: {"fake:1b": (done, 9)})
        clock.now += 29
        assert health.stuck() == []
    clock.now += 31
    assert len(health.stuck()) == 1


def test_health_is_503_and_ready_has_the_reason(serving):
    server = serving(None, drain_s=0.5)
    server.client.post(URL, json=CHAT)
    server.models.served["fake:1b"].loaded.in_flight = 1
    server.doors.server.health._stall_s = 0.0
    assert server.client.get("/health").status_code in (200, 503)  # the first look
    answer = server.client.get("/health")
    assert answer.status_code == 503 and answer.json() == {
        "status": "stuck"
    }  # no name of a model for strangers
    assert "no step" in server.client.get("/ready").json()["reason"]
    assert server.client.get("/ready").status_code == 503


def test_models_are_listed_with_what_is_known(serving):
    server = serving()
    server.client.post(URL, json=CHAT)
    body = server.client.get("/v1/models").json()
    assert [m["id"] for m in body["data"]] == ["fake:1b", "org/fake:2b"]
    assert body["data"][0]["max_model_len"] == 4096 and body["data"][1]["max_model_len"] is None
    assert body["data"][0]["created"] == 1_700_000_000


@pytest.mark.parametrize("id", ["fake:1b", "org/fake:2b", "org%2Ffake%3A2b"])
def test_a_model_is_found_by_an_id_with_slash_and_colon(serving, id):
    answer = serving().client.get(f"/v1/models/{id}")
    assert answer.status_code == 200 and answer.json()["object"] == "model"


def test_a_model_is_described_under_every_spelling_that_it_answers_to(serving, monkeypatch):
    async def name_of(name: str) -> str:
        return name.lower()

    server = serving()
    monkeypatch.setattr(server.models, "name_of", name_of)
    assert server.client.get("/v1/models/FAKE:1B").json()["id"] == "fake:1b"
    assert server.client.get("/v1/models/FAKE").status_code == 404


def test_a_model_that_is_not_there_is_404(serving):
    answer = serving().client.get("/v1/models/nope")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


def test_tokens_go_there_and_back(serving):
    client = serving().client
    made = client.post(
        "/tokenize", json={"model": "fake:1b", "prompt": "a b c", "return_token_strs": True}
    ).json()
    assert made["count"] == 3 and made["max_model_len"] == 4096
    assert made["token_strs"] == ["a", " b", " c"]
    back = client.post("/detokenize", json={"model": "fake:1b", "tokens": made["tokens"]})
    assert back.json()["prompt"] == "a b c"


def test_a_chat_is_tokenized_as_the_template_writes_it(serving):
    asked = {"model": "fake:1b", "messages": CHAT["messages"]}
    assert serving().client.post("/tokenize", json=asked).json()["count"] == 2


def test_a_chats_end_is_tokenized_as_it_is_asked_for(serving):
    server = serving()
    chat = {"model": "fake:1b", "messages": [*CHAT["messages"], {"role": "assistant", "content": "It is"}]}
    for more in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        assert server.client.post("/tokenize", json={**chat, **more}).status_code == 200
    assert server.models.served["fake:1b"].turns == ["new", "none", "continue"]


def test_what_changes_no_count_is_named_and_what_would_is_refused(serving):
    client = serving().client
    asked = {"prompt": "a b", "model": "fake:1b"}
    body = client.post("/tokenize", json={**asked, "colour": "red"}).json()
    assert body["freehold"]["warnings"] == ["unknown field 'colour' was ignored"]
    assert client.post("/tokenize", json={**asked, "echo": True}).status_code == 400
    body = client.post("/detokenize", json={"tokens": body["tokens"], "colour": "red"}).json()
    assert body["freehold"]["warnings"] == ["unknown field 'colour' was ignored"]


def test_the_only_model_in_memory_needs_no_name(serving):
    server = serving()
    assert server.client.post("/tokenize", json={"prompt": "a"}).status_code == 400
    server.client.post(URL, json=CHAT)
    assert server.client.post("/tokenize", json={"prompt": "a"}).status_code == 200
    assert server.client.get("/tokenizer_info").json()["eos_token"] == "<eos>"
    assert server.client.get("/tokenizer_info?model=nope").status_code == 404


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "x"}]}])
def test_tokenize_takes_a_text_or_a_chat(serving, body):
    answer = serving().client.post("/tokenize", json={"model": "fake:1b", **body})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt"


def test_what_streams_hold_is_given_back(serving):
    server = serving(Script(text="a b"))
    server.client.post(URL, json={**CHAT, "stream": True})
    assert "freehold_streams_open 0.0" in server.client.get("/metrics").text


def test_a_managers_own_counts_are_shown(serving):
    server = serving()
    values = {("big", "openai", "rate"): 2.0}
    table = CounterTable("freehold_gateway_attempts", "Attempts.", ("target", "place", "cause"), values)
    server.models.tables = [table]
    try:
        shown = server.admin.get("/metrics").text
    finally:
        server.models.tables = []
    assert 'freehold_gateway_attempts_total{cause="rate",place="openai",target="big"} 2.0' in shown


def test_scrapes_that_come_together_share_one(serving, monkeypatch):
    server = serving()
    metrics = server.doors.server.metrics
    real, computed = metrics.exposition, []
    monkeypatch.setattr(metrics, "exposition", lambda: computed.append(None) or real())
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda _: server.client.get("/metrics").text, range(16)))
    assert all("freehold_http_requests" in text for text in texts)
    assert 0 < len(computed) < len(texts)
