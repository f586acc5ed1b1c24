"""Distil: a small model learns to answer certain prompts as a larger one does.

Sequence-level across tokenizers: the teacher answers, faulty answers are rejected, the student learns the rest. With
`on_policy`, where both have the same tokens: the student answers, and the teacher says at each token how likely it was.
Prompts with a judge measure teacher and student on those that were not trained on, as served.
Path: cli/distil -> distil -> AnswerBook, distillation.learning -> TrainingLoop -> RunFolder.finish
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freehold.adapt.as_served import mismatch, served_log_probs
from freehold.adapt.base import check_base
from freehold.adapt.distillation.answers import AnswerBook, Taught
from freehold.adapt.distillation.learning import OnPolicyCourse, PromptRow
from freehold.adapt.distillation.prompts import TeacherPrompt, read_prompts
from freehold.adapt.distillation.scores import judged_prompts, marked, passed
from freehold.adapt.extra import arithmetic
from freehold.adapt.licences import base_licence, notes, teaching
from freehold.adapt.lines import DataLines, check_apart, held_out
from freehold.adapt.loop import TrainingLoop
from freehold.adapt.receipt import model_digest, receipt, template_digest
from freehold.adapt.rows import AnswerRow, AnswerRows
from freehold.adapt.run import RunFolder
from freehold.adapt.sampling import SamplingModel, open_sampling
from freehold.adapt.settings import AdapterSettings
from freehold.adapt.teaching.control import still_known
from freehold.adapt.teaching.course import TeachingCourse
from freehold.adapt.teaching.replay import written
from freehold.adapt.training.order import Order
from freehold.adapt.training.steps import Optimizer
from freehold.adapt.training.trainee import Trainee, check_trainable
from freehold.advisor.facts import Facts
from freehold.engine.cache.capacity import MIN_CONTEXT
from freehold.errors import ContextOverflow, UsageError
from freehold.store import ModelRef
from freehold.tokenizer import Tokenizer

ANSWERS, UNSEEN = "answers.jsonl", "unseen.jsonl"
ADAPTER = "tuned"  # its name in the engine that measures it
SERVED_ROWS = 16  # that this engine is asked about
OnStep = Callable[[Mapping[str, Any]], None]
OnText = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilSettings(AdapterSettings):
    """How to distil. Every field is in the receipt."""

    on_policy: bool = False
    tries: int = 2  # of a faulty answer of the teacher's: the first is greedy
    max_tokens: int = 256  # tokens
    max_length: int = 1024  # of a prompt and its answer
    epochs: int = 2
    batch: int = 8  # prompts a step
    replay: int = 2  # rows of the student's own text a step, against forgetting; on-policy needs none
    replay_weight: float = 1.0
    test_share: float = 0.1


@dataclass(frozen=True, slots=True)
class DistilWatch:
    """Receives notes, what is being done, and a line for each step."""

    note: OnText = lambda text: None
    doing: OnText = lambda text: None
    step: OnStep = lambda row: None


@dataclass(frozen=True, slots=True)
class _Work:
    """What the parts of one run share."""

    run: RunFolder
    teacher: ModelRef
    student: ModelRef
    packs: Path | None
    settings: DistilSettings
    trained: Sequence[TeacherPrompt]
    tested: Sequence[TeacherPrompt]
    watch: DistilWatch

    def engine(self, ref: ModelRef) -> SamplingModel:
        """Load a model to sample from, with room for the longest row and for a batch at once."""
        context, threads = max(self.settings.max_length, MIN_CONTEXT), self.settings.threads
        try:
            return open_sampling(ref, self.packs, many=True, context=context, threads=threads)
        except ContextOverflow:  # it was made for less: its own
            return open_sampling(ref, self.packs, many=True, threads=threads)


def distil(
    teacher: ModelRef,
    student: ModelRef,
    prompts: Path,
    out: Path,
    settings: DistilSettings,
    *,
    test: Path | None = None,
    packs: Path | None = None,
    facts: Facts | None = None,
    accepted: str = "",
    fresh: bool = False,
    watch: DistilWatch | None = None,
) -> dict[str, Any]:
    """Train an adapter of `student` on what `teacher` answers; write it to the folder `out`, return its receipt.

    `test`: prompts to measure with; None: a share of `prompts`. `accepted`: see licences.teaching. An interrupted run
    with the same arguments continues. Raises UsageError with the numbers, and what reading the models raises.
    """
    check_base(teacher)
    check_base(student)
    watch = watch or DistilWatch()
    licences = {
        "base": base_licence(student, facts or Facts()),
        "teacher": teaching(teacher, student, facts or Facts(), accepted),
    }
    prompts_file, tested_file = read_prompts(prompts), read_prompts(test) if test else None
    trained, tested = _split(prompts_file, tested_file, settings)
    check_trainable(student.path)
    inputs = {
        "teacher": {"model": teacher.name, "file": model_digest(teacher)},
        "student": {"model": student.name, "file": model_digest(student)},
        "prompts": prompts_file.digest,
        "test": tested_file.digest if tested_file else None,
        "settings": asdict(settings),
        "arithmetic": arithmetic(settings.threads),
    }
    for note in [*notes({f"{role}'s": one for role, one in licences.items()}), *_unmeasured(trained, tested)]:
        watch.note(note)
    with RunFolder.open(out, "distil", inputs, fresh=fresh) as run:
        work = _Work(run, teacher, student, packs, settings, trained, tested, watch)
        parts = _on_policy(work) if settings.on_policy else _sequence_level(work)
        record = receipt("distil", inputs, licence={r: one.as_json() for r, one in licences.items()}, **parts)
        run.finish(record)
    return record


def check_same_tokens(teacher: Tokenizer, student: Tokenizer, names: tuple[str, str]) -> None:
    """Raise UsageError where an id stands for another token: a teacher could not judge the student's ids."""
    wrong = student.first_difference(teacher)
    if wrong is not None:
        raise UsageError(
            f"{names[0]} cannot judge the tokens of {names[1]}: token {wrong} differs "
            f"({teacher.vocab_size:,} and {student.vocab_size:,} tokens)",
            "leave out --on-policy: the teacher then answers in text, whatever its tokens are",
        )


