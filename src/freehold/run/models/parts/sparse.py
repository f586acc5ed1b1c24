"""Latent attention to picked tokens (DSA): an indexer scores all tokens before a row, which attends to the best alone.

    qI = rope(WqbI norm(Wqa n)) [heads, width],  kI = rope(layernorm(WkI n)) [width],  w = Ww n [heads]
    score(t, s) = sum_h w_th max(0, qI_th . kI_s);  picks(t): the top_k best s <= t, the lower position of equals

A layer without an indexer of its own takes the picks of the last layer that has one. The index's keys are pages of
their own behind the layers' in the same blocks, so they are reused, evicted and restored with the latents; these lie
in rows, of which a step reads the picked ones. The attention is latent.py's.
Sources: arXiv 2512.02556 (DeepSeek-V3.2), GLM-5's model card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from freehold.base.layers import LayerSpec
from freehold.run.models.config.latents import LatentSizes
from freehold.run.models.family import Buffer, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.ends import DecoderEnds
from freehold.run.models.parts.latent import INNER_EPS, LatentAttention

INDEX_EPS = 1e-6  # of the norm of an index's keys


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseSizes(LatentSizes):
    """The sizes of latent attention, and of what picks its tokens."""

    index_heads: int
    index: int  # width of an index's key
    picked: int  # tokens that a row attends to
    indexed: tuple[bool, ...]  # layers that pick by themselves
    adjacent: bool  # whether adjacent pairs of an index's heads turn, else halves


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseAttention(LatentAttention):
    """One layer's latent attention to picked tokens."""

    index_heads: int
    index: int  # 0: it takes the picks of an earlier layer
    index_layer: int  # of its index's keys in the cache
    picked: int
    adjacent: bool

    @classmethod
    def at(cls, cfg: SparseSizes, layer: int) -> SparseAttention:
        """Take the sizes of a layer out of a config."""
        latent = LatentAttention.of(cfg, layer)
        own = cfg.indexed[layer]
        return cls(
            **{each.name: getattr(latent, each.name) for each in fields(latent)},
            index_heads=cfg.index_heads,
            index=cfg.index if own else 0,
            index_layer=cfg.layers + sum(cfg.indexed[:layer]),
            picked=cfg.picked,
            adjacent=cfg.adjacent,
        )

    @property
    def keeps(self) -> LayerSpec:
        """A latent and a key part of every token, and an index's key."""
        return LayerSpec("latent", latent=self.latent, rope=self.turned, index=self.index)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare latent attention's weights and the indexer's."""
        specs = LatentAttention.tensors(self)
        if not self.index:
            return specs
        width = self.index_heads * self.index
        own = {"adaptable": False}
        return specs | {
            "index_q": matrix("indexer.attn_q_b.weight", _hf("wq_b.weight"), width, self.query, **own),
            "index_k": matrix("indexer.attn_k.weight", _hf("wk.weight"), self.index, self.hidden, **own),
            "index_heads": matrix(
                "indexer.proj.weight", _hf("weights_proj.weight"), self.index_heads, self.hidden, **own
            ),
            "index_norm": vector("indexer.k_norm.weight", _hf("k_norm.weight"), self.index),
            "index_bias": vector("indexer.k_norm.bias", _hf("k_norm.bias"), self.index),
        }

    def forward(self, ops: Ops, layer: int, x: Buffer, w: Values) -> None:
        """Compose projections, picks where the layer has an indexer, and attention over picked latents."""
        picks, read = w["picks"], [w["q_a"], w["kv_a"]]
        if self.index:
            read += [w["index_k"], w["index_heads"]]
        low, kv, *own = ops.linear(x, read, [None] * len(read), w["attn_norm"], self.eps)
        projected = [w["q"], w["index_q"]] if self.index else [w["q"]]
        q, *index_q = ops.linear(low, projected, [None] * len(projected), w["q_norm"], INNER_EPS)
        absorbed = ops.linear_heads(q, w["k_b"], self.heads, self.turned)
        ops.latent_store(layer, q, absorbed, kv, w["kv_norm"], INNER_EPS, w["rope"], True)
        if self.index:
            norm, bias = w["index_norm"], w["index_bias"]
            ops.index_store(
                self.index_layer, index_q[0], own[0], norm, bias, INDEX_EPS, w["rope"], self.adjacent
            )
            picks.append(ops.pick(self.index_layer, index_q[0], own[1], self.picked))
        sums = ops.picked_attention(layer, absorbed, picks[-1], self.latent, self.scale)
        ops.linear_add(ops.linear_heads(sums, w["v_b"], self.heads), w["o"], x)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseEnds(DecoderEnds):
    """A decoder's ends, between which layers leave their picks to later ones."""

    def beside(self, ops: Ops, x: Buffer, w: Values) -> Mapping[str, Buffer]:
        """Return the picks so far: none."""
        return {"picks": []}


def _hf(name: str) -> str:
    return f"self_attn.indexer.{name}"
