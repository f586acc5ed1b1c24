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
from typing import Any, NamedTuple

import numpy as np

from freehold import _native as native
from freehold.catalog.model import Structure
from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats import GGUFFile, ModelFile, QuantType, SafetensorsFile
from freehold.formats.fields import Fields
from freehold.formats.metadata import Metadata
from freehold.models.families import FAMILIES
from freehold.models.family import Cut, Family, Network, NetworkWeights, TensorSpec
from freehold.models.fp8 import join_scales
from freehold.models.mixtures import MAX_EXPERTS
from freehold.models.rope import RopeTable
from freehold.models.stored import ExpertStack, Held, RowCut, Stored, Taken, Whole
from freehold.models.unsupported import missing_part

# Stored tables of what the config already says; every reader computes them afresh.
_DERIVED = re.compile(r"(.*\.rotary_emb\.inv_freq|blk\.\d+\.attn_rot_embd\.weight|embeddings\.position_ids)")
# What a wrapper holds beside its text half, under `model.` or at the top.
_OTHER_HALVES = re.compile(
    r"(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision|embed_audio)\..*"
)
# Keys of a wrapper that count for its text half where that does not state them.
_SHARED_KEYS = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config")
_GGUF_LAYERS = "blk"
_DIVISORS = "rope_freqs.weight"
FLOATS = (QuantType.F32, QuantType.F16, QuantType.BF16, QuantType.F64)


class Bound(NamedTuple):
    """A declared weight and what a file holds of it."""

    spec: TensorSpec
    tensor: Stored

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with, and so packed."""
        return len(self.spec.shape) > 1


@dataclass(frozen=True, slots=True)
class Source:
    """A model file whose family and config are known and whose tensors are bound to the declared weights."""

    path: Path
    name: str
    family: Family
    cfg: Any  # the family's config
    network: Network
    ends: Mapping[str, Bound]  # by the declaration's key
    layers: tuple[Mapping[str, Bound], ...]
    divisors: Held | None
    tokens: int  # ids below are the tokenizer's; rows from there on are padding
    gguf: bool
    notes: tuple[str, ...]  # what the user should know, such as parts left out

    def matrices(self) -> Iterator[Stored]:
        """Yield every matrix, each once."""
        yield from {b.tensor.name: b.tensor for _, b in self.matrices_by_key()}.values()

    def matrices_by_key(self) -> Iterator[tuple[str, Bound]]:
        """Yield every declared matrix with its declaration's key; a tied head is the embedding's tensor again."""
        yield from (
            (key, b) for group in (self.ends, *self.layers) for key, b in group.items() if b.is_matrix
        )

    def _bound(self) -> Iterator[Bound]:
        for group in (self.ends, *self.layers):
            yield from group.values()

    @property
    def head(self) -> Stored | None:
        """The matrix that logits come from; an encoder has none."""
        return self.ends["head"].tensor if "head" in self.ends else None

    @property
    def shares(self) -> dict[str, float]:
        """What share of each matrix, by tensor name, one token reads."""
        found: dict[str, float] = {}
        for spec, tensor in self._bound():
            found[tensor.name] = max(found.get(tensor.name, 0.0), spec.share)
        return found

    @property
    def wide(self) -> frozenset[str]:
        """Names of the matrices that are rounded to int16 codes: an encoder's own float weights.

        int8 would move an embedding by 4e-4 (one minus cosine); these move it by less than 1e-6.
        """
        wide = (b.tensor for b in self._bound() if b.spec.wide)
        return frozenset(t.name for t in wide if t.type in FLOATS and t.shape[1] % native.WIDE_UNIT == 0)


# --- what the file says ----------------------------------------------------------------------------


def read_source(opened: ModelFile, *, tokens: int | None = None) -> Source:
    """Find the family of an open model file, read its config and bind its tensors; no weight is read yet."""
    if isinstance(opened, GGUFFile):
        return _read_gguf(opened, tokens)
    return _read_hf(opened, tokens)


def _read_gguf(opened: GGUFFile, tokens: int | None) -> Source:
    meta = opened.metadata
    architecture = Fields(meta).text("general.architecture")
    keys = Fields(meta, f"{architecture}.")
    mixture = keys.integer("expert_count", 0, MAX_EXPERTS, 0) > 0
    named = [f for f in FAMILIES if f.gguf_architecture == architecture]
    if not named:
        raise _unknown_architecture(architecture)
    family = next((f for f in named if f.experts == mixture), None)
    if family is None:
        raise UnsupportedModel(_other_kind(architecture, mixture))
    tensors = dict(opened.tensors)
    embed = tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise BadModelFile(f"{opened.path}: token_embd.weight is missing or not a matrix")
    cfg = family.config_from_gguf(keys, embed.shape[0])
    listed = meta.get("tokenizer.ggml.tokens")
    count = len(listed) if isinstance(listed, list | np.ndarray | native.Strings) else cfg.vocab
    binder = _Binder(tensors, _GGUF_LAYERS)
    return _bound(opened.path, _name(opened, meta), family, cfg, binder, tokens or count)


def _read_hf(opened: SafetensorsFile, tokens: int | None) -> Source:
    if not opened.config:
        raise BadModelFile(
            f"{opened.path}: there is no config.json beside the weights", "name the directory that holds both"
        )
    family, config, wrapped = _family_of(opened.config)
    tensors, notes = join_scales(config, opened.tensors)
    if wrapped:
        tensors, notes = _text_half(tensors, notes)
    for prefix, note in family.left_out:
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        notes = (*notes, note) if len(kept) < len(tensors) else notes
        tensors = kept
    cfg = family.config_from_hf(config)
    binder = _Binder(tensors, family.hf_layers)
    return _bound(Path(opened.path), _name(opened, {}), family, cfg, binder, tokens or cfg.vocab, notes)


def _family_of(config: Metadata) -> tuple[Family, Fields, bool]:
    """Return the family of a config.json, the keys it reads, and whether they lie in a wrapper's `text_config`."""
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    for family in FAMILIES:
        if name in family.hf_classes:
            return family, Fields(config), False
    wrapped = [family for family in FAMILIES if name in family.wrappers]
    if not wrapped:
        raise _unknown_architecture(str(name or Fields(config).text("model_type")))
    text = Fields(config).section("text_config") or Fields({})
    kind = text.text("model_type", wrapped[0].gguf_architecture)
    found = next((f for f in wrapped if kind in (f.gguf_architecture, *f.model_types)), None)
    if found is None:
        raise _unknown_architecture(kind)
    return found, Fields({**_inherited(config), **text.values}), True


