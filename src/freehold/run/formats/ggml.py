"""Reads whisper.cpp's file of a Whisper in place over mmap: its tensors under the names of safetensors, and its tokens.

Knows the container, and what whisper.cpp makes up: tokens that are not text have no entry in the file and follow from
the size of the vocabulary. Knows no arithmetic; the filters in the file are passed over, since models/mel.py computes
them. Trusts nothing: tensors must fill the file to the byte.

Layout, little-endian, numbers of 32 bits: magic; eleven sizes; filters: rows, columns, f32; tokens: their count, of
each its length and bytes; then tensors to the end: rank, length of the name, type, dimensions from the last on, name,
data. A convolution's bias is [n, 1]. Read of whisper.cpp, August 2026.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.formats.fields import Metadata
from freehold.run.formats.filemap import FETCH_AGAIN, MappedReader, Tensor, TensorFile, map_file, shown
from freehold.run.formats.safetensors import SafetensorsFile
from freehold.run.formats.weight_types import quant_type, tensor_bytes

MAGIC = b"lmgg"  # of other files too, from before GGUF
HEADER = ("vocab", "heard", "width", "heads", "layers", "texts", "text_width", "text_heads", "text_layers")
HEADER += ("mels", "type", "rows", "columns")
MAX_SIZE, MAX_COLUMNS = 1 << 24, 4096
MAX_TENSORS, MAX_NAME, MAX_DIMS, MAX_TOKEN = 4096, 256, 4, 1024
END = "<|endoftext|>"
# After the text and the end, in this order, with the languages after the first of them; then a mark for each row of
# sound and one more.
CONTROL = ("<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>")
CONTROL += ("<|nospeech|>", "<|notimestamps|>")
# In the vocabulary's order; Cantonese came with large-v3.
_CODES = """
en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy sk
te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo
ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue
"""
LANGUAGES = tuple(_CODES.split())

_ENDS = {
    "encoder.positional_embedding": "model.encoder.embed_positions.weight",
    "decoder.positional_embedding": "model.decoder.embed_positions.weight",
    "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
    "encoder.ln_post": "model.encoder.layer_norm",
    "decoder.ln": "model.decoder.layer_norm",
    "encoder.conv1": "model.encoder.conv1",
    "encoder.conv2": "model.encoder.conv2",
}
_BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d{1,4})\.(.+)\.(weight|bias)")
_PARTS = {"attn_ln": "self_attn_layer_norm", "cross_attn_ln": "encoder_attn_layer_norm"}
_PARTS |= {"mlp_ln": "final_layer_norm", "mlp.0": "fc1", "mlp.2": "fc2"}
_PARTS |= {
    f"{theirs}.{name}": f"{ours}.{module}"
    for theirs, ours in (("attn", "self_attn"), ("cross_attn", "encoder_attn"))
    for name, module in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj"))
}


class GgmlWhisperFile(SafetensorsFile):
    """An open file; `config` is what Hugging Face's config.json would say.

    `words`: the bytes of each token of text, by id. `control`: the tokens after them, without marks of time.
    """

    def __init__(
        self, path: Path, tensors: dict[str, Tensor], config: dict[str, Any], words: list[bytes]
    ) -> None:
        TensorFile.__init__(self, path, (path,), tensors)  # no file beside it belongs to it
        self.config = Metadata(config, str(path))
        self.params = self.generation_config = Metadata({}, str(path))
        self.tokenizer_json = self.tokenizer_config = self.chat_template = None
        self.words = words
        self.control = control_tokens(path, len(words), config["vocab_size"], config["max_source_positions"])


def is_ggml_whisper(head: bytes) -> bool:
    """Tell whether a file that starts with `head` (56 bytes or more) is a Whisper of whisper.cpp."""
    if not head.startswith(MAGIC) or len(head) < 4 * (1 + len(HEADER)):
        return False
    sizes = _sizes(head[4:])
    same = sizes["width"] == sizes["text_width"] and sizes["rows"] == sizes["mels"]
    return same and all(0 < sizes[name] <= MAX_SIZE for name in HEADER if name != "type")


def open_ggml(path: str | Path) -> GgmlWhisperFile:
    """Open a file of whisper.cpp; tensors are views of it.

    Raises BadModelFile naming file and value, UnsupportedModel for what no Whisper has, ModelNotFound.
    """
    path = Path(path)
    reader = MappedReader(path, map_file(path))
    head = reader.take(4 * (1 + len(HEADER))).tobytes()
    if not is_ggml_whisper(head):
        raise BadModelFile(f"{path} is not a Whisper of whisper.cpp", FETCH_AGAIN)
    sizes = _sizes(head[4:])
    if sizes["columns"] > MAX_COLUMNS:
        raise BadModelFile(
            f"{path} has filters of {sizes['columns']:,} columns; the limit is {MAX_COLUMNS:,}"
        )
    reader.take(4 * sizes["rows"] * sizes["columns"])
    words = _words(reader, sizes["vocab"])
    tensors: dict[str, Tensor] = {}
    while reader.at < len(reader.data):
        tensor = _tensor(reader)
        if tensor.name in tensors or len(tensors) >= MAX_TENSORS:
            raise BadModelFile(
                f"{path} holds {shown(tensor.name)} twice, or more than {MAX_TENSORS:,} tensors"
            )
        tensors[tensor.name] = tensor
    return GgmlWhisperFile(path, tensors, _config(path, sizes, tensors), words)


def control_tokens(path: Path, words: int, vocab: int, heard: int) -> list[str]:
    """Return the tokens after `words` of text, of a vocabulary with a mark of time for each row of sound and one more.

    Raises BadModelFile for a vocabulary that leaves no whole number of languages.
    """
    languages = vocab - words - 1 - len(CONTROL) - (heard + 1)
    if not 0 <= languages <= len(LANGUAGES):
        raise BadModelFile(
            f"{path} has {words:,} tokens of text of {vocab:,}, which leaves {languages:,} languages; "
            f"a Whisper has up to {len(LANGUAGES)}",
            "convert the model again",
        )
    return [END, CONTROL[0], *(f"<|{code}|>" for code in LANGUAGES[:languages]), *CONTROL[1:]]


def _sizes(head: bytes) -> dict[str, int]:
    return {
        name: int.from_bytes(head[4 * i : 4 * i + 4], "little", signed=True) for i, name in enumerate(HEADER)
    }


def _words(reader: MappedReader, vocab: int) -> list[bytes]:
    """Return the tokens of text; converters of Hugging Face's vocabulary end the list with the end itself."""
    count = reader.number(4)
    if not 0 < count <= vocab:
        raise BadModelFile(f"{reader.path} lists {count:,} tokens; a vocabulary of {vocab:,} has 1 or more")
    words: list[bytes] = []
    for _ in range(count):
        size = reader.number(4)
        if size > MAX_TOKEN:
            raise BadModelFile(f"{reader.path} has a token of {size:,} bytes; the limit is {MAX_TOKEN:,}")
        words.append(reader.take(size).tobytes())
    return words[:-1] if words[-1] == END.encode() else words


