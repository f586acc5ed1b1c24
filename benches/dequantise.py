"""Writes a GGUF file's weights as BF16, for peers that cannot read its quantisation. Knows no peer.

The copy lies under .peers/weights/ and is made once. BF16 rounds the dequantised values to 8 bits of mantissa.
Path: contest.Contest.load -> bf16_copy
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benches.environments import PEERS


def bf16_copy(path: Path) -> Path:
    """Return the path of the file's BF16 copy, made on first use; vectors stay float32."""
    import gguf
    import numpy as np

    copy = PEERS / "weights" / f"{path.stem}-{path.stat().st_size}-bf16.gguf"
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    reader, part = gguf.GGUFReader(path), copy.with_suffix(".part")
    writer = gguf.GGUFWriter(part, reader.fields["general.architecture"].contents())
    _copy_metadata(gguf, reader, writer)
    wide = gguf.GGMLQuantizationType.BF16
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        kind, size = (None, 4) if len(shape) == 1 else (wide, 2)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), int(tensor.n_elements) * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.write_tensor_data(values if len(tensor.shape) == 1 else gguf.quants.quantize(values, wide))
    writer.close()
    os.replace(part, copy)
    return copy


def _copy_metadata(gguf: Any, reader: Any, writer: Any) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_BF16)
        writer.add_key_value(field.name, value, kind, sub_type=inner)