def _inherited(config: Metadata) -> dict[str, object]:
    return {key: config[key] for key in _SHARED_KEYS if key in config}


def refusal(asked: Structure) -> str:
    """Return why no family here computes a model of such a structure; empty: one does.

    The one answer to what runs: its architecture, what its layers keep, experts, and what it is asked to return.
    """
    named = [f for f in FAMILIES if asked.architecture in (f.gguf_architecture, *f.model_types)]
    if not named:
        shown = asked.architecture or "of this model, which is not known,"
        return f"Freehold's engine does not run the architecture {shown} yet{_lacking(asked.architecture)}"
    family = next((f for f in named if f.experts == asked.experts), None)
    if family is None:
        return _other_kind(asked.architecture, asked.experts)
    if strange := asked.kinds - family.keeps:
        return f"Freehold's engine does not run layers of kind {', '.join(sorted(strange))} yet"
    if asked.role == "reranker":
        return "Freehold's engine does not score pairs of texts yet; it reranks by an embedder's vectors"
    return ""


def _other_kind(architecture: str, experts: bool) -> str:
    kind = "mixtures of experts" if experts else "dense models"
    return f"Freehold's engine does not run {kind} of the architecture {architecture} yet"


def plain_name(name: str) -> str:
    """Return what a tensor of a multimodal model's text half is called in a model of text alone."""
    return name.removeprefix("language_model.").replace("model.language_model.", "model.", 1)


