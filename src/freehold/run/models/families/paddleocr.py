"""The text half of PaddleOCR-VL: ERNIE 4.5's sizes in a Llama block, whose pairs are halves in both file formats.

Rows of pictures turn by time, row and column, whose sections of pairs lie one after another. Published files state the
text half's sizes beside `vision_config`, newer ones in a `text_config`. Tower: towers/paddleocr.py.
Source: arXiv 2510.14528 (PaddleOCR-VL).
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.rope import Sections, gguf_sections, hf_sections
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

SECTIONS: Sections = (16, 24, 24)  # where a file does not state them
BASE = 500_000.0  # of the rope


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False, base=BASE)
    sizes["rope"] = gguf_sections(meta, sizes["rope"], SECTIONS, interleaved=False)
    return Sizes(**sizes)


def config_from_hf(config: Fields) -> Sizes:
    config.refuse("use_bias", "a bias on attention and MLP")
    sizes = hf_decoder(config, base=BASE, head_dim=128, tied=True, eps=1e-5)
    sizes["rope"] = hf_sections(config, sizes["rope"], SECTIONS, interleaved=False)
    return Sizes(**sizes)


FAMILY = Family(
    gguf_architecture="paddleocr",
    hf_classes=(),
    wrappers=("PaddleOCRVLForConditionalGeneration",),
    model_types=("paddleocr_vl", "paddleocr_vl_text"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i), GatedMlp.of(cfg, i)),
    ends=DecoderEnds.of,
    towers=("paddleocr",),
)
