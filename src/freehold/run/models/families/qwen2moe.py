"""Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): a Qwen2 block with experts, and one more that every token passes.

The shared expert's sum is weighed by a sigmoid of its own gate; the chosen experts' weights are not divided by their
sum. Some layers of a safetensors model may have a dense MLP instead.
Source: arXiv 2407.10671.
"""

from __future__ import annotations

from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.mixtures import gguf_mixture, qwen_mixture
from freehold.run.models.config.sizes import Routing, Sizes, gguf_sizes
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp
from freehold.run.models.parts.moe import Moe, mlp_or_experts


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `qwen2moe.`; early files give the shared expert's size as the dense one's."""
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    dense = sizes["intermediate"][0]
    shared = meta.integer("expert_shared_feed_forward_length", 1, MAX_WIDTH, dense)
    options = {"shared": shared, "shared_gate": True, "routing": Routing(renormalise=False)}
    return Sizes(**sizes, mixture=gguf_mixture(meta, sizes, **options))


def config_from_hf(config: Fields) -> Sizes:
    shared = config.integer("shared_expert_intermediate_size", 1, MAX_WIDTH)
    return qwen_mixture(config, shared=shared, shared_gate=True)


FAMILY = Family(
    gguf_architecture="qwen2moe",
    hf_classes=("Qwen2MoeForCausalLM",),
    model_types=("qwen2_moe",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp, Moe),
    layer=lambda cfg, i: (Attention.of(cfg, i, bias="qkv"), mlp_or_experts(cfg, i)),
    ends=DecoderEnds.of,
)
