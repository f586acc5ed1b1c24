"""Sizes of a model: bytes of weights in total and per token, and bytes that a conversation keeps.

`from_file` reads the headers of a GGUF or of safetensors and is exact; `from_catalogue` works from published
sizes and a quantisation's mix, and is as good as they are. Knows no machine and no engine: what an engine makes
of it (packs, caches in blocks, buffers) is fit.py's, and speed is not here.
Path: cli/fit -> from_file or from_catalogue -> Anatomy -> fit.fit, roofline.single_stream
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.catalog import quants
from freehold.catalog.model import Model, Structure
from freehold.errors import BadModelFile, UsageError
from freehold.layers import ATTENTION, LayerSpec, kept_bytes, recurrent_bytes

if TYPE_CHECKING:
    from freehold.formats import GGUFFile, ModelFile, SafetensorsFile

# Models up to here use their embedding as head, as do all Gemmas; above, few do. Billions of parameters.
_TIED_BELOW = 4.5
_TIED = ("Gemma", "Command", "SmolLM")
_OUTSIDE = ("mtp.", "vision_", "model.vision", "visual.", "multi_modal", "audio_", "v.", "mm.")  # no text


@dataclass(frozen=True, slots=True)
class Part:
    """Weights of one role and one type."""

    role: (
        str  # body | experts | embed | head | norms | towers (for images) | drafts (layers that guess ahead)
    )
    type: str  # a type's name, as catalog.quants has it
    weights: float
    bytes: float
    share: float = 1.0  # of them a token reads: of experts those it is sent to, of an embedding a row


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A model in one quantisation, in bytes. `exact`: read from a file's headers, not from published sizes."""

    name: str
    quant: str
    architecture: str
    parts: tuple[Part, ...]
    layers: tuple[LayerSpec, ...]
    context: int  # tokens it was made for; 0: not known
    hidden: int = 0
    vocab: int = 0
    queries: int = 0  # query heads x their width, of a layer with attention; 0: not known
    kv_bytes: int = 0  # published cache bytes per token at 16 bits, where `layers` are not known
    role: str = "generator"  # as the catalogue has it; a file does not say
    exact: bool = False
    path: Path | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, as the file stores them."""
        return round(sum(p.bytes for p in self.parts))

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that one token alone reads."""
        return round(sum(p.bytes * p.share for p in self.parts))

    @property
    def weights(self) -> int:
        """Weights in all."""
        return round(sum(p.weights for p in self.parts))

    @property
    def token_weights(self) -> int:
        """Weights that one token is multiplied with."""
        return round(sum(p.weights * p.share for p in self.parts))

    @property
    def head_weights(self) -> int:
        """Weights of the head alone, which a prompt needs for its last token only."""
        return round(sum(p.weights for p in self.parts if p.role == "head"))

    @property
    def structure(self) -> Structure:
        """The architecture name by which an engine says whether it runs this model."""
        kinds = frozenset(g.kind for g in self.layers)
        return Structure(self.architecture, kinds, any(p.role == "experts" for p in self.parts), self.role)

    @property
    def depth(self) -> int:
        """Layers."""
        return sum(g.count for g in self.layers)

    @property
    def cache_known(self) -> bool:
        """Whether the cache's bytes rest on facts; without them they are 0."""
        return bool(self.layers or self.kv_bytes)

    def cache_bytes(self, tokens: int, width: float = 2) -> int:
        """Return the bytes of keys and values of one sequence of `tokens`; a window counts as a window."""
        return sum(self.cache_by_kind(tokens, width).values()) - self.state_bytes

    def cache_by_kind(self, tokens: int, width: float = 2) -> dict[str, int]:
        """Return the same by kind of layer, with `state` for what recurrent layers keep, whatever the length."""
        if not self.layers:
            return {"full": round(self.kv_bytes * tokens * width / 2)} if self.kv_bytes else {}
        found: dict[str, int] = {}
        for group in self.layers:
            if kept := kept_bytes((group,), tokens, width):
                found[group.kind] = found.get(group.kind, 0) + kept
        return found | ({"state": self.state_bytes} if self.state_bytes else {})

    @property
    def state_bytes(self) -> int:
        """Bytes that recurrent layers keep of one sequence."""
        return recurrent_bytes(self.layers)

    def attention_ops(self, tokens: int) -> float:
        """Return the operations of attention over a prompt of `tokens`: each position looks at those before it.

        Two for each key and each value element; windows bound what is seen. 0 where the heads are not known.
        """
        total = 0.0
        for group in self.layers:
            if group.kind not in ATTENTION:
                continue
            seen = group.tokens_kept(tokens) // group.stride
            pairs = seen * (seen + 1) / 2 + (tokens - seen) * seen
            total += group.count * pairs * 4 * self.queries
        return total


