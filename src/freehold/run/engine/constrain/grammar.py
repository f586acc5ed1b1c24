"""Formats compiled to grammars: which tokens may come next, so that a text has the requested format.

Knows a tokenizer's bytes and llguidance, which does the parsing; knows no logits, no request and no thinking.
Whatever fails in a grammar is raised as UsageError, for the one answer that uses it. No call of the parser can be
interrupted, so those that an engine's step makes have narrow limits. An answer that needs wider ones continues in a
thread apart (`_WideMatcher`), and no step waits for it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import FreeholdError, UsageError
from freehold.base.platforms import run_thread_below
from freehold.base.types import MAX_CHOICES, MAX_FORMAT_CHARS, Format
from freehold.run.engine.constrain.trial_compile import try_compile
from freehold.run.tokenizer import Tokenizer, TokenKind
from freehold.run.tokenizer.dialects.grammar import BLANKS

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

Mask = NDArray[np.bool_]  # one for each token of the vocabulary
Texts = tuple[tuple[str, str], ...]  # (kind, text) of each format
_T = TypeVar("_T")

MAX_DEPTH = 100  # arrays and objects within each other in a schema; the parser itself ends at 127
MAX_REGEX_CHARS = 16 << 10  # the time of a mask grows with the square of it: 20 ms for a row of 2,000 options
MAX_LARK_CHARS = 64 << 10
# llguidance's own limits, which bound a single call. A row is searched for each item that it gets, so a call takes the
# square of them. A field that may be left out is four items of a row. A row is limited once it is whole, and the first
# ones grow with the source, so a source with more than MARKS separators of names, values and alternatives is for the
# thread apart from the beginning: 5,600 take 18 to 30 ms for the first mask, 22,000 take 320.
MARKS = 3000
LIMITS: dict[str, Any] = {
    "max_items_in_row": 250,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 5_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
# Of calls in the thread apart, where one may take most of a second.
WIDE = {**LIMITS, "max_items_in_row": 4000, "step_lexer_fuel": 200_000, "step_max_items": 60_000}
_LIMITED = ("Too many items", "Current row has", "too many expressions constructed", "fuel")  # in an error
WAIT_S = 0.005  # that a step waits for a mask from the thread apart, before the row is computed again in another step
QUICK_S = 0.001  # of a mask, after which looking at drafted tokens takes a few milliseconds at most
APART_NICE = 5  # of the thread apart: it works beside the steps of all
# Seconds of processor that all calls of one answer may take: so much, and so much more a token. Schemas take 0.03 ms
# a token at the median and 0.5 at the 99th percentile. The spare second is also for a virtual machine, which counts
# as its own what its host gives to others: a mask of 2 ms was once measured at 0.9 s.
SPARE_S, TOKEN_S = 1.0, 0.002
SHORT = 4 << 10  # characters; the smallest source that ends a process has 20 KB
STACK = 16 << 20  # bytes, for what recurses by the depth of a grammar
KEPT = 16  # grammars compiled latest
_stack = threading.Lock()  # the size is the process's: two threads that change it would restore each other's


class Grammars:
    """Compiles formats for one tokenizer, and keeps those used latest. Safe from many threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer; its table is made for the first format, which takes most of a second."""
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._table: TokenTable | None = None
        self._kept: OrderedDict[tuple[Texts, bool], Grammar] = OrderedDict()

    def grammar(self, *formats: Format, at_start: bool = False) -> Grammar:
        """Return the grammar of a format, or of texts that fit any of several. Raises UsageError for a wrong one.

        `at_start`: the text begins a text of its own, so a SentencePiece tokenizer takes a leading space away.
        """
        spaced = at_start and self._tokenizer.strips_leading_space
        texts = tuple((format.kind, _text_of(format)) for format in formats)
        with self._lock:
            found = self._kept.get((texts, spaced))
            if found is not None:
                self._kept.move_to_end((texts, spaced))
                return found
        grammar = Grammar(self._tokens(), _source_of(texts, spaced))
        with self._lock:
            self._kept[texts, spaced] = grammar
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _tokens(self) -> TokenTable:
        with self._lock:
            if self._table is None:
                self._table = TokenTable.of(self._tokenizer)
            return self._table


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A vocabulary as the parser sees it."""

    trie: LLTokenizer
    size: int
    blanks: Mask  # tokens of white space alone
    ends: NDArray[np.int64]  # the model's own

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TokenTable:
        """Lay the vocabulary out. Control tokens write nothing, so no grammar takes one but as its end."""
        if not tokenizer.eos_ids:
            raise UsageError(
                "a format needs a token that ends the answer, and the model has none", field="format"
            )
        from llguidance import LLTokenizer
        from llguidance._tokenizer import TokenizerWrapper

        tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        ends = sorted(tokenizer.eos_ids)
        wrapper = TokenizerWrapper(_Spelled(tokenizer, tokens, ends[0]))
        trie = _guarded(lambda: LLTokenizer(wrapper, eos_token=ends))
        wrapper.tokens = ()  # it has its own copy, and holds the wrapper
        blanks = np.array([token.isspace() and token.isascii() for token in tokens])
        return cls(trie, len(tokens), blanks, np.array(ends))


