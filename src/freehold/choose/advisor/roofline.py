"""Predicts an engine's speed on named hardware: tokens a second for one user, and for many at once.

A step's time is a sum of terms: bytes over bandwidth, operations over rate, and pieces that cost something each
(layers, sums over devices, sequences). `step` gives them at the limits a vendor publishes; how many times these an
engine takes is fitted (engines.Speed), and so is how far four of five measurements lay from it (Speed.spread).
Knows no local measurements (advisor/fit.py makes them), no drafts, no split prefill, no layers left to a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from freehold.base.catalog import quants
from freehold.base.catalog.hardware import Device, Rig
from freehold.base.errors import UsageError
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup
from freehold.choose.advisor.engines import Speed, Spread, UpstreamEngine, speed, spreads
from freehold.choose.advisor.interval import Interval

_GIB = 1 << 30
_NORMED = ("gemma2", "gemma3", "gemma4")  # architectures with norms before and after attention and MLP
Way = TypeVar("Way")
CHUNK = 2048  # tokens of a prompt that servers read between two steps of answers


@dataclass(frozen=True, slots=True)
class Terms:
    """One step at the published limits: seconds of each reading and computation, and counts of the rest."""

    weights: float = 0.0  # s: what every token reads
    unpack: float = 0.0  # s: by how much unpacking weights on the plain units takes longer than reading them
    experts: float = 0.0  # s: the experts that the step's tokens were sent to
    cache: float = 0.0  # s: keys, values and states of all sequences
    compute: float = 0.0  # s: multiplications except one token's, which overlap with reading memory
    prompts: float = 0.0  # s: multiplications of prompts that are read meanwhile
    layers: float = 0.0
    sparse: float = 0.0  # layers again, where they choose experts
    recurrent: float = 0.0  # layers again, of those that keep a state (gated DeltaNet, Mamba): more kernels
    normed: float = 0.0  # layers again, of those with norms before and after attention and MLP (Gemmas)
    reduces: float = 0.0  # layers x log2(devices)
    steps: float = 0.0
    sequences: float = 0.0

    def seconds(self, speed: Speed) -> float:
        """Return what the step takes an engine."""
        return sum(getattr(self, f.name) * speed.factors.get(f.name, 0.0) for f in fields(self))


@dataclass(frozen=True, slots=True)
class RigPlacement:
    """A model on a rig: what its weights leave for the cache, and how many sequences that holds."""

    engine: UpstreamEngine
    devices: int
    weights: int  # bytes on all devices together
    sequence: int  # bytes of one sequence at the context asked for
    room: int  # bytes for sequences
    why: str = ""  # why it does not fit; empty: it does

    @property
    def fits(self) -> bool:
        """Whether at least one sequence has room."""
        return not self.why

    @property
    def streams(self) -> int:
        """Sequences at a time, by memory and by the engine's own limit."""
        most = self.room // self.sequence if self.sequence else self.engine.streams
        return min(most, self.engine.streams) if self.fits else 0


@dataclass(frozen=True, slots=True)
class Single:
    """One user. `prompt` is None where no rate of operations is published."""

    answer: Interval  # tokens a second
    prompt: Interval | None  # tokens a second


@dataclass(frozen=True, slots=True)
class Serving:
    """Many users, each sending the next request when the last is answered."""

    total: Interval  # tokens a second, prompts' and answers'
    output: Interval  # tokens a second of answers
    tpot: Interval  # seconds from one token of an answer to the next
    ttft: Interval  # seconds to the first, in the queue too
    streams: int  # answered at a time


def place(work: Anatomy, rig: Rig, engine: UpstreamEngine, context: int, width: float = 0) -> RigPlacement:
    """Say whether a model fits, and for how many sequences of `context` tokens; `width`: bytes of a cached value."""
    device = rig.device
    share = engine.memory_share.get(device.kind, 0.0)
    usable = round(rig.count * (share * device.memory_bytes - engine.reserve_gib * _GIB))
    copies = rig.count if engine.split == "tensors" else 1
    each = _cache_bytes(work, context, width or engine.cache_widths[0], copies) + work.state_of(
        engine.conv_width
    )
    weights = round(sum(p.bytes for p in stored(work, engine)))
    room = usable - weights
    return RigPlacement(
        engine, rig.count, weights, each, room, _why_not(work, rig, engine, weights, room, each)
    )


def single_stream(
    work: Anatomy, rig: Rig, engine: UpstreamEngine, context: int, prompt: int = 512, apart: int = 1
) -> Single:
    """Predict one user's tokens a second: answers after `context` tokens, and reading a prompt of `prompt`.

    `apart`: as `step` has it.
    Raises UsageError where the engine does not run on the device.
    """
    pace = speed(engine, rig.device)
    answer = _around(
        1 / step(work, rig, engine, 1, context, apart=apart).seconds(pace),
        _spread(pace, rig.device, "answer", work, engine),
    )
    if math.isinf(rate(work, rig.device, engine)):
        return Single(answer, None)
    reads = prompt / first_s(work, rig, engine, pace, prompt, 1)
    return Single(answer, _around(reads, _spread(pace, rig.device, "prompt", work, engine)))


