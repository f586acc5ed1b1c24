"""Distil: a small model learns to answer certain prompts as a larger one does.

Sequence-level across tokenizers: the teacher answers, faulty answers are rejected, the student learns the rest. With
`on_policy`, where both have the same tokens: the student answers, and the teacher says at each token how likely it was.
Prompts with a judge measure teacher and student on those that were not trained on, as served.

The teacher may see what the student does not: instructions and examples before each prompt, or a line's own messages
(context distillation). What they achieve is then learnt, and no token of them is needed when serving.

The teacher's answers are sampled in batches, judged, and kept in a file, so that an interrupted run asks none twice.
The first try is greedy; a rejected answer is tried again, sampled. Rejected are answers that are empty, cut at the
limit, repeat a piece many times, or fail their line's judge: a student would learn those as well. Each answer follows
from its prompt and its seed alone, so a continued run keeps the same ones.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from freehold.adapt.licences import base_licence, teaching
from freehold.adapt.lines import DataLines, check_apart, held_out
from freehold.adapt.loop import OnStep, OnText, TrainingLoop, TrainingRun
from freehold.adapt.run import RunFolder, on_disk
from freehold.adapt.sampling import (
    GREEDY,
    AnswerRow,
    AnswerRows,
    SampledAnswer,
    SamplingModel,
    mismatch,
    served_log_probs,
)
from freehold.adapt.settings import DistilSettings
from freehold.adapt.stages import StageBase
from freehold.adapt.teacher_prompts import TeacherContext, TeacherPrompt, judged_prompts, read_prompts
from freehold.adapt.teaching import TeachingCourse, still_known, written
from freehold.adapt.training.packed import VOCAB_SLICE, Head, HeadSlice, divergence
from freehold.adapt.training.steps import Optimizer, Order, parts
from freehold.adapt.training.trainee import States, Trainee, check_trainable
from freehold.base.errors import ContextOverflow, StoreError, UsageError
from freehold.base.types import SamplingParams
from freehold.choose.advisor.verdict import Facts
from freehold.run.engine.cache.capacity import MIN_CONTEXT
from freehold.run.models.lora import Adapter
from freehold.run.store import ModelRef
from freehold.run.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

BATCH = 32  # questions whose answers are computed together and reach the disk together
RETRY = SamplingParams(temperature=0.7, top_p=0.95)
LONGEST_PIECE = 16  # tokens of a piece whose repetition is looked for
LEAST_RUN = 48  # tokens that repeat it: a table's rules and a row of zeros are shorter


@dataclass(frozen=True, slots=True)
class Taught:
    """An answer to the question on `line`, or `why` there is none: its last try's fault. `tokens`: of all tries."""

    line: int
    answer: str
    why: str
    tries: int
    tokens: int

    @property
    def fault(self) -> str:
        """The kind of fault, without its details."""
        return self.why.partition(":")[0]