def _text_half(
    tensors: Mapping[str, Held], notes: tuple[str, ...]
) -> tuple[dict[str, Held], tuple[str, ...]]:
    """Give a multimodal file's text tensors their plain names; leave the vision parts out, and say so."""
    out = {}
    for name, tensor in tensors.items():
        if not _OTHER_HALVES.fullmatch(name):
            out[plain_name(name)] = tensor
    note = "the vision parts of this model are left out; it reads text only"
    return out, (*notes, note) if len(out) < len(tensors) else notes


def _name(opened: ModelFile, meta: Mapping[str, Any]) -> str:
    name = meta.get("general.name")
    path = Path(opened.path)
    return name if isinstance(name, str) and name else (path.stem or path.name)


def check_structure(asked: Structure) -> None:
    """Raise UnsupportedModel unless a family computes such a model; no file is needed."""
    if why := refusal(asked):
        known = sorted({f.gguf_architecture for f in FAMILIES})
        raise UnsupportedModel(why, f"it runs models of {', '.join(known)}")


def _unknown_architecture(name: str) -> UnsupportedModel:
    known = sorted({n for f in FAMILIES for n in (f.gguf_architecture, *f.hf_classes, *f.wrappers)})
    shown = name if len(name) <= 60 else name[:57] + "..."
    return UnsupportedModel(
        f"architecture {shown!r} is not supported{_lacking(name)}", f"supported: {', '.join(known)}"
    )


def _lacking(architecture: str) -> str:
    lack = missing_part(architecture)
    return f": it has {lack}" if lack else ""


# --- declared weights meet tensors -----------------------------------------------------------------


class _Binder:
    """Takes tensors by declared name, checks shapes, and knows which ones no declaration took."""

    def __init__(self, tensors: Mapping[str, Held], layers: str) -> None:
        self.gguf = layers == _GGUF_LAYERS
        self._tensors = tensors
        self._taken: set[str] = set()
        self._layers = layers

    def take(self, specs: Mapping[str, TensorSpec], layer: int | None = None) -> dict[str, Bound]:
        """Bind every declared weight that the file has; those that may not be missing are there."""
        prefix = "" if layer is None else f"{self._layers}.{layer}."
        found: dict[str, Bound] = {}
        for key, spec in specs.items():
            names = spec.gguf if self.gguf else spec.hf
            tensor = next(filter(None, (self._find(prefix, name, key, spec) for name in names)), None)
            if tensor is not None:
                found[key] = Bound(spec, _checked(tensor, spec))
            elif spec.default:
                found[key] = Bound(spec, found[spec.default].tensor)
            elif not spec.optional:
                missing = f" {prefix}{names[0]}" if names else f", {key}, which such a file does not hold,"
                raise BadModelFile(f"tensor{missing} is missing")
        return found

    def _find(self, prefix: str, name: str | Cut, key: str, spec: TensorSpec) -> Stored | None:
        if isinstance(name, str):
            return self._whole(prefix + name, spec.shape)
        whole = self._whole(prefix + name.name, name.shape)
        return None if whole is None else _cut(whole, name, key, spec)

    def _whole(self, name: str, shape: tuple[int, ...]) -> Whole | None:
        if "{e}" not in name:
            self._taken.add(name)
            return self._tensors.get(name)
        if name.replace("{e}", "0") not in self._tensors:
            return None
        names = [name.replace("{e}", str(e)) for e in range(shape[0])]
        for each in names:
            if each not in self._tensors:
                raise BadModelFile(f"tensor {each} is missing")
        self._taken.update(names)
        return _stack(name.replace("{e}", "*"), tuple(self._tensors[each] for each in names), shape)

    def take_divisors(self) -> Held | None:
        """Take the table that divides rope frequencies, which only a GGUF has."""
        if not self.gguf:
            return None
        self._taken.add(_DIVISORS)
        return self._tensors.get(_DIVISORS)

    def refuse_rest(self) -> None:
        """Raise for tensors that no declaration took."""
        rest = [n for n in self._tensors if n not in self._taken and not _DERIVED.fullmatch(n)]
        if rest:
            more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
            raise UnsupportedModel(
                f"the file holds tensor {rest[0][:80]}{more}, which the architecture does not have",
                "it is a variant of this architecture that Freehold does not run",
            )


