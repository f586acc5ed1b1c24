"""The text half of Qwen2-VL and Qwen2.5-VL: Qwen2's blocks, whose rows of pictures turn by time, row and column.

Sections of pairs lie one after another. Published files state the text half's sizes beside `vision_config`, newer ones
in a `text_config`. Towers: towers/qwen2vl.py, towers/qwen25vl.py. GGUFs call both halves by one name.
Sources: arXiv 2502.13923 (Qwen2.5-VL), 2409.12191 (Qwen2-VL).
"""

from __future__ import annotations

from freehold.run.formats.fields import Fields
from freehold.run.models.config.rope import Sections, gguf_sections, hf_sections
from freehold.run.models.config.sizes import Sizes, gguf_sizes, hf_decoder, qwen_windows
from freehold.run.models.family import Family
from freehold.run.models.parts import Attention, DecoderEnds, GatedMlp

SECTIONS: Sections = (16, 24, 24)  # where a file does not state them
BASE = 1_000_000.0  # of the rope


def config_from_gguf(meta: Fields, vocab: int) -> Sizes:
    sizes = gguf_sizes(meta, vocab, adjacent=False, base=BASE)
    sizes["rope"] = gguf_sections(meta, sizes["rope"], SECTIONS, interleaved=False)
    return Sizes(**sizes)


def config_from_hf(config: Fields) -> Sizes:
    sizes = hf_decoder(config, qwen_windows, base=BASE, eps=1e-5)
    sizes["rope"] = hf_sections(config, sizes["rope"], SECTIONS, interleaved=False)
    return Sizes(**sizes)


FAMILY = Family(
    gguf_architecture="qwen2vl",
    hf_classes=(),
    wrappers=("Qwen2_5_VLForConditionalGeneration", "Qwen2VLForConditionalGeneration"),
    model_types=("qwen2_5_vl", "qwen2_5_vl_text", "qwen2_vl", "qwen2_vl_text"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    parts=(Attention, GatedMlp),
    layer=lambda cfg, i: (Attention.of(cfg, i, bias="qkv"), GatedMlp.of(cfg, i)),
    ends=DecoderEnds.of,
    towers=("qwen25vl", "qwen2vl"),
)
