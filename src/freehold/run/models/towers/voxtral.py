"""The tower of sound of Voxtral: Whisper's encoder over chunks of 30 s, four rows of which become one.

    rows = norm(encoder(frames of a chunk));  features = second gelu(first four rows one beside another)

A sound is filled up with silence to whole chunks, whose rows see their chunk alone. The energy below which nothing is
heard is the whole sound's.
Sources: arXiv 2507.13264, 2212.04356; Mistral's Voxtral files, and transformers' VoxtralModel and VoxtralProcessor,
read 2026-12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models import mel
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, WIDTH_STEP
from freehold.run.models.family import Buffer, LayerPart, Ops, TensorSpec, Values, matrix
from freehold.run.models.parts.vision import PictureMlp
from freehold.run.models.tower import (
    F32,
    Merger,
    PicturePlan,
    PixelForm,
    TokenBudget,
    Tower,
    TowerEnds,
    TowerRows,
    layer_norm,
    names_under,
)
from freehold.run.models.towers import whisper
from freehold.run.models.towers.gemma4_audio import RATE, check_seconds
from freehold.run.models.towers.whisper import HearingAttention, WhisperTowerEnds, WhisperTowerSizes

MOST_S = 150.0  # seconds of a sound: five chunks, which are computed together
STACK = 4  # rows that become one, where no file says
MODULE = "audio_tower"
MARK = "[AUDIO]"
SPELLED = f"[BEGIN_AUDIO]{MARK}"
# What a file may say of frames, which is what is computed here.
_FRAMES: dict[str, tuple[object, ...]] = {
    "sampling_rate": (RATE,),
    "hop_length": (mel.HOP,),
    "n_fft": (mel.FRAME,),
    "dither": (0, 0.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VoxtralSizes(WhisperTowerSizes):
    """The tower's sizes."""

    stack: int  # rows that become one

    def __post_init__(self) -> None:
        super(VoxtralSizes, self).__post_init__()
        if self.positions % self.stack or self.hidden % WIDTH_STEP:
            raise UnsupportedModel(
                f"chunks of {self.positions} rows of {self.hidden} columns, {self.stack} of which become one, are not "
                "supported"
            )

    @property
    def chunk(self) -> int:
        """Samples of a chunk."""
        return 2 * self.positions * mel.HOP

    @property
    def row_floats(self) -> int:
        """How many floats a row takes: what enters, the convolutions, and the layers."""
        return whisper.TAPS * self.group + 15 * self.hidden + self.inner


def config_from_hf(config: Fields, settings: Fields) -> VoxtralSizes:
    """Read config.json and what is said of sound beside it."""
    audio = config.section("audio_config") or Fields({})
    text = config.section("text_config") or Fields({})
    audio.require("activation_function", ("gelu",), "gelu")
    config.require("projector_hidden_act", ("gelu",), "gelu")
    audio.refuse("scale_embedding", "a factor of embeddings")
    for key, known in _FRAMES.items():
        if (stated := settings.get(key)) is not None and stated not in known:
            raise UnsupportedModel(
                f"{settings.name(key)} is {str(stated)[:40]}; {known[0]} is supported there"
            )
    hidden = audio.integer("hidden_size", 1, MAX_WIDTH, 1280)
    inner = audio.integer("intermediate_size", 1, MAX_WIDTH, 5120)
    if inner % hidden:
        raise UnsupportedModel(f"rows of {hidden} columns do not divide {inner}, which become one")
    bands = audio.integer("num_mel_bins", 1, 1024, 128)
    if settings.integer("feature_size", 1, 1024, bands) != bands:
        raise UnsupportedModel(
            f"{settings.name('feature_size')} is {settings.get('feature_size')}, not {bands}"
        )
    return VoxtralSizes(
        layers=audio.integer("num_hidden_layers", 1, MAX_LAYERS, 32),
        hidden=hidden,
        heads=audio.integer("num_attention_heads", 1, MAX_HEADS, 20),
        intermediate=inner,
        out=text.integer("hidden_size", 1, MAX_WIDTH, 3072),
        eps=whisper.EPS,
        pixels=PixelForm(),
        bands=bands,
        positions=audio.integer("max_source_positions", 1, MAX_CONTEXT, 1500),
        stack=inner // hidden,
    )


