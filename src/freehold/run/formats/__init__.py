"""Model files in, tensors and metadata out: GGUF, safetensors, and the block formats of weights."""

from freehold.run.formats.blocks import dequantize, has_codes, split_codes
from freehold.run.formats.detect import ModelFile, open_model_file
from freehold.run.formats.gguf import GGUFFile, open_gguf
from freehold.run.formats.lora import LoraFile, LowRank, open_lora
from freehold.run.formats.metadata import Metadata
from freehold.run.formats.safetensors import SafetensorsFile, open_safetensors
from freehold.run.formats.tensor import Tensor
from freehold.run.formats.weight_types import QuantType, block_layout, row_bytes

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
