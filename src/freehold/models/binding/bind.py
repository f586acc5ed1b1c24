"""Model file in, bound tensors out: finds the family, reads its config, checks tensors against the declared weights.

Knows the registry of families, and what a structure that no family computes is refused for; reads no weight, packs
nothing. A tensor the family does not name is refused: what is not computed must not be ignored.
Path: formats.open_model_file -> read_source -> Binder -> Source -> load.load_model, oracle.Oracle
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from freehold import _native as native
from freehold.catalog.model import Structure
from freehold.errors import BadModelFile, UnsupportedModel
from freehold.formats import GGUFFile, ModelFile, SafetensorsFile
from freehold.formats.fields import MAX_LAYERS, Fields
from freehold.formats.metadata import Metadata
from freehold.models.binding.binder import FLOATS, GGUF_LAYERS, Binder, Bound
from freehold.models.binding.fp8 import join_scales
from freehold.models.binding.left_out import leave_out, text_half
from freehold.models.binding.mistral_names import from_mistral, is_mistral
from freehold.models.binding.mxfp4 import is_microscaled, join_blocks
from freehold.models.binding.stored import Held, Stored
from freehold.models.binding.unsupported import NEUTRAL, missing_part, true_architecture
from freehold.models.config.mixtures import MAX_EXPERTS
from freehold.models.config.rope import Divisors, RopeSpec, RopeTable
from freehold.models.families import naming, registered
from freehold.models.family import Family, Network, NetworkWeights, RopeChoice, renamed

# Keys of a wrapper that count for its text half where that does not state them.
_SHARED_KEYS = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config")


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
    divisors: Mapping[str, Held]  # of rope frequencies, as rope.Divisors names them
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
        shares: dict[str, float] = {}
        for spec, tensor in self._bound():
            shares[tensor.name] = max(shares.get(tensor.name, 0.0), spec.share)
        return shares

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
    family, keys = gguf_family(meta)
    tensors = dict(opened.tensors)
    embed = tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise BadModelFile(f"{opened.path}: token_embd.weight is missing or not a matrix")
    cfg = family.config_from_gguf(keys, embed.shape[0])
    keys.refuse_unread(NEUTRAL)
    listed = meta.get("tokenizer.ggml.tokens")
    count = len(listed) if isinstance(listed, list | np.ndarray | native.Strings) else cfg.vocab
    drafts = keys.integer("nextn_predict_layers", 0, MAX_LAYERS, 0)
    tensors, notes = _without_drafts(tensors, (), GGUF_LAYERS, cfg.layers, drafts)
    tensors, more = leave_out(tensors, family.left_out_of(cfg))
    if family.tied_note and "output.weight" not in tensors:
        more = (*more, family.tied_note)
    notes = (*notes, *more)
    binder = Binder(tensors, GGUF_LAYERS)
    return _bound(opened.path, _name(opened, meta), family, cfg, binder, tokens or count, notes)


def _read_hf(opened: SafetensorsFile, tokens: int | None) -> Source:
    stated: Metadata = opened.config
    tensors: Mapping[str, Held] = opened.tensors
    if is_mistral(stated, opened.params):
        stated, tensors = from_mistral(opened.params, tensors)
    if not stated:
        raise BadModelFile(
            f"{opened.path}: there is no config.json beside the weights", "name the directory that holds both"
        )
    family, config, wrapped = family_of(stated)
    tensors, notes = (join_blocks if is_microscaled(config) else join_scales)(config, tensors)
    if wrapped:
        tensors, notes = text_half(tensors, notes)
    cfg = family.config_from_hf(config)
    drafts = config.integer("num_nextn_predict_layers", 0, MAX_LAYERS, 0)
    tensors, notes = _without_drafts(tensors, notes, family.hf_layers, cfg.layers, drafts)
    tensors, more = leave_out(tensors, (*family.left_out, *family.left_out_of(cfg)))
    notes = (*notes, *more)
    binder = Binder(tensors, family.hf_layers)
    return _bound(Path(opened.path), _name(opened, {}), family, cfg, binder, tokens or cfg.vocab, notes)


def _without_drafts(
    tensors: Mapping[str, Held], notes: tuple[str, ...], prefix: str, layers: int, drafts: int
) -> tuple[dict[str, Held], tuple[str, ...]]:
    """Leave out the layers after the last, of which a config says that they predict further tokens."""
    beyond = tuple(f"{prefix}.{layers + i}." for i in range(drafts))
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(beyond)}
    note = "the layers that predict further tokens are left out"
    return kept, (*notes, note) if len(kept) < len(tensors) else notes


def gguf_family(meta: Mapping[str, Any]) -> tuple[Family, Fields]:
    """Return the family of a GGUF with this metadata, and the keys under its architecture's prefix."""
    stated = Fields(meta).text("general.architecture")
    architecture = true_architecture(stated, meta.get("tokenizer.ggml.pre"))
    if architecture != stated:
        raise _unknown_architecture(architecture)
    keys = Fields(meta, f"{architecture}.")
    mixture = keys.integer("expert_count", 0, MAX_EXPERTS, 0) > 0
    named = [f for f in naming(architecture) if f.gguf_architecture == architecture]
    if not named:
        raise _unknown_architecture(architecture)
    family = next((f for f in named if f.experts == mixture), None)
    if family is None:
        raise UnsupportedModel(_other_kind(architecture, mixture))
    return family, keys


