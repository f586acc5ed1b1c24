"""Writes tokens/words.json: how models' own files cut tokens/strings.json into words, as one digest a pre-tokenizer.

The reference is the `pre_tokenizer` (and `normalizer`) of a tokenizer.json, or the pattern of a tekken.json, run by the
`tokenizers` library. A PRE is GGUF's name for it, `tokenizer.ggml.pre`.

    python make_words.py llama-bpe=llama3/tokenizer.json tekken=tekken.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers

HERE = Path(__file__).parent / "tokens"
Cut = Callable[[str], Iterable[str]]


def digest(cut: Cut) -> str:
    """Return a digest of the words of all strings."""
    entries = (e for e in json.loads((HERE / "strings.json").read_text()) if not e.get("refused"))
    texts = (e["text"] if "text" in e else e["repeat"][0] * (e["repeat"][1] // 100) for e in entries)
    return hashlib.sha256(json.dumps([list(cut(text)) for text in texts]).encode()).hexdigest()


def pipeline(path: Path) -> Cut:
    """Return how a file cuts."""
    data = json.loads(path.read_text())
    if "config" in data:
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(data["config"]["pattern"]), "isolated")
        last = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        whole = tokenizers.pre_tokenizers.Sequence([split, last])
        return lambda text: [word for word, _ in whole.pre_tokenize_str(text)]
    data["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    inner = tokenizers.Tokenizer.from_str(json.dumps({**data, "added_tokens": [], "post_processor": None}))

    def cut(text: str) -> list[str]:
        plain = inner.normalizer.normalize_str(text) if inner.normalizer is not None else text
        return [word for word, _ in inner.pre_tokenizer.pre_tokenize_str(plain)]

    return cut


def main() -> None:
    path = HERE / "words.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for argument in sys.argv[1:]:
        pre, _, file = argument.partition("=")
        known[pre] = digest(pipeline(Path(file)))
    path.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
