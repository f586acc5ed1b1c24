"""Reads a model's sizes from its file: GGUF or safetensors, headers alone, no weight.

Tensors give bytes by role and type; metadata give what each layer keeps. Knows two formats' keys; knows no catalogue,
no machine and no engine.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.base.catalog import quants
from freehold.base.errors import BadModelFile
from freehold.base.layers import LayerSpec
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup

if TYPE_CHECKING:
    from freehold.run.formats import GGUFFile, ModelFile, SafetensorsFile, Tensor


_TOWERS = ("vision_", "visual.", "multi_modal", "audio_")
_HEAD = re.compile(r"(model\.)?mtp\.")  # a head that drafts, where files do not count it as a layer
_LAYER = re.compile(r"(?:blk|model\.layers)\.(\d+)\.")
_OUTSIDE = ("v.", "mm.", *_TOWERS, *(f"model.{name}" for name in _TOWERS))  # no text

# Stacked, or each apart: in safetensors, and in GGUFs of early 2024 (ffn_up.3.weight).
_EXPERTS = re.compile(
    r"_exps\.|\.experts\.|block_sparse_moe\.(in|out)put_linear|\.moe\.(gate|up|down)_proj"
    r"|ffn_(gate|up|down)\.\d+\.weight"
)


def from_file(path: str | Path, rounding: str = "") -> Anatomy:
    """Compute the sizes of a GGUF file or a folder of safetensors from its headers: no weight is read.

    `rounding`: what a folder's float weights are rounded to when they are packed: q8, q6, q4.
    Raises what formats.open_model_file raises; BadModelFile where the file does not state its layers.
    """
    from freehold.run.formats import GGUFFile, open_model_file

    with open_model_file(path) as opened:
        return _of_gguf(opened) if isinstance(opened, GGUFFile) else _of_safetensors(opened, rounding)


def _of_gguf(opened: GGUFFile) -> Anatomy:
    meta = SizeKeys(opened.metadata, f"{opened.architecture}.")
    experts = meta.number("expert_used_count") / max(meta.number("expert_count"), 1)
    return Anatomy(
        name=opened.metadata.get_str("general.name", "") or opened.path.stem,
        quant=quants.of_file(opened.metadata.get_int("general.file_type", -1)) or _main_type(opened),
        architecture=opened.architecture,
        parts=_parts(opened, "token_embd.weight", "output.weight", experts),
        layers=gguf_layers(opened.architecture, meta),
        context=gguf_context(meta),
        index_topk=meta.number("attention.indexer.top_k"),
        hidden=meta.number("embedding_length"),
        vocab=opened.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in opened.tensors else 0,
        queries=largest(meta.each("attention.head_count")) * query_width(meta),
        exact=True,
        path=opened.path,
    )


_EMBEDDINGS = tuple(
    f"{name}.weight" for name in ("embed_tokens", "word_embeddings", "backbone.embeddings", "embed_in", "wte")
)
# What config.json of GPT-2 and Falcon's first files calls the sizes that others name as below.
_OLD_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_head_kv": "num_kv_heads",
}
_FALCONS = ("falcon", "RefinedWeb", "RefinedWebModel")


def _of_safetensors(opened: SafetensorsFile, rounding: str) -> Anatomy:
    config = opened.config
    if config.get("model_type") == "whisper":
        return _of_whisper(opened, rounding)
    text = config.get("text_config")
    stated = text if isinstance(text, Mapping) else config
    keys = SizeKeys(_renamed(stated), "")
    count = keys.number("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
    used = keys.number("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k") / max(count, 1)
    embed = next(
        (n for n in opened.tensors if n.endswith(_EMBEDDINGS)),
        "",
    )
    head = "embed_out.weight" if "embed_out.weight" in opened.tensors else "lm_head.weight"
    return Anatomy(
        name=opened.path.name,
        quant=rounding or _main_type(opened),
        architecture=str(config.get("model_type", "")),
        parts=_parts(opened, embed, head, used, rounding),
        layers=config_layers(keys),
        context=config_context(keys),
        index_topk=keys.number("index_topk"),
        hidden=keys.number("hidden_size"),
        vocab=opened.tensors[embed].shape[0] if embed else 0,
        queries=keys.number("num_attention_heads") * config_query_width(keys),
        exact=True,
        path=Path(opened.path),
    )


def _renamed(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config.json with today's names, and as many key heads as one of a family of shared ones has."""
    kind = stated.get("model_type")
    if kind not in ("gpt2", "gpt_bigcode", *_FALCONS):
        return stated
    named = {_OLD_NAMES.get(key, key): value for key, value in stated.items()}
    if kind == "gpt_bigcode":
        return named | {"num_key_value_heads": 1}
    if kind in _FALCONS:
        shared = named.get("multi_query", True) is True
        own = named.get("num_kv_heads") if named.get("new_decoder_architecture") else 1 if shared else None
        return named | {"num_key_value_heads": own or named.get("num_attention_heads")}
    return named


