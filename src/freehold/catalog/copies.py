"""Published copies of a model in other weight types: which repository holds which, and what a repository's name says.

    copies(catalog.model("qwen3:32b"))            # Qwen/Qwen3-32B-FP8, Qwen/Qwen3-32B-AWQ, ...
    named("RedHatAI/Qwen3-32B-FP8-dynamic", model).quant      # FP8

Knows names and data/copies.toml; knows no file. Path: backends.planning.facts -> named, chosen -> Copy
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from freehold.catalog import quants
from freehold.catalog.model import Model
from freehold.catalog.tags import plain

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
    return tuple(_copy(model.id, name, quant) for name, quant in _data().get(model.id, ()))


def chosen(model: Model, quant: str) -> Copy | None:
    """Return the first copy whose weights are in a type (FP8, AWQ, ...), or a GGUF repository for a type of GGUFs.

    Raises UsageError for a type that catalog.quants does not know.
    """
    name = quants.mix(quant).name
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
    return str(_file()["drafts"].get(model_id, ""))


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


def _data() -> dict[str, list[list[str]]]:
    return _file()["copies"]


@cache
def _file() -> dict[str, Any]:
    text = resources.files("freehold.catalog").joinpath("data", "copies.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def _bases() -> dict[str, str]:
    return {name.lower(): base for base, listed in _data().items() for name, _ in listed}
