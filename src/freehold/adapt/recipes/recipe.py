"""A recipe: the stages that make a model, in a file of TOML; every mistake is reported with its line.

    base = "smollm2:135m"
    [examples]  verb = "finetune"   data = "cold.jsonl"
    [rewards]   verb = "reinforce"  from = "examples"  reward = "rg:needle_haystack"  steps = 60
                gate = {data = "unseen.jsonl", better_than = "examples", p = 0.05, forgets_at_most = 2}

The other keys of a stage are its verb's options (verbs.py). Paths begin at the recipe's folder. Knows files and
options; builds nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, cast

from freehold.adapt.recipes.verbs import GYM, VERBS, StageVerb, key_name
from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.base.options import FieldOption, option, options_of, size_of
from freehold.base.regular import read_bounded
from freehold.route.router.toml.table import Mistake, Mistakes, TomlTable, line_numbers, shown

MOST_BYTES = 1 << 20
MOST_STAGES = 64
BASE = "base"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_OWN = ("verb", "from", "continue", "gate")
_EXAMPLE = 'base = "smollm2:135m", then [examples] with verb = "finetune" and data = "cold.jsonl"'


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """What a stage's result must show on items that were not trained on."""

    data: str = option("", "Held-out items: FILE.jsonl, or a task of `freehold eval`.")
    limit: int | None = option(None, "Only the first N items.", least=1)
    style: str = option("", "Form of the prompts, as in `freehold eval`.")
    better_than: str = option("", "A stage, or `base`, that the result must beat on these items.")
    p: float = option(
        0.05, "The chance of passing where nothing was learnt is at most this.", above=0, most=0.5
    )
    at_least: float | None = option(None, "The share's lower 95% bound must reach this.", above=0, most=1)
    forgets_at_most: int | None = option(None, "Facts that the base knew and the result does not.", least=0)
    kld: float | None = option(
        None, "Divergence of a model file from its source, in nats per token.", above=0
    )

    @property
    def asks(self) -> bool:
        """Whether items are answered for it."""
        return bool(self.better_than) or self.at_least is not None


@dataclass(frozen=True, slots=True)
class RecipeStage:
    """One stage. `files`, `settings`: instances of its verb's classes. `parent`: a stage's name, or `base`."""

    name: str
    verb: StageVerb
    parent: str
    continued: bool
    files: Any
    settings: Any
    gate: GateRule | None

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that are built before this one."""
        names = (self.parent, self.gate.better_than if self.gate else "")
        return tuple(dict.fromkeys(name for name in names if name and name != BASE))


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """A file, read and checked. `stages` are in the order in which they are built."""

    path: Path
    base: str
    stages: Mapping[str, RecipeStage]

    def until(self, target: str) -> list[RecipeStage]:
        """Return a stage and those that it needs, in order; all stages for "". Raises UsageError for another name."""
        if not target:
            return [*self.stages.values()]
        if target not in self.stages:
            raise UsageError(f"{self.path} has no stage {target!r}", suggestion(target, [*self.stages]))
        wanted = {target}
        for stage in reversed([*self.stages.values()]):  # a stage comes after those that it needs
            if stage.name in wanted:
                wanted |= set(stage.needs)
        return [stage for stage in self.stages.values() if stage.name in wanted]

    def above(self, stage: RecipeStage) -> Iterator[RecipeStage]:
        """Yield a stage and its ancestors, the nearest first."""
        while True:
            yield stage
            if stage.parent == BASE:
                return
            stage = self.stages[stage.parent]


class BadRecipe(UsageError):
    """A recipe that is not sound. `mistakes` holds all of them, in the file's order."""

    def __init__(self, path: Path, mistakes: Sequence[Mistake]) -> None:
        first = mistakes[0]
        if len(mistakes) == 1:
            super().__init__(f"{path}: {first}", first.hint)
        else:
            lines = "".join(f"\n  {each}" + (f" ({each.hint})" if each.hint else "") for each in mistakes)
            super().__init__(f"{path} has {len(mistakes)} mistakes:{lines}")
        self.mistakes = tuple(mistakes)


