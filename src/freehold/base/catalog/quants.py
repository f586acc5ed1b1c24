"""Quantisations by name: the weight types in a file, and bits per weight of each.

Knows types and shares; knows no model and no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from freehold.base.catalog.entries import plain
from freehold.base.catalog.model import Model, data_table
from freehold.base.config import suggestion
from freehold.base.errors import UsageError

_BLOCK = 256  # weights that K types share scales over; a row must be a multiple of them
_KLD_SIZE = 8.0  # billions of weights of the model that the divergences were measured on
# bits per weight: FP8's weights come as Q8_0, but not as BF16; MXFP4's as Q4_K_M, but not as Q5_K_M
_SPARE = 1.0
_DOWN = 0.29  # of a layer's weights: the MLP's second matrix, whose rows are as wide as the MLP, mostly a multiple


@dataclass(frozen=True, slots=True)
class Mix:
    """What a quantisation stores in which type: `body` the layers' matrices, by their share of the weights.

    `head` is also the one matrix of a model whose embedding is its head.
    """

    name: str
    body: Mapping[str, float]
    embed: str
    head: str
    shared: str = ""  # of matrices beside experts, in a model that has some; empty: as the body
    file_type: int = -1  # a GGUF's number for it; -1: llama.cpp makes no such files
    narrow: str = ""  # the type of rows that are no multiple of 256 wide; empty: what stands in for each type

    @property
    def bits(self) -> float:
        """Bits of a weight of the layers."""
        return sum(share * bits(kind) for kind, share in self.body.items())

    def body_of(self, hidden: int, intermediate: int = 0) -> dict[str, float]:
        """Return the types' shares; rows are `hidden` wide, an MLP's second matrix `intermediate` wide (0: any width).

        Rarer types go to the second, which is a third of an expert's weights.
        """
        shares: dict[str, float] = {}
        room = 1 / 3 if intermediate else _DOWN if hidden % _BLOCK else 1.0
        for kind, share in sorted(self.body.items(), key=lambda item: item[1]):
            second = min(share, room)
            room -= second
            for name, part in (
                (self.stored(kind, intermediate), second),
                (self.stored(kind, hidden), share - second),
            ):
                if part > 0:
                    shares[name] = shares.get(name, 0.0) + part
        return shares

    def stored(self, kind: str, columns: int) -> str:
        """Return the type in which a matrix of this many columns is stored where `kind` was asked for; 0: any."""
        return self.narrow if self.narrow and columns % _BLOCK else stored(kind, columns)


# What `freehold pull --quant` makes of float weights: under q4 values, MLPs' outputs, head and embedding take Q6_K.
ROUNDED = {
    "q8": Mix("q8", {"Q8_0": 1.0}, "Q8_0", "Q8_0"),
    "q6": Mix("q6", {"Q6_K": 1.0}, "Q6_K", "Q6_K", narrow="Q8_0"),
    "q4": Mix("q4", {"Q4_K": 1 - _DOWN, "Q6_K": _DOWN}, "Q6_K", "Q6_K", narrow="Q8_0"),
}


def mix(name: str) -> Mix:
    """Return the quantisation `name`; a file's own name may carry UD- before and _XL after it.

    Raises UsageError with the nearest name.
    """
    wanted = name.strip().upper()
    if rounded := ROUNDED.get(wanted.lower()):
        return rounded
    known = {m.name: m for m in mixes()}
    plain = wanted.removeprefix("UD-").replace("_XL", "_M")
    for text in (wanted, plain, {"FP16": "F16", "FP32": "F32", "AWQ": "INT4", "GPTQ": "INT4"}.get(plain, "")):
        if text in known:
            return known[text]
    raise UsageError(f"no quantisation named {name!r}", suggestion(wanted, list(known)))


def finer(name: str, published: str) -> bool:
    """Say whether a quantisation has bits to spare over the one that a lab publishes; empty: that is not known."""
    return bool(published) and mix(name).bits >= mix(published).bits + _SPARE


def of_file(file_type: int) -> str:
    """Return the name that a GGUF's file type stands for, empty for an unknown number."""
    return next((m.name for m in mixes() if m.file_type == file_type >= 0), "")


def bits(kind: str) -> float:
    """Return the bits that a weight takes in a type, its scales included; `kind` is a key of the data."""
    return _data()["bits"][kind]


def stored(kind: str, columns: int) -> str:
    """Return the type in which a matrix of this many columns is stored where `kind` was asked for; 0: any."""
    return _data()["fallback"].get(kind, kind) if columns % _BLOCK else kind


