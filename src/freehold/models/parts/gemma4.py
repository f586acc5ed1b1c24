"""What only Gemma 4 has: layers that read another layer's keys and values, inputs of their own, experts beside an MLP.

    attention    q = norm(q n), k = norm(k n), v = unit(v n); scores are not scaled; where K = V, v = unit(k n)
    inputs       x += norm(up(gelu(gate x) * e_i)),  e = (norm(P x_0 / sqrt(hidden)) + E[token] sqrt(width)) / sqrt(2)
    experts      x += norm(norm(mlp(norm x)) + norm(experts(norm x))), routed by unit(x) * s / sqrt(hidden)

unit is an RMS norm without a weight. A layer's factor multiplies x after all of them.
Source: transformers' Gemma4TextModel, read 2026-11.
Path: families.gemma4.layer -> parts -> Network.forward
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from freehold.layers import LayerSpec
from freehold.models.config.rope import RopeSpec
from freehold.models.config.sizes import Mixture
from freehold.models.family import LayerPart, TensorSpec, Values, matrix, vector
from freehold.models.ops import Buffer, Ops
from freehold.models.parts.ends import DecoderEnds
from freehold.models.parts.expert_layouts import fused
from freehold.models.parts.mlp import GatedMlp
from freehold.models.parts.moe import Moe, MoeNames
from freehold.models.parts.norms import NO_NORM, Read


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingAttention(LayerPart):
    """One layer's attention, over keys and values of its own or of an earlier layer."""

    kinds = frozenset({"full", "window", "plain"})

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope: RopeSpec | None
    window: int
    source: int | None  # the layer whose keys and values it reads; None: its own
    twin: bool  # whether values are keys before their norm

    @property
    def keeps(self) -> LayerSpec | None:
        """Nothing, where another layer keeps it."""
        if self.source is not None:
            return None
        kind = "window" if self.window else "full"
        return LayerSpec(kind, 1, self.kv_heads, self.head_dim, window=self.window)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the projections and norms of what the layer computes itself."""
        q, kv, hidden = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden
        specs = {
            "attn_norm": vector("attn_norm.weight", "input_layernorm.weight", hidden),
            "q": matrix("attn_q.weight", "self_attn.q_proj.weight", q, hidden),
            "q_norm": vector("attn_q_norm.weight", "self_attn.q_norm.weight", self.head_dim),
            "o": matrix("attn_output.weight", "self_attn.o_proj.weight", hidden, q),
            "attn_post_norm": vector("post_attention_norm.weight", "post_attention_layernorm.weight", hidden),
        }
        if self.source is None:
            specs["k"] = matrix("attn_k.weight", "self_attn.k_proj.weight", kv, hidden)
            specs["k_norm"] = vector("attn_k_norm.weight", "self_attn.k_norm.weight", self.head_dim)
            if not self.twin:
                specs["v"] = matrix("attn_v.weight", "self_attn.v_proj.weight", kv, hidden)
        return specs

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose norm, projections, cache write or not, attention, output, norm and residual."""
        self.add(ops, layer, (x, w["attn_norm"]), x, w)

    def add(self, ops: Ops, layer: int, read: Read, x: Buffer, w: Values) -> None:
        """Compose all after the norm: a side path may read the same rows."""
        q = self._store(ops, layer, read, w) if self.source is None else self._query(ops, read, w)
        a = ops.attention(layer if self.source is None else self.source, q, 1.0, self.window)
        (a,) = ops.linear(a, (w["o"],), (None,))
        ops.add_norm(x, a, w["attn_post_norm"], self.eps)

    def _store(self, ops: Ops, layer: int, read: Read, w: Values) -> Buffer:
        names = ("q", "k") if self.twin else ("q", "k", "v")
        rows, norm = read
        q, k, *v = ops.linear(rows, tuple(w[n] for n in names), (None,) * len(names), norm, self.eps)
        values = ops.norm(v[0] if v else k, np.ones(self.head_dim, np.float32), self.eps)
        ops.rope_store(layer, q, k, values, w["rope"], w["q_norm"], w["k_norm"], self.eps)
        return q

    def _query(self, ops: Ops, read: Read, w: Values) -> Buffer:
        rows, norm = read
        (q,) = ops.linear(rows, (w["q"],), (None,), norm, self.eps)
        q = ops.norm(q, w["q_norm"], self.eps)
        ops.rotate(q, w["rope"], self.head_dim)
        return q


def input_tensors(hidden: int, width: int) -> dict[str, TensorSpec]:
    """Declare what a layer makes of its embedding, `width` wide: two projections and a norm."""
    return {
        "input_gate": matrix("inp_gate.weight", "per_layer_input_gate.weight", width, hidden),
        "input_up": matrix("proj.weight", "per_layer_projection.weight", hidden, width),
        "input_norm": vector("post_norm.weight", "post_per_layer_input_norm.weight", hidden),
    }