# --- the two ways ----------------------------------------------------------------------------------


def _sequence_level(work: _Work) -> dict[str, Any]:
    """Have the teacher answer, then teach what was kept."""
    settings = work.settings
    answers, unseen = _answered(work)
    counted = _counted(answers)
    work.watch.note(_summary(counted))
    trainee = settings.trainee(work.student.path)
    rows = _rows(work, trainee, answers)
    optimizer, order = _optimizer(trainee, len(rows), settings), _order(len(rows), settings)
    course = TeachingCourse(
        trainee, optimizer, rows, order, rehearsed=settings.replay, weight=settings.replay_weight
    )
    if settings.replay:
        work.watch.doing(f"{work.student.name} writes what it rehearses")
        with work.engine(work.student) as student:
            steps = settings.epochs * order.steps_an_epoch
            course.replay = written(student, settings.seed, steps * settings.replay)
    loop = _trained(work, trainee, optimizer, course.step, order)
    with work.engine(work.student) as student:
        student.add_adapter(ADAPTER, work.run.folder)
        some = rows[:SERVED_ROWS]
        served = served_log_probs(student, some, student.adapters.find(ADAPTER))
        return {
            "answers": counted,
            "mismatch": mismatch(trainee, some, served),
            "before_after": _measured(work, student, passed(unseen)),
            **still_known(student, trainee, ADAPTER),
            **_common(loop),
        }


