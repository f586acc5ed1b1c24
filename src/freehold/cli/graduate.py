"""`freehold graduate ROUTE`: a model of one's own learns from the answers that a route rents, and takes over.

Knows options, the order of the work and lines of text; adapt.graduation has the rules. The student must be here
already. What is bought and measured is asked through the gateway, so labels, budgets and the ledger apply.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.adapt.settings import FinetuneSettings, GatherSettings
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, NotMet, UsageError
from freehold.base.terminal import Ticking
from freehold.choose.choosing import company_facts
from freehold.cli.options import setting_options
from freehold.cli.progress import StatusLine, result_of
from freehold.cli.shared import gateway_option, json_option, pairs
from freehold.cli.training import adapter_options, chosen_settings, half_option
from freehold.route.router.toml.table import KeptEnvironment
from freehold.run.store import ModelRef, Store
from freehold.serve.reports.gateway_file import gateway_path, read_gateway

if TYPE_CHECKING:
    from freehold.adapt.gathering import GatheredData, GatheredItem
    from freehold.adapt.graduation import GraduationState, Purchase
    from freehold.choose.advisor.interval import Interval
    from freehold.route.router.bar import BarResult
    from freehold.route.router.gateway import Gateway
    from freehold.route.router.graduation import Graduand

ANSWER_TOKENS = 512  # of an answer that is bought
_CASES = "cases.jsonl"


@click.command("graduate", epilog="Example: freehold graduate tickets --gateway gateway.toml --move")
@click.argument("route")
@gateway_option
@click.option("--move", is_flag=True, help="Let the tested student answer the route.")
@click.option("--again", is_flag=True, help="Train a new student although one already answers the route.")
@setting_options(FinetuneSettings, "epochs", "batch", "rate", "replay", "max_length")
@half_option
@adapter_options
@json_option
@click.pass_obj
def command(
    settings: Settings,
    route: str,
    gateway: Path | None,
    move: bool,
    again: bool,
    fresh: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on the stored answers of ROUTE, test it, and estimate what it would save.

    In gateway.toml, ROUTE needs graduate = {student, at, spend, judge}, keep = "text", a task with a bar, and two
    targets: the name of the local model that this command creates, and the model that answers until then. Only answers
    whose terms allow training are used. Missing answers are bought, for at most `spend`.

    --move stores the student's test result, so that the route uses the student. The gateway then compares one in fifty
    of its answers with the other model's. If they differ too often, that model answers again, and the ledger says why.

    With --json, prints the state.
    """
    from freehold.adapt.run import locked, on_disk
    from freehold.route.router.graduation import folder_of, graduand

    path = gateway_path(settings, gateway)
    read = read_gateway(settings, gateway, keys=False)
    assert path is not None, "read_gateway refuses it"
    plan = graduand(read, route)
    if move:
        return _move(settings, plan, as_json=as_json)
    run = _GraduateRun(
        settings, Store(settings), path, read, plan, company_facts(settings, {}), KeptEnvironment()
    )
    folder = folder_of(settings.home, plan.route.name)
    with on_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Two at once would buy the same answers.
    with locked(folder / ".lock", folder, "wait for it; a server that is idle teaches its routes itself"):
        state = run.proposed(chosen_settings(FinetuneSettings, options), fresh=fresh, again=again)
    if as_json:
        click.echo(json.dumps(state.as_json()))
    else:
        pairs(_rows(state))
    return None


def _rows(state: GraduationState) -> list[tuple[str, str]]:
    from freehold.route.router.price import NANO

    def shown(result: BarResult) -> str:
        return f"{result.score:.3f} ({result.low:.3f} to {result.high:.3f}, 95% CI) on {result.cases:,} cases"

    teacher = shown(state.teacher) if state.teacher else "not measured: it does not fit what may be spent"
    return [
        ("examples", f"{state.examples:,}, answers for {state.spent / NANO:.4f} dollars bought"),
        ("terms", f"{state.terms['terms'] or 'stated in the file'}: may teach"),
        ("student", shown(state.student)),
        ("teacher", teacher),
        ("agreement", f"{state.agreement:.1%} of held-out texts are answered as the teacher does"),
        ("proposal", state.proposal),
    ]


