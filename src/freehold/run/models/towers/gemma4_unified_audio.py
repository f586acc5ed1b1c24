"""What Gemma 4 12B has in place of a tower of sound: 640 samples are a row, which a norm and one matrix turn.

The last row is filled up with zeros. The norm has no weight.
Source: Google's Gemma 4 files, and transformers' Gemma4UnifiedAudioFeatureExtractor, read 2026-12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, WIDTH_STEP
from freehold.run.models.family import Buffer, Ops, TensorSpec, Values
from freehold.run.models.tower import (
    Merger,
    PicturePlan,
    PixelForm,
    TokenBudget,
    Tower,
    TowerEnds,
    TowerRows,
    TowerSizes,
    names_under,
)
from freehold.run.models.towers.gemma4_audio import (
    EPS,
    MARK,
    MOST_S,
    RATE,
    SPELLED,
    check_seconds,
    sound_merger,
)

SAMPLES = 640  # of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class UnifiedSoundSizes(TowerSizes):
    """Sizes of what takes a tower's place: its width is the samples of a row, and it has no layers."""

    @property
    def row_floats(self) -> int:
        """How many floats a row takes: its samples twice, and what becomes of them."""
        return 2 * self.hidden + self.out


def _sizes(samples: int, out: int, eps: float) -> UnifiedSoundSizes:
    if samples % WIDTH_STEP:
        raise UnsupportedModel(f"rows of {samples} samples are not supported; multiples of {WIDTH_STEP} are")
    return UnifiedSoundSizes(
        layers=0, hidden=samples, heads=1, intermediate=0, out=out, eps=eps, pixels=PixelForm()
    )


def config_from_hf(config: Fields, settings: Fields) -> UnifiedSoundSizes:
    """Read config.json and what is said of sound beside it."""
    audio = config.section("audio_config") or Fields({})
    text = config.section("text_config") or Fields({})
    samples = audio.integer("audio_embed_dim", 1, MAX_WIDTH, SAMPLES)
    for key, own in (
        ("feature_size", samples),
        ("audio_samples_per_token", samples),
        ("sampling_rate", RATE),
    ):
        if settings.integer(key, 1, 1 << 20, own) != own:
            raise UnsupportedModel(
                f"{settings.name(key)} is {settings.get(key)}; only {own} is supported there"
            )
    out = text.integer("hidden_size", 1, MAX_WIDTH, 2304)
    return _sizes(samples, out, audio.number("rms_norm_eps", MIN_EPS, MAX_EPS, EPS))


def config_from_gguf(meta: Fields) -> UnifiedSoundSizes:
    """Read the keys under `clip.`."""
    audio = Fields(meta.values, meta.name("audio."))
    return _sizes(
        audio.integer("embedding_length", 1, MAX_WIDTH),
        audio.integer("projection_dim", 1, MAX_WIDTH),
        audio.number("attention.layer_norm_epsilon", MIN_EPS, MAX_EPS, EPS),
    )


def plan(cfg: TowerSizes, width: int, height: int = 1, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a sound of `width` samples becomes. Raises UsageError for one that is too short or too long."""
    check_seconds(width, 1 / RATE)
    tokens = -(-width // cfg.hidden)
    return PicturePlan(
        resizes=(), patches=tokens, tokens=tokens, layout=(tokens,), places=None, advance=tokens
    )


def rows(cfg: TowerSizes, plan: PicturePlan, pixels: Sequence[Any]) -> TowerRows:
    """Return the samples row by row, of one array float32 [n]."""
    (samples,) = pixels
    values = np.zeros((plan.tokens, cfg.hidden), np.float32)
    values.reshape(-1)[: len(samples)] = samples
    return TowerRows(values, (plan.tokens,))


@dataclass(frozen=True, slots=True)
class UnifiedSoundEnds(TowerEnds):
    """Samples, as they are."""

    cfg: TowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare nothing."""
        return {}

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Take the samples."""
        return ops.features(self.cfg.hidden)

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Give them."""
        ops.hidden(x)


@dataclass(frozen=True, slots=True)
class UnifiedSoundMerger(Merger):
    """A norm without a weight, and one matrix."""

    cfg: TowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the matrix."""
        return sound_merger(self.cfg.out, self.cfg.hidden)

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose both."""
        ones = np.ones(self.cfg.hidden, np.float32)
        (y,) = ops.linear(ops.features(self.cfg.hidden), (w["merger"],), (None,), ones, self.cfg.eps)
        ops.hidden(y)


TOWER = Tower(
    name="gemma4_unified_audio",
    hears=True,
    most_seconds=MOST_S,
    projectors=("gemma4ua",),
    model_types=("gemma4_unified",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(),
    layer=lambda cfg, i: (),
    ends=UnifiedSoundEnds,
    merger=UnifiedSoundMerger,
    plan=plan,
    rows=rows,
    join=lambda cfg, plan, leaving: leaving,
    mark=MARK,
    written=MARK,
    spelled=SPELLED,
    hf_layers="embed_audio.layers",
    hf_name=names_under("embed_audio."),
)
