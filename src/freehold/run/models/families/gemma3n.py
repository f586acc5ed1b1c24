"""Gemma 3n, text: E2B and E4B, with four residual streams, embeddings of each layer and gates that are cut.

The last layers read the keys and values of the last layer of their kind that has some. Norms are plain in both file
formats. A GGUF states how many deviations above their mean gates are cut, and minus infinity where none is; config.json
the share that is cut. llama.cpp cuts the first ten layers by a constant, and divides by one gate less.
Sources: Google's Gemma 3n files, transformers' Gemma3nTextModel and llama.cpp's converter, read 2026-11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.base.layers import LayerSpec
from freehold.run.formats.fields import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from freehold.run.models.config.rope import RopeSpec, hf_layer_ropes
from freehold.run.models.config.sizes import check_width, gguf_sizes, gguf_windows, hf_sizes, sliding_windows
from freehold.run.models.families.gemma import check_gemma
from freehold.run.models.families.gemma4 import (
    InputEnds,
    SharingAttention,
    SharingSizes,
    check_sources,
    input_tensors,
    layer_input,
    left_out,
)
from freehold.run.models.family import Buffer, Cut, Family, LayerPart, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts import DecoderEnds, GatedMlp

# --- layers over several residual streams, of which each computes one: AltUp ------------------------
# A side path of low rank joins attention.
#     a, X = predict(X),  n = norm(a)                       X: the streams, a: the active one
#     b = (a + norm(attention(n)) + n + norm(R L n)) / sqrt(2)
#     c = b + norm(mlp(norm b)),  first, X = correct(X, c)
#     X_j += norm(up(gelu(gate first) * e_i)) for j >= 1    e_i: the layer's embedding of the token
# Before the layers, stream 0 is the token's embedding, and the others are products of it, as large as it is;
# after them the streams are brought to one size again, and their mean is what the head reads. Sources: arXiv
# 2301.13310 (AltUp), 2411.07501 (the side path); transformers' Gemma3nTextModel, read 2026-11.

LEAST = 1e-5  # of a stream's mean square, where it divides


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUpLayer(LayerPart):
    """One whole layer; its attention and its MLP add to the active stream."""

    kinds = SharingAttention.kinds

    attention: SharingAttention
    mlp: GatedMlp
    streams: int
    active: int  # the stream that is computed
    rank: int  # of the side path
    width: int  # of the layer's embedding of a token

    @property
    def hidden(self) -> int:
        """Width of a stream."""
        return self.attention.hidden

    @property
    def keeps(self) -> LayerSpec | None:
        """What its attention does."""
        return self.attention.keeps

    @property
    def rope(self) -> RopeSpec | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of its attention."""
        return self.attention.rope

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare attention, MLP, side path, and what mixes streams: small matrices, which an op takes as floats."""
        n, hidden = self.streams, self.hidden
        own = {
            "router": _flat("altup_router.weight", "altup.modality_router.weight", n, hidden),
            "predict": _flat("altup_predict_coef.weight", "altup.prediction_coefs.weight", n * n, n),
            "correct": _flat("altup_correct_coef.weight", "altup.correction_coefs.weight", n, n),
            "router_norm": vector("altup_router_norm.weight", "altup.router_norm.weight", hidden),
            "correct_scale": vector("altup_correct_scale.weight", "altup.correct_output_scale", hidden),
            "left": matrix("laurel_l.weight", "laurel.linear_left.weight", self.rank, hidden),
            "right": matrix("laurel_r.weight", "laurel.linear_right.weight", hidden, self.rank),
            "side_norm": vector("laurel_post_norm.weight", "laurel.post_laurel_norm.weight", hidden),
        }
        return self.attention.tensors() | self.mlp.tensors() | own | input_tensors(hidden, self.width)

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose prediction, attention beside the side path, MLP, correction, and the layer's embedding."""
        eps = self.attention.eps
        norm = np.asarray(w["router_norm"] / np.float32(self.hidden), np.float32)
        predicted = ops.predict(x, w["router"], norm, w["predict"], self.active, eps)
        n = ops.norm(predicted, w["attn_norm"], eps)
        self.attention.add(ops, layer, (n, None), predicted, w)
        (low,) = ops.linear(n, (w["left"],), (None,))
        (side,) = ops.linear(low, (w["right"],), (None,))
        ops.add_norm(n, side, w["side_norm"], eps)
        ops.add(predicted, n)
        ops.scale(predicted, 0.5**0.5)
        self.mlp.forward(ops, layer, predicted, w)
        first = ops.correct(
            x, predicted, w["router"], norm, w["correct"], w["correct_scale"], self.active, eps
        )
        h = layer_input(ops, layer, first, w, self.width)
        ops.add(x, ops.norm(h, w["input_norm"], eps), self.hidden)


