"""Model files in, tensors and metadata out: GGUF, safetensors, and the block formats of weights."""

from freehold.formats.gguf import GGUFFile, open_gguf
from freehold.formats.metadata import Metadata
from freehold.formats.quant import QuantType, block_layout, dequantize, has_codes, row_bytes, split_codes
from freehold.formats.tensor import Tensor

__all__ = [
    "GGUFFile",
    "Metadata",
    "QuantType",
    "Tensor",
    "block_layout",
    "dequantize",
    "has_codes",
    "open_gguf",
    "row_bytes",
    "split_codes",
]
