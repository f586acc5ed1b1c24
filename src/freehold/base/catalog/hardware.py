"""Hardware by name: what a device holds, reads, computes, draws and costs, each with its source and date.

Published figures of devices, not measured ones (advisor/machine.py measures this machine). Facts are appended, never
overwritten: of several rents or prices the newest counts. 0 means unknown.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields, replace
from datetime import date
from functools import cache
from typing import Any

from freehold.base.catalog.model import texts
from freehold.base.config import suggestion
from freehold.base.errors import StoreError, UsageError

KINDS = ("gpu", "mac", "cpu")
MOST_DEVICES = 72  # of one machine, a rack of NVL72; nothing here predicts a network between machines
_GIB = 1 << 30
_RIG = re.compile(
    r"(?:(\d{1,4})\s*[x×*]\s*)?([a-z0-9][a-z0-9 ._+-]*?)(?::(\d{1,5})(?:\s*gi?b)?)?", re.IGNORECASE
)
_RATES = ("bf16", "int8", "fp8", "fp4")


@dataclass(frozen=True, slots=True)
class Money:
    """Dollars as a range: what the cheapest, the usual and the dearest seller asks."""

    low: float
    mid: float
    high: float
    checked: date
    source: str


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, one Mac, or one CPU (a socket, or the slice of it that is rented as one machine).

    Rates are dense 1e12 operations a second, two per multiplication and addition; 0: not published, or no
    unit for it. `link_gb_s`: to its neighbours in the same box, one direction.
    """

    name: str
    title: str
    vendor: str
    kind: str  # gpu | mac | cpu
    generation: str  # what its kernels are made for: hopper, ada, cdna3, amx, ...
    memory_gib: float
    bandwidth_gb_s: float
    watts: float
    source: str
    checked: date
    fp32: float = 0.0  # of the plain units, which unpack weights
    bf16: float = 0.0
    int8: float = 0.0
    fp8: float = 0.0
    fp4: float = 0.0
    link: str = ""
    link_gb_s: float = 0.0
    capability: float = 0.0  # CUDA's compute capability, which kernels are written for; 0: no CUDA
    cores: int = 0
    box: int = 8  # devices of one machine: of a rack whose links span it, all of the rack
    memories_gib: tuple[float, ...] = ()  # the sizes it is sold with; `memory_gib` is the largest
    aliases: tuple[str, ...] = ()
    note: str = ""
    rents: tuple[Money, ...] = ()  # $ an hour, all that were noted
    prices: tuple[Money, ...] = ()  # $ to buy one

    @property
    def memory_bytes(self) -> int:
        """Bytes on the device, before anything takes some."""
        return round(self.memory_gib * _GIB)

    @property
    def rent(self) -> Money | None:
        """The newest note of what an hour costs."""
        return max(self.rents, key=lambda m: m.checked, default=None)

    @property
    def price(self) -> Money | None:
        """The newest note of what buying one costs."""
        return max(self.prices, key=lambda m: m.checked, default=None)

    def rate(self, bits: float) -> float:
        """Return the best dense rate for weights of this many bits, as far as it is published; else bf16's."""
        narrow = [self.fp4] if bits <= 4.5 else []
        byte = [self.fp8, self.int8] if bits <= 8.5 else []
        return max((*narrow, *byte, self.bf16))


@dataclass(frozen=True, slots=True)
class Rig:
    """`count` devices of one kind in one box."""

    device: Device
    count: int = 1

    @property
    def name(self) -> str:
        """As the user writes it: 2xh100."""
        return self.device.name if self.count == 1 else f"{self.count}x{self.device.name}"

    @property
    def memory_bytes(self) -> int:
        """Bytes of all devices; a model is split over them."""
        return self.count * self.device.memory_bytes

    @property
    def bandwidth_gb_s(self) -> float:
        """What all devices read at once."""
        return self.count * self.device.bandwidth_gb_s

    @property
    def watts(self) -> float:
        """What all devices may draw; the box around them comes on top."""
        return self.count * self.device.watts

    @property
    def rent(self) -> Money | None:
        """Dollars an hour for all of them."""
        return _times(self.device.rent, self.count)

    @property
    def price(self) -> Money | None:
        """Dollars to buy all of them, without the box."""
        return _times(self.device.price, self.count)