class AnswerBook:
    """The answers of one run, in a file of JSON lines. A last line that a kill left half written is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.held: dict[int, Taught] = {}
        raw = path.read_bytes() if path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(path, len(whole))
        try:
            for line in whole.splitlines():
                taught = Taught(**json.loads(line))
                self.held[taught.line] = taught
        except (ValueError, TypeError) as e:
            raise StoreError(f"{path} is damaged: {e}", "start again with --fresh") from e

    def ask(
        self,
        teacher: SamplingModel,
        questions: Sequence[TeacherPrompt],
        *,
        seed: int,
        max_tokens: int,
        tries: int = 1,
        context: TeacherContext | None = None,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Taught]:
        """Have every question answered that was not yet; return all answers in the order of the questions.

        `context`: what the teacher sees besides. `on_batch`: called with the number of questions answered so far.
        """
        left = [q for q in questions if q.line not in self.held]
        for first in range(0, len(left), BATCH):
            batch = left[first : first + BATCH]
            self._add(self._answered(teacher, batch, seed, max_tokens, tries, context or TeacherContext()))
            on_batch(len(questions) - len(left) + first + len(batch))
        return [self.held[q.line] for q in questions]

    def _answered(
        self,
        teacher: SamplingModel,
        batch: Sequence[TeacherPrompt],
        seed: int,
        max_tokens: int,
        tries: int,
        context: TeacherContext,
    ) -> list[Taught]:
        taught: dict[int, Taught] = {}
        spent: Counter[int] = Counter()
        prompts = {q.line: teacher.render(context.before(q)) for q in batch}
        waiting: list[TeacherPrompt] = []
        for question in batch:
            if len(prompts[question.line]) < teacher.context:
                waiting.append(question)
            else:
                why = f"long: {len(prompts[question.line]):,} tokens of a prompt"
                taught[question.line] = Taught(question.line, "", why, 0, 0)
        for attempt in range(1, tries + 1):
            samples = teacher.sample(
                [prompts[q.line] for q in waiting],
                seeds=[seed_of(seed, q.line, attempt) for q in waiting],
                max_tokens=max_tokens,
                sampling=GREEDY if attempt == 1 else RETRY,
            )
            for question, [answer] in zip(waiting, samples, strict=True):
                spent[question.line] += len(answer.ids)
                taught[question.line] = judged(
                    question, answer, teacher.tokenizer, attempt, spent[question.line]
                )
            waiting = [q for q in waiting if taught[q.line].why]
        return [taught[q.line] for q in batch]

    def _add(self, answers: Sequence[Taught]) -> None:
        """Write a batch to disk, then count its answers. Raises StoreError on a full disk."""
        with on_disk(self._path), self._path.open("ab") as file:
            file.write("".join(json.dumps(asdict(each)) + "\n" for each in answers).encode())
            file.flush()
            os.fsync(file.fileno())
        self.held |= {each.line: each for each in answers}


def judged(
    question: TeacherPrompt, answer: SampledAnswer, tokenizer: Tokenizer, tries: int, tokens: int
) -> Taught:
    """Return an answer with its fault, if it has one."""
    text = tokenizer.decode(answer.ids).strip()
    why = _fault(question, answer, text)
    return Taught(question.line, "" if why else text, why, tries, tokens)


def loops(ids: Sequence[int]) -> bool:
    """Tell whether a piece of up to 16 tokens follows itself over 48 tokens or more, three times at least."""
    tokens = np.asarray(ids, np.int64)
    for piece in range(1, LONGEST_PIECE + 1):
        same = tokens[piece:] == tokens[:-piece]
        ends = np.flatnonzero(np.concatenate([[True], ~same, [True]]))  # between two of them all are the same
        if len(same) and np.diff(ends).max() - 1 >= max(LEAST_RUN - piece, 2 * piece):
            return True
    return False


def seed_of(seed: int, line: int, attempt: int) -> int:
    """Return the seed of a try, from its question's line and nothing else."""
    return int(np.random.SeedSequence((seed, line, attempt)).generate_state(1, np.uint64)[0] >> 1)


def _fault(question: TeacherPrompt, answer: SampledAnswer, text: str) -> str:
    """Say what is wrong with an answer, in a few words that begin with the kind; nothing where it is good."""
    if not text:
        return "empty"
    if loops(answer.ids):
        return "loops"
    if answer.finish_reason == "length":
        return f"cut: at {len(answer.ids)} tokens"
    if question.check is not None and not (mark := question.check.mark(text)).passed:
        return f"{question.check.kind}: {mark.why}"
    return ""


ANSWERS, UNSEEN = "answers.jsonl", "unseen.jsonl"
ADAPTER = "tuned"  # its name in the engine that measures it
SERVED_ROWS = 16  # that this engine is asked about


@dataclass(frozen=True, slots=True)
class DistilWatch:
    """Receives notes, what is being done, and a line for each step."""

    note: OnText = lambda text: None
    doing: OnText = lambda text: None
    step: OnStep = lambda row: None


@dataclass(frozen=True, slots=True)
class _Work:
    run: RunFolder
    teacher: StageBase
    student: StageBase
    context: TeacherContext
    packs: Path | None
    settings: DistilSettings
    trained: Sequence[TeacherPrompt]
    tested: Sequence[TeacherPrompt]
    watch: DistilWatch

    def engine(self, base: StageBase) -> SamplingModel:
        """Load a model to sample from, with room for the longest row and for a batch at once."""
        context, threads = max(self.settings.max_length, MIN_CONTEXT), self.settings.threads
        try:
            return base.opened(self.packs, many=True, context=context, threads=threads)
        except ContextOverflow:  # it was made for less: its own
            return base.opened(self.packs, many=True, threads=threads)

    def longer(self, base: StageBase) -> SamplingModel:
        """Load the teacher: with a context of instructions and examples, its own room for them."""
        if not self.context and not any(q.shown for q in (*self.trained, *self.tested)):
            return self.engine(base)
        return base.opened(self.packs, many=True, threads=self.settings.threads)


