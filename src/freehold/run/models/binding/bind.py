"""Model file in, bound tensors out: finds the family, reads its config, checks tensors against the declared weights.

Knows the registry of families, and what a structure that no family computes is refused for; reads no weight, packs
nothing. A tensor the family does not name is refused: what is not computed must not be ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from freehold import _native as native
from freehold.base.catalog.model import Structure
from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats import GGUFFile, ModelFile, QuantType, SafetensorsFile, Tensor
from freehold.run.formats.fields import MAX_LAYERS, MAX_WIDTH, Fields, Metadata
from freehold.run.models.binding.binder import (
    FLOATS,
    GGUF_LAYERS,
    LEFT_OUT,
    Binder,
    Bound,
    BoundHead,
    Held,
    ScaledBlocks,
    Stored,
    bind_head,
    is_microscaled,
    join_blocks,
    take_head,
)
from freehold.run.models.binding.mistral_names import from_mistral, is_mistral
from freehold.run.models.config.mixtures import MAX_EXPERTS
from freehold.run.models.config.rope import Divisors, RopeSpec, RopeTable
from freehold.run.models.families import naming, registered
from freehold.run.models.family import (
    Family,
    Network,
    NetworkWeights,
    RopeChoice,
    leave_out,
    renamed,
    text_half,
)

# Keys of a wrapper that count for its text half where that does not state them; of a tower some halves read how many
# layers have features of their own.
_SHARED_KEYS = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config", "vision_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundFile:
    """A file whose tensors are bound to the declared weights: a model's, or a tower's."""

    path: Path
    name: str
    ends: Mapping[str, Bound]  # by the declaration's key
    layers: tuple[Mapping[str, Bound], ...]
    gguf: bool
    notes: tuple[str, ...]  # what the user should know, such as parts left out

    def matrices(self) -> Iterator[Stored]:
        """Yield every matrix, each once."""
        yield from {b.tensor.name: b.tensor for _, b in self.matrices_by_key()}.values()

    def matrices_by_key(self) -> Iterator[tuple[str, Bound]]:
        """Yield every declared matrix with its declaration's key; a tied head is the embedding's tensor again."""
        yield from ((key, b) for group in self._groups() for key, b in group.items() if b.is_matrix)

    def _groups(self) -> Iterator[Mapping[str, Bound]]:
        yield self.ends
        yield from self.layers

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(BoundFile):
    """A model file whose family and config are known and whose tensors are bound to the declared weights."""

    family: Family
    cfg: Any  # the family's config
    network: Network
    divisors: Mapping[str, Held]  # of rope frequencies, as rope.Divisors names them
    tokens: int  # ids below are the tokenizer's; rows from there on are padding
    drafter: BoundHead | None = None  # the model's own drafting head

    def _groups(self) -> Iterator[Mapping[str, Bound]]:
        yield from super(Source, self)._groups()
        if self.drafter is not None:
            yield from (self.drafter.ends, self.drafter.layer)

    @property
    def shares(self) -> dict[str, float]:
        """What share of each matrix one token reads; of a drafting head none, as no token needs it."""
        return {tensor.name: 0.0 for tensor in self.matrices()} | super(Source, self).shares


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
    tensors, head, notes = _without_drafts(family, tensors, (), GGUF_LAYERS, cfg.layers, drafts)
    tensors, more = leave_out(tensors, family.left_out_of(cfg))
    if family.tied_note and "output.weight" not in tensors:
        more = (*more, family.tied_note)
    notes = (*notes, *more)
    binder = Binder(tensors, GGUF_LAYERS)
    return _bound(opened.path, _name(opened, meta), family, cfg, binder, tokens or count, notes, head)


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
    join = join_blocks if is_microscaled(config) else join_scales
    tensors, notes = join(config, tensors)
    if wrapped:
        tensors, notes = text_half(tensors, notes)
    if family.hf_outer:
        tensors = {name.removeprefix(family.hf_outer): tensor for name, tensor in tensors.items()}
    cfg = family.config_from_hf(config)
    drafts = config.integer("num_nextn_predict_layers", 0, MAX_LAYERS, 0)
    tensors, head, notes = _without_drafts(family, tensors, notes, family.hf_layers, cfg.layers, drafts)
    tensors, more = leave_out(tensors, (*family.left_out, *family.left_out_of(cfg)))
    notes = (*notes, *more)
    binder = Binder(tensors, family.hf_layers)
    return _bound(Path(opened.path), _name(opened, {}), family, cfg, binder, tokens or cfg.vocab, notes, head)


def _without_drafts(
    family: Family,
    tensors: Mapping[str, Held],
    notes: tuple[str, ...],
    prefix: str,
    layers: int,
    drafts: int,
) -> tuple[dict[str, Held], dict[str, Held], tuple[str, ...]]:
    """Take out the layers that predict further tokens; return the first apart where the family computes it."""
    if family.head is not None:
        kept, head = take_head(tensors, prefix, layers, drafts)
        return kept, head, notes
    beyond = tuple(f"{prefix}.{layers + i}." for i in range(drafts))
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(beyond)}
    return kept, {}, (*notes, LEFT_OUT) if len(kept) < len(tensors) else notes


def gguf_family(meta: Mapping[str, Any]) -> tuple[Family, Fields]:
    """Return the family of a GGUF with this metadata, and the keys under its architecture's prefix."""
    architecture = Fields(meta).text("general.architecture")
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
    flat = {key: value for key, value in config.items() if key != "model_type"}
    stated = Fields(config).section("text_config") or Fields(config).section("llm_config")  # InternVL's own
    text = stated or Fields(flat)  # older files state all in one
    kind = text.text("model_type", wrapped[0].gguf_architecture)
    kinds = [f for f in wrapped if kind in (f.gguf_architecture, *f.model_types)]
    matched = next((f for f in kinds if f.hf_when(text)), None)
    if matched is None:
        raise _unknown_architecture(kind)
    inherited = {key: config[key] for key in _SHARED_KEYS if key in config}
    return matched, Fields({**inherited, **text.values}), True


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
        return f"Freehold's engine does not support the architecture {shown} yet{_lacking(structure.architecture)}"
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
    notes: tuple[str, ...],
    head: Mapping[str, Held],
) -> Source:
    if not 1 <= tokens <= cfg.vocab:
        raise BadModelFile(f"the tokenizer has {tokens} tokens and the embedding {cfg.vocab} rows")
    network = family.network(cfg)
    ends = binder.take(renamed(network.ends.tensors(), family.names))
    layers = tuple(binder.take(layer.tensors(), i) for i, layer in enumerate(network.layers))
    ropes = [layer.rope for layer in network.layers]
    divisors = binder.take_divisors(any(rope and rope.scaling == "longrope" for rope in ropes))
    binder.refuse_rest()
    drafter = None
    if head and family.head is not None:
        drafter = bind_head(family.head(cfg), head, binder.gguf, family.names)
    if isinstance(drafter, str):
        drafter, notes = None, (*notes, drafter)
    return Source(
        path=path,
        name=name,
        ends=ends,
        layers=layers,
        gguf=binder.gguf,
        notes=(*notes, *cfg.notes),
        family=family,
        cfg=cfg,
        network=network,
        divisors=divisors,
        tokens=tokens,
        drafter=drafter,
    )


