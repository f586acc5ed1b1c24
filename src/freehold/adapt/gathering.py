"""Gather: what people asked and got becomes lines to train on, and lines to test with that are never trained on.

Texts come from a gateway's file of kept texts, or as items from elsewhere (chats). A text is left out, and counted, for
a label, for personal data, for being there twice and for what training cannot use. Knows no model and loads none.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import msgspec

from freehold.adapt.evals.contamination import overlaps
from freehold.adapt.lines import conversation_key, held_out
from freehold.adapt.run import RunFolder, receipt
from freehold.adapt.settings import GatherSettings
from freehold.base import private
from freehold.base.errors import LedgerUnavailable, UsageError
from freehold.base.types import Message, Role
from freehold.route.router.answers import texts_beside
from freehold.route.router.detect import Sieve
from freehold.route.router.detect.detectors import TooManyHits
from freehold.route.router.ledger.rows import reading

MOST_TEXT = 1 << 20  # characters of a conversation: training takes no longer ones
MOST_BYTES = 1 << 30  # of all texts, which are in memory together
ROLES = ("system", "user", "assistant")
TRAIN, TEST = "examples.jsonl", "examples-test.jsonl"
PAIRS, PAIR_TEST = "pairs.jsonl", "pairs-test.jsonl"
_AT_ONCE = 500  # rows of the ledger in one query
UNREAD = "not read to its end"  # a finding's name: the text has more candidates than are checked


@dataclass(frozen=True, slots=True)
class GatheredItem:
    """A conversation up to the user's last message, and its answer."""

    id: str  # of the ledger's row, or CHAT/MESSAGE
    messages: tuple[Message, ...]
    answer: str
    rejected: str = ""  # of a pair: the answer that lost; empty: an example
    maker: str = ""  # what answered: a target of the gateway, or a model; empty: a person
    terms: str = ""  # licence or terms of the maker, as the ledger has them
    may_teach: bool | None = None
    at: float = 0.0  # seconds since 1970
    findings: tuple[str, ...] = ()  # kinds of personal data in it, never the data

    @property
    def prompt(self) -> str:
        """What equal conversations share."""
        return conversation_key(self.messages)

    @property
    def question(self) -> str:
        """The user's last message."""
        return self.messages[-1].content

    @property
    def texts(self) -> Iterator[str]:
        """Every text of it."""
        yield from (message.content for message in self.messages)
        yield from filter(None, (self.answer, self.rejected))

    def line(self) -> dict[str, Any]:
        """Return it as `finetune` reads an example, or `align` a pair."""
        turns = [{"role": m.role, "content": m.content} for m in self.messages]
        if self.rejected:
            return {"messages": turns, "chosen": self.answer, "rejected": self.rejected}
        return {"messages": [*turns, {"role": "assistant", "content": self.answer}]}


Items = tuple[GatheredItem, ...]


@dataclass(frozen=True, slots=True)
class GatheredData:
    """Items to train on and to test with. `left_out`: how many were not taken, by reason."""

    examples: Items = ()
    tests: Items = ()
    pairs: Items = ()
    test_pairs: Items = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    shown: Items = ()  # left out for personal data

    def counts(self) -> dict[str, Any]:
        """Return how many of each there are, as plain values."""
        names = ("examples", "tests", "pairs", "test_pairs")
        return {name: len(getattr(self, name)) for name in names} | {"left_out": dict(self.left_out)}


# --- kept texts of a route ----------------------------------------------------------------------------


def from_ledger(ledger: Path, route: str, settings: GatherSettings | None = None) -> GatheredData:
    """Take the texts that the gateway kept of a route (`keep = "text"`), the oldest first.

    A text is taken only if the ledger has its row, which has no label and a whole answer. Raises ModelNotFound without
    a ledger, UsageError where the route has no texts, LedgerUnavailable for a file that cannot be read.
    """
    settings = settings or GatherSettings()
    left_out: Counter[str] = Counter()
    return gathered(_kept(ledger, route, settings.since, left_out), settings, left_out)


class _KeptReply(msgspec.Struct):
    text: str = ""
    refusal: str = ""
    finish_reason: str | None = ""
    tool_calls: list[Any] = msgspec.field(default_factory=list)


class _KeptPrompt(msgspec.Struct):
    messages: list[dict[str, Any]] | None = None
    tools: list[Any] = msgspec.field(default_factory=list)


_prompt = msgspec.json.Decoder(_KeptPrompt).decode
_answers = msgspec.json.Decoder(list[_KeptReply]).decode


@dataclass(frozen=True, slots=True)
class _KeptText:
    """A row of the file of texts."""

    id: str
    at: float
    target: str
    prompt: bytes
    answers: bytes


def _kept(ledger: Path, route: str, since: float, left_out: Counter[str]) -> Iterator[GatheredItem]:
    """Yield the texts whose rows allow it; count the others."""
    with reading(ledger) as books:
        for texts in _texts(ledger, route, since):
            marks = ", ".join("?" * len(texts))
            query = f"SELECT id, labels, outcome, terms, may_teach FROM requests WHERE id IN ({marks})"
            rows = {row[0]: row for row in books.execute(query, [text.id for text in texts])}
            for text in texts:
                reason, item = _allowed(text, rows.get(text.id))
                if item is None:
                    left_out[reason] += 1
                else:
                    yield item