class _Spelled:
    """A tokenizer with the attributes that llguidance expects."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], end: int) -> None:
        self._encode = tokenizer.encode
        # In front of a text it keeps the leading space from being stripped.
        self._guard = "\x02" if tokenizer.strips_leading_space else ""
        self._skip = len(self._encode(self._guard, bos=False)) if self._guard else 0
        kinds = (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.UNUSED)
        silent = [id for id in range(len(tokens)) if tokenizer.token_kind(id) in kinds]
        self.tokens = [*tokens]
        for id in silent:
            self.tokens[id] = tokenizer.token_bytes(id, special=True)
        self.special_token_ids = silent
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos_id

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(self._guard + text.decode("utf-8", "replace"), bos=False)[self._skip :]


class Grammar:
    """A format compiled for a tokenizer; answers take copies of its first state."""

    def __init__(self, tokens: TokenTable, source: str) -> None:
        """Compile llguidance's source. Raises UsageError."""
        if len(source) > SHORT and (wrong := try_compile(source, WIDE)):
            raise _error(_one_line(wrong))
        self.tokens, self._source = tokens, source
        self._wide: LLMatcher | None = None
        self._first: LLMatcher | None = None
        if sum(map(source.count, ":,|")) <= MARKS:
            first = _compiled(tokens, source, LIMITS)
            if not _failure(first):
                self._first = first
        if self._first is None:
            self.wide()

    def matcher(self, spent: ParserTime | None = None) -> GrammarMatcher:
        """Return the state before the first token; `spent`: of the answer's calls so far."""
        return GrammarMatcher(self, spent or ParserTime())

    def first(self) -> LLMatcher | None:
        """Return the parser before the first token, within LIMITS; None where that state is beyond them."""
        return None if self._first is None else _guarded(self._first.deep_copy)

    def wide(self) -> LLMatcher:
        """Return the same within WIDE, which is compiled when an answer first needs it. Raises UsageError."""
        if self._wide is None:
            wide = _compiled(self.tokens, self._source, WIDE)
            if why := _failure(wide):
                raise _error(why)
            self._wide = wide
        return _guarded(self._wide.deep_copy)


@dataclass(slots=True)
class ParserTime:
    """What the parser's calls of one answer took, whichever of its grammars they were for."""

    seconds: float = 0.0  # of processor
    tokens: int = 0  # taken in
    waited: float = 0.0  # seconds that steps waited for the thread apart

    def add(self, seconds: float) -> None:
        """Count a call. Raises UsageError once all took more than SPARE_S and TOKEN_S a token."""
        self.seconds += seconds
        if self.seconds > SPARE_S + TOKEN_S * self.tokens:
            raise _error(
                f"finding the tokens that may come next took {self.seconds:.2f} s of processor for "
                f"{self.tokens:,} tokens; the limit is {SPARE_S:g} s and {TOKEN_S * 1e3:g} ms a token"
            )


