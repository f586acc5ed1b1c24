"""Builds a recipe: runs the stages that are out of date, in order, and stops at a gate that is not met.

A stage's result is in the folder NAME-KEY, where KEY is a digest of all that its bits follow from: the verb, its
settings and files, the parent's result, and the version of the code. So a result with the right name is up to date, a
changed recipe discards nothing, and a recipe that is changed back finds the earlier result. The link NAME leads to
the newest result whose gate is met. A stage that was killed continues, as its verb does.

Knows stages, digests and folders; knows no verb's work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.adapt.recipes.gates import GateMarks, GateResult, hopeless, verdict
from freehold.adapt.recipes.measuring import GateSubject, MeasuredTask, marks_of, trained_on
from freehold.adapt.recipes.recipe import BASE, GateRule, ModelRecipe, RecipeStage
from freehold.adapt.recipes.verbs import GYM, StageWork
from freehold.adapt.registry import note
from freehold.adapt.run import NAME as RECEIPT
from freehold.adapt.run import (
    counted_apart,
    file_digest,
    locked,
    model_digest,
    on_disk,
    part_of,
    spent_seconds,
    text_digest,
)
from freehold.adapt.stages import gate_of, receipt_of
from freehold.base.errors import NotMet, StoreError, UsageError
from freehold.base.regular import read_bounded
from freehold.base.version import __version__

if TYPE_CHECKING:
    from freehold.base.config import Settings
    from freehold.choose.advisor.verdict import Facts
    from freehold.run.store import ModelRef, Store

LOCK, STAGES, GATES = ".lock", "stages.jsonl", "gates.jsonl"
MOST_LINES = 64 << 20  # bytes of stages.jsonl and of gates.jsonl
KEY = 12  # digits of a result's digest in its name
MODEL = "model.gguf"
_SHOWN = 3  # items that a message names


class GateNotMet(NotMet):
    """A stage's result does not pass its gate. `stage`, `result`: which, and the figures."""

    def __init__(self, stage: str, result: GateResult, out: Path) -> None:
        super().__init__(
            f"{stage} does not meet its gate: {'; '.join(result.failures)}",
            f"its result is kept in {out}; change the stage and build again",
        )
        self.stage, self.result = stage, result


@dataclass(frozen=True, slots=True)
class BuiltResult:
    """What a stage starts from or makes: a model, with an adapter or without."""

    ref: ModelRef
    model_digest: str
    adapter: Path | None = None
    adapter_digest: str = ""

    @property
    def digest(self) -> str:
        """The digest of what was made: of the adapter, else of the model."""
        return self.adapter_digest or self.model_digest


@dataclass(frozen=True, slots=True)
class StageReport:
    """What was done for one stage. `state`: made, or kept from an earlier build."""

    name: str
    verb: str
    state: str
    out: Path
    digest: str
    cpu_seconds: float  # of its verb, from its receipt
    gate: GateResult | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        gate = None
        if self.gate is not None:
            gate = {"passed": self.gate.passed, "failures": list(self.gate.failures), **self.gate.figures}
        return {
            "stage": self.name,
            "verb": self.verb,
            "state": self.state,
            "out": str(self.out),
            "digest": self.digest,
            "cpu_seconds": self.cpu_seconds,
            "gate": gate,
        }


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """What a build would do with a stage. `why`: "" for a result that is up to date; `gate`: whether it is measured."""

    stage: RecipeStage
    why: str
    out: Path | None  # None: its name follows from a parent that is not built yet
    gate: bool


@dataclass(frozen=True, slots=True)
class BuildWatch:
    """Hears of stages, notes, steps and items."""

    begins: Callable[[PlannedStage], None] = lambda planned: None
    note: Callable[[str], None] = lambda text: None
    step: Callable[[str, Mapping[str, Any]], None] = lambda stage, row: None
    items: Callable[[str, int, int], None] = lambda stage, done, total: None
    ends: Callable[[StageReport], None] = lambda report: None


