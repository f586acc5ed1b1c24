"""Builds a Tokenizer from what a model file says about its vocabulary.

Knows GGUF's tokenizer keys and their meaning; knows no file reader, no chat template.
Three kinds: byte-level BPE with a named pre-tokenizer ("gpt2"), SentencePiece BPE, whose merges follow from
scores ("llama"), and SentencePiece unigram ("t5"). tokenizer.json is read by directory.py.
Path: formats.gguf -> vocab.tokenizer_from_gguf -> Tokenizer
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer

from freehold._native import Bpe, Strings
from freehold.errors import BadModelFile, UnsupportedModel
from freehold.tokenizer import pretokenizers
from freehold.tokenizer.core import (
    SPACE_MARK,
    AddedToken,
    Tokenizer,
    TokenKind,
    Vocabulary,
    byte_alphabet,
    check_ids,
)
from freehold.tokenizer.encoders import library_encoder, marking_encoder, merging_encoder

_PREFIX = "tokenizer.ggml."
MAX_TOKENS = 4_000_000  # fifteen times the largest vocabulary in use
MAX_MERGES = 8_000_000

# Control tokens that end a turn or a text, whatever else the file says. Harmony (gpt-oss) is the exception:
# there <|end|> only closes one channel and <|return|> or <|call|> ends the answer.
END_TEXTS = frozenset(
    (
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|end|>", "</s>"),
        *("<|endoftext|>", "<|end_of_text|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<EOT>", "[EOT]"),
        *("<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|return|>", "<|call|>", "<eos>"),
        *("[|endofturn|]", "<|role_end|>", "[e~[", "<seed:eos>", "<|flush|>", "<|calls|>"),
    )
)
_HARMONY_END = frozenset(("<|return|>", "<|call|>"))
# GLM ends an answer by opening the next turn: the user's, or a tool's (its generation_config names both).
_GLM = frozenset(("[gMASK]", "<|user|>", "<|observation|>"))


class _Keys:
    """Typed access to the `tokenizer.ggml.*` keys; a value of the wrong type is a BadModelFile."""

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata

    def text(self, name: str) -> str:
        value = self._metadata.get(_PREFIX + name, "")
        return value if isinstance(value, str) else self._wrong(name, "a string", value)

    def flag(self, name: str) -> bool | None:
        value = self._metadata.get(_PREFIX + name)
        if value is None or isinstance(value, (bool, np.bool_)):
            return None if value is None else bool(value)
        return self._wrong(name, "a boolean", value)

    def id(self, name: str, size: int) -> int | None:
        value = self._metadata.get(f"{_PREFIX}{name}_token_id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            return self._wrong(f"{name}_token_id", "an integer", value)
        check_ids(f"{_PREFIX}{name}_token_id", (int(value),), size)
        return int(value)

    def texts(self, name: str, limit: int) -> Strings:
        value = self._metadata.get(_PREFIX + name)
        if not isinstance(value, Strings):
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                return self._wrong(name, "an array of strings", value)
            value = Strings(list(value))
        if not 0 < len(value) <= limit:
            raise BadModelFile(f"{_PREFIX}{name} has {len(value):,} entries; between 1 and {limit:,} can be")
        return value

    def numbers(self, name: str, size: int) -> np.ndarray | None:
        value = self._metadata.get(_PREFIX + name)
        if value is None:
            return None
        array = np.asarray(value)
        if array.ndim != 1 or array.dtype.kind not in "iuf":
            return self._wrong(name, "an array of numbers", value)
        if len(array) != size:
            raise BadModelFile(f"{_PREFIX}{name} has {len(array):,} entries for {size:,} tokens")
        return array

    def charsmap(self) -> bytes:
        value = self._metadata.get(_PREFIX + "precompiled_charsmap")
        return b"" if value is None else np.asarray(value).astype(np.uint8).tobytes()

    @staticmethod
    def _wrong(name: str, wanted: str, value: object) -> NoReturn:
        type_name = "nothing" if value is None else type(value).__name__
        raise BadModelFile(f"{_PREFIX}{name} must be {wanted}; the file has {type_name}")


def tokenizer_from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """Build the tokenizer that a GGUF file's metadata describes.

    `metadata` maps GGUF keys to Python values: string arrays as lists or native.Strings, numeric ones as NumPy arrays.
    Raise BadModelFile for missing or inconsistent keys, UnsupportedModel for a tokenizer model or a
    byte-level pre-tokenizer that is not known.
    """
    keys = _Keys(metadata)
    model = keys.text("model")
    if model == "gpt2" and keys.text("pre") == "gemma4":
        model = "gemma4"
    builder = _BUILDERS.get(model)
    if builder is None:
        known = ", ".join(sorted(_BUILDERS))
        raise UnsupportedModel(
            f"unknown tokenizer model {model!r} (tokenizer.ggml.model)", hint=f"known: {known}"
        )
    return builder(keys)


def _byte_level(keys: _Keys) -> Tokenizer:
    spec = pretokenizers.lookup(keys.text("pre"))
    texts = keys.texts("tokens", MAX_TOKENS)
    kinds = _kinds(keys, texts)
    bpe = Bpe(texts, _reachable(kinds), byte_level=True, ignore_merges=spec.ignore_merges)
    _merge_lines(bpe, keys)
    encode = merging_encoder(bpe, byte_alphabet(), spec.normalizer(), spec.pre_tokenizer())
    facts = _facts(keys, texts, kinds, add_bos=spec.add_bos, add_eos=False, marked=False)
    return Tokenizer(
        encode, Vocabulary(**facts, byte_level=True, marks_are_spaces=False, strips_leading_space=False)
    )


def _gemma4(keys: _Keys) -> Tokenizer:
    """Merges are explicit as in byte-level BPE, but over characters, U+2581 for a space; bytes fall back."""
    texts = keys.texts("tokens", MAX_TOKENS)
    kinds = _kinds(keys, texts)
    bpe = Bpe(texts, _reachable(kinds), byte_level=False, byte_fallback=True, unk=_unknown(keys, len(texts)))
    _merge_lines(bpe, keys)
    encode = marking_encoder(bpe, SPACE_MARK, prefix=False)
    facts = _facts(keys, texts, kinds, add_bos=True, add_eos=False)
    return Tokenizer(
        encode, Vocabulary(**facts, byte_level=False, marks_are_spaces=True, strips_leading_space=False)
    )


def _sentencepiece_bpe(keys: _Keys) -> Tokenizer:
    texts = keys.texts("tokens", MAX_TOKENS)
    kinds = _kinds(keys, texts)
    scores = keys.numbers("scores", len(texts))
    if scores is None:
        raise BadModelFile("a SentencePiece vocabulary needs tokenizer.ggml.scores; the file has none")
    bpe = Bpe(
        texts,
        _reachable(kinds),
        byte_level=False,
        byte_fallback=bool((kinds == TokenKind.BYTE).any()),
        unk=_unknown(keys, len(texts)),
    )
    bpe.merge_by_rank(_ranks(scores))
    prefix = keys.flag("add_space_prefix") is not False
    if keys.charsmap() or keys.flag("remove_extra_whitespaces"):
        encode = merging_encoder(bpe, None, _spaces_as_marks(keys, prefix=prefix), None)
    else:
        encode = marking_encoder(bpe, SPACE_MARK, prefix=prefix)
    facts = _facts(keys, texts, kinds, add_bos=True, add_eos=False)
    return Tokenizer(
        encode, Vocabulary(**facts, byte_level=False, marks_are_spaces=True, strips_leading_space=prefix)
    )


def _sentencepiece_unigram(keys: _Keys) -> Tokenizer:
    texts = keys.texts("tokens", MAX_TOKENS)
    kinds = _kinds(keys, texts)
    scores = keys.numbers("scores", len(texts))
    if scores is None:
        raise BadModelFile("a unigram vocabulary needs tokenizer.ggml.scores; the file has none")
    unk = keys.id("unknown", len(texts))
    # Ids are positions in the library's unigram list, so tokens that text must not reach keep their place
    # under a name no text can contain.
    pieces = [
        (
            text if kind not in _UNREACHABLE else f"\udb80{id}".encode("utf-8", "replace").decode() + "\x00",
            float(score),
        )
        for id, (text, kind, score) in enumerate(zip(texts, kinds, scores, strict=True))
    ]
    prefix = keys.flag("add_space_prefix") is not False
    inner = _guarded(lambda: models.Unigram(pieces, unk, byte_fallback=TokenKind.BYTE in kinds))
    if (normalizer := _unigram_normalizer(keys)) is not None:
        inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme="always" if prefix else "never")
    facts = _facts(keys, texts, kinds, add_bos=False, add_eos=True)
    return Tokenizer(
        library_encoder(inner),
        Vocabulary(**facts, byte_level=False, marks_are_spaces=True, strips_leading_space=prefix),
    )


_BUILDERS: dict[str, Callable[[_Keys], Tokenizer]] = {
    "gpt2": _byte_level,
    "gemma4": _gemma4,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
}
_UNREACHABLE = frozenset((TokenKind.CONTROL, TokenKind.UNUSED))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Number the tokens by score, the best first; of equal scores the lower id."""
    ranks = np.empty(len(scores), np.int32)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores), dtype=np.int32)
    return ranks


