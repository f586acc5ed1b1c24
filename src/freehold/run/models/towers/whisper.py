"""Whisper's encoder: 30 s of sound become 1,500 rows that the decoder attends to.

    h = gelu(c1 * frames);  x = gelu(c2 * h) + positions;  layers as a picture's tower has them;  features = norm(x)

c1 and c2 convolve over three frames, c2 at every second one, with a zero beyond each end. A row enters with the frames
that its three values of h read. The first of them lies before the window for the first row, where c2 reads a zero:
columns after the positions take away what c1 makes of no sound there. A window is a "picture" of one array, the log-mel
frames float32 [bands, 3000] (models/mel.py).
Sources: arXiv 2212.04356; the layout of safetensors is Hugging Face's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import WIDTH_STEP
from freehold.run.models.family import Buffer, Cut, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.vision import PictureAttention, PictureMlp
from freehold.run.models.tower import (
    Merger,
    PicturePlan,
    PixelForm,
    TokenBudget,
    Tower,
    TowerEnds,
    TowerRows,
    TowerSizes,
    layer_norm,
)

F32 = NDArray[np.float32]

EPS = 1e-5
TAPS = 3  # frames that a convolution reads
MODULE = "model.encoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperTowerSizes(TowerSizes):
    """An encoder's sizes."""

    bands: int  # of a frame
    positions: int  # rows of a window

    @property
    def group(self) -> int:
        """Columns of the frames that one value of h reads, with the zeros that fill them up."""
        return -(-TAPS * self.bands // WIDTH_STEP) * WIDTH_STEP


def config_from_hf(config: Fields, settings: Fields) -> WhisperTowerSizes:
    """Read config.json; what is said beside it of sound is the same for every Whisper."""
    config.require("activation_function", ("gelu",), "gelu")
    width = config.integer("d_model", 1, MAX_WIDTH)
    return WhisperTowerSizes(
        layers=config.integer("encoder_layers", 1, MAX_LAYERS),
        hidden=width,
        heads=config.integer("encoder_attention_heads", 1, MAX_HEADS),
        intermediate=config.integer("encoder_ffn_dim", 1, MAX_WIDTH),
        out=width,
        eps=EPS,
        pixels=PixelForm(),
        bands=config.integer("num_mel_bins", 1, 1024, 80),
        positions=config.integer("max_source_positions", 1, MAX_CONTEXT, 1500),
    )


def config_from_gguf(meta: Fields) -> NoReturn:
    """Refuse: no GGUF of Whisper is agreed."""
    raise UnsupportedModel("Whisper as a GGUF is not supported", "use its safetensors")


def plan(cfg: WhisperTowerSizes, width: int, height: int, budget: TokenBudget | None = None) -> PicturePlan:
    """Return what a window becomes: always the same."""
    rows = cfg.positions
    return PicturePlan(resizes=(), patches=rows, tokens=rows, layout=(rows,), places=None, advance=rows)


def rows(cfg: WhisperTowerSizes, plan: PicturePlan, pixels: Sequence[Any]) -> TowerRows:
    """Return the groups of frames that each row reads, of one array float32 [bands, 2 * positions]."""
    (frames,) = pixels
    count, bands, group = cfg.positions, cfg.bands, cfg.group
    padded = np.zeros((2 * count + 4, bands), np.float32)
    padded[2:-2] = frames.T
    values = np.zeros((count, TAPS, group), np.float32)
    for tap in range(TAPS):  # h at frame 2 t - 1 + tap reads the frames around it
        for near in range(TAPS):
            values[:, tap, near * bands : (near + 1) * bands] = padded[
                tap + near : tap + near + 2 * count : 2
            ]
    values[0, 0] = 0
    return TowerRows(values.reshape(count, -1), (count,))


def positions(cfg: WhisperTowerSizes, plan: PicturePlan, w: Values) -> F32:
    """Return each row's position, and what its first value of h is too much: float32 [positions, 2 * hidden]."""
    columns = np.zeros((cfg.positions, 2 * cfg.hidden), np.float32)
    columns[:, : cfg.hidden] = w["positions"].reshape(cfg.positions, cfg.hidden)
    columns[0, cfg.hidden :] = [-0.5 * b * (1 + math.erf(b / math.sqrt(2))) for b in w["first_bias"].tolist()]
    return columns


@dataclass(frozen=True, slots=True)
class WhisperTowerEnds(TowerEnds):
    """Two convolutions and positions before the first layer."""

    cfg: WhisperTowerSizes
    module: str = MODULE  # in safetensors

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the convolutions as matrices over frames one beside another, and the positions."""
        cfg, n = self.cfg, self.cfg.hidden
        names = [("a.conv1d.1", f"{self.module}.conv1"), ("a.conv1d.2", f"{self.module}.conv2")]
        first = [Cut(f"{name}.weight", (n, cfg.bands, TAPS), take=_in_frames(cfg.group)) for name in names[0]]
        table = [
            Cut(f"{name}.weight", (cfg.positions, n), take=np.ravel)
            for name in ("a.position_embd", f"{self.module}.embed_positions")
        ]
        specs = {
            "first": matrix(first[0], first[1], n, cfg.group, floats=True),
            "first_bias": vector(f"{names[0][0]}.bias", f"{names[0][1]}.bias", n),
            "second_bias": vector(f"{names[1][0]}.bias", f"{names[1][1]}.bias", n),
            "positions": vector(table[0], table[1], cfg.positions * n),
        }
        for tap in range(TAPS):
            stored = [Cut(f"{name}.weight", (n, n, TAPS), take=_tap(tap)) for name in names[1]]
            specs[f"second_{tap}"] = matrix(stored[0], stored[1], n, n)
        return specs

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Compose the convolutions, and add positions."""
        cfg = self.cfg
        bias, end = w["first_bias"], TAPS * cfg.group
        h = [
            ops.linear_act(ops.features(cfg.group, tap * cfg.group), w["first"], "gelu_erf", bias)
            for tap in range(TAPS)
        ]
        ops.add(h[0], ops.features(cfg.hidden, end + cfg.hidden))
        (x,) = ops.linear(h[0], (w["second_0"],), (w["second_bias"],))
        ops.linear_add(h[1], w["second_1"], x)
        ops.linear_add(h[2], w["second_2"], x)
        ops.gelu(x)
        ops.add(x, ops.features(cfg.hidden, end))
        return x

    def finish(self, ops: Ops, x: Buffer, kept: Sequence[Buffer], w: Values) -> None:
        """Give the stream as it is."""
        ops.hidden(x)


def _in_frames(group: int) -> Callable[[F32], F32]:
    """Return what lays [width, bands, taps] tap by tap, with zeros after it: [width, group]."""

    def laid(kernel: F32) -> F32:
        flat = kernel.transpose(0, 2, 1).reshape(len(kernel), -1)
        return np.pad(flat, ((0, 0), (0, group - flat.shape[1])))

    return laid


def _tap(tap: int) -> Callable[[F32], F32]:
    return lambda kernel: np.ascontiguousarray(kernel[:, :, tap])


@dataclass(frozen=True, slots=True)
class WhisperTowerNorm(Merger):
    """The norm after the last layer."""

    cfg: WhisperTowerSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare it."""
        return layer_norm("norm", "", f"{MODULE}.layer_norm", self.cfg.hidden)

    def forward(self, ops: Ops, w: Values) -> None:
        """Compose it."""
        ops.hidden(ops.layer_normed(ops.features(self.cfg.hidden), w["norm"], w["norm_bias"], self.cfg.eps))


@dataclass(frozen=True, slots=True, kw_only=True)
class HearingAttention(PictureAttention):
    """Attention without a bias at keys, where a picture's has one."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm, four projections and three biases."""
        specs = super(HearingAttention, self).tensors()
        return {key: spec for key, spec in specs.items() if key != "k_bias"}


def layer(cfg: WhisperTowerSizes, i: int) -> tuple[LayerPart, ...]:
    attention = HearingAttention.of(cfg, norm="self_attn_layer_norm")
    return attention, PictureMlp.of(cfg, "gelu_erf", norm="final_layer_norm", up="fc1", down="fc2")


TOWER = Tower(
    name="whisper",
    projectors=(),
    model_types=("whisper",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(HearingAttention, PictureMlp),
    layer=layer,
    ends=WhisperTowerEnds,
    merger=WhisperTowerNorm,
    plan=plan,
    rows=rows,
    positions=positions,
    join=lambda cfg, plan, leaving: leaving,
    mark="",
    hf_layers=f"{MODULE}.layers",
    hf_name=lambda name: name if name.startswith(f"{MODULE}.") else "",
)
