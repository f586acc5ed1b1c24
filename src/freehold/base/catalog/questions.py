"""Reads a question about models in the user's words: the conditions it gives, and the words that were not understood.

Tables of words (data/questions.toml, tasks.toml, the names of devices and models), matched from the left, the longest
phrase first. No word is dropped in silence: it is understood, filler, or listed as ignored. Knows no score and no
machine; choosing.py turns the question into an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from freehold.base.catalog import hardware
from freehold.base.catalog.benchmarks import Task, kinds, tasks
from freehold.base.catalog.entries import entries
from freehold.base.catalog.hardware import Rig, devices
from freehold.base.catalog.model import data_table
from freehold.base.catalog.models import models
from freehold.base.errors import UsageError

MOST_CHARS = 400  # of a question
_NAMED, _HINTED = 100, 1  # a word that names a kind of work outweighs any number that only go with it
_NUMBER = re.compile(r"(\d+(?:[.]\d+)?)(k|m|b|gb|gib|g)?")
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6}


@dataclass(frozen=True, slots=True)
class Question:
    """A question in parts. Empty and zero: it does not say."""

    text: str
    found: Task | None
    parts: tuple[Clause, ...]
    ignored: tuple[str, ...]
    unanswered: tuple[Unanswered, ...] = ()

    @property
    def task(self) -> Task:
        """The kind of work. Raises UsageError, with the kinds there are, where no word names one."""
        if self.asks_hardware:
            users = f" --users {self.users}" if self.users else ""
            raise UsageError(
                f"{self.text!r} asks what hardware {self.model} needs",
                f"freehold hardware {self.model}{users} answers that",
            )
        if self.found is not None:
            return self.found
        if self.unanswered:
            raise UsageError(self.unanswered[0].says, self.unanswered[0].hint)
        if self.model:
            raise UsageError(
                f"{self.text!r} names {self.model} and no kind of work",
                f"freehold why {self.model} says what is known of it, freehold fit and freehold license the rest; "
                f"kinds of work: {kinds()}",
            )
        raise UsageError(f"no word of {self.text!r} names a kind of work", f"say one of {kinds()}")

    def _values(self, what: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.value for p in self.parts if p.what == what))

    def _number(self, what: str) -> float:
        return max((float(v) for v in self._values(what)), default=0.0)

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-1 codes, and "mul" for several languages at once."""
        return self._values("language")

    @property
    def hardware(self) -> str:
        """What --on would be given; empty: this machine, or nothing was said."""
        return next((v for v in self._values("hardware") if v), "")

    @property
    def here(self) -> bool:
        """Whether it says this machine."""
        return any(p.what == "hardware" and not p.value for p in self.parts)

    @property
    def users(self) -> int:
        """How many ask at a time."""
        return int(self._number("users"))

    @property
    def context(self) -> int:
        """Tokens of a conversation; 0: the task's."""
        return int(self._number("context"))

    @property
    def max_params(self) -> float:
        """Billions of parameters at most; 0: any."""
        return self._number("size")

    @property
    def budget(self) -> float:
        """Dollars a month; 0: none was named."""
        return self._number("budget")

    @property
    def cheapest(self) -> bool:
        """Whether it asks for what costs least."""
        return bool(self._values("cheapest"))

    @property
    def private(self) -> bool:
        """Whether nothing may leave."""
        return bool(self._values("private"))

    @property
    def commercial(self) -> bool:
        """Whether it names a commercial purpose."""
        return bool(self._values("purpose"))

    @property
    def country_not(self) -> tuple[str, ...]:
        """ISO 3166 codes of countries where it must not be made."""
        return self._values("country_not")

    @property
    def subjects(self) -> tuple[str, ...]:
        """What the work is about."""
        return self._values("subject")

    @property
    def model(self) -> str:
        """The model that it names."""
        return next(iter(self._values("model")), "")

    @property
    def asks_hardware(self) -> bool:
        """Whether it asks which hardware a model needs, and for no model: in words, or by users of a model alone."""
        alone = bool(self.users) and self.found is None and not self.hardware
        return bool(self.model) and (bool(self._values("hardware needed")) or alone)