def assemble(
    source: Source, matrix: Callable[[Stored], Any], rope: Callable[[RopeTable], Any]
) -> NetworkWeights:
    """Fill the network's weights: matrices through `matrix`, ropes through `rope`, vectors as float32."""
    ropes = _ropes(source, source.network, rope)
    plain = filled(source, matrix)
    layers = zip(source.network.layers, plain.layers, strict=True)
    turned = (dict(w) | {"rope": ropes[layer.rope] if layer.rope else None} for layer, w in layers)
    return NetworkWeights(plain.ends, tuple(turned))


def assemble_head(
    source: Source,
    target: NetworkWeights,
    matrix: Callable[[Stored], Any],
    rope: Callable[[RopeTable], Any],
) -> NetworkWeights | None:
    """Fill the weights of a drafting head beside its target's; None where a file has no head."""
    if source.drafter is None:
        return None
    (layer,) = source.drafter.network.layers
    ropes = _ropes(source, source.drafter.network, rope)
    ends, weights = (_values(source, matrix, group) for group in (source.drafter.ends, source.drafter.layer))
    turn = ropes[layer.rope] if layer.rope else None
    return NetworkWeights({**target.ends, **ends}, (weights | {"rope": turn},))


def _ropes(source: Source, network: Network, rope: Callable[[RopeTable], Any]) -> dict[RopeSpec, Any]:
    divisors = Divisors(**{side: tensor.numpy() for side, tensor in source.divisors.items()})

    def turn(spec: RopeSpec) -> Any:
        if spec.scaling != "longrope":
            return rope(spec.table(divisors))
        short, long = (rope(spec.table(divisors, long=side)) for side in (False, True))
        return RopeChoice(short, long, spec.original)

    return {spec: turn(spec) for spec in {layer.rope for layer in network.layers} if spec is not None}


def _values(source: BoundFile, matrix: Callable[[Stored], Any], bound: Mapping[str, Bound]) -> dict[str, Any]:
    def value(b: Bound) -> Any:
        offset = np.float32(0.0 if source.gguf else b.spec.hf_offset)
        return matrix(b.tensor) if b.is_matrix else b.tensor.numpy().reshape(-1) + offset

    return {key: value(b) for key, b in bound.items()}