def _answered(work: _Work) -> tuple[list[Taught], list[Taught]]:
    """Return the teacher's answers to the prompts to train on and to the judged ones to measure with.

    An interrupted run holds them already, and the teacher is not loaded again.
    """
    tested = judged_prompts(work.tested)
    books = [
        (AnswerBook(work.run.path(name)), questions)
        for name, questions in ((ANSWERS, work.trained), (UNSEEN, tested))
    ]
    if all(q.line in book.held for book, questions in books for q in questions):
        return [books[0][0].held[q.line] for q in work.trained], [books[1][0].held[q.line] for q in tested]
    with work.engine(work.teacher) as teacher:
        return (
            _answer_book(work, teacher, ANSWERS, work.trained, work.settings.tries),
            _answer_book(work, teacher, UNSEEN, tested, 1),
        )


def _answer_book(
    work: _Work, teacher: SamplingModel, name: str, questions: Sequence[TeacherPrompt], tries: int
) -> list[Taught]:
    """Have the teacher answer what it did not yet."""
    return AnswerBook(work.run.path(name)).ask(
        teacher,
        questions,
        seed=work.settings.seed,
        max_tokens=work.settings.max_tokens,
        tries=tries,
        on_batch=lambda done: work.watch.doing(f"{work.teacher.name} answered {done} of {len(questions)}"),
    )


def _on_policy(work: _Work) -> dict[str, Any]:
    """Let the student answer and the teacher judge each token."""
    settings = work.settings
    with work.engine(work.teacher) as teacher, work.engine(work.student) as student:
        check_same_tokens(teacher.tokenizer, student.tokenizer, (work.teacher.name, work.student.name))
        trainee = settings.trainee(work.student.path)
        prompts = _prompts(work, teacher, student)
        order = _order(len(prompts), settings)
        course = OnPolicyCourse(
            trainee,
            _optimizer(trainee, len(prompts), settings),
            student,
            teacher,
            prompts,
            order,
            settings.max_tokens,
        )
        loop = _trained(work, trainee, course.optimizer, course.step, order)
        lines = loop.lines()
        student.add_adapter(ADAPTER, work.run.folder)
        unseen = _answer_book(work, teacher, UNSEEN, judged_prompts(work.tested), 1)
        return {
            "tokenizer": "the same tokens",
            "divergence": {"first": lines[0]["loss"], "last": lines[-1]["loss"]},
            "mismatch": {"mean_absolute": float(np.mean([line["mismatch"] for line in lines]))},
            "before_after": _measured(work, student, passed(unseen)),
            **still_known(student, trainee, ADAPTER),
            **_common(loop),
        }


def _prompts(work: _Work, teacher: SamplingModel, student: SamplingModel) -> list[PromptRow]:
    """Render every prompt for both; those that leave either no room for an answer are left out and said."""
    rows = [
        PromptRow(q.line, tuple(student.render(q.messages)), tuple(teacher.render(q.messages)))
        for q in work.trained
    ]
    fit = [
        row
        for row in rows
        if len(row.student) + work.settings.max_tokens <= student.context
        and len(row.teacher) + work.settings.max_tokens <= teacher.context
    ]
    if len(fit) < len(rows):
        work.watch.note(f"{len(rows) - len(fit)} prompts leave no room for {work.settings.max_tokens} tokens")
    if not fit:
        raise UsageError(
            "every prompt is too long to leave tokens for an answer",
            "raise --max-length, or lower --max-tokens",
        )
    return fit


# --- measuring -------------------------------------------------------------------------------------


def _measured(work: _Work, student: SamplingModel, teacher: float | None) -> dict[str, Any] | None:
    """Return the scores of teacher and student on prompts that were not trained on; None without judges."""
    from freehold.evals.paired import compared

    if teacher is None:
        return None
    limit = work.settings.max_tokens
    work.watch.doing("measuring on prompts that were not trained on")
    tuned = student.adapters.find(ADAPTER)
    was, is_now = (marked(student, work.tested, limit, each) for each in (None, tuned))
    return {
        "prompts": len(was),
        "teacher": teacher,
        "before": float(np.mean(was)),
        "after": float(np.mean(is_now)),
        "of_teacher": float(np.mean(is_now)) / teacher if teacher else None,
        "p": compared(is_now, was).p,
    }