class NotReady(Exception):
    """A mask is still being computed: the row is computed again in a later step."""


class GrammarMatcher:
    """How far one answer has come in its grammar. One thread at a time.

    Every call of the parser is timed; each may raise UsageError, see ParserTime.
    """

    def __init__(self, grammar: Grammar, spent: ParserTime) -> None:
        self.tokens = grammar.tokens
        self._grammar, self._spent = grammar, spent
        self._ids: list[int] = []  # taken in
        self._mask_s = 0.0  # of the latest mask
        self._bits = _bits(self.tokens)
        self._apart: _WideMatcher | None = None
        state = grammar.first()
        if state is None:
            self._go_apart()
        else:
            self._state = state

    def mask(self) -> Mask:
        """Return which tokens may come next; the model's stop tokens may where the text is complete.

        Raises NotReady where the thread apart has not computed it in WAIT_S.
        """
        bits = self._bits
        if self._apart is None:
            before = self._spent.seconds
            self._called(lambda: self._state.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes), None)
            self._mask_s = self._spent.seconds - before
        if self._apart is not None:
            bits = self._apart.bits()
        return np.unpackbits(bits.view(np.uint8), count=self.tokens.size, bitorder="little").view(np.bool_)

    def advance(self, id: int) -> None:
        """Take in a token. Raises UsageError for one that is not valid here; the thread apart does at the next mask."""
        self._spent.tokens += 1
        self._ids.append(id)
        if self._apart is not None:
            self._apart.advance(id)
        elif not self._called(lambda: self._state.consume_token(id), True):
            raise _error(f"token {id} is not valid here")

    @property
    def is_complete(self) -> bool:
        """Whether the text is complete and nothing can follow it; of the thread apart, as of the latest mask."""
        if self._apart is not None:
            return self._apart.is_complete
        return self._called(self._state.is_stopped, False)

    def forced(self) -> list[int]:
        """Return tokens that must come next, if some must and they are found quickly."""
        return [] if self._apart else self._called(self._state.compute_ff_tokens, [])

    def count_valid(self, ids: Sequence[int]) -> int:
        """Return how many of `ids`, from the first, could come next; none where that is not found quickly."""
        if self._apart or self._mask_s > QUICK_S:
            return 0
        return self._called(lambda: self._state.validate_tokens(list(ids)), 0)

    def _called(self, call: Callable[[], _T], otherwise: _T) -> _T:
        """Make a call here; if it needs more than LIMITS, return `otherwise` and use the other process from then on."""
        began = time.thread_time()
        result = _guarded(call)
        self._spent.add(time.thread_time() - began)
        if not _failure(self._state):
            return result
        self._go_apart()
        return otherwise

    def _go_apart(self) -> None:
        self._apart = _WideMatcher(self._grammar, self._ids, self._spent)


class _WideMatcher:
    """One answer's parser within WIDE, in the thread that all such answers share.

    That thread computes the next mask as soon as a token is taken in, while the model computes the next step.
    """

    def __init__(self, grammar: Grammar, ids: Sequence[int], spent: ParserTime) -> None:
        self.is_complete = False
        self._grammar, self._spent = grammar, spent
        self._state: LLMatcher | None = None
        self._mask_s = 0.0
        self._bits = _bits(grammar.tokens)
        self._untaken = deque(ids)
        self._job = apart.submit(self._run)

    def advance(self, id: int) -> None:
        """Have a token taken in."""
        self._untaken.append(id)
        self._job = apart.submit(self._run)

    def bits(self) -> NDArray[np.uint32]:
        """Return the mask. Raises NotReady, UsageError."""
        try:
            self._job.result(WAIT_S)
        except TimeoutError:
            self._spent.waited += WAIT_S
            raise NotReady from None
        return self._bits

    def _run(self) -> None:
        state = self._state
        if state is None:
            state = self._state = self._grammar.wide()
        while self._untaken:
            id = self._untaken.popleft()
            began = time.perf_counter()
            taken = _guarded(lambda id=id: apart.consume(state, id))
            # Of another thread, whose processor time is not known: what the clock says, which on a busy machine is too
            # much, and no more than the mask took, which has this token's work in it.
            self._spent.add(min(time.perf_counter() - began, self._mask_s + QUICK_S))
            if why := _failure(state):
                raise _error(why)
            if not taken:
                raise _error(f"token {id} is not valid here")
        bits = self._bits
        began = time.thread_time()
        _guarded(lambda: state.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes))
        self._mask_s = time.thread_time() - began
        self._spent.add(self._mask_s)
        if why := _failure(state):
            raise _error(why)
        self.is_complete = state.is_stopped()


