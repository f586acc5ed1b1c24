"""Rotary frequency tables: plain, linear, llama3, YaRN and longrope scaling, partial rotation.

Knows a RoPE's parameters as both file formats write them, and the formulas; knows no layer and no position.
The result is a frequency per pair and one factor on cosine and sine, which the native `Rope` takes as is.
Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), longrope (arXiv 2402.13753), Llama 3.1's scaling (its
own code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_WIDTH, Fields

F32 = NDArray[np.float32]
Sections: TypeAlias = tuple[int, int, int]  # pairs that turn by time, by row and by column
Scaling = Literal["default", "linear", "llama3", "yarn", "longrope"]
SCALINGS: tuple[Scaling, ...] = ("default", "linear", "llama3", "yarn", "longrope")

# Of the first Phi-3 files; of Qwen2.5-VL's, whose sections are read apart.
OLDER_NAMES: dict[str, Scaling] = {"su": "longrope", "mrope": "default"}

ORIGINAL = "original_max_position_embeddings"
MAX_BASE = 1e12
MAX_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class RopeTable:
    """angle = position * inv_freq[i]; cosine and sine times `factor`; pairs adjacent or halves.

    `axes`: which of a row's three places (0 time, 1 row, 2 column) is the position of each pair, where a step has
    places; None: each row has one position.
    """

    inv_freq: F32  # [rotated width / 2]
    factor: float
    adjacent: bool
    axes: NDArray[np.uint8] | None = None  # [rotated width / 2]


class Divisors(NamedTuple):
    """Tables of a GGUF by which frequencies are divided, float32 [width / 2]; None: it has no such."""

    always: F32 | None = None  # Llama 3's scaling
    short: F32 | None = None  # longrope's two
    long: F32 | None = None


NO_DIVISORS = Divisors()


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """How positions turn the first `width` elements of a head."""

    base: float
    width: int
    adjacent: bool
    turning: int = -1  # pairs that turn, the others stay; -1: all of them
    divisible: bool = True  # by the frequencies' divisors that a GGUF may hold: Llama 3's scaling
    scaling: Scaling = "default"
    factor: float = 1.0
    original: int = 0  # positions before scaling (llama3, yarn, longrope)
    attention_factor: float | None = None  # None: YaRN's own rule
    short: tuple[float, ...] = ()  # longrope's divisors up to `original` positions; empty: a GGUF's
    long: tuple[float, ...] = ()  # and beyond
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    sections: Sections | tuple[()] = ()  # of rows of pictures; empty: every pair turns by the position
    interleaved: bool = False  # pairs of the three sections take turns; else sections lie one after another

    def table(self, divisors: Divisors = NO_DIVISORS, *, long: bool = False) -> RopeTable:
        """Compute the table; `long`: longrope's for a context beyond the original one."""
        freq = self.base ** -(np.arange(0, self.width, 2, dtype=np.float64) / self.width)
        if self.scaling == "linear":
            freq = freq / self.factor
        elif self.scaling == "llama3":
            freq = self._llama3(freq)
        elif self.scaling == "yarn":
            freq = self._yarn(freq)
        elif self.scaling == "longrope":
            freq = freq / self._longrope(divisors, long)
        if divisors.always is not None and self.divisible:
            own = leading_divisors(divisors.always, self.width // 2)
            freq = freq / checked_divisors("rope_freqs.weight", own, self.width // 2)
        if self.turning >= 0:
            freq[self.turning :] = 0.0
        return RopeTable(freq.astype(np.float32), self._attention_factor(), self.adjacent, self._axes())

    def _axes(self) -> NDArray[np.uint8] | None:
        """Give each pair its axis. Interleaved, pairs that no section reaches turn by time."""
        if not self.sections:
            return None
        if not self.interleaved:
            return np.repeat(np.arange(3, dtype=np.uint8), self.sections)
        axes = np.zeros(self.width // 2, np.uint8)
        for axis in (1, 2):
            axes[axis : 3 * self.sections[axis] : 3] = axis
        return axes

    def _longrope(self, divisors: Divisors, long: bool) -> NDArray[np.float64]:
        """Return the divisors of this side; a GGUF without any was never extended."""
        if self.short:
            return np.array(self.long if long else self.short)
        side = "long" if long else "short"
        if divisors.short is None and divisors.long is None:
            return np.ones(self.width // 2)
        chosen = divisors.long if long else divisors.short
        if chosen is None:
            raise BadModelFile(f"tensor rope_factors_{side}.weight is missing")
        return checked_divisors(f"rope_factors_{side}.weight", chosen, self.width // 2)

    def _llama3(self, freq: NDArray[np.float64]) -> NDArray[np.float64]:
        """Keep short wavelengths, stretch long ones by `factor`, and blend linearly in turns between."""
        turns = self.original * freq / (2 * math.pi)
        between = self.high_freq_factor - self.low_freq_factor  # 0: no blend, as Llama 4 has it
        kept = (turns - self.low_freq_factor) / between if between else turns > self.low_freq_factor
        kept = np.clip(kept, 0.0, 1.0)
        return freq * kept + freq / self.factor * (1 - kept)

    def _yarn(self, freq: NDArray[np.float64]) -> NDArray[np.float64]:
        """Interpolate pairs of less than beta_slow turns, keep those of beta_fast and more, ramp between."""
        low, high = (self._pair_with_turns(beta) for beta in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.width - 1)
        ramp = np.clip((np.arange(self.width // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        return freq / self.factor * ramp + freq * (1 - ramp)

    def _pair_with_turns(self, turns: float) -> float:
        """Index of the pair that turns `turns` times over the original context."""
        return self.width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.base))

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return yarn_mscale(self.factor) if self.scaling == "yarn" else 1.0


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's temperature on attention: 0.1 * weight * ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def rope_from_gguf(
    meta: Fields, *, head_dim: int, adjacent: bool, context: int, base: float = 10000.0
) -> RopeSpec:
    """Read `rope.*` keys; `context` is the trained context, YaRN's original one when the file names none."""
    width = check_width(meta.integer("rope.dimension_count", 2, MAX_WIDTH, head_dim), head_dim)
    spec = RopeSpec(base=_base(meta, "rope.freq_base", base), width=width, adjacent=adjacent)
    kind = meta.text("rope.scaling.type", "none")
    if kind == "none":
        factor = meta.number("rope.scale_linear", 1.0, MAX_FACTOR, 1.0)
        return replace(spec, scaling="linear", factor=factor) if factor != 1.0 else spec
    if kind not in ("linear", "yarn"):
        raise UnsupportedModel(f"{meta.name('rope.scaling.type')} is {kind!r}; supported: none, linear, yarn")
    spec = replace(spec, scaling=kind, factor=_factor(meta, "rope.scaling.factor"))
    if kind == "linear":
        return spec
    extra = meta.number("rope.scaling.attn_factor", 1e-6, MAX_FACTOR, 1.0)
    return _checked_yarn(
        replace(
            spec,
            original=meta.integer("rope.scaling.original_context_length", 1, MAX_CONTEXT, context),
            attention_factor=extra * yarn_mscale(spec.factor),
            beta_fast=meta.number("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
            beta_slow=meta.number("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
        )
    )


def rope_from_hf(
    config: Fields, *, head_dim: int, context: int, base: float = 10000.0, partial: float = 1.0
) -> RopeSpec:
    """Read `rope_parameters`, or `rope_theta` and `rope_scaling` as transformers 4 wrote them."""
    theta = _base(config, "rope_theta", base)
    partial = config.number("partial_rotary_factor", 1e-3, 1.0, partial)
    section = config.section("rope_parameters") or config.section("rope_scaling")
    if section is not None:  # Phi-3 states the original context outside of it
        section = Fields({ORIGINAL: config.get(ORIGINAL), **section.values})
    return hf_rope_section(section, head_dim=head_dim, context=context, base=theta, partial=partial)


def gguf_sections(meta: Fields, rope: RopeSpec, assumed: Sections, *, interleaved: bool) -> RopeSpec:
    """Return the rope with the sections that a GGUF states, or else `assumed`."""
    return _sectioned(rope, meta, "rope.dimension_sections", assumed, interleaved)


def hf_sections(config: Fields, rope: RopeSpec, assumed: Sections, *, interleaved: bool) -> RopeSpec:
    """Return the rope with the sections that a config.json states, or else `assumed`."""
    section = config.section("rope_parameters") or config.section("rope_scaling") or Fields({})
    return _sectioned(rope, section, "mrope_section", assumed, interleaved)


def _sectioned(rope: RopeSpec, fields: Fields, key: str, assumed: Sections, interleaved: bool) -> RopeSpec:
    """Read three numbers of pairs, which cover what turns; a GGUF's fourth is 0."""
    stated = fields.get(key)
    counts = stated.tolist() if isinstance(stated, np.ndarray) else stated
    if counts is None:
        return replace(rope, sections=assumed, interleaved=interleaved)
    if not isinstance(counts, list) or any(type(n) is not int or n < 0 for n in counts):
        raise BadModelFile(f"{fields.name(key)} is {str(counts)[:60]}; expected a list of numbers of pairs")
    if 2 * sum(counts) != rope.width:
        raise BadModelFile(
            f"{fields.name(key)} is {str(counts)[:60]}; expected {rope.width // 2} pairs together"
        )
    if len(counts) < 3 or any(counts[3:]):
        raise UnsupportedModel(f"{fields.name(key)} is {str(counts)[:60]}; expected time, row and column")
    return replace(rope, sections=(counts[0], counts[1], counts[2]), interleaved=interleaved)


def state_rope(config: Fields) -> None:
    """Raise where a config states no rope: for families whose classes assume numbers of YaRN that models differ in."""
    if config.section("rope_parameters") is None and config.section("rope_scaling") is None:
        raise BadModelFile("rope_parameters is missing; expected the numbers of its YaRN")


def hf_ntk_alpha(config: Fields) -> Fields:
    """Return a config.json whose "dynamic" scaling by a fixed alpha, Hunyuan's, is a plain rope of another base."""
    key = "rope_parameters" if config.section("rope_parameters") else "rope_scaling"
    section = config.section(key)
    if section is None or section.text("rope_type", section.text("type", "default")) != "dynamic":
        return config
    alpha = section.number("alpha", 1.0, MAX_FACTOR)
    head = config.integer("head_dim", 4, MAX_WIDTH, config.integer("attention_head_dim", 4, MAX_WIDTH, 128))
    theta = _base(section, "rope_theta", _base(config, "rope_theta", 10000.0))
    plain = {"rope_type": "default", "rope_theta": theta * alpha ** (head / (head - 2))}
    return Fields({**config.values, "rope_scaling": None, "rope_parameters": plain})


def hf_layer_ropes(
    config: Fields, *, head_dim: int, context: int, base: float, local_base: float
) -> tuple[RopeSpec, RopeSpec]:
    """Read the ropes of full and of sliding layers: one object a kind, or transformers 4's two bases and one scaling.

    The scaling of transformers 4 is the full layers' alone.
    """
    local_base = config.number("rope_local_base_freq", 1.001, MAX_BASE, local_base)
    both = config.section("rope_parameters")
    if both is None or (both.get("full_attention") is None and both.get("sliding_attention") is None):
        rope = rope_from_hf(config, head_dim=head_dim, context=context, base=base)
        return rope, RopeSpec(base=local_base, width=rope.width, adjacent=False)
    sections = both.section("full_attention"), both.section("sliding_attention")
    if None in sections:
        raise BadModelFile("rope_parameters lacks full_attention or sliding_attention")
    return (
        hf_rope_section(sections[0], head_dim=head_dim, context=context, base=base),
        hf_rope_section(sections[1], head_dim=head_dim, context=context, base=local_base),
    )


def hf_ropes_by_base(config: Fields, rope: RopeSpec, layers: int) -> tuple[RopeSpec | None, ...]:
    """Give each layer its rope: by the base that `layer_rope_theta` lists, 0 for none, else the one of all."""
    listed = config.get("layer_rope_theta")
    if listed is None:
        return (rope,) * layers
    if not isinstance(listed, list) or len(listed) != layers or not all(map(_is_base_or_none, listed)):
        raise BadModelFile(f"layer_rope_theta is {str(listed)[:60]}; expected {layers} bases from 1 on, or 0")
    return tuple(replace(rope, base=float(base)) if base else None for base in listed)


def _is_base_or_none(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and (value == 0 or 1.001 <= value <= MAX_BASE)  # pyright: ignore[reportOperatorIssue]


def hf_rope_section(
    section: Fields | None, *, head_dim: int, context: int, base: float, partial: float = 1.0
) -> RopeSpec:
    """Read one rope object of config.json; None is a plain rope."""
    section = section or Fields({})
    if section.text("rope_type", "default") == "proportional":
        return _hf_proportional(section, head_dim, base)
    width = int(head_dim * section.number("partial_rotary_factor", 1e-3, 1.0, partial))
    spec = RopeSpec(
        base=_base(section, "rope_theta", base), width=check_width(width, head_dim), adjacent=False
    )
    kind = section.text("rope_type", section.text("type", "default"))
    kind = OLDER_NAMES.get(kind, kind)
    if kind not in SCALINGS:
        raise UnsupportedModel(f"rope_type is {kind!r}; supported: {', '.join(SCALINGS)}")
    if kind == "default":
        return spec
    if kind == "linear":
        return replace(spec, scaling=kind, factor=_factor(section, "factor"))
    original = section.integer(ORIGINAL, 1, MAX_CONTEXT, context)
    if kind == "llama3":
        return _hf_llama3(replace(spec, original=original), section)
    if kind == "longrope":
        return _hf_longrope(replace(spec, original=original), section, context)
    return _hf_yarn(replace(spec, original=original), section, context)


def _hf_proportional(section: Fields, head_dim: int, base: float) -> RopeSpec:
    """Read Gemma 4's: frequencies as of the whole head, of which the first share of pairs turns."""
    share = section.number("partial_rotary_factor", 0.0, 1.0, 1.0)
    width = check_width(head_dim, head_dim)
    spec = RopeSpec(base=_base(section, "rope_theta", base), width=width, adjacent=False)
    factor = section.number("factor", 1e-3, MAX_FACTOR, 1.0)
    return replace(spec, scaling="linear", factor=factor, turning=int(share * width // 2))


def _hf_longrope(spec: RopeSpec, section: Fields, context: int) -> RopeSpec:
    """Read both lists of divisors; cosine and sine grow by sqrt(1 + ln(factor) / ln(original)), or as stated."""
    factor = section.number("factor", 1.0, MAX_FACTOR, max(context / spec.original, 1.0))
    attention = math.sqrt(1 + math.log(factor) / math.log(max(spec.original, 2)))
    short, long = (section.number(key, 0.0, MAX_FACTOR, 0.0) for key in ("short_mscale", "long_mscale"))
    if short != long:
        raise UnsupportedModel(
            f"short_mscale is {short:g} and long_mscale {long:g}: a factor of its own for each side is not supported"
        )
    attention = short or attention
    return replace(
        spec,
        scaling="longrope",
        factor=factor,
        attention_factor=section.number("attention_factor", 1e-6, MAX_FACTOR, attention),
        short=_hf_divisors(section, "short_factor", spec.width // 2),
        long=_hf_divisors(section, "long_factor", spec.width // 2),
    )


def _hf_divisors(section: Fields, key: str, count: int) -> tuple[float, ...]:
    values = section.get(key)
    if not isinstance(values, list) or any(
        type(n) not in (int, float) or not 0 < n < MAX_BASE for n in values
    ):
        raise BadModelFile(f"{key} is {str(values)[:60]}; expected a list of {count} positive numbers")
    return tuple(checked_divisors(key, np.array(values, np.float32), count).tolist())


def _hf_llama3(spec: RopeSpec, section: Fields) -> RopeSpec:
    low = section.number("low_freq_factor", 1e-3, 1e6)
    high = section.number("high_freq_factor", 1e-3, 1e6)
    if high < low:
        raise BadModelFile(f"high_freq_factor is {high:g}; expected at least low_freq_factor, {low:g}")
    return replace(
        spec,
        scaling="llama3",
        factor=_factor(section, "factor"),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _hf_yarn(spec: RopeSpec, section: Fields, context: int) -> RopeSpec:
    factor = section.number("factor", 1.0, MAX_FACTOR, max(context / spec.original, 1.0))
    attention = None
    if section.get("attention_factor") is not None:
        attention = section.number("attention_factor", 1e-6, MAX_FACTOR)
    elif section.get("mscale") and section.get("mscale_all_dim"):
        weights = [section.number(key, 1e-6, MAX_FACTOR) for key in ("mscale", "mscale_all_dim")]
        attention = yarn_mscale(factor, weights[0]) / yarn_mscale(factor, weights[1])
    return _checked_yarn(
        replace(
            spec,
            scaling="yarn",
            factor=factor,
            attention_factor=attention,
            beta_fast=section.number("beta_fast", 1e-3, 1e6, 32.0),
            beta_slow=section.number("beta_slow", 1e-3, 1e6, 1.0),
            truncate=section.flag("truncate", True),
        )
    )


def _checked_yarn(spec: RopeSpec) -> RopeSpec:
    if spec.beta_fast < spec.beta_slow:
        raise BadModelFile(
            f"YaRN's beta_fast is {spec.beta_fast:g}; expected at least beta_slow, {spec.beta_slow:g}"
        )
    return spec


def check_width(width: int, head_dim: int) -> int:
    """Return the rotated width, which must be even and fit the head."""
    if width < 2 or width % 2 or width > head_dim:
        raise BadModelFile(f"rope turns {width} of {head_dim} elements of a head; expected an even number")
    return width


def _base(fields: Fields, key: str, default: float) -> float:
    base = fields.number(key, 1.0, MAX_BASE, default)
    if base <= 1.0:
        raise BadModelFile(f"{fields.name(key)} is {base:g}; expected more than 1")
    return base


def _factor(fields: Fields, key: str) -> float:
    return fields.number(key, 1e-3, MAX_FACTOR)


def leading_divisors(divisors: F32, count: int) -> F32:
    """Return the first of a table that ends in ones: it is as long as what turns most in any layer."""
    return divisors[:count] if divisors.ndim == 1 and (divisors[count:] == 1.0).all() else divisors


def checked_divisors(name: str, divisors: F32, count: int) -> NDArray[np.float64]:
    """Return a table of divisors, which must be positive and `count` long."""
    if divisors.shape != (count,):
        raise BadModelFile(f"{name} has shape {list(divisors.shape)}; expected [{count}]")
    if not np.isfinite(divisors).all() or not (divisors > 0).all():
        raise BadModelFile(f"{name} holds values that are not positive and finite")
    return divisors.astype(np.float64)
