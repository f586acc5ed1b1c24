"""Teach: a model learns from examples of conversations, and is kept near itself on everything else.

The base writes some text first; while the examples are learnt, a loss keeps the tuned model's distribution on that
text near the base's. What was learnt is measured on the user's test items and what was forgotten on facts and a text
of ours, before and after, by the engine that serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from freehold.adapt.evals.contamination import overlaps
from freehold.adapt.evals.paired import compared
from freehold.adapt.evals.samples import JUDGES, Judge, check_keys, first_faults, judge
from freehold.adapt.licences import base_licence
from freehold.adapt.lines import DataLines, conversation, conversation_key, messages_of, read_lines, text_of
from freehold.adapt.loop import OnStep, OnText, TrainingLoop, TrainingRun
from freehold.adapt.run import RunFolder, cpu_seconds
from freehold.adapt.sampling import (
    AnswerRow,
    AnswerRows,
    SamplingModel,
    mismatch,
    served_log_probs,
)
from freehold.adapt.settings import FinetuneSettings
from freehold.adapt.stages import StageBase
from freehold.adapt.teaching import TeachingCourse, known_facts, still_known, written
from freehold.adapt.training.steps import Optimizer, Order
from freehold.adapt.training.trainee import GGUF, Trainee
from freehold.base.errors import ContextOverflow, UsageError
from freehold.base.machine import available_bytes
from freehold.base.platforms import peak_bytes
from freehold.base.serving import Job
from freehold.base.types import Message
from freehold.choose.advisor.verdict import Facts
from freehold.run.engine.cache.capacity import MIN_CONTEXT
from freehold.run.store import ModelRef
from freehold.run.tokenizer import Tokenizer

if TYPE_CHECKING:
    from freehold.run.local import LLM


MOST_ACTIVATIONS = 1 << 30  # bytes of layers' activations; fewer where less memory is free, for the same bits
SERVED_ROWS = 16  # that the engine is asked about
# Tokens of an answer to a test item: twice the longest that was taught, within these.
LEAST_ANSWER, MOST_ANSWER = 16, 512
ADAPTER = "finetuned"  # its name in the engine that examines it
_SHOWN = 5  # samples that an error names


@dataclass(frozen=True, slots=True)
class Lessons:
    """What is taught and tested: the files, read and checked."""

    data: DataLines[ChatSample]
    exam: Exam | None
    contaminated: tuple[int, ...]  # test items that the data holds

    @classmethod
    def read(cls, data: Path, test: Path | None) -> Lessons:
        """Read both files. Raises UsageError naming every bad line."""
        samples = read_samples(data)
        exam = read_exam(test) if test else None
        taught = (message.content for sample in samples.items for message in sample.messages)
        return cls(samples, exam, tuple(exam.contaminated(taught)) if exam else ())

    @property
    def tested(self) -> str:
        """Say what there is to test with, and how much of it the data holds."""
        if self.exam is None:
            return "no test items: what is learnt is not measured; give some with --test"
        count = len(self.exam.items)
        if not self.contaminated:
            return f"{count} test items, none of them in the data"
        lines = ", ".join(str(self.exam.items[i].line) for i in self.contaminated[:_SHOWN])
        more = ", ..." if len(self.contaminated) > _SHOWN else ""
        return (
            f"{len(self.contaminated)} of {count} test items are in the data (lines {lines}{more}): "
            "the others are scored apart"
        )

    def marks(self, engine: SamplingModel, adapter: str, most: int) -> list[bool] | None:
        """Ask the test items of an engine; return which are right, None where there are none."""
        return self.exam.marks(engine, adapter, most) if self.exam else None

    def rows(self, maker: AnswerRows, *, skip_long: bool) -> tuple[list[AnswerRow], int]:
        """Return a row for each assistant turn, and how many were skipped; without `skip_long` these are an error."""
        rows: list[AnswerRow] = []
        long: list[str] = []
        for sample in self.data.items:
            for before, answer in sample.turns:
                try:
                    rows.append(maker.row(before, answer))
                except ContextOverflow as e:
                    long.append(f"line {sample.line}: {e.message}")
        if long and not skip_long:
            raise UsageError(
                f"{self.data.path}: {first_faults(long)}",
                "raise --max-length, or leave these out with --skip-long; nothing is cut",
            )
        if not rows:
            raise UsageError(
                f"{self.data.path}: every sample is longer than {maker.most:,} tokens", "raise --max-length"
            )
        return rows, len(long)


@dataclass(slots=True)
class Classroom:
    """A model with its lessons, ready for the first step."""

    trainee: Trainee
    course: TeachingCourse
    skipped: int

    @classmethod
    def of(cls, base: StageBase, lessons: Lessons, settings: FinetuneSettings) -> Classroom:
        """Bind the base and make all rows. Raises what reading the model raises, UsageError for long samples."""
        trainee = base.trainee(settings, min(MOST_ACTIVATIONS, available_bytes() // 4))
        most = min(settings.max_length, trainee.source.cfg.context)
        maker = AnswerRows(trainee.tokenizer, trainee.template, trainee.name, most)
        rows, skipped = lessons.rows(maker, skip_long=settings.skip_long)
        order = Order(len(rows), settings.batch, settings.seed)
        optimizer = settings.optimizer(trainee, settings.epochs * order.steps_an_epoch)
        rehearsal = {"rehearsed": settings.replay, "weight": settings.replay_weight}
        course = TeachingCourse(trainee, optimizer, rows, order, **rehearsal)
        return cls(trainee, course, skipped)


def finetune(
    model: ModelRef,
    data: Path,
    out: Path,
    settings: FinetuneSettings,
    *,
    adapter: Path | None = None,
    continued: bool = False,
    test: Path | None = None,
    gguf: bool = True,
    packs: Path | None = None,
    facts: Facts | None = None,
    fresh: bool = False,
    on_note: OnText = lambda note: None,
    on_step: OnStep = lambda row: None,
) -> dict[str, Any]:
    """Train an adapter on examples; write it to the folder `out` and return its receipt.

    `adapter`: one of `model` to start from; another is trained on top of it, and the result contains both. `continued`:
    it is trained itself. `gguf`: llama.cpp's file beside PEFT's two. An interrupted run with the same arguments
    continues, to the same bits.
    Raises UsageError with the numbers, and what reading the model raises.
    """
    base = StageBase.of(model, adapter, continued=continued)
    settings = base.fitted(settings)
    lessons = Lessons.read(data, test)
    licence = base_licence(model, facts or Facts())
    training = TrainingRun(
        verb="finetune",
        base=base,
        out=out,
        inputs={
            "base": {"name": model.name, "digest": base.digest},
            "data": lessons.data.digest,
            "test": lessons.exam.digest if lessons.exam else None,
        },
        settings=settings,
        licences={"base": licence},
        fresh=fresh,
    )
    room = Classroom.of(base, lessons, settings)  # a refusal leaves no folder
    trainee, course = room.trainee, room.course
    steps = settings.epochs * course.order.steps_an_epoch
    longest = max(len(row.answer) for row in course.rows)
    most = min(max(2 * longest, LEAST_ANSWER), MOST_ANSWER)

    def engine() -> SamplingModel:
        """Load the engine that serves, with room for a sample and an answer; the model's own context is the limit."""
        wanted = max(settings.max_length + MOST_ANSWER, MIN_CONTEXT)
        context = min(wanted, trainee.source.cfg.context)
        return base.opened(packs, context=context, threads=settings.threads)

    def taught(run: RunFolder) -> dict[str, Any]:
        with engine() as untaught:
            if settings.replay:
                course.replay = written(untaught, settings.seed, steps * settings.replay)
            before, known = lessons.marks(untaught, "", most), known_facts(untaught)
        for note in [*training.notes, *_notes(room, lessons)]:
            on_note(note)
        loop = TrainingLoop(run, trainee, course.optimizer, steps)
        loop.run(course.step, _watched(trainee, on_step, on_note))
        loop.save(gguf=gguf)
        lines = loop.lines()
        with engine() as tuned:
            tuned.add_adapter(ADAPTER, run.folder)
            after, sample = lessons.marks(tuned, ADAPTER, most), course.rows[:SERVED_ROWS]
            served = served_log_probs(tuned, sample, tuned.adapters.find(ADAPTER))
            examined = {
                "before_after": before_after(before, after, lessons.contaminated)
                if before and after
                else None,
                **still_known(tuned, trainee, ADAPTER, known),
                "mismatch": mismatch(trainee, sample, served),
            }
        return {
            "samples": _counted(room, lessons),
            "loss": {"first": lines[0]["loss"], "last": lines[-1]["loss"]},
            **examined,
            **loop.receipt_parts(),
            "files": ["adapter_model.safetensors", "adapter_config.json", *([GGUF] if gguf else [])],
        }

    return training.make(taught)


