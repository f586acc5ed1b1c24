"""Upstream engines as data: devices, weights they read, memory they use, speeds.

Two files of data: `engines.toml` is written by hand from each engine's documentation; `speeds.toml` is fitted by
`benches/choose/published.py --refit` to the rows under benches/choose/published. Knows no model and predicts nothing.
Path: roofline -> engine, speed -> UpstreamEngine, Speed
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

from freehold.catalog.hardware import Device
from freehold.config import nearest
from freehold.errors import UsageError
from freehold.layers import STATE_WIDTH

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
    near = nearest(wanted, list(known))
    raise UsageError(
        f"no engine named {name!r}", f"did you mean {near}?" if near else f"known: {', '.join(known)}"
    )


@cache
def engines() -> tuple[UpstreamEngine, ...]:
    """Return every engine."""
    return tuple(_engine(raw) for raw in _data("engines.toml")["engine"])


def _engine(raw: dict[str, Any]) -> UpstreamEngine:
    lists = {key: tuple(raw[key]) for key in ("kinds", "vendors", "quants", "cache_widths")}
    lists["unmeasured"] = tuple(raw.get("unmeasured", ()))
    return UpstreamEngine(**{**raw, **lists})


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
    return tomllib.loads(resources.files("freehold.advisor").joinpath(name).read_text(encoding="utf-8"))