def _texts(ledger: Path, route: str, since: float) -> Iterator[list[_KeptText]]:
    """Yield a route's kept texts in groups, by their ids, which sort by time."""
    path = texts_beside(ledger)
    if not path.is_file():
        raise UsageError(
            f"no text was kept beside {ledger}",
            f'set keep = "text" for the route {route} in gateway.toml: texts are kept from then on',
        )
    query = "SELECT id, at, target, prompt, answers FROM texts WHERE route = ? AND at >= ? ORDER BY id"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)) as db:
            (count,) = db.execute("SELECT count(*) FROM texts WHERE route = ?", (route,)).fetchone()
            if not count:
                routes = [
                    name for (name,) in db.execute("SELECT DISTINCT route FROM texts ORDER BY 1 LIMIT 20")
                ]
                raise UsageError(
                    f"no text of the route {route[:80]!r} was kept",
                    f"kept are those of {', '.join(routes)}"
                    if routes
                    else f'set keep = "text" for {route[:80]}',
                )
            cursor = db.execute(query, (route, since))
            while rows := cursor.fetchmany(_AT_ONCE):
                yield [_KeptText(*row) for row in rows]
    except sqlite3.Error as e:
        raise LedgerUnavailable(
            f"the kept texts {path} cannot be read: {e}", "they may be damaged, or another program's file"
        ) from e


def _allowed(text: _KeptText, row: Sequence[Any] | None) -> tuple[str, GatheredItem | None]:
    """Return the item of a text, or why there is none: a row that does not vouch for it, or what is not trained on."""
    if row is None:
        return "no row in the ledger", None
    _, labels, outcome, terms, may_teach = row
    if labels:
        return "a label", None
    if outcome not in ("whole", "cached"):
        return "no whole answer", None
    try:
        prompt, answers = _prompt(text.prompt), _answers(text.answers)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "damaged", None
    reason, messages = plain_messages(prompt.messages, tools=bool(prompt.tools))
    if reason:
        return reason, None
    answer = answers[0] if answers else _KeptReply()
    if answer.tool_calls:
        return "tools", None
    if answer.finish_reason != "stop" or answer.refusal or not answer.text.strip():
        return "no whole answer", None
    may = None if may_teach is None else bool(may_teach)
    return "", GatheredItem(
        text.id, messages, answer.text, maker=text.target, terms=terms, may_teach=may, at=text.at
    )


def plain_messages(
    turns: Sequence[Mapping[str, Any]] | None, *, tools: bool = False
) -> tuple[str, tuple[Message, ...]]:
    """Return the messages of a conversation that a training can use; else why it cannot."""
    if turns is None:
        return "no chat", ()
    if tools or any(turn.get("tool_calls") or turn.get("role") == "tool" for turn in turns):
        return "tools", ()
    if any(not isinstance(part, str) for turn in turns for part in turn.get("parts") or ()):
        return "pictures or audio", ()
    messages = []
    for turn in turns:
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            return "a message without text", ()
        messages.append(Message(cast(Role, role), content))
    if not messages or messages[-1].role != "user":
        return "no question at its end", ()
    return "", tuple(messages)


# --- items from anywhere: personal data, doubles, test items -------------------------------------------


def gathered(
    items: Iterable[GatheredItem], settings: GatherSettings, left_out: Mapping[str, int] | None = None
) -> GatheredData:
    """Sort items: of equal conversations the newest counts, personal data is left out, test items are kept apart.

    `left_out`: what the caller did not take, by reason; read after the items. Raises UsageError where the package that
    finds personal data is missing, and for texts of more than MOST_BYTES together.
    """
    counts: Counter[str] = Counter()
    unique = _unique(items, counts)
    clean, shown = _without_personal(unique, settings, counts)
    clean = _without_tests(clean, settings.apart, counts)
    examples, tests = _split([each for each in clean if not each.rejected], settings, counts)
    pairs, test_pairs = _split([each for each in clean if each.rejected], settings, counts)
    total = Counter(left_out or {})
    total.update(counts)
    return GatheredData(examples, tests, pairs, test_pairs, dict(sorted(total.items())), shown)


def _unique(items: Iterable[GatheredItem], counts: Counter[str]) -> list[GatheredItem]:
    """Keep the newest item of each conversation, and each pair once."""
    kept: dict[tuple[str, str, str], GatheredItem] = {}
    size = 0
    for item in items:
        length = sum(map(len, item.texts))
        if length > MOST_TEXT:
            counts["too long"] += 1
            continue
        size += length
        if size > MOST_BYTES:
            raise UsageError(
                f"the texts have more than {MOST_BYTES:,} characters together", "use newer ones: --since 7d"
            )
        key = (item.prompt, item.answer, item.rejected) if item.rejected else (item.prompt, "", "")
        counts["there twice"] += key in kept
        kept.pop(key, None)  # so that the newest is in its own place
        kept[key] = item
    counts += Counter()  # without the names of nothing
    return list(kept.values())