def read_recipe(path: Path) -> ModelRecipe:
    """Read a file. Raises BadRecipe with every mistake, UsageError for a file that cannot be read."""
    text = _text(path)
    try:
        values = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, InvalidOperation, RecursionError) as e:
        raise UsageError(f"{path} is not TOML: {str(e)[:100]}", f"a recipe begins with {_EXAMPLE}") from None
    mistakes = Mistakes(line_numbers(text))
    top = TomlTable(mistakes, (), values)
    base = top.text(BASE)
    top.need(BASE, "the recipe has no base", f"write {_EXAMPLE}")
    names = [name for name, value in values.items() if isinstance(value, dict)]
    stages = {}
    for name in names:
        table = top.table(name)
        if table is not None and (stage := _stage(name, table, names, path.absolute().parent)) is not None:
            stages[name] = stage
    top.end()
    if not names:
        mistakes.add((), "the recipe has no stage", f"write {_EXAMPLE}")
    if len(names) > MOST_STAGES:
        mistakes.add((), f"{len(names)} stages; at most {MOST_STAGES}", "split the recipe")
    if not mistakes.noted:
        stages = _ordered(stages, mistakes)
    if mistakes.noted:
        raise BadRecipe(path, sorted(set(mistakes.noted)))
    return ModelRecipe(path, base, stages)


def _text(path: Path) -> str:
    hint = f"name a recipe: {_EXAMPLE}"
    try:
        return read_bounded(path, MOST_BYTES).decode("utf-8").replace("\r\n", "\n")
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror or e}", hint) from None
    except ValueError as e:
        raise UsageError(f"{path} is not a text: {str(e)[:80]}", hint) from None


# --- one stage ---------------------------------------------------------------------------------------


def _stage(name: str, table: TomlTable, names: Sequence[str], folder: Path) -> RecipeStage | None:
    if not _NAME.fullmatch(name) or name == BASE:
        table.bad("", f"{shown(name)} cannot name a stage", "letters, digits, _ and -, 40 at most")
    verb = VERBS.get(table.choice("verb", tuple(VERBS)))
    table.need("verb", "the stage has no verb", f"one of: {', '.join(VERBS)}")
    parent = table.text("from") or BASE
    if parent != BASE and parent not in names:
        table.mistakes.unknown((*table.path, "from"), "stage", parent, names, f"stages: {', '.join(names)}")
    continued = table.flag("continue")
    gate = _gate(table, verb, names, folder)
    if verb is None:
        return None  # its other keys cannot be checked
    if continued and verb.makes != "adapter":
        table.bad("continue", f"{verb.name} trains no adapter", "leave it out")
    files = _options(table, verb.files, folder)
    settings = _options(table, verb.settings, folder)
    if verb.name == "eval" and files is not None:
        _check_task(table, files.data, folder)
    known = [key_name(kind, each) for kind in (verb.files, verb.settings) for each in options_of(kind)]
    table.skip(*known, *_OWN)
    table.end()
    if files is None or settings is None:
        return None
    placed = (_in_folder(files, folder), _in_folder(settings, folder))
    return RecipeStage(name, verb, parent, continued, *placed, gate)


def _in_folder(options: Any, folder: Path) -> Any:
    """Return options whose texts that name a file begin at the recipe's folder: verifiers, tasks, calibration."""
    changed = {
        each: str(folder / text)
        for each in ("reward", "check", "data", "calibrate")
        if isinstance(text := getattr(options, each, None), str)
        and text
        and not text.startswith(GYM)
        and (folder / text).is_file()
    }
    return replace(options, **changed)


def _gate(table: TomlTable, verb: StageVerb | None, names: Sequence[str], folder: Path) -> GateRule | None:
    inside = table.table("gate")
    if inside is None:
        return None
    before = len(table.mistakes.noted)
    rule = cast("GateRule | None", _options(inside, GateRule, Path()))
    inside.skip(*(key_name(GateRule, each) for each in options_of(GateRule)))
    inside.end()
    if rule is None or len(table.mistakes.noted) > before:
        return None
    if rule.better_than and rule.better_than not in (BASE, *names):
        path = (*inside.path, "better_than")
        inside.mistakes.unknown(
            path, "stage", rule.better_than, names, f"{BASE}, or one of: {', '.join(names)}"
        )
    if rule.asks and not rule.data:
        inside.bad("", "the gate has no items", 'data = "unseen.jsonl": items that no stage trains on')
    _check_task(inside, rule.data, folder)
    if rule.data and not rule.asks:
        inside.bad("data", "nothing is required of these items", 'better_than = "base", or at_least = 0.8')
    if not rule.asks and rule.forgets_at_most is None and rule.kld is None:
        inside.bad("", "the gate requires nothing", "better_than, at_least, forgets_at_most or kld")
    if verb is not None and rule.kld is not None and verb.makes != "model":
        inside.bad("kld", f"{verb.name} writes no model file to compare with its source", "leave it out")
    if verb is not None and rule.forgets_at_most is not None and not verb.trains:
        inside.bad(
            "forgets_at_most", f"{verb.name} does not train, so it counts no facts", "use kld, or data"
        )
    return cast("GateRule", _in_folder(rule, folder))