@cache
def devices() -> tuple[Device, ...]:
    """Return every device, sorted by name."""
    by_name: dict[str, Device] = {}
    for where, text in texts("hardware").items():
        for device in parse(where, text):
            for name in (device.name, *device.aliases):
                if name in by_name:
                    raise StoreError(f"{where}: {name} is also {by_name[name].title}")
                by_name[name] = device
    return tuple(sorted(set(by_name.values()), key=lambda d: d.name))


def rig(text: str) -> Rig:
    """Return what `text` names: "h100", "2xh100", "rtx 4090", or a size with it, "m4-max:64gb".

    Raises UsageError with the nearest known names.
    """
    match = _RIG.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} names no hardware", "write a device and how many: h100, 2xh100, m4-max:64gb"
        )
    count = int(match[1] or 1)
    if not 1 <= count <= MOST_DEVICES:
        raise UsageError(
            f"{text!r}: {count:,} devices are not within 1..{MOST_DEVICES}, what one machine has",
            f"name one machine, such as 8x{match[2]}; several answer side by side, this many times as much",
        )
    return Rig(_sized(device(match[2]), match[3], text), count)


def device(name: str) -> Device:
    """Return the device called `name` or by one of its aliases; spaces and case do not matter."""
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower()).removeprefix("nvidia-").removeprefix("geforce-")
    known = {n: d for d in devices() for n in (d.name, *d.aliases)}
    if wanted in known:
        return known[wanted]
    hint = suggestion(wanted, list(known), f"known are {', '.join(d.name for d in devices())}")
    raise UsageError(f"no hardware named {name!r}", hint)


def _sized(whole: Device, gib: str | None, text: str) -> Device:
    if gib is None:
        return whole
    size = float(gib)
    if size not in whole.memories_gib:
        sizes = ", ".join(f"{m:g}" for m in whole.memories_gib or (whole.memory_gib,))
        raise UsageError(
            f"{text!r}: {whole.title} has {sizes} GB", f"write {whole.name} alone for the largest"
        )
    return replace(whole, name=f"{whole.name}:{gib}gb", memory_gib=size)


def _times(money: Money | None, count: int) -> Money | None:
    if money is None:
        return None
    return replace(money, low=money.low * count, mid=money.mid * count, high=money.high * count)


def parse(where: str, text: str) -> list[Device]:
    """Turn one file into devices; raise StoreError naming the entry at fault."""
    data = tomllib.loads(text)
    return [_device(where, data["vendor"], data["sources"], raw) for raw in data["device"]]


_TAKEN = {f.name for f in fields(Device)} - {"vendor", "rents", "prices"}


def _device(where: str, vendor: str, sources: dict[str, str], raw: dict[str, Any]) -> Device:
    label = f"{where}: {raw.get('name', '(no name)')}"
    plain: dict[str, Any] = {k: v for k, v in raw.items() if k not in ("rent", "price")}
    if unknown := plain.keys() - _TAKEN:
        raise StoreError(f"{label}: unknown key {sorted(unknown)[0]!r}")
    try:
        plain["source"] = sources[raw["source"]]
        for key in ("aliases", "memories_gib"):
            plain[key] = tuple(plain.get(key, ()))
        rents, prices = (tuple(_money(sources, m) for m in raw.get(k, [])) for k in ("rent", "price"))
        device = Device(vendor=vendor, rents=rents, prices=prices, **plain)
    except (KeyError, TypeError) as e:
        raise StoreError(f"{label}: {e}") from e
    if device.kind not in KINDS or min(device.memory_gib, device.bandwidth_gb_s, device.watts) <= 0:
        raise StoreError(f"{label}: kind, memory, bandwidth or watts cannot be right")
    return device


def _money(sources: dict[str, str], raw: dict[str, Any]) -> Money:
    money = Money(**{**raw, "source": sources[raw["source"]]})
    if not 0 < money.low <= money.mid <= money.high:
        raise StoreError(f"{money} is not a range")
    return money