def filled(source: BoundFile, matrix: Callable[[Stored], Any]) -> NetworkWeights:
    """Give each declared weight its value: matrices through `matrix`, vectors as float32; layers have no rope yet."""
    ends, *layers = (_values(source, matrix, bound) for bound in (source.ends, *source.layers))
    return NetworkWeights(ends, tuple(layers))


# --- repositories whose weights are FP8: codes and their scales become one matrix each --------------
# Source: the E4M3 format of arXiv 2209.05433, with the 128 x 128 block scales of DeepSeek-V3 (arXiv
# 2412.19437).

_SCALES = ("_scale_inv", "_scale")  # both multiply; the first name is DeepSeek's
_ACTIVATIONS = ("activation_scale", "input_scale")


def join_scales(config: Fields, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Held], tuple[str, ...]]:
    """Return the tensors with FP8 codes joined to their scales, and what the user should know.

    Raises UnsupportedModel for another way of quantising, BadModelFile for codes without scales, or with others.
    """
    quantisation = config.section("quantization_config")
    block, notes = None, ()
    if quantisation is not None:
        block = _block(quantisation)
        notes = (
            "its FP8 weights are computed as the floats they stand for; activations are not rounded to FP8",
        )
    out: dict[str, Held] = {}
    taken = {name for name in tensors if quantisation is not None and name.endswith(_ACTIVATIONS)}
    for name, tensor in tensors.items():
        if tensor.type is not QuantType.F8_E4M3:
            continue
        if quantisation is None:
            raise UnsupportedModel(
                f"tensor {name} is FP8, and config.json has no quantization_config to read it by"
            )
        scale = next((s for s in (name + end for end in _SCALES) if s in tensors), None)
        if scale is None:
            raise BadModelFile(f"tensor {name}{_SCALES[0]} is missing: the scales of {name}")
        out[name] = _joined(tensor, tensors[scale], block)
        taken.add(scale)
    return {n: out.get(n, t) for n, t in tensors.items() if n not in taken}, notes


def _block(quantisation: Fields) -> tuple[int, int] | None:
    """Return the rows and columns that share a scale; None where a matrix has one scale."""
    if (method := quantisation.text("quant_method", "unknown")) != "fp8":
        raise UnsupportedModel(
            f"quantization_config names {method!r}: of quantised safetensors, only fp8 and mxfp4 are supported",
            "fetch a GGUF of the model, or its unquantised repository with --quant q8, q6 or q4",
        )
    quantisation.require("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    size = quantisation.get("weight_block_size")
    if size is None:
        return None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(n) is int and 0 < n <= MAX_WIDTH for n in size)
    ):
        raise BadModelFile(f"weight_block_size is {str(size)[:60]}; expected two counts")
    return size[0], size[1]


