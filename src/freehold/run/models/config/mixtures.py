"""The sizes and the router of a mixture of experts, as both file formats state them.

Knows the keys of experts and routers, and which layers have experts; knows no tensor and no arithmetic.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import Mixture, Routing, Sizes, check_width, hf_decoder

MAX_EXPERTS = 1 << 12
MAX_SCALE = 1e4
# Of all gates of a layer: five times Kimi K2's; layouts number them before a tensor is seen.
MAX_ROWS = 1 << 22
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
GATINGS = {1: "softmax", 2: "sigmoid", 3: "softmax"}  # 3: over the chosen logits alone, which renormalises


def mixture(
    experts: int, chosen: int, hidden: int, intermediate: int, layers: int, *, shared: int = 0, **options: Any
) -> Mixture:
    """Return a mixture whose sizes fit together and fit the kernels."""
    if (wide := chosen * max(hidden, intermediate)) > MAX_WIDTH:  # a step holds activations of all of them
        raise BadModelFile(
            f"the {chosen} experts of a token are {wide} wide together; the limit is {MAX_WIDTH}"
        )
    if (rows := experts * intermediate) > MAX_ROWS:
        raise BadModelFile(
            f"{experts} experts of {intermediate} have {rows} rows together; the limit is {MAX_ROWS}"
        )
    check_width("expert", intermediate)
    check_width("shared expert", shared)
    routing: Routing = options.get("routing", Routing())
    if experts % routing.groups:
        raise BadModelFile(f"{routing.groups} groups do not divide {experts} experts")
    if chosen > (most := routing.kept * experts // routing.groups):
        raise BadModelFile(f"a token is sent to {chosen} experts; {routing.kept} groups hold {most}")
    sparse = options.pop("sparse", (True,) * layers)
    return Mixture(
        experts=experts, chosen=chosen, intermediate=intermediate, shared=shared, sparse=sparse, **options
    )


def chosen_of(fields: Fields, key: str, experts: int) -> int:
    """Read how many of all experts a token is sent to."""
    chosen = fields.integer(key, 1, MAX_EXPERTS)
    if chosen > experts:
        raise BadModelFile(
            f"{fields.name(key)} is {chosen}: a token is sent to {chosen} of {experts} experts"
        )
    return chosen


def gguf_mixture(meta: Fields, sizes: dict[str, Any], **options: Any) -> Mixture:
    """Read the keys of experts; where none states their size, it is the dense one's, divided among the chosen.

    What the file states of its router counts over the `routing` that the family's models have.
    """
    options["routing"] = gguf_routing(meta, options.get("routing", Routing()))
    experts = meta.integer("expert_count", 1, MAX_EXPERTS)
    chosen = chosen_of(meta, "expert_used_count", experts)
    default = options.pop("intermediate", max(sizes["intermediate"][0] // chosen, 1))
    intermediate = meta.integer("expert_feed_forward_length", 1, MAX_WIDTH, default)
    return mixture(experts, chosen, sizes["hidden"], intermediate, len(sizes["heads"]), **options)


def gguf_shared_mixture(meta: Fields, sizes: dict[str, Any], routing: Routing) -> Mixture:
    """Read the keys of experts beside shared ones, which some of the layers have."""
    sparse = gguf_sparse(meta, len(sizes["heads"]))
    return gguf_mixture(meta, sizes, routing=routing, shared=gguf_shared(meta), sparse=sparse)


def hf_mixture(
    config: Fields,
    key: str,
    layers: int,
    *,
    chosen: str = "num_experts_per_tok",
    shared_experts: int = 0,
    **options: Any,
) -> Mixture:
    """Read how many experts there are, how many a token is sent to, and their intermediate size under `key`.

    Families name the count in one of four ways; transformers 5 writes `num_local_experts` for most. `shared_experts`:
    those as wide as the others that every token is sent to, which are one MLP.
    """
    stated = [name for name in _COUNTS if config.get(name) is not None]
    experts = config.integer(stated[0] if stated else _COUNTS[0], 1, MAX_EXPERTS)
    width = config.integer(key, 1, MAX_WIDTH)
    if shared_experts:
        options["shared"] = shared_experts * width
    hidden = config.integer("hidden_size", 1, MAX_WIDTH)
    return mixture(experts, chosen_of(config, chosen, experts), hidden, width, layers, **options)


def qwen_mixture(config: Fields, **options: Any) -> Sizes:
    """Read a Qwen mixture's sizes: weights divided by their sum only where stated, and layers of a dense MLP."""
    config.refuse("use_sliding_window", "a sliding window")
    sizes = hf_decoder(config)
    layers = len(sizes["heads"])
    routing = Routing(renormalise=config.flag("norm_topk_prob", False))
    options |= {"routing": routing, "sparse": sparse_layers(config, layers)}
    return Sizes(**sizes, mixture=hf_mixture(config, "moe_intermediate_size", layers, **options))