# --- pieces ----------------------------------------------------------------------------------------


def _split(
    prompts_file: DataLines[TeacherPrompt], test: DataLines[TeacherPrompt] | None, settings: DistilSettings
) -> tuple[list[TeacherPrompt], list[TeacherPrompt]]:
    trained, tested = list(prompts_file.items), list(test.items) if test else []
    if test is None and judged_prompts(trained):
        trained, tested = held_out(trained, settings.test_share, settings.seed, lambda q: q.key)
    check_apart(trained, tested, lambda q: q.key, lambda q: q.line)
    if not trained:
        raise UsageError(
            f"{prompts_file.path} leaves no prompt to train on", "lower --test-share, or add prompts"
        )
    return trained, tested


def _unmeasured(trained: Sequence[TeacherPrompt], tested: Sequence[TeacherPrompt]) -> list[str]:
    """Say that prompts have judges and none of them is left to measure with."""
    if judged_prompts(tested) or not judged_prompts(trained):
        return []
    return [
        "no judged prompt is set apart: what is learnt is not measured; raise --test-share, or give --test"
    ]


def _order(count: int, settings: DistilSettings) -> Order:
    return Order(count, settings.batch, settings.seed)


def _optimizer(trainee: Trainee, count: int, settings: DistilSettings) -> Optimizer:
    return settings.optimizer(trainee, settings.epochs * _order(count, settings).steps_an_epoch)


def _trained(
    work: _Work,
    trainee: Trainee,
    optimizer: Optimizer,
    compute: Callable[[int], Mapping[str, Any]],
    order: Order,
) -> TrainingLoop:
    """Run all steps and save the adapter; return the loop, which knows the steps' lines."""
    loop = TrainingLoop(work.run, trainee, optimizer, work.settings.epochs * order.steps_an_epoch)
    loop.run(compute, work.watch.step)
    loop.save()
    return loop


def _rows(work: _Work, trainee: Trainee, answers: Sequence[Taught]) -> list[AnswerRow]:
    """Encode kept answers as the student's; those that are too long for it are left out and said."""
    most = min(work.settings.max_length, trainee.source.cfg.context)
    rows = AnswerRows(trainee.tokenizer, trainee.template, trainee.name, most)
    kept, long = [], 0
    for question, taught in zip(work.trained, answers, strict=True):
        try:
            if not taught.why:
                kept.append(rows.row(question.messages, taught.answer))
        except ContextOverflow:
            long += 1
    if long:
        work.watch.note(f"{long} answers are longer than {most:,} tokens of the student's")
    if not kept:
        raise UsageError(
            f"no answer of {work.teacher.name} was kept",
            f"{work.run.path(ANSWERS)} says why; take another teacher or other prompts",
        )
    return kept


def _counted(answers: Sequence[Taught]) -> dict[str, Any]:
    """Return how many answers were kept, and why the others were not."""
    return {
        "kept": sum(not each.why for each in answers),
        "rejected": dict(sorted(Counter(each.fault for each in answers if each.why).items())),
        "tried_again": sum(each.tries > 1 for each in answers),
        "tokens": sum(each.tokens for each in answers),
    }


def _summary(counted: Mapping[str, Any]) -> str:
    faults = ", ".join(f"{count} {kind}" for kind, count in counted["rejected"].items())
    return f"{counted['kept']} answers kept" + (f"; rejected: {faults}" if faults else "")


def _common(loop: TrainingLoop) -> dict[str, Any]:
    return {
        "template": template_digest(loop.trainee.template),
        "steps": loop.total,
        "speed": loop.speed(),
        "cpu_seconds": loop.cpu_seconds,
    }
