"""The verbs that a stage of a recipe may have: what each takes besides its settings, and how it is called.

A verb's settings are those of the verb itself (adapt/settings.py), so an option is declared once. Knows files and
functions; knows no order of stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from freehold.adapt.settings import (
    AlignSettings,
    DistilSettings,
    FinetuneSettings,
    FuseSettings,
    QuantizeSettings,
    ReinforceSettings,
)
from freehold.base.options import option, options_of

if TYPE_CHECKING:
    from freehold.base.config import Settings
    from freehold.choose.advisor.verdict import Facts
    from freehold.run.store import ModelRef, Store

Makes = Literal["adapter", "model", "report"]
GYM = "rg:"
RESULTS = "results.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleFiles:
    """What `finetune` reads."""

    data: Path = option(help="Examples, one JSON object per line.", form="file")
    test: Path | None = option(None, "Test items, answered before and after.", form="file")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFiles:
    """What `align` reads."""

    pairs: Path = option(help="Pairs of answers, one JSON object per line.", form="file")
    test: Path | None = option(None, "Pairs to measure with.", form="file")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFiles:
    """What `reinforce` reads."""

    reward: str = option(help="FILE.py with a reward function, or rg:DATASET.")
    check: str = option("", "A second verifier, as `reward`.")
    prompts: Path | None = option(None, "Prompts; default: a data set's own.", form="file")
    test: Path | None = option(None, "Prompts to measure with.", form="file")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFiles:
    """What `distil` reads."""

    teacher: str = option(help="The model that answers, as MODEL or MODEL+ADAPTER.")
    prompts: Path = option(help="Prompts, one JSON object per line.", form="file")
    teacher_system: Path | None = option(None, "Instructions for the teacher only.", form="file")
    teacher_shots: Path | None = option(None, "Solved examples for the teacher only.", form="file")
    test: Path | None = option(None, "Prompts with checks to measure with.", form="file")
    accept_teacher_terms: str = option("", "Your right to train although the teacher's licence refuses.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFiles:
    """What a verb without files reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalFiles:
    """What `eval` answers."""

    data: str = option(help="FILE.jsonl, humaneval, ifeval, bfcl:CATEGORY or rg:DATASET[:k=v,...].")
    limit: int | None = option(None, "Only the first N items.", least=1)
    style: str = option("", "Form of the prompts: chat, completion, tools or text.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseFiles:
    """What `fuse` reads."""

    test: Path | None = option(None, "Test items, answered before and after.", form="file")


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage is made of, and who hears of it."""

    settings: Settings
    store: Store
    facts: Facts
    ref: ModelRef
    adapter: Path | None
    continued: bool
    out: Path
    on_note: Callable[[str], None] = lambda note: None
    on_step: Callable[[Mapping[str, Any]], None] = lambda row: None
    report: bool = False  # whether a gate needs the divergence of a model file

    def training(self) -> dict[str, Any]:
        """Return the arguments that every training takes."""
        return {
            "adapter": self.adapter,
            "continued": self.continued,
            "packs": self.store.packs,
            "facts": self.facts,
        }


Run = Callable[[Any, Any, StageWork], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class StageVerb:
    """`files`, `settings`: the classes whose options are a stage's keys. `reads`: the texts that a stage trains on."""

    name: str
    files: type
    settings: type
    makes: Makes
    run: Run
    reads: Callable[[Any, Any], Iterator[str]] = lambda files, settings: iter(())
    trains: bool = True


# --- how each is called ------------------------------------------------------------------------------


def _finetune(files: ExampleFiles, settings: FinetuneSettings, work: StageWork) -> Mapping[str, Any]:
    from freehold.adapt.finetune import finetune

    return finetune(
        work.ref,
        files.data,
        work.out,
        settings,
        test=files.test,
        on_note=work.on_note,
        on_step=work.on_step,
        **work.training(),
    )


def _align(files: PairFiles, settings: AlignSettings, work: StageWork) -> Mapping[str, Any]:
    from freehold.adapt.align import align

    return align(
        work.ref,
        files.pairs,
        work.out,
        settings,
        test=files.test,
        on_note=work.on_note,
        on_step=work.on_step,
        **work.training(),
    )


def _reinforce(files: RewardFiles, settings: ReinforceSettings, work: StageWork) -> Mapping[str, Any]:
    from freehold.adapt.reinforce.course import ReinforceSources, reinforce

    sources = ReinforceSources(files.reward, files.check, files.prompts, files.test)
    steps = {"on_note": work.on_note, "on_step": work.on_step}
    return reinforce(work.ref, sources, work.out, settings, **steps, **work.training())


def _distil(files: TeacherFiles, settings: DistilSettings, work: StageWork) -> Mapping[str, Any]:
    from freehold.adapt.distil import DistilWatch, distil
    from freehold.adapt.teacher_prompts import TeacherContext
    from freehold.run.store.naming import adapted

    teacher = adapted(work.store, files.teacher)
    return distil(
        teacher.ref,
        work.ref,
        files.prompts,
        work.out,
        settings,
        teacher_adapter=teacher.adapter,
        context=TeacherContext.read(files.teacher_system, files.teacher_shots),
        test=files.test,
        accepted=files.accept_teacher_terms,
        watch=DistilWatch(work.on_note, step=work.on_step),
        **work.training(),
    )


def _quantize(files: NoFiles, settings: QuantizeSettings, work: StageWork) -> Mapping[str, Any]:
    from freehold.adapt.quantize.planning import QuantizeRequest
    from freehold.adapt.quantize.quantising import Watching, quantise

    wishes = {each.name: getattr(settings, each.name) for each in fields(settings)}
    request = QuantizeRequest(**{**wishes, "report": settings.report or work.report}, facts=work.facts)
    return quantise(work.ref, work.out, request, work.settings, Watching(on_note=work.on_note))


def _fuse(files: FuseFiles, settings: FuseSettings, work: StageWork) -> Mapping[str, Any]:
    from freehold.adapt.fuse import fuse
    from freehold.adapt.quantize.quantising import Watching

    return fuse(
        work.ref,
        work.out,
        settings,
        adapters=[work.adapter] if work.adapter else [],
        test=files.test,
        facts=work.facts,
        config=work.settings,
        watching=Watching(on_note=work.on_note),
    )


def _eval(files: EvalFiles, settings: NoFiles, work: StageWork) -> Mapping[str, Any]:
    from freehold.adapt.evals.results import interval, values
    from freehold.adapt.recipes.measuring import MeasuredTask, scored
    from freehold.adapt.run import RunFolder, as_json, on_disk, receipt, write_whole

    task = MeasuredTask(files.data, files.limit, files.style)
    inputs = {"base": work.ref.name, "data": files.data, "limit": files.limit}
    with RunFolder.open(work.out, "eval", inputs) as folder:
        result = scored(task, work.ref, work.adapter, work.settings, work.store)
        metrics = {
            metric: {"items": len(numbers), **asdict(interval(numbers))}
            for metric in result.task.metrics
            if (numbers := values(result, metric))
        }
        table = {"task": result.task.name, "metrics": metrics}
        with on_disk(folder.path(RESULTS)):
            write_whole(folder.path(RESULTS), lambda file: file.write(as_json(table).encode()))
        record = receipt("eval", inputs, results=table)
        folder.finish(record)
    return record


# --- the texts that a stage trains on ----------------------------------------------------------------


def _examples(files: ExampleFiles, settings: FinetuneSettings) -> Iterator[str]:
    from freehold.adapt.finetune import read_samples

    return (m.content for sample in read_samples(files.data).items for m in sample.messages)


def _pairs(files: PairFiles, settings: AlignSettings) -> Iterator[str]:
    from freehold.adapt.align import read_pairs

    for pair in read_pairs(files.pairs).items:
        yield from (*(m.content for m in pair.messages), pair.chosen, pair.rejected)


def _reward_prompts(files: RewardFiles, settings: ReinforceSettings) -> Iterator[str]:
    """Yield the prompts of every step: a data set's items follow from the seed, so these are the ones of the run."""
    from freehold.adapt.evals.verifier import Verifier
    from freehold.adapt.reinforce.prompts import PromptPlan, prompts_of

    plan = PromptPlan(settings.prompts, settings.unseen, settings.seed, settings.shots, settings.system)
    with Verifier(files.reward) as verifier:
        prompts = prompts_of(verifier, files.prompts, files.test, plan)
        for step in range(1, settings.steps + 1):
            for item in prompts.step(step):
                yield from (m.content for m in item.messages)


def _taught_prompts(files: TeacherFiles, settings: DistilSettings) -> Iterator[str]:
    from freehold.adapt.teacher_prompts import read_prompts

    for prompt in read_prompts(files.prompts).items:
        yield from (m.content for m in (*prompt.messages, *prompt.shown))


VERBS: Mapping[str, StageVerb] = {
    verb.name: verb
    for verb in (
        StageVerb("finetune", ExampleFiles, FinetuneSettings, "adapter", _finetune, _examples),
        StageVerb("align", PairFiles, AlignSettings, "adapter", _align, _pairs),
        StageVerb("reinforce", RewardFiles, ReinforceSettings, "adapter", _reinforce, _reward_prompts),
        StageVerb("distil", TeacherFiles, DistilSettings, "adapter", _distil, _taught_prompts),
        StageVerb("fuse", FuseFiles, FuseSettings, "model", _fuse, trains=False),
        StageVerb("quantize", NoFiles, QuantizeSettings, "model", _quantize, trains=False),
        StageVerb("eval", EvalFiles, NoFiles, "report", _eval, trains=False),
    )
}


def key_name(kind: type, field: str) -> str:
    """Return how a recipe spells a field: as the option of the command line, with underscores."""
    declared = options_of(kind)[field]
    return (declared.name or declared.field).replace("-", "_")
