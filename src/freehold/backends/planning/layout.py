"""A layout: sizes, context, streams and cache of an engine, and what decides them.

Types alone; planning.py and processors.py fill them, each engine's driver words them in its own flags.
Path: EngineDriver.plan -> EngineTraits, Wishes -> planning.laid_out -> Layout
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from freehold.advisor.engines import UpstreamEngine
from freehold.advisor.interval import Interval
from freehold.backends.contract import ParallelSizes
from freehold.backends.planning.parallel import Wanted
from freehold.catalog.hardware import Device

GIB = 1 << 30
USUAL = 4096  # tokens of a conversation by which streams are counted; longer ones take the room of several
CPU_CONTEXT = 8192  # on a processor, whose prompts are slow, unless another number is asked for
WANTED_STREAMS = 8  # that the sizes leave room for, where it is to be had
CPU_STREAMS = 16  # at a time on processors, where no number is asked for
# A server process and each rank of vLLM's CPU build before weights: 1.1 GB was measured of the server.
PROCESS_BYTES = 1.2 * GIB
CPU_SHARE = 0.85  # of the free memory; the rest is the system's, and this server's own
_LEFT = Wanted()


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What decides a layout of one engine, beside advisor.engines' facts of it."""

    engine: str  # advisor.engines' name
    title: str
    cpu: bool  # has a build for processors
    fp8_while_loading: bool  # rounds weights of 16 bits to FP8 by itself
    kv_copies: bool = True  # keeps heads of keys and values on several devices where there are too few


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user's own flags fix, in common terms; 0, "" and None are choices left."""

    sizes: Wanted = _LEFT
    context: int = 0
    streams: int = 0
    cache_type: str = ""
    cache_bytes: int = 0
    memory_share: float = 0.0
    quantisation: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """What an engine is given, and what it then takes. `why`: a reason by field's name."""

    sizes: ParallelSizes
    replicas: int
    across: int  # nodes of one replica
    context: int
    streams: int
    memory_share: float  # of a device; 0: none is set (processors)
    cache_bytes: int  # of keys and values, on each device
    cache_type: str  # fp8; "": as the model
    cache_tokens: int = field(default=0, kw_only=True)  # that a replica's cache holds; 0: not counted
    quantise: str  # fp8: the engine rounds while it loads; "": nothing
    memory_bytes: int  # of one replica, on all its devices
    decode: Interval | None
    prefill: Interval | None
    basis: str
    why: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""  # why it serves hardly anyone
    notes: tuple[str, ...] = ()

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on processors."""
        return not self.memory_share


def large_step(device: Device) -> int:
    """Return the tokens of a step by default where a device is large, else 0.

    vLLM 0.32.0's get_batch_defaults: 16,384 from 160 GiB on, 8,192 from 70 GiB on except for A100, else 2,048 and 256
    answers. Other servers are taken to have the same.
    """
    if device.kind != "gpu" or device.name.startswith("a100"):
        return 0
    return 16384 if device.memory_bytes >= 160 * GIB else 8192 if device.memory_bytes >= 70 * GIB else 0


def usual_streams(engine: UpstreamEngine, device: Device) -> int:
    """Return the requests at a time that an engine takes by default; its cache makes others wait, not this number."""
    return engine.streams if large_step(device) or engine.name != "vllm" else min(engine.streams, 256)
