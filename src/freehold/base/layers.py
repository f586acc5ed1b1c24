"""What one layer keeps of a sequence: its kind, its sizes, the bytes that follow, and what a prefix hit needs of it;
and what a tower of pictures takes.

Knows no file, no machine and no cache: the catalogue states layers, an engine allocates for them, a verdict adds
them up. Two layers that keep the same are equal, so a group is a layer with a count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

ATTENTION = ("full", "window", "latent", "compressed")
RECURRENT = ("mamba2", "deltanet", "linear", "shortconv")
KINDS = (*ATTENTION, *RECURRENT, "plain")
STATE_WIDTH = 4  # bytes of a value of a state, and of a convolution's last inputs: both are kept in f32
KV_WIDTHS = {"f16": 2.0, "q8": 1.125, "f32": 4.0}  # bytes of a value in our engine's cache, with q8's scales
MOST_STATES = (
    32  # of recurrent layers where our engine's blocks take little: sixteen sequences, as many snapshots
)
CONV_WIDTH = 2  # the same of a convolution as makers state it: vLLM, SGLang and TensorRT-LLM keep 16 bits


class Reuse(Enum):
    """What a layer needs of p cached tokens to compute token p as if it had computed all of them."""

    ALL = "all"  # what it keeps of all p positions
    WINDOW = "window"  # keys and values of the last window - 1; blocks wholly before them may be gone
    STATE = "state"  # its state after exactly p tokens: hits only where a snapshot of it was kept
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """`count` layers that keep the same of a sequence.

    full, window: a key of `head_dim` and a value of `value_dim` per head and token, of the last `window` tokens.
    latent: one vector of `latent` and one of `rope` per token (MLA), and `index` for what picks the tokens.
    compressed: what `full` keeps, and `index`, once for `stride` tokens; and of the last `window` tokens besides.
    mamba2, deltanet, linear, shortconv: `state` and `conv` values per sequence, whatever its length. A layer that
    attends besides (Falcon-H1) is of attention's kind, with those of its state.
    plain: nothing (an MLP or experts where other models would have attention too, or an encoder's layer).
    """

    kind: str
    count: int = 1
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int | None = None  # None: as head_dim; 0: the values are read out of the keys
    window: int = 0
    stride: int = 1
    latent: int = 0
    rope: int = 0
    index: int = 0
    state: int = 0
    conv: int = 0

    @property
    def value_width(self) -> int:
        """Width of a value head."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def recurrent(self) -> bool:
        """Whether the layer keeps a state of fixed size instead of something per token."""
        return self.kind in RECURRENT

    @property
    def reuse(self) -> Reuse:
        """What a prefix hit needs of the layer."""
        if self.kind in ATTENTION:
            return Reuse.WINDOW if self.kind == "window" else Reuse.ALL
        return Reuse.STATE if self.recurrent else Reuse.NOTHING

    @property
    def page(self) -> tuple[int, int, int]:
        """Heads, key width and value width of a page; a latent's values are a part of its keys."""
        if self.kind == "latent":
            return 1, self.latent + self.rope, 0
        return self.kv_heads, self.head_dim, self.value_width

    @property
    def values_per_token(self) -> int:
        """Values that one of these layers keeps of a token it still sees."""
        return self._attended + self.latent + self.rope + self.index

    @property
    def _attended(self) -> int:
        return self.kv_heads * (self.head_dim + self.value_width)

    @property
    def state_bytes(self) -> int:
        """Bytes that all of these layers keep of a sequence, whatever its length."""
        return self.count * (self.state + self.conv) * STATE_WIDTH

    def tokens_kept(self, tokens: int) -> int:
        """Return of how many of `tokens` these layers keep anything."""
        return min(tokens, self.window) if self.kind == "window" else tokens

    def values_kept(self, tokens: int) -> float:
        """Return the values that one of these layers keeps of a sequence of `tokens`."""
        if self.kind == "compressed":
            return self.values_per_token * tokens / self.stride + self._attended * min(tokens, self.window)
        return self.values_per_token * self.tokens_kept(tokens)


def pages_of(layers: Iterable[LayerSpec]) -> list[tuple[int, int, int]]:
    """Return the pages of a block: one for each layer, then one for each index that picks latents."""
    layers = tuple(layers)
    indexes = [(1, spec.index, 0) for spec in layers if spec.kind == "latent" and spec.index]
    return [spec.page for spec in layers] + indexes


def kept_bytes(layers: Iterable[LayerSpec], tokens: int, width: float = 2) -> int:
    """Return the bytes of keys and values of one sequence of `tokens`, at `width` bytes a value."""
    return round(width * sum(g.count * g.values_kept(tokens) for g in layers))


def recurrent_bytes(layers: Iterable[LayerSpec], conv_width: int = STATE_WIDTH) -> int:
    """Return the bytes that recurrent layers keep of one sequence, whatever its length.

    `conv_width`: bytes of a value of a convolution's last inputs; our engine keeps them as it keeps states.
    """
    return sum(g.count * (g.state * STATE_WIDTH + g.conv * conv_width) for g in layers)


def longest_window(layers: Iterable[LayerSpec]) -> int:
    """Return the longest sliding window of any layer, 0 where no layer has one."""
    return max((g.window for g in layers if g.reuse is Reuse.WINDOW), default=0)


# --- what a tower of pictures takes -----------------------------------------------------------------

PICTURES_AT_ONCE = 32  # for which memory is stated


@dataclass(frozen=True, slots=True)
class PictureNeed:
    """What a tower makes of a picture of this size. `parts`: arrays of pixels, such as tiles, that attend apart."""

    width: int
    height: int
    patches: int
    tokens: int
    parts: int = 1


@dataclass(frozen=True, slots=True)
class SoundNeed:
    """What a tower of sounds takes and makes."""

    name: str
    weights: int  # bytes, packed; among TowerNeed.weights
    seconds: float  # of a sound at most
    tokens: int  # that such a one becomes


@dataclass(frozen=True, slots=True)
class TowerNeed:
    """Bytes and weights of a tower, whichever room asks; models/sight.py fills it from a file's headers.

    `patch_weights` are multiplied with every patch, `token_weights` with every token. Without a file only `weights` and
    `kept` are known.
    """

    weights: int  # bytes, packed
    kept: int  # bytes of features that are kept for later prompts, at most
    name: str = ""
    layers: int = 0
    width: int = 0  # of the residual stream
    patch_weights: int = 0
    token_weights: int = 0
    working: int = 0  # bytes while PICTURES_AT_ONCE screenshots are computed, their features apart
    feature: int = 0  # bytes of one row of features
    least: int = 0  # tokens of a picture
    most: int = 0
    screen: PictureNeed | None = None
    sounds: SoundNeed | None = (
        None  # of a model that hears, beside pictures or alone: then all else is of sounds
    )

    @property
    def resident(self) -> int:
        """Bytes that a model with this tower takes beside its own."""
        return self.weights + self.kept

    @property
    def at_once(self) -> int:
        """Bytes of PICTURES_AT_ONCE screenshots in as many prompts, beside `resident`: a few are computed at a time."""
        tokens = self.screen.tokens if self.screen else 0
        return self.working + PICTURES_AT_ONCE * tokens * self.feature