def _reachable(kinds: np.ndarray) -> np.ndarray:
    """Flag the tokens that ordinary text may become."""
    return (~np.isin(kinds, list(_UNREACHABLE))).astype(np.uint8)


def _merge_lines(bpe: Bpe, keys: _Keys) -> None:
    lines = keys.texts("merges", MAX_MERGES)
    if (wrong := bpe.merge_by_lines(lines)) >= 0:
        raise BadModelFile(
            f"tokenizer.ggml.merges holds {lines[wrong]!r}, which joins no two tokens of the vocabulary"
        )


def _guarded(build: Callable[[], models.Model]) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(build())
    except Exception as error:  # the library raises a bare Exception
        raise BadModelFile(f"the vocabulary is inconsistent: {error}") from error


def _spaces_as_marks(keys: _Keys, *, prefix: bool) -> Normalizer:
    steps: list[Normalizer] = _charsmap_steps(keys)
    if keys.flag("remove_extra_whitespaces"):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix:
        steps.append(normalizers.Prepend(SPACE_MARK))
    steps.append(normalizers.Replace(" ", SPACE_MARK))
    return normalizers.Sequence(steps)


def _unigram_normalizer(keys: _Keys) -> Normalizer | None:
    steps = _charsmap_steps(keys)
    if keys.flag("remove_extra_whitespaces"):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps) if steps else None


