"""Times the masks of one peer over the tokens of one vocabulary: run in the peer's own environment by masks.py.

    python peer_masks.py NAME asked.json

`asked.json` has the tokens (base64; control tokens empty), the ids that end, and cases: a schema and the ids of an
answer that ends. Prints one JSON line for a case: seconds to compile, microseconds of each mask by round, or why not.
Knows the peers' Python interfaces; knows nothing of freehold.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

ROUNDS = 3


class Matcher(Protocol):
    """How far an answer has come."""

    def mask(self) -> object: ...
    def advance(self, id: int) -> None: ...


Compile = Callable[[dict[str, Any]], Callable[[], Matcher]]


def xgrammar(tokens: list[bytes], ends: list[int]) -> Compile:
    """MLC's, as vLLM and SGLang use it by default: one bit a token."""
    import xgrammar as xgr

    info = xgr.TokenizerInfo(
        tokens, vocab_type=xgr.VocabType.RAW, vocab_size=len(tokens), stop_token_ids=ends
    )
    compiler = xgr.GrammarCompiler(info, max_threads=2, cache_enabled=False)
    bits = xgr.allocate_token_bitmask(1, len(tokens))

    class State:
        def __init__(self, grammar: Any) -> None:
            self._state = xgr.GrammarMatcher(grammar)

        def mask(self) -> object:
            return self._state.fill_next_token_bitmask(bits)

        def advance(self, id: int) -> None:
            if not self._state.accept_token(id):
                raise ValueError(f"token {id} refused")

    def compile(schema: dict[str, Any]) -> Callable[[], Matcher]:
        grammar = compiler.compile_json_schema(json.dumps(schema))
        return lambda: State(grammar)

    return compile


def outlines_core(tokens: list[bytes], ends: list[int]) -> Compile:
    """Outlines' automaton over all tokens, made when a schema is compiled: a mask is read from a table."""
    import ctypes

    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    by_text: dict[bytes, list[int]] = {}
    for id, token in enumerate(tokens):
        if token:
            by_text.setdefault(token, []).append(id)
    vocabulary = Vocabulary(ends[-1], by_text)
    words = (len(tokens) + 31) // 32
    bits = (ctypes.c_uint32 * words)()

    class State:
        def __init__(self, index: Any) -> None:
            self._guide = Guide(index)

        def mask(self) -> object:
            return self._guide.write_mask_into(ctypes.addressof(bits), words, 4)

        def advance(self, id: int) -> None:
            self._guide.advance(id, False)

    def compile(schema: dict[str, Any]) -> Callable[[], Matcher]:
        index = Index(build_regex_from_schema(json.dumps(schema)), vocabulary)
        return lambda: State(index)

    return compile


def lm_format_enforcer(tokens: list[bytes], ends: list[int]) -> Compile:
    """A character-level parser in Python beside a tree of tokens; gives a list of ids."""
    from lmformatenforcer import JsonSchemaParser, TokenEnforcer
    from lmformatenforcer.tokenenforcer import TokenEnforcerTokenizerData

    regular = [(id, t.decode("utf-8", "replace"), t.startswith(b" ")) for id, t in enumerate(tokens) if t]

    def decode(ids: Sequence[int]) -> str:
        return b"".join(tokens[id] for id in ids).decode("utf-8", "replace")

    data = TokenEnforcerTokenizerData(regular, decode, ends, False, len(tokens))

    class State:
        def __init__(self, schema: dict[str, Any]) -> None:
            self._enforcer = TokenEnforcer(data, JsonSchemaParser(schema))
            self._ids = [ends[0]]  # it expects a prompt first

        def mask(self) -> object:
            return self._enforcer.get_allowed_tokens(self._ids)

        def advance(self, id: int) -> None:
            self._ids = [*self._ids, id]

    return lambda schema: lambda: State(schema)


PEERS = {f.__name__: f for f in (xgrammar, outlines_core, lm_format_enforcer)}


def timed(compile: Compile, schema: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Compile a schema and walk an answer through it, a fresh matcher each round."""
    started = time.perf_counter()
    begin = compile(schema)
    seconds = time.perf_counter() - started
    return {"compile_s": seconds, "mask_us": [list(walk(begin(), ids)) for _ in range(ROUNDS)]}


def walk(matcher: Matcher, ids: Sequence[int]) -> Iterator[float]:
    """Yield the microseconds of the mask before each of `ids`."""
    for id in ids:
        started = time.perf_counter()
        matcher.mask()
        yield (time.perf_counter() - started) * 1e6
        matcher.advance(id)


def main() -> None:
    """Answer each case on a line of its own, so that what was measured is not lost with what takes too long."""
    name, path = sys.argv[1:]
    asked = json.loads(Path(path).read_text())
    tokens = [base64.b64decode(token) for token in asked["tokens"]]
    started = time.perf_counter()
    compile = PEERS[name](tokens, asked["ends"])
    facts = {"version": version(name.replace("_", "-")), "vocabulary_s": time.perf_counter() - started}
    print(json.dumps(facts), flush=True)
    for case in asked["cases"]:
        try:
            got = timed(compile, case["schema"], case["ids"])
        except Exception as e:
            got = {"failed": f"{type(e).__name__}: {e}"[:200]}
        print(json.dumps({"case": case["name"], **got}), flush=True)


if __name__ == "__main__":
    main()