def sparse_layers(config: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers have experts: every `decoder_sparse_step`th, but for those in `mlp_only_layers`."""
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int for i in dense):
        raise BadModelFile(f"mlp_only_layers is {str(dense)[:60]}; expected a list of layers")
    step = config.integer("decoder_sparse_step", 1, MAX_LAYERS, 1)
    without = set(dense)
    return tuple(i not in without and (i + 1) % step == 0 for i in range(layers))


# --- routers -----------------------------------------------------------------------------------------


def gguf_routing(meta: Fields, assumed: Routing) -> Routing:
    """Read what a GGUF states of a router over what the family's models have where one states nothing."""
    _check_scoring(meta, assumed)
    scale = meta.number("expert_weights_scale", 0.0, MAX_SCALE, assumed.scale)
    groups = meta.integer("expert_group_count", 0, MAX_EXPERTS, assumed.groups) or 1
    return replace(
        assumed,
        renormalise=meta.flag("expert_weights_norm", assumed.renormalise),
        scale=scale or 1.0,  # some converters write 0 for none
        groups=groups,
        kept=meta.integer("expert_group_used_count", 1, groups, groups),
    )


def _check_scoring(meta: Fields, assumed: Routing) -> None:
    kind = meta.integer("expert_gating_func", 0, 255, 0)
    if kind and kind not in GATINGS:
        raise UnsupportedModel(
            f"{meta.name('expert_gating_func')} is {kind}; supported: 1 softmax, 2 sigmoid, 3 of the chosen"
        )
    stated = GATINGS.get(kind, assumed.scoring)
    if stated != assumed.scoring:
        raise UnsupportedModel(
            f"{meta.name('expert_gating_func')} is {kind}, {stated}; models of this architecture have {assumed.scoring}"
        )
    if kind == 3 and not assumed.renormalise:
        raise UnsupportedModel(
            f"{meta.name('expert_gating_func')} is 3; models of this architecture weigh by all experts"
        )


def hf_groups(config: Fields, routing: Routing) -> Routing:
    """Read the groups that experts are chosen from, and the factor and sum of weights, as DeepSeek names them."""
    groups = config.integer("n_group", 1, MAX_EXPERTS, 1)
    return replace(
        routing,
        groups=groups,
        kept=config.integer("topk_group", 1, groups, *([1] if groups == 1 else [])),
        renormalise=config.flag("norm_topk_prob", routing.renormalise),
        scale=config.number("routed_scaling_factor", 1e-6, MAX_SCALE, routing.scale),
    )


def gguf_shared(meta: Fields) -> int:
    """Return the width of the shared experts together; 0: there are none."""
    each = meta.integer("expert_feed_forward_length", 1, MAX_WIDTH)
    together = each * meta.integer("expert_shared_count", 0, MAX_EXPERTS, 0)
    return meta.integer("expert_shared_feed_forward_length", 0, MAX_WIDTH, together)


def gguf_sparse(meta: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers have experts: all but the first ones that are stated to be dense, at the stated interval."""
    first = meta.integer("leading_dense_block_count", 0, layers, 0)
    step = meta.integer("interleave_moe_layer_step", 0, MAX_LAYERS, 1) or 1
    return tuple(i >= first and (i + 1) % step == 0 for i in range(layers))


def listed_sparse(config: Fields, layers: int, default: int | None = None) -> tuple[bool, ...]:
    """Say which layers have experts: as listed for each, or all but the first; without a default one must be stated."""
    kinds = config.texts("mlp_layer_types", layers)
    if kinds is None:
        return dense_first(config, layers, default)
    for kind in kinds:
        if kind not in ("dense", "sparse"):
            raise UnsupportedModel(f"mlp_layer_types names {kind!r}; supported: dense, sparse")
    return tuple(kind == "sparse" for kind in kinds)


def dense_first(config: Fields, layers: int, default: int | None = None) -> tuple[bool, ...]:
    """Say which layers have experts: all but the first, whose number is stated, unless there is a default."""
    first = config.integer("first_k_dense_replace", 0, layers, *([] if default is None else [default]))
    return tuple(i >= first for i in range(layers))


# --- the experts of models with latent attention ----------------------------------------------------

# Sigmoids; a correction joins scores where experts are compared; groups by the sum of their best two.
SIGMOID = Routing(scoring="sigmoid", correction=True, group_score="top2", epsilon=1e-20)
SOFTMAX = Routing(group_score="top2", epsilon=1e-20)
V2 = Routing(renormalise=False, group_score="best")


def gguf_latent_mixture(meta: Fields, sizes: dict[str, Any], routing: Routing) -> Mixture:
    """Read a GGUF's experts; `routing` is what the file need not state of it."""
    layers = len(sizes["heads"])
    first = meta.integer("leading_dense_block_count", 0, layers, 0)
    width = meta.integer("expert_feed_forward_length", 1, MAX_WIDTH)
    return gguf_mixture(
        meta,
        sizes,
        intermediate=width,
        shared=width * meta.integer("expert_shared_count", 0, 64, 0),
        routing=routing,
        sparse=tuple(i >= first for i in range(layers)),
    )


def hf_latent_mixture(config: Fields, sizes: dict[str, Any], routing: Routing) -> Mixture:
    """Read config.json's experts; all shared ones of a layer are one MLP."""
    layers = len(sizes["heads"])
    if config.integer("moe_layer_freq", 1, MAX_LAYERS, 1) != 1:
        raise UnsupportedModel(
            "moe_layer_freq is not 1: dense layers between those of experts are not supported"
        )
    if routing.scoring == "sigmoid":  # no tensor tells it, and each class assumes another
        config.number("routed_scaling_factor", 1e-6, MAX_SCALE)
    width = config.integer("moe_intermediate_size", 1, MAX_WIDTH)
    experts = config.integer("n_routed_experts", 1, MAX_EXPERTS)
    return mixture(
        experts,
        chosen_of(config, "num_experts_per_tok", experts),
        sizes["hidden"],
        width,
        layers,
        shared=width * config.integer("n_shared_experts", 0, 64, 0),
        routing=hf_groups(config, routing),
        sparse=listed_sparse(config, layers),
    )


def state_groups(config: Fields) -> None:
    """Raise where a config does not state its groups: V3's class assumes 8 and 4, which no tensor would contradict."""
    for key in ("n_group", "topk_group"):
        config.integer(key, 1, MAX_EXPERTS)
