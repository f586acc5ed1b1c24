"""The name of a model file's quantisation: as its metadata states it, else the type that most bytes have.

Knows GGUF's general.file_type; knows no weights.
Path: local/opening.py or server/ollama/cards.py -> quantization_of -> "Q4_K_M"
"""

from __future__ import annotations

from collections.abc import Mapping

from freehold.formats.detect import ModelFile
from freehold.formats.gguf import GGUFFile
from freehold.formats.weight_types import TABLE_TYPES

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