def layer_input(ops: Ops, layer: int, x: Buffer, w: Values, width: int) -> Buffer:
    """Compose gate, product and projection of a layer's embedding; the norm follows it."""
    h = ops.linear_act(x, w["input_gate"], "gelu")
    ops.multiply(h, w["inputs"], layer * width)
    (h,) = ops.linear(h, (w["input_up"],), (None,))
    return h


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInput(LayerPart):
    """What a layer adds of its own embedding of the token, and the factor on all it gives."""

    hidden: int
    width: int  # of the embedding; 0: it has none
    eps: float

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare two projections and a norm, and the factor."""
        specs = {"factor": vector("layer_output_scale.weight", "layer_scalar", 1)}
        return specs | (input_tensors(self.hidden, self.width) if self.width else {})

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose gate, product, projection, norm, residual and factor."""
        if self.width:
            h = layer_input(ops, layer, x, w, self.width)
            ops.add_norm(x, h, w["input_norm"], self.eps)
        ops.scale(x, float(w["factor"][0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputEnds(DecoderEnds):
    """A decoder's ends with an embedding of each token for each layer."""

    layers: int
    width: int  # of a layer's embedding; 0: there are none
    rows: int = 0  # of their table; 0: as many as tokens. Tokens beyond it read its first row

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the table of all layers' embeddings, of which a token reads a row, and what joins it."""
        specs = DecoderEnds.tensors(self)
        if not self.width:
            return specs
        wide, names = (
            self.layers * self.width,
            ("per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight"),
        )
        project = "per_layer_model_proj.weight", "model.per_layer_model_projection.weight"
        norm = "per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight"
        return specs | {
            "inputs_embed": matrix(*names, self.rows or self.vocab, wide, share=0.0),
            "inputs_project": matrix(*project, wide, self.hidden),
            "inputs_norm": vector(*norm, self.width),
        }

    def beside(self, ops: Ops, x: Buffer, w: Values) -> Mapping[str, Buffer]:
        """Return all layers' embeddings of the tokens."""
        if not self.width:
            return {}
        tokens = ops.embed(w["inputs_embed"], self.width**0.5, 0 if self.rows else -1)
        (own,) = ops.linear(x, (w["inputs_project"],), (None,))
        ops.scale(own, self.hidden**-0.5)
        own = ops.norm(own, w["inputs_norm"], self.eps)
        ops.add(own, tokens)
        ops.scale(own, 0.5**0.5)
        return {"inputs": own}


NAMES = MoeNames(router="router.proj.weight", experts=fused("experts.gate_up_proj", "experts.down_proj"))
_PREFIX = "expert_"  # of the experts' keys, as the MLP has a gate, an up and a down too


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsBeside(LayerPart):
    """An MLP and experts that read x through norms of their own and are added before a last one."""

    experts = True

    mlp: GatedMlp
    mixture: Mixture

    @property
    def _moe(self) -> Moe:
        m = self.mlp
        return Moe(hidden=m.hidden, mixture=self.mixture, eps=m.eps, act=m.act, norm=NO_NORM, names=NAMES)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both, the norms around them, and the router's two scales."""
        hidden, experts = self.mlp.hidden, self.mixture.experts
        norms = {
            "mlp_norm": ("post_ffw_norm_1.weight", "post_feedforward_layernorm_1.weight"),
            "experts_norm": ("post_ffw_norm_2.weight", "post_feedforward_layernorm_2.weight"),
            "experts_before": ("pre_ffw_norm_2.weight", "pre_feedforward_layernorm_2.weight"),
            "router_scale": ("ffn_gate_inp.scale", "router.scale"),
        }
        specs = {key: vector(gguf, hf, hidden) for key, (gguf, hf) in norms.items()}
        specs["expert_scale"] = vector("ffn_down_exps.scale", "router.per_expert_scale", experts)
        own = {f"{_PREFIX}{key}": spec for key, spec in self._moe.tensors().items()}
        return self.mlp.tensors() | specs | own

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose the MLP, router and experts, their norms, sum and residual; both see x as it was before."""
        mlp, eps = self.mlp, self.mlp.eps
        h = ops.gated(x, w["gate"], w["up"], mlp.act, w["ffn_norm"], eps)
        (h,) = ops.linear(h, (w["down"],), (None,))
        both = ops.norm(h, w["mlp_norm"], eps)
        scale = np.asarray(w["router_scale"] * np.float32(mlp.hidden**-0.5), np.float32)
        options = {"norm": scale, "eps": eps, "renormalise": True}
        routes = ops.route(x, w[f"{_PREFIX}router"], self.mixture.chosen, **options)
        ops.weigh(routes, w["expert_scale"])
        gate, up, down = (w[f"{_PREFIX}{key}"] for key in ("gate", "up", "down"))
        y = ops.experts(x, routes, gate, up, down, None, act=mlp.act, norm=w["experts_before"], eps=eps)
        ops.add(both, ops.norm(y, w["experts_norm"], eps))
        ops.add_norm(x, both, w["ffn_post_norm"], eps)