def from_catalogue(model: Model, quant: str) -> Anatomy:
    """Compute a model's sizes from published figures, in a quantisation that catalog.quants knows.

    A GGUF holds the text model alone; what servers load from the hub also has its towers and draft layers.
    As exact as the count of weights, which is a label's round number where no count is known; without the width of
    the embedding, it counts as a layer's. Raises UsageError for an unknown quantisation, and where the number
    of parameters is unknown.
    """
    found = quants.mix(quant)
    if not _text_weights(model):
        raise UsageError(
            f"the number of parameters of {model.id} is not known",
            "freehold models refresh asks; or name its file",
        )
    roles = list(_published(model))
    if (beside := _beside(model)) and (found.file_type < 0 or found.name in ("BF16", model.native)):
        roles.append(("towers" if len(model.modalities) > 1 else "drafts", beside, 0.0))
    return Anatomy(
        name=model.name or model.id,
        quant=found.name,
        architecture=model.architecture,
        parts=tuple(_mixed(roles, found, model.hidden, _expert_width(model, roles))),
        layers=model.layers,
        context=model.context,
        hidden=model.hidden,
        vocab=model.vocab,
        queries=model.hidden,  # most models' heads are together as wide as they are
        kv_bytes=model.kv_bytes,
        role=model.role,
    )


def tied(model: Model) -> bool:
    """Say whether a model's head is its embedding; where no source says so, by size and family."""
    if model.tied is not None:
        return model.tied
    return model.params_b < _TIED_BELOW or model.family.startswith(_TIED)


def _text_weights(model: Model) -> float:
    return model.text_parameters or model.parameters or model.params_b * 1e9


def _beside(model: Model) -> float:
    """Return the weights of towers and draft layers; a second copy of a tied head is loaded once."""
    rest = model.parameters - model.text_parameters if model.text_parameters else 0
    copy = model.hidden * model.vocab if tied(model) else 0
    return max(rest - copy if 0 < copy <= rest < 1.01 * copy else rest, 0)


def in_quant(anatomy: Anatomy, quant: str) -> Anatomy:
    """Compute a file's model in another quantisation: its own matrices, the mix's types."""
    found = quants.mix(quant)
    sums: dict[tuple[str, float], float] = {}
    for part in anatomy.parts:
        sums[part.role, part.share] = sums.get((part.role, part.share), 0.0) + part.weights
    parts = _mixed(((role, n, share) for (role, share), n in sums.items()), found, anatomy.hidden)
    return replace(anatomy, quant=found.name, parts=tuple(parts), exact=False, path=None)


def _published(model: Model) -> Iterable[tuple[str, float, float]]:
    """Yield role, weights and the share of them that a token reads, as far as they are published."""
    table = float(model.hidden * model.vocab)
    makes_text = model.role == "generator"
    one = tied(model) or not makes_text
    if table and makes_text:
        yield "head", table, 1.0
    if table and not (one and makes_text):
        yield "embed", table, 1 / model.vocab
    total = _text_weights(model)
    left = max(total - table * (1 if one else 2), 0.0)
    used = min(max(_active_weights(model, total) - (table if makes_text else 0.0), 0.0), left)
    if (
        model.kind == "dense"
    ):  # tables by token and layer, as Gemma's E models have: a token reads a row of each
        role, chosen = "embed", 1 / (model.vocab or 1e5)
    else:
        role, chosen = "experts", used / left if left else 1.0
        chosen = model.experts_per_token / model.experts if model.experts else chosen
    # a token reads the shared weights and `chosen` experts; what it does not read gives the size of the rest
    rest = min((left - used) / (1 - chosen), left) if used < left else 0.0
    if left > rest:
        yield "body", left - rest, 1.0
    if rest:
        yield role, rest, chosen