def _charsmap_steps(keys: _Keys) -> list[Normalizer]:
    charsmap = keys.charsmap()
    if not charsmap:
        return []
    try:
        return [normalizers.Precompiled(charsmap)]
    except Exception as error:  # the library raises a bare Exception
        raise BadModelFile(f"tokenizer.ggml.precompiled_charsmap cannot be read: {error}") from error


def _kinds(keys: _Keys, texts: Sequence[str]) -> np.ndarray:
    array = keys.numbers("token_type", len(texts))
    if array is None:
        return np.full(len(texts), TokenKind.NORMAL, np.uint8)
    return np.where(np.isin(array, list(TokenKind)), array, TokenKind.UNUSED).astype(np.uint8)


def _unknown(keys: _Keys, size: int) -> int:
    id = keys.id("unknown", size)
    return -1 if id is None else id


def _facts(
    keys: _Keys,
    texts: Sequence[str],
    kinds: np.ndarray,
    *,
    add_bos: bool,
    add_eos: bool,
    marked: bool = True,
) -> dict:
    size = len(texts)
    bos, eos = keys.id("bos", size), keys.id("eos", size)
    added = _added(texts, kinds, marked=marked)
    named = (eos, keys.id("eot", size), keys.id("eom", size))
    return {
        "texts": texts,
        "kinds": kinds,
        "added": added,
        "prefix_ids": _edge(keys, "bos", bos, default=add_bos),
        "suffix_ids": _edge(keys, "eos", eos, default=add_eos),
        "bos_id": bos,
        "eos_id": eos,
        "eos_ids": end_ids(added, (id for id in named if id is not None)),
        "pad_id": keys.id("padding", size),
        "unk_id": keys.id("unknown", size),
    }


def _edge(keys: _Keys, name: str, id: int | None, *, default: bool) -> tuple[int, ...]:
    wanted = keys.flag(f"add_{name}_token")
    if wanted and id is None:
        raise BadModelFile(f"{_PREFIX}add_{name}_token is true, but {_PREFIX}{name}_token_id is missing")
    return (id,) if id is not None and (default if wanted is None else wanted) else ()


def _added(texts: Sequence[str], kinds: np.ndarray, *, marked: bool) -> tuple[AddedToken, ...]:
    """List the added tokens; `marked`: the vocabulary spells a space as U+2581, which elsewhere is itself."""
    control = [(id, texts[id], True) for id in np.flatnonzero(kinds == TokenKind.CONTROL).tolist()]
    user = [
        (id, texts[id].replace(SPACE_MARK, " ") if marked else texts[id], False)
        for id in np.flatnonzero(kinds == TokenKind.USER_DEFINED).tolist()
    ]
    return tuple(
        AddedToken(id, text, control=control) for id, text, control in sorted(control + user) if text
    )


def end_ids(added: Iterable[AddedToken], named: Iterable[int]) -> frozenset[int]:
    """Return the ids that end an answer: those the file names, and control tokens known to end turns."""
    control = {token.text: token.id for token in added if token.control}
    texts = END_TEXTS - {"<|end|>"} if control.keys() >= _HARMONY_END else END_TEXTS
    texts |= _GLM - {"[gMASK]"} if control.keys() >= _GLM else frozenset()
    return frozenset(named) | {id for text, id in control.items() if text in texts}