def _joined(codes: Tensor, scales: Tensor, block: tuple[int, int] | None) -> ScaledBlocks:
    if len(codes.shape) != 2:
        raise UnsupportedModel(
            f"tensor {codes.name} is FP8 of {len(codes.shape)} dimensions; matrices have two"
        )
    if scales.type not in (QuantType.F32, QuantType.F16, QuantType.BF16):
        raise UnsupportedModel(f"tensor {scales.name} has type {scales.type.name}; scales are floats")
    rows, columns = block or codes.shape
    expected = [-(-codes.shape[0] // rows), -(-codes.shape[1] // columns)]
    if list(scales.shape) != expected and not (block is None and scales.shape in ((), (1,))):
        raise BadModelFile(
            f"tensor {scales.name} has shape {list(scales.shape)}; {codes.name} needs {expected}"
        )
    return ScaledBlocks(codes, scales, (rows, columns))


# --- architectures that are known and not computed, each with what it has that the engine lacks -----
# A name that a family registers wins over one that is here. Sources: the architectures' classes in
# transformers 5.24 and their loaders in llama.cpp, read 2026-11.

_MIXED_STREAMS = "several residual streams that are mixed in each layer"
_INDEXED = "attention to tokens that an index picks"
_KDA = "a delta rule with a decay for each channel"

# Keys of a GGUF that change arithmetic, and the value that changes none (0 never does). A family reads those that its
# models have; one that states another is computed as something else, and refused.
NEUTRAL: Mapping[str, float] = {
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.output_scale": 1.0,
    "attention.scale": 0.0,
    "attention.shared_kv_layers": 0,
    "attention.sliding_window": 0,
    "attention.temperature_scale": 0.0,
    "attention.value_scale": 1.0,
    "attn_logit_softcapping": 0.0,
    "embedding_length_per_layer_input": 0,
    "embedding_scale": 1.0,
    "final_logit_softcapping": 0.0,
    "hyper_connection.count": 0,
    "logit_scale": 1.0,
    "moe_latent_size": 0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "router_logit_softcapping": 0.0,
    "swiglu_clamp_exp": 0.0,
    "swiglu_clamp_shexp": 0.0,
    "use_parallel_residual": 0,
}

# What the engine lacks, and the names of the architectures that need it.
LACKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        f"compressed sparse attention, {_MIXED_STREAMS} and experts chosen by a token's hash",
        ("deepseek4", "deepseek_v4", "DeepseekV4ForCausalLM"),
    ),
    (
        f"{_INDEXED}, hashed n-gram embeddings and {_MIXED_STREAMS}",
        (
            "qwen4exp",
            "qwen4_exp",
            "qwen4_exp_text",
            "Qwen4ExpForCausalLM",
            "Qwen4ExpForConditionalGeneration",
        ),
    ),
    (
        f"{_KDA} beside attention to earlier layers' outputs, and experts in a latent width",
        ("kimi-k3", "kimi_k3", "KimiK3ForCausalLM"),
    ),
    (
        f"{_KDA}, {_INDEXED} and {_MIXED_STREAMS}",
        ("glm5-next", "glm5_next", "Glm5NextForCausalLM"),
    ),
    (
        f"{_INDEXED}, keys and values that layers share, and learned rope factors",
        (
            "mistral-large4",
            "mistral_large4",
            "mistral_large4_text",
            "MistralLarge4ForConditionalGeneration",
        ),
    ),
    ("attention to blocks that an index picks", ("minimax-m3", "minimax_m3", "MiniMaxM3ForCausalLM")),
    (
        "linear attention with a decay for each head",
        ("minimax-m1", "minimax_m1", "MiniMaxM1ForCausalLM", "minimax", "MiniMaxForCausalLM"),
    ),
    ("its attention and its router", ("hy_v4", "HYV4ForCausalLM")),
    (
        "experts whose number and width differ from block to block",
        ("nemotron_h_puzzle", "NemotronHPuzzleForCausalLM"),
    ),
    ("attention blocks that layers share", ("zamba2", "Zamba2ForCausalLM")),
    (
        "latent attention within windows, and ranks that differ from layer to layer",
        ("dots3note", "dots3_note", "Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration"),
    ),
    (
        "a bias of attention by distance (ALiBi)",
        ("bloom", "BloomForCausalLM", "mpt", "MPTForCausalLM", "MptForCausalLM"),
    ),
    (
        "learned biases of attention by distance, and four convolutions a layer",
        ("inkling", "InklingForCausalLM", "InklingForConditionalGeneration"),
    ),
    ("a recurrence of its own kind (RWKV-7)", ("rwkv7", "arwkv7", "RWKV7ForCausalLM")),
    ("rotary positions beside Mamba-2, judged by a reference", ("bamba", "BambaForCausalLM")),
    (
        "a rounding of each token's activations to eight bits, after which no two orders of sums agree",
        ("bitnet", "BitNetForCausalLM"),
    ),
    (
        "a cap on its router's scores",
        ("grok", "GrokForCausalLM", "Grok1ForCausalLM", "Grok1ModelForCausalLM"),
    ),
    ("attention to images in some layers", ("mllama", "MllamaForConditionalGeneration")),
    ("layers with different shapes (a searched architecture)", ("deci", "DeciLMForCausalLM")),
    ("zero-computation experts and two attentions a layer", ("longcat_flash", "LongcatFlashForCausalLM")),
    (
        "a vision encoder that merges patches in windows after its sixth layer",
        ("minicpmv4_6", "MiniCPMV4_6ForConditionalGeneration"),
    ),
    (
        "a resampler of picture features with learned queries",
        ("minicpmv", "MiniCPMV", "minicpmo", "MiniCPMO"),
    ),
    (
        "a SAM encoder before the vision encoder",
        (
            "deepseek_ocr2",
            "DeepseekOcr2ForConditionalGeneration",
            "DeepseekOCRForCausalLM",
            "DeepseekOCR2ForCausalLM",
        ),
    ),
    (
        "a second, finer path from the vision encoder and a router between the two",
        ("granite_docling", "GraniteDoclingForConditionalGeneration"),
    ),
    (f"{_KDA} beside attention without positions", ("solar_open2", "SolarOpen2ForCausalLM")),
)
_BY_NAME = {name: lack for lack, names in LACKS for name in names}


def missing_part(architecture: str) -> str:
    """Return what an architecture has that the engine does not compute; empty: it is not known here."""
    return _BY_NAME.get(architecture, "")
