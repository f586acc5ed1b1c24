"""OLMo Hybrid: three layers of gated DeltaNet with norms before its halves, one of OLMo 3's attention with norms after.

    x += delta(norm(x)), x += mlp(norm(x))    or    x += norm(attention(x)), x += norm(mlp(x))

A DeltaNet's betas reach 2, so that a state may change its sign; its heads' norm has an epsilon of its own. Published
models turn no position: their rope_theta is null. There is no GGUF of it.
Sources: Ai2's OLMo Hybrid model card of 2026, arXiv 2411.12537 (negative eigenvalues).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_HEADS, MAX_WIDTH, Fields
from freehold.run.models.family import Family, LayerPart, TensorSpec
from freehold.run.models.parts import NO_NORM, Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.deltanet import DeltaNet, HybridSizes, hf_hybrid

HEAD_EPS = 1e-5  # of a DeltaNet's heads, whatever rms_norm_eps is


@dataclass(frozen=True, slots=True, kw_only=True)
class OlmoHybridSizes(HybridSizes):
    """Sizes of an OLMo Hybrid."""

    beta_scale: float


class AfterAttention(Attention):
    """Attention whose last norm transformers writes back under the name of the other layers' norm."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare what attention has, the norm after it under both names."""
        specs = super().tensors()
        names = "post_attention_layernorm.weight", "feedforward_layer_norm.weight"
        return specs | {"attn_post_norm": replace(specs["attn_post_norm"], hf=names)}


def config_from_gguf(meta: Fields, vocab: int) -> OlmoHybridSizes:
    """Raise: no converter writes such a file, so its names are not known."""
    raise UnsupportedModel("GGUF files of olmo_hybrid are not supported", "use the safetensors files")


def config_from_hf(config: Fields) -> OlmoHybridSizes:
    hidden = config.integer("hidden_size", 1, MAX_WIDTH)
    heads = config.integer("num_attention_heads", 1, MAX_HEADS)
    key_heads = config.integer("linear_num_key_heads", 1, MAX_HEADS, heads)
    key_dim = config.integer("linear_key_head_dim", 1, MAX_WIDTH, int(0.75 * hidden / key_heads))
    assumed = {"num_key_heads": key_heads, "num_value_heads": heads}
    assumed |= {"key_head_dim": key_dim, "value_head_dim": 2 * key_dim}
    sizes = hf_hybrid(config.assuming(rope_theta=10_000.0), assumed)
    rope = config.section("rope_parameters") or config
    if "rope_theta" in rope.values and rope.get("rope_theta") is None:  # where absent, it is the class's
        sizes["rope"] = None
    scale = 2.0 if config.flag("linear_allow_neg_eigval", True) else 1.0
    return OlmoHybridSizes(**sizes, beta_scale=scale)


def layer(cfg: OlmoHybridSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer its mixer and an MLP, with norms before them or after."""
    if not cfg.recurrent[i]:
        attention = AfterAttention.of(
            cfg, i, norm=NO_NORM, qk_norm="width", post_norm="post_attention_layernorm"
        )
        return attention, GatedMlp.of(cfg, i, norm=NO_NORM, post_norm="post_feedforward_layernorm")
    delta = DeltaNet(
        hidden=cfg.hidden,
        sizes=cfg.delta,
        eps=cfg.eps,
        norm_name="attention_layer_norm",
        stored="single",
        beta_scale=cfg.beta_scale,
        head_eps=HEAD_EPS,
    )
    return delta, GatedMlp.of(cfg, i, norm_name="feedforward_layer_norm")


FAMILY = Family(
    gguf_architecture="olmo_hybrid",
    hf_classes=("OlmoHybridForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, DeltaNet, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
)
