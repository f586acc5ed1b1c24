"""Builds a Tokenizer from what a model file says about its vocabulary.

Knows GGUF's tokenizer keys and their meaning; knows no file reader, no chat template.
Three kinds: byte-level BPE with a named pre-tokenizer ("gpt2"), SentencePiece BPE, whose merges follow from
scores ("llama"), and SentencePiece unigram ("t5"). tokenizer.json is read by directory.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from freehold._native import Bpe, Strings
from freehold.base.errors import BadModelFile, UnsupportedModel
from freehold.run.tokenizer.core import (
    SPACE_MARK,
    AddedToken,
    Tokenizer,
    TokenKind,
    Vocabulary,
    byte_alphabet,
    check_ids,
    library_encoder,
    marking_encoder,
    merging_encoder,
)

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
    spec = lookup(keys.text("pre"))
    texts = keys.texts("tokens", MAX_TOKENS)
    kinds = _kinds(keys, texts)
    bpe = Bpe(texts, _reachable(kinds), byte_level=True, ignore_merges=spec.ignore_merges)
    _merge_lines(bpe, keys)
    encode = merging_encoder(bpe, byte_alphabet(), spec.normalizer(), spec.pre_tokenizer())
    facts = _facts(keys, texts, kinds, add_bos=spec.add_bos, add_eos=False, marked=False)
    return Tokenizer(encode, Vocabulary(**facts, byte_level=True, strips_leading_space=False))


def _gemma4(keys: _Keys) -> Tokenizer:
    """Merges are explicit as in byte-level BPE, but over characters, U+2581 for a space; bytes fall back."""
    texts = keys.texts("tokens", MAX_TOKENS)
    kinds = _kinds(keys, texts)
    bpe = Bpe(texts, _reachable(kinds), byte_level=False, byte_fallback=True, unk=_unknown(keys, len(texts)))
    _merge_lines(bpe, keys)
    encode = marking_encoder(bpe, SPACE_MARK, prefix=False)
    facts = _facts(keys, texts, kinds, add_bos=True, add_eos=False)
    return Tokenizer(encode, Vocabulary(**facts, byte_level=False, strips_leading_space=False))


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
    # Ranks are by score, the best first; of equal scores the lower id.
    ranks = np.empty(len(scores), np.int32)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores), dtype=np.int32)
    bpe.merge_by_rank(ranks)
    prefix = keys.flag("add_space_prefix") is not False
    if keys.charsmap() or keys.flag("remove_extra_whitespaces"):
        steps = _cleaning(keys)
        if prefix:
            steps.append(normalizers.Prepend(SPACE_MARK))
        steps.append(normalizers.Replace(" ", SPACE_MARK))
        encode = merging_encoder(bpe, None, normalizers.Sequence(steps), None)
    else:
        encode = marking_encoder(bpe, SPACE_MARK, prefix=prefix)
    facts = _facts(keys, texts, kinds, add_bos=True, add_eos=False)
    return Tokenizer(encode, Vocabulary(**facts, byte_level=False, strips_leading_space=prefix))


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
    try:
        inner = tokenizers.Tokenizer(models.Unigram(pieces, unk, byte_fallback=TokenKind.BYTE in kinds))
    except Exception as error:  # the library raises a bare Exception
        raise BadModelFile(f"the vocabulary is inconsistent: {error}") from error
    if steps := _cleaning(keys):
        inner.normalizer = normalizers.Sequence(steps)
    inner.pre_tokenizer = pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme="always" if prefix else "never")
    facts = _facts(keys, texts, kinds, add_bos=False, add_eos=True)
    vocabulary = Vocabulary(**facts, byte_level=False, strips_leading_space=prefix)
    return Tokenizer(library_encoder(inner), vocabulary)


_BUILDERS: dict[str, Callable[[_Keys], Tokenizer]] = {
    "gpt2": _byte_level,
    "gemma4": _gemma4,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
}
_UNREACHABLE = frozenset((TokenKind.CONTROL, TokenKind.UNUSED))


def _reachable(kinds: np.ndarray) -> np.ndarray:
    """Flag the tokens that ordinary text may become."""
    return (~np.isin(kinds, list(_UNREACHABLE))).astype(np.uint8)


def _merge_lines(bpe: Bpe, keys: _Keys) -> None:
    lines = keys.texts("merges", MAX_MERGES)
    if (wrong := bpe.merge_by_lines(lines)) >= 0:
        raise BadModelFile(
            f"tokenizer.ggml.merges holds {lines[wrong]!r}, which joins no two tokens of the vocabulary"
        )


def _cleaning(keys: _Keys) -> list[Normalizer]:
    """Return what a SentencePiece model does to a text first: its map of characters, and no blanks but single ones."""
    steps: list[Normalizer] = []
    if charsmap := keys.charsmap():
        try:
            steps.append(normalizers.Precompiled(charsmap))
        except Exception as error:  # the library raises a bare Exception
            raise BadModelFile(f"tokenizer.ggml.precompiled_charsmap cannot be read: {error}") from error
    if keys.flag("remove_extra_whitespaces"):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


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
        "marks_are_spaces": marked,
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


# --- a list of tokens alone, as whisper.cpp's files hold it -----------------------------------------


def tokenizer_from_words(words: Sequence[bytes], control: Sequence[str]) -> Tokenizer:
    """Build the tokenizer of GPT-2's kind whose tokens are `words` by id and rank, and then the `control` tokens.

    Two neighbours merge where their union is a token, the lowest rank first, and a word that is a token needs no merge
    (tiktoken's rule). Tokens without text stay in their places. Raise BadModelFile for a list that is too long.
    """
    size = len(words) + len(control)
    if not 0 < size <= MAX_TOKENS:
        raise BadModelFile(f"the file lists {size:,} tokens; between 1 and {MAX_TOKENS:,} can be")
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    spelled = ["".join(letters[byte] for byte in word) for word in words]
    texts = Strings([*spelled, *control])
    kinds = [TokenKind.NORMAL if word else TokenKind.UNUSED for word in words]
    kinds += [TokenKind.CONTROL] * len(control)
    bpe = Bpe(texts, _reachable(np.array(kinds)), byte_level=True, ignore_merges=True)
    bpe.merge_by_rank(np.arange(size, dtype=np.int32))
    added = tuple(AddedToken(len(words) + i, text, control=True) for i, text in enumerate(control))
    end = len(words) if control else None
    vocabulary = Vocabulary(
        texts=texts,
        kinds=[int(kind) for kind in kinds],
        byte_level=True,
        added=added,
        prefix_ids=(),
        suffix_ids=(),
        bos_id=end,
        eos_id=end,
        eos_ids=frozenset(() if end is None else (end,)),
        marks_are_spaces=False,
        strips_leading_space=False,
    )
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return Tokenizer(merging_encoder(bpe, byte_alphabet(), None, cutter), vocabulary)


# --- named pre-tokenizers: how `tokenizer.ggml.pre` splits text into words before byte-level BPE ----
# A GGUF file names its word splitter instead of spelling it out, so the patterns live here, as the models'
# own tokenizer.json files state them. A name that is not here is refused: a near miss (digit groups, marks,
# case) gives plausible ids that the model never saw in training.

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_NEWLINES = r"\s*[\r\n]+"
_SPACES = r"\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCT = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER_ONLY = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_PUNCT_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _alternatives(*parts: str) -> str:
    return "|".join(parts)


_LLAMA3 = _alternatives(_CONTRACTION, _WORD, r"\p{N}{1,3}", _PUNCT, _NEWLINES, _SPACES)
_QWEN2 = _alternatives(_CONTRACTION, _WORD, r"\p{N}", _PUNCT, _NEWLINES, _SPACES)
_QWEN35_WORD, _QWEN35_PUNCT = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
_QWEN35 = _alternatives(_CONTRACTION, _QWEN35_WORD, r"\p{N}", _QWEN35_PUNCT, _NEWLINES, _SPACES)
_GPT4O = _alternatives(
    f"{_LEAD}{_UPPER_LOWER}{_CONTRACTION}?",
    f"{_LEAD}{_UPPER_ONLY}{_CONTRACTION}?",
    r"\p{N}{1,3}",
    _PUNCT_SLASH,
    _NEWLINES,
    _SPACES,
)
_TEKKEN = _alternatives(
    f"{_LEAD}{_UPPER_LOWER}", f"{_LEAD}{_UPPER_ONLY}", r"\p{N}", _PUNCT_SLASH, _NEWLINES, _SPACES
)
_NOT_HAN = r"&&[^\p{Han}]]"
_KIMI_K2 = _alternatives(
    r"[\p{Han}]+",
    rf"{_LEAD}[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NOT_HAN}*"
    rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NOT_HAN}+{_CONTRACTION}?",
    rf"{_LEAD}[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NOT_HAN}+"
    rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NOT_HAN}*{_CONTRACTION}?",
    r"\p{N}{1,3}",
    _PUNCT,
    _NEWLINES,
    _SPACES,
)
_SEED_CODER = _alternatives(_CONTRACTION, _WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", _NEWLINES, _SPACES)
_BAILING = _alternatives(
    r"'(?i:[sdmt]|ll|ve|re)",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*",
    r"\s*[\r\n]",
    _SPACES,
)
_DEEPSEEK3_WORDS = _alternatives(
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    _NEWLINES,
    _SPACES,
)
_DEEPSEEK3 = (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3_WORDS)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
# Code points, not characters: several of these would not survive a Unicode normalisation of this file.
_DEEPSEEK_LLM_SPANS = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 "
    "388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA "
    "1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 "
    "1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC "
    "1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 "
    "213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B "
    "A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F "
    "104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_LLM_LETTERS = "".join(
    "-".join(f"\\x{{{end}}}" for end in span.split("-")) for span in _DEEPSEEK_LLM_SPANS.split()
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LLM_LETTERS}]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    r"\p{N}",
)


@dataclass(frozen=True, slots=True)
class PreSpec:
    """How one named pre-tokenizer cuts words, and the habits that come with the name.

    `patterns` are applied one after another to the pieces; empty means GPT-2's own rule, which the
    `tokenizers` library carries. `digits` cuts every digit off first.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False  # a whole word that is a token wins over its merges
    add_bos: bool = False  # unless the file says otherwise

    def pre_tokenizer(self) -> PreTokenizer:
        """Build the splitter, ending in the byte alphabet."""
        steps: list[PreTokenizer] = []
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        gpt2 = not self.patterns
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2))
        return pre_tokenizers.Sequence(steps)

    def normalizer(self) -> Normalizer | None:
        """Return NFC where the model's own tokenizer composes characters first."""
        return normalizers.NFC() if self.nfc else None