def question(text: str) -> Question:
    """Read a question. Raises UsageError where it is too long; a missing task is raised by `Question.task`."""
    if len(text) > MOST_CHARS:
        raise UsageError(f"a task of {len(text):,} characters is over {MOST_CHARS}", "say it in a few words")
    exact = next((t for t in tasks() if t.id == "-".join(text.lower().split())), None)
    if exact:
        return Question(text, exact, (Clause("task", exact.id, text),), ())
    parts, ignored = _read(atoms_of(text))
    task = _task(parts)
    kept = tuple(_settled(parts, task))
    unanswered = tuple(u for u in unanswerable() if any(p.what == u.name for p in kept))
    return Question(text, task, kept, tuple(dict.fromkeys(ignored)), unanswered)


def _read(atoms: list[str]) -> tuple[list[Clause], list[str]]:
    parts: list[Clause] = []
    ignored: list[str] = []
    at = 0
    while at < len(atoms):
        taken, clauses = _next(atoms, at)
        words = " ".join(atoms[at : at + taken])
        parts += [Clause(p.what, p.value, words, p.says) for p in clauses]
        if not taken:
            ignored.append(atoms[at])
        at += max(taken, 1)
    return parts, ignored


def _next(atoms: list[str], at: int) -> tuple[int, list[Clause]]:
    """Return how many words from `at` on are understood together, and as what; the longest reading wins."""
    best: tuple[int, list[Clause]] = (0, [])
    for reader in (_phrase, _counted_device, _rate, _quantity, _team):
        taken, clauses = reader(atoms, at)
        if taken > best[0]:
            best = taken, clauses
    return best


def _phrase(atoms: list[str], at: int) -> tuple[int, list[Clause]]:
    known = phrases()
    for length in range(min(LONGEST, len(atoms) - at), 0, -1):
        clauses = known.get(tuple(atoms[at : at + length]))
        if clauses is not None:  # filler says nothing
            return length, clauses
    return 0, []


def _counted_device(atoms: list[str], at: int) -> tuple[int, list[Clause]]:
    """Return a device with how many there are: 8 x h200, two 3090s, m4-max:64gb. A number may be its name: 4090."""
    words = tables()["numbers"]
    if at + 1 < len(atoms) and (atoms[at].isdigit() or atoms[at] in words):
        taken, name = _device(atoms, at + 1 + (atoms[at + 1] == "x"))
        if name:
            count = int(words.get(atoms[at]) or atoms[at])
            return taken - at, [Clause("hardware", name if count == 1 else f"{count}x{name}", "")]
    taken, name = _device(atoms, at)
    return (taken - at, [Clause("hardware", name, "")]) if name else (0, [])


def _device(atoms: list[str], start: int) -> tuple[int, str]:
    """Return where the device named from `start` on ends, and its name; empty: none is named there."""
    for length in range(min(LONGEST, len(atoms) - start), 0, -1):
        name = device_names().get(tuple(atoms[start : start + length]))
        if name:
            end = start + length
            sized = re.fullmatch(r"(\d+)gi?b", atoms[end]) if end < len(atoms) else None
            sizes = next(d.memories_gib for d in devices() if d.name == name)
            if sized and float(sized[1]) in sizes:
                name, end = f"{name}:{sized[1]}gb", end + 1
            return end, name
    return start, ""


def _rate(atoms: list[str], at: int) -> tuple[int, list[Clause]]:
    """Return an amount of a time: 100k a day, 20M tokens per month, 30 tokens/s. Neither a context nor users."""
    match = _NUMBER.fullmatch(atoms[at])
    if match is None or match[2] not in (None, "k", "m"):
        return 0, []
    for things in range(LONGEST - 2):
        end = at + 1 + things
        if any(c in "$0123456789" for word in atoms[at + 1 : end] for c in word):
            break  # the next amount begins
        end += atoms[end : end + 1] in (["a"], ["an"], ["per"], ["each"], ["every"])
        if atoms[end : end + 1] and atoms[end] in tables()["periods"]:
            says = (
                "a rate is not used here: --min-speed asks for a speed, freehold cost takes --tokens-per-day"
            )
            return end + 1 - at, [Clause("note", atoms[at], "", says)]
    return 0, []