def _tensor(reader: MappedReader) -> Tensor:
    rank, length, code = (reader.number(4) for _ in range(3))
    if not 1 <= rank <= MAX_DIMS or not 1 <= length <= MAX_NAME:
        raise BadModelFile(
            f"{reader.path} has a tensor of {rank:,} dimensions and a name of {length:,} bytes before byte "
            f"{reader.at:,}; at most {MAX_DIMS} and {MAX_NAME} are read",
            FETCH_AGAIN,
        )
    shape = tuple(reversed([reader.number(4) for _ in range(rank)]))
    stored = reader.take(length).tobytes().decode("utf-8", "replace")
    if not all(0 < n <= MAX_SIZE for n in shape):
        raise BadModelFile(f"{reader.path}: tensor {shown(stored)} has the shape {shape}", FETCH_AGAIN)
    name, kind = _named(reader.path, stored), quant_type(code)
    data = reader.take(tensor_bytes(kind, shape))
    if name.endswith(("conv1.bias", "conv2.bias")):
        shape = tuple(n for n in shape if n != 1)
    return Tensor(name, kind, shape, data)


def _named(path: Path, stored: str) -> str:
    """Return what safetensors call a tensor."""
    stem, _, leaf = stored.rpartition(".")
    if stored in _ENDS:
        return _ENDS[stored]
    if stem in _ENDS and leaf in ("weight", "bias"):
        return f"{_ENDS[stem]}.{leaf}"
    match = _BLOCK.fullmatch(stored)
    if match and match[3] in _PARTS:
        return f"model.{match[1]}.layers.{match[2]}.{_PARTS[match[3]]}.{match[4]}"
    raise UnsupportedModel(
        f"{path} holds the tensor {shown(stored)}, which no Whisper has", "convert the model again"
    )


def _config(path: Path, sizes: dict[str, int], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that Hugging Face's config.json states."""
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": sizes["width"],
        "num_mel_bins": sizes["mels"],
        "vocab_size": sizes["vocab"],
        "max_source_positions": sizes["heard"],
        "max_target_positions": sizes["texts"],
    }
    for side, of in (("encoder", ""), ("decoder", "text_")):
        inner = tensors.get(f"model.{side}.layers.0.fc1.weight")
        if inner is None or len(inner.shape) != 2:
            raise BadModelFile(f"{path} has no matrix {side}.blocks.0.mlp.0.weight", FETCH_AGAIN)
        config[f"{side}_layers"] = sizes[f"{of}layers"]
        config[f"{side}_attention_heads"] = sizes[f"{of}heads"]
        config[f"{side}_ffn_dim"] = inner.shape[0]
    return config