_SPECS: dict[str, PreSpec] = {
    name: spec
    for names, spec in (
        ("gpt-2 phi-2 exaone4 trillion granite-docling", PreSpec()),
        ("mpt olmo", PreSpec(nfc=True)),
        ("starcoder refact smollm codeshell exaone", PreSpec(digits=True)),
        ("command-r", PreSpec(digits=True, nfc=True)),
        (
            "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 midm-2.0",
            PreSpec((_LLAMA3,), ignore_merges=True, add_bos=True),
        ),
        ("dbrx smaug-bpe", PreSpec((_LLAMA3,))),
        ("glm4 glm5 chatglm-bpe", PreSpec((_LLAMA3,), ignore_merges=True)),
        ("qwen2 deepseek-r1-qwen megrez", PreSpec((_QWEN2,), nfc=True)),
        ("stablelm2 hunyuan solar-open grok-2", PreSpec((_QWEN2,))),
        ("qwen35", PreSpec((_QWEN35,), nfc=True)),
        ("tekken", PreSpec((_TEKKEN,), ignore_merges=True, add_bos=True)),
        ("gpt-4o llama4 kanana2", PreSpec((_GPT4O,), ignore_merges=True)),
        ("minimax-m2", PreSpec((_GPT4O,))),
        ("kimi-k2", PreSpec((_KIMI_K2,))),
        ("seed-coder", PreSpec((_SEED_CODER,))),
        ("bailingmoe bailingmoe2 llada-moe", PreSpec((_BAILING,))),
        ("deepseek-llm", PreSpec(_DEEPSEEK_LLM)),
        ("deepseek-coder", PreSpec(_DEEPSEEK_CODER)),
        ("deepseek-v3 hunyuan-dense joyai-llm", PreSpec(_DEEPSEEK3)),
    )
    for name in names.split()
}

KNOWN = (*sorted(_SPECS), "gemma4")


def lookup(name: str) -> PreSpec:
    """Return the splitter called `name`; raise UnsupportedModel for any other name ("default" included)."""
    spec = _SPECS.get(name)
    if spec is None:
        raise UnsupportedModel(
            f"unknown pre-tokenizer {name!r} (tokenizer.ggml.pre)"
            if name
            else "no tokenizer.ggml.pre in the file",
            hint=f"known names: {', '.join(KNOWN)}",
        )
    return spec
