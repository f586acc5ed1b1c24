"""StarCoder, SantaCoder and Granite 20B Code (GPT-BigCode): GPT-2 whose query heads share one key and one value head.

Safetensors and GGUF hold q, k and v below each other in one matrix.
Source: arXiv 2305.06161.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freehold.base.errors import UnsupportedModel
from freehold.run.formats.fields import MAX_WIDTH, Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_sizes
from freehold.run.models.families.gpt2 import MASKS, NORM, PositionedEnds
from freehold.run.models.family import Cut, Family, LayerPart, TensorSpec, matrix, vector
from freehold.run.models.parts import Attention, PlainMlp

# What a config.json calls the activation, and an MLP does; "gelu_fast" is the tanh form by another formula.
ACTS = {"gelu": "gelu_erf", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu"}
CALLED = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BigCodeSizes(Sizes):
    """Sizes of a GPT-BigCode, and its activation."""

    act: str


def config_from_gguf(meta: Fields, vocab: int) -> BigCodeSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False, eps="layer_norm_epsilon")
    sizes["rope"] = None
    return BigCodeSizes(**sizes, act="gelu")


def config_from_hf(config: Fields) -> BigCodeSizes:
    config = config.called(CALLED)
    config.refuse("add_cross_attention", "attention to another sequence")
    for key in ("multi_query", "scale_attn_weights"):
        if not config.flag(key, True):
            raise UnsupportedModel(f"{config.name(key)} is false; only true is supported")
    act = config.require("activation_function", tuple(ACTS), "gelu_pytorch_tanh")
    hidden = config.integer("hidden_size", 1, MAX_WIDTH, 768)
    defaults: dict[str, Any] = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 1024,
        "vocab_size": 50257,
        "intermediate_size": 4 * hidden,
    }
    stated = config.without("num_key_value_heads").assuming(num_key_value_heads=1)
    sizes = hf_sizes(stated, tied=True, eps=1e-5, eps_key="layer_norm_epsilon", **defaults)
    return BigCodeSizes(**sizes, windows=(0,) * len(sizes["heads"]), act=ACTS[act])


@dataclass(frozen=True, slots=True, kw_only=True)
class BelowAttention(Attention):
    """Attention whose q, k and v lie below each other in one matrix, in both formats, with a bias."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the rows of each, with biases, and the output."""
        n, q, kv = self.hidden, self.q_width, self.kv_width
        specs = self.norm.tensors("attn_norm", "attn_norm", "ln_1", n)
        rows = {"q": range(q), "k": range(q, q + kv), "v": range(q + kv, q + 2 * kv)}
        for key, own in rows.items():
            names = ("attn_qkv.weight", "attn.c_attn.weight")
            specs[key] = TensorSpec.of_rows(*names, (q + 2 * kv, n), own)
            gguf, hf = (Cut(name, (q + 2 * kv,), rows=own) for name in ("attn_qkv.bias", "attn.c_attn.bias"))
            specs[f"{key}_bias"] = vector(gguf, hf, len(own))
        specs["o"] = matrix("attn_output.weight", "attn.c_proj.weight", n, q)
        specs["o_bias"] = vector("attn_output.bias", "attn.c_proj.bias", n)
        return specs


def layer(cfg: BigCodeSizes, i: int) -> tuple[LayerPart, ...]:
    mlp = PlainMlp.of(
        cfg,
        i,
        act=cfg.act,
        bias=True,
        norm=NORM,
        norm_name="ln_2",
        up_name="mlp.c_fc",
        down_name="mlp.c_proj",
    )
    return BelowAttention.of(cfg, i, norm=NORM, rope=None), mlp


FAMILY = Family(
    gguf_architecture="starcoder",
    hf_classes=("GPTBigCodeForCausalLM",),
    model_types=("gpt_bigcode",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=lambda cfg: PositionedEnds.of(cfg, norm=NORM, positions=cfg.context),
    hf_layers="h",
    hf_outer="transformer.",
    left_out=MASKS,
)
