"""A decoder's ends: the embedding before the first layer, the norm and output head after the last.

Path: Family.ends -> DecoderEnds -> Network.forward
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freehold.models.family import Ends, TensorSpec, Values, matrix, vector
from freehold.models.ops import Buffer, Ops
from freehold.models.sizes import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderEnds(Ends):
    """Embedding, final norm and head; a tied head is the embedding."""

    vocab: int
    hidden: int
    eps: float
    tied: bool
    scale: float = 1.0  # of embeddings
    softcap: float = 0.0  # of logits
    norm_offset: float = 0.0  # of norms in safetensors

    @classmethod
    def of(cls, cfg: Sizes, **options: Any) -> DecoderEnds:
        """Take the sizes out of a config."""
        return cls(vocab=cfg.vocab, hidden=cfg.hidden, eps=cfg.eps, tied=cfg.tied, **options)

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare three weights; a token reads one row of the embedding."""
        size, offset = (self.vocab, self.hidden), self.norm_offset
        tie = {"default": "embed"} if self.tied else {}
        return {
            "embed": matrix("token_embd.weight", "model.embed_tokens.weight", *size, share=0.0),
            "norm": vector("output_norm.weight", "model.norm.weight", self.hidden, hf_offset=offset),
            "head": matrix("output.weight", "lm_head.weight", *size, **tie),
        }

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Look the step's tokens up."""
        return ops.embed(w["embed"], self.scale)

    def finish(self, ops: Ops, x: Buffer, w: Values) -> None:
        """Compute logits."""
        ops.logits(x, w["head"], w["norm"], self.eps, softcap=self.softcap)