def config_from_gguf(meta: Fields) -> VoxtralSizes:
    """Read the keys under `clip.`, and the shape that states how many rows a chunk has."""
    audio = Fields(meta.values, meta.name("audio."))
    return VoxtralSizes(
        layers=audio.integer("block_count", 1, MAX_LAYERS),
        hidden=audio.integer("embedding_length", 1, MAX_WIDTH),
        heads=audio.integer("attention.head_count", 1, MAX_HEADS),
        intermediate=audio.integer("feed_forward_length", 1, MAX_WIDTH),
        out=audio.integer("projection_dim", 1, MAX_WIDTH),
        eps=audio.number("attention.layer_norm_epsilon", MIN_EPS, MAX_EPS, whisper.EPS),
        pixels=PixelForm(),
        bands=audio.integer("num_mel_bins", 1, 1024),
        positions=audio.integer("positions", 1, MAX_CONTEXT, 1500),
        stack=audio.integer("projector.stack_factor", 1, 64, STACK),
    )


def plan(cfg: VoxtralSizes, width: int, height: int = 1, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a sound of `width` samples becomes. Raises UsageError for one that is too short or too long."""
    check_seconds(width, mel.HOP / RATE, MOST_S)
    rows = -(-width // cfg.chunk) * cfg.positions
    if rows > MOST_S * RATE / (2 * mel.HOP) + cfg.positions:
        raise UsageError(f"the recording becomes {rows:,} rows of the encoder", "split it")
    tokens = rows // cfg.stack
    return PicturePlan(resizes=(), patches=rows, tokens=tokens, layout=(tokens,), places=None, advance=tokens)


def rows(cfg: VoxtralSizes, plan: PicturePlan, pixels: Sequence[Any]) -> TowerRows:
    """Return what each chunk's rows read of its frames, of one array of samples, float32 [n]."""
    (samples,) = pixels
    count = plan.patches // cfg.positions
    whole = np.zeros(count * cfg.chunk, np.float32)
    whole[: len(samples)] = samples
    decades = mel.energies(whole, cfg.bands)
    frames = mel.scaled(decades, float(decades.max()))
    one = replace(plan, patches=cfg.positions)
    chunks = [
        whisper.rows(cfg, one, [frames[:, i * 2 * cfg.positions : (i + 1) * 2 * cfg.positions]]).values
        for i in range(count)
    ]
    return TowerRows(np.concatenate(chunks), (cfg.positions,) * count)


def positions(cfg: VoxtralSizes, plan: PicturePlan, w: Values) -> F32:
    """Return the columns of positions, chunk by chunk: see whisper.positions."""
    return np.tile(whisper.positions(cfg, plan, w), (plan.patches // cfg.positions, 1))


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VoxtralEnds(WhisperTowerEnds):
    """Whisper's convolutions and positions before the first layer, and its norm after the last."""

    module: str = MODULE

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare them."""
        specs = super(VoxtralEnds, self).tensors()
        return specs | layer_norm("norm", "a.post_ln", f"{self.module}.layer_norm", self.cfg.hidden)

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Compose the norm."""
        ops.hidden(ops.layer_normed(x, w["norm"], w["norm_bias"], self.cfg.eps))


@dataclass(frozen=True, slots=True)
class VoxtralMerger(Merger):
    """Two matrices over rows that lie one beside another."""

    cfg: VoxtralSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare them."""
        cfg, hf = self.cfg, "multi_modal_projector"
        wide = cfg.stack * cfg.hidden
        return {
            "merger_up": matrix("mm.a.mlp.1.weight", f"{hf}.linear_1.weight", cfg.out, wide),
            "merger_down": matrix("mm.a.mlp.2.weight", f"{hf}.linear_2.weight", cfg.out, cfg.out),
        }

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose them."""
        x = ops.features(self.cfg.stack * self.cfg.hidden)
        h = ops.linear_act(x, w["merger_up"], "gelu_erf")
        (y,) = ops.linear(h, (w["merger_down"],), (None,))
        ops.hidden(y)


def layer(cfg: VoxtralSizes, i: int) -> tuple[LayerPart, ...]:
    attention = HearingAttention.of(cfg, norm="self_attn_layer_norm")
    return attention, PictureMlp.of(cfg, "gelu_erf", norm="final_layer_norm", up="fc1", down="fc2")


def ends(cfg: VoxtralSizes) -> TowerEnds:
    return VoxtralEnds(cfg)


TOWER = Tower(
    name="voxtral",
    hears=True,
    most_seconds=MOST_S,
    projectors=("voxtral",),
    model_types=("voxtral",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(HearingAttention, PictureMlp),
    layer=layer,
    ends=ends,
    merger=VoxtralMerger,
    plan=plan,
    rows=rows,
    positions=positions,
    join=lambda cfg, plan, leaving: leaving.reshape(plan.tokens, cfg.stack * cfg.hidden),
    mark=MARK,
    written=MARK,
    spelled=SPELLED,
    hf_layers=f"{MODULE}.layers",
    hf_name=names_under(f"{MODULE}.", "multi_modal_projector."),
    rows_of={"audio.positions": "a.position_embd.weight"},
)
