"""A model's own drafting head (multi-token prediction): one more layer, which predicts the token after the next.

    x = fc [enorm(embed(t)) | hnorm(h)],  the layer's parts,  logits = head(norm(x))

h is what the target's head reads after the token before t; chained, what this head itself read. Embedding and output
matrix are the target's. A tensor's name is the one that files have in the head's own group: binding/binder.py.
Sources: arXiv 2412.19437 (DeepSeek-V3, section 2.2); Qwen3-Next's and GLM-4.5's files name the same four weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.run.models.family import Buffer, Ends, Layer, Network, Ops, TensorSpec, Values, matrix, vector
from freehold.run.models.parts.ends import DecoderEnds


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEnds(Ends):
    """What stands before and after the layer of a drafting head."""

    target: DecoderEnds

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare its own weights; `embed` and `head` are the target's."""
        width = self.target.hidden
        offset = self.target.norm.offset
        vectors = {
            "enorm": ("nextn.enorm.weight", ("enorm.weight", "pre_fc_norm_embedding.weight")),
            "hnorm": ("nextn.hnorm.weight", ("hnorm.weight", "pre_fc_norm_hidden.weight")),
            "norm": ("nextn.shared_head_norm.weight", ("shared_head.norm.weight", "norm.weight")),
        }
        specs = {key: vector(gguf, hf, width, hf_offset=offset) for key, (gguf, hf) in vectors.items()}
        names = "nextn.eh_proj.weight", ("eh_proj.weight", "fc.weight")
        return specs | {"fc": matrix(*names, width, 2 * width, adaptable=False)}

    def begin(self, ops: Ops, w: Values) -> Buffer:
        """Project the tokens' embeddings beside the features, which are the target's rows."""
        eps = self.target.eps
        words = ops.norm(ops.embed(w["embed"], self.target.scale), w["enorm"], eps)
        rows = ops.norm(ops.features(self.target.hidden), w["hnorm"], eps)
        (x,) = ops.linear(ops.join(words, rows), (w["fc"],), (None,))
        return x

    def finish(self, ops: Ops, x: Buffer, w: Values) -> None:
        """Compute logits by the target's matrix."""
        self.target.finish(ops, x, w)


def head_network(ends: DecoderEnds, layer: Layer) -> Network:
    """Build a head of one layer; its adapters are none, as those were made for the target's layers."""
    return Network(HeadEnds(target=replace(ends, tied=False)), (layer,))