def _move(settings: Settings, plan: Graduand, *, as_json: bool) -> None:
    """Keep the student's result: nothing else is changed."""
    from freehold.adapt.graduation import keep_state, state_of
    from freehold.route.router.bar import BarStore, Identities, void

    state = state_of(settings.home, plan.route.name)
    if state is None:
        raise UsageError(
            f"{plan.route.name} has no student yet", f"freehold graduate {plan.route.name} teaches one"
        )
    again = f"freehold graduate {plan.route.name} teaches and measures it again"
    if state.student.low < plan.task.bar:
        raise NotMet(state.proposal, again)
    if why := void(state.student, Identities(Store(settings)).of(plan.student), time.time()):
        raise NotMet(f"the result of {plan.student.name} does not hold: {why}", again)
    BarStore(settings.home).keep(state.student)
    keep_state(settings.home, replace(state, stage="moved", at=_now()))
    line = f"{plan.student.name} answers {plan.route.name} from now on"
    click.echo(json.dumps(replace(state, stage="moved").as_json()) if as_json else line)


@dataclass(frozen=True, slots=True)
class _GraduateRun:
    """The order of a graduation, from texts to a proposal."""

    settings: Settings
    store: Store
    path: Path  # of gateway.toml
    gateway: Gateway
    plan: Graduand
    facts: Any
    environment: KeptEnvironment  # with the keys, which the gateway takes out of this process's own

    def proposed(self, training: FinetuneSettings, *, fresh: bool, again: bool) -> GraduationState:
        """Gather, buy, teach, measure; keep and return the state. Raises what each raises."""
        from freehold.adapt.gathering import write_data
        from freehold.adapt.graduation import (
            GraduationState,
            Purchase,
            check_enough,
            digest_of,
            keep_state,
            monthly,
            proposal,
            teacher_terms,
        )
        from freehold.adapt.stages import receipt_of
        from freehold.route.router.bar import Bars, Identities
        from freehold.route.router.graduation import DATA, MODEL, unfinished
        from freehold.route.router.opening import ledger_path

        plan = self.plan
        student = self.store.resolve(plan.settings.student)
        terms = teacher_terms(plan.teacher, student, self.gateway, self.facts)
        if (
            not again
            and Bars(self.settings.home, Identities(self.store).of).passes(plan.task, plan.student)[0]
        ):
            raise UsageError(
                f"{plan.student.name} answers {plan.route.name} already",
                "--again trains a new student; until the next --move, the teacher answers",
            )
        purchase = Purchase(plan.settings.spend_nano, self._book().spent)
        folder = None if fresh else unfinished(self.settings.home, plan.route.name)
        if folder is None:
            data = self._texts(purchase)
            check_enough(data, plan, purchase)
            folder = self._folder / digest_of(data)
            if not (folder / DATA).is_dir():
                write_data(data, folder / DATA, f"route {plan.route.name}")
        record = self._taught(student, folder, training, fresh=fresh)
        measured = self._measured(folder, purchase)
        agreement = _agreement(record)
        # Where two good answers are rarely equal, the bar would be contradicted by every comparison.
        keeps = plan.task.bar if agreement.mid >= plan.task.bar else agreement.low
        result = replace(measured["student"], agreement=keeps)
        month = monthly(ledger_path(self.gateway, self.settings.home), plan)
        state = GraduationState(
            route=plan.route.name,
            stage="proposed",
            digest=folder.name,
            examples=int((receipt_of(folder / DATA) or {})["examples"]),
            adapter=str(folder / MODEL),
            terms=terms,
            spent=purchase.spent,
            student=result,
            teacher=measured.get("teacher"),
            agreement=agreement.mid,
            month=month.as_json(),
            proposal=proposal(plan, result, month),
            at=_now(),
        )
        keep_state(self.settings.home, state)
        return state

    @property
    def _folder(self) -> Path:
        from freehold.route.router.graduation import folder_of

        return folder_of(self.settings.home, self.plan.route.name)

    # --- texts ---------------------------------------------------------------------------------------

    def _book(self) -> _AnswerFile:
        return _AnswerFile(self._folder / "bought.jsonl")

    def _texts(self, purchase: Purchase) -> GatheredData:
        """Return the texts that teach, those included that are bought now or were bought before."""
        from freehold.adapt.gathering import from_ledger
        from freehold.adapt.graduation import bought, teaching_texts
        from freehold.cli.serving.hybrid import gateway_models
        from freehold.route.router.opening import ledger_path

        plan = self.plan
        apart = (Path(plan.task.file),) if plan.task.file else ()
        with Ticking("reading kept texts"):
            data = from_ledger(
                ledger_path(self.gateway, self.settings.home), plan.route.name, GatherSettings(apart=apart)
            )
        texts = teaching_texts(data, plan.student.name)
        lacks = len(texts.data.examples) < plan.settings.at and (texts.missing or texts.missing_tests)
        if not lacks or (not purchase.limit and plan.teacher.price is not None):
            return texts.data
        book = self._book()
        with (
            gateway_models(
                self.settings, self.store, self.path, (), "", "graduate", self.environment
            ) as models,
            StatusLine("the answers so far are kept; the same command continues") as line,
        ):
            teacher = models(plan.teacher.name)
            return bought(
                texts,
                plan.settings.at,
                plan.teacher,
                purchase,
                lambda item: 0 if item.id in book.answers else self._most(item),
                lambda item: book.answer(item, lambda: self._teacher_answer(teacher, item, line.show)),
            )

    def _most(self, item: GatheredItem) -> int:
        """Return nano-dollars that an answer does not exceed."""
        from freehold.base.prompts import prompt_size
        from freehold.base.serving import Job

        price = self.plan.teacher.price
        if price is None:
            return 0
        return price.most(prompt_size(Job(messages=item.messages)).most, ANSWER_TOKENS, time.time())

    def _teacher_answer(
        self, teacher: Any, item: GatheredItem, show: Callable[[str], None]
    ) -> tuple[str, int]:
        """Return the teacher's answer to a prompt and its cost; no answer where a label or the teacher refuses."""
        show(f"buying an answer of {self.plan.teacher.name}")
        price, now, texts, nano = self.plan.teacher.price, time.time(), [], 0
        try:
            for chunk in teacher.stream(item.messages, max_tokens=ANSWER_TOKENS):
                texts.append(chunk.text)
                if chunk.usage is not None and price is not None:
                    nano = price.cost(chunk.usage, now)
                if chunk.finish_reason not in (None, "stop"):
                    return "", nano  # cut, or refused by the provider
        except FreeholdError as e:
            show(f"{self.plan.teacher.name} did not answer: {e.message}")
            return "", nano
        return "".join(texts), nano

    # --- teaching and measuring ----------------------------------------------------------------------

    def _taught(
        self,
        student: ModelRef,
        folder: Path,
        training: FinetuneSettings,
        *,
        fresh: bool,
    ) -> Mapping[str, Any]:
        """Train an adapter, or take the one that these texts gave; name it as the route's own model."""
        from freehold.adapt.gathering import TEST, TRAIN
        from freehold.adapt.registry import note
        from freehold.adapt.stages import receipt_of
        from freehold.route.router.graduation import DATA, MODEL
        from freehold.run.store.contract import ignore
        from freehold.run.store.create import Recipe, make

        out = folder / MODEL
        record = receipt_of(out) if out.is_dir() else None
        if record is None:
            with Ticking("starting torch"):
                from freehold.adapt.finetune import finetune
            note(self.settings.home, "finetune", out)
            with StatusLine(result_of(out)) as line:
                line.begin(f"teaching {student.name}")
                record = finetune(
                    student,
                    folder / DATA / TRAIN,
                    out,
                    training,
                    test=folder / DATA / TEST,
                    packs=self.store.packs,
                    facts=self.facts,
                    fresh=fresh,
                    on_note=line.note,
                    on_step=lambda row: line.show(
                        f"step {row['step']} of {row['steps']}: loss {row['loss']:.3f}"
                    ),
                )
        make(self.store, self.plan.student.local, Recipe(base=student.name, adapter=str(out)), ignore)
        return record

    def _measured(self, folder: Path, purchase: Purchase) -> dict[str, BarResult]:
        """Measure the student on the task's bar, and the teacher where that fits what may be spent."""
        from freehold.cli.bar import measured_on, planned_run

        plan, task, called = self.plan, self.plan.task.name, None
        if plan.settings.judge == "answers":
            task, called = str(self._cases(folder)), plan.task.name
        elif not plan.task.file:
            raise UsageError(
                f"the task {task} has no cases",
                f'file = "{task}.jsonl" in [tasks.{task}], or judge = "answers" in graduate',
            )
        results: dict[str, BarResult] = {}
        own = planned_run(self.gateway, task, plan.student.name, called, None, False)
        results["student"] = measured_on(
            self.settings, self.store, self.path, own, environment=self.environment
        )
        if plan.settings.judge == "cases" and (teacher := self._teacher(own.file, purchase)) is not None:
            results["teacher"] = teacher
        return results

    def _teacher(self, cases: Path, purchase: Purchase) -> BarResult | None:
        """Return the teacher's result that holds, or measure it where that fits what may be spent."""
        from freehold.adapt.evals.samples import read as read_samples
        from freehold.base.prompts import prompt_size
        from freehold.base.serving import Job
        from freehold.cli.bar import measured_on, planned_run
        from freehold.route.router.bar import BarStore, Identities, void

        teacher, task, now = self.plan.teacher, self.plan.task.name, time.time()
        known = BarStore(self.settings.home).find(task, teacher.name)
        if known is not None and not void(known, Identities(self.store).of(teacher), now):
            return known
        if (price := teacher.price) is not None:
            jobs = [(Job(messages=case.messages), case.max_tokens) for case in read_samples(cases).cases]
            if not purchase.allows(sum(price.most(prompt_size(job).most, most, now) for job, most in jobs)):
                return None
        run = planned_run(self.gateway, task, teacher.name, None, None, False)
        return measured_on(self.settings, self.store, self.path, run, environment=self.environment)

    def _cases(self, folder: Path) -> Path:
        """Write the held-out texts as cases of the bar."""
        from freehold.adapt.gathering import TEST
        from freehold.adapt.run import on_disk, write_whole
        from freehold.route.router.graduation import DATA

        path = folder / _CASES
        rows = []
        for line in (folder / DATA / TEST).read_text(encoding="utf-8").splitlines():
            *before, answer = json.loads(line)["messages"]
            rows.append(json.dumps({"messages": before, "exact": answer["content"]}, ensure_ascii=False))
        with on_disk(path):
            write_whole(path, lambda file: file.write(("\n".join(rows) + "\n").encode()))
        return path


