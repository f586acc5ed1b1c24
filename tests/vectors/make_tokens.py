"""Writes tokens/strings.json and tokens/<model>.json: nasty strings and the ids a reference gives them.

The reference is never Freehold. The model's own tokenizer.json, run by the `tokenizers` library, is right
where there is one; llama.cpp on the same GGUF file stands in where there is none, and otherwise only
cross-checks: its disagreements are printed. Needs `tokenizers`, `gguf` and `llama-cpp-python`, in an
environment of its own.

    python make_tokens.py smollm2-135m --gguf smollm2-135m.gguf
    python make_tokens.py gemma3-270m --gguf gemma3-270m.gguf --json gemma3/tokenizer.json

Control tokens in the strings are ordinary text (a user wrote them), user-defined tokens are tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent / "tokens"
COUNT = 300
LONG = 2000  # characters; longer results are stored as a digest

EMOJI = [
    "🙂",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "🇩🇪🇫🇷",
    "👍🏽",
    "❤️",
    "❤",
    "🧑🏿‍🚀",
    "⛹️‍♀️",
    "1️⃣",
    "🫠",
    "\u200d",
    "🙂\u200d",
    "\ufe0f",
]
SCRIPTS = [
    "שלום עולם",
    "מַלְכּוּת",
    "مرحبا بالعالم",
    "السَّلامُ عَلَيْكُم",
    "\u202babc\u202c",
    "\u200fא1ב\u200e",
    "日本語のテキスト",
    "中文字符，標點。",
    "한국어 텍스트",
    "한\u1112\u1161\u11ab",
    "ภาษาไทยไม่มีช่องว่าง",
    "नमस्ते दुनिया",
    "தமிழ்",
    "ქართული",
    "Ελληνικά",
    "русский язык",
    "Tiếng Việt",
    "İstanbul ıi",
    "ǅ ﬁ ﬀ ß ẞ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "𓀀𓁐",
    "𠀀𠮷",
    "ᚠᛇᚻ",
    "ⅷ Ⅷ ½ ² ₂ ①",
    "٠١٢٣٤٥",
]
MARKS = [
    "e\u0301",
    "é",
    "a\u0300\u0301\u0302\u0303",
    "\u0301",
    "\u0301\u0302a",
    "Z\u0351\u036b\u0343algo",
    "n\u0303",
    "ñ",
    "\u0938\u094d",
    "A\u030a Å \u212b",
    "\u1e9b\u0323",
]
DIGITS = [
    "0",
    "12",
    "123",
    "1234",
    "12345678901234567890",
    "3.14159",
    "1,000,000",
    "-1e-10",
    "0x1F",
    "1 2 3",
    "v1.2.3",
    "12:34:56",
    "a1b2c3",
    "１２３",
    "७८९",
    "1\u00b2",
]
BREAKS = [
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\r\n\r\n",
    "\n\r",
    " \n",
    "\n ",
    "\t\n\t",
    "\u2028",
    "\u2029",
    "\u0085",
    "\x0b\x0c",
    "a\r\nb",
    "a\n\n\nb",
    "\n" * 33,
    "x \n\n  y\n",
]
CONTROL = [chr(code) for code in (0, 1, 7, 8, 0x1B, 0x1F, 0x7F, 0x80, 0x9F)] + [
    "a\x00b",
    "\x1b[31mred\x1b[0m",
    "\ufeff",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\U0010ffff",
    "\ue000",
    "\u200b",
    "\u00ad",
    "\u2060",
]
SPACES = [
    " ",
    "  ",
    "   ",
    " " * 7,
    " " * 16,
    " " * 31,
    " " * 32,
    " " * 33,
    " " * 100,
    "\t",
    "\t\t\t",
    " \t \t ",
    "a  b",
    "a   b",
    " a",
    "  a",
    "a ",
    "a  ",
    "\u00a0",
    "a\u00a0b",
    "\u3000x",
    "\u2003\u2009",
    "    def f():",
    "\t\tif x:",
]
ADDED = [
    "<|im_end|>",
    "<|im_start|>user",
    "<|endoftext|>",
    "a<|im_end|>b",
    "<|im_end",
    "im_end|>",
    "<end_of_turn>",
    "<start_of_turn>model\n",
    "<bos>",
    "<eos>",
    "<s>",
    "</s>",
    "<|eot_id|>",
    "<table><tr><td>1</td></tr></table>",
    "<b>bold</b>",
    "<tool_call>",
    "</tool_call>x",
    "<|fim_prefix|>",
    "<repo_name>",
    "▁",
    "▁▁",
    "Ġ",
    "ĠĠa",
    "<0x0A>",
    "<0xE2>",
    "[INST]",
    "<unk>",
    "<pad>",
]
WORDS = [
    "I'm you're he'll we'd IT'S DON'T",
    "'s 't 're",
    "snake_case camelCase PascalCase SCREAMING",
    "http://example.com/a?b=c&d=%20#e",
    "C:\\path\\file.txt",
    "a.b.c",
    "...",
    "!!!???",
    "--- *** ===",
    "#include <stdio.h>",
    '{"k": [1, 2, null]}',
    "for (int i=0;i<n;++i) { x[i] += 1; }",
    "SELECT * FROM t WHERE a='b';",
    "λx.x",
    "x²+y²=z²",
    "naïve café",
    "Straße",
    "$100.00 €50 £20 ¥10",
    "@user #tag",
    "a-b–c—d",
    "“quoted” ‘single’ «guillemets»",
    "(((",
    ")]}>",
    "~`!@#$%^&*_+",
    "A",
    "aA",
    "ABCdefGHI",
    "hello",
    " hello",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
]
REFUSED = ["\ud800", "a\udc00b", "\udfff\ud800"]
REPEATED = [
    ("a", 100_000),
    ("ab1c日", 20_000),
    ("👩‍👩‍👧", 14_000),
    ("=", 100_000),
    ("é́", 30_000),
    ("x1", 50_000),
    ("中", 100_000),
    ("\u0301", 5_000),
    ("1", 100_000),
]


def strings() -> list[dict]:
    """Return the entries: a text, a unit repeated, or a text to be refused."""
    fixed = [*EMOJI, *SCRIPTS, *MARKS, *DIGITS, *BREAKS, *CONTROL, *SPACES, *ADDED, *WORDS]
    entries = [{"text": text} for text in fixed]
    entries += [{"repeat": [unit, count]} for unit, count in REPEATED]
    entries += [{"text": text, "refused": True} for text in REFUSED]
    source = random.Random(20261124)
    while len(entries) < COUNT:
        entries.append({"text": "".join(source.choice(fixed) for _ in range(source.randint(2, 9)))})
    return entries


def text_of(entry: dict) -> str:
    """Return the text an entry stands for."""
    return entry["text"] if "text" in entry else entry["repeat"][0] * entry["repeat"][1]


def control_tokens(path: str) -> set[str]:
    """Return the texts that a GGUF file calls control tokens."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    kinds = fields["tokenizer.ggml.token_type"].contents()
    return {
        text
        for text, kind in zip(fields["tokenizer.ggml.tokens"].contents(), kinds, strict=True)
        if kind == 3
    }


