"""GLM-4 of 2024 and 0414: norms before and after each half, and a rope on half of a head, in adjacent pairs.

Gate and up are one matrix in both file formats. GLM-4.1V and the small 4.6V have the same blocks; rows of pictures turn
by time, row and column, whose sections of pairs lie one after another. A GGUF of those lays pairs in halves.
Sources: arXiv 2406.12793, 2507.01006 (GLM-4.1V). Tower: towers/glm4v.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from freehold.run.formats.fields import Fields
from freehold.run.models.config.rope import Sections, gguf_sections, hf_sections
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family, LayerPart, TensorSpec
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

EPS = 0.00000015625
SECTIONS: Sections = (8, 12, 12)  # of a model that sees, where its config does not state them
SEEING = ("glm4v", "glm4v_text")
WRAPPERS = ("Glm4vForConditionalGeneration", "Glm46VForConditionalGeneration")


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    """Read the keys under `glm4.`; a file with sections of its rope is one of a model that sees."""
    sees = meta.get("rope.dimension_sections") is not None
    sizes = gguf_sizes(meta, vocab, adjacent=not sees)
    if sees:
        sizes["rope"] = gguf_sections(meta, sizes["rope"], SECTIONS, interleaved=False)
    return Sizes(**sizes)


def config_from_hf(config: Fields) -> Sizes:
    if config.text("model_type", "") not in SEEING:
        return Sizes(**hf_decoder(config, partial=0.5, adjacent=True, head_dim=128, eps=EPS))
    sizes = hf_decoder(config, partial=0.5, adjacent=True, eps=1e-5)
    sizes["rope"] = hf_sections(config, sizes["rope"], SECTIONS, interleaved=False)
    return Sizes(**sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidInHalves(Attention):
    """Attention of a GGUF whose rows of q and k lie otherwise than an adapter's: in halves of what turns."""

    def tensors(self) -> dict[str, TensorSpec]:
        """Declare the same weights, of which q and k take no adapter."""
        specs = super(LaidInHalves, self).tensors()
        return {
            key: replace(spec, adaptable=spec.adaptable and key not in "qk") for key, spec in specs.items()
        }


def layer(cfg: Sizes, i: int) -> tuple[LayerPart, ...]:
    rope = cfg.rope
    kind = LaidInHalves if rope and rope.sections and not rope.adjacent else Attention
    attention = kind.of(cfg, i, bias="any", post_norm="post_self_attn_layernorm")
    return attention, GatedMlp.of(cfg, i, fused=True, post_norm="post_mlp_layernorm")


FAMILY = Family(
    gguf_architecture="glm4",
    hf_classes=("Glm4ForCausalLM",),
    wrappers=WRAPPERS,
    model_types=SEEING,
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=layer,
    ends=DecoderEnds.of,
    towers=("glm4v",),
)
