"""Choose among a repository's files: GGUF variants by quantisation and the tower beside one, or one set of safetensors.

Knows names and sizes only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from freehold.base.errors import ModelNotFound, UnsupportedModel, UsageError

_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_(?:K|XXS|XS|NL|S|M|L|XL|0|1|[0-9]{1,2}))*|TQ\d_\d|BF16|F16|F32|FP16|FP32"
    r"|MXFP4(?:_MOE)?|NVFP4)(?:_(?:XL|L|M|S|XS|XXS))?)(?=[-._/]|$)",
    re.IGNORECASE,
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_NOT_A_MODEL = re.compile(r"(^|[-._/])(mmproj|imatrix|lora|adapter)([-._]|$)", re.IGNORECASE)
_MMPROJ = re.compile(r"(^|[-._/])mmproj([-._]|$)", re.IGNORECASE)
_WORDS = re.compile(r"[a-z0-9]*\d(?:\.\d+)+[a-z]*|[a-z0-9]+")  # 1.7b and qwen2.5 are words
_SIZE = re.compile(r"[ea]?\d+(?:\.\d+)?[bm]")
_OF_NO_MODEL = {"mmproj", "model", "vision", "clip", "encoder", "projector"}  # words in any tower's name
_TOWER_TYPES = ("BF16", "F16", "FP16", "F32", "FP32", "Q8_0")  # best first
# Best first when the user names none: four bits with K-quant scales, then what is closest to it.
PREFERENCE = [
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_L", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS", "Q4_1", "MXFP4", "MXFP4_MOE",
    "NVFP4", "Q5_K_M", "UD-Q5_K_XL", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "UD-Q6_K_XL", "Q8_0", "UD-Q8_K_XL",
    "Q3_K_M", "Q3_K_L", "Q3_K_S", "BF16", "F16", "F32",
]  # fmt: skip
# What a folder of safetensors needs beside its weights. Never .bin, .pt or .pth: loading those runs code.
_BESIDE = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "chat_template.json", "model.safetensors.index.json", "modules.json",
    "sentence_bert_config.json", "1_Pooling/config.json", "tekken.json", "params.json",
    "consolidated.safetensors.index.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
}  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# `model.fp32-00001-of-00002.safetensors` is a second copy of the weights in another type
_PLAIN_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
# A Whisper of CTranslate2, as faster-whisper fetches it: its model.bin is not a pickle.
_CTRANSLATE2 = ("model.bin", "config.json", "tokenizer.json")
_CT2_VOCABULARY = ("vocabulary.txt", "vocabulary.json")


@dataclass(frozen=True, slots=True)
class Variant:
    """One model inside a repository. `quant` is upper case, empty when the file name tells none."""

    quant: str
    files: tuple[str, ...]  # shards in order


def quant_of(path: str) -> str:
    """Return the quantisation a file name tells, such as Q4_K_M, or an empty string."""
    stem = _SHARD.sub("", path.removesuffix(".gguf"))
    matches = _QUANT.findall(stem)
    return matches[-1].upper() if matches else ""


def gguf_variants(paths: Iterable[str]) -> list[Variant]:
    """Group GGUF paths into variants, shards together; projectors and importance matrices are left out.

    A set of shards with a hole in it is left out too.
    """
    groups: dict[str, dict[int, str]] = {}
    wanted: dict[str, int] = {}
    for path in sorted(paths):
        if not path.lower().endswith(".gguf") or _NOT_A_MODEL.search(PurePosixPath(path).name):
            continue
        stem = path[:-5]
        shard = _SHARD.search(stem)
        base = stem[: shard.start()] if shard else stem
        groups.setdefault(base, {})[int(shard.group(1)) if shard else 1] = path
        wanted[base] = int(shard.group(2)) if shard else 1
    return [
        Variant(quant_of(f"{base}.gguf"), tuple(parts[i] for i in sorted(parts)))
        for base, parts in groups.items()
        if sorted(parts) == list(range(1, wanted[base] + 1))
    ]


def choose(variants: list[Variant], wanted: str, repo: str) -> Variant:
    """Pick the variant `wanted` (a quantisation or a file name), or the preferred one.

    Raises ModelNotFound when there is none such, UsageError when several answer to it.
    """
    if wanted:
        matching = [v for v in variants if wanted.upper() == v.quant or wanted in v.files]
        matching = matching or [v for v in variants if wanted == PurePosixPath(v.files[0]).name]
        if not matching:
            raise ModelNotFound(f"{repo} has no {wanted}", f"it has {_names(variants)}")
    else:
        matching = sorted(variants, key=_rank)
        matching = [v for v in matching if v.quant == matching[0].quant]
    if len(matching) > 1:
        files = " or ".join(v.files[0] for v in matching[:4])
        raise UsageError(
            f"{repo} has {len(matching)} models in {matching[0].quant or 'one repository'}",
            f"name one: {files}",
        )
    return matching[0]


def preferred(variants: list[Variant]) -> Variant:
    """Return the variant a bare repository name means among those at hand."""
    return min(variants, key=_rank)


def is_mmproj(path: str) -> bool:
    """Return whether a file's name says that it is the tower of a GGUF model."""
    return bool(_MMPROJ.search(PurePosixPath(path).name))