class _AnswerFile:
    """Answers that were bought, in a file of JSON lines: an interrupted run pays for none of them twice."""

    def __init__(self, path: Path) -> None:
        from freehold.adapt.evals.trial import kept_rows

        self._path = path
        self.answers: dict[str, str] = {}
        self.spent = 0  # nano-dollars
        for row in kept_rows(path):
            if {"item", "answer"} <= row.keys():
                self.answers[str(row["item"])] = str(row["answer"])
                self.spent += int(row.get("nano", 0))

    def answer(self, item: GatheredItem, ask: Callable[[], tuple[str, int]]) -> tuple[str, int]:
        """Return a kept answer, which costs nothing, or ask for it and keep it."""
        from freehold.adapt.evals.trial import AppendedLines

        if item.id in self.answers:
            return self.answers[item.id], 0
        answer, nano = ask()
        if (
            not answer and not nano
        ):  # refused at home, or the teacher could not be reached: asked again another time
            return answer, nano
        self.answers[item.id] = answer
        with AppendedLines(self._path, {"file": "answers that were bought"}) as write:
            write({"item": item.id, "answer": answer, "nano": nano})
        return answer, nano


def _agreement(record: Mapping[str, Any]) -> Interval:
    """Return the share of equal answers on held-out texts with its bounds; 0 where none was tested."""
    from freehold.choose.advisor.interval import Interval, wilson
    from freehold.route.router.bar import LEVEL

    tested = record.get("before_after") or {}
    scores = tested.get("clean") or tested.get("all")
    if not scores:
        return Interval(0.0, 0.0, 0.0, LEVEL)
    return wilson([1.0] * scores["after"] + [0.0] * (scores["items"] - scores["after"]), LEVEL)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