def loss(name: str, params_b: float) -> float:
    """Return what a quantisation costs a model of this many billion weights, on the logits of its results.

    A nat of KL divergence costs about a logit: Qwen2.5-Coder 32B loses 9.7 of 71.4 points of Aider's board in Q2_K,
    0.44 logits, for 0.445 nats (Aider's quant.yml, 2024-11). Smaller models lose more: by the root of the size,
    within a factor of 3, a judgement. Raises UsageError for an unknown name.
    """
    size = min(max((_KLD_SIZE / params_b) ** 0.5, 1 / 3), 3.0) if params_b else 1.0
    return size * _data()["kld"][mix(name).name]


@cache
def mixes() -> tuple[Mix, ...]:
    """Return every quantisation, those of llama.cpp from the smallest to the largest first."""
    return tuple(Mix(**raw) for raw in _data()["quant"])


def _data() -> dict[str, Any]:
    return data_table("quants.toml")


# --- published copies of a model in other weight types ----------------------------------------------
# Which repository holds which, and what a repository's name says.
#     copies(catalog.model("qwen3:32b"))            # Qwen/Qwen3-32B-FP8, Qwen/Qwen3-32B-AWQ, ...
#     named("RedHatAI/Qwen3-32B-FP8-dynamic", model).quant      # FP8

GGUF = "GGUF"
# What the end of a repository's name says of its weights; the first that fits.
_SAYS = (
    (re.compile(r"gguf", re.IGNORECASE), GGUF),
    (re.compile(r"nvfp4|[-_]fp4", re.IGNORECASE), "NVFP4"),
    (re.compile(r"mxfp4", re.IGNORECASE), "MXFP4"),
    (re.compile(r"(?<!mx)fp8", re.IGNORECASE), "FP8"),
    (re.compile(r"awq|gptq(?!-int8)|w4a16|int4|autoround", re.IGNORECASE), "INT4"),
    (re.compile(r"bf16$", re.IGNORECASE), "BF16"),
)
_OTHERS = re.compile(r"[-_.](?:int8|w8a8|[23468]-?bit|bnb|mxfp8|exl[23]|hqq|quark)(?:[-_.]|$)", re.IGNORECASE)
_MLX = {"4bit": "Q4_0", "8bit": "Q8_0", "bf16": "BF16"}  # as advisor/engines.toml words MLX's types


@dataclass(frozen=True, slots=True)
class Copy:
    """A repository with a model's weights in another type. `quant` "": its name does not tell which."""

    base: str  # id of the model
    repository: str
    quant: str  # as catalog.quants has it, or GGUF: files of several types
    channels: bool = False  # scales by whole rows: no blocks that a tensor group would have to slice whole

    @property
    def files(self) -> str:
        """The kind of its files: gguf or safetensors."""
        return "gguf" if self.quant == GGUF else "safetensors"


def copies(model: Model) -> tuple[Copy, ...]:
    """Return the published copies that are known, the lab's own first."""
    return tuple(
        _copy(model.id, name, quant) for name, quant in data_table("copies.toml")["copies"].get(model.id, ())
    )


def chosen(model: Model, quant: str) -> Copy | None:
    """Return the first copy whose weights are in a type (FP8, AWQ, ...), or a GGUF repository for a type of GGUFs.

    Raises UsageError for a type that catalog.quants does not know.
    """
    name = mix(quant).name
    wanted = GGUF if name.startswith(("Q", "IQ")) else name
    return next((each for each in copies(model) if each.quant == wanted), None)


def named(text: str, model: Model) -> Copy | None:
    """Return the copy of `model` that a name says; None for the model's own repository, and for a short name."""
    name = plain(text).partition(":")[0].partition("@")[0]
    if "/" not in name or name.lower() == model.id.lower():
        return None
    listed = (each for each in copies(model) if each.repository.lower() == name.lower())
    return next(listed, None) or _copy(model.id, name, _kind_in_name(name, model))


def draft_of(model_id: str) -> str:
    """Return the repository of a published draft model (EAGLE-3); "" where none is known."""
    return str(data_table("copies.toml")["drafts"].get(model_id, ""))


def base_of(repository: str) -> str:
    """Return the id of the model of which a repository is a listed copy; "" for none."""
    return _bases().get(repository.lower(), "")


def _copy(base: str, repository: str, quant: str) -> Copy:
    return Copy(base, repository, quant, "dynamic" in repository.lower() or "pertensor" in repository.lower())


def _kind_in_name(name: str, model: Model) -> str:
    """Return the type that a repository's name says; the model's own where it says none; "" for one unknown here."""
    owner, _, tail = name.partition("/")
    own = model.id.rpartition("/")[2].lower()
    rest = tail.lower().removeprefix(own) if tail.lower().startswith(own) else tail
    if owner.lower() == "mlx-community":
        return next((kind for word, kind in _MLX.items() if rest.lower().endswith(word)), "")
    if _OTHERS.search(rest):
        return ""
    return next((kind for pattern, kind in _SAYS if pattern.search(rest)), model.native)


@cache
def _bases() -> dict[str, str]:
    return {
        name.lower(): base for base, each in data_table("copies.toml")["copies"].items() for name, _ in each
    }