def family_of(config: Mapping[str, Any]) -> tuple[Family, Fields, bool]:
    """Return the family of a config.json, the keys it reads, and whether they are in a wrapper's `text_config`."""
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    name = first if isinstance(first, str) else ""
    for family in naming(name):
        if name in family.hf_classes and family.hf_when(Fields(config)):
            return family, Fields(config), False
    wrapped = [family for family in naming(name) if name in family.wrappers]
    if not wrapped:
        raise _unknown_architecture(name or Fields(config).text("model_type"))
    text = Fields(config).section("text_config") or Fields({})
    kind = text.text("model_type", wrapped[0].gguf_architecture)
    kinds = [f for f in wrapped if kind in (f.gguf_architecture, *f.model_types)]
    matched = next((f for f in kinds if f.hf_when(text)), None)
    if matched is None:
        raise _unknown_architecture(kind)
    return matched, Fields({**_inherited(config), **text.values}), True


def _inherited(config: Mapping[str, Any]) -> dict[str, object]:
    return {key: config[key] for key in _SHARED_KEYS if key in config}


def refusal(structure: Structure) -> str:
    """Return why no family here computes a model of such a structure; empty: one does.

    The one answer to what runs: its architecture, what its layers keep, experts, and what it is asked to return.
    """
    named = [
        f
        for f in naming(structure.architecture)
        if structure.architecture in (f.gguf_architecture, *f.model_types)
    ]
    if not named:
        shown = structure.architecture or "of this model, which is not known,"
        return (
            f"Freehold's engine does not run the architecture {shown} yet{_lacking(structure.architecture)}"
        )
    family = next((f for f in named if f.experts == structure.experts), None)
    if family is None:
        return _other_kind(structure.architecture, structure.experts)
    if strange := structure.kinds - family.keeps:
        return f"Freehold's engine does not run layers of kind {', '.join(sorted(strange))} yet"
    if structure.role == "reranker":
        return "Freehold's engine does not score pairs of texts yet; it reranks by an embedder's vectors"
    return ""


def _other_kind(architecture: str, experts: bool) -> str:
    kind = "mixtures of experts" if experts else "dense models"
    return f"Freehold's engine does not run {kind} of the architecture {architecture} yet"


def _name(opened: ModelFile, meta: Mapping[str, Any]) -> str:
    name = meta.get("general.name")
    path = Path(opened.path)
    return name if isinstance(name, str) and name else (path.stem or path.name)


def check_structure(structure: Structure) -> None:
    """Raise UnsupportedModel unless a family computes such a model; no file is needed."""
    if why := refusal(structure):
        known = {f.gguf_architecture for f in registered()}
        raise UnsupportedModel(why, _those_that_run(structure.architecture, known))


def _unknown_architecture(name: str) -> UnsupportedModel:
    known = {n for f in registered() for n in (f.gguf_architecture, *f.hf_classes, *f.wrappers)}
    shown = name if len(name) <= 60 else name[:57] + "..."
    return UnsupportedModel(
        f"architecture {shown!r} is not supported{_lacking(name)}", _those_that_run(name, known)
    )


def _those_that_run(name: str, known: Collection[str]) -> str:
    """Return the hint beside a refused architecture: the names nearest to it, and where all are listed."""
    near = get_close_matches(name[:60], sorted(known), n=3, cutoff=0.7)
    begun = f"the nearest that run are {', '.join(near)}; " if near else ""
    return f"{begun}freehold make-tiny --list shows the families that run"


def _lacking(architecture: str) -> str:
    lack = missing_part(architecture)
    return f": it has {lack}" if lack else ""


def _bound(
    path: Path,
    name: str,
    family: Family,
    cfg: Any,
    binder: Binder,
    tokens: int,
    notes: tuple[str, ...] = (),
) -> Source:
    if not 1 <= tokens <= cfg.vocab:
        raise BadModelFile(f"the tokenizer has {tokens} tokens and the embedding {cfg.vocab} rows")
    network = family.network(cfg)
    ends = binder.take(renamed(network.ends.tensors(), family.names))
    layers = tuple(binder.take(layer.tensors(), i) for i, layer in enumerate(network.layers))
    ropes = [layer.rope for layer in network.layers]
    divisors = binder.take_divisors(any(rope and rope.scaling == "longrope" for rope in ropes))
    binder.refuse_rest()
    return Source(
        path, name, family, cfg, network, ends, layers, divisors, tokens, binder.gguf, (*notes, *cfg.notes)
    )


def assemble(
    source: Source, matrix: Callable[[Stored], Any], rope: Callable[[RopeTable], Any]
) -> NetworkWeights:
    """Fill the network's weights: matrices through `matrix`, ropes through `rope`, vectors as float32."""
    divisors = Divisors(**{side: tensor.numpy() for side, tensor in source.divisors.items()})
    specs = {layer.rope for layer in source.network.layers}

    def turn(spec: RopeSpec) -> Any:
        if spec.scaling != "longrope":
            return rope(spec.table(divisors))
        short, long = (rope(spec.table(divisors, long=side)) for side in (False, True))
        return RopeChoice(short, long, spec.original)

    ropes = {spec: turn(spec) for spec in specs if spec is not None}

    def value(b: Bound) -> Any:
        offset = np.float32(0.0 if source.gguf else b.spec.hf_offset)
        return matrix(b.tensor) if b.is_matrix else b.tensor.numpy().reshape(-1) + offset

    def filled(bound: Mapping[str, Bound]) -> dict[str, Any]:
        return {key: value(b) for key, b in bound.items()}

    ends, layers = filled(source.ends), []
    for layer, bound in zip(source.network.layers, source.layers, strict=True):
        layers.append(filled(bound) | {"rope": ropes[layer.rope] if layer.rope else None})
    return NetworkWeights(ends, tuple(layers))