def _without_personal(
    items: list[GatheredItem], settings: GatherSettings, counts: Counter[str]
) -> tuple[list[GatheredItem], Items]:
    """Take out what the gateway's detectors find personal data or credentials in."""
    if settings.personal == "keep" or not items:
        return items, ()
    try:
        sieve = Sieve()
    except UsageError as e:
        raise UsageError(
            f"personal data cannot be looked for: {e.message}",
            f"{e.hint}; or --personal keep, which looks for none",
        ) from e
    clean: list[GatheredItem] = []
    shown: list[GatheredItem] = []
    for item in items:
        try:
            findings = tuple(sorted(map(str, sieve.find(item.texts))))
        except TooManyHits:
            findings = (UNREAD,)
        if findings:
            counts["personal data"] += 1
            shown.append(replace(item, findings=findings))
        else:
            clean.append(item)
    return clean, tuple(shown)


def _without_tests(
    items: list[GatheredItem], apart: Sequence[Path], counts: Counter[str]
) -> list[GatheredItem]:
    """Take out what is in the user's own test files: the same question, or 13 words in a row of one."""
    tests = [text for path in apart for text in _questions(path)]
    clean = _beside(items, tests)
    if len(clean) < len(items):
        counts["in a test file"] += len(items) - len(clean)
    return clean


def _questions(path: Path) -> list[str]:
    """Return what each line of a file of cases or tests asks."""
    from freehold.adapt.evals.samples import parsed_line
    from freehold.adapt.lines import MOST_LINE, file_bytes

    texts: list[str] = []
    for number, line in enumerate(file_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            table = parsed_line(line, MOST_LINE, "line")
        except UsageError as e:
            raise UsageError(f"{path}: line {number}: {e.message}", "name a file of JSON lines") from e
        turns = table.get("messages")
        listed = turns if isinstance(turns, list) else []
        users = [t.get("content") for t in listed if isinstance(t, dict) and t.get("role") == "user"]
        text = table.get("prompt") or (users[-1] if users else None)
        if not isinstance(text, str):
            raise UsageError(
                f"{path}: line {number} has neither a prompt nor messages", "name a file of cases or of tests"
            )
        texts.append(text)
    return texts


def _beside(items: list[GatheredItem], tests: Sequence[str]) -> list[GatheredItem]:
    """Return the items whose question no test holds. A test names one item at a time, so it is asked until none is."""
    while tests and items:
        held = {overlap.training for overlap in overlaps((item.question for item in items), tests)}
        if not held:
            break
        items = [item for i, item in enumerate(items) if i not in held]
    return items


def _split(items: list[GatheredItem], settings: GatherSettings, counts: Counter[str]) -> tuple[Items, Items]:
    """Set test items apart by the digest of their conversation, and take out what shares 13 words with one."""
    if settings.most and len(items) > settings.most:
        counts["beyond --most"] += len(items) - settings.most
        items = items[-settings.most :]
    trained, tested = held_out(items, settings.test_share, settings.seed, lambda item: item.prompt)
    clean = _beside(trained, [item.question for item in tested])
    if len(clean) < len(trained):
        counts["near a test item"] += len(trained) - len(clean)
    return tuple(clean), tuple(tested)


# --- files ---------------------------------------------------------------------------------------------


def write_data(
    data: GatheredData, out: Path, source: str, settings: GatherSettings | None = None
) -> dict[str, Any]:
    """Write the folder `out`, whole or not at all, for its owner alone; return its receipt.

    `source`: what the receipt calls the texts' origin. Raises UsageError where nothing is left or `out` exists, and
    StoreError where it cannot be written.
    """
    if not (data.examples or data.pairs):
        raise UsageError(
            f"there is nothing to train on in {source}: {_reasons(data.left_out) or 'it has no texts'}",
            "see what was left out with --personal show, or use older texts",
        )
    settings = settings or GatherSettings()
    files = {TRAIN: data.examples, TEST: data.tests, PAIRS: data.pairs, PAIR_TEST: data.test_pairs}
    inputs = {
        "source": source,
        "personal": settings.personal,
        "test_share": settings.test_share,
        "seed": settings.seed,
        "apart": [str(path) for path in settings.apart],
    }
    with RunFolder.open(out, "data", inputs, fresh=True) as run:
        os.chmod(run.folder, private.FOLDER)
        written = {name: _written(run.path(name), items) for name, items in files.items() if items}
        makers = Counter(item.maker for items in files.values() for item in items)
        record = receipt("data", inputs, files=written, makers=dict(makers.most_common()), **data.counts())
        run.finish(record)
    return record


def _written(path: Path, items: Items) -> dict[str, Any]:
    from freehold.adapt.run import file_digest, on_disk

    with on_disk(path), open(path, "w", encoding="utf-8", opener=private.opener) as file:
        for item in items:
            file.write(json.dumps(item.line(), ensure_ascii=False) + "\n")
    return {"lines": len(items), "sha256": file_digest(path)}


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} left out for: {reason}" for reason, count in left_out.items())