def _quantity(atoms: list[str], at: int) -> tuple[int, list[Clause]]:
    """Return a number with its unit: users, tokens, pages, gigabytes, parameters, dollars."""
    match = _NUMBER.fullmatch(atoms[at].removeprefix("$"))
    if match is None:
        return 0, []
    number, suffix = float(match[1]), match[2] or ""
    rest = tuple(atoms[at + 1 : at + 3])
    if atoms[at].startswith("$") or rest[:1] in (("dollars",), ("usd",)):
        return _budget(atoms, at, number * _SCALE.get(suffix, 1.0))
    if not suffix and rest[:1] in (("gb",), ("gib",)):
        return _gigabytes(atoms, at, number, 2)
    if suffix in _SCALE:
        return _counted(number * _SCALE[suffix], suffix, rest)
    if suffix == "b":
        return 1 + (rest[:1] == ("parameters",)), [
            Clause("size", f"{number:g}", "", "at most this many billions")
        ]
    return _gigabytes(atoms, at, number, 1)


def _counted(number: float, suffix: str, rest: tuple[str, ...]) -> tuple[int, list[Clause]]:
    words = tables()
    for length in (2, 1):
        unit = " ".join(rest[:length])
        if unit in words["users"]:
            return 1 + length, [Clause("users", f"{number:.0f}", "", "who ask at the same time")]
        if unit in words["page"]["words"]:
            tokens = number * words["page"]["tokens"]
            return 1 + length, [Clause("context", f"{tokens:.0f}", "", f"{tokens:,.0f} tokens")]
    if rest[:1] in (("tokens",), ("token",), ("context",)):
        window = rest[1:] in (("context",), ("window",))
        return 2 + window, [Clause("context", f"{number:.0f}", "")]
    billions = {"billion": 1.0, "bn": 1.0}.get(rest[0] if rest else "", 0.0)
    if billions:
        return 2, [Clause("size", f"{number:g}", "", "at most this many billions")]
    if suffix:
        return 1, [Clause("context", f"{number:.0f}", "", f"{number:,.0f} tokens of context")]
    return 0, []


def _team(atoms: list[str], at: int) -> tuple[int, list[Clause]]:
    team = len(atoms) > at + 2 and atoms[at] in tables()["teams"] and atoms[at + 1] == "of"
    if team and atoms[at + 2].isdigit():
        unit = len(atoms) > at + 3 and atoms[at + 3] in tables()["users"]
        return 3 + unit, [Clause("users", f"{int(atoms[at + 2])}", "", "who ask at the same time")]
    return 0, []


def _budget(atoms: list[str], at: int, dollars: float) -> tuple[int, list[Clause]]:
    end = at + 1
    while end < len(atoms) and atoms[end] in ("dollars", "usd", "a", "per", "month", "monthly"):
        end += 1
    return end - at, [Clause("budget", f"{dollars:g}", "", "dollars of rent a month")]


def _gigabytes(atoms: list[str], at: int, number: float, taken: int) -> tuple[int, list[Clause]]:
    """Return hardware by its memory: a 16 GB laptop, a GPU with 24 GB."""
    words, end = tables(), at + taken
    while end < len(atoms) and atoms[end] in ("of", "memory", "ram"):
        end += 1
    taken, clauses = _phrase(atoms, end) if end < len(atoms) else (0, [])
    on = next((p for p in clauses if p.what == "hardware" and p.value), None)
    if on:
        name, says = _resized(on, number)
        return end + taken - at, [Clause("hardware", name, "", says)]
    if end < len(atoms) and (atoms[end] in words["gpu"]["words"]):
        return end + 1 - at, [gpu_part(number)]
    return end - at, [Clause("memory", f"{number:g}", "", "gigabytes of memory")]


def _resized(part: Clause, gib: float) -> tuple[str, str]:
    """Return a device in general words with the size that was named, and what it is taken as."""
    base = part.value.partition(":")[0]
    others = next(
        (place.get("others", ()) for place in tables()["hardware"] if place["on"] == part.value), ()
    )
    known = {d.name: d for d in devices()}
    device = known[base]
    sold = next((d for name in (base, *others) if gib in (d := known[name]).memories_gib), None)
    if sold is None:
        sizes = ", ".join(f"{m:g}" for m in device.memories_gib)
        return part.value, f"{part.says}; {device.title} is sold with {sizes} GB"
    return f"{sold.name}:{gib:g}gb", f"{sold.title}, with {gib:g} GB"


