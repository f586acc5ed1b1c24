"""Whisper's decoder: text after a window of sound, whose rows are the sequence's first positions.

    x = words[token] + positions[place]
    x += o(attention(q n, k n, v n));  x += o(attention(q n, heard));  x += down(gelu(up n))

Each n is a layer norm; there are biases everywhere but at keys. A sequence begins with as many rows of features as the
encoder makes of a window (models/towers/whisper.py). Of those rows each layer keeps the keys and values that attention
to sound reads (`heard`), in the places of its own keys and values, and nothing else is computed of them. Text stands
behind: its attention to itself sees positions of its chunk alone, which begins where sound ends, and the other sees the
positions before. So both share a layer's pages, and a prefix of sound is cached as a prefix of words is.
Source: arXiv 2212.04356.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.run.models.config.sizes import WIDTH_STEP, Sizes, checked_sizes
from freehold.run.models.family import (
    Buffer,
    Ends,
    Family,
    LayerPart,
    NetworkWeights,
    Ops,
    TensorSpec,
    Values,
    matrix,
    vector,
)
from freehold.run.models.parts.mlp import PlainMlp
from freehold.run.models.parts.norms import NormForm

NORM = NormForm(kind="layer", bias=True)
EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperSizes(Sizes):
    """A decoder's sizes; `heard` rows of sound stand before every text."""

    heard: int
    texts: int  # positions of text


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardAttention(LayerPart):
    """Attention of text to itself, or (`across`) to the rows of sound before it, in one layer's pages."""

    kinds = frozenset({"full"})

    cfg: WhisperSizes
    across: bool

    @property
    def keeps(self) -> LayerSpec | None:
        """Keys and values of all positions, which the layer's two attentions share."""
        cfg = self.cfg
        return None if self.across else LayerSpec("full", 1, cfg.heads[0], cfg.head_dim)

    @property
    def _module(self) -> tuple[str, str]:
        return ("cross_", "encoder_attn") if self.across else ("", "self_attn")

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a norm, four projections and three biases."""
        n, (key, module) = self.cfg.hidden, self._module
        specs = NORM.tensors(f"{key}norm", f"{key}attn_norm", f"{module}_layer_norm", n)
        for each, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
            specs[f"{key}{each}"] = matrix(None, f"{module}.{name}.weight", n, n)
            if each != "k":
                specs[f"{key}{each}_bias"] = vector(None, f"{module}.{name}.bias", n)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, attention, output and residual."""
        if self.across:
            return self.hears(ops, layer, self.asks(ops, x, w), x, w)
        cfg = self.cfg
        n = ops.layer_normed(x, w["norm"], w["norm_bias"], cfg.eps)
        q, k, v = ops.linear(n, (w["q"], w["k"], w["v"]), (w["q_bias"], None, w["v_bias"]))
        ops.rope_store(layer, q, k, v, None)
        a = ops.attention(layer, q, cfg.head_dim**-0.5, chunk=cfg.heard)
        return ops.linear_add(a, w["o"], x, w["o_bias"])

    def asks(self, ops: Ops, x: Buffer, w: Values) -> Buffer:
        """Compose the queries of text to sound."""
        n = ops.layer_normed(x, w["cross_norm"], w["cross_norm_bias"], self.cfg.eps)
        (q,) = ops.linear(n, (w["cross_q"],), (w["cross_q_bias"],))
        return q

    def hears(self, ops: Ops, layer: int, q: Buffer, x: Buffer, w: Values) -> None:
        """Compose attention to sound, output and residual."""
        a = ops.attention(layer, q, self.cfg.head_dim**-0.5, until=self.cfg.heard)
        ops.linear_add(a, w["cross_o"], x, w["cross_o_bias"])


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperEnds(Ends):
    """Two embeddings before the first layer, a norm and a tied head after the last."""

    cfg: WhisperSizes

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare tables of which a token reads a row, and a norm."""
        cfg, own = self.cfg, "model.decoder"
        size = (cfg.vocab, cfg.hidden)
        return {
            "embed": matrix(None, f"{own}.embed_tokens.weight", *size, share=0.0),
            "head": matrix(None, "proj_out.weight", *size, default="embed"),
            "positions": matrix(
                None, f"{own}.embed_positions.weight", cfg.texts, cfg.hidden, share=0.0, floats=True
            ),
            **NORM.tensors("norm", "", f"{own}.layer_norm", cfg.hidden),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Sum a token's row and its position's, which counts from where sound ends."""
        return ops.embed_sum(w["embed"], w["positions"], None, self.cfg.heard)

    def finish(self, ops: Ops, x: Buffer, w: Values) -> None:
        """Compute logits."""
        n = ops.layer_normed(x, w["norm"], w["norm_bias"], self.cfg.eps)
        ops.logits(n, w["head"], None, self.cfg.eps)


