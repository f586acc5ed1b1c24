"""Qwen3-Next: three layers of gated DeltaNet, one of gated attention, and in each a mixture of 512 experts.

Attention's queries and keys pass a norm of each head, a quarter of a head turns, and what it gives passes a sigmoid
whose weights q_proj holds beside the queries'. Norms are stored around zero in safetensors, but for DeltaNet's heads'.
The chosen experts' weights are divided by their sum; one more expert, weighed by a sigmoid, sees every token.
Sources: Qwen3-Next's model card of 2025, arXiv 2412.06464 (gated DeltaNet).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import gguf_mixture, hf_mixture, sparse_layers
from freehold.run.models.config.sizes import Routing
from freehold.run.models.family import Family, Layer, LayerPart, Network
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp, NormForm
from freehold.run.models.parts.deltanet import DeltaNet, HybridSizes, ProjectionLayout, gguf_hybrid, hf_hybrid
from freehold.run.models.parts.drafting import head_network
from freehold.run.models.parts.moe import Moe, MoeNames

AROUND_ZERO = NormForm(offset=1.0)
TURNED = 0.25  # share of a head, where a config does not say
NAMES = MoeNames(gguf_norm="post_attention_norm")


def config_from_gguf(meta: Fields, vocab: int) -> HybridSizes:
    sizes = gguf_hybrid(meta, vocab)
    dense = sizes["intermediate"][0]
    shared = meta.integer("expert_shared_feed_forward_length", 1, MAX_WIDTH, dense)
    return HybridSizes(**sizes, mixture=gguf_mixture(meta, sizes, shared=shared, shared_gate=True))


def config_from_hf(config: Fields) -> HybridSizes:
    config = config.assuming(partial_rotary_factor=TURNED)
    sizes = hf_hybrid(config, intermediate_size=5632, head_dim=256)
    layers = len(sizes["heads"])
    options: dict[str, Any] = {
        "shared": config.integer("shared_expert_intermediate_size", 1, MAX_WIDTH),
        "shared_gate": True,
        "routing": Routing(renormalise=config.flag("norm_topk_prob", True)),
        "sparse": sparse_layers(config, layers),
    }
    return HybridSizes(**sizes, mixture=hf_mixture(config, "moe_intermediate_size", layers, **options))


def mixer(cfg: HybridSizes, i: int, stored: ProjectionLayout) -> LayerPart:
    """Give a layer its DeltaNet or its gated attention."""
    if not cfg.recurrent[i]:
        return Attention.of(cfg, i, norm=AROUND_ZERO, qk_norm="head", gated=True)
    return DeltaNet(
        hidden=cfg.hidden, sizes=cfg.delta, eps=cfg.eps, norm=AROUND_ZERO, stored=stored, tiled=cfg.tiled
    )


def mlp(cfg: HybridSizes, i: int, names: MoeNames = NAMES) -> LayerPart:
    """Give a layer its experts, or the dense MLP that it has instead."""
    if cfg.mixture is not None and cfg.mixture.sparse[i]:
        return Moe.of(cfg, names, norm=AROUND_ZERO)
    return GatedMlp.of(cfg, i, norm=AROUND_ZERO, gguf_norm=names.gguf_norm)


def layer(cfg: HybridSizes, i: int) -> tuple[LayerPart, ...]:
    """Give a layer its mixer and its experts."""
    return mixer(cfg, i, "grouped"), mlp(cfg, i)


def ends(cfg: HybridSizes) -> DecoderEnds:
    return DecoderEnds.of(cfg, norm=AROUND_ZERO)


def head(cfg: HybridSizes, own_layer: Callable[[HybridSizes, int], tuple[LayerPart, ...]] = layer) -> Network:
    """Build the head that drafts: a layer that attends, as the model's own do."""
    attends = cfg.recurrent.index(False)
    return head_network(ends(cfg), Layer(own_layer(cfg, attends)))


FAMILY = Family(
    gguf_architecture="qwen3next",
    hf_classes=("Qwen3NextForCausalLM",),
    model_types=("qwen3_next",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, DeltaNet, GatedMlp, Moe),
    layer=layer,
    ends=ends,
    head=head,
)