class _ApartThread:
    """The thread for parsers whose calls are long, started when the first one needs it.

    Its calls let the engine's thread continue: llguidance releases the interpreter in those that it makes.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(
            1, "freehold-grammars", initializer=run_thread_below, initargs=(APART_NICE,)
        )
        self._executor: LLExecutor | None = None

    def submit(self, work: Callable[[], object]) -> Future[object]:
        """Do work after what was submitted before."""
        return self._pool.submit(work)

    def consume(self, state: LLMatcher, id: int) -> bool:
        """Have a parser take in a token. In this thread alone."""
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor(1)  # its thread inherits the priority of this one
        return self._executor.consume_token_par([(state, id)])[0]


apart = _ApartThread()


def _bits(tokens: TokenTable) -> NDArray[np.uint32]:
    return np.zeros((tokens.size + 31) // 32, np.uint32)


def _failure(state: LLMatcher) -> str:
    """Return the limit that a parser met, or "". Raises UsageError for any other failure."""
    if not state.is_error():
        return ""
    why = _one_line(state.get_error())
    if not any(words in why for words in _LIMITED):
        raise _error(why)
    return why


# --- from a format to llguidance's own ------------------------------------------------------------------


def _source_of(texts: Texts, spaced: bool) -> str:
    """Return llguidance's source of texts that fit one of several formats.

    `spaced`: a leading space is allowed (JSON) or required. Raises UsageError for text beyond a limit.
    """
    sources = [_WRITERS[kind](text) for kind, text in texts]
    if len(texts) == 1 and not spaced:
        return sources[0]
    uses, grammars = [], []
    for i, ((kind, _), source) in enumerate(zip(texts, sources, strict=True)):
        space = '" "?' if kind in ("json", "json_schema") else '" "'  # a regex may begin with one of its own
        uses.append(f"{space} @inner{i}" if spaced else f"@inner{i}")
        grammars.append({**json.loads(source)["grammars"][0], "name": f"inner{i}"})
    return json.dumps({"grammars": [{"lark_grammar": f"start: {' | '.join(uses)}"}, *grammars]})


def _text_of(format: Format) -> str:
    """Return the format as text, from which it is compiled and by which it is cached. Raises UsageError."""
    if format.kind not in _WRITERS:
        raise UsageError(f"format is {format.kind!r}; expected one of {', '.join(_WRITERS)}", field="format")
    if format.kind == "json_schema":
        return _schema_text(format.source)
    return _choice_text(format.source) if format.kind == "choice" else format.source


def _schema_text(schema: object) -> str:
    if not isinstance(schema, Mapping | bool):
        raise _error(f"the JSON schema is a {type(schema).__name__}; expected an object")
    if schema is False:
        raise _error("the JSON schema is false, and nothing fits it")
    return "{}" if schema is True else _as_json(schema, "the JSON schema")


def _choice_text(texts: object) -> str:
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise _error("a choice is a list of texts, none of them empty")
    if len(texts) > MAX_CHOICES:
        raise _error(f"a choice has {len(texts):,} texts; the limit is {MAX_CHOICES:,}")
    _as_json(texts, "the choice")
    # A terminal, which the lexer takes as one item: as rules, 500 texts would fill a row of the parser.
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _any_object(_: str) -> str:
    return _schema('{"type": "object"}')


def _schema(text: str) -> str:
    from llguidance import LLMatcher

    defaults: Any = {"whitespace_pattern": BLANKS}
    return _guarded(lambda: LLMatcher.grammar_from_json_schema(text, defaults))


def _regex(source: str) -> str:
    from llguidance import LLMatcher

    _check_chars("the regular expression", source, MAX_REGEX_CHARS)
    return _guarded(lambda: LLMatcher.grammar_from_regex(source))


def _lark(source: str) -> str:
    _check_chars("the Lark grammar", source, MAX_LARK_CHARS)
    return _of_lark(source)


def _of_lark(source: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": source}]})


_WRITERS: dict[str, Callable[[str], str]] = {
    "json": _any_object,
    "json_schema": _schema,
    "regex": _regex,
    "lark": _lark,
    "choice": _of_lark,
}


def _as_json(value: object, what: str) -> str:
    """Write a value as JSON text. Raises UsageError for one that is not JSON, too deep or too long."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _error(f"{what} is more than {MAX_DEPTH} levels deep")
        level = [child for node in level for child in _children(node)]
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as e:
        raise _error(f"{what} is not JSON: {e}") from e
    _check_chars(what, text, MAX_FORMAT_CHARS)
    return text


