"""Whether a grammar lets a JSON value be written, in one of the orders that its properties may have.

A grammar writes properties in the order of the schema, so a value counts as accepted if some order of its is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice, permutations, product
from typing import Any, TypeVar

from freehold.run.engine.constrain.grammar import Grammar, NotReady
from freehold.run.tokenizer import Tokenizer

T = TypeVar("T")
SPELLINGS = 720  # tried of one value: six properties in every order


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Tell whether a text goes through token by token, each allowed, and may end behind the last."""
    matcher = grammar.matcher()
    for id in tokenizer.encode(text, bos=False):
        if not patiently(matcher.mask)[id]:
            return False
        matcher.advance(id)
    return bool(patiently(matcher.mask)[list(tokenizer.eos_ids)].all())


def patiently(mask: Callable[[], T]) -> T:
    """Return the next mask, however long it takes."""
    while True:
        try:
            return mask()
        except NotReady:
            continue


def accepts(grammar: Grammar, tokenizer: Tokenizer, value: Any) -> bool:
    """Tell whether some spelling of a value goes through."""
    return any(takes(grammar, tokenizer, text) for text in islice(spellings(value), SPELLINGS))


def spellings(value: Any) -> Iterator[str]:
    """Yield a value as JSON, with its properties in one order after another."""
    if isinstance(value, list):
        for parts in product(*(list(islice(spellings(v), SPELLINGS)) for v in value)):
            yield f"[{', '.join(parts)}]"
    elif isinstance(value, dict):
        inner = {key: list(islice(spellings(v), SPELLINGS)) for key, v in value.items()}
        for keys in permutations(value):
            for parts in product(*(inner[key] for key in keys)):
                yield f"{{{', '.join(f'{_text(k)}: {p}' for k, p in zip(keys, parts, strict=True))}}}"
    else:
        yield _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