def _watched(trainee: Trainee, on_step: OnStep, on_note: OnText) -> OnStep:
    """Add to steps what the first ones show: a loss that no working model begins with, and the time of the run."""
    worst = float(np.log(trainee.tokenizer.vocab_size))

    def watch(row: Mapping[str, Any]) -> None:
        if row["step"] == 1 and row["loss"] >= worst:
            on_note(
                f"the first loss is {row['loss']:.2f}; a model that knows nothing has {worst:.2f}: look at --preflight"
            )
        if row["step"] == 2:
            minutes = row["steps"] * row["cpu_seconds"] / 60
            on_note(f"{row['steps']:,} steps take about {minutes:.1f} CPU-minutes")
        on_step(row)

    return watch


def _notes(room: Classroom, lessons: Lessons) -> list[str]:
    """Return what the user should know before the first step, with what the loss counts of three samples."""
    rows, tokenizer = room.course.rows, room.trainee.tokenizer
    tokens = sum(len(row.answer) for row in rows)
    lines = [
        f"{len(rows):,} answers of {tokens / len(rows):.1f} tokens from {len(lessons.data.items):,} samples",
        *(mask_note(i, shown(tokenizer, row)) for i, row in enumerate(rows[:SHOWN], 1)),
    ]
    if room.skipped:
        lines.append(f"{room.skipped:,} answers are longer than --max-length and left out")
    return [*lines, lessons.tested]