def _check_task(table: TomlTable, data: str, folder: Path) -> None:
    """Note items that are neither a file nor a task."""
    from freehold.adapt.evals.tasks import KNOWN

    if data and data.partition(":")[0] not in KNOWN and not (folder / data).is_file():
        hint = f"paths begin at {folder}; tasks: humaneval, ifeval, bfcl:simple_python, rg:DATASET"
        table.bad("data", f"{shown(data)} is neither a file nor a task", hint)


def _options(table: TomlTable, kind: type, folder: Path) -> Any:
    """Return an instance of a class of options with a table's values; None where one is wrong or missing."""
    values: dict[str, Any] = {}
    before = len(table.mistakes.noted)
    for name, declared in options_of(kind).items():
        key = key_name(kind, name)
        if not table.has(key):
            if declared.required:
                table.bad(key, f"{key} is missing", declared.help)
            continue
        if (value := _value(table, key, declared, folder)) is not None:
            values[name] = value
    if len(table.mistakes.noted) > before:
        return None
    try:
        return kind(**_derived(kind, values))
    except UsageError as e:
        table.bad(e.field, e.message.removeprefix(f"{e.field}: "), e.hint)
        return None


def _derived(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Add what the command line derives too: alpha, twice the rank, and bfloat16 where it is faster."""
    known = {each.name for each in fields(kind)}
    if "alpha" in known and "rank" in values:
        values = {**values, "alpha": 2.0 * values["rank"]}
    if "half" in known and "half" not in values:
        from freehold.adapt.training.trainee import half_helps

        values = {**values, "half": half_helps()}
    return values


def _value(table: TomlTable, key: str, declared: FieldOption, folder: Path) -> Any:
    """Return a key's value as its option takes it; None where it is wrong, which is noted."""
    kind = declared.kind.removesuffix(" | None")
    if kind == "bool":
        return table.flag(key)
    if declared.form == "file":
        return _file(table, key, folder)
    if declared.form == "size":
        return _size(table, key)
    if kind == "int":
        value: Any = table.value(key, int)
    elif kind == "float":
        number = table.number(key)
        value = None if number is None else float(number)
    else:
        value = table.text(key) or None
    if value is None:
        return None
    try:
        declared.check(value)
    except UsageError as e:
        table.bad(key, e.message.partition(": ")[2], e.hint)
        return None
    return value


def _file(table: TomlTable, key: str, folder: Path) -> Path | None:
    text = table.text(key)
    if not text:
        return None
    path = folder / text
    if "\0" in text or not path.is_file():
        table.bad(key, f"there is no file {shown(text)}", f"paths begin at {folder}")
        return None
    return path


def _size(table: TomlTable, key: str) -> int | None:
    value = table.value(key, int, str)
    if value is None:
        return None
    size = size_of(str(value))
    if not size:
        table.bad(key, f"{shown(value)} is not a size", 'write "400MB", "1.2GB" or "900MiB"')
    return size or None


# --- the order of stages -----------------------------------------------------------------------------


def _ordered(stages: Mapping[str, RecipeStage], mistakes: Mistakes) -> dict[str, RecipeStage]:
    """Return stages so that each comes after those it needs; note a circle, and a parent that makes nothing."""
    order: dict[str, RecipeStage] = {}
    way: list[str] = []

    def visit(name: str) -> None:
        if name in order or mistakes.noted:
            return
        if name in way:
            circle = [*way[way.index(name) :], name]
            key = "from" if stages[way[-1]].parent == name else "gate"
            problem = f"the stages need each other in a circle: {' -> '.join(circle)}"
            mistakes.add((way[-1], key), problem, 'start one of them from "base" or an earlier stage')
            return
        way.append(name)
        for each in stages[name].needs:
            visit(each)
        way.pop()
        order[name] = stages[name]

    for name, stage in stages.items():
        visit(name)
        if stage.continued and not _adapted(stages, stage.parent):
            mistakes.add((name, "continue"), f"{stage.parent} has no adapter to continue", "leave it out")
    return order


def _adapted(stages: Mapping[str, RecipeStage], name: str) -> bool:
    """Whether a stage's result has an adapter; of the base only its name in the recipe says it."""
    seen: set[str] = set()
    while name != BASE and name not in seen:
        seen.add(name)
        if stages[name].verb.makes != "report":
            return stages[name].verb.makes == "adapter"
        name = stages[name].parent
    return name == BASE
