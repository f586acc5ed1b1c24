"""The record of one open-weight model, the arithmetic of its KV cache, and the readers of the catalogue's tables.

Knows sizes and published scores; knows no licence text, no machine. What no source states is empty,
zero or None, never guessed. What layers keep is layers.py's.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

from freehold.base.layers import CONV_WIDTH, LayerSpec, kept_bytes, recurrent_bytes

THINKING = ("", "none", "switchable", "only")
ROLES = ("generator", "embedder", "reranker", "transcriber")
# The smallest billions of parameters of each tier. A bound is the geometric mean of the sizes that the
# tiers beside it name (1.5 and 3, 4 and 7, 8 and 14, 32 and 100); xl begins at 200 as its row says.
TIERS = {"nano": 0.0, "micro": 2.1, "small": 5.3, "medium": 10.6, "large": 56.6, "xl": 200.0}
# A size in a name, as 8B or 270M, and how far from the total it may be: Ministral-3-8B has 8.92.
_CALLED = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z0-9])")
_CALLED_OFF = 0.12
STALE_DAYS = 180  # a fact older than this is shown with its age: half a year is two model generations
MULTILINGUAL = 10  # languages from which a model counts as multilingual
_VARIETIES = {"no": ("nb", "nn"), "nb": ("no",), "nn": ("no",), "fil": ("tl",), "tl": ("fil",)}


@cache
def data_table(*place: str) -> dict[str, Any]:
    """Return a TOML table of the catalogue's data, read once."""
    file = resources.files("freehold.base.catalog").joinpath("data", *place)
    return tomllib.loads(file.read_text(encoding="utf-8"))


def texts(folder: str, suffix: str = ".toml") -> dict[str, str]:
    """Return the files of a folder of the catalogue's data, by name and sorted by it."""
    files = resources.files("freehold.base.catalog").joinpath("data", folder).iterdir()
    named = {file.name: file for file in files if file.name.endswith(suffix)}
    return {name: named[name].read_text(encoding="utf-8") for name in sorted(named)}