def rig(text: str) -> Rig:
    """Return the hardware that `text` names: as hardware.rig has it, or in a question's words: "macbook pro 16gb".

    Raises UsageError with the nearest known names, and for words that name this machine or any GPU.
    """
    try:
        return hardware.rig(text)
    except UsageError:
        description = question(text[:MOST_CHARS])
        any_gpu = set(tables()["gpu"]["words"]) & set(atoms_of(text))
        if any_gpu or description.ignored or [p.what for p in description.parts] != ["hardware"]:
            raise
        if description.here:
            raise UsageError(f"{text!r} is this machine", "this machine is the default") from None
        matched, size = hardware.rig(description.hardware), re.search(r"(\d+)\s*gi?b", text.lower())
        if size and float(size[1]) != matched.device.memory_gib:
            raise UsageError(f"{text!r}: {description.parts[0].says}", f"such as {matched.name}") from None
        return matched


# --- what is settled when all was seen --------------------------------------------------------------


def _task(parts: list[Clause]) -> Task | None:
    """Return the kind of work whose words weigh most; of a draw the earlier."""
    weights = {t.id: 0 for t in tasks()}
    for part in parts:
        if part.what in ("task", "hint"):
            for name in part.value.split():
                weights[name] += _NAMED if part.what == "task" else _HINTED
    best = max(tasks(), key=lambda t: weights[t.id])
    return best if weights[best.id] else None


def _settled(parts: list[Clause], task: Task | None) -> Iterator[Clause]:
    """Yield the parts, memory joined with the hardware, and task words by whether they are of the chosen kind."""
    memory = next((float(p.value) for p in parts if p.what == "memory"), 0.0)
    named = [p for p in parts if p.what == "hardware" and p.value]
    for part in parts:
        if part.what in ("task", "hint"):
            names = part.value.split()
            if task and task.id in names:
                yield Clause("task", task.id, part.words)
            elif part.what == "task":
                says = f"names the task {names[0]}; one task is ranked at a time"
                yield Clause("beside", names[0], part.words, says)
            else:
                yield Clause("matter", part.words, part.words)
        elif part.what == "hardware" and part.value and memory:
            name, says = _resized(part, memory)
            yield Clause("hardware", name, part.words, says)
        elif part.what == "memory" and not named:
            yield Clause("note", part.value, part.words, "memory of what? --on names hardware")
        elif part.what != "memory":
            yield part


# --- the words that questions about models are understood by ----------------------------------------
# Tables of data, names of devices and of models.

