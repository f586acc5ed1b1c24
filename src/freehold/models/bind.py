"""Model file in, bound tensors out: finds the family, reads its config, checks tensors against the declared weights.

Knows the registry of families, and what a structure that no family computes is refused for; reads no weight, packs
nothing. A tensor the family does not name is refused: what is not computed must not be ignored.
Path: formats.open_model_file -> read_source -> Source -> load.load_model, oracle.Oracle
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freehold import _native as native
from freehold.catalog.model import Structure
from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats import (
    GGUFFile,
    ModelFile,
    QuantType,
    SafetensorsFile,
    Tensor,
)
from freehold.models import bert, gemma3, llama, qwen2, qwen3
from freehold.models.common import Dims, Family, TensorSpec, declared
from freehold.models.fields import Fields
from freehold.models.rope import RopeTable

FAMILIES: tuple[Family, ...] = (llama.FAMILY, qwen2.FAMILY, qwen3.FAMILY, gemma3.FAMILY, bert.FAMILY)
HF_WRAPPER = "Gemma3ForConditionalGeneration"  # text and vision; its text half is a Gemma 3

# Stored tables of what the config already says; every reader computes them afresh.
_DERIVED = re.compile(r"(.*\.rotary_emb\.inv_freq|blk\.\d+\.attn_rot_embd\.weight|embeddings\.position_ids)")
_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_DIVISORS = "rope_freqs.weight"
_FLOATS = (QuantType.F32, QuantType.F16, QuantType.BF16, QuantType.F64)


@dataclass(frozen=True, slots=True)
class Source:
    """A model file whose family and config are known and whose tensors are bound to the declared weights."""

    path: Path
    name: str
    family: Family
    cfg: Any  # the family's Config
    top: Mapping[str, Tensor | None]  # field of family.weights -> tensor
    blocks: tuple[Mapping[str, Tensor | None], ...]  # field of family.block -> tensor, for each layer
    divisors: Tensor | None
    tokens: int  # ids below are the tokenizer's; rows from there on are padding
    gguf: bool
    notes: tuple[str, ...]  # what the user should know, such as parts left out

    def matrices(self) -> Iterator[Tensor]:
        """Yield every matrix, each once."""
        for fields in (self.top, *self.blocks):
            yield from (t for t in fields.values() if t is not None and len(t.shape) == 2)

    @property
    def head(self) -> Tensor | None:
        """The matrix that logits come from; an encoder has none."""
        return None if self.family.encoder else self.top["head"] or self.top["embed"]

    @property
    def wide(self) -> frozenset[str]:
        """Names of the matrices that are rounded to int16 codes: an encoder's own float weights.

        int8 would move an embedding by 4e-4 (one minus cosine); these move it by less than 1e-6.
        """
        fields = self.blocks if self.family.encoder else ()
        found = (t for block in fields for t in block.values() if t is not None and len(t.shape) == 2)
        return frozenset(t.name for t in found if t.type in _FLOATS and t.shape[1] % native.WIDE_UNIT == 0)


# --- what the file says ----------------------------------------------------------------------------


def read_source(opened: ModelFile, *, tokens: int | None = None) -> Source:
    """Find the family of an open model file, read its config and bind its tensors; no weight is read yet."""
    if isinstance(opened, GGUFFile):
        return _read_gguf(opened, tokens)
    return _read_hf(opened, tokens)


def _read_gguf(opened: GGUFFile, tokens: int | None) -> Source:
    meta = opened.metadata
    architecture = Fields(meta).text("general.architecture")
    family = next((f for f in FAMILIES if f.gguf_architecture == architecture), None)
    if family is None:
        raise _unknown_architecture(architecture)
    tensors = dict(opened.tensors)
    embed = tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise BadModelFile(f"{opened.path}: token_embd.weight is missing or no matrix")
    cfg = family.config_from_gguf(Fields(meta, f"{architecture}."), embed.shape[0])
    listed = meta.get("tokenizer.ggml.tokens")
    count = len(listed) if isinstance(listed, list | np.ndarray | native.Strings) else cfg.vocab
    binder = _Binder(tensors, lambda spec: spec.gguf, "blk", cfg)
    return _bound(opened.path, _name(opened, meta), family, binder, tokens or count)


def _read_hf(opened: SafetensorsFile, tokens: int | None) -> Source:
    config = Fields(opened.config)
    if not opened.config:
        raise BadModelFile(
            f"{opened.path}: there is no config.json beside the weights", "name the directory that holds both"
        )
    classes = opened.config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    family = next((f for f in FAMILIES if name in f.hf_classes), None)
    if family is None:
        raise _unknown_architecture(name or config.text("model_type"))
    config.refuse("quantization_config", "a quantised safetensors model")
    tensors, notes = dict(opened.tensors), ()
    if name == HF_WRAPPER:
        config = config.section("text_config") or Fields({})
        tensors, notes = _text_half(tensors)
    for prefix, note in family.left_out:
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        notes = (*notes, note) if len(kept) < len(tensors) else notes
        tensors = kept
    cfg = family.config_from_hf(config)
    binder = _Binder(tensors, lambda spec: spec.hf, family.hf_layers, cfg)
    return _bound(Path(opened.path), _name(opened, {}), family, binder, tokens or cfg.vocab, notes)


def refusal(asked: Structure) -> str:
    """Return why no family here computes a model of such a structure; empty: one does.

    The one answer to what runs: its architecture, what its layers keep, experts, and what it is asked to return.
    """
    family = next((f for f in FAMILIES if asked.architecture in (f.gguf_architecture, *f.model_types)), None)
    if family is None:
        shown = asked.architecture or "of this model, which is not known,"
        return f"Freehold's engine does not run the architecture {shown} yet"
    if asked.experts:
        return f"Freehold's engine does not run mixtures of experts yet, and this one of {asked.architecture} is one"
    if strange := asked.kinds - family.keeps:
        return f"Freehold's engine does not run layers of kind {', '.join(sorted(strange))} yet"
    if asked.role == "reranker":
        return "Freehold's engine does not score pairs of texts yet; it reranks by an embedder's vectors"
    return ""


def plain_name(name: str) -> str:
    """Return what a tensor of a multimodal model's text half is called in a model of text alone."""
    return name.removeprefix("language_model.").replace("model.language_model.", "model.", 1)


