"""Named pre-tokenizers: how `tokenizer.ggml.pre` splits text into words before byte-level BPE.

A GGUF file names its word splitter instead of spelling it out, so the patterns live here, as the models'
own tokenizer.json files state them. A name that is not here is refused: a near miss (digit groups, marks,
case) gives plausible ids that the model never saw in training.
Path: vocab.tokenizer_from_gguf -> pretokenizers.lookup
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from freehold.errors import UnsupportedModel

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
_QWEN35 = _alternatives(
    _CONTRACTION,
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    _NEWLINES,
    _SPACES,
)
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


_LLAMA3_SPEC = PreSpec((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_SPEC = PreSpec((_QWEN2,), nfc=True)
_GPT2_SPEC = PreSpec()
_STARCODER_SPEC = PreSpec(digits=True)
_GPT4O_SPEC = PreSpec((_GPT4O,), ignore_merges=True)

_SPECS: dict[str, PreSpec] = {
    "gpt-2": _GPT2_SPEC,
    "phi-2": _GPT2_SPEC,
    "exaone4": _GPT2_SPEC,
    "trillion": _GPT2_SPEC,
    "granite-docling": _GPT2_SPEC,
    "mpt": PreSpec(nfc=True),
    "olmo": PreSpec(nfc=True),
    "starcoder": _STARCODER_SPEC,
    "refact": _STARCODER_SPEC,
    "smollm": _STARCODER_SPEC,
    "codeshell": _STARCODER_SPEC,
    "exaone": _STARCODER_SPEC,
    "command-r": PreSpec(digits=True, nfc=True),
    "llama-bpe": _LLAMA3_SPEC,
    "llama3": _LLAMA3_SPEC,
    "llama-v3": _LLAMA3_SPEC,
    "falcon3": _LLAMA3_SPEC,
    "falcon-h1": _LLAMA3_SPEC,
    "pixtral": _LLAMA3_SPEC,
    "lfm2": _LLAMA3_SPEC,
    "midm-2.0": _LLAMA3_SPEC,
    "dbrx": PreSpec((_LLAMA3,)),
    "smaug-bpe": PreSpec((_LLAMA3,)),
    "glm4": PreSpec((_LLAMA3,), ignore_merges=True),
    "glm5": PreSpec((_LLAMA3,), ignore_merges=True),
    "chatglm-bpe": PreSpec((_LLAMA3,), ignore_merges=True),
    "qwen2": _QWEN2_SPEC,
    "deepseek-r1-qwen": _QWEN2_SPEC,
    "megrez": _QWEN2_SPEC,
    "stablelm2": PreSpec((_QWEN2,)),
    "hunyuan": PreSpec((_QWEN2,)),
    "solar-open": PreSpec((_QWEN2,)),
    "grok-2": PreSpec((_QWEN2,)),
    "qwen35": PreSpec((_QWEN35,), nfc=True),
    "tekken": PreSpec((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": _GPT4O_SPEC,
    "llama4": _GPT4O_SPEC,
    "kanana2": _GPT4O_SPEC,
    "minimax-m2": PreSpec((_GPT4O,)),
    "kimi-k2": PreSpec((_KIMI_K2,)),
    "seed-coder": PreSpec((_SEED_CODER,)),
    "bailingmoe": PreSpec((_BAILING,)),
    "bailingmoe2": PreSpec((_BAILING,)),
    "llada-moe": PreSpec((_BAILING,)),
    "deepseek-llm": PreSpec(_DEEPSEEK_LLM),
    "deepseek-coder": PreSpec(_DEEPSEEK_CODER),
    "deepseek-v3": PreSpec(_DEEPSEEK3),
    "hunyuan-dense": PreSpec(_DEEPSEEK3),
    "joyai-llm": PreSpec(_DEEPSEEK3),
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