_ATOM = re.compile(r"[$]?[^\W_]+(?:[.][^\W_]+)*(?:[+]+)?")
LONGEST = 5  # words of a phrase
_TUNED = re.compile(r"-(instruct|chat|it|hf|bf16)+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Clause:
    """Something understood: `what` it is (task, language, hardware, ...), its value, and the words that said so."""

    what: str
    value: str
    words: str
    says: str = ""  # what it was taken as, or how it changes an answer, where that is not plain


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What no model is judged for, and the answer to it. `reads`: a modality that models can be asked to read."""

    name: str
    words: tuple[str, ...]
    says: str
    hint: str
    reads: str = ""


def atoms_of(text: str) -> list[str]:
    """Return the words: hyphens, slashes and colons part them, points inside do not; 8xh200 is three."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("×", "x"))  # 1,000
    plain = re.sub(r"(?<=\d)\s*[x*]\s*(?=[a-z])", " x ", plain)
    return _ATOM.findall(plain)


def gpu_part(gib: float = 0.0) -> Clause:
    """Return the usual GPU of a size; without one, the first of the table."""
    table = {float(k): v for k, v in tables()["gpu"].items() if k != "words"}
    if not gib:
        name = next(iter(table.values()))
        return Clause("hardware", name, "", f"which GPU is not said; taken as {name}, --on says otherwise")
    name = table.get(max((m for m in table if m <= gib), default=min(table)), "")
    return Clause("hardware", name, "", f"taken as {name}, --on says otherwise")


def tables() -> dict[str, Any]:
    """Return questions.toml."""
    return data_table("questions.toml")


def language_name(code: str) -> str:
    """Return a language's English name; the code where the tables have none."""
    if code == "mul":
        return "many languages"
    words = tables()["languages"].get(code)
    return words[0].capitalize() if words else code


def results_in(code: str) -> list[str]:
    """Return the benchmarks whose results are of a language, the closest first."""
    return [name for name, codes in tables()["results"].items() if code in codes]


@cache
def unanswerable() -> tuple[Unanswered, ...]:
    """Return what no model is judged for."""
    return tuple(
        Unanswered(u["name"], tuple(u["words"]), u["says"], u["hint"], u.get("reads", ""))
        for u in tables()["unanswered"]
    )


@cache
def device_names() -> Mapping[tuple[str, ...], str]:
    """Return the devices by the words of their names, in the plural too."""
    names: dict[tuple[str, ...], str] = {}
    for device in devices():
        for name in (device.name, *device.aliases):
            words = tuple(atoms_of(name))
            names[words] = device.name
            names.setdefault(tuple(atoms_of(f"{name}s")), device.name)
    return names


@cache
def phrases() -> Mapping[tuple[str, ...], list[Clause]]:
    """Return every known phrase and what it says."""
    words = tables()
    clauses: dict[tuple[str, ...], list[Clause]] = {}

    def add(phrase: str, part: Clause | None) -> None:
        known = clauses.setdefault(tuple(atoms_of(phrase)), [])
        known += [part] if part else []

    for phrase in words["filler"]:
        add(phrase, None)
    _add_plain(words, add)
    for one in tasks():
        for phrase in (*one.words, one.id):
            add(phrase, Clause("task", one.id, ""))
        for phrase in one.hints:
            add(phrase, Clause("hint", one.id, ""))
    for other in unanswerable():
        for phrase in other.words:
            add(phrase, Clause(other.name, other.name, "", other.says))
    for name, model_id in _model_names().items():
        clauses.setdefault(name, [Clause("model", model_id, "")])
    return {phrase: _joined(parts) for phrase, parts in clauses.items()}


def _add_plain(words: Mapping[str, Any], add: Callable[[str, Clause | None], None]) -> None:
    plain = {
        "private": Clause("private", "yes", "", "an open model on your own hardware sends no data out"),
        "cheapest": Clause("cheapest", "yes", ""),
        "commercial": Clause("purpose", "commercial", ""),
        "hardware_asked": Clause("hardware needed", "yes", ""),
    }
    for key, clause in plain.items():
        for phrase in words[key]:
            add(phrase, clause)
    for what, table in (("language", "languages"), ("country_not", "country_not"), ("subject", "subjects")):
        for code, phrases in words[table].items():
            for phrase in phrases:
                add(phrase, Clause(what, code, "", _SAYS.get(what, "")))
    for phrase, tokens in words["context"].items():
        add(phrase, Clause("context", f"{tokens}", "", f"{tokens:,} tokens"))
    for place in words["hardware"]:
        for phrase in place["words"]:
            add(phrase, Clause("hardware", place["on"], "", f"taken as {place['says']}"))
            if place["on"]:  # "this laptop" is the machine that is asked
                add(f"this {phrase}", Clause("hardware", "", "", "taken as this machine"))
    for phrase in words["gpu"]["words"]:
        add(phrase, gpu_part())


_SAYS = {
    "subject": "no published result of the catalogue is of this subject: measure your own cases with --try"
}


def _joined(parts: list[Clause]) -> list[Clause]:
    """Return a phrase's parts; the kinds of work it names as one."""
    others = [p for p in parts if p.what not in ("task", "hint")]
    for what in ("task", "hint"):
        names = " ".join(dict.fromkeys(p.value for p in parts if p.what == what))
        others += [Clause(what, names, "")] if names else []
    return others


@cache
def _model_names() -> Mapping[tuple[str, ...], str]:
    """Return models by the words of their names, with and without what says that they are tuned."""
    names: dict[tuple[str, ...], str] = {}
    for model in models():
        tail = model.id.rpartition("/")[2]
        for name in (tail, _TUNED.sub("", tail), model.name):
            words = tuple(atoms_of(name))
            known_apart = len(words) > 1 or any(c.isdigit() for word in words for c in word)
            if words and known_apart and len(words) <= LONGEST:
                names.setdefault(words, model.name or model.id)
    for entry in entries():
        if entry.default and any(c.isdigit() for c in entry.family):
            names.setdefault(tuple(atoms_of(entry.family)), entry.name)
    return names
