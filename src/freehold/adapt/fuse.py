"""Fuse: adapters become part of a model's weights, in one file that any program opens, beside a proof of its nearness.

Weights pass through floats once and are encoded again; then the file is compared with the model and its adapters, on a
held-out text and at the answers of an examination, and removed where it is further away than a stated bound. Knows the
order of the work; knows no terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.adapt.evals.divergence import WINDOW, AnsweredIds
from freehold.adapt.evals.paired import compared
from freehold.adapt.finetune import Exam, read_exam
from freehold.adapt.quantize.changed import AdapterSum, read_adapters
from freehold.adapt.quantize.planning import DEFAULT_TEXTS, QuantizeRequest
from freehold.adapt.quantize.quantising import Measurement, Watching, measured, quantise
from freehold.adapt.quantize.recipes import layer_of
from freehold.adapt.sampling import GREEDY, SamplingModel, open_sampling
from freehold.adapt.settings import FuseSettings
from freehold.adapt.stages import receipt_of
from freehold.adapt.teaching import FACT_TOKENS, FACTS, compared_facts
from freehold.base.config import Settings, load_settings
from freehold.base.errors import NotMet, UsageError
from freehold.base.machine import default_threads
from freehold.base.types import Message
from freehold.choose.advisor.verdict import Facts
from freehold.run.formats import GGUFFile, open_model_file
from freehold.run.formats.weight_types import TABLE_TYPES
from freehold.run.store import ModelRef, Store

if TYPE_CHECKING:
    from freehold.run.models.load import LoadedModel
    from freehold.run.models.lora import Adapter

MOST_ADAPTERS = 8
ANSWER_TOKENS = 128  # of an answer to a test item
# Nats per token from MODEL+ADAPTER, by the bits of a weight: from as many on. Encoding alone takes 0.02 to 0.09 at four
# bits and 0.1 to 0.25 at three on models of 135 and 500 million weights (docs/log/adapt.md).
BOUNDS = ((3.6, 0.1), (2.6, 0.3), (0.0, 1.0))


def fuse(
    model: str | ModelRef,
    out: str | Path,
    settings: FuseSettings | None = None,
    *,
    adapters: Sequence[Path] = (),
    test: Path | None = None,
    facts: Facts | None = None,
    fresh: bool = False,
    config: Settings | None = None,
    watching: Watching | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Merge adapters into a model's weights, in the folder `out`; return the receipt.

    `model`: "MODEL+ADAPTER[+ADAPTER]", or a model, with its adapters in `adapters`. `options`: fields of FuseSettings,
    instead of `settings`: quant="T3". `test`: items as for `finetune --test`, answered before and after. A GGUF becomes
    model.gguf; a safetensors folder becomes a folder with the same types, which transformers can open. An interrupted
    run with the same arguments continues. Raises NotMet, and deletes the result, if it differs from the model with its
    adapters by more than `bound`; UsageError if the files do not belong together; and errors of reading and writing.
    """
    config = config or load_settings()
    ref, paths = _named(model, adapters, config)
    settings = settings or FuseSettings(**options)
    watching = watching or Watching()
    exam = read_exam(Path(test)) if test else None
    request = _request(ref, settings, facts or Facts(), fresh=fresh)
    examination = Examination(ref, read_adapters(ref.path, paths), exam, settings, config, watching)
    if ref.path.is_dir():
        from freehold.adapt.fused_folder import fuse_folder

        return fuse_folder(ref, paths, Path(out), request, watching, examination.of_file)
    for note in _calibration_notes(request, settings):
        watching.on_note(note)
    return quantise(ref, Path(out), request, config, watching, adapters=paths, examine=examination.of_file)


