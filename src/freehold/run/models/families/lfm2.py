"""LFM2: gated short convolutions, and grouped-query attention on a few layers; dense, or with experts.

Queries and keys pass a norm of each head before they turn; rotary pairs are halves in both file formats. Both name the
norm before the head an embedding's. A dense model's config.json may state a nominal intermediate size, of which two
thirds, rounded up, are built. Experts are chosen by sigmoid plus a correction and weighed by the bare sigmoid.
Source: arXiv 2511.23404.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_LAYERS, MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import MAX_EXPERTS, gguf_mixture, hf_mixture
from freehold.run.models.config.sizes import Routing, Sizes, check_width, gguf_sizes, hf_decoder
from freehold.run.models.family import Buffer, Family, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, MoeNames, apart, mlp_or_experts

# --- a gated short convolution, where other models have attention -----------------------------------
#     x += o(c * conv(b * u)),  b, c, u = in_proj(norm(x))
# conv sums the last few inputs of each channel, weighted; a sequence's state is all but the newest of them (section 2).


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv(LayerPart):
    """One layer's convolution."""

    kinds = frozenset({"shortconv"})

    hidden: int
    taps: int
    eps: float
    post_norm: str = ""  # safetensors' name of a norm after the output; empty: there is none

    @property
    def keeps(self) -> LayerSpec:
        """The inputs that the next token needs."""
        return LayerSpec("shortconv", conv=(self.taps - 1) * self.hidden)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections, the first of which files hold as one, and a row of weights for each channel."""
        n = self.hidden
        specs = {"conv_norm": vector("attn_norm.weight", "operator_norm.weight", n)}
        for i, key in enumerate(("gate_in", "gate_out", "u")):
            rows, names = range(i * n, (i + 1) * n), ("shortconv.in_proj.weight", "conv.in_proj.weight")
            specs[key] = TensorSpec.of_rows(*names, (3 * n, n), rows)
        if self.post_norm:
            specs["conv_post_norm"] = vector("post_attention_norm.weight", f"{self.post_norm}.weight", n)
        return specs | {
            "conv": TensorSpec.of_convolution("shortconv.conv.weight", "conv.conv.weight", n, self.taps),
            "out": matrix("shortconv.out_proj.weight", "conv.out_proj.weight", n, n),
        }

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, gates and convolution, output and residual."""
        projections = (w["gate_in"], w["gate_out"], w["u"])
        b, c, u = ops.linear(x, projections, (None,) * 3, w["conv_norm"], self.eps)
        y = ops.short_conv(layer, u, w["conv"], gate_in=b, gate_out=c)
        if self.post_norm:
            (y,) = ops.linear(y, (w["out"],), (None,))
            ops.add_norm(x, y, w["conv_post_norm"], self.eps)
        else:
            ops.linear_add(y, w["out"], x)


# --- the family -------------------------------------------------------------------------------------

MAX_TAPS = 16  # of the kernel
EPSILON = 1e-6  # joins the sum of the chosen experts' weights
NAMES = {
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "self_attn.out_proj",
    "self_attn.q_norm": "self_attn.q_layernorm",
    "self_attn.k_norm": "self_attn.k_layernorm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "model.norm": "model.embedding_norm",
    "output_norm": "token_embd_norm",
}
EXPERTS = MoeNames(
    experts=apart("feed_forward.experts.{e}", "w1", "w3", "w2"),
    router="feed_forward.gate.weight",
    correction="feed_forward.expert_bias",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Sizes):
    """Sizes of an LFM2; a layer without kv heads has a convolution."""

    taps: int  # inputs of a sum


def config_from_gguf(meta: Fields, vocab: int) -> Config:
    """Read the keys under `lfm2.` or `lfm2moe.`."""
    sizes = gguf_sizes(meta, vocab, adjacent=False, least_heads=0)
    if meta.integer("expert_count", 0, MAX_EXPERTS, 0):
        meta.integer("expert_gating_func", 2, 2)  # sigmoid
        sizes["mixture"] = gguf_mixture(
            meta,
            sizes,
            routing=Routing(scoring="sigmoid", correction=True, epsilon=EPSILON),
            sparse=_sparse(len(sizes["heads"]), meta.integer("leading_dense_block_count", 0, MAX_LAYERS, 0)),
        )
    return Config(**sizes, taps=meta.integer("shortconv.l_cache", 2, MAX_TAPS))