def heard(cfg: WhisperSizes, ops: Ops, weights: NetworkWeights) -> None:
    """Compose what is kept of rows of sound: keys and values of every layer."""
    x = ops.embed(weights.ends["embed"])
    for i, w in enumerate(weights.layers):
        k, v = ops.linear(x, (w["cross_k"], w["cross_v"]), (None, w["cross_v_bias"]))
        ops.rope_store(i, k, k, v, None)
    ops.logits(x, weights.ends["head"], None, cfg.eps)


def config_from_gguf(meta: Fields, vocab: int) -> NoReturn:
    """Refuse: whisper.cpp reads none, and there is no agreed layout."""
    raise UnsupportedModel(
        "Whisper as a GGUF is not supported: there is no agreed layout",
        "use its safetensors, whisper.cpp's ggml file, or a folder of CTranslate2's",
    )


def config_from_hf(config: Fields) -> WhisperSizes:
    config.require("activation_function", ("gelu",), "gelu")
    if config.flag("scale_embedding", False):
        raise UnsupportedModel("scale_embedding is true, which no published Whisper has")
    hidden = config.integer("d_model", 1, MAX_WIDTH)
    heads = config.integer("decoder_attention_heads", 1, MAX_HEADS)
    if hidden % heads or hidden % WIDTH_STEP:
        raise UnsupportedModel(
            f"{heads} heads over a width of {hidden}; supported are widths of multiples of {WIDTH_STEP}, in whole heads"
        )
    layers = config.integer("decoder_layers", 1, MAX_LAYERS)
    sound = config.integer("max_source_positions", 1, MAX_CONTEXT, 1500)
    texts = config.integer("max_target_positions", 1, MAX_CONTEXT, 448)
    if texts > sound:
        raise BadModelFile(
            f"max_target_positions is {texts:,}, more than max_source_positions, {sound:,}: no Whisper has this"
        )
    sizes: dict[str, Any] = checked_sizes(
        vocab=config.integer("vocab_size", 1, MAX_VOCAB),
        hidden=hidden,
        intermediate=(config.integer("decoder_ffn_dim", 1, MAX_WIDTH),) * layers,
        heads=(heads,) * layers,
        kv_heads=(heads,) * layers,
        head_dim=hidden // heads,
        eps=EPS,
        context=sound + texts,
        tied=True,
        windows=(0,) * layers,
        rope=None,
    )
    return WhisperSizes(**sizes, heard=sound, texts=texts)


def _layer(cfg: WhisperSizes, i: int) -> tuple[LayerPart, ...]:
    names = {"norm_name": "final_layer_norm", "up_name": "fc1", "down_name": "fc2"}
    return (
        HeardAttention(cfg=cfg, across=False),
        HeardAttention(cfg=cfg, across=True),
        PlainMlp.of(cfg, i, act="gelu_erf", bias=True, norm=NORM, **names),
    )


FAMILY = Family(
    gguf_architecture="whisper",
    hf_classes=("WhisperForConditionalGeneration",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(HeardAttention, PlainMlp),
    layer=_layer,
    ends=lambda cfg: WhisperEnds(cfg=cfg),
    hf_layers="model.decoder.layers",
    towers=("whisper",),
    prefix=heard,
    left_out=((r"model\.encoder\.", "the audio encoder is loaded separately"),),
)