def serving(work: Anatomy, rig: Rig, engine: UpstreamEngine, isl: int, osl: int, concurrency: int) -> Serving:
    """Predict what `concurrency` users get who each send `isl` tokens and ask for `osl`.

    Raises UsageError where the model does not fit, the engine does not run there, the device's rate is unknown, or
    no request is running.
    """
    if isl < 0 or osl < 1 or concurrency < 1:
        raise UsageError(
            f"{concurrency} users with prompts of {isl} and answers of {osl} tokens ask for nothing"
        )
    pace, placed = speed(engine, rig.device), place(work, rig, engine, isl + osl)
    if not placed.fits:
        raise UsageError(f"{work.name} in {work.quant}: {placed.why}")
    if math.isinf(rate(work, rig.device, engine)):
        raise UsageError(
            f"no operations a second are published for {rig.device.title}",
            "many users need them; one user's speed is known",
        )
    together = min(concurrency, placed.streams)
    tpot = step(work, rig, engine, together, isl + osl // 2, isl, osl).seconds(pace)
    first = first_s(work, rig, engine, pace, isl, together)
    answer_s = first + tpot * (osl - 1)
    output = _around(together * osl / answer_s, _spread(pace, rig.device, "output", work, engine))
    queued = first + answer_s * (concurrency / together - 1)
    return Serving(
        total=output.times((isl + osl) / osl),
        output=output,
        tpot=_around(tpot, _spread(pace, rig.device, "tpot", work, engine)),
        ttft=_around(queued, _spread(pace, rig.device, "ttft", work, engine)),
        streams=together,
    )


def candidates(
    work: Anatomy, rig: Rig, engines: tuple[UpstreamEngine, ...], context: int
) -> list[tuple[UpstreamEngine, Single]]:
    """Return the engines that run this model on this rig in the order of `preferred`; `engines`: the usual first."""
    ways = [
        (e, single_stream(work, rig, e, context))
        for e in engines
        if e.runs_on(rig.device) and place(work, rig, e, context).fits
    ]
    return preferred(ways, lambda pair: pair[1].answer)


def preferred(ways: Sequence[Way], answer: Callable[[Way], Interval]) -> list[Way]:
    """Order ways to answer: first those that are faster than the usual one beyond the error of its prediction.

    The usual one is the first of `ways`. The others keep their places behind it: of speeds within the error it is
    not known which is faster.
    """
    if not ways:
        return []
    most = answer(ways[0]).high

    def rank(way: Way) -> float:
        return -answer(way).mid if answer(way).mid > most else 0.0

    return sorted(ways, key=rank)


def step(
    work: Anatomy,
    rig: Rig,
    engine: UpstreamEngine,
    batch: float,
    tokens: int,
    prompt: int = 0,
    answer: int = 1,
    apart: int = 1,
) -> Terms:
    """Return the terms of one step: `batch` sequences of `tokens` each advance by one.

    Meanwhile prompts are read, one of `prompt` tokens for every `answer` tokens of each sequence. `apart`: groups of
    devices that each attend to sequences of their own, with all weights but the experts' (data parallel attention).
    """
    devices = rig.count if engine.split == "tensors" else 1
    reads = devices * rig.device.bandwidth_gb_s * 1e9
    plain = devices * rig.device.fp32 * 1e12 or math.inf
    parts = stored(work, engine)
    read = sum(_touched(p, batch) for p in parts)
    unpacked = sum(_touched(p, batch) * p.weights / p.bytes for p in parts)
    sparse = any(p.role == "experts" for p in parts)
    depth = _depth(work)
    cached = _cache_bytes(work, tokens, engine.cache_widths[0], devices // apart) + work.state_of(
        engine.conv_width
    )
    return Terms(
        weights=apart * sum(_touched(p, batch) for p in parts if p.role != "experts") / reads,
        unpack=max(unpacked * engine.unpack_ops / plain - read / reads, 0.0),
        experts=sum(_touched(p, batch) for p in parts if p.role == "experts") / reads,
        cache=batch * cached / reads,
        compute=max(batch - 1, 0) * 2 * work.token_weights / (devices * rate(work, rig.device, engine)),
        prompts=batch * prompt_s(work, rig, engine, prompt) / answer,
        layers=depth,
        sparse=depth if sparse else 0,
        recurrent=sum(g.count for g in work.layers if g.recurrent),
        normed=depth if work.architecture.startswith(_NORMED) else 0,
        reduces=depth * math.log2(devices),
        steps=1,
        sequences=batch,
    )


def stored(work: Anatomy, engine: UpstreamEngine) -> tuple[WeightGroup, ...]:
    """Return the weights as an engine's own files hold them; a file that was weighed itself is as it is.

    Labs publish the weights beside MXFP4 experts in 16 bits; GGUFs and MLX's folders hold them in eight, and no
    towers or draft layers.
    """
    kind = engine.beside.get(work.quant, "")
    if not kind or work.exact:
        return work.parts
    return tuple(
        p
        if p.role in ("experts", "norms")
        else replace(p, type=kind, bytes=p.weights * quants.bits(kind) / 8)
        for p in work.parts
        if p.role not in ("towers", "drafts")
    )


def prompt_s(work: Anatomy, rig: Rig, engine: UpstreamEngine, tokens: int) -> float:
    """Return the seconds that a prompt's multiplications take at the published rate."""
    devices = rig.count if engine.split == "tensors" else 1
    return (2 * work.token_weights * tokens + work.attention_ops(tokens)) / (
        devices * rate(work, rig.device, engine)
    )


def rate(work: Anatomy, device: Device, engine: UpstreamEngine) -> float:
    """Return operations a second for the type of most weights; infinite where none is published.

    Of narrow units if the device has them for this type; otherwise weights are widened to 16 bits, or to 32 where
    no rate of units for 16 is known. Kernels that unpack weights feed units for 16 at twice the plain units' rate.
    """
    kind = max(work.parts, key=lambda p: p.bytes).type
    narrow = {"NVFP4": device.fp4, "MXFP4": device.fp4, "FP8": device.fp8}.get(kind, 0.0)
    wide = device.bf16 or device.fp32
    if engine.unpack_ops and device.bf16:
        narrow, wide = 0.0, min(wide, 2 * device.fp32 or math.inf)
    return 1e12 * (narrow or wide) or math.inf


def first_s(
    work: Anatomy, rig: Rig, engine: UpstreamEngine, pace: Speed, prompt: int, together: int
) -> float:
    """Return the seconds to the first token: the prompt in chunks beside others' steps, and those that came with it."""
    one = pace.factors["prompts"] * prompt_s(work, rig, engine, prompt)
    waits = one * (pace.factors["own"] + pace.factors["queued"] * (together - 1))
    steps = 1 + pace.factors["chunks"] * prompt / CHUNK
    return pace.factors["arrival"] + waits + steps * step(work, rig, engine, together, prompt).seconds(pace)


def _touched(part: WeightGroup, batch: float) -> float:
    """Return the bytes of a part that a step reads, if its tokens choose independently and all alike."""
    return part.bytes * (1 - (1 - part.share) ** batch)


def _cache_bytes(work: Anatomy, tokens: int, width: float, copies: int) -> int:
    """Return what a step reads of one sequence; a latent has no heads to split, so each device keeps all of it."""
    latent = bool(work.layers) and all(g.kind == "latent" for g in work.layers)
    return work.cache_bytes(tokens, width) * (copies if latent else 1)


def _depth(work: Anatomy) -> int:
    """Return the layers; where they are not known, what models of this size mostly have (32 at 8 billion)."""
    return work.depth or max(round(32 * (work.token_weights / 8e9) ** 0.3), 8)


def _why_not(work: Anatomy, rig: Rig, engine: UpstreamEngine, weights: int, room: int, each: int) -> str:
    if not engine.runs_on(rig.device):
        return f"{engine.title} does not run on {rig.device.title}"
    if not engine.reads(work.quant, rig.device):
        where = f" on {rig.device.title}" if work.quant in engine.quants else ""
        return f"{engine.title} does not read {work.quant}{where}"
    heads = max((g.kv_heads for g in work.layers), default=0)
    if engine.split == "tensors" and heads and heads % rig.count and rig.count % heads:
        return f"{heads} heads do not divide among {rig.count} devices"
    if room < each:
        need, have = (weights + each) / _GIB, (weights + room) / _GIB
        return f"it needs {need:.1f} GiB with one conversation; {rig.name} has {have:.1f} for it"
    return ""


def _spread(pace: Speed, device: Device, what: str, work: Anatomy, engine: UpstreamEngine) -> Spread:
    """Return the measured spread; twice that of engines that serve many, where no published row covers it."""
    told = not any(g.kind in engine.unmeasured for g in work.layers)
    covered = told and what in pace.covers and device.vendor in pace.vendors
    return pace.spread[what] if covered else spreads()[what].wider()


def _around(mid: float, spread: Spread) -> Interval:
    return Interval(mid * min(spread.low, 1), mid, mid * max(spread.high, 1))