def _named(model: str | ModelRef, adapters: Sequence[Path], config: Settings) -> tuple[ModelRef, list[Path]]:
    """Return a model and its adapters. Raises UsageError where there is none, or more than are added up."""
    from freehold.run.store.naming import adapted

    paths = list(map(Path, adapters))
    if isinstance(model, str):
        named = adapted(Store(config), model, most=MOST_ADAPTERS)
        model, paths = named.ref, [*(each.path for each in named.adapters), *paths]
    if not paths:
        raise UsageError(
            f"{model.name} has no adapter to fuse",
            f"name one: {model.name}+ADAPTER; freehold quantize writes a model without an adapter",
        )
    if len(paths) > MOST_ADAPTERS:
        raise UsageError(f"{len(paths)} adapters are named; the limit is {MOST_ADAPTERS}")
    return model, paths


# --- what is written, and what it is calibrated on ------------------------------------------------------


def _request(ref: ModelRef, settings: FuseSettings, facts: Facts, *, fresh: bool) -> QuantizeRequest:
    """Return what to quantise: in the model's own types unless one is named, calibrated as the model was."""
    request = QuantizeRequest(
        quant=settings.quant,
        as_base=not settings.quant,
        threads=settings.threads,
        verb="fuse",
        fresh=fresh,
        facts=facts,
    )
    if ref.path.is_dir():
        return request
    if settings.calibrate:
        return replace(request, calibrate=settings.calibrate, tokens=settings.tokens)
    texts, tokens = _calibrated_on(ref)
    if texts:
        return replace(request, calibrate=texts, tokens=tokens)
    return replace(request, tokens=settings.tokens)


def _calibrated_on(ref: ModelRef) -> tuple[str, int]:
    """Return the text and the tokens that a model of ours was calibrated on; nothing for another's.

    Raises UsageError for a user's text that is no longer there.
    """
    record = receipt_of(ref.path) if ref.source.startswith("file:") else None
    stated = ((record or {}).get("inputs") or {}).get("calibration") or {}
    texts, tokens = str(stated.get("texts") or ""), int(stated.get("tokens") or 0)
    if not texts or not tokens:
        return (DEFAULT_TEXTS, FuseSettings().tokens) if _has_own_types(ref.path) else ("", 0)
    if texts != DEFAULT_TEXTS and not Path(texts).expanduser().is_file():
        raise UsageError(
            f"{ref.name} was calibrated on {texts}, which does not exist",
            "name a text of typical inputs: --calibrate FILE, or --calibrate default",
        )
    return texts, tokens


def _has_own_types(path: Path) -> bool:
    with open_model_file(path) as opened:
        return isinstance(opened, GGUFFile) and any(t.type in TABLE_TYPES for t in opened.tensors.values())


def _calibration_notes(request: QuantizeRequest, settings: FuseSettings) -> Iterator[str]:
    if request.texts and not settings.calibrate:
        yield f"calibrated on {request.texts}, as the model was; --calibrate names another text"


# --- the fused file beside the model with its adapters --------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, and whether a text answers it."""

    messages: tuple[Message, ...]
    right: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class _Answers:
    """Greedy answers: ids of prompt and answer, and which are right."""

    rows: list[AnsweredIds]
    right: list[bool]


Packed = Callable[["LoadedModel"], "Adapter"]


