"""Granite 4.0 hybrid: layers of a Mamba-2 mixer, here and there one of attention, each with an MLP or experts.

Attention has no positions in published hybrids; a config may say otherwise, and models without a Mamba-2 layer do.
What a layer adds to the residual stream, embeddings, scores and logits have factors, as in every Granite. Experts are
joined by a shared one; a dense model has that alone. A weight is a softmax over the chosen experts.
Source: transformers' GraniteMoeHybridForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import MAX_EXPERTS, gguf_mixture, hf_mixture
from freehold.run.models.config.sizes import Routing, check_width, gguf_sizes, hf_decoder
from freehold.run.models.families.granite import GraniteSizes, ends, gguf_factors, hf_factors
from freehold.run.models.family import Cut, Family, LayerPart, TensorSpec, matrix
from freehold.run.models.parts import Attention, GatedMlp
from freehold.run.models.parts.mamba import Mamba2, MambaKeys, MambaSizes, gguf_mamba, hf_mamba
from freehold.run.models.parts.moe import Moe, MoeNames, fused

KINDS = {"linear_attention": False, "mamba": False, "full_attention": True, "attention": True}
ROUTING = Routing(renormalise=True)
MAMBA = MambaKeys("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv")
EXPERTS = MoeNames(
    experts=fused("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
    router="block_sparse_moe.router.layer.weight",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteHybridSizes(GraniteSizes):
    """Sizes of a Granite hybrid; a layer without kv heads is of Mamba-2."""

    mamba: MambaSizes | None
    conv_bias: bool


def config_from_gguf(meta: Fields, vocab: int) -> GraniteHybridSizes:
    """Read the keys under `granitehybrid.`; `rope.scaling.finetuned` says whether attention has positions.

    Only Bamba's files say so; transformers' Bamba gives other logits with its cache than without, so it judges nothing.
    """
    sizes = gguf_sizes(meta, vocab, adjacent=True, least_heads=0)
    if meta.integer("expert_count", 0, MAX_EXPERTS, 0):
        shared = meta.integer("expert_shared_feed_forward_length", 1, MAX_WIDTH)
        inner = sizes["intermediate"][0]
        sizes["mixture"] = gguf_mixture(meta, sizes, intermediate=inner, shared=shared, routing=ROUTING)
    if meta.flag("rope.scaling.finetuned", True):
        key = meta.name("rope.scaling.finetuned")
        raise UnsupportedModel(f"{key} is true: positions of a hybrid's attention (Bamba) are not supported")
    sizes["rope"] = None
    return GraniteHybridSizes(**sizes, **gguf_factors(meta), mamba=gguf_mamba(meta), conv_bias=True)


def config_from_hf(config: Fields) -> GraniteHybridSizes:
    """Read config.json of a GraniteMoeHybridForCausalLM."""
    config.refuse("attention_bias", "a bias on attention")
    config.refuse("mamba_proj_bias", "a bias on projections")
    sizes = hf_decoder(config, max_position_embeddings=2048)
    attends = _attends(config, len(sizes["heads"]))
    shared = config.integer("shared_intermediate_size", 1, MAX_WIDTH, 1024)
    check_width("shared expert", shared)
    mamba = None
    if not all(attends):
        mamba = hf_mamba(config, MAMBA, config.integer("mamba_expand", 1, MAX_WIDTH, 2) * sizes["hidden"])
    if config.integer("num_local_experts", 0, MAX_EXPERTS, 8):
        routed = {"shared": shared, "routing": ROUTING}
        sizes["mixture"] = hf_mixture(config, "intermediate_size", len(attends), **routed)
    sizes["kv_heads"] = tuple(n if a else 0 for n, a in zip(sizes["kv_heads"], attends, strict=True))
    sizes["intermediate"] = (shared,) * len(attends)
    if config.require("position_embedding_type", ("rope", "nope", ""), "") != "rope":
        sizes["rope"] = None
    return GraniteHybridSizes(
        **sizes,
        **hf_factors(config),
        mamba=mamba,
        conv_bias=config.flag("mamba_conv_bias", True),
    )


def _attends(config: Fields, layers: int) -> tuple[bool, ...]:
    """Say which layers have attention; without a list none has, as in transformers."""
    kinds = config.texts("layer_types", layers) or ["mamba"] * layers
    if strange := [kind for kind in kinds if kind not in KINDS]:
        raise UnsupportedModel(f"layer_types names {strange[0][:60]!r}; supported: {', '.join(KINDS)}")
    return tuple(KINDS[kind] for kind in kinds)


def _mlp(hidden: int, wide: int, suffix: str = "") -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """Declare gate, up and down of the MLP of all tokens; `suffix`: of a GGUF's names beside experts."""
    both = "shared_mlp.input_linear.weight", (2 * wide, hidden)
    gate = matrix(f"ffn_gate{suffix}.weight", Cut(*both, rows=range(wide)), wide, hidden)
    up = matrix(f"ffn_up{suffix}.weight", Cut(*both, rows=range(wide, 2 * wide)), wide, hidden)
    return gate, up, matrix(f"ffn_down{suffix}.weight", "shared_mlp.output_linear.weight", hidden, wide)


class GraniteMlp(GatedMlp):
    """The MLP of a dense model."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare gate and up as safetensors hold them: in one matrix."""
        matrices = _mlp(self.hidden, self.intermediate)
        return GatedMlp.tensors(self) | dict(zip(("gate", "up", "down"), matrices, strict=True))


class GraniteMoe(Moe):
    """Experts, and a shared one."""

    def _shared(self) -> dict[str, TensorSpec]:
        matrices = _mlp(self.hidden, self.mixture.shared, "_shexp")
        return dict(zip(("shared_gate", "shared_up", "shared_down"), matrices, strict=True))


def layer(cfg: GraniteHybridSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer a mixer, and an MLP or experts with it."""
    mixer: LayerPart
    if cfg.kv_heads[i]:
        mixer = Attention.of(cfg, i, scale=cfg.scale, residual=cfg.residual, gguf_pairs=True)
    else:
        assert cfg.mamba is not None, "a layer without kv heads is of Mamba-2"
        own = {"hidden": cfg.hidden, "eps": cfg.eps, "residual": cfg.residual}
        mixer = Mamba2(**own, sizes=cfg.mamba, conv_bias=cfg.conv_bias)
    if cfg.mixture is None:
        return mixer, GraniteMlp.of(cfg, i, residual=cfg.residual)
    return mixer, GraniteMoe.of(cfg, EXPERTS, residual=cfg.residual)


MIXED = Family(
    gguf_architecture="granitehybrid",
    hf_classes=("GraniteMoeHybridForCausalLM",),
    model_types=("granitemoehybrid",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Mamba2, Attention, GraniteMoe),
    layer=layer,
    ends=ends,
)
FAMILIES = (MIXED, replace(MIXED, hf_classes=(), parts=(Mamba2, Attention, GraniteMlp)))
