"""Upstream engines as data: devices, weights they read, memory they use, speeds; and the command that runs a model.

Two files of data: `engines.toml` is written by hand from each engine's documentation; `speeds.toml` is fitted by
`benches/choose/published.py --refit` to the rows under benches/choose/published. Predicts nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

from freehold.base.catalog.hardware import Device
from freehold.base.catalog.model import Model, tupled
from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.base.layers import STATE_WIDTH

OLD = frozenset({"pascal", "maxwell"})  # GPUs without the units that kernels are made for today


@dataclass(frozen=True, slots=True)
class UpstreamEngine:
    """One engine at its default settings."""

    name: str
    title: str
    kinds: tuple[str, ...]  # of devices: gpu | mac | cpu
    vendors: tuple[str, ...]  # of devices; empty: all
    quants: tuple[str, ...]  # the weights it reads, by catalog.quants' names
    split: str  # over several devices: tensors (all at once) | layers (one after another)
    cache_widths: tuple[float, ...]  # bytes of a value of keys and values, the default first
    memory_share: Mapping[str, float]  # of a device's memory that it takes, by the device's kind
    reserve_gib: float  # of that, on each device, what is neither weights nor cache
    streams: int  # requests at a time
    unpack_ops: float  # for each weight, of kernels that unpack on a GPU's plain units; 0: they do not
    source: str
    checked: date
    conv_width: int = STATE_WIDTH  # bytes of a value of a recurrent layer's convolution
    capability: float = 0.0  # of CUDA, the least it runs on
    needs: Mapping[str, float] = field(default_factory=dict)  # of CUDA, by weights that need more
    unmeasured: tuple[str, ...] = ()  # kinds of layers of which no published row of this engine tells
    # By quantisation: the type in which this engine's files hold what is beside the experts, if not as on the hub.
    beside: Mapping[str, str] = field(default_factory=dict)

    def runs_on(self, device: Device) -> bool:
        """Say whether it is made for a device."""
        runs = device.kind in self.kinds and (not self.vendors or device.vendor in self.vendors)
        runs = runs and _reaches(device, self.capability)
        return runs and any((s.engine, s.on) == (self.name, device_class(device)) for s in speeds())

    def reads(self, quant: str, device: Device) -> bool:
        """Say whether it has kernels for such weights on a device; for devices without CUDA no more is known."""
        return quant in self.quants and _reaches(device, self.needs.get(quant, 0.0))


@dataclass(frozen=True, slots=True)
class Spread:
    """Measured over predicted: the bounds that four of five left-out rows fell between."""

    low: float
    high: float

    def wider(self) -> Spread:
        """Return twice the doubt, for what no published row covers."""
        return Spread(self.low**2, self.high**2)


@dataclass(frozen=True, slots=True)
class Speed:
    """How many times its ideal each term of roofline.Terms takes, or seconds a piece, on one class of device."""

    engine: str
    on: str  # gpu | old | mac | cpu
    factors: Mapping[str, float]
    fit: str = ""  # to which published rows: one (user) | many; empty: to none, taken from `source`
    rows: int = 0
    covers: tuple[str, ...] = ()  # what the rows measure: answer, prompt, tpot, ttft, output
    vendors: tuple[str, ...] = ()  # whose devices they are of
    source: str = ""
    spread: Mapping[str, Spread] = field(
        default_factory=dict
    )  # by what is predicted; has all that `covers` has


def engine(name: str) -> UpstreamEngine:
    """Return the engine called `name`; raise UsageError with the nearest name."""
    wanted = name.strip().lower()
    known = {e.name: e for e in engines()}
    if wanted in known:
        return known[wanted]
    raise UsageError(f"no engine named {name!r}", suggestion(wanted, list(known)))


@cache
def engines() -> tuple[UpstreamEngine, ...]:
    """Return every engine."""
    return tuple(UpstreamEngine(**tupled(raw)) for raw in _data("engines.toml")["engine"])


def speed(engine: UpstreamEngine, device: Device) -> Speed:
    """Return how fast an engine is on a device; raise UsageError where it does not run."""
    on = device_class(device)
    for figures in speeds():
        if (figures.engine, figures.on) == (engine.name, on):
            return figures
    runs = ", ".join(e.name for e in engines() if e.runs_on(device))
    raise UsageError(f"{engine.title} does not run on {device.title}", f"engines that do: {runs or 'none'}")


@cache
def speeds() -> tuple[Speed, ...]:
    """Return every speed; a fitted factor goes before a documented one."""
    by_place = dict(documented())
    for raw in _data("speeds.toml")["speed"]:
        key = raw["engine"], raw["on"]
        more = by_place[key].factors if key in by_place else {}
        lists = {name: tuple(raw[name]) for name in ("covers", "vendors")}
        own = {what: Spread(*bounds) for what, bounds in raw.get("spread", {}).items()}
        lists_more = {"factors": {**more, **raw["factors"]}, "spread": own or spreads()}
        by_place[key] = Speed(**{**raw, **lists, **lists_more})
    return tuple(by_place.values())


@cache
def documented() -> Mapping[tuple[str, str], Speed]:
    """Return by engine and class of device what comes from documents, single figures or judgement."""
    return {(raw["engine"], raw["on"]): Speed(**raw) for raw in _data("engines.toml")["documented"]}


@cache
def spreads() -> Mapping[str, Spread]:
    """Return the spreads of engines that serve many, by what is predicted; one user's are each speed's own."""
    return {what: Spread(*bounds) for what, bounds in _data("speeds.toml")["spread"]["many"].items()}


def forget() -> None:
    """Read the data again when it is next asked for: a refit has written it."""
    for kept in (_data, engines, speeds, documented, spreads):
        kept.cache_clear()


def _reaches(device: Device, capability: float) -> bool:
    return not device.capability or device.capability >= capability


def device_class(device: Device) -> str:
    """Return under which class of device speeds are kept."""
    return "old" if device.kind == "gpu" and device.generation in OLD else device.kind


@cache
def _data(name: str) -> dict[str, Any]:
    return tomllib.loads(
        resources.files("freehold.choose.advisor").joinpath(name).read_text(encoding="utf-8")
    )


# --- gives the command that runs a model on an engine, or the reason why none is known --------------
# A line is given for files that are known to be there: a repository of GGUFs with that quantisation, the
# weights as published, or what an engine makes of them while it loads.

# GGUF's or config.json's names of what vLLM's page on pooling models lists
_POOLED = frozenset({"bert", "xlm-roberta", "qwen3", "modernbert", "gemma-embedding", "gte", "nomic-bert"})
# Qwen3's rerankers are language models that say yes or no; vLLM's page makes classifiers of them so.
_CLASSIFIER = (
    '{"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"], '
    '"is_original_qwen3_reranker": true}'
)
_FLOAT = ("BF16", "F16")
_MLX_BITS = {"Q4_0": 4, "Q8_0": 8}  # what mlx_lm.convert makes, by the names that these widths have here


@dataclass(frozen=True, slots=True)
class Line:
    """A command; or an empty one, and why."""

    command: str
    why_none: str = ""


def line(
    model: Model,
    quant: str,
    engine: str,
    *,
    devices: int = 1,
    context: int = 0,
    users: int = 1,
    held: str = "",
) -> Line:
    """Return what runs `model` in `quant` on `engine` over this many devices; `held`: a file that is here.

    `context` is each conversation's, 0: the engine's default. `users`: conversations at a time.
    """
    if model.role == "transcriber":
        ours = f"freehold transcribe FILE --model {held or model.name or model.id}"
        return (
            Line(ours) if engine == "freehold" else Line("", f"no line of {engine} is known here for speech")
        )
    if model.role != "generator":
        known = engine in ("freehold", "vllm")
        none = Line("", f"no line of {engine} is known here for what finds texts")
        return finder_line(model, here=engine == "freehold") if known else none
    if engine == "freehold":
        return _ours(model, quant, context, users, held)
    if engine == "llama.cpp":
        return _llama_cpp(model, quant, context, users)
    if not model.hub:
        return Line(
            "", f"{model.id} is not a repository on the hub: its lab distributes the weights elsewhere"
        )
    if engine == "mlx":
        return _mlx(model, quant)
    return _server(model, quant, engine, devices, context)


def finder_line(model: Model, *, here: bool) -> Line:
    """Return what runs an embedder or a reranker: our engine here, vLLM elsewhere."""
    if here:
        known = model.role == "embedder" and model.hub
        return (
            Line(f"freehold embed {model.name or model.id}")
            if known
            else Line("", "our engine does not rerank pairs")
        )
    if model.architecture not in _POOLED or not model.hub:
        return Line("", f"vLLM is not known to serve {model.architecture or 'its architecture'}")
    classified = model.role == "reranker" and model.architecture == "qwen3"
    return Line(
        f"vllm serve {model.id} --runner pooling" + (f" --hf-overrides '{_CLASSIFIER}'" if classified else "")
    )


def published(model: Model) -> tuple[str, ...]:
    """Return the quantisations in which the weights of a model's own repository are."""
    return _FLOAT if model.native in ("", "F32", *_FLOAT) else (model.native,)


