"""Apertus: a Llama block with a norm on queries and keys, and an MLP without a gate whose activation has weights.

    xIELU(x) = p x^2 + b x above 0, else n (exp(min(x, e)) - 1 - x) + b x
    p = softplus(alpha_p),  n = b + softplus(alpha_n)

alpha_p, alpha_n, b and e are tensors of safetensors, and lists of a value a layer among a GGUF's keys.
Sources: arXiv 2509.14233 (Apertus), 2411.13010 (xIELU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freehold.run.formats.fields import Fields
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Buffer, Cut, Family, LayerPart, Ops, TensorSpec, Values, vector
from freehold.run.models.parts import Attention, DecoderEnds, PlainMlp, Read

MAX_ALPHA = 1e4
ROPE = {  # what the class assumes
    "rope_type": "llama3",
    "rope_theta": 12e6,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


class XieluWeights(NamedTuple):
    """A layer's weights of the activation, as files state them."""

    alpha_p: float
    alpha_n: float
    beta: float
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ApertusSizes(Sizes):
    """Sizes of an Apertus; a GGUF states the weights of its activations."""

    activations: tuple[XieluWeights, ...] = ()  # of each layer; empty: they are tensors


def config_from_gguf(meta: Fields, vocab: int) -> ApertusSizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False)
    layers = len(sizes["heads"])
    own = Fields(meta.values)  # these keys have no architecture before them
    alphas = [own.numbers(f"xielu.{key}", layers, -MAX_ALPHA, MAX_ALPHA) for key in ("alpha_p", "alpha_n")]
    beta, eps = own.numbers("xielu.beta", layers, -1.0, 1.0), own.numbers("xielu.eps", layers, -1.0, 0.0)
    return ApertusSizes(**sizes, activations=tuple(map(XieluWeights, *alphas, beta, eps)))


def config_from_hf(config: Fields) -> ApertusSizes:
    config.refuse("attention_bias", "a bias on attention")
    if config.get("rope_parameters") is None and config.get("rope_scaling") is None:
        config = config.assuming(rope_parameters=ROPE)
    return ApertusSizes(**hf_decoder(config, act="xielu", base=ROPE["rope_theta"], eps=1e-5))


def _one(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.reshape(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class XieluMlp(PlainMlp):
    """One layer's MLP; its activation's weights are a config's, or tensors."""

    weights: XieluWeights | None

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two matrices, the norm, and the activation's weights where they are tensors."""
        specs = super(XieluMlp, self).tensors()
        for key in XieluWeights._fields if self.weights is None else ():
            name = f"mlp.act_fn.{key}"
            specs[key] = vector(None, name if key.startswith("alpha") else Cut(name, (), take=_one), 1)
        return specs

    def add(self, ops: Ops, read: Read, x: Buffer, w: Values) -> None:
        """Compose all after the norm."""
        (rows, norm), own = read, self.weights
        own = own or XieluWeights(*(float(w[key][0]) for key in XieluWeights._fields))
        (h,) = ops.linear(rows, (w["up"],), (None,), norm, self.eps)
        ops.xielu(h, _softplus(own.alpha_p), own.beta + _softplus(own.alpha_n), own.beta, own.eps)
        ops.linear_add(h, w["down"], x)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def layer(cfg: ApertusSizes, i: int) -> tuple[LayerPart, ...]:
    weights = cfg.activations[i] if cfg.activations else None
    return Attention.of(cfg, i, qk_norm="head"), XieluMlp.of(cfg, i, act="xielu", weights=weights)


FAMILY = Family(
    gguf_architecture="apertus",
    hf_classes=("ApertusForCausalLM",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, PlainMlp),
    layer=layer,
    ends=DecoderEnds.of,
    names={"input_layernorm": "attention_layernorm", "post_attention_layernorm": "feedforward_layernorm"},
)
