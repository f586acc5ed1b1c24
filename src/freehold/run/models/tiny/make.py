"""Makes a tiny random model of a family, as safetensors and as GGUF, from the family's declarations.

Knows how declared weights become stored tensors; knows no family's names or shapes. A configuration is data
(configs/NAME.json, see TinyConfig). The GGUF is made from the safetensors, read as any model is: both hold one model.
"""

from __future__ import annotations

import json
import math
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.config import suggestion
from freehold.base.errors import UnsupportedModel, UsageError
from freehold.run.formats import QuantType, open_model_file
from freehold.run.formats.fields import Fields
from freehold.run.formats.gguf import DEFAULT_ALIGNMENT
from freehold.run.formats.gguf_writer import TensorPlan, gguf_header
from freehold.run.models.binding.bind import Source, family_of, gguf_family, read_source
from freehold.run.models.family import Cut, Family, TensorSpec, renamed
from freehold.run.models.towers import of_model_type

F32 = NDArray[np.float32]
Shape = tuple[int, ...]
# From a GGUF tensor's name and values to its type and bytes.
Encode = Callable[[str, F32], tuple[QuantType, bytes]]
_CONFIGS = files("freehold.run.models.tiny") / "configs"


@dataclass(frozen=True, slots=True)
class PictureMarks:
    """What a model that sees has beside words: tokens in place of the last ones, and its template's for a picture."""

    tokens: tuple[str, ...] = ()
    picture: str = ""
    sound: str = ""  # its template's for a sound


NO_MARKS = PictureMarks()


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyConfig:
    """A tiny model's configuration."""

    name: str
    seed: int  # what draws the weights
    hf: dict[str, Any]  # its config.json
    gguf: dict[str, Any] = field(default_factory=dict)  # a GGUF's keys; empty: none can express it
    tensors: dict[str, list[float]] = field(default_factory=dict)  # what a GGUF holds beside weights
    optional: tuple[str, ...] = ()  # declared keys that it has although they may be missing
    turns: dict[str, list[int]] = field(default_factory=dict)  # keys whose heads a GGUF reorders: _in_turns
    halves: dict[str, list[int]] = field(
        default_factory=dict
    )  # keys whose pairs a GGUF lays in halves: _in_halves
    names: dict[str, int] = field(default_factory=dict)  # which of a key's names safetensors have; else 0
    shapes: dict[str, list[int]] = field(default_factory=dict)  # of stored vectors with more dimensions
    beside: dict[str, list[int]] = field(default_factory=dict)  # shapes of tensors that no part declares
    preprocessor: dict[str, Any] = field(default_factory=dict)  # its preprocessor_config.json, if it sees
    extractor: dict[str, Any] = field(
        default_factory=dict
    )  # what its processor_config.json says of sound, if it hears
    mmproj: dict[str, Any] = field(default_factory=dict)  # keys of the GGUF of its tower
    marks: tuple[str, ...] = ()  # tokens that its config.json names, if it sees; else Qwen's
    picture: str = ""  # what its chat template writes for a picture; else as Qwen's
    sound: str = ""  # the same for a sound
    head: str = (
        ""  # how safetensors name its drafting head: "mtp", or "layers" after the last; empty: it has none
    )
    text_half: str = "language_model"  # what a wrapper of text and pictures calls it

    @property
    def sees(self) -> bool:
        """Whether it has a tower, for pictures."""
        return bool(self.preprocessor)

    @property
    def hears(self) -> bool:
        """Whether it has a tower, for sounds."""
        return bool(self.extractor)

    @property
    def writes_speech(self) -> bool:
        """Whether it writes down recordings: tiny/speech.py adds its vocabulary."""
        return self.family.prefix is not None

    @property
    def picture_marks(self) -> PictureMarks:
        """What it has beside words."""
        if not self.sees and not self.hears:
            return NO_MARKS
        return PictureMarks(self.marks, self.picture, self.sound) if self.marks else QWEN_MARKS

    @property
    def architecture(self) -> str:
        """What a GGUF calls it; empty: none can."""
        return self.gguf.get("general.architecture", "")

    @property
    def family(self) -> Family:
        """The family that its config.json names."""
        return family_of(self.hf)[0]