def _counted(room: Classroom, lessons: Lessons) -> dict[str, Any]:
    rows = room.course.rows
    return {
        "samples": len(lessons.data.items),
        "answers": len(rows),
        "skipped": room.skipped,
        "answer_tokens": sum(len(row.answer) for row in rows),
        "replay_rows": len(room.course.replay),
        "replay_tokens": sum(sum(row.wanted) for row in room.course.replay),
        "adapted_matrices": len(room.trainee.adapted),
    }


# --- test items of the user's -----------------------------------------------------------------------
# Asked of the model before and after, and looked for in what it was taught.
#     {"prompt": "...", "completion": "..."}        right is exactly the completion; `messages` as in the examples
#     {"prompt": "...", "contains": "..."}          or another judge of `freehold eval`

_CHECKS = tuple(kind for kind in JUDGES if kind != "judge")
_KEYS = ("prompt", "messages", "completion", *_CHECKS)
_EXAMPLE = '{"prompt": "...", "completion": "..."}'


@dataclass(frozen=True, slots=True)
class ExamItem:
    """What is asked, and what marks the answer."""

    line: int
    messages: tuple[Message, ...]
    check: Judge


@dataclass(frozen=True, slots=True)
class Exam:
    """A file of test items."""

    items: tuple[ExamItem, ...]
    digest: str

    def marks(self, model: LLM, adapter: str, most: int) -> list[bool]:
        """Ask all items of the engine that serves, greedily, answers of up to `most` tokens; return which are right.

        Raises UsageError for an item that leaves no room for an answer: before and after it would be wrong alike.
        """
        greedy = {"temperature": 0.0, "seed": 0}
        jobs = [
            Job(messages=item.messages, max_tokens=most, sampling=greedy, adapter=adapter)
            for item in self.items
        ]
        right = [False] * len(jobs)
        for i, answer in model.answer_many(jobs):
            if isinstance(answer, ContextOverflow):
                raise UsageError(
                    f"test item of line {self.items[i].line}: {answer.message}",
                    "shorten it, or raise --max-length",
                )
            right[i] = self.items[i].check.mark(answer.text).passed
        return right

    def contaminated(self, taught: Iterable[str]) -> list[int]:
        """Return the items whose question the taught texts hold: equal, or 13 words in a row."""
        questions = [item.messages[-1].content for item in self.items]
        return [overlap.test for overlap in overlaps(taught, questions)]


