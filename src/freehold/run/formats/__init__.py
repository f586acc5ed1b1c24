"""Model files in, tensors and metadata out: GGUF, safetensors, and the block formats of weights.

A file is opened by what it contains, never by its name: here is which reader takes which first bytes, and the name of a
file's quantisation, by GGUF's general.file_type.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from freehold.run.formats.blocks import dequantize, has_codes, split_codes
from freehold.run.formats.ctranslate2 import ctranslate2_weights, is_ctranslate2, open_ctranslate2
from freehold.run.formats.fields import Metadata
from freehold.run.formats.filemap import Tensor, not_a_model, read_head
from freehold.run.formats.ggml import is_ggml_whisper, open_ggml
from freehold.run.formats.gguf import MAGIC, GGUFFile, open_gguf
from freehold.run.formats.lora import LoraFile, LowRank, open_lora
from freehold.run.formats.safetensors import SafetensorsFile, is_safetensors, open_safetensors
from freehold.run.formats.weight_types import TABLE_TYPES, QuantType, block_layout, row_bytes

__all__ = [
    "GGUFFile",
    "LoraFile",
    "LowRank",
    "Metadata",
    "ModelFile",
    "QuantType",
    "SafetensorsFile",
    "Tensor",
    "block_layout",
    "dequantize",
    "has_codes",
    "open_gguf",
    "open_lora",
    "open_model_file",
    "open_safetensors",
    "row_bytes",
    "split_codes",
]


ModelFile: TypeAlias = GGUFFile | SafetensorsFile


def open_model_file(path: str | Path) -> ModelFile:
    """Open a GGUF file, a safetensors file, a directory of safetensors, or a Whisper of CTranslate2 or whisper.cpp.

    Raises ModelNotFound when nothing is there, BadModelFile saying what the file is instead.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, False for what may not be looked at
        return open_ctranslate2(path) if ctranslate2_weights(path) else open_safetensors(path)
    head = read_head(path)
    if head.startswith(MAGIC):
        return open_gguf(path)
    if is_safetensors(head):
        return open_safetensors(path)
    if is_ggml_whisper(head):
        return open_ggml(path)
    raise not_a_model(path, head)


def check_model_file(path: str | Path) -> None:
    """Raise BadModelFile for a file that does not start as a model does, and for a device or pipe; reads its head."""
    head = read_head(path := Path(path))
    known = head.startswith(MAGIC) or is_safetensors(head) or is_ctranslate2(head) or is_ggml_whisper(head)
    if not known:
        raise not_a_model(path, head)


# --- the name of a model file's quantisation --------------------------------------------------------

# GGUF's general.file_type; the gaps are types that are no longer written.
_FILE_TYPES = {
    **dict(enumerate(["F32", "F16", "Q4_0", "Q4_1"])),
    **dict(enumerate(["Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M"], 7)),
    **dict(enumerate(["Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS"], 16)),
    **dict(enumerate(["IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"], 24)),
    **dict(enumerate(["TQ1_0", "TQ2_0", "MXFP4"], 36)),
    **{type.value: type.name for type in TABLE_TYPES},  # Freehold's own
}


def quantization_of(opened: ModelFile, type_bytes: Mapping[str, int]) -> str:
    """Name the quantisation as the file does (general.file_type), else the type that most bytes have."""
    stated = opened.metadata.get("general.file_type") if isinstance(opened, GGUFFile) else None
    if isinstance(stated, int) and stated in _FILE_TYPES:
        return _FILE_TYPES[stated]
    return next(iter(type_bytes), "")
