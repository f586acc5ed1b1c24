"""Texts to calibrate on, as ids: a user's file, or by default what every machine with Python has.

The default takes prose, code and chats in turn: the language reference, the standard library's source, and
questions about its functions whose answers are their docstrings or their code, in the model's own template. One-sided
text is dangerous below four bits. All of it is read from the machine, so its hash goes into a receipt.
Knows tokenizers and templates; knows no model and no moments.
"""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from freehold.adapt.lines import messages_of, read_lines, text_of
from freehold.adapt.settings import TOKENS
from freehold.base.errors import UsageError
from freehold.base.regular import read_bounded
from freehold.base.types import Message
from freehold.run.tokenizer import ChatTemplate, Tokenizer

LENGTH = 512  # tokens of a text
MOST_BYTES = 256 << 20  # of a user's text

_QUESTIONS = (
    "What does {module}.{name} do?",
    "Explain `{name}` from the module {module} in a few sentences.",
    "Write {name} in Python: {first}",
    "What is this code for?\n\n```python\n{code}\n```",
)
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "__pycache__")


def default_texts(
    tokenizer: Tokenizer, template: ChatTemplate | None, tokens: int = TOKENS, seed: int = 1
) -> list[list[int]]:
    """Cut the default texts to pieces of 512 tokens, `tokens` in all or what there is; always in the same order."""
    order, library = random.Random(seed), Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(library.rglob("*.py")) if not set(path.parts) & set(_LEFT_OUT)]
    order.shuffle(files)
    kinds = [_pieces(map(tokenizer.encode, _prose(order))), _pieces(map(tokenizer.encode, _sources(files)))]
    if template is not None:
        kinds.append(_pieces(_chats(files, tokenizer, template)))
    texts: list[list[int]] = []
    for kind in cycle(list(kinds)):
        if len(texts) >= -(-tokens // LENGTH) or not kinds:
            break
        piece = next(kind, None) if kind in kinds else None
        if piece is not None:
            texts.append(piece)
        elif kind in kinds:
            kinds.remove(kind)
    return texts


def file_texts(
    path: Path, tokenizer: Tokenizer, template: ChatTemplate | None, tokens: int = TOKENS
) -> list[list[int]]:
    """Cut a user's file: plain text, or JSON lines of texts and chats, as `_ids` takes them. Raises UsageError."""
    if path.suffix == ".jsonl":
        read = read_lines(path, lambda _, table: _ids(table, tokenizer, template), '{"text": "..."}')
        sequences: Sequence[list[int]] = read.items
    else:
        sequences = [tokenizer.encode(plain_text(path))]
    texts = list(_pieces(iter(sequences)))[: -(-tokens // LENGTH)]
    if not texts:
        raise UsageError(
            f"{path}: {sum(map(len, sequences)):,} tokens are too few to calibrate on",
            f"give {LENGTH:,} or more",
        )
    return texts


def held_out(texts: Sequence[Sequence[int]]) -> list[bool]:
    """Choose a third of the texts, of every kind: settings are chosen on them, and moments are of the others."""
    return [i // 3 % 3 == 2 for i in range(len(texts))]


def texts_hash(texts: Iterable[Sequence[int]]) -> str:
    """Return the SHA-256 of all ids, texts kept apart."""
    digest = hashlib.sha256()
    for ids in texts:
        digest.update(len(ids).to_bytes(8, "little") + np.asarray(ids, "<i8").tobytes())
    return digest.hexdigest()


def _prose(order: random.Random) -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems' Python leaves it out
        return []
    names = sorted(topics)
    order.shuffle(names)
    return [topics[name] for name in names]


def _sources(files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        try:
            yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _chats(files: Sequence[Path], tokenizer: Tokenizer, template: ChatTemplate) -> Iterator[list[int]]:
    count = 0
    for path in files:
        for source in _sources([path]):
            for name, docstring, code in _explained(source):
                form = _QUESTIONS[count % len(_QUESTIONS)]
                question = form.format(module=path.stem, name=name, first=docstring.split("\n")[0], code=code)
                answer = f"```python\n{code}\n```" if "Write" in form else docstring
                chat = [Message("user", question), Message("assistant", answer)]
                rendered = template.render(chat, add_generation_prompt=False)
                yield tokenizer.encode_rendered(rendered)
                count += 1


def _explained(source: str) -> Iterator[tuple[str, str, str]]:
    """Yield functions and classes with a docstring of some length: name, docstring, code."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        docstring, code = ast.get_docstring(node), "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if docstring and 120 < len(docstring) < 1500 and len(code) < 3000:
            yield node.name, docstring, code


def _pieces(texts: Iterator[list[int]]) -> Iterator[list[int]]:
    """Join texts and cut them to equal pieces; the rest is left."""
    waiting: list[int] = []
    for ids in texts:
        waiting += ids
        while len(waiting) >= LENGTH:
            yield waiting[:LENGTH]
            waiting = waiting[LENGTH:]


def plain_text(path: Path, errors: str = "strict") -> str:
    """Return a user's text, decoded from UTF-8 with `errors` as str has them. Raises UsageError."""
    try:
        text = read_bounded(path, MOST_BYTES).decode("utf-8", errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", "give a file of UTF-8 text, or of JSON lines") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", "give a file of UTF-8 text, or of JSON lines") from None


def _ids(table: Mapping[str, Any], tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    """Return the tokens of a line: of `text`, or of a chat as the model's template renders it.

    A chat is `messages`, or `prompt` and `completion`, as the examples of `finetune` have them.
    """
    if isinstance(table.get("text"), str):
        return tokenizer.encode(table["text"])
    if "messages" in table:
        messages = messages_of(table["messages"])
    elif "completion" in table:
        messages = (
            Message("user", text_of(table, "prompt")),
            Message("assistant", text_of(table, "completion")),
        )
    else:
        raise UsageError("it has neither text, messages nor a prompt with its completion")
    if template is None:
        raise UsageError("it has messages, and the model has no chat template")
    return tokenizer.encode_rendered(template.render(messages, add_generation_prompt=False))