def tupled(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a table with its lists as tuples, as frozen records have them."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


@dataclass(frozen=True, slots=True)
class Structure:
    """What decides whether an engine's code fits a model: its architecture alone does not."""

    architecture: str  # GGUF's name for it, or config.json's model_type
    kinds: frozenset[str] = frozenset()  # of its layers; empty: not known
    experts: bool = False
    role: str = "generator"


@dataclass(frozen=True, slots=True)
class Score:
    """A published result: `value` in per cent, `setting` as the source words it (shots, base or chat)."""

    benchmark: str
    value: float
    setting: str
    source: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """How a lab says that its model reads beyond `Model.context`: its config.json does not, so engines need flags."""

    # yarn: of rope scaling, as config.json calls it; none: it has no rope, and no scaling is needed
    kind: str
    factor: float
    original: int  # tokens that are stretched: original_max_position_embeddings
    theta: float = 0.0  # rope_theta of config.json, which engines want beside what they override; 0: no rope

    @property
    def context(self) -> int:
        """Tokens that it reaches."""
        return int(self.original * self.factor)

    @property
    def says(self) -> str:
        """What continues a sentence on the context of config.json."""
        return f", and its card stretches that to {self.context:,}"


@dataclass(frozen=True, slots=True)
class Repo:
    """Where the weights lie: a hub repository, the file kind, and the quantisations known to be there."""

    repo: str
    format: str  # safetensors | gguf
    quants: tuple[str, ...] = ()
    revision: str = ""  # the commit that was seen; empty: none was pinned


@dataclass(frozen=True, slots=True)
class Model:
    """One set of weights. Empty strings, zeros, empty tuples and None: not known."""

    id: str  # org/repo
    family: str
    lab: str
    country: str  # ISO 3166 codes of the lab's seats, with / between several
    checked: date  # when the newest of these facts was read
    sources: tuple[str, ...]
    name: str = ""  # the short name under which it can be pulled
    released: str = ""  # ISO date, or its year and month
    params_b: float = 0.0  # billions of parameters in all
    active_b: float = 0.0  # billions used per token
    # Weights in the published files, counted: towers for images, draft layers and a head stored twice included.
    parameters: int = 0
    text_parameters: int = 0  # of them those that text needs, an embedding that is the head once; 0: all
    active_parameters: int = 0  # those that one token is multiplied with, where that is known exactly
    tied: bool | None = None  # whether the head is the embedding
    native: str = ""  # the quantisation in which its lab publishes it, as catalog.quants names it
    tensor_bytes: int = 0  # of the tensors in the published files
    kind: str = "dense"  # dense | moe
    # what it returns: text, vectors (embedder), a score of a pair (reranker), or what is said in a recording
    role: str = "generator"
    dimensions: int = 0  # of an embedder's vectors
    architecture: str = ""  # GGUF's name for it; config.json's model_type where GGUF has one name for several
    context: int = 0  # max_position_embeddings of config.json: more than that is refused by engines
    stretch: Stretch | None = None  # beyond it, as its card tells
    modalities: tuple[str, ...] = ("text",)  # what it reads
    languages: tuple[str, ...] = ()  # ISO 639 codes of those that its card or its lab names
    languages_stated: int = 0  # how many they claim, where they name fewer
    thinking: str = ""  # none | switchable | only
    # trained to follow instructions; False: a base model, which continues text
    instructed: bool | None = None
    fills: bool | None = None  # trained to fill in the middle of a text
    tools: bool | None = None
    gated: bool | None = None
    licence: str = ""  # SPDX identifier or LicenseRef-...
    licence_url: str = ""
    base: tuple[str, ...] = ()  # ids of the models it was made from, as far as their licences go along
    hidden: int = 0
    vocab: int = 0
    layers: tuple[LayerSpec, ...] = ()
    experts: int = 0
    experts_per_token: int = 0
    index_topk: int = 0  # tokens that an indexer picks for attention to read; 0: it reads all
    hub: bool = True  # whether the id is a repository on the hub, and not only a label
    kv_bytes: int = 0  # published cache bytes per token at 16 bits, where the layers' sizes are not known
    repos: tuple[Repo, ...] = ()
    scores: tuple[Score, ...] = ()
    note: str = ""
    not_published: tuple[tuple[str, str], ...] = ()  # a fact that was looked for, and the source without it

    def may_have(self, weights: int) -> bool:
        """Whether a file with this number of weights can be this model; any file may bear its name.

        The bound is wide: packed types hold up to eight weights in a stored value, and files have towers and drafts.
        """
        told = self.parameters or self.params_b * 1e9
        return not told or not weights or told / 16 < weights < told * 16

    @property
    def called_b(self) -> float:
        """Billions of parameters as its name rounds them, 8 of Qwen3-8B's 8.19; its total where the name has none."""
        for number, unit in _CALLED.findall(self.id.rpartition("/")[2]):
            size = float(number) * (1e-3 if unit in "mM" else 1.0)
            if self.params_b and abs(size / self.params_b - 1) <= _CALLED_OFF:
                return size
        return self.params_b

    @property
    def tier(self) -> str:
        """nano, micro, small, medium, large or xl, by all parameters; empty if their number is not known."""
        fitting = [tier for tier, least in TIERS.items() if self.params_b >= least]
        return fitting[-1] if self.params_b else ""

    @property
    def structure(self) -> Structure:
        """What an engine is asked by whether it runs this model."""
        kinds = frozenset(g.kind for g in self.layers)
        return Structure(self.architecture, kinds, self.kind == "moe", self.role)

    @property
    def countries(self) -> tuple[str, ...]:
        """The lab's seats, one code each."""
        return tuple(self.country.split("/")) if self.country else ()

    def speaks(self, code: str) -> bool | None:
        """Say whether its card or its lab names a language, by ISO 639 code; "mul" asks for ten or more.

        None: nothing is stated, or more languages are claimed than are named.
        """
        if code == "mul":
            return max(len(self.languages), self.languages_stated) >= MULTILINGUAL if self.languages else None
        if code in self.languages or any(variety in self.languages for variety in _VARIETIES.get(code, ())):
            return True
        return None if self.languages_stated > len(self.languages) or not self.languages else False

    @property
    def cache_known(self) -> bool:
        """Whether `cache_bytes` rests on facts; without them it is 0."""
        return bool(self.layers or self.kv_bytes)

    @property
    def state_known(self) -> bool:
        """Whether the recurrent layers' sizes are known too."""
        recurrent = [g for g in self.layers if g.recurrent]
        return bool(self.layers) and all(g.state or g.conv for g in recurrent)

    @property
    def state_bytes(self) -> int:
        """Bytes that recurrent layers keep of one sequence, whatever its length, as makers state it.

        States in 32 bits, the last inputs of convolutions in the 16 bits of keys and values.
        """
        return recurrent_bytes(self.layers, conv_width=CONV_WIDTH)

    def cache_bytes(self, tokens: int, width: float = 2) -> int:
        """Return the bytes of keys and values of one sequence of `tokens`, at `width` bytes a value.

        Windows are counted as windows; recurrent state is `state_bytes`, not here.
        """
        if not self.layers:
            return round(self.kv_bytes * tokens * width / 2)
        return kept_bytes(self.layers, tokens, width)

    def bytes_per_token(self, depth: int, width: float = 2) -> int:
        """Return the bytes that one more token costs after `depth` others; full windows no longer grow."""
        return self.cache_bytes(depth + 1, width) - self.cache_bytes(depth, width)

    def age_days(self, today: date) -> int:
        """Return how old the newest of these facts is."""
        return (today - self.checked).days