@dataclass(frozen=True, slots=True)
class Examination:
    """Compares a fused model with the model and its adapters: on a text, on facts, and on the items of `exam`."""

    ref: ModelRef
    adapters: AdapterSum
    exam: Exam | None
    settings: FuseSettings
    config: Settings
    watching: Watching

    def of_file(self, path: Path) -> dict[str, Any]:
        """Return a receipt's parts on a written model. Raises NotMet beyond the bound."""
        bound = self.settings.bound or bound_of(path)
        before = self._answers_of(self.ref, self.adapters.packed)
        rows = [row for answers in before for row in answers.rows]
        short = [row for row in rows if len(row[0]) <= WINDOW]
        measurement = measured(
            self.ref.path,
            path,
            self.config,
            packed=self.adapters.packed,
            answers=short,
            until=self.settings.until,
            threads=self._threads,
            on_block=self.watching.on_block,
        )
        self._check(measurement, bound)
        after = self._answers_of(Store(self.config).resolve(str(path)))
        (knew, known), (passed, passes) = ((b.right, a.right) for b, a in zip(before, after, strict=True))
        return {
            **measurement.as_json(),
            "bound": bound,
            "answers": {
                "questions": len(rows),
                "left_out": len(rows) - len(short),
                "divergence": measurement.answers.as_json() if measurement.answers else None,
                "adapter_moved": measurement.moved.as_json() if measurement.moved else None,
            },
            "control": compared_facts(knew, known) if knew else None,
            "exam": _marks(passed, passes) if passed else None,
        }

    def _check(self, measurement: Measurement, bound: float) -> None:
        """Raise NotMet where the text or the answers are further apart than allowed."""
        places = {
            "the held-out text": measurement.divergence,
            "the answers of the examination": measurement.answers,
        }
        for place, divergence in places.items():
            if divergence is not None and divergence.mean > bound:
                raise NotMet(
                    f"the fused model differs by {divergence.mean:.3f} nats per token from {self.name} on {place}; "
                    f"at most {bound:g} is allowed, so it is not kept",
                    "use a type with more bits, such as --quant Q8_0, or allow more: "
                    f"--bound {divergence.mean * 1.1:.2g}",
                )

    @property
    def name(self) -> str:
        """The model and its adapters."""
        return "+".join([self.ref.name, *(path.name for path in self.adapters.paths)])

    @property
    def _threads(self) -> int:
        return self.settings.threads or default_threads()

    def _answers_of(self, ref: ModelRef, packed: Packed | None = None) -> list[_Answers]:
        """Ask the facts and the items; nothing is asked of a model without a chat template."""
        context = min(4 * WINDOW, self.adapters.context)
        with open_sampling(ref, many=True, context=context, threads=self._threads) as engine:
            if not engine.info.can_chat:
                return [_Answers([], []), _Answers([], [])]
            adapter = engine.packed_by(packed) if packed else None
            items = _exam_questions(self.exam)
            return [
                _answered(engine, _fact_questions(), FACT_TOKENS, adapter),
                _answered(engine, items, ANSWER_TOKENS, adapter),
            ]


def _answered(
    engine: SamplingModel, questions: Sequence[_Question], tokens: int, adapter: Adapter | None
) -> _Answers:
    prompts = [engine.render(question.messages) for question in questions]
    answers = engine.sample(
        prompts, seeds=[0] * len(prompts), max_tokens=tokens, sampling=GREEDY, adapter=adapter
    )
    rows: list[AnsweredIds] = []
    right: list[bool] = []
    for question, prompt, (answer,) in zip(questions, prompts, answers, strict=True):
        rows.append(((*prompt, *answer.ids), len(prompt)))
        ids = [id for id in answer.ids if id not in engine.tokenizer.eos_ids]
        right.append(question.right(engine.tokenizer.decode(ids)))
    return _Answers(rows, right)


def _fact_questions() -> list[_Question]:
    def holds(words: Sequence[str]) -> Callable[[str], bool]:
        return lambda text: any(word.casefold() in text.casefold() for word in words)

    return [_Question((Message("user", fact.question),), holds(fact.words)) for fact in FACTS]


def _exam_questions(exam: Exam | None) -> list[_Question]:
    def passes(mark: Callable[[str], Any]) -> Callable[[str], bool]:
        return lambda text: mark(text).passed

    return [_Question(item.messages, passes(item.check.mark)) for item in exam.items] if exam else []


def _marks(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Compare the marks of an examination's items, as `gate_of` reads them."""
    pairs = compared(after, before)
    return {
        "marked": len(before),
        "before": sum(before) / len(before),
        "after": sum(after) / len(after),
        "gained": pairs.wins,
        "lost": pairs.losses,
        "p": pairs.p,
    }


def bound_of(path: Path) -> float:
    """Return the bound for a model's file: by the bits of its matrices' weights, embedding and head left out."""
    with open_model_file(path) as opened:
        matrices = [t for t in opened.tensors.values() if len(t.shape) == 2 and layer_of(t.name) >= 0]
        weights = sum(t.shape[0] * t.shape[1] for t in matrices)
        bits = 8 * sum(t.nbytes for t in matrices) / weights if weights else 16.0
    return next(bound for least, bound in BOUNDS if bits >= least)
