"""What monitoring sees: liveness, and counts and times for Prometheus, under vLLM's names where it has one.

A scrape reads the engines' own counters from their latest stats; what only the HTTP side sees (first token, gaps,
whole answers, statuses) is kept here in plain lists, because a histogram is fed once per chunk.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from operator import attrgetter

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from freehold.base.serving import STEP_SIZES, LoadedInfo, ModelManager
from freehold.base.types import Usage

SCRAPE_EVERY_S = 0.02  # one takes the loop 2 to 3 ms
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
    640,
    2560,
)
GAP = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
WHOLE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
ANSWERS = (1, 2, 5, 10, 20)
TOKENS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
TIMES = (1, 2, 3, 4, 5, 10, 20)
OF = ("model_name", "engine")
ENGINE = "0"  # vLLM numbers the engines that share a model's requests; here a model has one


class Histogram:
    """Counts under upper bounds, the sum beside them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.sum = bounds, 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def counts(self) -> tuple[int, ...]:
        """How many fell into each bucket, the last one beyond every bound."""
        return tuple(self._counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, how many were at most that), the last one "+Inf"."""
        return _cumulative(self.bounds, self._counts)


def _cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return (upper bound, how many were at most that); an engine that counted nothing has no `counts`."""
    names = (*map(str, map(float, bounds)), "+Inf")
    return [*zip(names, accumulate(map(float, counts or [0] * len(names))), strict=True)]


# (field of EngineStats, exported name, help)
_GAUGES = (
    ("running", "vllm:num_requests_running", "Sequences that hold cache blocks."),
    ("waiting", "vllm:num_requests_waiting", "Sequences that wait to be scheduled."),
    ("blocks", "freehold_cache_blocks", "Blocks of the cache."),
    ("blocks_live", "freehold_cache_blocks_live", "Cache blocks of running sequences."),
    ("blocks_shared", "freehold_cache_blocks_shared", "Cache blocks that several running sequences share."),
    ("blocks_cached", "freehold_cache_blocks_cached", "Cache blocks kept for prefixes of later prompts."),
    ("states", "freehold_cache_states", "Slots for states of recurrent layers; 0 where a model has none."),
    ("states_live", "freehold_cache_states_live", "State slots of running sequences."),
    (
        "states_cached",
        "freehold_cache_states_cached",
        "Snapshots of states kept for prefixes of later prompts.",
    ),
    ("state_bytes", "freehold_cache_state_bytes", "Bytes of a state slot."),
    (
        "image_bytes",
        "freehold_image_cache_bytes",
        "Bytes of pictures' features kept in memory for later prompts.",
    ),
    (
        "expected_wait_s",
        "freehold_expected_wait_seconds",
        "Until a request that came now would get its first token.",
    ),
)
_COUNTERS = (
    ("steps", "freehold_engine_steps", "Steps of the engine."),
    ("prompt_tokens", "vllm:prompt_tokens", "Prompt tokens received."),
    ("prompt_tokens", "vllm:prefix_cache_queries", "Prompt tokens looked up in the cache."),
    ("cached_tokens", "vllm:prefix_cache_hits", "Prompt tokens found in the cache."),
    ("cached_tokens", "vllm:prompt_tokens_cached", "Prompt tokens found in the cache."),
    ("disk_tokens", "freehold_disk_cache_tokens", "Prompt tokens found on the disk."),
    ("images_encoded", "freehold_images_encoded", "Pictures that the vision encoder processed."),
    ("image_hits", "freehold_image_cache_hits", "Pictures whose features were in memory."),
    ("image_disk_hits", "freehold_image_disk_hits", "Pictures whose features were on the disk."),
    ("sounds_encoded", "freehold_sounds_encoded", "Recordings that the audio encoder processed."),
    ("sound_hits", "freehold_sound_cache_hits", "Recordings whose features were in memory."),
    ("generated_tokens", "vllm:generation_tokens", "Tokens generated."),
    ("preemptions", "vllm:num_preemptions", "Sequences that lost their blocks and were computed again."),
    ("drafts", "vllm:spec_decode_num_drafts", "Drafts that were verified, of one token or more."),
    ("drafted_tokens", "vllm:spec_decode_num_draft_tokens", "Draft tokens that were verified."),
    ("accepted_tokens", "vllm:spec_decode_num_accepted_tokens", "Draft tokens that were accepted."),
)
# All of an engine's series of one number: (kind, attribute of LoadedInfo, exported name, help).
_Kind = type[GaugeMetricFamily] | type[CounterMetricFamily]
_GAUGE, _COUNTER = GaugeMetricFamily, CounterMetricFamily
_SERIES: tuple[tuple[_Kind, str, str, str], ...] = (
    *((_GAUGE, f"stats.{field}", name, help) for field, name, help in _GAUGES),
    *((_COUNTER, f"stats.{field}", name, help) for field, name, help in _COUNTERS),
    (_GAUGE, "info.memory_bytes", "freehold_model_memory_bytes", "Weights and cache."),
    (_GAUGE, "in_flight", "freehold_requests_in_flight", "Requests not ended yet."),
    (_COUNTER, "restarts", "freehold_engine_restarts", "Times an engine process died and was started again."),
    (_COUNTER, "slow_readers", "freehold_slow_readers", "Streams whose reader fell behind."),
)


