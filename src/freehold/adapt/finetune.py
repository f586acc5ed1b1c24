"""Teach: a model learns from examples of conversations, and is kept near itself on everything else.

The base writes some text first; while the examples are learnt, a loss keeps the tuned model's distribution on that
text near the base's. What was learnt is measured on the user's test items and what was forgotten on facts and a text
of ours, before and after, by the engine that serves.
Path: cli/finetune -> Lessons.read -> finetune -> teaching.course -> TrainingLoop -> RunFolder.finish
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freehold.adapt.as_served import mismatch, served_log_probs
from freehold.adapt.base import check_base
from freehold.adapt.extra import arithmetic
from freehold.adapt.licences import base_licence, notes
from freehold.adapt.lines import DataLines
from freehold.adapt.loop import TrainingLoop
from freehold.adapt.receipt import model_digest, receipt, template_digest
from freehold.adapt.rows import AnswerRow, AnswerRows
from freehold.adapt.run import RunFolder
from freehold.adapt.sampling import SamplingModel, open_sampling
from freehold.adapt.settings import AdapterSettings
from freehold.adapt.teaching.control import compared_facts, known_facts, text_loss
from freehold.adapt.teaching.course import TeachingCourse
from freehold.adapt.teaching.exam import Exam, before_after, read_exam
from freehold.adapt.teaching.preflight import SHOWN, mask_note, shown
from freehold.adapt.teaching.replay import written
from freehold.adapt.teaching.samples import ChatSample, read_samples
from freehold.adapt.training.order import Order
from freehold.adapt.training.save import GGUF
from freehold.adapt.training.trainee import Trainee
from freehold.advisor.facts import Facts
from freehold.engine.cache.capacity import MIN_CONTEXT
from freehold.errors import ContextOverflow, UsageError
from freehold.machine import available_bytes
from freehold.store import ModelRef

MOST_ACTIVATIONS = 1 << 30  # bytes of layers' activations; fewer where less memory is free, for the same bits
SERVED_ROWS = 16  # that the engine is asked about
# Tokens of an answer to a test item: twice the longest that was taught, within these.
LEAST_ANSWER, MOST_ANSWER = 16, 512
ADAPTER = "finetuned"  # its name in the engine that examines it
_SHOWN = 5  # samples that an error names
OnStep = Callable[[Mapping[str, Any]], None]
OnNote = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings(AdapterSettings):
    """How to teach. Every field is in the receipt."""

    rate: float = 1e-3
    epochs: int = 1
    batch: int = 8  # answers a step
    replay: int = 2  # rows of the base's own text a step; 0: nothing is rehearsed
    replay_weight: float = 1.0
    max_length: int = 1024  # of a prompt and its answer
    skip_long: bool = False


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
            more = f"; and {len(long) - _SHOWN:,} more" if len(long) > _SHOWN else ""
            raise UsageError(
                f"{self.data.path}: {'; '.join(long[:_SHOWN])}{more}",
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
    def of(cls, model: ModelRef, lessons: Lessons, settings: FinetuneSettings) -> Classroom:
        """Bind the model and make all rows. Raises what reading the model raises, UsageError for long samples."""
        trainee = settings.trainee(model.path, min(MOST_ACTIVATIONS, available_bytes() // 4))
        most = min(settings.max_length, trainee.source.cfg.context)
        maker = AnswerRows(trainee.tokenizer, trainee.template, trainee.name, most)
        rows, skipped = lessons.rows(maker, skip_long=settings.skip_long)
        order = Order(len(rows), settings.batch, settings.seed)
        optimizer = settings.optimizer(trainee, settings.epochs * order.steps_an_epoch)
        rehearsal = {"rehearsed": settings.replay, "weight": settings.replay_weight}
        course = TeachingCourse(trainee, optimizer, rows, order, **rehearsal)
        return cls(trainee, course, skipped)


@dataclass(frozen=True, slots=True)
class ExamResult:
    """What a model answered: marks of test items, and known facts."""

    facts: list[bool]
    marks: list[bool] | None

    @classmethod
    def of(cls, engine: SamplingModel, lessons: Lessons, adapter: str, most: int) -> ExamResult:
        """Ask the engine."""
        marks = lessons.exam.marks(engine, adapter, most) if lessons.exam else None
        return cls(known_facts(engine, adapter), marks)


def finetune(
    model: ModelRef,
    data: Path,
    out: Path,
    settings: FinetuneSettings,
    *,
    test: Path | None = None,
    gguf: bool = True,
    packs: Path | None = None,
    facts: Facts | None = None,
    fresh: bool = False,
    on_note: OnNote = lambda note: None,
    on_step: OnStep = lambda row: None,
) -> dict[str, Any]:
    """Train an adapter on examples; write it to the folder `out` and return its receipt.

    `gguf`: llama.cpp's file beside PEFT's two. An interrupted run with the same arguments continues, to the same bits.
    Raises UsageError with the numbers, and what reading the model raises.
    """
    check_base(model)
    lessons = Lessons.read(data, test)
    licence = base_licence(model, facts or Facts())
    inputs = {
        "base": {"name": model.name, "digest": model_digest(model)},
        "data": lessons.data.digest,
        "test": lessons.exam.digest if lessons.exam else None,
        "settings": asdict(settings),
        "arithmetic": arithmetic(settings.threads),
    }
    room = Classroom.of(model, lessons, settings)  # a refusal leaves no folder
    most, steps = _longest_answer(room.course.rows), settings.epochs * room.course.order.steps_an_epoch
    with RunFolder.open(out, "finetune", inputs, fresh=fresh) as run:
        with _engine(model, packs, room, settings) as engine:
            if settings.replay:
                room.course.replay = written(engine, settings.seed, steps * settings.replay)
            before = ExamResult.of(engine, lessons, "", most)
        trainee, course = room.trainee, room.course
        for note in [*notes({"base's": licence}), *_notes(room, lessons)]:
            on_note(note)
        loop = TrainingLoop(run, trainee, course.optimizer, steps)
        loop.run(course.step, _watched(trainee, on_step, on_note))
        loop.save(gguf=gguf)
        lines = loop.lines()
        with _engine(model, packs, room, settings) as engine:
            engine.add_adapter(ADAPTER, run.folder)
            scores = _examined(engine, room, lessons, before, most)
        record = receipt(
            "finetune",
            inputs,
            licence={"base": licence.as_json()},
            template=template_digest(trainee.template),
            samples=_counted(room, lessons),
            loss={"first": lines[0]["loss"], "last": lines[-1]["loss"]},
            **scores,
            speed=loop.speed(),
            cpu_seconds=loop.cpu_seconds,
            files=["adapter_model.safetensors", "adapter_config.json", *([GGUF] if gguf else [])],
        )
        run.finish(record)
    return record


def _examined(
    engine: SamplingModel, room: Classroom, lessons: Lessons, before: ExamResult, most: int
) -> dict[str, Any]:
    """Ask the engine that has the adapter; return what was learnt and forgotten, and how far the trainer is from it."""
    trainee, sample = room.trainee, room.course.rows[:SERVED_ROWS]
    after = ExamResult.of(engine, lessons, ADAPTER, most)
    served = served_log_probs(engine, sample, engine.adapters.find(ADAPTER))
    losses = [text_loss(trainee, adapter=adapter) for adapter in (False, True)]
    return {
        "before_after": _learnt(before, after, lessons),
        "control": compared_facts(before.facts, after.facts),
        "text_loss": {"before": losses[0], "after": losses[1], "rise": losses[1] - losses[0]},
        "mismatch": mismatch(trainee, sample, served),
    }


@contextmanager
def _engine(
    model: ModelRef, packs: Path | None, room: Classroom, settings: FinetuneSettings
) -> Iterator[SamplingModel]:
    """Load the engine that serves, with room for a sample and an answer; the model's own context is the limit."""
    wanted = max(settings.max_length + MOST_ANSWER, MIN_CONTEXT)
    context = min(wanted, room.trainee.source.cfg.context)
    with open_sampling(model, packs, context=context, threads=settings.threads) as engine:
        yield engine


def _watched(trainee: Trainee, on_step: OnStep, on_note: OnNote) -> OnStep:
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


def _longest_answer(rows: Sequence[AnswerRow]) -> int:
    longest = max(len(row.answer) for row in rows)
    return min(max(2 * longest, LEAST_ANSWER), MOST_ANSWER)


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


def _learnt(before: ExamResult, after: ExamResult, lessons: Lessons) -> dict[str, Any] | None:
    if before.marks is None or after.marks is None:
        return None
    return before_after(before.marks, after.marks, lessons.contaminated)