def _active_weights(model: Model, total: float) -> float:
    """Return the weights that a token is multiplied with; a dense model's are all, whatever its label rounds to."""
    if model.active_parameters:
        return float(model.active_parameters)
    whole = model.kind == "dense" and model.active_b >= model.params_b
    return total if whole or not model.active_b else model.active_b * 1e9


def _expert_width(model: Model, roles: Iterable[tuple[str, float, float]]) -> int:
    """Return how wide experts of three matrices in every layer are; 0 where the counts of weights give no whole number.

    Gemma 4 26B's are 704 wide, no multiple of a K type's block: its Q4_K_M holds a third of them in larger types.
    """
    each = 3 * model.hidden * model.experts * sum(g.count for g in model.layers)
    width = sum(n for role, n, _ in roles if role == "experts") / each if each else 0.0
    whole = round(width)
    return whole if whole and abs(width - whole) < 1e-4 * whole and whole % 32 == 0 else 0


def _mixed(
    roles: Iterable[tuple[str, float, float]], mix: quants.Mix, hidden: int, width: int = 0
) -> Iterable[Part]:
    """Yield the parts of roles in a mix's types, experts `width` wide; norms and towers stay what they are."""
    roles = list(roles)
    body = mix.body_of(hidden)
    moe = any(role == "experts" for role, _, _ in roles)
    whole = {"head": mix.head, "embed": mix.embed, "towers": "BF16"} | ({"body": mix.shared} if moe else {})
    types = {"norms": {"F32": 1.0}, "experts": mix.body_of(hidden, width)} | {
        role: {quants.stored(kind, hidden): 1.0} for role, kind in whole.items() if kind
    }
    for role, weights, share in roles:
        for kind, part in types.get(role, body).items():
            yield Part(role, kind, weights * part, weights * part * quants.bits(kind) / 8, share)


def from_file(path: str | Path) -> Anatomy:
    """Compute the sizes of a GGUF file or a folder of safetensors from its headers: no weight is read.

    Raises what formats.open_model_file raises; BadModelFile where the file does not state its layers.
    """
    from freehold.formats import GGUFFile, open_model_file

    with open_model_file(path) as opened:
        return _of_gguf(opened) if isinstance(opened, GGUFFile) else _of_safetensors(opened)


# --- what a file's tensors are ----------------------------------------------------------------------


def _of_gguf(opened: GGUFFile) -> Anatomy:
    meta = _Keys(opened.metadata, f"{opened.architecture}.")
    experts = meta.number("expert_used_count") / max(meta.number("expert_count"), 1)
    return Anatomy(
        name=opened.metadata.get_str("general.name", "") or opened.path.stem,
        quant=quants.of_file(_file_type(opened)) or _main_type(opened),
        architecture=opened.architecture,
        parts=_parts(opened, "token_embd.weight", "output.weight", lambda name: "_exps." in name, experts),
        layers=_gguf_layers(opened.architecture, meta),
        context=meta.number("context_length"),
        hidden=meta.number("embedding_length"),
        vocab=opened.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in opened.tensors else 0,
        queries=_largest(meta.each("attention.head_count")) * _head_dim(meta),
        exact=True,
        path=opened.path,
    )