class Series:
    """A histogram of each PerModel, made at its first use, and how it is exported."""

    def __init__(self, name: str, bounds: Sequence[float], help: str) -> None:
        self.name, self.bounds, self.help = name, bounds, help

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.attribute = attribute

    def __get__(self, record: PerModel, owner: type) -> Histogram:
        histogram = record.__dict__[self.attribute] = Histogram(self.bounds)
        return histogram


# (field of PerModel.heard, exported name, help)
_HEARD = (
    ("recordings", "freehold_recordings", "Recordings opened to be transcribed."),
    ("sound_s", "freehold_sound_seconds", "Seconds of those recordings."),
    ("speech_s", "freehold_speech_seconds", "Seconds of speech in them, which are what is transcribed."),
)


class PerModel:
    """What the HTTP side saw of one model's answers."""

    first = Series("vllm:time_to_first_token_seconds", FIRST_TOKEN, "From the request to its first chunk.")
    gap = Series("vllm:inter_token_latency_seconds", GAP, "Between two chunks of an answer, per token.")
    per_token = Series("vllm:request_time_per_output_token_seconds", GAP, "Mean gap within an answer.")
    whole = Series("vllm:e2e_request_latency_seconds", WHOLE, "From the request to its last chunk.")
    queue = Series("vllm:request_queue_time_seconds", WHOLE, "Seconds until a step first took the request.")
    inference = Series("vllm:request_inference_time_seconds", WHOLE, "Seconds of prefill and decoding.")
    prefill = Series(
        "vllm:request_prefill_time_seconds", WHOLE, "Seconds of steps with the prompt's prefill."
    )
    decode = Series("vllm:request_decode_time_seconds", WHOLE, "Seconds of steps that decoded the answer.")
    prompt = Series("vllm:request_prompt_tokens", TOKENS, "Tokens of a prompt.")
    generated = Series("vllm:request_generation_tokens", TOKENS, "Tokens of an answer.")
    computed = Series(
        "vllm:request_prefill_kv_computed_tokens", TOKENS, "Tokens of a prompt that were not cached."
    )
    longest = Series(
        "vllm:request_max_num_generation_tokens", TOKENS, "Tokens of a request's longest answer."
    )
    preemptions = Series("vllm:request_num_preemptions", TIMES, "Times a request's sequences were preempted.")
    n = Series("vllm:request_params_n", ANSWERS, "Answers a request asked for.")
    most = Series(
        "vllm:request_params_max_tokens", TOKENS, "Tokens an answer could have, by request and context."
    )

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.heard = Counter[str]()  # by the names of _HEARD

    def began(self, n: int, most: int) -> None:
        """Count a job that an engine took in."""
        self.n.observe(n)
        self.most.observe(most)

    def opened(self, duration_s: float, speech_s: float) -> None:
        """Count a recording whose length is known."""
        self.heard.update({"recordings": 1, "sound_s": duration_s, "speech_s": speech_s})

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
        self.computed.observe(usage.prompt_tokens - usage.cached_tokens)
        self.preemptions.observe(usage.preemptions)
        if usage.completion_tokens > 1:
            self.per_token.observe((whole_s - first_s) / (usage.completion_tokens - 1))