def _flat(gguf: str, hf: str, rows: int, columns: int) -> TensorSpec:
    stored = [Cut(name, (rows, columns), take=np.ravel, decode=True) for name in (gguf, hf)]
    return vector(stored[0], stored[1], rows * columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUpEnds(InputEnds):
    """Ends of several streams, with an embedding of each token for each layer."""

    streams: int

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare a matrix for each stream but the first, before the layers and after them."""
        return InputEnds.tensors(self) | {
            "spread": self._stack("altup_proj.weight", "model.altup_projections"),
            "merge": self._stack("altup_unembd_proj.weight", "model.altup_unembed_projections"),
        }

    def _stack(self, gguf: str, hf: str) -> TensorSpec:
        others, hidden = self.streams - 1, self.hidden
        rows = range(others * hidden)
        stored = Cut(gguf, (others, hidden, hidden), rows=rows)
        apart = tuple(f"{hf}.{i}.weight" for i in range(others))
        joined = Cut(apart, (others * hidden, hidden), rows=rows)
        return matrix(stored, joined, others * hidden, hidden, adaptable=False)

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Look the step's tokens up and make the other streams of them."""
        x = DecoderEnds.begin(self, ops, w)
        (others,) = ops.linear(x, (w["spread"],), (None,))
        return ops.spread(x, others, LEAST)

    def beside(self, ops: Ops, x: Buffer, w: Values) -> Mapping[str, Buffer]:
        """Return all layers' embeddings of the tokens, to which the first stream gives its part."""
        return InputEnds.beside(self, ops, ops.part(x, 0, self.hidden), w)

    def finish(self, ops: Ops, x: Buffer, w: Values) -> None:
        """Compute logits of the mean of all streams."""
        others = self.streams - 1
        rest = ops.part(x, self.hidden, others * self.hidden)
        DecoderEnds.finish(self, ops, ops.merge(x, ops.linear_heads(rest, w["merge"], others), LEAST), w)


# --- the family -------------------------------------------------------------------------------------

LOCAL_BASE, GLOBAL_BASE = 10_000.0, 1_000_000.0
WINDOW, PATTERN, SHARED = 512, 5, 15
STREAMS, MAX_STREAMS, RANK, INPUTS, INPUT_ROWS = 4, 8, 64, 256, 262_144
SOFTCAP = 30.0
SPARSE_LAYERS, SPARSITY = 10, 0.95  # where config.json does not say
RARE, FAR = 1e-6, 6.0  # a share that float32 still tells from none, and deviations that few values exceed


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaSizes3n(SharingSizes):
    """Sizes of Gemma 3n."""

    input_rows: int = 0  # tokens that have embeddings of layers; 0: all
    streams: int
    active: int  # the stream that layers compute
    rank: int  # of the side path
    above: tuple[float | None, ...]  # of each layer: see GatedMlp


def config_from_gguf(meta: Fields, vocab: int) -> GemmaSizes3n:
    """Read the keys under `gemma3n.`; no key has the side path's rank, which is one in all models."""
    sizes = gguf_sizes(meta, vocab, adjacent=False, base=GLOBAL_BASE)
    layers, head_dim = len(sizes["heads"]), sizes["head_dim"]
    meta.integer("attention.sliding_window", 1, MAX_CONTEXT)
    sizes["windows"] = gguf_windows(meta, layers, lambda i: (i + 1) % PATTERN != 0)
    base = meta.number("rope.freq_base_swa", 1.001, 1e12, LOCAL_BASE)
    streams = meta.integer("altup.num_inputs", 2, MAX_STREAMS)
    key = "activation_sparsity_scale"
    scales = _each(meta, key, layers, lambda v: v == -math.inf or abs(v) <= FAR)
    if scales is None:
        raise BadModelFile(f"{meta.name(key)} is missing; expected a number for each layer")
    return _checked(
        GemmaSizes3n(
            **sizes,
            rope_local=RopeSpec(base=base, width=head_dim, adjacent=False, divisible=False),
            softcap=meta.number("final_logit_softcapping", 0.0, 1e6, SOFTCAP),
            shared=meta.integer("attention.shared_kv_layers", 0, MAX_LAYERS),
            inputs=meta.integer("embedding_length_per_layer_input", 1, MAX_WIDTH),
            streams=streams,
            active=meta.integer("altup.active_idx", 0, streams - 1),
            rank=RANK,
            above=tuple(None if v == -math.inf else v for v in scales),
        )
    )


def config_from_hf(config: Fields) -> GemmaSizes3n:
    check_gemma(config)
    if not config.flag("altup_correct_scale", True):
        raise UnsupportedModel("altup_correct_scale is false; only a scaled correction is supported")
    sizes = hf_sizes(
        config,
        tied=True,
        vocab_size=262_400,
        hidden_size=2048,
        intermediate_size=16_384,
        num_hidden_layers=35,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        max_position_embeddings=32_768,
    )
    layers = len(sizes["heads"])
    bases = {"base": GLOBAL_BASE, "local_base": LOCAL_BASE}
    rope, rope_local = hf_layer_ropes(config, head_dim=sizes["head_dim"], context=sizes["context"], **bases)
    window = config.integer("sliding_window", 1, MAX_CONTEXT, WINDOW)
    streams = config.integer("altup_num_inputs", 2, MAX_STREAMS, STREAMS)
    rows = config.integer("vocab_size_per_layer_input", 1, MAX_VOCAB, INPUT_ROWS)
    return _checked(
        GemmaSizes3n(
            **sizes,
            rope=rope,
            rope_local=rope_local,
            windows=sliding_windows(config, layers, window, lambda i: (i + 1) % PATTERN != 0),
            softcap=config.number("final_logit_softcapping", 0.0, 1e6, SOFTCAP),
            shared=config.integer("num_kv_shared_layers", 0, MAX_LAYERS, SHARED),
            inputs=config.integer("hidden_size_per_layer_input", 1, MAX_WIDTH, INPUTS),
            input_rows=0 if rows == sizes["vocab"] else rows,
            streams=streams,
            active=config.integer("altup_active_idx", 0, streams - 1, 0),
            rank=config.integer("laurel_rank", 1, MAX_WIDTH, RANK),
            above=_deviations(config, layers),
        )
    )


def _deviations(config: Fields, layers: int) -> tuple[float | None, ...]:
    """Turn the share of gates that each layer cuts into deviations: those of a normal distribution."""
    shares = _each(config, "activation_sparsity_pattern", layers, lambda v: v == 0 or RARE <= v <= 1 - RARE)
    if shares is None:
        first = SPARSE_LAYERS if layers > SPARSE_LAYERS else 0
        shares = [SPARSITY] * first + [0.0] * (layers - first)
    return tuple(NormalDist().inv_cdf(share) if share else None for share in shares)


def _each(fields: Fields, key: str, layers: int, fits: Callable[[float], bool]) -> list[float] | None:
    """Read a number for each layer; None where the key is absent."""
    value = fields.get(key)
    if value is None:
        return None
    values: Any = value.tolist() if isinstance(value, np.ndarray) else value
    numbers = isinstance(values, Sequence) and all(type(v) in (int, float) for v in values)
    if not numbers or len(values) != layers or not all(map(fits, values)):
        raise BadModelFile(
            f"{fields.name(key)} is {str(values)[:60]}; expected a number for each of {layers} layers"
        )
    return [float(v) for v in values]


def _checked(cfg: GemmaSizes3n) -> GemmaSizes3n:
    """Return a config whose parts fit together."""
    check_width("hidden_size_per_layer_input", cfg.inputs)
    check_width("laurel_rank", cfg.rank)
    check_sources(cfg)
    return cfg


def layer(cfg: GemmaSizes3n, i: int) -> tuple[LayerPart, ...]:
    """Give a layer one part: it mixes streams before its attention and after its MLP."""
    attention = SharingAttention.of(cfg, i, cfg.head_dim)
    names = {"norm_name": "pre_feedforward_layernorm", "post_norm": "post_feedforward_layernorm"}
    mlp = GatedMlp.of(cfg, i, act="gelu", above=cfg.above[i], **names)
    sizes = {"streams": cfg.streams, "active": cfg.active, "rank": cfg.rank, "width": cfg.inputs}
    return (AltUpLayer(attention=attention, mlp=mlp, **sizes),)


def ends(cfg: GemmaSizes3n) -> AltUpEnds:
    """Scale embeddings by sqrt(hidden), and embed tokens for each layer."""
    inputs = {"layers": cfg.layers, "width": cfg.inputs, "rows": cfg.input_rows}
    return AltUpEnds.of(cfg, scale=math.sqrt(cfg.hidden), softcap=cfg.softcap, streams=cfg.streams, **inputs)


FAMILY = Family(
    gguf_architecture="gemma3n",
    hf_classes=("Gemma3nForCausalLM",),
    wrappers=("Gemma3nForConditionalGeneration",),
    model_types=("gemma3n_text",),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(AltUpLayer,),
    layer=layer,
    ends=ends,
    left_out_of=left_out,
)
