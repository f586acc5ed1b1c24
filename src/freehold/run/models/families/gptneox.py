"""GPT-NeoX and Pythia: layer norms with biases before attention and MLP, which may be added to the same rows.

Rope turns a part of a head, in halves; q, k and v are one matrix, which safetensors lay head by head.
Sources: arXiv 2204.06745 (GPT-NeoX), 2304.01373 (Pythia).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Cut, Family, LayerPart, TensorSpec, matrix, vector
from freehold.run.models.parts import Attention, DecoderEnds, NormForm, PlainMlp
from freehold.run.models.parts.parallel import ParallelBlock

NORM = NormForm(kind="layer", bias=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxSizes(Sizes):
    """Sizes of a GPT-NeoX, and whether attention and MLP read the same rows."""

    parallel: bool


def config_from_gguf(meta: Fields, vocab: int) -> NeoxSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon")
    return NeoxSizes(**sizes, parallel=meta.flag("use_parallel_residual", True))


def config_from_hf(config: Fields) -> NeoxSizes:
    """Read config.json of a GPTNeoXForCausalLM; published ones name the rope's base and share in their own words."""
    older = {
        "rope_theta": config.number("rotary_emb_base", 1.001, 1e12, 10_000.0),
        "partial_rotary_factor": config.number("rotary_pct", 1e-3, 1.0, 0.25),
    }
    if not config.flag("attention_bias", True):
        config.refuse("attention_bias", "attention without biases")
    sizes = hf_decoder(
        config,
        act="gelu",
        base=older["rope_theta"],
        partial=older["partial_rotary_factor"],
        eps=1e-5,
        eps_key="layer_norm_eps",
    )
    return NeoxSizes(**sizes, parallel=config.flag("use_parallel_residual", True))


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxAttention(Attention):
    """Attention whose q, k and v are one matrix: below each other in a GGUF, head by head in safetensors."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the rows of each, with biases, and the output."""
        n = self.hidden
        specs = self.norm.tensors("attn_norm", "attn_norm", "input_layernorm", n)
        by_head = np.arange(3 * n).reshape(self.heads, 3, self.head_dim)
        for i, key in enumerate("qkv"):
            below, apart = range(i * n, (i + 1) * n), by_head[:, i].ravel()
            fused = "attention.query_key_value"
            specs[key] = matrix(
                Cut("attn_qkv.weight", (3 * n, n), rows=below),
                Cut(f"{fused}.weight", (3 * n, n), rows=apart),
                n,
                n,
            )
            biases = Cut("attn_qkv.bias", (3 * n,), rows=below), Cut(f"{fused}.bias", (3 * n,), rows=apart)
            specs[f"{key}_bias"] = vector(biases[0], biases[1], n)
        specs["o"] = matrix("attn_output.weight", "attention.dense.weight", n, n)
        specs["o_bias"] = vector("attn_output.bias", "attention.dense.bias", n)
        return specs


def layer(cfg: NeoxSizes, i: int) -> tuple[LayerPart, ...]:
    attention = NeoxAttention.of(cfg, i, norm=NORM)
    mlp = PlainMlp.of(
        cfg,
        i,
        act="gelu_erf",
        bias=True,
        norm=NORM,
        up_name="mlp.dense_h_to_4h",
        down_name="mlp.dense_4h_to_h",
    )
    return (ParallelBlock(attention, mlp),) if cfg.parallel else (attention, mlp)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeoxEnds(DecoderEnds):
    """A decoder's ends under GPT-NeoX's names."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both matrices and the norm before the head."""
        size = (self.vocab, self.hidden)
        specs = {
            "embed": matrix("token_embd.weight", "gpt_neox.embed_in.weight", *size, share=0.0),
            "head": matrix("output.weight", "embed_out.weight", *size),
        }
        return specs | self.norm.tensors("norm", "output_norm", "gpt_neox.final_layer_norm", self.hidden)


FAMILY = Family(
    gguf_architecture="gptneox",
    hf_classes=("GPTNeoXForCausalLM",),
    model_types=("gpt_neox",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=lambda cfg: NeoxEnds.of(cfg, norm=NORM),
    hf_layers="gpt_neox.layers",
    left_out=(
        (
            r"gpt_neox\.layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)$",
            "masks and frequencies, which a file need not hold, are left out",
        ),
    ),
)