def distil(
    teacher: ModelRef,
    student: ModelRef,
    prompts: Path,
    out: Path,
    settings: DistilSettings,
    *,
    teacher_adapter: Path | None = None,
    adapter: Path | None = None,
    continued: bool = False,
    context: TeacherContext | None = None,
    test: Path | None = None,
    packs: Path | None = None,
    facts: Facts | None = None,
    accepted: str = "",
    fresh: bool = False,
    watch: DistilWatch | None = None,
) -> dict[str, Any]:
    """Train an adapter of `student` on what `teacher` answers; write it to the folder `out`, return its receipt.

    `teacher_adapter`: one of the teacher's. `adapter`, `continued`: of the student, as for finetune. `context`: what
    the teacher sees and the student does not. `test`: prompts to measure with; None: a share of `prompts`. `accepted`:
    see licences.teaching. An interrupted run with the same arguments continues. Raises UsageError with the numbers,
    and what reading the models raises.
    """
    teaches = StageBase.of(teacher, teacher_adapter)
    learns = StageBase.of(student, adapter, continued=continued)
    settings, context = learns.fitted(settings), context or TeacherContext()
    watch = watch or DistilWatch()
    facts = facts or Facts()
    licences = {"base": base_licence(student, facts), "teacher": teaching(teacher, student, facts, accepted)}
    prompts_file, tested_file = read_prompts(prompts), read_prompts(test) if test else None
    trained, tested = _split(prompts_file, tested_file, settings)
    check_trainable(student.path)
    training = TrainingRun(
        verb="distil",
        base=learns,
        out=out,
        inputs={
            "teacher": {"model": teacher.name, "file": teaches.digest, **teaches.inputs},
            "student": {"model": student.name, "file": learns.digest},
            **({"context": context.inputs} if context else {}),
            "prompts": prompts_file.digest,
            "test": tested_file.digest if tested_file else None,
        },
        settings=settings,
        licences=licences,
        fresh=fresh,
    )
    for note in training.notes:
        watch.note(note)
    if judged_prompts(trained) and not judged_prompts(tested):
        watch.note(
            "no judged prompt is set apart: what is learnt is not measured; raise --test-share, or give --test"
        )

    def learnt(run: RunFolder) -> dict[str, Any]:
        work = _Work(run, teaches, learns, context, packs, settings, trained, tested, watch)
        return _on_policy(work) if settings.on_policy else _sequence_level(work)

    return training.make(learnt)


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
    trainee = work.student.trainee(settings)
    rows = _rows(work, trainee, answers)
    order = Order(len(rows), settings.batch, settings.seed)
    steps = settings.epochs * order.steps_an_epoch
    rehearsal = {"rehearsed": settings.replay, "weight": settings.replay_weight}
    course = TeachingCourse(trainee, settings.optimizer(trainee, steps), rows, order, **rehearsal)
    if settings.replay:
        work.watch.doing(f"{work.student.name} writes what it rehearses")
        with work.engine(work.student) as student:
            course.replay = written(student, settings.seed, steps * settings.replay)
    loop = _trained(work, course, steps)
    with work.engine(work.student) as student:
        student.add_adapter(ADAPTER, work.run.folder)
        some = rows[:SERVED_ROWS]
        served = served_log_probs(student, some, student.adapters.find(ADAPTER))
        return {
            "answers": counted,
            "mismatch": mismatch(trainee, some, served),
            "before_after": _measured(work, student, passed(unseen)),
            **still_known(student, trainee, ADAPTER),
            "steps": loop.total,
            **loop.receipt_parts(),
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
    with work.longer(work.teacher) as teacher:
        return (
            _answer_book(work, teacher, ANSWERS, work.trained, work.settings.tries),
            _answer_book(work, teacher, UNSEEN, tested, 1),
        )


def _answer_book(
    work: _Work, teacher: SamplingModel, name: str, questions: Sequence[TeacherPrompt], tries: int
) -> list[Taught]:
    return AnswerBook(work.run.path(name)).ask(
        teacher,
        questions,
        seed=work.settings.seed,
        max_tokens=work.settings.max_tokens,
        tries=tries,
        context=work.context,
        on_batch=lambda done: work.watch.doing(f"{work.teacher.name} answered {done} of {len(questions)}"),
    )


def _on_policy(work: _Work) -> dict[str, Any]:
    """Let the student answer and the teacher judge each token."""
    settings = work.settings
    with work.longer(work.teacher) as teacher, work.engine(work.student) as student:
        check_same_tokens(teacher.tokenizer, student.tokenizer, (work.teacher.name, work.student.name))
        trainee = work.student.trainee(settings)
        prompts = _prompts(work, teacher, student)
        order = Order(len(prompts), settings.batch, settings.seed)
        steps = settings.epochs * order.steps_an_epoch
        optimizer = settings.optimizer(trainee, steps)
        course = OnPolicyCourse(trainee, optimizer, student, teacher, prompts, order, settings.max_tokens)
        loop = _trained(work, course, steps)
        lines = loop.lines()
        student.add_adapter(ADAPTER, work.run.folder)
        unseen = _answer_book(work, teacher, UNSEEN, judged_prompts(work.tested), 1)
        return {
            "tokenizer": "the same tokens",
            "divergence": {"first": lines[0]["loss"], "last": lines[-1]["loss"]},
            "mismatch": {"mean_absolute": float(np.mean([line["mismatch"] for line in lines]))},
            "before_after": _measured(work, student, passed(unseen)),
            **still_known(student, trainee, ADAPTER),
            "steps": loop.total,
            **loop.receipt_parts(),
        }


def _prompts(work: _Work, teacher: SamplingModel, student: SamplingModel) -> list[PromptRow]:
    """Render every prompt for both; those that leave either no room for an answer are left out and said."""
    rows = [
        PromptRow(q.line, tuple(student.render(q.messages)), tuple(teacher.render(work.context.before(q))))
        for q in work.trained
    ]
    fit = [
        row
        for row in rows
        if len(row.student) + work.settings.max_tokens <= student.context
        and len(row.teacher) + work.settings.max_tokens <= teacher.context
    ]
    if len(fit) < len(rows):
        work.watch.note(
            f"{len(rows) - len(fit)} prompts are too long for an answer of {work.settings.max_tokens} tokens"
        )
    if not fit:
        raise UsageError(
            "every prompt is too long to leave tokens for an answer",
            "raise --max-length, or lower --max-tokens",
        )
    return fit


def _measured(work: _Work, student: SamplingModel, teacher: float | None) -> dict[str, Any] | None:
    from freehold.adapt.evals.paired import compared

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


def _trained(work: _Work, course: TeachingCourse | OnPolicyCourse, steps: int) -> TrainingLoop:
    loop = TrainingLoop(work.run, course.trainee, course.optimizer, steps)
    loop.run(course.step, work.watch.step)
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
            f"{work.run.path(ANSWERS)} says why; use another teacher or other prompts",
        )
    return kept