def mmproj_of(model: Sequence[str], paths: Iterable[str]) -> tuple[str, str]:
    """Return the file that is the tower of a variant by its name, or why none is; both are "" where there are none.

    `model`: the variant's files. The tower is in their folder or in the top one. Of towers of several models it is the
    one whose words are all in the model's name; of several types of one, BF16 before F16, F32 and Q8_0.
    """
    folder, name = str(PurePosixPath(model[0]).parent), _words(model[0])
    near = [p for p in paths if _is_tower(p) and str(PurePosixPath(p).parent) in (folder, ".")]
    groups: dict[frozenset[str], list[str]] = {}
    for path in near:
        groups.setdefault(_words(path) - _OF_NO_MODEL, []).append(path)
    others = ", ".join(sorted(near)[:3])
    fitting = [words for words in groups if words <= name]
    if not fitting and len(groups) == 1:  # a name of its own says nothing where there is no other
        fitting = [words for words in groups if _sizes(words) <= _sizes(name) or not _sizes(name)]
    if not fitting:
        return "", f"the names of its mmproj files are of other models: {others}" if near else ""
    chosen = groups[max(fitting, key=len)]
    return min(chosen, key=lambda p: (str(PurePosixPath(p).parent) != folder, _tower_rank(p), p)), ""


def _is_tower(path: str) -> bool:
    return path.lower().endswith(".gguf") and is_mmproj(path)


def _words(path: str) -> frozenset[str]:
    """Return the words of a file's name without its quantisation and shard."""
    stem = PurePosixPath(path).name
    stem = _SHARD.sub("", stem[:-5] if stem.lower().endswith(".gguf") else stem)
    return frozenset(_WORDS.findall(_QUANT.sub("", stem).lower()))


def _sizes(words: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in words if _SIZE.fullmatch(word))


def _tower_rank(path: str) -> int:
    quant = quant_of(path)
    return _TOWER_TYPES.index(quant) if quant in _TOWER_TYPES else len(_TOWER_TYPES)


def safetensors_files(paths: Iterable[str], repo: str) -> tuple[str, ...]:
    """Return the weights and what they need, from the top folder; raise UnsupportedModel without any.

    `consolidated*` (a second copy in another layout) is left out when the usual one is there, and so is a second copy
    in another type.
    """
    paths = sorted(paths)
    weights = [p for p in paths if p.endswith(".safetensors") and "/" not in p]
    usual = [p for p in weights if p.startswith("model")]
    usual = [p for p in usual if _PLAIN_WEIGHTS.fullmatch(p)] or usual
    weights = usual or [p for p in weights if not p.startswith(("consolidated", "adapter_"))] or weights
    if not weights:
        if any(p.endswith(_PICKLES) for p in paths):
            raise UnsupportedModel(
                f"{repo} holds its weights as pickles only, and loading a pickle runs its code",
                "look for a GGUF or safetensors version of the model",
            )
        raise UnsupportedModel(f"{repo} holds neither GGUF nor safetensors files")
    return tuple([p for p in paths if p in _BESIDE] + weights)


def ctranslate2_files(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the files of a repository that holds a Whisper of CTranslate2 alone; none of another repository."""
    names = set(paths)
    vocabulary = [name for name in _CT2_VOCABULARY if name in names]
    if not vocabulary or not names.issuperset(_CTRANSLATE2) or any(n.endswith(".safetensors") for n in names):
        return ()
    return (*_CTRANSLATE2, *vocabulary)


def _rank(v: Variant) -> tuple[int, str]:
    place = PREFERENCE.index(v.quant) if v.quant in PREFERENCE else len(PREFERENCE)
    return place, v.files[0]


def _names(variants: list[Variant]) -> str:
    return ", ".join(v.quant or v.files[0] for v in sorted(variants, key=_rank)[:12])
