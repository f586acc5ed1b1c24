"""A decoder's ends: the embedding before the first layer, the norm and output head after the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from freehold.run.models.config.sizes import Sizes
from freehold.run.models.family import Buffer, Ends, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.norms import RMS, NormForm


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderEnds(Ends):
    """Embedding, final norm and head; a tied head is the embedding."""

    vocab: int
    hidden: int
    eps: float
    tied: bool
    scale: float = 1.0  # of embeddings
    softcap: float = 0.0  # of logits
    logit_scale: float = 1.0
    norm: NormForm = RMS  # before the head
    bias: bool = False  # of the head

    @classmethod
    def of(cls, cfg: Sizes, **options: Any) -> Self:
        """Take the sizes out of a config."""
        return cls(vocab=cfg.vocab, hidden=cfg.hidden, eps=cfg.eps, tied=cfg.tied, **options)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare both matrices, and the head's norm and bias; a token reads one row of the embedding."""
        size = (self.vocab, self.hidden)
        tie = {"default": "embed"} if self.tied else {}
        specs = {
            "embed": matrix("token_embd.weight", "model.embed_tokens.weight", *size, share=0.0),
            "head": matrix("output.weight", "lm_head.weight", *size, **tie),
        }
        if self.bias:
            specs["head_bias"] = vector("output.bias", "lm_head.bias", self.vocab)
        return specs | self.norm.tensors("norm", "output_norm", "model.norm", self.hidden)

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Look the step's tokens up."""
        return ops.embed(w["embed"], self.scale)

    def finish(self, ops: Ops, x: Buffer, w: Values) -> None:
        """Compute logits."""
        rows, norm = self.norm.before(ops, x, w, "norm", self.eps)
        shape = {"scale": self.logit_scale, "softcap": self.softcap, "bias": w.get("head_bias")}
        ops.logits(rows, w["head"], norm, self.eps, **shape)