def _of_safetensors(opened: SafetensorsFile) -> Anatomy:
    config = opened.config
    text = config.get("text_config")
    keys = _Keys(text if isinstance(text, Mapping) else config, "")
    count = keys.number("num_experts", "n_routed_experts", "num_local_experts")
    used = keys.number("num_experts_per_tok") / max(count, 1)
    embed = next(
        (n for n in opened.tensors if n.endswith(("embed_tokens.weight", "word_embeddings.weight"))), ""
    )
    return Anatomy(
        name=opened.path.name,
        quant=_main_type(opened),
        architecture=str(config.get("model_type", "")),
        parts=_parts(opened, embed, "lm_head.weight", lambda name: ".experts." in name, used),
        layers=_config_layers(keys),
        context=keys.number("max_position_embeddings"),
        hidden=keys.number("hidden_size"),
        vocab=opened.tensors[embed].shape[0] if embed else 0,
        queries=keys.number("num_attention_heads") * _config_head_dim(keys),
        exact=True,
        path=Path(opened.path),
    )


def _parts(
    opened: ModelFile, embed: str, head: str, is_expert: Callable[[str], bool], used: float
) -> tuple[Part, ...]:
    """Sum a file's tensors by role and type."""
    sums: dict[tuple[str, str, float], list[float]] = {}
    own_head = head in opened.tensors
    for tensor in opened.tensors.values():
        if tensor.name.startswith(_OUTSIDE):
            continue
        share = 1.0
        if tensor.name == embed and own_head:
            role, share = "embed", 1 / max(tensor.shape[0], 1)
        elif tensor.name in (embed, head):
            role = "head"
        elif is_expert(tensor.name):
            role, share = "experts", used
        else:
            role = "body" if len(tensor.shape) > 1 else "norms"
        weights, nbytes = sums.setdefault((role, tensor.type.name, share), [0.0, 0.0])
        sums[role, tensor.type.name, share] = [weights + math.prod(tensor.shape), nbytes + tensor.nbytes]
    return tuple(Part(role, kind, w, b, share) for (role, kind, share), (w, b) in sums.items())


def _file_type(opened: GGUFFile) -> int:
    return opened.metadata.get_int("general.file_type", -1)


def _main_type(opened: ModelFile) -> str:
    """Name the type that most bytes of the layers are in."""
    sums: dict[str, int] = {}
    for tensor in opened.tensors.values():
        if len(tensor.shape) > 1 and "embd" not in tensor.name:
            sums[tensor.type.name] = sums.get(tensor.type.name, 0) + tensor.nbytes
    return max(sums, key=lambda name: sums[name], default="")


# --- what a file's metadata says of its layers --------------------------------------------------------


class _Keys:
    """Sizes out of metadata that may lack any of them; a value that is not a size is an error with its key."""

    def __init__(self, values: Mapping[str, Any], prefix: str) -> None:
        self._values, self._prefix = values, prefix

    def get(self, key: str) -> Any:
        return self._values.get(self._prefix + key)

    def number(self, *keys: str) -> int:
        """Return the first of the keys that is there; 0 if none is."""
        return next((n for n in (_largest(self.each(k)) for k in keys) if n), 0)

    def each(self, key: str) -> list[int]:
        """Return the value of every layer, or the one of them all."""
        found = self.get(key)
        values = found.tolist() if hasattr(found, "tolist") else found
        values = values if isinstance(values, list) else [] if values is None else [values]
        for value in values:
            if type(value) is not int or not 0 <= value < 1 << 40:
                raise BadModelFile(f"{self._prefix}{key} is {str(value)[:40]!r}, which is not a size")
        return values


def _largest(values: list[int]) -> int:
    return max(values, default=0)


def _head_dim(meta: _Keys) -> int:
    heads = _largest(meta.each("attention.head_count"))
    return meta.number("attention.key_length") or (meta.number("embedding_length") // heads if heads else 0)


def _config_head_dim(keys: _Keys) -> int:
    heads = keys.number("num_attention_heads")
    return keys.number("head_dim") or (keys.number("hidden_size") // heads if heads else 0)


# Architectures that read whole texts and keep nothing of them, by GGUF's names and config.json's.
_ENCODERS = frozenset(
    (
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "mpnet",
        "nomic-bert",
        "nomic_bert",
        "jina-bert-v2",
        "modernbert",
    )
)
# Architectures in which only every so many layers see all positions, where files do not say which.
_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "llama4": 4, "olmo2": 4}
_RECURRENT = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}