def _counted(answers: Sequence[Taught]) -> dict[str, Any]:
    return {
        "kept": sum(not each.why for each in answers),
        "rejected": dict(sorted(Counter(each.fault for each in answers if each.why).items())),
        "tried_again": sum(each.tries > 1 for each in answers),
        "tokens": sum(each.tokens for each in answers),
    }


def _summary(counted: Mapping[str, Any]) -> str:
    faults = ", ".join(f"{count} {kind}" for kind, count in counted["rejected"].items())
    return f"{counted['kept']} answers kept" + (f"; rejected: {faults}" if faults else "")


# --- scores of teacher and student on prompts with judges -------------------------------------------
# Greedy answers, as served, by the same faults for both.


def marked(
    model: SamplingModel, questions: Sequence[TeacherPrompt], max_tokens: int, adapter: Adapter | None = None
) -> list[bool]:
    """Return for each judged prompt whether the greedy answer has no fault, as the teacher's are judged."""
    with_judge = judged_prompts(questions)
    prompts = [model.render(q.messages) for q in with_judge]
    samples = model.sample(
        prompts, seeds=[0] * len(with_judge), max_tokens=max_tokens, sampling=GREEDY, adapter=adapter
    )
    return [
        not judged(q, answer, model.tokenizer, 1, len(answer.ids)).why
        for q, [answer] in zip(with_judge, samples, strict=True)
    ]


def passed(unseen: Sequence[Taught]) -> float | None:
    """Return the share of judged answers without a fault; None where none is judged."""
    return float(np.mean([not taught.why for taught in unseen])) if unseen else None


# --- a step of a student that learns from its own answers, judged by a teacher token by token -------
# The student samples with the adapter of this step, the teacher prefills what was sampled, and the loss is
# KL(student || teacher) at each token over the whole vocabulary; the log-ratio of the drawn token alone would
# be a noisy estimate of it. Source: arXiv 2306.13649 (GKD, lambda 1, beta 1).

