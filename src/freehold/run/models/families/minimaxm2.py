"""MiniMax-M2: every layer a mixture behind a sigmoid router, and an RMS norm over the whole width of queries and keys.

A correction joins scores where experts are compared; weights are divided by their sum. Rope turns half of a head.
Source: github.com/MiniMax-AI/MiniMax-M2 (config and model code), 2025.
"""

from __future__ import annotations

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds
from freehold.run.models.parts.moe import Moe, MoeNames, apart

ROUTING = Routing(scoring="sigmoid", correction=True)
NAMES = MoeNames(
    experts=apart("block_sparse_moe.experts.{e}", "w1", "w3", "w2"),
    router="block_sparse_moe.gate.weight",
    correction="block_sparse_moe.e_score_correction_bias",
)


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    return Sizes(**sizes, mixture=gguf_mixture(meta, sizes, routing=ROUTING))


def config_from_hf(config: Fields) -> Sizes:
    """Read config.json of a MiniMaxM2ForCausalLM, whose `rotary_dim` says how much of a head turns."""
    config.require("scoring_func", ("sigmoid",), "sigmoid")
    config.require("qk_norm_type", ("per_layer",), "per_layer")
    config.refuse("shared_intermediate_size", "a shared expert")
    for key in ("use_qk_norm", "use_routing_bias"):
        if not config.flag(key, True):
            raise UnsupportedModel(f"{key} is false; only true is supported")
    kinds = config.get("attn_type_list")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != 1 for kind in kinds)):
        raise UnsupportedModel(f"attn_type_list is {str(kinds)[:60]}: only layers of type 1 are supported")
    head = config.integer("head_dim", 1, MAX_WIDTH, 128)
    turned = config.integer("rotary_dim", 2, head, head) / head
    assumed = config.assuming(head_dim=head, partial_rotary_factor=turned, rope_theta=5e6)  # as its class
    sizes = hf_decoder(assumed, eps=1e-6)
    mixture = hf_mixture(config, "intermediate_size", len(sizes["heads"]), routing=ROUTING)
    return Sizes(**sizes, mixture=mixture)


FAMILY = Family(
    gguf_architecture="minimax-m2",
    hf_classes=("MiniMaxM2ForCausalLM",),
    model_types=("minimax_m2",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, Moe),
    layer=lambda cfg, i: (Attention.of(cfg, i, qk_norm="width"), Moe.of(cfg, NAMES)),
    ends=DecoderEnds.of,
)