def _of_whisper(opened: SafetensorsFile, rounding: str) -> Anatomy:
    """Compute the sizes of a decoder of speech, whose sequences begin with sound; its encoder is a tower."""
    config, embed = opened.config, "model.decoder.embed_tokens.weight"
    width, heads = config.get_int("d_model"), max(config.get_int("decoder_attention_heads"), 1)
    count = config.get_int("decoder_layers")
    return Anatomy(
        name=opened.path.name,
        quant=rounding or _main_type(opened),
        architecture="whisper",
        parts=_parts(opened, embed, "lm_head.weight", 1.0, rounding, apart="model.encoder."),
        layers=(LayerSpec("full", count, heads, width // heads),),
        context=config.get_int("max_source_positions") + config.get_int("max_target_positions"),
        hidden=width,
        vocab=opened.tensors[embed].shape[0] if embed in opened.tensors else 0,
        queries=width,
        exact=True,
        path=Path(opened.path),
    )


def of_expert(name: str) -> bool:
    """Say whether a tensor belongs to one of many experts, by its name in either format."""
    return _EXPERTS.search(name) is not None


def _parts(
    opened: ModelFile, embed: str, head: str, used: float, rounding: str = "", apart: str = "\0"
) -> tuple[WeightGroup, ...]:
    sums: dict[tuple[str, str, float], list[float]] = {}
    own_head, depth = head in opened.tensors, _depth(opened)
    for tensor in opened.tensors.values():
        if tensor.name.startswith((*_OUTSIDE, apart)):
            continue
        share = 1.0
        if _drafts(tensor.name, depth):
            role, share = "drafts", 0.0
        elif tensor.name == embed and own_head:
            role, share = "embed", 1 / max(tensor.shape[0], 1)
        elif tensor.name in (embed, head):
            role = "head"
        elif tensor.name.endswith("bias"):
            role = "norms"
        elif of_expert(tensor.name):
            role, share = "experts", used
        else:
            role = "body" if len(tensor.shape) > 1 else "norms"
        count = _weights(tensor)
        kind = rounded_type(tensor.name, tensor.type.name, tensor.shape, rounding)
        held = tensor.nbytes if kind == tensor.type.name else stored_bytes(count, kind)
        weights, nbytes = sums.setdefault((role, kind, share), [0.0, 0.0])
        sums[role, kind, share] = [weights + count, nbytes + held]
    return tuple(WeightGroup(role, kind, w, b, share) for (role, kind, share), (w, b) in sums.items())


def _depth(opened: ModelFile) -> int:
    """Return how many layers a model has, without those that draft; 0 where its file does not say."""
    stated: Mapping[str, Any] = getattr(opened, "config", None) or getattr(opened, "metadata", {})
    name = f"{stated.get('general.architecture', '')}."
    text = stated.get("text_config")
    layers = (text if isinstance(text, dict) else stated).get("num_hidden_layers")
    if layers is None:
        layers, drafts = stated.get(f"{name}block_count"), stated.get(f"{name}nextn_predict_layers", 0)
        layers = layers - drafts if isinstance(layers, int) and isinstance(drafts, int) else 0
    return layers if isinstance(layers, int) else 0


def _drafts(name: str, depth: int) -> bool:
    """Say whether a tensor belongs to a head that predicts further tokens."""
    layer = _LAYER.match(name)
    return _HEAD.match(name) is not None or (layer is not None and 0 < depth <= int(layer.group(1)))


def _weights(tensor: Tensor) -> int:
    """Count the weights of a tensor; MXFP4's bytes, in safetensors, hold two, and its scales none."""
    if tensor.type.name == "U8":
        return 2 * math.prod(tensor.shape) if tensor.name.endswith("_blocks") else 0
    return math.prod(tensor.shape)


def _main_type(opened: ModelFile) -> str:
    sums: dict[str, int] = {}
    for tensor in opened.tensors.values():
        if len(tensor.shape) > 1 and "embd" not in tensor.name:
            sums[tensor.type.name] = sums.get(tensor.type.name, 0) + tensor.nbytes
    return max(sums, key=lambda name: sums[name], default="")


# Architectures that read whole texts and keep nothing of them, by GGUF's names and config.json's.
_ENCODERS = {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert", "jina-bert-v2"}
_ENCODERS |= {"nomic-bert", "nomic_bert"}
# Architectures in which only every n-th layer has full attention and files do not say which; none: _NONE.
_NONE = 1 << 20  # more than there are layers
_WINDOWED = dict.fromkeys(
    ("llama", "olmoe", "qwen2", "qwen2moe", "qwen3", "qwen3moe"), _NONE
)  # if a GGUF states a window
_CONFIG_WINDOWED: dict[str, int] = dict.fromkeys(("mistral", "mixtral", "phi3", "starcoder2"), _NONE) | {
    "gpt_oss": 2,
    "olmo3": 4,
    "afmoe": 4,
    "cohere2_moe": 4,
    "exaone_moe": 4,
    "kolibri1": 5,
}
_EVERY = _WINDOWED | {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "cohere2": 4,
    "llama4": 4,
    "olmo2": 4,
    "exaone4": 4,
    "exaone-moe": 4,
    "afmoe": 4,
    "cohere2moe": 4,
    "gemma4": 6,
    "phi3": _NONE,
}
_FULL_FIRST = {"laguna": 4}  # of each four layers the first has full attention
_CHUNKS = {"llama4": 8192}  # tokens of a chunk, which files do not state
_RECURRENT = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
# Architectures whose layers without heads may be an MLP or experts alone, and those that attend beside a state.
_ONE_PART = frozenset(("nemotron_h", "nemotron_h_moe"))
_SIDE_BY_SIDE = frozenset(("falcon-h1", "falcon_h1"))
# What a config.json of Mamba-2's users calls heads, their width, states, groups and the convolution's inputs.
_MIXER = ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv")
_MAMBA = {
    "mamba2": ("num_heads", "head_dim", "state_size", "n_groups", "conv_kernel"),
    "nemotron_h": ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel"),
    "granitemoehybrid": _MIXER,
    "falcon_h1": _MIXER,
}
# The same of Mamba-1's: states and the convolution's inputs; as many channels as the hidden width times the factor.
_SELECTIVE = {
    "mamba": ("expand", "state_size", "conv_kernel"),
    "falcon_mamba": ("expand", "state_size", "conv_kernel"),
    "jamba": ("mamba_expand", "mamba_d_state", "mamba_d_conv"),
}
_TAPS = 3  # of LFM2's convolutions, where config.json does not say
_ATTENDS, _NEITHER = ("*", "attention", "full_attention"), ("-", "E", "mlp", "moe")  # of such a pattern


def gguf_layers(architecture: str, meta: SizeKeys) -> tuple[LayerSpec, ...]:
    """Group an architecture's layers by what they keep, by a GGUF's keys."""
    counted = meta.layers("block_count")
    depth = max(counted - meta.number("nextn_predict_layers"), 0)  # those after them predict further tokens
    if architecture in _ENCODERS:
        return (LayerSpec("plain", depth),)
    heads = meta.each("attention.head_count_kv") or meta.each("attention.head_count")
    heads = heads[:depth] if len(heads) == counted else heads[:1] * depth
    if latent := meta.number("attention.kv_lora_rank"):
        attends = LayerSpec("latent", latent=latent, rope=meta.number("rope.dimension_count"))
        if index := meta.number("attention.indexer.key_length"):
            return _indexed(attends, index, meta.get("attention.indexer.types"), depth)
        without = sum(not n for n in heads) if meta.number("kda.head_dim") else 0
        both = {_recurrent(meta, architecture): without, attends: depth - without}
        return _counted({layer: count for layer, count in both.items() if count})
    head_dim = head_dim_of(meta)
    value_dim = meta.number("attention.value_length") or head_dim
    window = meta.number("attention.sliding_window") or _CHUNKS.get(architecture, 0)
    window = window if window < (meta.number("context_length") or _NONE) else 0  # Phi-3.5's hides nothing
    slides = meta.flags("attention.sliding_window_pattern", depth, _EVERY.get(architecture, 0))
    if (first := _FULL_FIRST.get(architecture)) and meta.get("attention.sliding_window_pattern") is None:
        slides = [number % first != 0 for number in range(depth)]
    sharing = depth - meta.number("attention.shared_kv_layers")  # layers from there on read others' keys
    narrow = meta.number("attention.key_length_swa") or head_dim
    apart = meta.number("full_attention_interval") or _RECURRENT.get(architecture, 0)
    wide = meta.each("feed_forward_length") if architecture in _ONE_PART else ()
    states = meta.flags("attention.recurrent_layers", depth, apart)
    counts: Counter[LayerSpec] = Counter()
    for number, kv_heads in enumerate(heads, 1):
        if not kv_heads and len(wide) == counted and wide[number - 1]:
            layer = LayerSpec("plain", 1)
        elif architecture in _SIDE_BY_SIDE:
            layer = _beside(
                LayerSpec("full", 1, kv_heads, head_dim, value_dim), _recurrent(meta, architecture)
            )
        elif states[number - 1] or not kv_heads:
            layer = _recurrent(meta, architecture)
        elif number > sharing:
            layer = LayerSpec("plain", 1)
        elif window and slides[number - 1]:
            width = value_dim if narrow == head_dim else narrow
            layer = LayerSpec("window", 1, kv_heads, narrow, width, window)
        else:
            layer = LayerSpec("full", 1, kv_heads, head_dim, value_dim)
        counts[layer] += 1
    return _counted(counts)


def _recurrent(meta: SizeKeys, architecture: str) -> LayerSpec:
    """Return a layer that keeps a state: Mamba-2's inner width x state, DeltaNet's heads x their squares."""
    if taps := meta.number("shortconv.l_cache"):
        return LayerSpec("shortconv", conv=(taps - 1) * meta.number("embedding_length"))
    if width := meta.number("kda.head_dim"):
        return _kda(meta.number("attention.head_count"), width, meta.number("ssm.conv_kernel"))
    inner, size = meta.number("ssm.inner_size"), meta.number("ssm.state_size")
    if not inner:
        return LayerSpec("plain", 1)
    groups, kernel = meta.number("ssm.group_count"), meta.number("ssm.conv_kernel")
    if architecture not in _RECURRENT:
        return _mamba2(inner, size, groups, kernel)
    return _delta("deltanet", meta.number("ssm.time_step_rank"), inner, groups, size, kernel)


def _delta(kind: str, heads: int, inner: int, key_heads: int, key: int, kernel: int) -> LayerSpec:
    """Return a delta rule's layer: a matrix a value head, whose columns the engine keeps in blocks of sixteen."""
    columns = -(-inner // max(heads, 1))
    conv = (2 * key_heads * key + inner) * max(kernel - 1, 0)
    return LayerSpec(kind, 1, state=heads * key * (-(-columns // 16) * 16), conv=conv)


def _mamba2(inner: int, size: int, groups: int, kernel: int) -> LayerSpec:
    conv = (inner + 2 * groups * size) * max(kernel - 1, 0)
    return LayerSpec("mamba2", 1, state=inner * size, conv=conv)


def _kda(heads: int, width: int, kernel: int) -> LayerSpec:
    """Return a delta rule with a decay for each key, behind three convolutions."""
    return _delta("linear", heads, heads * width, heads, width, kernel)


def _beside(attention: LayerSpec, state: LayerSpec) -> LayerSpec:
    return replace(attention, state=state.state, conv=state.conv)


def config_layers(keys: SizeKeys) -> tuple[LayerSpec, ...]:
    """Group layers by what they keep, by the keys of a config.json."""
    depth = keys.layers("num_hidden_layers")
    if str(keys.get("model_type")) in _ENCODERS:
        return (LayerSpec("plain", depth),)
    if latent := keys.number("kv_lora_rank"):
        attends = LayerSpec("latent", latent=latent, rope=keys.number("qk_rope_head_dim"))
        if index := keys.number("index_head_dim"):
            return _indexed(attends, index, _indexers(keys, depth), depth)
        return _latent_layers(keys, attends, depth)
    if (model := str(keys.get("model_type"))) in _MAMBA:
        return _mamba_layers(keys, model)
    if model in _SELECTIVE:
        return _selective_layers(keys, depth, *_SELECTIVE[model])
    kv_heads = keys.number("num_key_value_heads", "num_attention_groups", "num_attention_heads")
    sliding_heads = keys.number("swa_num_key_value_heads") or kv_heads * (
        2 if model == "mimo_v2_flash" else 1
    )
    value_dim = keys.number("v_head_dim") or None
    head_dim, window = config_head_dim(keys), config_window(keys)
    window = window if window < (keys.number("max_position_embeddings") or _NONE) else 0
    every = keys.number("sliding_window_pattern", "_sliding_window_pattern")
    every = every or _CONFIG_WINDOWED.get(str(keys.get("model_type")), 0)
    kinds = keys.get("layer_types")
    if not isinstance(kinds, list) and isinstance(pattern := keys.get("hybrid_layer_pattern"), list):
        kinds = ["sliding_attention" if slides else "" for slides in pattern]
    if not isinstance(kinds, list) and isinstance(attending := keys.get("full_attn_idxs"), list):
        kinds = ["" if i in attending else "conv" for i in range(depth)]
    if not isinstance(kinds, list):
        # the first to slide
        first = keys.number("max_window_layers") if keys.get("model_type") == "dots1" else 0
        slides = [i > first if first else bool(every and i % every) for i in range(1, depth + 1)]
        kinds = ["sliding_attention" if window and slide else "" for slide in slides]
    counts: Counter[LayerSpec] = Counter()
    sharing = depth - keys.number("num_kv_shared_layers")  # layers from there on read others' keys
    for number, kind in enumerate(kinds[:depth]):
        if number >= sharing:
            layer = LayerSpec("plain", 1)
        elif kind == "linear_attention":
            layer = _deltanet(keys)
        elif kind == "conv":
            taps = keys.number("conv_L_cache") or _TAPS
            layer = LayerSpec("shortconv", conv=(taps - 1) * keys.number("hidden_size"))
        elif kind in ("sliding_attention", "chunked_attention") and window:
            layer = LayerSpec("window", 1, sliding_heads, head_dim, value_dim, window)
        else:
            layer = LayerSpec("full", 1, *_full_heads(keys, number, kv_heads, head_dim), value_dim)
        counts[layer] += 1
    return _counted(counts)


def _selective_layers(
    keys: SizeKeys, depth: int, grown: str, states: str, kernel: str
) -> tuple[LayerSpec, ...]:
    """Group layers of Mamba-1, alone or with one that attends in a period."""
    inner = (keys.number(grown) or 2) * keys.number("hidden_size")
    state = _mamba2(inner, keys.number(states) or 16, 0, keys.number(kernel) or 4)
    period = keys.number("attn_layer_period")
    full = LayerSpec("full", 1, keys.number("num_key_value_heads"), config_head_dim(keys))
    attends = sum(i % period == keys.number("attn_layer_offset") for i in range(depth)) if period else 0
    both = {state: depth - attends, full: attends}
    return _counted({layer: count for layer, count in both.items() if count})


def _full_heads(keys: SizeKeys, layer: int, kv_heads: int, head_dim: int) -> tuple[int, int]:
    """Return how many heads a full layer has and how wide they are, where that is not what sliding ones have."""
    each = keys.get("per_layer_config")
    own = each.get(str(layer)) if isinstance(each, Mapping) else None
    own = own if isinstance(own, Mapping) else {}
    apart = keys.number("num_global_key_value_heads") if keys.get("attention_k_eq_v") is True else 0
    sizes = SizeKeys({"kv": own.get("num_key_value_heads"), "dim": own.get("head_dim")}, "")
    return sizes.number("kv") or apart or kv_heads, sizes.number("dim") or keys.number(
        "global_head_dim"
    ) or head_dim


def _indexers(keys: SizeKeys, depth: int) -> list[bool] | None:
    """Tell which layers have an indexer of their own, by a config.json; None: it does not say."""
    stated = keys.get("indexer_types") or keys.get("index_topk_pattern")
    if isinstance(stated, list | str):
        return [each in ("full", "F") for each in stated]
    if (period := keys.number("index_topk_freq")) < 2:
        return None
    offset = keys.number("index_skip_topk_offset") if keys.get("index_skip_topk_offset") is not None else 2
    return [max(i - offset + 1, 0) % period == 0 for i in range(depth)]


def _indexed(attends: LayerSpec, index: int, stated: object, depth: int) -> tuple[LayerSpec, ...]:
    """Group layers of latent attention by whether they keep an index's keys; all do where nothing is stated."""
    own = sum(map(bool, list(stated)[:depth])) if isinstance(stated, Iterable) else depth
    both = {replace(attends, index=index): own, attends: depth - own}
    return _counted({layer: count for layer, count in both.items() if count})


def _latent_layers(keys: SizeKeys, attends: LayerSpec, depth: int) -> tuple[LayerSpec, ...]:
    """Group layers of latent attention; where some are recurrent, `linear_attn_config` counts them."""
    linear = keys.get("linear_attn_config")
    if every := keys.number("layer_group_size"):
        width, kernel = keys.number("linear_head_dim", "head_dim"), keys.number("short_conv_kernel_size")
        grouped, kinds = _kda(keys.number("num_attention_heads"), width, kernel or 4), keys.get("layer_types")
        full = kinds[:depth].count("full_attention") if isinstance(kinds, list) else depth // every
        return _counted({grouped: depth - full, attends: full})
    if not isinstance(linear, Mapping):
        return _counted({attends: depth})
    sizes = SizeKeys(linear, "")
    state = _kda(sizes.number("num_heads"), sizes.number("head_dim"), sizes.number("short_conv_kernel_size"))
    without = len(sizes.each("kda_layers"))
    return _counted({state: without, attends: depth - without})


def _mamba_layers(keys: SizeKeys, model: str) -> tuple[LayerSpec, ...]:
    """Group layers of Mamba-2, alone, beside attention or by a pattern of letters or names."""
    heads, width, size, groups, kernel = (keys.number(key) for key in _MAMBA[model])
    state = _mamba2(heads * width, size, groups, kernel)
    full = LayerSpec("full", 1, keys.number("num_key_value_heads"), config_head_dim(keys))
    pattern = keys.get("hybrid_override_pattern") or keys.get("layers_block_type") or keys.get("layer_types")
    if not isinstance(pattern, str | list):
        pattern = [""] * keys.layers("num_hidden_layers")
    counts: Counter[LayerSpec] = Counter()
    for kind in pattern:
        layer = full if kind in _ATTENDS else LayerSpec("plain", 1) if kind in _NEITHER else state
        layer = _beside(full, state) if model in _SIDE_BY_SIDE else layer
        counts[layer] += 1
    return _counted(counts)


def _deltanet(keys: SizeKeys) -> LayerSpec:
    heads, key_heads = keys.number("linear_num_value_heads"), keys.number("linear_num_key_heads")
    key, value = keys.number("linear_key_head_dim"), keys.number("linear_value_head_dim")
    kernel = keys.number("linear_conv_kernel_dim") or 4  # as the families assume
    return _delta("deltanet", heads, heads * value, key_heads, key, kernel)


def _counted(counts: Mapping[LayerSpec, int]) -> tuple[LayerSpec, ...]:
    return tuple(replace(layer, count=count) for layer, count in counts.items())


# --- the type that a float tensor of safetensors is rounded to when it is packed --------------------
# By `freehold pull --quant`.
# The rule of the engine's packer as far as bytes depend on it, by a tensor's name and shape; imports none of
# it, and a test holds the two together. Where a file holds several matrices as one, they count as one type.

ROUNDINGS = {"q8": "Q8_0", "q6": "Q6_K", "q4": "Q4_K"}  # of most matrices
_FLOATS = ("BF16", "F16", "F32")
_FINER = "Q6_K"  # what q4 makes of values, of MLPs' outputs, of the head and of the embedding
_FINER_NAMES = ("v_proj", "down_proj", "w2", "fc2", "lm_head", "embed_tokens", "embeddings", "output_linear")
_ROUTERS = ("gate.weight", "router.weight", "router.layer.weight")  # which are computed in floats
_BLOCKS = {"Q8_0": 32}  # inputs of a block; of others 256


def rounded_type(name: str, type: str, shape: tuple[int, ...], rounding: str) -> str:
    """Return a tensor's type after the rounding; its own where that leaves it as it is."""
    if rounding not in ROUNDINGS or type not in _FLOATS or len(shape) < 2 or name.endswith(_ROUTERS):
        return type
    finer = rounding == "q4" and any(part in _FINER_NAMES for part in name.split("."))
    wanted = _FINER if finer else ROUNDINGS[rounding]
    for candidate in (wanted, "Q8_0"):
        if shape[-1] % _BLOCKS.get(candidate, 256) == 0:
            return candidate
    return type


def stored_bytes(weights: float, type: str) -> float:
    """Return the bytes of `weights` weights of a type."""
    return weights * quants.bits(type) / 8


# --- the tokens that a file says its model was made for and those that its windows hold -------------
# As the engine reads it.
# YaRN stretches the original positions by its factor; Kimi Linear states its length under a key of its own.

# Windows of a config.json without the key, as its class in transformers has it.
_UNSTATED_WINDOWS = dict.fromkeys(
    ("mistral", "ministral", "dots1", "gemma2", "gemma3_text", "cohere2", "exaone4", "exaone_moe", "olmo3"),
    4096,
) | {
    "gpt_oss": 128,
    "granite_swa": 128,
    "gemma3n_text": 512,
    "gemma4_text": 512,
    "gemma4_unified_text": 1024,
    "afmoe": 1024,
    "mellum": 1024,
    "kolibri1": 513,
    "laguna": 512,
    "lfm3": 256,
    "cohere2_moe": 4096,
    "mimo_v2_flash": 129,
}


def gguf_context(meta: SizeKeys) -> int:
    """Return the tokens by the keys of a GGUF; 0: not stated."""
    stated = meta.number("context_length")
    if meta.get("rope.scaling.type") != "yarn":
        return stated
    return _stretched(
        stated, meta.number("rope.scaling.original_context_length"), meta.get("rope.scaling.factor")
    )


def config_context(keys: SizeKeys) -> int:
    """Return the tokens by the keys of a config.json, in either dialect of its rope; 0: not stated."""
    stated = keys.number("max_position_embeddings", "model_max_length")
    rope = keys.get("rope_parameters") or keys.get("rope_scaling")
    if not isinstance(rope, Mapping) or "yarn" not in (rope.get("rope_type"), rope.get("type")):
        return stated
    original = SizeKeys(rope, "").number("original_max_position_embeddings")
    return _stretched(stated, original, rope.get("factor"))


def config_window(keys: SizeKeys) -> int:
    """Return the window that a config.json states, or that its class takes where it states none; 0: none."""
    if before := keys.number("sliding_window_size"):
        return before + 1  # MiMo V2's counts the tokens before a token's own
    if "sliding_window" in keys:
        return keys.number("sliding_window")
    return keys.number("attention_chunk_size") or _UNSTATED_WINDOWS.get(str(keys.get("model_type")), 0)


def _stretched(context: int, original: int, factor: object) -> int:
    if not isinstance(factor, int | float) or not 1 <= factor <= 1e6:
        return context
    return max(context, int((original or context) * factor))


# --- sizes as a file's metadata states them: a number, a list of one a layer, or nothing ------------

MAX_LAYERS = 1024  # as many as families take


class SizeKeys:
    """Sizes out of metadata that may lack any of them; a value that is not a size is an error with its key."""

    def __init__(self, values: Mapping[str, Any], prefix: str) -> None:
        self._values, self._prefix = values, prefix

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._values

    def get(self, key: str) -> Any:
        return self._values.get(self._prefix + key)

    def number(self, *keys: str) -> int:
        """Return the first of the keys that is there; 0 if none is."""
        return next((n for n in (largest(self.each(k)) for k in keys) if n), 0)

    def layers(self, key: str) -> int:
        """Return how many layers there are; no more than a list of them may take."""
        if (count := self.number(key)) > MAX_LAYERS:
            raise BadModelFile(f"{self._prefix}{key} is {count}; the limit is {MAX_LAYERS}")
        return count

    def flags(self, key: str, depth: int, every: int) -> list[bool]:
        """Return a flag of each layer, as metadata list them; else they are set in all but every n-th, 0: in none."""
        stored = self.get(key)
        listed = stored.tolist() if hasattr(stored, "tolist") else stored
        if isinstance(listed, list) and len(listed) >= depth:
            return [bool(flag) for flag in listed]
        return [bool(every and n % every) for n in range(1, depth + 1)]

    def each(self, key: str) -> list[int]:
        """Return the value of every layer, or the one of them all."""
        stored = self.get(key)
        values = stored.tolist() if hasattr(stored, "tolist") else stored
        values = values if isinstance(values, list) else [] if values is None else [values]
        for value in values:
            if type(value) is not int or not 0 <= value < 1 << 40:
                raise BadModelFile(f"{self._prefix}{key} is {str(value)[:40]!r}, which is not a size")
        return values


def largest(values: list[int]) -> int:
    """Return the greatest, 0 of none."""
    return max(values, default=0)


def head_dim_of(meta: SizeKeys) -> int:
    """Return the width of a key, by a GGUF's keys."""
    heads = largest(meta.each("attention.head_count"))
    return meta.number("attention.key_length") or (meta.number("embedding_length") // heads if heads else 0)


def config_head_dim(keys: SizeKeys) -> int:
    """Return the width of a key, by a config.json's keys."""
    heads = keys.number("num_attention_heads")
    return keys.number("head_dim") or (keys.number("hidden_size") // heads if heads else 0)


def query_width(meta: SizeKeys) -> int:
    """Return the width of a query head by a GGUF's keys; of latent attention, in the latents' space."""
    latent = meta.number("attention.kv_lora_rank")
    return latent + meta.number("rope.dimension_count") if latent else head_dim_of(meta)


def config_query_width(keys: SizeKeys) -> int:
    """Return the same by a config.json's keys."""
    latent = keys.number("kv_lora_rank")
    return latent + keys.number("qk_rope_head_dim") if latent else config_head_dim(keys)