# Tokens of answers whose teacher's logits are in memory at once: 151,936 floats a token are 0.6 MB, so 156 MB.
JUDGED_TOKENS = 256


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt as the student's and the teacher's server would render it. `line`: its seed follows from it."""

    line: int
    student: tuple[int, ...]
    teacher: tuple[int, ...]


@dataclass(slots=True)
class OnPolicyCourse:
    """Learns from its own answers. `student` and `teacher` are engines; the student's has the trainee's weights."""

    trainee: Trainee
    optimizer: Optimizer
    student: SamplingModel
    teacher: SamplingModel
    prompts: Sequence[PromptRow]
    order: Order
    max_tokens: int
    samples: int = 1

    def step(self, step: int) -> dict[str, Any]:
        """Sample, have the teacher read, learn; return the step's line."""
        import torch

        prompts = [self.prompts[i] for i in self.order.of(step)]
        adapter = self.student.packed(self.trainee.pairs(), self.trainee.scale)
        seeds = [seed_of(self.order.seed, step, one.line) for one in prompts]
        samples = self.student.sample(
            [one.student for one in prompts],
            self.samples,
            seeds=seeds,
            max_tokens=self.max_tokens,
            adapter=adapter,
        )
        drawn = [(one, answer) for one, answers in zip(prompts, samples, strict=True) for answer in answers]
        tokens = sum(len(answer.ids) for _, answer in drawn)
        total, gaps = 0.0, []
        for part in parts(drawn, lambda each: len(each[1].ids), JUDGED_TOKENS):
            rows = [AnswerRow((*one.student, *answer.ids), len(one.student)) for one, answer in part]
            wanted = [row.wanted for row in rows]
            logits = [self.teacher.answer_logits(one.teacher, answer.ids) for one, answer in part]
            states = self.trainee.states([row.ids for row in rows], wanted=wanted)
            judged = given_states(logits, states.head.matrix.rows)
            kl = divergence(states.rows, states.head, judged.rows, judged.head, reverse=True)
            loss = kl.sum() / tokens
            loss.backward()
            total += float(loss.detach())
            with torch.no_grad():
                own = states.log_probs().detach().numpy()
            gaps.append(own - np.concatenate([answer.logprobs for _, answer in part]))
        gap = np.concatenate(gaps)
        rate = self.optimizer.rate
        return {
            "loss": total,
            "tokens": tokens,
            "cut": float(np.mean([answer.finish_reason == "length" for _, answer in drawn])),
            "mismatch": float(np.abs(gap).mean()),
            "gradient": self.optimizer.step(),
            "rate": rate,
        }


# --- a teacher's logits as the engine computed them, where training/packed.py expects a head ----------
# The divergence of a student from its teacher is taken over the whole vocabulary, slice by slice. A teacher
# in torch would need all its layers there; the engine's prompt pass is several times cheaper.


@dataclass(frozen=True, slots=True, eq=False)
class GivenHead:
    """A head whose rows of activations are logits already. `rows`: of the student's vocabulary."""

    rows: int
    matrix: None = None  # no student's head is the same

    def slices(self) -> Iterator[HeadSlice]:
        """Yield slices that match those of a head with as many rows."""
        for first in range(0, self.rows, VOCAB_SLICE):
            yield cast(HeadSlice, _GivenSlice(first, min(VOCAB_SLICE, self.rows - first)))


@dataclass(frozen=True, slots=True)
class _GivenSlice:
    first: int
    count: int

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the columns of this slice."""
        return rows[:, self.first : self.first + self.count]


def given_states(logits: list[NDArray[np.float32]], vocabulary: int) -> States:
    """Return a teacher's states from the logits of each row's wanted tokens, [wanted tokens, V] each.

    `vocabulary`: rows of the student's head. Columns after it are padding of a longer one, and left out; a shorter
    one's missing columns are padding as well, and have no probability.
    """
    import torch

    rows = np.concatenate(logits)[:, :vocabulary]
    if rows.shape[1] < vocabulary:
        rows = np.pad(rows, ((0, 0), (0, vocabulary - rows.shape[1])), constant_values=-1e4)
    head = cast(Head, GivenHead(vocabulary))
    return States(torch.from_numpy(rows), head, torch.zeros(0, dtype=torch.int64), tuple(map(len, logits)))