def from_json(path: str, control: set[str]) -> Callable[[str], list[int]]:
    """Return the encoder of a tokenizer.json, control tokens as text.

    Which tokens are control tokens the GGUF file says: a tokenizer.json may leave some to users (Qwen's
    fill-in-the-middle tokens).
    """
    import tokenizers

    data = json.loads(Path(path).read_text())
    for token in data["added_tokens"]:
        token["special"] = token["content"] in control
    inner = tokenizers.Tokenizer.from_str(json.dumps(data))
    inner.encode_special_tokens = True
    return lambda text: inner.encode(text, add_special_tokens=False).ids


def from_gguf(path: str) -> Callable[[str], list[int]]:
    """Return llama.cpp's encoder for a GGUF file, control tokens as text."""
    import llama_cpp

    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=False)


def stored(ids: list[int]) -> list[int] | dict:
    """Return `ids` as they go into the file: whole, or a digest when there are many."""
    if len(ids) <= LONG:
        return ids
    digest = hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()
    return {"count": len(ids), "sha256": digest}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--json")
    options = parser.parse_args()
    entries = strings()
    HERE.mkdir(exist_ok=True)
    (HERE / "strings.json").write_text(json.dumps(entries, indent=0) + "\n")
    check = from_gguf(options.gguf)
    encode = from_json(options.json, control_tokens(options.gguf)) if options.json else check
    ids: list[list[int] | dict | None] = []
    differ = []
    for number, entry in enumerate(entries):
        if entry.get("refused"):
            ids.append(None)
            continue
        result = encode(text_of(entry))
        ids.append(stored(result))
        if result != check(text_of(entry)):
            differ.append(number)
            print(f"{number}: llama.cpp differs on {text_of(entry)[:40]!r}")
    reference = "the model's own tokenizer.json" if options.json else "llama.cpp on the same GGUF file"
    data = {"model": options.name, "reference": reference, "llama_cpp_differs": differ, "ids": ids}
    (HERE / f"{options.name}.json").write_text(json.dumps(data) + "\n")


if __name__ == "__main__":
    main()
