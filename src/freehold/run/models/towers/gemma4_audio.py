"""The tower of sound of Gemma 4 E2B and E4B: a conformer over frames of energy, a row for each 40 ms.

    spectrum = |FFT of 320 samples under a periodic Hann window|, every 160 samples, 160 zeros before the first
    frame = ln(filters x spectrum + 0.001), filters of triangles on O'Shaughnessy's scale of pitch
    h = relu(norm(c1 * frames));  h = relu(norm(c2 * h));  x = w h
    x += norm(down(silu(up norm(x)))) / 2;  x += norm(o attention(q, k, v of norm(x)))
    x += end(silu(norm(conv(value n * sigmoid(gate n))))),  n = norm(x)
    x += norm(down(silu(up norm(x)))) / 2;  x = norm(x)

c1 and c2 convolve over three frames and three bands, at every second of both, with a zero beyond each end. Attention
sees the row and the eleven before it; a score is q (k + r), r a product with sines of the distance, and is capped. The
convolution of each channel sees the row and the four before it. Bounds stand beside matrices as in the tower of
pictures. A frame that reaches beyond the sound is left out. What leaves goes through one matrix to a norm without a
weight and another matrix.
Sources: arXiv 2005.08100 (conformer), 2303.01037; Google's Gemma 4 files, and transformers' Gemma4AudioModel and
Gemma4AudioFeatureExtractor, read 2026-12.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import BadModelFile, UnsupportedModel, UsageError
from freehold.run.formats.fields import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import MAX_EPS, MIN_EPS, WIDTH_STEP
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.tower import (
    F32,
    Merger,
    PicturePlan,
    PixelForm,
    TokenBudget,
    Tower,
    TowerEnds,
    TowerRows,
    TowerSizes,
    affine,
    names_under,
)
from freehold.run.models.towers.gemma4 import bounds, clipped_linear

RATE, FRAME, HOP, FFT = 16_000, 320, 160, 512  # samples
FLOOR = 1e-3  # added to a band's energy
MOST_S = 30.0  # seconds of a sound: what the models were trained with
EPS = 1e-6
TAPS = 3  # frames, and bands, that a convolution reads
INPUTS = WIDTH_STEP  # of the first one's matrix: nine, and zeros
LEAST_CLIP = 1e6  # values never reach the models' own limit of 1e10, so it is not computed
MARK = "<|audio|>"
SPELLED = f"<|audio>{MARK}<audio|>"
MODULE = "audio_tower"
# What a file may say of frames, which is what is computed here.
_FRAMES: dict[str, tuple[object, ...]] = {
    "sampling_rate": (RATE,),
    "frame_length": (FRAME,),
    "frame_length_ms": (20, 20.0),
    "hop_length": (HOP,),
    "hop_length_ms": (10, 10.0),
    "fft_length": (FFT,),
    "fft_overdrive": (False,),
    "min_frequency": (0, 0.0),
    "max_frequency": (8000, 8000.0),
    "preemphasis": (0, 0.0),
    "dither": (0, 0.0),
    "input_scale_factor": (1, 1.0),
    "mel_floor": (FLOOR,),
    "per_bin_mean": (None,),
    "per_bin_stddev": (None,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4SoundSizes(TowerSizes):
    """The tower's sizes."""

    bands: int  # of a frame
    channels: tuple[int, int]  # of the two convolutions before the layers
    kernel: int  # rows that a layer's convolution reads
    window: int  # rows that attention sees
    cap: float
    residual: float  # what an MLP's part is multiplied by
    leaving: int  # columns before the norm and the last matrix
    clipped: bool | None  # whether bounds stand beside matrices; None: as the file has it

    def __post_init__(self) -> None:
        super(Gemma4SoundSizes, self).__post_init__()
        first, second = self.channels
        if self.bands % 4 or first // 4 != self.bands // 4:
            raise UnsupportedModel(
                f"the audio encoder has {self.bands} bands and {first} channels; expected the same number of both, a "
                "multiple of 4"
            )
        if first % WIDTH_STEP or second % 16 or self.leaving % WIDTH_STEP or self.head % 16:
            raise UnsupportedModel(
                f"channels of {first} and {second}, heads of {self.head} and {self.leaving} columns that leave are not "
                f"supported: multiples of {WIDTH_STEP}, 16, 16 and {WIDTH_STEP} are"
            )

    @property
    def pitches(self) -> int:
        """Bands after the first convolution; half of them are left after the second."""
        return self.bands // 2

    @property
    def tap(self) -> int:
        """Columns that a row enters with for one value in time of the second convolution."""
        return (self.pitches + self.pitches // 2) * INPUTS

    @property
    def row_floats(self) -> int:
        """How many floats a row takes in the layers, about; at their beginning, what the convolutions hold."""
        begin = TAPS * self.tap + 2 * self.pitches * self.channels[0]
        return max(9 * self.hidden + self.inner, begin)


# --- what the files say ---------------------------------------------------------------------------------


def config_from_hf(config: Fields, settings: Fields) -> Gemma4SoundSizes:
    """Read config.json and what is said of sound beside it."""
    audio = config.section("audio_config") or Fields({})
    text = config.section("text_config") or Fields({})
    audio.require("hidden_act", ("silu",), "silu")
    audio.refuse("attention_context_right", "attention to later rows")
    left = audio.integer("attention_context_left", 2, 64, 13)
    if (chunk := audio.integer("attention_chunk_size", 1, 64, 12)) != left - 1:
        raise UnsupportedModel(
            f"{audio.name('attention_chunk_size')} is {chunk} with {left} rows of context; only {left - 1} "
            "is supported there"
        )
    audio.number("gradient_clipping", LEAST_CLIP, 1e38, 1e10)
    check_frames(settings)
    hidden = audio.integer("hidden_size", 1, MAX_WIDTH, 1024)
    return Gemma4SoundSizes(
        layers=audio.integer("num_hidden_layers", 1, MAX_LAYERS, 12),
        hidden=hidden,
        heads=audio.integer("num_attention_heads", 1, MAX_HEADS, 8),
        intermediate=4 * hidden,
        out=text.integer("hidden_size", 1, MAX_WIDTH, 2304),
        eps=audio.number("rms_norm_eps", MIN_EPS, MAX_EPS, EPS),
        pixels=PixelForm(),
        bands=settings.integer("feature_size", 4, 1024, 128),
        channels=_channels(audio),
        kernel=audio.integer("conv_kernel_size", 1, 64, 5),
        window=left - 1,
        cap=audio.number("attention_logit_cap", 1e-3, 1e6, 50.0),
        residual=audio.number("residual_weight", 0.0, 1e3, 0.5),
        leaving=audio.integer("output_proj_dims", 1, MAX_WIDTH, 1536),
        clipped=audio.flag("use_clipped_linears", True),
    )


def _channels(audio: Fields) -> tuple[int, int]:
    stated = audio.get("subsampling_conv_channels")
    values = [128, 32] if stated is None else stated
    if (
        not isinstance(values, list)
        or len(values) != 2
        or any(type(v) is not int or not 1 <= v <= MAX_WIDTH for v in values)
    ):
        raise BadModelFile(
            f"{audio.name('subsampling_conv_channels')} is {str(values)[:60]}; expected two counts"
        )
    return values[0], values[1]


def check_frames(settings: Fields) -> None:
    """Raise UnsupportedModel for frames of another kind than are computed here."""
    for key, known in _FRAMES.items():
        if (stated := settings.get(key)) is not None and stated not in known:
            raise UnsupportedModel(
                f"{settings.name(key)} is {str(stated)[:40]}; {known[0]} is supported there"
            )


def config_from_gguf(meta: Fields) -> Gemma4SoundSizes:
    """Read the keys under `clip.`, and the shapes that stand for what they do not state."""
    audio = Fields(meta.values, meta.name("audio."))
    hidden = audio.integer("embedding_length", 1, MAX_WIDTH)
    bands = audio.integer("num_mel_bins", 4, 1024)
    return Gemma4SoundSizes(
        layers=audio.integer("block_count", 1, MAX_LAYERS),
        hidden=hidden,
        heads=audio.integer("attention.head_count", 1, MAX_HEADS),
        intermediate=audio.integer("feed_forward_length", 1, MAX_WIDTH),
        out=audio.integer("projection_dim", 1, MAX_WIDTH),
        eps=audio.number("attention.layer_norm_epsilon", MIN_EPS, MAX_EPS, EPS),
        pixels=PixelForm(),
        bands=bands,
        channels=(audio.integer("channels", 1, MAX_WIDTH), audio.integer("channels_after", 1, MAX_WIDTH)),
        kernel=5,
        window=12,
        cap=50.0,
        residual=0.5,
        leaving=audio.integer("leaving", 1, MAX_WIDTH),
        clipped=None,
    )


# --- samples and frames -----------------------------------------------------------------------------------


def plan(cfg: TowerSizes, width: int, height: int = 1, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a sound of `width` samples becomes. Raises UsageError for one that is too short or too long."""
    check_seconds(width, (FRAME // 2 + 1) / RATE)
    tokens = _halved(_halved(frame_count(width)))
    return PicturePlan(
        resizes=(), patches=tokens, tokens=tokens, layout=(tokens,), places=None, advance=tokens
    )


def check_seconds(samples: int, least: float, most: float = MOST_S) -> None:
    """Raise UsageError for a sound of fewer or more seconds than a tower hears."""
    seconds = samples / RATE
    if seconds < least or samples > round(most * RATE):
        raise UsageError(
            f"the recording lasts {seconds:,.2f} s; this model accepts {least:.2f} to {most:g} s",
            "split it, or turn it into text with freehold transcribe",
        )


def frame_count(samples: int) -> int:
    """Return how many frames lie whole within a sound, and the sample after each."""
    return max(samples - FRAME // 2 - 1, -HOP) // HOP + 1


def _halved(count: int) -> int:
    """Return how many of the values in time are left at every second one."""
    return -(-count // 2)


@cache
def filters(bands: int) -> NDArray[np.float64]:
    """Return triangles over the bins of a spectrum, float64 [bins, bands]."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)


def frames(samples: F32, bands: int) -> F32:
    """Return the frames of a sound, float32 [frames, bands]; `samples` float32 [n] at 16 kHz."""
    padded = np.concatenate([np.zeros(FRAME // 2), samples.astype(np.float64)])
    views = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP][: frame_count(len(samples))]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    spectrum = np.abs(np.fft.rfft(views * hann, n=FFT, axis=1))
    return np.log(spectrum @ filters(bands) + FLOOR).astype(np.float32)


def rows(cfg: Gemma4SoundSizes, plan: PicturePlan, pixels: Sequence[Any]) -> TowerRows:
    """Return the nine values that each value of the first convolution reads, of one array of samples, float32 [n].

    A row has three values in time of it for the second. Of those, each of its bands f reads the bands 2 f - 1 to
    2 f + 1: columns are all bands in order, then those before each second one, a band of zeros before the first.
    """
    (samples,) = pixels
    mel = frames(samples, cfg.bands)
    count, half = _halved(len(mel)), cfg.pitches // 2
    padded = np.zeros((4 * plan.tokens + 3, cfg.bands + 2), np.float32)
    padded[3 : 3 + len(mel), 1:-1] = mel
    views = np.lib.stride_tricks.sliding_window_view(padded, (TAPS, TAPS))  # [frames, bands, 3, 3]
    values = np.zeros((plan.tokens, TAPS, cfg.pitches + half, INPUTS), np.float32)
    for tap in range(TAPS):  # the value 2 t - 1 + tap, whose first frame is 3 before 4 t + 2 tap
        near = views[2 * tap :: 4][: plan.tokens, ::2].reshape(plan.tokens, cfg.pitches, -1)
        values[:, tap, : cfg.pitches, : near.shape[2]] = near
        values[:, tap, cfg.pitches + 1 :, : near.shape[2]] = near[:, 1:-1:2]
        values[2 * np.arange(plan.tokens) - 1 + tap >= count, tap] = 0
    return TowerRows(values.reshape(plan.tokens, -1), (plan.tokens,))


# --- parts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gemma4SoundEnds(TowerEnds):
    """Two convolutions and a matrix before the first layer; nothing after the last."""

    cfg: Gemma4SoundSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the convolutions as matrices of each band, their norms, and the matrix after them."""
        cfg, (c1, c2), half = self.cfg, self.cfg.channels, self.cfg.pitches // 2
        hf = f"{MODULE}.subsample_conv_projection"
        names = [("a.conv1d.0", f"{hf}.layer0"), ("a.conv1d.1", f"{hf}.layer1")]
        specs = {
            f"norm_{i}": vector(f"{gguf}.norm.weight", f"{own}.norm.weight", width)
            for i, ((gguf, own), width) in enumerate(zip(names, (c1, c2), strict=True))
        }
        for key, copies in (("first", cfg.pitches), ("first_beside", half)):
            kernel = _kernels(names[0], (c1, 1, TAPS, TAPS), _first(copies))
            specs[key] = matrix(*kernel, copies * c1, INPUTS, floats=True)
        for tap in range(TAPS):
            for key, bands in ((f"second_{tap}", (1, 2)), (f"second_{tap}_beside", (0,))):
                kernel = _kernels(names[1], (c2, c1, TAPS, TAPS), _second(tap, bands, half))
                specs[key] = matrix(*kernel, half * c2, len(bands) * c1)
        return specs | {
            "entering": matrix(
                "a.input_projection.weight", f"{hf}.input_proj_linear.weight", cfg.hidden, half * c2
            )
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the convolutions and the matrix."""
        cfg, half = self.cfg, self.cfg.pitches // 2
        y: Buffer = None
        for tap in range(TAPS):
            first = tap * cfg.tap
            for key, copies in (("", cfg.pitches), ("_beside", half)):
                ops.section()
                x = ops.features(copies * INPUTS, first)
                h = self._rectified(ops, ops.linear_heads(x, w[f"first{key}"], copies), w["norm_0"])
                part = ops.linear_heads(h, w[f"second_{tap}{key}"], half)
                y = part if y is None else _plus(ops, y, part)
                first += copies * INPUTS
        (x,) = ops.linear(self._rectified(ops, y, w["norm_1"]), (w["entering"],), (None,))
        return x

    def _rectified(self, ops: Ops, x: Buffer, norm: F32) -> Buffer:
        """Compose the norm over each band's channels, and leave nothing below zero."""
        out = ops.layer_normed(x, norm, None, self.cfg.eps, len(norm))
        ops.clamp(out, math.inf, 0.0)
        return out

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Give the stream."""
        ops.hidden(x)


def _plus(ops: Ops, x: Buffer, y: Buffer) -> Buffer:
    ops.add(x, y)
    return x


def _kernels(names: tuple[str, str], shape: tuple[int, ...], take: Callable[[F32], F32]) -> tuple[Cut, Cut]:
    gguf, hf = (f"{name}.weight" for name in (names[0], f"{names[1]}.conv"))
    return Cut(gguf, shape, take=take), Cut(hf, shape, take=take)


def _first(copies: int) -> Callable[[F32], F32]:
    """Return what lays the first kernel [channels, 1, 3, 3] for each of `copies` bands: [copies * channels, INPUTS]."""

    def laid(kernel: F32) -> F32:
        flat = kernel.reshape(len(kernel), -1)
        return np.tile(np.pad(flat, ((0, 0), (0, INPUTS - flat.shape[1]))), (copies, 1))

    return laid


def _second(tap: int, bands: tuple[int, ...], copies: int) -> Callable[[F32], F32]:
    """Return what lays one frame and some bands of the second kernel [c2, c1, 3, 3]: [copies * c2, bands * c1]."""

    def laid(kernel: F32) -> F32:
        some = np.concatenate([kernel[:, :, tap, band] for band in bands], axis=1)
        return np.tile(some, (copies, 1))

    return laid


@dataclass(frozen=True, slots=True)
class Gemma4SoundMerger(Merger):
    """The matrix that ends the tower, a norm without a weight, and the matrix into the text model."""

    cfg: Gemma4SoundSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both."""
        cfg = self.cfg
        return affine(
            "leaving", "a.pre_encode.out", f"{MODULE}.output_proj", cfg.leaving, cfg.hidden
        ) | sound_merger(cfg.out, cfg.leaving)

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose them."""
        cfg = self.cfg
        (y,) = ops.linear(ops.features(cfg.hidden), (w["leaving"],), (w["leaving_bias"],))
        (y,) = ops.linear(y, (w["merger"],), (None,), np.ones(cfg.leaving, np.float32), cfg.eps)
        ops.hidden(y)


def sound_merger(out: int, columns: int) -> dict[str, TensorSpec]:
    """Declare the matrix into the text model."""
    hf = "embed_audio.embedding_projection.weight"
    return {"merger": matrix("mm.a.input_projection.weight", hf, out, columns)}


@dataclass(frozen=True, slots=True)
class ConformerMlp(LayerPart):
    """x += norm(down(silu(up norm(x)))) times a factor; the second of a layer ends in x = norm(x)."""

    cfg: Gemma4SoundSizes
    second: bool = False

    @property
    def _name(self) -> str:
        return "ffn_after" if self.second else "ffn"

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices, their bounds, and norms."""
        cfg, name = self.cfg, self._name
        n, wide, end = cfg.hidden, cfg.intermediate, "_1" if self.second else ""
        hf = f"feed_forward{2 if self.second else 1}"
        specs = {
            f"{name}_norm": vector(f"ffn_norm{end}.weight", f"{hf}.pre_layer_norm.weight", n),
            f"{name}_post_norm": vector(f"ffn_post_norm{end}.weight", f"{hf}.post_layer_norm.weight", n),
        }
        shapes = (("up", "ffw_layer_1", wide, n), ("down", "ffw_layer_2", n, wide))
        for key, own, height, width in shapes:
            specs[f"{name}_{key}"] = matrix(
                f"ffn_{key}{end}.weight", f"{hf}.{own}.linear.weight", height, width
            )
            specs |= bounds(cfg.clipped, f"{name}_{key}", f"ffn_{key}{end}", f"{hf}.{own}")
        if self.second:
            specs["norm_out"] = vector("ln2.weight", "norm_out.weight", n)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, up, activation, down, norm and residual, and the layer's last norm."""
        name = self._name
        (h,) = clipped_linear(ops, x, w, (f"{name}_up",), w[f"{name}_norm"], EPS)
        ops.norm_gate(h, h, None, act="sigmoid")
        (h,) = clipped_linear(ops, h, w, (f"{name}_down",))
        ops.add_norm(x, h, w[f"{name}_post_norm"] * np.float32(self.cfg.residual), EPS)
        if self.second:
            out = ops.norm(x, w["norm_out"], EPS)
            ops.scale(x, 0.0)
            ops.add(x, out)


@dataclass(frozen=True, slots=True)
class ConformerAttention(LayerPart):
    """x += norm(o(attention(q n, k n, v n))),  n = norm(x): to the rows just before, with what their distance adds."""

    cfg: Gemma4SoundSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare four projections and their bounds, two norms, the product of distances, and scales of columns."""
        cfg, n = self.cfg, self.cfg.hidden
        specs = {
            "attn_norm": vector("attn_pre_norm.weight", "norm_pre_attn.weight", n),
            "attn_post_norm": vector("attn_post_norm.weight", "norm_post_attn.weight", n),
            "scale": vector(
                "per_dim_scale.weight",
                Cut("self_attn.per_dim_scale", (cfg.head,), take=_softplus),
                cfg.head,
            ),
        }
        names = "attn_k_rel.weight", "self_attn.relative_k_proj.weight"
        back = [Cut(name, (n, n), take=self._distances, decode=True) for name in names]
        specs["back"] = vector(back[0], back[1], cfg.window * n)
        for key, gguf, hf in (
            *((key, f"attn_{key}", f"self_attn.{key}_proj") for key in "qkv"),
            ("o", "attn_out", "self_attn.post"),
        ):
            specs[key] = matrix(f"{gguf}.weight", f"{hf}.linear.weight", n, n)
            specs |= bounds(cfg.clipped, key, gguf, hf)
        return specs

    def _distances(self, weight: F32) -> F32:
        """Return the products of a matrix with the sines and cosines of each distance: [window * hidden]."""
        count = self.cfg.hidden // 2
        rates = np.exp(np.arange(count) * -(math.log(10_000) / max(count - 1, 1)))
        angles = np.arange(self.cfg.window)[:, None] * rates
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return (waves @ weight.T.astype(np.float64)).astype(np.float32).ravel()

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose projections of the normed rows, attention, norm and residual."""
        cfg = self.cfg
        keys = math.log(1 + math.e) / math.log(2)  # what keys are multiplied by, and distances are not
        queries = cfg.head**-0.5 / math.log(2)
        q, k, v = clipped_linear(ops, x, w, ("q", "k", "v"), w["attn_norm"], EPS)
        ops.section()
        back, scale = w["back"] / np.float32(keys), w["scale"] * np.float32(queries * keys)
        out = ops.attend_near(q, k, v, cfg.heads, back, scale, cfg.cap)
        (out,) = clipped_linear(ops, out, w, ("o",))
        ops.add_norm(x, out, w["attn_post_norm"], EPS)


def _softplus(values: F32) -> F32:
    return np.logaddexp(0, values.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ConformerConvolution(LayerPart):
    """x += end(silu(norm(conv(value n * sigmoid(gate n))))),  n = norm(x)."""

    cfg: Gemma4SoundSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices and their bounds, the convolution of each channel, and norms."""
        cfg, n = self.cfg, self.cfg.hidden
        hf = "lconv1d"
        specs = {
            "conv_pre_norm": vector("conv_norm.weight", f"{hf}.pre_layer_norm.weight", n),
            "conv_norm": vector("norm_conv.weight", f"{hf}.conv_norm.weight", n),
            "conv": TensorSpec.of_convolution(
                "conv_dw.weight", f"{hf}.depthwise_conv1d.weight", n, cfg.kernel
            ),
        }
        for key, gguf, own, height in (
            ("start", "conv_pw1", "linear_start", 2 * n),
            ("end", "conv_pw2", "linear_end", n),
        ):
            specs[key] = matrix(f"{gguf}.weight", f"{hf}.{own}.linear.weight", height, n)
            specs |= bounds(cfg.clipped, key, gguf, f"{hf}.{own}")
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, matrix, gate, convolution, norm, activation, matrix and residual."""
        n = self.cfg.hidden
        (both,) = clipped_linear(ops, x, w, ("start",), w["conv_pre_norm"], self.cfg.eps)
        value = ops.part(both, 0, n)
        ops.norm_gate(value, ops.part(both, n, n), None, act="sigmoid")
        ops.section()
        h = ops.norm(ops.conv_near(value, w["conv"]), w["conv_norm"], self.cfg.eps)
        ops.norm_gate(h, h, None, act="sigmoid")
        (h,) = clipped_linear(ops, h, w, ("end",))
        ops.add(x, h)


def layer(cfg: Gemma4SoundSizes, i: int) -> tuple[LayerPart, ...]:
    return ConformerMlp(cfg), ConformerAttention(cfg), ConformerConvolution(cfg), ConformerMlp(cfg, True)


TOWER = Tower(
    name="gemma4_audio",
    hears=True,
    most_seconds=MOST_S,
    projectors=("gemma4a",),
    model_types=("gemma4",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(ConformerMlp, ConformerAttention, ConformerConvolution),
    layer=layer,
    ends=Gemma4SoundEnds,
    merger=Gemma4SoundMerger,
    plan=plan,
    rows=rows,
    join=lambda cfg, plan, leaving: leaving,
    mark=MARK,
    written=MARK,
    spelled=SPELLED,
    hf_layers=f"{MODULE}.layers",
    hf_name=names_under(f"{MODULE}.", "embed_audio."),
    rows_of={
        "audio.channels": "a.conv1d.0.norm.weight",
        "audio.channels_after": "a.conv1d.1.norm.weight",
        "audio.leaving": "a.pre_encode.out.weight",
    },
)
