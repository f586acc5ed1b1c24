"""Jamba: Mamba-1 mixers, one layer of attention without positions in a period, and experts in every second layer.

What steps, B and C are made of is normalised. A softmax over all experts weighs those of a token, and is not
renormalised. With one expert, as Jamba 3B has, layers have an MLP. A GGUF does not state which layers have experts:
as in all published models, every second one.
Source: arXiv 2403.19887.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.run.formats.fields import MAX_LAYERS, Fields
from freehold.run.models.config.mixtures import chosen_of, hf_mixture, mixture
from freehold.run.models.config.sizes import Mixture, Routing, Sizes, gguf_sizes, hf_sizes
from freehold.run.models.family import Family, LayerPart
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.mamba import Mamba1, SelectiveSizes, gguf_selective, hf_selective
from freehold.run.models.parts.moe import Moe, MoeNames, apart, either, fused

ROUTING = Routing(renormalise=False)
PERIOD, OFFSET = 2, 1  # of layers with experts
NORM = "pre_ff_layernorm"
EXPERTS = "feed_forward.experts"
NAMES = MoeNames(
    experts=either(apart(f"{EXPERTS}.{{e}}"), fused(f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj")),
    router="feed_forward.router.weight",
    norm=NORM,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JambaSizes(Sizes):
    """Sizes of a Jamba; a layer without kv heads has a mixer."""

    mamba: SelectiveSizes
    conv_bias: bool = True


def config_from_gguf(meta: Fields, vocab: int) -> JambaSizes:
    """Read the keys under `jamba.`; a layer without key heads has no query heads either."""
    sizes = gguf_sizes(meta, vocab, adjacent=False, least_heads=0)
    layers = len(sizes["heads"])
    experts = meta.integer("expert_count", 0, 1 << 12, 0)
    experts_of = None
    if experts > 1:
        chosen = chosen_of(meta, "expert_used_count", experts)
        options = {"routing": ROUTING, "sparse": _every(layers, PERIOD, OFFSET)}
        experts_of = mixture(experts, chosen, sizes["hidden"], sizes["intermediate"][0], layers, **options)
    sizes["rope"] = None
    return JambaSizes(**sizes, mixture=experts_of, mamba=gguf_selective(meta))


def config_from_hf(config: Fields) -> JambaSizes:
    config.require("hidden_act", ("silu",), "silu")
    config.refuse("mamba_proj_bias", "a bias on the mixer's projections")
    config.refuse("sliding_window", "a sliding window")
    sizes = hf_sizes(config, eps=1e-6)
    layers = len(sizes["heads"])
    period = config.integer("attn_layer_period", 1, MAX_LAYERS, 8)
    attends = _every(layers, period, config.integer("attn_layer_offset", 0, period - 1, min(4, period - 1)))
    keys = {"states": "mamba_d_state", "rank": "mamba_dt_rank", "kernel": "mamba_d_conv"}
    heads = zip(sizes["kv_heads"], attends, strict=True)
    sizes["kv_heads"] = tuple(n if attending else 0 for n, attending in heads)
    return JambaSizes(
        **sizes,
        windows=(0,) * layers,
        mixture=_mixture(config, layers),
        mamba=hf_selective(config, sizes["hidden"], "mamba_", **keys),
        conv_bias=config.flag("mamba_conv_bias", True),
    )


def _mixture(config: Fields, layers: int) -> Mixture | None:
    key = "num_local_experts" if config.get("num_local_experts") is not None else "num_experts"
    if config.integer(key, 1, 1 << 12, 16) == 1:
        return None
    period = config.integer("expert_layer_period", 1, MAX_LAYERS, PERIOD)
    sparse = _every(
        layers, period, config.integer("expert_layer_offset", 0, period - 1, min(OFFSET, period - 1))
    )
    return hf_mixture(config, "intermediate_size", layers, routing=ROUTING, sparse=sparse)


def _every(layers: int, period: int, offset: int) -> tuple[bool, ...]:
    return tuple(i % period == offset for i in range(layers))


def layer(cfg: JambaSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention or a mixer, and experts or an MLP."""
    if cfg.kv_heads[i]:
        first: LayerPart = Attention.of(cfg, i, rope=None)
    else:
        options = {"eps": cfg.eps, "inner_norm": "weighted", "inner_eps": cfg.eps}
        first = Mamba1(hidden=cfg.hidden, sizes=cfg.mamba, conv_bias=cfg.conv_bias, **options)  # pyright: ignore[reportArgumentType]
    if cfg.mixture is not None and cfg.mixture.sparse[i]:
        return first, Moe.of(cfg, NAMES)
    return first, GatedMlp.of(cfg, i, norm_name=NORM, hf="feed_forward")


MIXED = Family(
    gguf_architecture="jamba",
    hf_classes=("JambaForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Mamba1, GatedMlp, Moe),
    layer=layer,
    ends=DecoderEnds.of,
    names={"model.norm": "model.final_layernorm"},
)
# Of one expert: advice, and a GGUF that counts none.
FAMILIES = (MIXED, replace(MIXED, hf_classes=(), parts=(Attention, Mamba1, GatedMlp)))