class Metrics(Collector):
    """All series of this server, in a registry of its own."""

    def __init__(self, models: ModelManager) -> None:
        self._models = models
        self._per_model: dict[str, PerModel] = {}
        self._answers: Counter[tuple[str, int]] = Counter()
        self.streams = 0  # event streams open now
        self._watched: list[tuple[str, str, Callable[[], float]]] = []
        self._started = time.time()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._scrape: asyncio.Task[bytes] | None = None  # the next one, where a caller waits for it
        self._scraped_at = -SCRAPE_EVERY_S

    def of(self, model: str) -> PerModel:
        """Return the record of a loaded model; only names that `use` gave back, so that no client can add series."""
        metrics = self._per_model.get(model)
        if metrics is None:
            metrics = self._per_model[model] = PerModel()
        return metrics

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Show a gauge whose value is asked for at each scrape."""
        self._watched.append((name, help, value))

    def answered(self, route: str, status: int) -> None:
        """Count an HTTP answer; 499: the client went before it got one."""
        self._answers[route, status] += 1

    async def scraped(self) -> bytes:
        """Return the exposition as it is now or up to SCRAPE_EVERY_S later: those who ask meanwhile share it."""
        if self._scrape is None:
            self._scrape = asyncio.create_task(self._scrape_next())
        return await asyncio.shield(self._scrape)

    async def _scrape_next(self) -> bytes:
        await asyncio.sleep(max(self._scraped_at + SCRAPE_EVERY_S - time.monotonic(), 0))
        self._scrape, self._scraped_at = None, time.monotonic()  # who asks from here on gets the next one
        return self.exposition()

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
        for table in self._models.counters():
            kind = GaugeMetricFamily if table.gauge else CounterMetricFamily
            family = kind(table.name, table.help, labels=table.labels)
            for labels, count in table.values.items():
                family.add_metric(labels, count)
            yield family
        for name, help, value in self._watched:
            yield GaugeMetricFamily(name, help, value())
        yield GaugeMetricFamily("freehold_streams_open", "Event streams open now.", self.streams)
        yield GaugeMetricFamily("freehold_start_time_seconds", "When the server started.", self._started)

    def _answers_of_models(self) -> Iterator[Metric]:
        for series in vars(PerModel).values():
            if isinstance(series, Series):
                family = HistogramMetricFamily(series.name, series.help, labels=OF)
                for model, record in self._per_model.items():
                    histogram: Histogram = getattr(record, series.attribute)
                    family.add_metric([model, ENGINE], histogram.cumulative(), histogram.sum)
                yield family
        success = CounterMetricFamily(
            "vllm:request_success", "Finished answers.", labels=[*OF, "finished_reason"]
        )
        rejected = CounterMetricFamily(
            "vllm:admission_rejections", "Requests turned away.", labels=[*OF, "reason"]
        )
        for model, record in self._per_model.items():
            for reason, count in record.reasons.items():
                success.add_metric([model, ENGINE, reason], count)
            for reason, count in record.rejected.items():
                rejected.add_metric([model, ENGINE, reason], count)
        yield success
        yield rejected
        for name, exported, help in _HEARD:
            family = CounterMetricFamily(exported, help, labels=OF)
            for model, record in self._per_model.items():
                if record.heard:
                    family.add_metric([model, ENGINE], record.heard[name])
            yield family


def _engines(loaded: Sequence[LoadedInfo]) -> Iterator[Metric]:
    for kind, attribute, name, help in _SERIES:
        family, value = kind(name, help, labels=OF), attrgetter(attribute)
        for each in loaded:
            family.add_metric([each.name, ENGINE], value(each))
        yield family
    usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the cache in use, 0 to 1.", labels=OF)
    for each in loaded:
        blocks = each.stats.blocks
        usage.add_metric([each.name, ENGINE], each.stats.blocks_live / blocks if blocks else 0.0)
    yield usage
    yield from _parts(loaded)
    yield _steps(loaded)


def _parts(loaded: Sequence[LoadedInfo]) -> Iterator[Metric]:
    """Yield what has a label more."""
    config = GaugeMetricFamily(
        "vllm:cache_config_info", "The cache's sizes, as labels.", labels=[*OF, "num_gpu_blocks", "kv_tokens"]
    )
    waiting = GaugeMetricFamily(
        "vllm:num_requests_waiting_by_reason",
        "Waiting answers; all wait for capacity.",
        labels=[*OF, "reason"],
    )
    sources = CounterMetricFamily(
        "vllm:prompt_tokens_by_source",
        "Tokens of prefilled prompts by source: computed, or found in the cache.",
        labels=[*OF, "source"],
    )
    positions = CounterMetricFamily(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "Draft tokens that were accepted, by their position in the draft.",
        labels=[*OF, "position"],
    )
    for each in loaded:
        of, stats = (each.name, ENGINE), each.stats
        config.add_metric([*of, str(stats.blocks), str(each.info.kv_tokens)], 1)
        waiting.add_metric([*of, "capacity"], stats.waiting)
        sources.add_metric([*of, "local_compute"], stats.computed_tokens)
        sources.add_metric([*of, "local_cache_hit"], stats.cached_tokens)
        for position, count in enumerate(stats.accepted_at):
            positions.add_metric([*of, str(position)], count)
    yield from (config, waiting, sources, positions)


def _steps(loaded: Sequence[LoadedInfo]) -> Metric:
    family = HistogramMetricFamily(
        "vllm:iteration_tokens_total", "Tokens computed a step, rejected draft tokens included.", labels=OF
    )
    for each in loaded:
        family.add_metric(
            [each.name, ENGINE], _cumulative(STEP_SIZES, each.stats.step_sizes), each.stats.batched_tokens
        )
    return family


# --- liveness: a server is stuck while an engine has work and makes no steps ------------------------
# vLLM's /health says 200 while its engine hangs; here progress is watched, once a second, by the step counters.

STALL_S = 60.0  # the longest step we know of, a chunk of prompt on a loaded two-core guest, takes under 5

Progress = tuple[int, int]  # bytes loaded, of how many: an engine that died may take minutes to load again
Mark = tuple[int, Progress | None]  # steps made, and the progress of a load


class Health:
    """Watches the loaded models' step counters."""

    def __init__(
        self, models: ModelManager, stall_s: float = STALL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._models, self._stall_s, self._clock = models, stall_s, clock
        self._seen: dict[str, tuple[Mark, float]] = {}  # model -> (mark, time of last progress or idleness)
        self.stopping = False
        self.preload: dict[str, str] = {}  # models that /ready waits for -> what became of them so far

    async def watch(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(1)

    def look(self) -> None:
        """Note every model's steps."""
        now, loading = self._clock(), self._models.loading()
        self._seen = {
            each.name: self._noted(each, loading.get(each.name), self._seen.get(each.name), now)
            for each in self._models.loaded()
        }

    def stuck(self) -> Sequence[str]:
        """Return a sentence for each engine that has work and made no step for `stall_s`."""
        self.look()
        now = self._clock()
        stood = ((name, now - since) for name, (_, since) in self._seen.items())
        return [
            f"{name} has work and made no step for {s:.0f} seconds" for name, s in stood if s > self._stall_s
        ]

    def not_ready(self) -> str:
        """Return why new requests should go elsewhere; "" when they may come."""
        if self.stopping:
            return "the server is stopping"
        if self.preload:
            return "; ".join(f"{name}: {state}" for name, state in self.preload.items())
        return next(iter(self.stuck()), "")

    def _noted(
        self, each: LoadedInfo, loading: Progress | None, before: tuple[Mark, float] | None, now: float
    ) -> tuple[Mark, float]:
        # Jobs as counted here: the reports of a hung engine may be wrong.
        mark, working = (each.stats.steps, loading), each.in_flight > 0
        stands = working and before is not None and before[0] == mark
        return (mark, before[1] if stands and before else now)