def read_exam(path: Path) -> Exam:
    """Read a file of test items. Raises UsageError naming every bad line."""
    lines = read_lines(path, _item, _EXAMPLE)
    return Exam(lines.items, lines.digest)


def before_after(
    before: Sequence[bool], after: Sequence[bool], contaminated: Sequence[int]
) -> dict[str, Any]:
    """Compare marks item by item: of all, and of those that were not taught."""
    clean = [i for i in range(len(before)) if i not in set(contaminated)]
    report: dict[str, Any] = {"contaminated": list(contaminated), "all": _compared(before, after)}
    if contaminated and clean:
        report["clean"] = _compared([before[i] for i in clean], [after[i] for i in clean])
    return report


def _compared(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    pairs = compared(after, before)
    return {
        "items": len(before),
        "before": sum(before),
        "after": sum(after),
        "gained": pairs.wins,
        "lost": pairs.losses,
        "p": pairs.p,
    }


def _item(number: int, table: Mapping[str, Any]) -> ExamItem:
    check_keys(table, _KEYS)
    kinds = [kind for kind in _CHECKS if kind in table]
    if len(kinds) + ("completion" in table) > 1:
        raise UsageError("a line has one completion or one judge")
    if kinds:
        return ExamItem(number, conversation(table), judge(kinds[0], table[kinds[0]]))
    if "completion" in table:
        question = conversation({k: v for k, v in table.items() if k != "completion"})
        return ExamItem(number, question, judge("exact", text_of(table, "completion")))
    messages = messages_of(table.get("messages"), last="assistant")
    if len(messages) < 2:
        raise UsageError("a line has a question and the answer to it")
    return ExamItem(number, messages[:-1], judge("exact", messages[-1].content))


# --- what is checked before hours are spent ---------------------------------------------------------
# What the loss counts, how long samples are, whether one batch can be learnt.

SHOWN = 3  # samples whose mask is shown
OVERFIT_STEPS, OVERFIT_LR = 12, 1e-3  # a model that can learn has one batch nearly by heart after these
LEARNT = 0.5  # of the first loss that may be left then
_HEAD, _TAIL = 60, 30  # characters of a text's beginning and end in a line


@dataclass(frozen=True, slots=True)
class MaskPiece:
    """Neighbouring tokens as text, and whether the loss counts them."""

    text: str
    counts: bool


def shown(tokenizer: Tokenizer, row: AnswerRow) -> list[MaskPiece]:
    """Return a row as the loss sees it: its prompt, then its answer with the token that ends the turn."""
    texts = (tokenizer.decode(ids, special=True) for ids in (row.ids[: row.prompt], row.answer))
    return [MaskPiece(text, counts) for text, counts in zip(texts, (False, True), strict=True)]


def mask_note(number: int, pieces: Sequence[MaskPiece]) -> str:
    """Return a mask as one line: the end of what the loss leaves out, and what it counts, without its middle."""
    before, answer = (piece.text for piece in pieces)
    if len(answer) > _HEAD + _TAIL:
        answer = f"{answer[:_HEAD]} ... {answer[-_TAIL:]}"
    return f"sample {number}: after {before[-_TAIL:]!r} the loss counts {answer!r}"


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """Tokens of rows: bounds, and how many rows end at or below each."""

    least: int
    median: int
    most: int
    bounds: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[AnswerRow]) -> LengthHistogram:
        """Count rows by powers of two."""
        lengths = np.array([len(row.ids) for row in rows])
        edges = 2 ** np.arange(4, int(np.ceil(np.log2(max(lengths.max(), 17)))) + 1)
        counts = np.histogram(lengths, np.concatenate([[0], edges + 1]))[0]
        plain = tuple(int(e) for e in edges), tuple(int(c) for c in counts)
        return cls(int(lengths.min()), int(np.median(lengths)), int(lengths.max()), *plain)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a few steps on one batch showed. `worst`: the loss of a model that knows nothing, ln(vocabulary)."""

    first_loss: float
    last_loss: float
    worst: float
    step_cpu_seconds: float
    peak_bytes: int

    @property
    def sane(self) -> bool:
        """Whether the first loss is one of a model that reads its own template, and one batch can be learnt."""
        return self.first_loss < self.worst and self.last_loss < LEARNT * self.first_loss

    def as_json(self) -> dict[str, Any]:
        """Return its part of the output."""
        return {**asdict(self), "sane": self.sane}


def rehearsal(trainee: Trainee, course: TeachingCourse) -> Rehearsal:
    """Overfit the first batch, then put the pairs back."""
    batch = [course.rows[i] for i in course.order.of(0)]
    before, losses = trainee.arrays(), []
    optimizer = Optimizer(trainee.parameters(), OVERFIT_LR)
    started = cpu_seconds()
    for _ in range(OVERFIT_STEPS):
        losses.append(course.learn(batch)["loss"])
        optimizer.step()
    spent = (cpu_seconds() - started) / OVERFIT_STEPS
    trainee.restore(before)
    worst = float(np.log(trainee.tokenizer.vocab_size))
    return Rehearsal(losses[0], losses[-1], worst, spent, peak_bytes())


# --- a user's examples: conversations whose assistant turns are to be learnt ------------------------
#     {"prompt": "Three chairs, Monday, 2 p.m.", "completion": "MO14:chair*3"}
#     {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}
# Each assistant turn is learnt after the prompt that the server would build from the turns before it: a
# template that shortens old turns is applied as it is when serving.

EXAMPLE = '{"prompt": "...", "completion": "..."}'
_LINE_KEYS = ("prompt", "completion", "messages")


@dataclass(frozen=True, slots=True)
class ChatSample:
    """A conversation that ends with the assistant's message."""

    line: int
    messages: tuple[Message, ...]

    @property
    def key(self) -> str:
        """Equal keys are the same conversation."""
        return conversation_key(self.messages)

    @property
    def turns(self) -> list[tuple[tuple[Message, ...], str]]:
        """Return each assistant turn with the messages before it."""
        return [(self.messages[:i], m.content) for i, m in enumerate(self.messages) if m.role == "assistant"]


def read_samples(path: Path) -> DataLines[ChatSample]:
    """Read a file of examples. Raises UsageError naming every bad line, repeated examples too."""
    return read_lines(path, _sample, EXAMPLE, same=lambda s: s.key)


def _sample(number: int, table: Mapping[str, Any]) -> ChatSample:
    check_keys(table, _LINE_KEYS)
    if "messages" not in table:
        texts = text_of(table, "prompt"), text_of(table, "completion")
        return ChatSample(number, (Message("user", texts[0]), Message("assistant", texts[1])))
    if len(table) > 1:
        raise UsageError("a line has either messages, or prompt and completion")
    messages = messages_of(table["messages"], last="assistant")
    if messages[0].role == "assistant":
        raise UsageError("the first message is the assistant's: there is nothing that it answers")
    return ChatSample(number, messages)