def gguf(model: Model, quant: str = "") -> str:
    """Return a repository of GGUFs known to have a quantisation, or any where that is empty; else an empty string."""
    repos = (r.repo for r in model.repos if r.format == "gguf" and (not quant or quant in r.quants))
    return next(repos, "")


def _ours(model: Model, quant: str, context: int, users: int, held: str) -> Line:
    room = f" --context {context}" if context else ""
    repo = gguf(model, quant)
    own = model.id if model.hub and quant in published(model) else ""
    name = held or (model.name if model.name and quant == quant_of(model) else "")
    name = name or (f"{repo}:{quant}" if repo else own)
    if name:
        return Line(f"freehold {'run' if users == 1 else 'serve'} {name}{room}")
    return Line("", _no_gguf(model, quant))


def quant_of(model: Model) -> str:
    """Return the quantisation that our store fetches of a model: its name's file, or the weights as published."""
    quants = [r.quants[0] for r in model.repos if r.format == "gguf" and r.quants]
    return quants[0] if quants else "BF16"


def _llama_cpp(model: Model, quant: str, context: int, users: int) -> Line:
    repo = gguf(model, quant)
    if not repo:
        return Line("", _no_gguf(model, quant))
    room = f" -c {context * users}" if context else ""  # llama-server divides -c among its slots
    return Line(f"llama-server -hf {repo}:{quant}{room}" + (f" -np {users}" if users > 1 else ""))