@dataclass(slots=True)
class Builder:
    """A recipe with the folder of its results."""

    recipe: ModelRecipe
    folder: Path
    settings: Settings
    store: Store
    facts: Facts
    watch: BuildWatch = field(default_factory=BuildWatch)
    _results: dict[str, BuiltResult] = field(default_factory=dict, init=False)

    @property
    def base(self) -> BuiltResult:
        """What the recipe starts from; after `plan` or `build`."""
        return self._results[BASE]

    def earlier(self, planned: PlannedStage) -> float | None:
        """Return the processor seconds of a stage's newest run; None where it never ran."""
        spent = [
            row.get("cpu_seconds") for row in self._rows(STAGES) if row.get("stage") == planned.stage.name
        ]
        return float(spent[-1]) if spent and isinstance(spent[-1], int | float) else None

    def plan(self, target: str = "") -> list[PlannedStage]:
        """Return what a build would do, in order. Raises UsageError for a result that was changed since."""
        self._results = {BASE: self._base()}
        planned: list[PlannedStage] = []
        waiting: dict[str, str] = {}  # stages that are rerun, for which nothing below is known
        for stage in self.recipe.until(target):
            if stage.parent in waiting:
                waiting[stage.name] = f"its parent {stage.parent} runs first"
                planned.append(PlannedStage(stage, waiting[stage.name], None, stage.gate is not None))
                continue
            inputs = self._inputs(stage)
            out = self._out(stage, inputs)
            if (out / RECEIPT).is_file():
                self._results[stage.name] = self._result(stage, out)
                planned.append(PlannedStage(stage, "", out, self._unmeasured(stage, waiting)))
            else:
                waiting[stage.name] = self._why(stage, inputs, out)
                planned.append(PlannedStage(stage, waiting[stage.name], out, stage.gate is not None))
        return planned

    def build(self, target: str = "") -> list[StageReport]:
        """Bring a stage, or all, up to date; return a report for each. Raises GateNotMet, and what the verbs raise.

        The results before a failure stay. A second build in the same folder is refused.
        """
        with on_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCK, self.folder):
            planned = self.plan(target)
            self._check_apart(planned)
            self._results = {BASE: self._base()}
            return [self._stage(each) for each in planned]

    # --- one stage -----------------------------------------------------------------------------------

    def _stage(self, planned: PlannedStage) -> StageReport:
        stage = planned.stage
        inputs = self._inputs(stage)
        out = self._out(stage, inputs)
        here = (out / RECEIPT).is_file()
        self.watch.begins(planned)
        if not here:
            self._make(stage, out)
        result = self._results[stage.name] = self._result(stage, out)
        record = receipt_of(out) or {}
        spent = spent_seconds(record)
        if not here:
            self._log(STAGES, {"stage": stage.name, "inputs": inputs, "out": out.name, "cpu_seconds": spent})
        gate = self._gate(stage, result, record)
        report = StageReport(
            stage.name, stage.verb.name, "kept" if here else "made", out, result.digest, spent, gate
        )
        self.watch.ends(report)
        if gate is not None and not gate.passed:
            raise GateNotMet(stage.name, gate, out)
        self._link(stage.name, out)
        return report

    def _make(self, stage: RecipeStage, out: Path) -> None:
        parent = self._results[stage.parent]
        if stage.verb.name == "quantize" and parent.adapter is not None:
            raise UsageError(
                f"{stage.name}: {stage.parent} has an adapter, and quantize takes a model",
                'verb = "fuse" with quant makes one file of both',
            )
        note(self.settings.home, stage.verb.name, out)
        work = StageWork(
            settings=self.settings,
            store=self.store,
            facts=self.facts,
            ref=parent.ref,
            adapter=parent.adapter,
            continued=stage.continued,
            out=out,
            on_note=self.watch.note,
            on_step=lambda row: self.watch.step(stage.name, row),
            report=stage.gate is not None and stage.gate.kld is not None,
        )
        with counted_apart():
            stage.verb.run(stage.files, stage.settings, work)

    def _base(self) -> BuiltResult:
        from freehold.adapt.stages import ParentAdapter
        from freehold.run.store.naming import adapted

        named = adapted(self.store, self.recipe.base)
        digest = model_digest(named.ref)
        if named.adapter is None:
            return BuiltResult(named.ref, digest)
        return BuiltResult(named.ref, digest, named.adapter, ParentAdapter.of(named.adapter).digest)

    def _result(self, stage: RecipeStage, out: Path) -> BuiltResult:
        """Return a stage's result. Raises UsageError for one that was changed after it was made."""
        parent = self._results[stage.parent]
        if stage.verb.makes == "report":
            return parent
        record = receipt_of(out) or {}
        if stage.verb.makes == "model":
            file = out / MODEL
            ref = self.store.resolve(
                str((file if file.exists() else out).absolute())
            )  # a folder of safetensors
            digest, stated = model_digest(ref), (record.get("result") or {}).get("sha256")
            result = BuiltResult(ref, digest)
        else:
            from freehold.run.formats import open_lora

            digest, stated = open_lora(out).digest, (record.get("adapter") or {}).get("digest")
            result = BuiltResult(parent.ref, parent.model_digest, out, digest)
        if stated and digest != stated:
            raise UsageError(
                f"{out} was changed after it was made: its digest is {digest[:12]}, its receipt says {stated[:12]}",
                "delete it, and run the build again",
            )
        return result

    # --- what a result follows from ------------------------------------------------------------------

    def _inputs(self, stage: RecipeStage) -> dict[str, Any]:
        """Return all that a result's bits follow from, as plain values."""
        parent = self._results[stage.parent]
        report = stage.gate is not None and stage.gate.kld is not None
        return {
            "verb": stage.verb.name,
            "base": parent.model_digest,
            "parent": parent.adapter_digest,
            "continue": stage.continued,
            **_plain(stage.files, self._digest),
            **_plain(stage.settings, self._digest),
            **({"report": True} if report else {}),
            "freehold": __version__,
        }

    def _digest(self, name: str, value: Any) -> Any:
        """Return a value as a result follows from it: of files and models their digests."""
        if isinstance(value, Path):
            return file_digest(value)
        if name in ("reward", "check", "data", "calibrate") and value and not str(value).startswith(GYM):
            path = Path(str(value))
            return file_digest(path) if path.is_file() else value
        if name == "teacher":
            from freehold.run.formats import open_lora
            from freehold.run.store.naming import adapted

            named = adapted(self.store, value)
            own = open_lora(named.adapter).digest if named.adapter else ""
            return f"{model_digest(named.ref)}+{own}"
        return value

    def _out(self, stage: RecipeStage, inputs: Mapping[str, Any]) -> Path:
        return self.folder / f"{stage.name}-{text_digest(json.dumps(inputs, sort_keys=True))[:KEY]}"

    def _why(self, stage: RecipeStage, inputs: Mapping[str, Any], out: Path) -> str:
        """Say why a stage is run: it has no result yet, was interrupted, or what changed since the last time."""
        if os.path.lexists(part_of(out)):
            return "it was interrupted, and continues"
        before = [row["inputs"] for row in self._rows(STAGES) if row.get("stage") == stage.name]
        if not before:
            return "it has no result yet"
        was = before[-1]
        changed = [key for key in (*inputs, *was) if inputs.get(key) != was.get(key)]
        return f"changed: {', '.join(dict.fromkeys(changed))}" if changed else "its result is gone"

    # --- gates ---------------------------------------------------------------------------------------

    def _gate(self, stage: RecipeStage, result: BuiltResult, record: Mapping[str, Any]) -> GateResult | None:
        rule = stage.gate
        if rule is None:
            return None
        of_receipt = gate_of(record)
        shown = {"lost": of_receipt.lost, "divergence": of_receipt.divergence}
        if not rule.asks:
            return verdict(rule, None, **shown)
        early = verdict(rule, None, **shown)
        if not early.passed:  # known without asking an item
            return early
        marks, look = self._measured(stage, rule, result)
        return verdict(rule, marks, look=look, **shown)

    def _measured(self, stage: RecipeStage, rule: GateRule, result: BuiltResult) -> tuple[GateMarks, int]:
        """Return the marks of a gate's items, and which look at them this is."""
        task = MeasuredTask(rule.data, rule.limit, rule.style).opened(self.settings)
        other = self._results[rule.better_than] if rule.better_than else None
        key = self._gate_key(stage, rule, result)
        row = self._looked(stage, key)
        if row is not None and len(row["own"]) == len(task.items):
            return GateMarks(tuple(row["own"]), tuple(row["other"])), int(row["look"])
        look = int(row["look"]) if row is not None else self._next_look(stage, key)
        others: list[float] = []
        if other is not None:
            others = marks_of(task, GateSubject(other.ref, other.adapter), self.settings, self.store)
        total = len(task.items)
        own = marks_of(
            task,
            GateSubject(result.ref, result.adapter),
            self.settings,
            self.store,
            stop=lambda marks: hopeless(rule, marks, others, look, total),
            on_items=lambda done, total: self.watch.items(stage.name, done, total),
        )
        self._log(GATES, {"stage": stage.name, **key, "look": look, "own": own, "other": others})
        return GateMarks(tuple(own), tuple(others[: len(own)])), look

    def _gate_key(self, stage: RecipeStage, rule: GateRule, result: BuiltResult) -> dict[str, Any]:
        """Return what a look is of: a result, what it is compared with, and the items."""
        other = self._results[rule.better_than].digest if rule.better_than else ""
        data = f"{self._digest('data', rule.data)} {rule.limit or ''} {rule.style}".strip()
        return {"result": result.digest, "against": other, "data": data}

    def _looked(self, stage: RecipeStage, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the newest look at a result on these items."""
        rows = [row for row in self._looks(stage, key) if row["result"] == key["result"]]
        return next((row for row in reversed(rows) if row["against"] == key["against"]), None)

    def _looks(self, stage: RecipeStage, key: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [r for r in self._rows(GATES) if r.get("stage") == stage.name and r.get("data") == key["data"]]

    def _next_look(self, stage: RecipeStage, key: Mapping[str, Any]) -> int:
        """Return the number of a look: different results, or things compared with, that saw these items before."""
        return 1 + max((int(row["look"]) for row in self._looks(stage, key)), default=0)

    def _unmeasured(self, stage: RecipeStage, waiting: Mapping[str, str]) -> bool:
        """Tell whether a gate's items are still to be asked."""
        rule = stage.gate
        if rule is None or not rule.asks:
            return False
        if rule.better_than in waiting:
            return True
        return self._looked(stage, self._gate_key(stage, rule, self._results[stage.name])) is None

    def _check_apart(self, planned: list[PlannedStage]) -> None:
        """Raise UsageError where a gate's items are trained on, before anything is run."""
        texts: dict[str, list[str]] = {}
        for each in planned:
            rule, stage = each.stage.gate, each.stage
            if rule is None or not rule.asks or not each.gate:
                continue
            above = [one for one in self.recipe.above(stage) if one.verb.trains]
            self._check_files(stage, rule, above)
            for one in above:
                if one.name not in texts:
                    texts[one.name] = list(one.verb.reads(one.files, one.settings))
            task = MeasuredTask(rule.data, rule.limit, rule.style).opened(self.settings)
            for one in above:
                if held := trained_on(task, texts[one.name]):
                    numbers = ", ".join(str(overlap.test + 1) for overlap in held[:_SHOWN])
                    more = ", ..." if len(held) > _SHOWN else ""
                    raise UsageError(
                        f"the gate of {stage.name}: {len(held)} of {len(task.items)} items are trained on by "
                        f"{one.name} (items {numbers}{more})",
                        "remove them from one of the two; such items prove nothing",
                    )

    def _check_files(self, stage: RecipeStage, rule: GateRule, above: list[RecipeStage]) -> None:
        """Raise UsageError where a gate's file is one that a stage, or the base's own adapter, was trained on."""
        digest = self._digest("data", rule.data)
        for one in above:
            if digest in [value for name, value in _plain(one.files, self._digest).items() if name != "test"]:
                raise UsageError(
                    f"the gate of {stage.name}: {Path(rule.data).name} is trained on by {one.name}",
                    "name a file that no stage trains on",
                )
        base = self._results[BASE]
        record = receipt_of(base.adapter) if base.adapter else None
        trained = [str((record or {}).get("inputs", {}).get(key)) for key in ("data", "pairs", "prompts")]
        if digest in trained:
            raise UsageError(
                f"the gate of {stage.name}: the adapter of {self.recipe.base} was trained on {Path(rule.data).name}",
                "name a file that no stage trains on",
            )

    # --- files of the folder -------------------------------------------------------------------------

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a file of JSON lines; a line that a kill cut short is left out."""
        path = self.folder / name
        if not path.exists():
            return
        with on_disk(path):
            raw = read_bounded(path, MOST_LINES)
        for line in raw.splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row

    def _log(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a row; it is on disk when the call returns. Raises StoreError on a full disk."""
        path = self.folder / name
        text = json.dumps({**row, "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n"
        with on_disk(path), path.open("ab") as file:
            if file.tell() and not _ends_whole(path):
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _link(self, name: str, out: Path) -> None:
        """Have the link NAME lead to a result; a folder of that name, which is not ours, is left alone."""
        link = self.folder / name
        if link.exists() and not link.is_symlink():
            raise StoreError(f"{link} is not a link of this build", "move it, or name another folder with -o")
        if link.is_symlink() and os.readlink(link) == out.name:
            return
        beside = self.folder / f".{name}.new"
        with on_disk(link):
            beside.unlink(missing_ok=True)
            beside.symlink_to(out.name)
            beside.replace(link)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _plain(options: Any, digest: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Return the values of a class of options, files and models by their digests."""
    values = {name: getattr(options, name) for name in options.__dataclass_fields__}
    return {name: digest(name, value) for name, value in values.items()}
