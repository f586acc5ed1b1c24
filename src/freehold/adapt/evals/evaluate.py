"""Tasks of items, answered with one model, many at once, and marked; answers and marks are kept.

An answer is kept under the weights, the adapter and the very tokens of its prompt, a mark under the answer and the way
of marking. So a run that was stopped continues, and after a change only what it touched is computed again. Greedy:
an answer does not depend on what is computed beside it.
Knows no task by name and prints nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from freehold.adapt.evals.pictures import digest_of, images_of
from freehold.adapt.evals.samples import ask
from freehold.adapt.evals.trial import AppendedLines, Write, kept_rows
from freehold.base.errors import ContextOverflow
from freehold.base.serving import Job
from freehold.base.types import Message, Tool
from freehold.base.version import __version__
from freehold.run.engine.sequence import PICTURE_IDS
from freehold.run.local import LLM, open_shown
from freehold.run.store.records import ModelRef
from freehold.run.store.records import digest as model_identity

# --- tasks of items, each a question, a target and a way to mark the reply --------------------------
# Plain data, and marking as a function of the reply alone.
Metric = float | tuple[float, ...]  # of one item; several numbers count one by one


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """What a model is asked: a chat, or `text` to continue as it is; with `choices` these are scored, none written."""

    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[Tool, ...] = ()
    choices: tuple[str, ...] = ()
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def job(self, adapter: str) -> Job:
        """Return the greedy request."""
        return Job(
            messages=self.messages or None,
            prompt=None if self.messages else self.text,
            tools=self.tools,
            max_tokens=self.max_tokens,
            stop=self.stop,
            sampling={"temperature": 0.0, "seed": 0},
            adapter=adapter,
        )

    @property
    def prompt(self) -> str:
        """The prompt as results name it: the text itself, or the messages as JSON."""
        if not self.messages:
            return self.text
        return json.dumps([{"role": m.role, "content": _content(m)} for m in self.messages])


def _content(message: Message) -> Any:
    """Return a message's text; of one with pictures its parts, each picture as its digest."""
    return [p if isinstance(p, str) else f"sha256:{digest_of(p)}" for p in message.parts] or message.content


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a model answered: text and calls (name, arguments as JSON), or the log-probability of each choice.

    `error`: why there is no answer; such a reply is marked wrong.
    """

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    sums: tuple[float, ...] = ()
    tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class ItemMark:
    """An item's metrics, and in a few words why it is wrong. `fault`: a verifier's own failure, counted apart."""

    metrics: Mapping[str, Metric]
    why: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class EvalItem:
    """One item. `mark_key` names how it is marked: equal keys give equal marks of equal replies."""

    doc: Mapping[str, Any]
    question: EvalQuestion
    target: str
    mark: Callable[[ModelReply], ItemMark]
    mark_key: str
    runs_code: bool = False  # marked in a process of its own, beside the answers to come
    rubric: str = ""  # for a model that judges; `mark` is not called

    @property
    def doc_hash(self) -> str:
        """The item's identity, as lm-eval computes it."""
        return digest(json.dumps(self.doc, indent=2, ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class EvalTask:
    """Items that are counted together. `metrics`: the first is the task's main one, which runs are compared by."""

    name: str
    items: tuple[EvalItem, ...]
    metrics: tuple[str, ...]
    version: float = 1.0
    filter: str = "none"  # lm-eval's word for what was done to answers before they were marked
    original: int = 0  # items before --limit
    config: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None  # ends what marking started; marking again starts it again


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- answering and marking --------------------------------------------------------------------------

FOLDER = "evals"
AT_ONCE = 16
CHECKS_AT_ONCE = 2  # processes that run a model's code
_DIGITS = 16  # of a digest in a file's name

OnItem = Callable[[str, int, int], None]  # task, marked, in all


class EvaluatedModel(LLM):
    """An LLM that names the template its chats are rendered with."""

    @property
    def template_text(self) -> str | None:
        """The chat template; None for a model without one."""
        return self._prompter.template.source if self._prompter.can_chat else None


@dataclass(frozen=True, slots=True)
class EvalSubject:
    """A model to evaluate: loaded, its adapter by name or "", and the digest of weights, adapter and engine."""

    model: EvaluatedModel
    adapter: str
    digest: str


@contextmanager
def opened_subject(
    ref: ModelRef,
    adapter: Path | None = None,
    *,
    packs: Path | None = None,
    context: int | None = None,
    threads: int | None = None,
) -> Iterator[EvalSubject]:
    """Load a model with an adapter to evaluate; a terminal sees how far it is. Raises what loading raises."""
    named = {"adapter": adapter} if adapter else {}
    loaded = open_shown(
        ref, context=context, threads=threads, adapters=named, packs=packs, kind=EvaluatedModel
    )
    with ExitStack() as stack:
        model = cast("EvaluatedModel", stack.enter_context(loaded))
        adapters = [(info.name, info.digest) for info in model.info.adapters]
        overlay = ref.overlay
        own = overlay.adapter_name if overlay and overlay.adapter else ""
        overlay_digest = overlay.digest if overlay else ""
        parts = [model_identity(ref), ref.rounding, overlay_digest, adapters, __version__]
        yield EvalSubject(model, next(iter(named), own), digest(json.dumps(parts)))


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One item with its reply and its mark. `key`: what the mark is kept under."""

    item: EvalItem
    reply: ModelReply
    mark: ItemMark
    key: str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A task's items in their order. `answered`: how many replies were computed now, the others were kept."""

    task: EvalTask
    rows: tuple[ItemResult, ...]
    answered: int


@dataclass(slots=True)
class _Book:
    """What is kept of one subject: replies by their key, marks by theirs."""

    replies: dict[str, ModelReply] = field(default_factory=dict)
    marks: dict[str, ItemMark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Rendered:
    """An item with its prompt's tokens: those of a request, or a row for each choice and where the choice begins."""

    number: int
    item: EvalItem
    key: str
    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...] = ()
    error: str = ""


def evaluate(
    task: EvalTask,
    subject: EvalSubject,
    home: Path,
    *,
    fresh: bool = False,
    on_item: OnItem = lambda task, done, total: None,
) -> TaskResult:
    """Answer and mark a task's items. `fresh`: compute every answer again.

    Items that a model judges by a rubric are returned with a mark that has no metric: `judged` marks them.
    Raises what the model raises, except that an item which is too long for the context counts as wrong.
    """
    path = _path(home, subject)
    book = _Book() if fresh else _kept(path)
    rendered = [_render(number, item, subject) for number, item in enumerate(task.items)]
    missing = [each for each in rendered if each.key not in book.replies and not each.error]
    with (
        closing(task),
        AppendedLines(path, _head(subject)) as write,
        _Marking(book, write, task, on_item) as marking,
    ):
        for each in rendered:
            if each.error:
                marking.take(each, ModelReply(error=each.error))
            elif each.key in book.replies:
                marking.take(each, book.replies[each.key])
        for each, reply in _replies(missing, subject):
            more = {"calls": reply.calls, "sums": reply.sums, "tokens": reply.tokens, "error": reply.error}
            write({"reply": each.key, "text": reply.text, **more})
            marking.take(each, reply)
        marking.finish()
    rows = tuple(
        ItemResult(each.item, marking.replies[each.number], marking.marks[each.number], _mark_key(each))
        for each in rendered
    )
    return TaskResult(task, rows, len(missing))


def judged(result: TaskResult, subject: EvalSubject, judge: LLM, home: Path) -> TaskResult:
    """Have a model judge the replies that a rubric is for; its marks are kept as others are."""
    rows: list[ItemResult] = []
    with AppendedLines(_path(home, subject), _head(subject)) as write:
        for row in result.rows:
            if row.item.rubric and not row.mark.metrics and not row.reply.error:
                mark = ask(judge, row.item.rubric, row.item.question.messages, row.reply.text)
                named = filter(None, (result.task.metrics[0], row.item.doc.get("metric")))
                new_mark = ItemMark(dict.fromkeys(named, float(mark.passed)), mark.why)
                write(_mark_row(row.key, new_mark))
                row = replace(row, mark=new_mark)
            rows.append(row)
    return replace(result, rows=tuple(rows))


def _path(home: Path, subject: EvalSubject) -> Path:
    return home / FOLDER / f"items-{subject.digest[:_DIGITS]}.jsonl"


def _head(subject: EvalSubject) -> dict[str, str]:
    return {"subject": subject.digest, "model": subject.model.name}


def _mark_key(each: _Rendered) -> str:
    return digest(f"{each.key} {each.item.mark_key}")


def _mark_row(key: str, mark: ItemMark) -> dict[str, Any]:
    return {"mark": key, "metrics": dict(mark.metrics), "why": mark.why, "fault": mark.fault}


def _render(number: int, item: EvalItem, subject: EvalSubject) -> _Rendered:
    question, model = item.question, subject.model
    job = question.job(subject.adapter)
    try:
        ids = model.prompt_ids(job)
    except ContextOverflow as e:
        return _Rendered(number, item, "", (), error=e.message)
    rows, starts = (ids,), ()
    if question.choices:
        rows = tuple(_row(model, item, ids, choice) for choice in question.choices)
        starts = (len(ids),) * len(rows)
        longest = max(map(len, rows))
        if longest > model.context:
            return _Rendered(
                number, item, "", (), error=f"{longest:,} tokens; the context holds {model.context:,}"
            )
    tools = [(t.name, t.description, t.parameters) for t in question.tools]
    identity: list[Any] = [subject.digest, rows, starts, question.max_tokens, question.stop, tools]
    if images := images_of(question.messages):  # the ids of whose rows differ from process to process
        identity[1] = [[-1 if id >= PICTURE_IDS else id for id in row] for row in rows]
        identity.append([(digest_of(image), image.detail) for image in images])
    return _Rendered(number, item, digest(json.dumps(identity)), rows, starts)


def _row(model: LLM, item: EvalItem, ids: tuple[int, ...], choice: str) -> tuple[int, ...]:
    """Return the tokens of prompt and choice: of plain text they are one text's, in a chat the choice is the answer."""
    if item.question.messages:
        return (*ids, *model.tokenize(choice, bos=False))
    return tuple(model.tokenize(item.question.text + choice))


def _replies(missing: list[_Rendered], subject: EvalSubject) -> Iterator[tuple[_Rendered, ModelReply]]:
    """Yield each reply as it is there; closing the iterator stops the model."""
    scored = [each for each in missing if each.starts]
    written = [each for each in missing if not each.starts]
    for each in scored:
        scores = subject.model.score_many(each.rows, subject.adapter)
        sums = [
            float(row[start - 1 :].sum(dtype="float64"))
            for row, start in zip(scores, each.starts, strict=True)
        ]
        yield each, ModelReply(sums=tuple(sums))
    jobs = (each.item.question.job(subject.adapter) for each in written)
    for number, answer in subject.model.answer_many(jobs, at_once=AT_ONCE):
        if isinstance(answer, ContextOverflow):
            yield written[number], ModelReply(error=answer.message)
        else:
            calls = tuple((call.name, call.arguments) for call in answer.tool_calls)
            yield written[number], ModelReply(answer.text, calls, tokens=answer.usage.completion_tokens)


class _Marking:
    """Marks replies as they come: at once, or for code two at a time in threads that wait for a process."""

    def __init__(self, book: _Book, write: Write, task: EvalTask, on_item: OnItem) -> None:
        self._book, self._write, self._on_item = book, write, on_item
        self._name, self._total = task.name, len(task.items)
        self._pool = ThreadPoolExecutor(CHECKS_AT_ONCE, thread_name_prefix="freehold-check")
        self._running: dict[Future[ItemMark], tuple[_Rendered, str]] = {}
        self.replies: dict[int, ModelReply] = {}
        self.marks: dict[int, ItemMark] = {}

    def __enter__(self) -> _Marking:
        self._on_item(self._name, 0, self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, each: _Rendered, reply: ModelReply) -> None:
        """Mark a reply, now or soon."""
        self.replies[each.number] = reply
        item = each.item
        key = _mark_key(each)
        kept = self._book.marks.get(key)
        if reply.error:
            self._done(each, ItemMark({}, reply.error))
        elif kept is not None:
            self._done(each, kept)
        elif item.rubric:
            self._done(each, ItemMark({}))
        elif item.runs_code:
            self._running[self._pool.submit(item.mark, reply)] = each, key
            self._collect(until=4 * CHECKS_AT_ONCE)
        else:
            self._keep(each, key, item.mark(reply))

    def finish(self) -> None:
        """Wait for the marks that are still being made."""
        self._collect(until=0)

    def _collect(self, until: int) -> None:
        while self._running:
            waits = None if len(self._running) > until else 0
            ended, _ = wait(self._running, timeout=waits, return_when=FIRST_COMPLETED)
            for future in ended:
                self._keep(*self._running.pop(future), future.result())
            if not ended:
                return

    def _keep(self, each: _Rendered, key: str, mark: ItemMark) -> None:
        self._write(_mark_row(key, mark))
        self._done(each, mark)

    def _done(self, each: _Rendered, mark: ItemMark) -> None:
        self.marks[each.number] = mark
        self._on_item(self._name, len(self.marks), self._total)


def _kept(path: Path) -> _Book:
    book = _Book()
    for row in islice(kept_rows(path), 1, None):
        try:
            if "reply" in row:
                book.replies[row["reply"]] = _kept_reply(row)
            elif "mark" in row:
                book.marks[row["mark"]] = ItemMark(
                    _metrics(row["metrics"]), str(row["why"]), str(row["fault"])
                )
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # a row of another version, or damaged: the item is answered again
    return book


def _kept_reply(row: Mapping[str, Any]) -> ModelReply:
    calls = tuple((str(name), str(arguments)) for name, arguments in row["calls"])
    sums = tuple(float(s) for s in row["sums"])
    return ModelReply(str(row["text"]), calls, sums, int(row["tokens"]), str(row["error"]))


def _metrics(values: Mapping[str, Any]) -> dict[str, float | tuple[float, ...]]:
    return {
        str(name): tuple(map(float, value)) if isinstance(value, list) else float(value)
        for name, value in values.items()
    }