def _no_gguf(model: Model, quant: str) -> str:
    any_repo = gguf(model)
    if any_repo:
        has = ", ".join(q for r in model.repos if r.repo == any_repo for q in r.quants)
        return f"{any_repo} has {has} for certain; whether it has {quant} is not known here"
    return f"no repository with a GGUF in {quant} is known here"


def _mlx(model: Model, quant: str) -> Line:
    if quant in published(model):
        return Line(f"mlx_lm.server --model {model.id}")
    if quant in _MLX_BITS:
        convert = f"mlx_lm.convert --hf-path {model.id} -q --q-bits {_MLX_BITS[quant]} --mlx-path mlx_model"
        return Line(f"{convert} && mlx_lm.server --model mlx_model")
    return Line("", f"no copy of the weights in {quant} is known here")


def _server(model: Model, quant: str, engine: str, devices: int, context: int) -> Line:
    """Return the line of an engine for many users; vLLM and SGLang round to FP8 while they load."""
    rounded = quant == "FP8" and quant not in published(model)
    if quant not in published(model) and not (rounded and engine in ("vllm", "sglang")):
        return Line("", f"no copy of the weights in {quant} is known here")
    start, several, room = {
        "vllm": (f"vllm serve {model.id}", "--tensor-parallel-size", "--max-model-len"),
        "sglang": (
            f"python -m sglang.launch_server --model-path {model.id}",
            "--tp-size",
            "--context-length",
        ),
        "tensorrt-llm": (f"trtllm-serve {model.id}", "--tp_size", "--max_seq_len"),
    }[engine]
    parts = [start, f"{several} {devices}" if devices > 1 else "", f"{room} {context}" if context else ""]
    rounds = f"--quantization {'fp8_per_tensor' if engine == 'vllm' else 'fp8'}" if rounded else ""
    return Line(" ".join(p for p in (*parts, rounds) if p))
