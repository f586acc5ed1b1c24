"""Counts and times for Prometheus, under vLLM's names where it has one, under freehold_ where it has none.

A scrape reads the engines' own counters from their latest stats; what only the HTTP side sees (first token, gaps,
whole answers, statuses) is kept here in plain lists, because a histogram is fed once per chunk.
Path: answering.py -> Metrics.first/gap/ended; GET /metrics -> exposition
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from freehold.server.contract import Loaded, Models
from freehold.types import Usage

# vLLM's own bounds, so that its dashboards' quantiles mean the same here.
FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
GAP = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
ANSWERS = (1, 2, 5, 10, 20)
TOKENS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))


class Histogram:
    """Counts under upper bounds, the sum beside them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.sum = bounds, 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, how many were at most that), the last one "+Inf"."""
        total, out = 0, []
        for bound, count in zip((*map(float, self.bounds), "+Inf"), self._counts, strict=True):
            total += count
            out.append((str(bound), float(total)))
        return out


# (attribute of PerModel, exported name, bounds, help)
_TIMES = (
    ("first", "vllm:time_to_first_token_seconds", FIRST_TOKEN, "From the request to its first chunk."),
    ("gap", "vllm:inter_token_latency_seconds", GAP, "Between two chunks of an answer, per token."),
    (
        "per_token",
        "vllm:request_time_per_output_token_seconds",
        GAP,
        "Mean gap within an answer.",
    ),
    ("whole", "vllm:e2e_request_latency_seconds", WHOLE, "From the request to its last chunk."),
    ("queue", "vllm:request_queue_time_seconds", WHOLE, "Seconds until a step first took the request."),
    ("inference", "vllm:request_inference_time_seconds", WHOLE, "Seconds of the steps that read and wrote."),
    ("prefill", "vllm:request_prefill_time_seconds", WHOLE, "Seconds an engine read the prompt."),
    ("decode", "vllm:request_decode_time_seconds", WHOLE, "Seconds an engine wrote the answer."),
    ("prompt", "vllm:request_prompt_tokens", TOKENS, "Tokens of a prompt."),
    ("generated", "vllm:request_generation_tokens", TOKENS, "Tokens of an answer."),
    ("n", "vllm:request_params_n", ANSWERS, "Answers a request asked for."),
    (
        "most",
        "vllm:request_params_max_tokens",
        TOKENS,
        "Tokens an answer could have, by request and context.",
    ),
)
# (field of EngineStats, exported name, help)
_GAUGES = (
    ("running", "vllm:num_requests_running", "Answers that take part in the engine's steps."),
    ("waiting", "vllm:num_requests_waiting", "Answers that wait for their turn."),
    ("blocks", "freehold_cache_blocks", "Blocks of the cache."),
    ("blocks_live", "freehold_cache_blocks_live", "Blocks that running answers hold."),
    ("blocks_cached", "freehold_cache_blocks_cached", "Blocks kept for prompts to come."),
    (
        "expected_wait_s",
        "freehold_expected_wait_seconds",
        "Until a request that came now would get its first token.",
    ),
)
_COUNTERS = (
    ("steps", "freehold_engine_steps", "Steps of the engine."),
    ("prompt_tokens", "vllm:prompt_tokens", "Prompt tokens taken in."),
    ("prompt_tokens", "vllm:prefix_cache_queries", "Prompt tokens looked up in the cache."),
    ("cached_tokens", "vllm:prefix_cache_hits", "Prompt tokens found in the cache."),
    ("cached_tokens", "vllm:prompt_tokens_cached", "Prompt tokens found in the cache."),
    ("disk_tokens", "freehold_disk_cache_tokens", "Prompt tokens found on the disk."),
    ("generated_tokens", "vllm:generation_tokens", "Tokens made."),
    ("preemptions", "vllm:num_preemptions", "Answers set aside and computed again."),
    ("drafted_tokens", "vllm:spec_decode_num_draft_tokens", "Guessed tokens that were verified."),
    ("accepted_tokens", "vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right."),
)


class PerModel:
    """What the HTTP side saw of one model's answers."""

    first: Histogram
    gap: Histogram
    per_token: Histogram
    whole: Histogram
    queue: Histogram
    inference: Histogram
    prefill: Histogram
    decode: Histogram
    prompt: Histogram
    generated: Histogram
    n: Histogram
    most: Histogram

    def __init__(self) -> None:
        for name, _, bounds, _ in _TIMES:
            setattr(self, name, Histogram(bounds))
        self.reasons: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def began(self, n: int, most: int) -> None:
        """Count a job that an engine took in."""
        self.n.observe(n)
        self.most.observe(most)

    def ended(self, reason: str, usage: Usage, first_s: float, whole_s: float) -> None:
        """Count a finished answer."""
        self.reasons[reason] += 1
        self.whole.observe(whole_s)
        self.queue.observe(usage.queue_s)
        self.inference.observe(usage.prefill_s + usage.decode_s)
        self.prefill.observe(usage.prefill_s)
        self.decode.observe(usage.decode_s)
        self.prompt.observe(usage.prompt_tokens)
        self.generated.observe(usage.completion_tokens)
        if usage.completion_tokens > 1:
            self.per_token.observe((whole_s - first_s) / (usage.completion_tokens - 1))