def _gguf_layers(architecture: str, meta: _Keys) -> tuple[LayerSpec, ...]:
    """Group an architecture's layers by what they keep, by a GGUF's keys."""
    depth = meta.number("block_count")
    if architecture in _ENCODERS:
        return (LayerSpec("plain", depth),)
    if latent := meta.number("attention.kv_lora_rank"):
        return (LayerSpec("latent", depth, latent=latent, rope=meta.number("rope.dimension_count")),)
    head_dim = _head_dim(meta)
    value_dim = meta.number("attention.value_length") or head_dim
    heads = meta.each("attention.head_count_kv") or meta.each("attention.head_count")
    heads = heads if len(heads) == depth else heads[:1] * depth
    window, every = meta.number("attention.sliding_window"), _EVERY.get(architecture, 0)
    apart = meta.number("full_attention_interval") or _RECURRENT.get(architecture, 0)
    found: dict[LayerSpec, int] = {}
    for number, kv_heads in enumerate(heads, 1):
        if (apart and number % apart) or not kv_heads:
            layer = _recurrent(meta, architecture)
        elif window and every and number % every:
            layer = LayerSpec("window", 1, kv_heads, head_dim, value_dim, window)
        else:
            layer = LayerSpec("full", 1, kv_heads, head_dim, value_dim)
        found[layer] = found.get(layer, 0) + 1
    return _counted(found)


def _recurrent(meta: _Keys, architecture: str) -> LayerSpec:
    """Return a layer that keeps a state: Mamba-2's inner width x state, DeltaNet's heads x their squares."""
    inner, size = meta.number("ssm.inner_size"), meta.number("ssm.state_size")
    if not inner:
        return LayerSpec("plain", 1)
    groups, kernel = meta.number("ssm.group_count"), meta.number("ssm.conv_kernel")
    conv = (inner + 2 * groups * size) * max(kernel - 1, 0)
    return LayerSpec("deltanet" if architecture in _RECURRENT else "mamba2", 1, state=inner * size, conv=conv)


def _config_layers(keys: _Keys) -> tuple[LayerSpec, ...]:
    """Group layers by what they keep, by the keys of a config.json."""
    depth = keys.number("num_hidden_layers")
    if keys.get("model_type") in _ENCODERS:
        return (LayerSpec("plain", depth),)
    if latent := keys.number("kv_lora_rank"):
        return (LayerSpec("latent", depth, latent=latent, rope=keys.number("qk_rope_head_dim")),)
    kv_heads = keys.number("num_key_value_heads", "num_attention_heads")
    head_dim, window = _config_head_dim(keys), keys.number("sliding_window")
    every = keys.number("sliding_window_pattern", "_sliding_window_pattern")
    kinds = keys.get("layer_types")
    if not isinstance(kinds, list):
        kinds = ["sliding_attention" if window and every and i % every else "" for i in range(1, depth + 1)]
    found: dict[LayerSpec, int] = {}
    for kind in kinds:
        if kind == "linear_attention":
            layer = _deltanet(keys)
        elif kind == "sliding_attention" and window:
            layer = LayerSpec("window", 1, kv_heads, head_dim, window=window)
        else:
            layer = LayerSpec("full", 1, kv_heads, head_dim)
        found[layer] = found.get(layer, 0) + 1
    return _counted(found)


def _deltanet(keys: _Keys) -> LayerSpec:
    heads, key_heads = keys.number("linear_num_value_heads"), keys.number("linear_num_key_heads")
    key, value = keys.number("linear_key_head_dim"), keys.number("linear_value_head_dim")
    width = 2 * key_heads * key + heads * value
    conv = width * max(keys.number("linear_conv_kernel_dim") - 1, 0)
    return LayerSpec("deltanet", 1, state=heads * key * value, conv=conv)


def _counted(found: Mapping[LayerSpec, int]) -> tuple[LayerSpec, ...]:
    return tuple(replace(layer, count=count) for layer, count in found.items())