def _children(node: object) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [child for child in children if isinstance(child, dict | list)]


def _check_chars(what: str, source: str, limit: int) -> None:
    if not source:
        raise _error(f"{what} is empty")
    if len(source) > limit:
        raise _error(f"{what} has {len(source):,} characters; the limit is {limit:,}")


def _compiled(tokens: TokenTable, source: str, limits: dict[str, Any]) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    bounds = LLParserLimits(**limits, verbose_errors=False)
    return _deep(lambda: LLMatcher(tokens.trie, source, log_level=0, limits=bounds))


def _deep(make: Callable[[], _T]) -> _T:
    """Run `make` with a stack of STACK bytes: a thread's may be 512 KB, or 128."""
    got: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            got.append(_guarded(make))
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=run, name="freehold-grammar")
    with _stack:
        before = threading.stack_size(STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return got[0]


def _guarded(call: Callable[[], _T]) -> _T:
    """Call into llguidance; whatever it raises, a panic included, is an error about the format."""
    try:
        return call()
    except (FreeholdError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # a panic is not an Exception
        raise _error(_one_line(str(e))) from e


def _one_line(message: str) -> str:
    """Return llguidance's message on one line: where it is, and what is wrong."""
    lines = [line.strip() for line in message.split("\n<", 1)[0].splitlines()]
    if not lines:
        return "it cannot be compiled"
    wrong = [line for line in lines[1:] if line.startswith("error:")]
    short = " ".join([lines[0], *wrong])[:400]
    return short.partition(". Enable 'coerce_one_of'")[0]


def _error(what: str) -> UsageError:
    hint = next((hint for part, hint in _HINTS.items() if part in what), "")
    return UsageError(f"format: {what}", hint, field="format")


_AMBIGUOUS = (
    "write rules that read a text in one way only, and that repeat to the left (list: item | list item); "
    "in a schema require some of the properties, or have fewer of them and of anyOf in one place"
)
_HINTS = {
    "finding the tokens": _AMBIGUOUS,
    "Current row has": _AMBIGUOUS,
    "Too many items": _AMBIGUOUS,
    "Unimplemented keys": 'leave them out, or let them be ignored: "x-guidance": {"lenient": true}',
    "Unknown format": 'leave it out, or let it be ignored: "x-guidance": {"lenient": true}',
    "oneOf": 'use anyOf, or have it treated as that: "x-guidance": {"coerce_one_of": true}',
}