def names() -> list[str]:
    """List the configurations."""
    return sorted(
        path.name.removesuffix(".json") for path in _CONFIGS.iterdir() if path.name.endswith(".json")
    )


def config(name: str, seed: int | None = None) -> TinyConfig:
    """Read a configuration. Raises UsageError with the nearest name."""
    if name not in names():
        hint = suggestion(name, names(), "freehold make-tiny --list shows all")
        raise UsageError(f"there is no tiny configuration {name!r}", hint)
    read = json.loads((_CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    read |= {key: tuple(read.get(key, ())) for key in ("optional", "marks")}
    read |= {} if seed is None else {"seed": seed}
    return TinyConfig(name=name, **read)


# --- safetensors ---------------------------------------------------------------------------------------


def write_safetensors(tiny: TinyConfig, folder: Path, *, dtype: str = "F32") -> Path:
    """Write config.json, the weights as F32, F16 or BF16, and the tokenizer's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    _write_json(folder / "config.json", tiny.hf | {"torch_dtype": named})
    _write_json(folder / "generation_config.json", generation_config())
    _write_json(folder / "tokenizer.json", tokenizer_json(tiny.picture_marks))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(tiny.picture_marks))
    if tiny.sees:
        _write_json(folder / "preprocessor_config.json", tiny.preprocessor)
    if tiny.hears:
        _write_json(folder / "processor_config.json", {"feature_extractor": tiny.extractor})
    (folder / "model.safetensors").write_bytes(safetensors_bytes(hf_tensors(tiny), dtype))
    return folder


def hf_tensors(tiny: TinyConfig) -> dict[str, F32]:
    """Draw every tensor that a safetensors model stores, by its published name."""
    tensors: dict[str, F32] = {}
    for prefix, key, spec in declared(tiny):
        if not spec.hf or ((spec.optional or spec.default) and key not in tiny.optional):
            continue
        for stored, shape in _stored(spec.hf[tiny.names.get(key, 0)], spec.shape):
            shape = tuple(tiny.shapes.get(stored, shape))
            name = _of_text(tiny, prefix + stored)
            if name not in tensors:
                centred = spec.hf_offset != 0.0
                tensors[name] = tensor(tiny.seed, name, shape, zero_centred=centred)
            assert tensors[name].shape == shape, f"{name} is declared with two shapes"
    tensors |= {name: tensor(tiny.seed, name, tuple(shape)) for name, shape in tiny.beside.items()}
    return tensors | tower_tensors(tiny)


def _of_text(tiny: TinyConfig, name: str) -> str:
    """Return what a wrapper of text and pictures calls a tensor of its text half; plain_name is the way back."""
    inner = name.removeprefix("model.")
    wrapped = "text_config" in tiny.hf
    return f"model.{tiny.text_half}.{inner}" if wrapped and inner != name else name


def declared(tiny: TinyConfig) -> Iterator[tuple[str, str, TensorSpec]]:
    """Yield the prefix, the key and the declaration of every weight, as a safetensors model has them."""
    family, fields, _ = family_of(tiny.hf)
    network = family.network(family.config_from_hf(fields))
    for key, spec in renamed(network.ends.tensors(), family.names).items():
        yield "", key, spec
    for i, layer in enumerate(network.layers):
        for key, spec in layer.tensors().items():
            yield f"{family.hf_layers}.{i}.", key, spec
    yield from _of_head(tiny, family, family.config_from_hf(fields))


def _of_head(tiny: TinyConfig, family: Family, cfg: Any) -> Iterator[tuple[str, str, TensorSpec]]:
    """Yield the same of its drafting head, with the names that files of its kind have."""
    if not tiny.head or family.head is None:
        return
    network = family.head(cfg)
    ends, layer = (
        ("mtp.", "mtp.layers.0.") if tiny.head == "mtp" else (f"{family.hf_layers}.{cfg.layers}.",) * 2
    )
    for key, spec in network.ends.tensors().items():
        yield ends, f"head_{key}", replace(spec, hf=spec.hf[-1:] if tiny.head == "mtp" else spec.hf[:1])
    for key, spec in network.layers[0].tensors().items():
        yield layer, key, spec


def _stored(name: str | Cut, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of the stored tensors that hold a declared weight.

    Several, where experts lie apart, or where a weight is joined of parts; any division of the rows will do.
    """
    stored, shape = (name, shape) if isinstance(name, str) else (name.name, name.shape)
    if isinstance(stored, tuple):
        ends = [shape[0] * i // len(stored) for i in range(len(stored) + 1)]
        yield from ((each, (b - a, *shape[1:])) for each, a, b in zip(stored, ends, ends[1:], strict=False))
    elif "{e}" in stored:
        yield from ((stored.replace("{e}", str(e)), shape[1:]) for e in range(shape[0]))
    else:
        yield stored, shape


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


# --- the tower of a model that sees: tensors beside its text half's, or a GGUF of its own ---------------


def tower_tensors(tiny: TinyConfig) -> dict[str, F32]:
    """Draw every tensor of the tower that a safetensors model stores, by its published name; none without one."""
    tensors: dict[str, F32] = {}
    for name, shape, _, _, spec in _of_tower(tiny):
        if name not in tensors:
            tensors[name] = tensor(tiny.seed, name, shape, zero_centred=spec.hf_offset != 0.0)
        assert tensors[name].shape == shape, f"{name} is declared with two shapes"
    return tensors


def _of_tower(tiny: TinyConfig) -> Iterator[tuple[str, Shape, tuple[str, ...], Shape, TensorSpec]]:
    """Yield name and shape of what safetensors store of each declared weight, what a GGUF stores, and the weight."""
    for settings, hears in ((tiny.preprocessor, False), (tiny.extractor, True)):
        tower = of_model_type(tiny.hf["model_type"], hears) if settings else None
        if tower is None:
            continue
        cfg = tower.config_from_hf(Fields(tiny.hf), Fields(settings))
        for hf_prefix, gguf_prefix, _, spec in tower.declared(cfg):
            (name, shape), *others = _stored(spec.hf[0], spec.shape)
            assert not others, f"{name}: a tower's weights are not stored in pieces"
            pieces = list(_stored(spec.gguf[0], spec.shape))
            names = tuple(gguf_prefix + piece for piece, _ in pieces)
            yield f"model.{hf_prefix}{name}", shape, names, pieces[0][1], spec


def write_mmproj(tiny: TinyConfig, path: Path, *, encode: Encode | None = None) -> Path:
    """Write the tower as a GGUF; `encode` chooses each tensor's type, float32 unless given.

    Raises UnsupportedModel for a configuration without one.
    """
    if not tiny.mmproj:
        raise UnsupportedModel(
            f"{tiny.name} has no tower", "freehold make-tiny qwen3_vl makes a model with one"
        )
    path.write_bytes(gguf_bytes(tiny.mmproj | _about(tiny), _encoded(mmproj_tensors(tiny), encode)))
    return path


def mmproj_tensors(tiny: TinyConfig) -> dict[str, F32]:
    """Give every tensor that a GGUF of the tower stores, float32, by name: those of safetensors, renamed.

    Where a GGUF holds one in several, they are its slices along the axis that they lack: frames of a convolution.
    """
    stored = tower_tensors(tiny)
    tensors: dict[str, F32] = {}
    for name, shape, names, piece, spec in _of_tower(tiny):
        if len(names) == 1:
            values = stored[name]
            own = spec.hf[0]
            gguf = spec.gguf[0]
            plain = isinstance(gguf, str)  # a GGUF has it as it is declared
            if isinstance(own, str) and not plain and gguf.rows is not None:  # and these rows of a tensor
                whole = tensors.setdefault(names[0], np.full(piece, np.nan, np.float32))
                whole[np.asarray(gguf.rows)] = values
                continue
            if isinstance(own, Cut) and (
                values.shape != piece or (own.take and plain)
            ):  # files lay it otherwise
                values = own.take(values) if own.take else values[np.asarray(own.rows)]
            values = values.reshape(piece) + np.float32(spec.hf_offset)
            tensors[names[0]] = in_gguf_order(values, spec.head)
            continue
        (axis,) = (i for i in range(len(shape)) if shape[:i] + shape[i + 1 :] == piece)
        slices = np.moveaxis(stored[name], axis, 0)
        tensors |= dict(zip(names, map(np.ascontiguousarray, slices), strict=True))
    return tensors


# --- GGUF ------------------------------------------------------------------------------------------------


def write_gguf(
    tiny: TinyConfig, path: Path, *, encode: Encode | None = None, keys: Mapping[str, Any] | None = None
) -> Path:
    """Write the model as one GGUF; `encode` chooses each tensor's type, float32 unless given; `keys` win over ours.

    Raises UnsupportedModel for a configuration that a GGUF cannot express.
    """
    written = tiny.gguf | _about(tiny) | gguf_keys(tiny.picture_marks) | dict(keys or {})
    path.write_bytes(gguf_bytes(written, _encoded(gguf_tensors(tiny), encode)))
    return path


def _about(tiny: TinyConfig) -> dict[str, Any]:
    return {"general.name": f"tiny random {tiny.name}", "general.file_type": 0}


def _encoded(tensors: Mapping[str, F32], encode: Encode | None) -> dict[str, tuple[QuantType, Shape, bytes]]:
    encode = encode or (lambda _name, values: (QuantType.F32, values.tobytes()))
    out = {}
    for name, value in tensors.items():
        kind, raw = encode(name, value)
        out[name] = kind, value.shape, raw
    return out


def gguf_tensors(tiny: TinyConfig) -> dict[str, F32]:
    """Give every tensor that a GGUF of the model stores, float32, by name."""
    if not tiny.gguf:
        raise UnsupportedModel(f"a GGUF cannot express {tiny.name}", "write it as safetensors")
    with (
        tempfile.TemporaryDirectory() as folder,
        open_model_file(write_safetensors(tiny, Path(folder))) as opened,
    ):
        return _gguf_tensors(tiny, read_source(opened))


def _gguf_tensors(tiny: TinyConfig, source: Source) -> dict[str, F32]:
    family, keys = gguf_family(tiny.gguf)
    network = family.network(family.config_from_gguf(keys, source.cfg.vocab))
    groups = [("", renamed(network.ends.tensors(), family.names), source.ends)]
    for i, layer in enumerate(network.layers):
        groups.append((f"blk.{i}.", layer.tensors(), source.layers[i]))
    if source.drafter is not None and family.head is not None:
        head, prefix = (
            family.head(family.config_from_gguf(keys, source.cfg.vocab)),
            f"blk.{len(network.layers)}.",
        )
        groups.append((prefix, head.ends.tensors(), source.drafter.ends))
        groups.append((prefix, head.layers[0].tensors(), source.drafter.layer))
    tensors = {name: np.array(values, np.float32) for name, values in tiny.tensors.items()}
    for prefix, specs, bound in groups:
        for key, spec in specs.items():
            tied = spec.default and bound[key].tensor is bound[spec.default].tensor
            if key in bound and spec.gguf and not tied:
                values = bound[key].tensor.numpy().reshape(spec.shape) + np.float32(bound[key].spec.hf_offset)
                values = _in_turns(values, *tiny.turns[key]) if key in tiny.turns else values
                values = _in_halves(values, *tiny.halves[key]) if key in tiny.halves else values
                _store(tensors, prefix, spec, in_gguf_order(values, spec.head))
    for name, value in tensors.items():
        assert not np.isnan(value).any(), f"{name} is declared in part"
    return tensors


def _store(tensors: dict[str, F32], prefix: str, spec: TensorSpec, values: F32) -> None:
    """Put a declared weight where its first name says: a tensor of its own, or rows of one that holds several."""
    name = spec.gguf[0]
    if isinstance(name, str):
        tensors[prefix + name] = values[0] if len(values) == 1 and values.ndim == 2 else values
        return
    assert isinstance(name.name, str), f"{name.name}: a GGUF holds declared weights whole"
    whole = tensors.setdefault(prefix + name.name, np.full(name.shape, np.nan, np.float32))
    if name.take is not None:
        sources, first = np.unique(
            _sources(name), return_index=True
        )  # what fills a weight up has none of its own
        whole.reshape(-1)[sources] = values.reshape(-1)[first]
        assert np.array_equal(name.take(whole), values), (
            f"{name.name}: a GGUF holds declared weights as they are"
        )
        return
    rows = whole.reshape(-1, name.shape[-1]) if len(name.shape) > 1 else whole
    index = np.asarray(name.rows)
    rows[index] = values.reshape(len(index), *rows.shape[1:])


def _sources(cut: Cut) -> NDArray[np.int64]:
    """Say which element of the stored tensor each element of the weight is, where `take` only puts them in order."""
    count = math.prod(cut.shape)
    assert cut.take is not None and count < 1 << 24, "float32 counts no further"
    return cut.take(np.arange(count, dtype=np.float32).reshape(cut.shape)).reshape(-1).astype(np.int64)


def _in_turns(values: F32, axis: int, first: int, groups: int, per: int, width: int) -> F32:
    """Reorder heads of `width` elements along an axis, from `first` on, so that groups take turns."""
    index = np.arange(values.shape[axis])
    part = slice(first, first + groups * per * width)
    index[part] = index[part].reshape(groups, per, width).swapaxes(0, 1).reshape(-1)
    return np.take(values, index, axis)


def _in_halves(values: F32, head: int, turning: int) -> F32:
    """Reorder the first `turning` rows of each head from pairs that rotate together to (first half, second half)."""
    heads = values.reshape(-1, head, *values.shape[1:]).copy()
    pairs = heads[:, :turning].reshape(len(heads), turning // 2, 2, *values.shape[1:])
    heads[:, :turning] = pairs.swapaxes(1, 2).reshape(len(heads), turning, *values.shape[1:])
    return heads.reshape(values.shape)


def in_gguf_order(values: F32, head: int) -> F32:
    """Reorder each head's rows from (first half, second half) to pairs that rotate together."""
    if not head:
        return values
    halves = values.reshape(-1, 2, head // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


# --- weights: the same bits on every machine, by seed, tensor name and shape ------------------------
# A matrix element is an integer in [-127, 127] times a power of two, and the largest of each 32 along a row
# is exactly 127, so the same values survive F32, F16, BF16 and Q8_0 without rounding; other elements have
# eight bits. Only PCG64's raw words are drawn, whose stream NumPy guarantees across versions; the rest is
# integer arithmetic.

BLOCK = 32
LOGIT_STD = 1.5  # of a head's rows times a normed vector

# What a name's end says of its values: mean and standard deviation. Without them a bug can hide: router biases that are
# zero choose nothing, and steps of softplus(0) forget a state at once.
_CENTRES = (
    (("e_score_correction_bias", "expert_bias"), 0.0, 0.1),
    (("dt_bias", "dt_proj.bias"), -2.0, 0.5),
    (("act_fn.beta",), 0.5, 0.0),  # of xIELU, as its class has it
    (("act_fn.eps",), 0.0, 0.0),
    (("act_fn.alpha_p", "act_fn.alpha_n"), 0.3, 0.3),
    (("sinks",), 0.0, 1.0),
    (("input_min", "output_min"), -1.0, 0.3),  # bounds of a matrix that clips
    (("input_max", "output_max"), 1.0, 0.3),
    (("bias",), 0.0, 0.3),
)
_ONES = 1.0, 0.15  # norms, and factors of channels


def tensor(
    seed: int, name: str, shape: tuple[int, ...], *, zero_centred: bool = False
) -> NDArray[np.float32]:
    """Draw the tensor that a safetensors model calls `name`; `zero_centred`: a norm to which one is added."""
    noise = noise_of(seed, name, math.prod(shape)).reshape(shape)
    if name.endswith("A_log"):
        return _on_grid(np.clip(0.5 + 0.25 * noise, 0.0, 1.0))
    for ends, mean, deviation in _CENTRES:
        if name.endswith(ends):
            return _on_grid(deviation * noise + mean)
    if len(shape) == 1 or "norm" in name:
        mean, deviation = _ONES
        return _on_grid(deviation * noise + (0.0 if zero_centred else mean))
    if len(shape) > 3:  # a convolution over pixels is a matrix, whose rows are all that an output is made of
        return _matrix(noise.reshape(shape[0], -1)).reshape(shape)
    return _matrix(noise)


def noise_of(seed: int, name: str, count: int) -> NDArray[np.float64]:
    """Draw `count` nearly normal values of unit variance: the sum of four 16-bit words."""
    words = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count)
    lanes = sum(((words >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.int64) for s in (0, 16, 32, 48))
    return (np.asarray(lanes) - 2 * 65535) / (65536 * math.sqrt(4 / 12))


def _matrix(noise: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scale rows to a standard deviation near 1.5/sqrt(columns), on a grid that Q8_0, F16 and BF16 share."""
    target = LOGIT_STD / math.sqrt(noise.shape[-1])
    step = 2.0 ** math.floor(math.log2(target / 32))  # a deviation of 32 to 64 steps: few reach 127
    steps = np.clip(np.rint(noise * (target / step)), -126, 126)
    if noise.shape[-1] % BLOCK == 0:
        blocks = steps.reshape(-1, BLOCK)
        top, rows = np.abs(blocks).argmax(axis=1), np.arange(len(blocks))
        blocks[rows, top] = np.where(blocks[rows, top] < 0, -127.0, 127.0)
    return (steps * step).astype(np.float32)


def _on_grid(values: NDArray[np.float64]) -> NDArray[np.float32]:
    step = np.where(np.abs(values) < 2, 1 / 128, 1 / 64)  # eight bits, as BF16 has
    return (np.rint(values / step) * step).astype(np.float32)


# --- the tokenizer of tiny models -------------------------------------------------------------------
# 256 byte-level tokens, as both file formats hold them, and a chat template.

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, EOS, IM_START, IM_END = range(5)
UNUSED_BYTES = {0xC0, 0xC1, *range(0xF5, 0x100)}  # never occur in UTF-8; their places hold the others
WORDS = ["\u0120t", "he", "in", "\u0120a", "er", "on", "re", "\u0120the"]
MERGES = ["\u0120 t", "h e", "i n", "\u0120 a", "e r", "o n", "r e", "\u0120t he"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Of a model that sees: tokens in place of the last words, whose ids its config.json names.
MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_MARKS = PictureMarks(tuple(MARKS), "<|vision_start|><|image_pad|><|vision_end|>")
SEEING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "PICTURE{% elif part['type'] == 'audio' %}SOUND{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEARING = "{% elif part['type'] == 'audio' %}SOUND"  # in the template of a model that hears
VOCAB = 256
_NORMAL, _CONTROL = 1, 3  # token types of a GGUF


def chat_template(marks: PictureMarks = NO_MARKS) -> str:
    """Give the chat template, which writes texts, and marks of pictures where a model has some."""
    if not marks.tokens:
        return CHAT_TEMPLATE
    hearing = SEEING_TEMPLATE if marks.sound else SEEING_TEMPLATE.replace(_HEARING, "")
    return hearing.replace("PICTURE", marks.picture).replace("SOUND", marks.sound)


def vocabulary(marks: PictureMarks = NO_MARKS) -> list[str]:
    """List the 256 tokens as byte-level BPE spells them: special ones, each byte of UTF-8, words, marks.

    There are eight words, or as many fewer as there are marks.
    """
    each_byte = [_spell(b) for b in range(256) if b not in UNUSED_BYTES]
    tokens = [*SPECIAL, *each_byte, *_words(marks), *marks.tokens]
    assert len(tokens) == VOCAB and len(set(tokens)) == VOCAB
    return tokens


def _words(marks: PictureMarks) -> list[str]:
    return WORDS[: len(WORDS) - len(marks.tokens)]


def _merges(marks: PictureMarks) -> list[str]:
    return MERGES[: len(_words(marks))]


def _special(marks: PictureMarks) -> dict[int, str]:
    """Return the special tokens by id."""
    return dict(enumerate(SPECIAL)) | dict(enumerate(marks.tokens, start=VOCAB - len(marks.tokens)))


# Byte-level BPE spells printable Latin-1 as itself, the other bytes from U+0100 on.
_PLAIN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [b for b in range(256) if b not in _PLAIN]


def _spell(byte: int) -> str:
    """Spell a byte as byte-level BPE does."""
    return chr(byte) if byte in _PLAIN else chr(256 + _OTHERS.index(byte))


def tokenizer_json(marks: PictureMarks = NO_MARKS) -> dict[str, Any]:
    """Give the tokenizer.json of the vocabulary (GPT-2's word splitter)."""
    added = [
        {"id": i, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, token in _special(marks).items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocabulary(marks))},
            "merges": [merge.split(" ") for merge in _merges(marks)],
        },
    }


def tokenizer_config(marks: PictureMarks = NO_MARKS) -> dict[str, Any]:
    """Give the tokenizer_config.json, with the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[PAD],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(marks),
    }


def generation_config() -> dict[str, Any]:
    """Give the generation_config.json: two tokens end an answer."""
    ids = {"bos_token_id": BOS, "eos_token_id": [EOS, IM_END], "pad_token_id": PAD}
    return ids | {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}


def gguf_keys(marks: PictureMarks = NO_MARKS) -> dict[str, Any]:
    """Give the same as keys of a GGUF."""
    special = _special(marks)
    types = [_CONTROL if i in special else _NORMAL for i in range(VOCAB)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary(marks),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": _merges(marks),
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.padding_token_id": PAD,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": chat_template(marks),
    }


# --- the containers: names, shapes and bytes, joined in memory --------------------------------------


def safetensors_bytes(tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32") -> bytes:
    """Join float tensors into a safetensors file of type F32, F16 or BF16 (cut off, so exact on BF16's grid)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, value in tensors.items():
        if dtype == "BF16":
            raw = (value.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
        else:
            raw = value.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(data)


def gguf_bytes(
    keys: Mapping[str, Any], tensors: Mapping[str, tuple[QuantType, tuple[int, ...], bytes]]
) -> bytes:
    """Join keys and tensors, each its type, shape (rows first) and bytes, into a GGUF of version 3."""
    plans = [TensorPlan(name, kind, shape) for name, (kind, shape, _) in tensors.items()]
    padded = (raw + bytes(-len(raw) % DEFAULT_ALIGNMENT) for _, _, raw in tensors.values())
    return gguf_header(keys, plans) + b"".join(padded)