class Metrics(Collector):
    """All series of this server, in a registry of its own."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._per_model: dict[str, PerModel] = {}
        self._answers: Counter[tuple[str, int]] = Counter()
        self.streams = 0  # event streams open now
        self._started = time.time()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def of(self, model: str) -> PerModel:
        """Return the record of a loaded model; only names that `use` gave back, so that no client can add series."""
        found = self._per_model.get(model)
        if found is None:
            found = self._per_model[model] = PerModel()
        return found

    def answered(self, route: str, status: int) -> None:
        """Count an HTTP answer; 499: the client went before it got one."""
        self._answers[route, status] += 1

    def exposition(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family; prometheus-client calls it at a scrape."""
        loaded = self._models.loaded()
        yield from _engines(loaded)
        yield from self._answers_of_models()
        http = CounterMetricFamily("freehold_http_requests", "Requests answered.", labels=["route", "status"])
        for (route, status), count in sorted(self._answers.items()):
            http.add_metric([route, str(status)], count)
        yield http
        yield GaugeMetricFamily("freehold_streams_open", "Event streams open now.", self.streams)
        yield GaugeMetricFamily("freehold_start_time_seconds", "When the server started.", self._started)

    def _answers_of_models(self) -> Iterator[Metric]:
        for attribute, name, _, help in _TIMES:
            family = HistogramMetricFamily(name, help, labels=["model_name"])
            for model, record in self._per_model.items():
                histogram: Histogram = getattr(record, attribute)
                family.add_metric([model], histogram.cumulative(), histogram.sum)
            yield family
        success = CounterMetricFamily(
            "vllm:request_success", "Finished answers.", labels=["model_name", "finished_reason"]
        )
        rejected = CounterMetricFamily(
            "vllm:admission_rejections", "Requests turned away.", labels=["model_name", "reason"]
        )
        for model, record in self._per_model.items():
            for reason, count in record.reasons.items():
                success.add_metric([model, reason], count)
            for reason, count in record.rejected.items():
                rejected.add_metric([model, reason], count)
        yield success
        yield rejected


def _engines(loaded: Sequence[Loaded]) -> Iterator[Metric]:
    for field, name, help in _GAUGES:
        yield _family(GaugeMetricFamily(name, help, labels=["model_name"]), loaded, field)
    for field, name, help in _COUNTERS:
        yield _family(CounterMetricFamily(name, help, labels=["model_name"]), loaded, field)
    used = GaugeMetricFamily(
        "vllm:kv_cache_usage_perc", "Share of the cache held, 0 to 1.", labels=["model_name"]
    )
    memory = GaugeMetricFamily("freehold_model_memory_bytes", "Weights and cache.", labels=["model_name"])
    flight = GaugeMetricFamily(
        "freehold_requests_in_flight", "Requests not ended yet.", labels=["model_name"]
    )
    restarts = CounterMetricFamily(
        "freehold_engine_restarts", "Engine processes that died.", labels=["model_name"]
    )
    slow = CounterMetricFamily(
        "freehold_slow_readers", "Streams whose reader fell behind.", labels=["model_name"]
    )
    config = GaugeMetricFamily(
        "vllm:cache_config_info",
        "The cache's sizes, as labels.",
        labels=["model_name", "num_gpu_blocks", "kv_tokens"],
    )
    waiting = GaugeMetricFamily(
        "vllm:num_requests_waiting_by_reason",
        "Answers that wait for their turn; all for want of capacity.",
        labels=["model_name", "reason"],
    )
    # The mean is what a step's size is watched by; its distribution would have to cross the wire each step.
    steps = HistogramMetricFamily(
        "vllm:iteration_tokens_total", "Tokens computed a step; sum and count only.", labels=["model_name"]
    )
    for each in loaded:
        name, stats, info = each.name, each.stats, each.info
        waiting.add_metric([name, "capacity"], stats.waiting)
        steps.add_metric([name], [("+Inf", stats.steps)], stats.rows)
        used.add_metric([name], stats.blocks_live / stats.blocks if stats.blocks else 0.0)
        memory.add_metric([name], info.memory_bytes)
        flight.add_metric([name], each.in_flight)
        restarts.add_metric([name], each.restarts)
        slow.add_metric([name], each.slow_readers)
        config.add_metric([name, str(stats.blocks), str(info.kv_tokens)], 1)
    yield from (used, memory, flight, restarts, slow, config, waiting, steps)


def _family(family: Metric, loaded: Sequence[Loaded], field: str) -> Metric:
    for each in loaded:
        family.add_metric([each.name], getattr(each.stats, field))  # type: ignore[attr-defined]
    return family