def config_from_hf(config: Fields) -> Config:
    config.refuse("conv_bias", "a bias on convolutions")
    mixed = config.get("model_type") == "lfm2_moe"
    tied = config.flag("tie_embedding", True)
    sizes = hf_decoder(config, base=1e6, tied=tied, eps=1e-5, eps_key="norm_eps", intermediate_size=12288)
    layers = len(sizes["heads"])
    attends = _attends(config, layers)
    sizes["kv_heads"] = tuple(n if i in attends else 0 for i, n in enumerate(sizes["kv_heads"]))
    if mixed:
        sizes["mixture"] = hf_mixture(
            config,
            "moe_intermediate_size",
            layers,
            routing=Routing(
                scoring="sigmoid",
                renormalise=config.flag("norm_topk_prob", True),
                correction=config.flag("use_expert_bias", True),
                epsilon=EPSILON,
                scale=config.number("routed_scaling_factor", 1e-3, 1e3, 1.0),
            ),
            sparse=_sparse(layers, config.integer("num_dense_layers", 0, MAX_LAYERS, 2)),
        )
    else:
        sizes["intermediate"] = (_intermediate(config, sizes["intermediate"][0]),) * layers
    return Config(**sizes, taps=config.integer("conv_L_cache", 2, MAX_TAPS, 3))


def _attends(config: Fields, layers: int) -> set[int]:
    """Return the layers with attention: as `layer_types` says, or `full_attn_idxs`, else all."""
    kinds = config.texts("layer_types", layers)
    for kind in kinds or ():
        if kind not in ("full_attention", "conv"):
            raise UnsupportedModel(f"layer_types names {kind!r}; supported: full_attention, conv")
    if kinds is not None:
        return {i for i, kind in enumerate(kinds) if kind == "full_attention"}
    indices: Any = config.get("full_attn_idxs")
    if indices is None:
        return set(range(layers))
    if not isinstance(indices, list) or any(type(i) is not int or not 0 <= i < layers for i in indices):
        raise BadModelFile(f"full_attn_idxs is {str(indices)[:60]}; expected numbers of {layers} layers")
    return set(indices)


def _intermediate(config: Fields, stated: int) -> int:
    """Return the width that is built of the stated one."""
    stated = config.integer("block_ff_dim", 1, MAX_WIDTH, stated)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return stated
    width = int(2 * stated / 3)
    if config.get("block_ffn_dim_multiplier") is not None:
        width = int(config.number("block_ffn_dim_multiplier", 1e-3, 1e3) * width)
    multiple = config.integer("block_multiple_of", 1, MAX_WIDTH, 256)
    width = -(-width // multiple) * multiple
    check_width("intermediate", width)
    return width


def _sparse(layers: int, dense: int) -> tuple[bool, ...]:
    return tuple(i >= dense for i in range(layers))


def layer(cfg: Config, i: int) -> tuple[LayerPart, ...]:
    """Give a layer attention or a convolution, and an MLP or experts."""
    if cfg.kv_heads[i]:
        mixer: LayerPart = Attention.of(cfg, i, qk_norm="head")
    else:
        mixer = ShortConv(hidden=cfg.hidden, taps=cfg.taps, eps=cfg.eps)
    return mixer, mlp_or_experts(cfg, i, EXPERTS) if cfg.mixture else GatedMlp.of(cfg, i)


DENSE = Family(
    gguf_architecture="lfm2",
    hf_classes=("Lfm2ForCausalLM",),
    wrappers=("Lfm2VlForConditionalGeneration",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, ShortConv, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
    names=NAMES,
    towers=("lfm2vl",),
)
MIXED = replace(
    DENSE,
    gguf_architecture="lfm2moe",
    hf_classes=("Lfm2MoeForCausalLM",),
    model_types=("lfm2_moe",),
    parts=(*DENSE.parts, Moe),
)
FAMILIES = (DENSE, MIXED)
