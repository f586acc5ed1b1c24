"""Writes a GGUF of random weights at a model's real shapes, in the weight types that a Q4_K_M file has.

Knows which matrix gets which type and how random blocks look; which matrices there are is our own families'
declarations, so a shape needs metadata alone.
Path: engine/layers.py -> write -> a file that both engines load
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from freehold.run.formats.fields import Fields
from freehold.run.models.families import naming
from freehold.run.models.family import Cut, Family, TensorSpec, renamed

VOCAB = 8192  # a head of a real vocabulary would outweigh two or four layers
Q4, Q5, Q6, Q8, MX, F32 = (
    gguf.GGMLQuantizationType[name] for name in ("Q4_K", "Q5_0", "Q6_K", "Q8_0", "MXFP4", "F32")
)
BLOCK = {Q4: (256, 144), Q5: (32, 22), Q6: (256, 210), Q8: (32, 34), MX: (32, 17), F32: (1, 4)}
DEVIATION = 0.02  # of weights
SMALL = 1 << 16  # values in a matrix that a converter leaves in floats
FINER = {"v", "down", "head", "embed", "v_b"}  # every second layer's, as llama.cpp chooses for Q4_K_M


class Stored(NamedTuple):
    """A tensor of the file: its declaration, shape and type, and how much of it a token reads."""

    name: str
    key: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    share: float
    layer: int  # -1: of the ends

    @property
    def weights(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> float:
        """Bytes in the file."""
        inputs, size = BLOCK[self.kind]
        return self.weights * size / inputs


def family_of(architecture: str, keys: Mapping[str, Any]) -> Family:
    """Return the family that computes an architecture, with experts or without."""
    experts = bool(keys.get("expert_count"))
    return next(
        f for f in naming(architecture) if f.gguf_architecture == architecture and f.experts == experts
    )


def tensors(architecture: str, keys: Mapping[str, Any]) -> Iterator[Stored]:
    """Yield every tensor that a file with these metadata keys holds, each once; a tied head is left out."""
    family = family_of(architecture, keys)
    meta = Fields({f"{architecture}.{key}": value for key, value in keys.items()}, f"{architecture}.")
    cfg = family.config_from_gguf(meta, keys.get("vocab_size", VOCAB))
    network, seen = family.network(cfg), set[str]()
    groups = [(-1, "", renamed(network.ends.tensors(), family.names))]
    groups += [(i, f"blk.{i}.", layer.tensors()) for i, layer in enumerate(network.layers)]
    if keys.get("nextn_predict_layers") and family.head is not None:
        head, last = family.head(cfg), len(network.layers)
        groups += [(last, f"blk.{last}.", each.tensors()) for each in (head.ends, head.layers[0])]
    for layer, prefix, specs in groups:
        for key, spec in specs.items():
            if not spec.gguf or spec.optional:
                continue
            first = spec.gguf[0]
            name = prefix + (first.name if isinstance(first, Cut) else first)
            shape = first.shape if isinstance(first, Cut) else spec.shape
            if name not in seen:
                seen.add(name)
                yield Stored(
                    name, key, shape, type_of(architecture, key, spec, shape, layer), spec.share, layer
                )


def type_of(
    architecture: str, key: str, spec: TensorSpec, shape: tuple[int, ...], layer: int
) -> gguf.GGMLQuantizationType:
    """Choose a type as a Q4_K_M file has it: finer in every second layer, blocks of 32 where 256 do not fit."""
    if len(shape) < 2 or len(spec.shape) < 2 or spec.floats or np.prod(shape) < SMALL or shape[-1] % 32:
        return F32
    if architecture == "gpt-oss" and len(shape) == 3:
        return MX
    finer = key in FINER and (layer < 0 or layer % 2 == 1)
    if shape[-1] % 256:
        return Q8 if finer or architecture == "gpt-oss" else Q5
    return Q6 if finer else Q4


def values(rng: np.random.Generator, it: Stored) -> np.ndarray:
    """Draw a tensor: random codes under one scale, or floats that keep activations near one."""
    if it.kind == F32:
        return floats(rng, it)
    inputs, size = BLOCK[it.kind]
    *rows, columns = it.shape
    raw = rng.integers(0, 256, (*rows, columns // inputs, size), np.uint8)
    # Rows of the embedding outweigh what a mixer adds to all alike, so that tokens choose experts of their own.
    wanted = 1.0 if it.key == "embed" else DEVIATION
    if it.kind == Q4:  # d * sub * code - dmin * min: sub, min and code average 31, 31 and 7.5
        raw[..., 0:4] = np.array([1e-4, 7.5e-4], "<f2").view(np.uint8)
    elif it.kind == Q6:  # d * sub * (code - 32): sub and code deviate by 74 and 18
        raw[..., 208:210] = np.array([7.5e-4 * wanted], "<f2").view(np.uint8)
    elif it.kind == MX:  # codes deviate by 2.6; scale 2^(byte - 127)
        raw[..., 0] = 120
    else:
        raw[..., 0:2] = np.array([wanted / (73 if it.kind == Q8 else 9.2)], "<f2").view(np.uint8)
    return raw.reshape(*rows, -1)


def floats(rng: np.random.Generator, it: Stored) -> np.ndarray:
    """Draw floats by what they are: norms of one, decays below zero, everything else normal."""
    if "norm" in it.name or it.key in ("d", "ssm_d"):
        return np.ones(it.shape, np.float32)
    if it.name.endswith("ssm_a"):
        return -rng.uniform(1, 16, it.shape).astype(np.float32)
    drawn = rng.standard_normal(it.shape, np.float32)
    if len(it.shape) == 1:
        return drawn * np.float32(0.1) - np.float32(2.0 if "ssm_dt" in it.name else 0.0)
    return drawn * np.float32((2.0 if it.key == "router" else 1.0) * it.shape[-1] ** -0.5)


RARE = 100  # one in this many of the rows after the frequent ones is not made smaller: a few of an answer's tokens
SHARPER = (
    12.5  # times larger an output matrix: else logits deviate by 0.02 sqrt(width), and all ids are as likely
)


def seldom(raw: np.ndarray, it: Stored, frequent: int) -> None:
    """Make an output matrix's rows from `frequent` on smaller, so that answers hold mostly the ids before them."""
    if it.key != "head" or it.kind != Q6:
        return
    scales = raw.reshape(it.shape[0], -1, 210)[:, :, 208:210].view("<f2")
    scales *= np.float16(SHARPER)
    later = scales[frequent:]
    later[np.arange(len(later)) % RARE > 0] *= np.float16(0.25)


def write(
    path: Path, architecture: str, keys: Mapping[str, Any], template: str = "", frequent: int = 0
) -> None:
    """Write the file; `keys` are those under the architecture's prefix. `template`: of chats, none unless given.

    `frequent`: how many of the first ids make nearly all of an answer, as those of real vocabularies do (0: all alike).
    """
    writer, rng = gguf.GGUFWriter(path, architecture), np.random.default_rng(0)
    for key, value in {"vocab_size": VOCAB, **keys}.items():
        name = f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(name, value)
    add_vocabulary(writer, keys.get("vocab_size", VOCAB))
    if template:
        writer.add_chat_template(template)
    for it in tensors(architecture, keys):
        raw = values(rng, it)
        if frequent:
            seldom(raw, it, frequent)
        writer.add_tensor(it.name, raw, raw_dtype=it.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, count: int) -> None:
    """Add 256 tokens of a byte, one merge, and unused tokens: as many as the output matrix has rows."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    spelled = [chr(b) if b in plain else chr(256 + others.index(b)) for b in range(256)]
    tokens = [*spelled, "ab", *(f"<unused{i}>" for i in range(count - 257))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * (count - 257))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(count - 1)