def _text_half(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Give a multimodal file's text tensors their plain names; leave the vision parts out, and say so."""
    out = {}
    for name, tensor in tensors.items():
        if not name.startswith(_VISION):
            out[plain_name(name)] = tensor
    note = "the vision parts of this model are left out; it reads text only"
    return out, (note,) if len(out) < len(tensors) else ()


def _name(opened: ModelFile, meta: Mapping[str, Any]) -> str:
    name = meta.get("general.name")
    path = Path(opened.path)
    return name if isinstance(name, str) and name else (path.stem or path.name)


def check_structure(asked: Structure) -> None:
    """Raise UnsupportedModel unless a family computes such a model; no file is needed."""
    if why := refusal(asked):
        known = sorted(f.gguf_architecture for f in FAMILIES)
        raise UnsupportedModel(why, f"it runs models of {', '.join(known)}")


def _unknown_architecture(name: str) -> UnsupportedModel:
    known = sorted({n for f in FAMILIES for n in (f.gguf_architecture, *f.hf_classes)})
    shown = name if len(name) <= 60 else name[:57] + "..."
    return UnsupportedModel(f"architecture {shown!r} is not supported", f"supported: {', '.join(known)}")


# --- declared weights meet tensors -----------------------------------------------------------------


class _Binder:
    """Takes tensors by declared name, checks shapes, and knows which ones nobody took."""

    def __init__(
        self, tensors: dict[str, Tensor], name_of: Callable[[TensorSpec], str | None], layers: str, cfg: Dims
    ) -> None:
        self.cfg = cfg
        self.hf = layers != "blk"
        self._left = tensors
        self._name_of = name_of
        self._layers = layers

    def take(
        self, weights: type[Any], layer: int | None = None, absent: tuple[str, ...] = ()
    ) -> dict[str, Tensor | None]:
        """Bind every declared field of `weights`; those in `absent` may be missing."""
        prefix = "" if layer is None else f"{self._layers}.{layer}."
        found: dict[str, Tensor | None] = {}
        for field_name, spec in declared(weights).items():
            name = self._name_of(spec)
            tensor = self._left.pop(prefix + name, None) if name else None
            if tensor is None and not spec.optional and field_name not in absent:
                raise BadModelFile(f"tensor {prefix}{name} is missing")
            if tensor is not None:
                self._check(tensor, spec)
            found[field_name] = tensor
        return found

    def take_divisors(self) -> Tensor | None:
        """Take the table that divides rope frequencies, which only a GGUF has."""
        return None if self.hf else self._left.pop(_DIVISORS, None)

    def refuse_rest(self) -> None:
        """Raise for tensors that no declaration took."""
        rest = [name for name in self._left if not _DERIVED.fullmatch(name)]
        if rest:
            more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
            raise UnsupportedModel(
                f"the file holds tensor {rest[0][:80]}{more}, which the architecture does not have",
                "it is a variant of this architecture that Freehold does not run",
            )

    def _check(self, tensor: Tensor, spec: TensorSpec) -> None:
        expected = tuple(getattr(self.cfg, size) for size in spec.shape)
        if tensor.shape != expected:
            raise BadModelFile(
                f"tensor {tensor.name} has shape {list(tensor.shape)}; the config asks for {list(expected)}"
            )
        if tensor.type not in _FLOATS and (len(expected) == 1 or not _quantised(tensor.type)):
            raise UnsupportedModel(
                f"tensor {tensor.name} has type {tensor.type.name}, which holds no weights here"
            )


def _quantised(type: QuantType) -> bool:
    return not type.name.startswith("I") or type.name.startswith("IQ")


def _bound(
    path: Path, name: str, family: Family, binder: _Binder, tokens: int, notes: tuple[str, ...] = ()
) -> Source:
    cfg = binder.cfg
    if not 1 <= tokens <= cfg.vocab:
        raise BadModelFile(f"the tokenizer has {tokens} tokens and the embedding {cfg.vocab} rows")
    top = binder.take(family.weights, absent=("head",) if cfg.tied else ())
    blocks = tuple(binder.take(family.block, layer) for layer in range(cfg.layers))
    divisors = binder.take_divisors()
    binder.refuse_rest()
    return Source(path, name, family, cfg, top, blocks, divisors, tokens, not binder.hf, notes)


def assemble(source: Source, matrix: Callable[[Tensor], Any], rope: Callable[[RopeTable], Any]) -> Any:
    """Fill the family's weights: matrices through `matrix`, ropes through `rope`, vectors as float32."""
    divisors = source.divisors.numpy() if source.divisors is not None else None
    ropes = {name: rope(table) for name, table in source.family.ropes(source.cfg, divisors).items()}
    top = _fill(source.family.weights, source.top, matrix, source.gguf)
    if not source.family.encoder and top["head"] is None:
        top["head"] = top["embed"]
    blocks = tuple(
        source.family.block(**_fill(source.family.block, b, matrix, source.gguf)) for b in source.blocks
    )
    return source.family.weights(**top, **ropes, blocks=blocks)


def _fill(
    weights: type[Any],
    tensors: Mapping[str, Tensor | None],
    matrix: Callable[[Tensor], Any],
    gguf: bool,
) -> dict[str, Any]:
    specs = declared(weights)
    out: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if tensor is None:
            out[name] = None
        elif len(tensor.shape) == 2:
            out[name] = matrix(tensor)
        else:
            offset = np.float32(0.0 if gguf else specs[name].hf_offset)
            out[name] = tensor.numpy() + offset
    return out