def _cut(whole: Whole, cut: Cut, key: str, spec: TensorSpec) -> Stored:
    """Return the declared part of a stored tensor; of a vector, elements count as rows."""
    _check_shape(whole, cut.shape)
    name, take, rows = f"{whole.name}:{key}", cut.take, cut.rows
    if rows is not None and len(cut.shape) > 1:
        return RowCut(name, whole, np.asarray(rows, np.int64), spec.shape)
    if whole.type not in FLOATS and not cut.decode:
        raise UnsupportedModel(
            f"tensor {whole.name} has type {whole.type.name}; only floats are supported there"
        )
    if take is None:
        index = np.asarray(rows, np.int64)
        return Taken(name, whole, lambda values: values[index], spec.shape)
    return Taken(name, whole, take, spec.shape)


def _stack(name: str, each: tuple[Held, ...], shape: tuple[int, ...]) -> ExpertStack:
    for tensor in each:
        _check_shape(tensor, shape[1:])
        if tensor.type != each[0].type:
            raise UnsupportedModel(
                f"tensor {tensor.name} has type {tensor.type.name}; {each[0].name} has {each[0].type.name}"
            )
    return ExpertStack(name, each)


def _checked(tensor: Stored, spec: TensorSpec) -> Stored:
    """Return a tensor of the declared shape, or of a row's where a file holds that as a vector."""
    if tensor.shape != spec.shape[1:] or spec.shape[0] != 1:
        _check_shape(tensor, spec.shape)
    if spec.floats and tensor.type not in FLOATS:
        raise UnsupportedModel(
            f"tensor {tensor.name} has type {tensor.type.name}; only floats are supported there"
        )
    if tensor.type not in FLOATS and (len(spec.shape) == 1 or not _quantised(tensor.type)):
        raise UnsupportedModel(
            f"tensor {tensor.name} has type {tensor.type.name}, which holds no weights here"
        )
    return tensor


def _check_shape(tensor: Stored, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise BadModelFile(
            f"tensor {tensor.name} has shape {list(tensor.shape)}; the config asks for {list(expected)}"
        )


def _quantised(type: QuantType) -> bool:
    return not type.name.startswith("I") or type.name.startswith("IQ")


def _bound(
    path: Path,
    name: str,
    family: Family,
    cfg: Any,
    binder: _Binder,
    tokens: int,
    notes: tuple[str, ...] = (),
) -> Source:
    if not 1 <= tokens <= cfg.vocab:
        raise BadModelFile(f"the tokenizer has {tokens} tokens and the embedding {cfg.vocab} rows")
    network = family.network(cfg)
    ends = binder.take(network.ends.tensors())
    layers = tuple(binder.take(layer.tensors(), i) for i, layer in enumerate(network.layers))
    divisors = binder.take_divisors()
    binder.refuse_rest()
    return Source(path, name, family, cfg, network, ends, layers, divisors, tokens, binder.gguf, notes)


def assemble(
    source: Source, matrix: Callable[[Stored], Any], rope: Callable[[RopeTable], Any]
) -> NetworkWeights:
    """Fill the network's weights: matrices through `matrix`, ropes through `rope`, vectors as float32."""
    divisors = source.divisors.numpy() if source.divisors is not None else None
    specs = {layer.rope for layer in source.network.layers}
    ropes = {spec: rope(spec.table(divisors)) for spec in specs if spec is not None}

    def value(b: Bound) -> Any:
        offset = np.float32(0.0 if source.gguf else b.spec.hf_offset)
        return matrix(b.tensor) if b.is_matrix else b.tensor.numpy() + offset

    def filled(bound: Mapping[str, Bound]) -> dict[str, Any]:
        return {key: value(b) for key, b in bound.items()}

    ends, layers = filled(source.ends), []
    for layer, bound in zip(source.network.layers, source.layers, strict=True):
        layers.append(filled(bound) | {"rope": ropes[layer.rope] if layer.rope else None})
    return NetworkWeights(ends, tuple(layers))
