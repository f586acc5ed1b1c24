"""Compare predictions with published measurements: each group of rows by constants fitted without it.

`python benches/choose/published.py [--refit]`. For one user's answers it leaves out, with each source's rows on a
device, all rows of that source and all of that device; for many users' one model at a time. Prints the median error and
how often the claimed 80 % intervals held, then the same of unseen.csv, whose rows go into no fit, by source. `--refit`
writes src/freehold/choose/advisor/speeds.toml from all other rows. Ends in one JSON line; exit 1 when a claim fails.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from freehold.base import catalog  # noqa: E402
from freehold.base.catalog.hardware import rig  # noqa: E402
from freehold.choose.advisor import roofline  # noqa: E402
from freehold.choose.advisor.anatomy import Anatomy, from_catalogue  # noqa: E402
from freehold.choose.advisor.engines import device_class, documented, engine, forget  # noqa: E402
from freehold.choose.advisor.interval import Interval  # noqa: E402

DATA = Path(__file__).with_name("published")
SPEEDS = ROOT / "src" / "freehold" / "choose" / "advisor" / "speeds.toml"
TERMS = tuple(f.name for f in fields(roofline.Terms))
# Median error of tokens a second, at most, and how many of the intervals that say 80 % may hold.
CLAIMS = {
    ("one", "answer"): (0.14, 0.75, 0.85),
    ("many", "output"): (0.26, 0.75, 0.85),
    ("unseen", "answer"): (0.15, 0.75, 0.88),
}
# Where the search begins: seconds a piece, or times the ideal (1.5 for what is not named).
START = {
    "layers": 3e-5, "sparse": 1e-5, "reduces": 1e-5, "steps": 5e-4, "sequences": 2e-5, "arrival": 0.05,
    "unpack": 1.0, "queued": 0.1, "chunks": 0.3, "recurrent": 3e-5, "normed": 1e-5,
}  # fmt: skip
# Times the ideal at least: nothing beats 1, but a cache of 8 bits halves its bytes; pieces may cost nothing.
LEAST = {**dict.fromkeys(START, 0.0), "cache": 0.5, "own": 0.0}
CAP = 0.7  # |log| beyond which a row pulls no harder: off by a factor of two, it is not what it says it is
MANY = ["answer", "output", "prompt", "tpot", "ttft"]  # what many users' rows tell of
FEW = 4  # users up to which a row also tells of one user's prompt and answer

Key = tuple[str, str]  # engine, class of device
Column = tuple[str, frozenset[Key]]  # a term, and the speeds that share its factor


@dataclass(frozen=True)
class Row:
    """One measurement as a sum of terms."""

    group: str  # what is predicted together
    tags: frozenset[
        str
    ]  # rows that share one of them are left out together: the source, the device, the model
    key: Key
    vendor: str  # of the device
    what: str  # answer | prompt | many
    terms: tuple[float, ...]
    seconds: float  # measured, a step
    users: int = 1
    together: int = 1  # of them, those whose caches fit
    osl: int = 1
    bare: tuple[float, ...] = ()  # terms of the step after a prompt
    prompt_s: float = 0.0  # a prompt at the published rate
    chunks: float = 0.0  # that it is read in
    first_s: float = 0.0  # measured, to the first token


@dataclass(frozen=True)
class Fit:
    """Factors of columns, in the columns' order."""

    columns: tuple[Column, ...]
    values: np.ndarray

    def factors(self, key: Key) -> dict[str, float]:
        """Return what concerns one engine on one class of device."""
        return {c[0]: float(v) for c, v in zip(self.columns, self.values, strict=True) if key in c[1]}


# --- reading --------------------------------------------------------------------------------------


def table(name: str) -> list[dict[str, str]]:
    """Read a file of published rows; lines that begin with # say where they are from."""
    with (DATA / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@cache
def work(model: str, quant: str) -> Anatomy:
    """Weigh a catalogue model once."""
    return from_catalogue(catalog.model(model), quant)


def values(terms: roofline.Terms) -> tuple[float, ...]:
    """Return the terms as a row of numbers."""
    return tuple(getattr(terms, name) for name in TERMS)


def singles() -> list[Row]:
    """Return one user's rows whose weights fit the device; elsewhere layers run on a CPU, which is not predicted."""
    found = [_single(raw) for raw in table("single") + [r for r in table("figures") if _ours(r)]]
    return [row for row in found if row]


def _single(raw: dict[str, str]) -> Row | None:
    one, on, how = work(raw["model"], raw["quant"]), rig(raw["rig"]), engine(raw["engine"])
    if how.name not in ("llama.cpp", "mlx") or roofline.place(one, on, how, 1024).room <= 0:
        return None
    device, what = on.device.name.split(":")[0], raw.get("what", "answer")
    source = raw.get("source", f"llmfit, {device}")  # its users measured a device or two each
    read, tokens = int(raw["isl"]), int(raw["isl"]) + int(raw["osl"]) // 2  # half of the answer on average
    prompt = read if what == "prompt" else 0
    return Row(
        group=f"{source}, {device}, {how.name}",
        tags=frozenset({source, device}),
        key=(how.name, device_class(on.device)),
        vendor=on.device.vendor,
        what=what,
        terms=values(roofline.step(one, on, how, 1, tokens, prompt)),
        seconds=max(prompt, 1) / float(raw["value"]),
    )


def _ours(raw: dict[str, str]) -> bool:
    """Say whether a cited figure is one user's, of an engine that is fitted to such."""
    return raw["what"] in ("answer", "prompt") and raw["engine"] != "vllm"


def many(by: str = "model") -> list[Row]:
    """Return many users' rows of models that fit, to be left out by model or by device."""
    return [row for raw in table("serving") if (row := _served(raw, by)).together]


def _served(raw: dict[str, str], by: str) -> Row:
    one, on, how = work(raw["model"], raw["quant"]), rig(raw["rig"]), engine(raw["engine"])
    isl, osl, users = int(raw["isl"]), int(raw["osl"]), int(raw["concurrency"])
    together = min(users, roofline.place(one, on, how, isl + osl).streams)
    group = raw["model"] if by == "model" else on.device.name
    return Row(
        group=group,
        tags=frozenset({group}),
        key=(how.name, device_class(on.device)),
        vendor=on.device.vendor,
        what="many",
        terms=values(roofline.step(one, on, how, together, isl + osl // 2, isl, osl)),
        seconds=float(raw["tpot_ms"]) / 1e3,
        users=users,
        together=together,
        osl=osl,
        bare=values(roofline.step(one, on, how, together, isl)),
        prompt_s=roofline.prompt_s(one, on, how, isl),
        chunks=isl / roofline.CHUNK,
        first_s=float(raw["ttft_ms"]) / 1e3,
    )


# --- fitting --------------------------------------------------------------------------------------


def columns(keys: Sequence[Key], own: str, shared: str = "") -> tuple[Column, ...]:
    """Return the factors to fit: of each key its own, of all keys the shared."""
    mine = [(term, frozenset({key})) for term in own.split() for key in keys]
    return tuple(mine + [(term, frozenset(keys)) for term in shared.split()])


def one_columns(keys: Sequence[Key]) -> tuple[Column, ...]:
    """Share what one user's rows are too few to tell apart: pieces among GPUs and among Macs, experts by all.

    Norms on both sides cost Macs nothing that rows show.
    """
    gpus, macs = [k for k in keys if k[1] != "mac"], [k for k in keys if k[1] == "mac"]
    pieces = "layers sparse recurrent steps"
    return (
        columns(keys, "weights", "experts")
        + columns(gpus, "", f"unpack normed {pieces}")
        + columns(macs, "", pieces)
        + columns([("llama.cpp", "gpu"), ("llama.cpp", "mac")], "prompts")
    )


def many_columns(keys: Sequence[Key]) -> tuple[Column, ...]:
    """Share what belongs to devices more than to engines."""
    return columns(keys, "weights layers steps sequences prompts", "experts cache compute sparse reduces")


def matrix(rows: Sequence[Row], of: tuple[Column, ...], bare: bool = False) -> np.ndarray:
    """Return the terms of each row by column; 0 where the column is another key's."""
    terms = np.array([r.bare if bare else r.terms for r in rows])
    return terms[:, [TERMS.index(term) for term, _ in of]] * has(rows, of)


def known(rows: Sequence[Row], of: tuple[Column, ...], bare: bool = False) -> np.ndarray:
    """Return the seconds of terms whose factors are documented and not fitted."""
    free = {(key, term) for term, keys in of for key in keys}
    factors = {
        key: [0.0 if (key, t) in free else _documented(key, t) for t in TERMS]
        for key in {r.key for r in rows}
    }
    return np.array([np.dot(r.bare if bare else r.terms, factors[r.key]) for r in rows])


def _documented(key: Key, term: str) -> float:
    return documented()[key].factors.get(term, 0.0) if key in documented() else 0.0


def waits(rows: Sequence[Row], of: tuple[Column, ...], fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Return what the wait for a first token is made of, and the step it ends with.

    That is the prompt, those that came with it, the steps between its chunks, and the arrival.
    """
    steps = tuple(c for c in fit.columns if c[0] in TERMS)
    after = known(rows, steps, bare=True) + matrix(rows, steps, bare=True) @ fit.values[: len(steps)]
    read = np.array([r.prompt_s * fit.factors(r.key)["prompts"] for r in rows])
    others = np.array([r.together - 1 for r in rows])
    chunks = after * np.array([r.chunks for r in rows])
    made = {"own": read, "queued": read * others, "chunks": chunks, "arrival": np.ones(len(rows))}
    return np.stack([made[term] for term, _ in of], axis=1) * has(rows, of), after


def has(rows: Sequence[Row], of: tuple[Column, ...]) -> np.ndarray:
    """Say which columns concern which rows."""
    return np.array([[r.key in keys for _, keys in of] for r in rows])


def weights(rows: Sequence[Row]) -> np.ndarray:
    """Weigh rows so that a group counts by the root of its rows' number."""
    size = Counter(r.group for r in rows)
    found = np.array([size[r.group] ** -0.5 for r in rows])
    return found / found.sum()


def fitted(of: tuple[Column, ...], x: np.ndarray, y: np.ndarray, weight: np.ndarray, base: np.ndarray) -> Fit:
    """Return the factors with the least mean |log((base + x @ factors) / y)|, moving one at a time."""
    least = np.array([LEAST.get(term, 1.0) for term, _ in of])
    now = np.array([START.get(term, 1.5) for term, _ in of])
    total, y = base + x @ now, np.log(y)

    def loss(total: np.ndarray) -> float:
        return float(weight @ np.minimum(np.abs(np.log(total) - y), CAP))

    best, stride = loss(total), 0.4
    while stride > 0.01:
        before = best
        for i in range(len(now)):
            for factor in (1 + stride, 1 / (1 + stride)):
                new = max(now[i] * factor, least[i])
                trial = total + (new - now[i]) * x[:, i]
                if (found := loss(trial)) < best - 1e-9:
                    now[i], total, best = new, trial, found
        if before - best < 1e-4:
            stride /= 2
    return Fit(of, now)


@dataclass(frozen=True)
class Rows:
    """All rows of one kind, and how they are fitted and predicted."""

    kind: str  # one | many
    rows: Sequence[Row]

    def without(self, group: str) -> Rows:
        """Return those that share no source, device or model with a group's rows."""
        tags = frozenset[str]().union(*(r.tags for r in self.rows if r.group == group))
        return Rows(self.kind, [r for r in self.rows if not r.tags & tags])

    def of(self, key: Key) -> Rows:
        """Return those of one engine on one class of device."""
        return Rows(self.kind, [r for r in self.rows if r.key == key])

    def pairs(self) -> list[Key]:
        """Return the engines and classes of device."""
        return sorted({r.key for r in self.rows})

    def only(self, group: str) -> Rows:
        """Return those of a group."""
        return Rows(self.kind, [r for r in self.rows if r.group == group])

    def groups(self) -> list[str]:
        """Return the groups."""
        return sorted({r.group for r in self.rows})

    def fit(self) -> Fit:
        """Fit the steps; of many users' rows the waits for a first token too, where no request waits for a place."""
        rows, keys = self.rows, self.pairs()
        of = one_columns(keys) if self.kind == "one" else many_columns(keys)
        took = np.array([r.seconds for r in rows])
        steps = fitted(of, matrix(rows, of), took, weights(rows), known(rows, of))
        if self.kind == "one":
            return steps
        placed = [r for r in rows if r.together == r.users]
        wait = columns(keys, "own queued chunks arrival")
        made, after = waits(placed, wait, steps)
        found = fitted(wait, made, np.array([r.first_s for r in placed]), weights(placed), after)
        return Fit(of + wait, np.concatenate([steps.values, found.values]))

    def ratios(self, fit: Fit) -> dict[str, np.ndarray]:
        """Return measured over predicted of all that is predicted; NaN where a row does not tell."""
        rows, cut = self.rows, sum(term in TERMS for term, _ in fit.columns)
        tpot = known(rows, fit.columns[:cut]) + matrix(rows, fit.columns[:cut]) @ fit.values[:cut]
        took = np.array([r.seconds for r in rows])
        if self.kind == "one":
            kinds = np.array([r.what for r in rows])
            return {what: np.where(kinds == what, tpot / took, np.nan) for what in ("answer", "prompt")}
        made, after = waits(rows, fit.columns[cut:], fit)
        ttft = made @ fit.values[cut:] + after
        first, more = np.array([r.first_s for r in rows]), np.array([r.osl - 1 for r in rows])
        users, together = np.array([r.users for r in rows]), np.array([r.together for r in rows])
        few = np.where(users <= FEW, 1.0, np.nan)
        return {
            "tpot": took / tpot,
            "ttft": np.where(users == together, first / ttft, np.nan),
            "output": users / together * (ttft + more * tpot) / (first + more * took),
            "answer": few * tpot / took,
            "prompt": few * ttft / first,
        }


def held_out(rows: Rows) -> dict[str, dict[str, np.ndarray]]:
    """Return by what is predicted, and by group, the ratios of rows whose group no constant has seen."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for group in rows.groups():
        for what, ratios in rows.only(group).ratios(rows.without(group).fit()).items():
            if len(finite := ratios[~np.isnan(ratios)]):
                found.setdefault(what, {})[group] = finite
    return found


def bounds(ratios: Mapping[str, np.ndarray], rooted: bool, left_out: str = "") -> tuple[float, float]:
    """Return the tenth and the ninetieth of a hundred ratios, of all groups but one; see `shares`."""
    kept = {group: found for group, found in ratios.items() if group != left_out} or ratios
    flat, share = np.concatenate(list(kept.values())), shares(kept, rooted)
    order = np.argsort(flat)
    at = np.cumsum(share[order]) - share[order] / 2
    low, high = np.interp([0.1, 0.9], at, flat[order])
    return float(low), float(high)


def shares(ratios: Mapping[str, np.ndarray], rooted: bool) -> np.ndarray:
    """Return what each ratio counts; rooted: a group by the root of its rows' number, as in the fit.

    Who asks for one user's speed has a machine and a build of their own: the next group, not the next row.
    """
    found = np.concatenate([np.full(len(r), len(r) ** (-0.5 if rooted else 0.0)) for r in ratios.values()])
    return found / found.sum()


# --- what comes of it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """How good predictions were on rows that no constant had seen."""

    rows: int
    error: float  # median |predicted / measured - 1|
    within_half: float  # share of rows off by no more than 50 %
    coverage: float  # share within bounds that other groups' rows gave
    low: float  # bounds by all groups: measured over predicted
    high: float


def figures(ratios: Mapping[str, np.ndarray], rooted: bool) -> Figures:
    """Sum up one predicted thing: what each group's ratios are, and how many the other groups' bounds hold."""
    held = {}
    for group, found in ratios.items():
        low, high = bounds(ratios, rooted, group)
        held[group] = (found >= low) & (found <= high)
    return _figures(ratios, held, rooted)


def _figures(ratios: Mapping[str, np.ndarray], held: Mapping[str, np.ndarray], rooted: bool) -> Figures:
    flat = np.concatenate(list(ratios.values()))
    error = np.abs(1 / flat - 1)
    inside = np.concatenate([held[group] for group in ratios])
    coverage = float(shares(ratios, rooted) @ inside)
    half = float(np.mean(error <= 0.5))
    return Figures(len(flat), float(np.median(error)), half, coverage, *bounds(ratios, rooted))


def measure() -> dict[tuple[str, str], Figures]:
    """Return the figures of all that is predicted, by kind of rows; `many*` leaves out devices, not models.

    One user's come together, and by engine and class of device, each with bounds of its own.
    """
    found = _measure_one()
    for kind, rows in (("many", many()), ("many*", many("device"))):
        for what, ratios in held_out(Rows("many", rows)).items():
            found[kind, what] = figures(ratios, rooted=False)
    return found


def _measure_one() -> dict[tuple[str, str], Figures]:
    rows = Rows("one", singles())
    found: dict[tuple[str, str], Figures] = {}
    for what, ratios in held_out(rows).items():
        parts = {}
        for key in rows.pairs():
            if mine := {g: r for g, r in ratios.items() if g in rows.of(key).groups()}:
                parts[key] = figures(mine, rooted=True)
                found[" ".join(("one", *key)), what] = parts[key]
        together = _figures(ratios, {g: np.ones(len(r)) for g, r in ratios.items()}, rooted=True)
        count = sum(p.rows for p in parts.values())
        inside = sum(p.coverage * p.rows for p in parts.values()) / count
        found["one", what] = replace(together, coverage=inside)
    return found


def unseen() -> dict[str, Figures]:
    """Hold the kept constants against unseen.csv, by source and, under an empty name, together."""
    ratios: dict[str, list[float]] = {}
    held: dict[str, list[bool]] = {}
    for raw in table("unseen"):
        said, value = _said({**raw, "what": "answer"}), float(raw["value"])
        for name in ("", raw["source"]):
            ratios.setdefault(name, []).append(value / said.mid)
            held.setdefault(name, []).append(value in said)
    return {
        name: _figures({"all": np.array(found)}, {"all": np.array(held[name])}, rooted=False)
        for name, found in ratios.items()
    }


def cited() -> Figures:
    """Hold the kept constants against single figures that went into no fit: vLLM's and SGLang's."""
    ratios, held = [], []
    for raw in table("figures"):
        if _ours(raw):
            continue
        said, value = _said(raw), float(raw["value"])
        ratios.append(value / said.mid)
        held.append(value in said)
    return _figures({"all": np.array(ratios)}, {"all": np.array(held)}, rooted=False)


def _said(raw: dict[str, str]) -> Interval:
    """Return what is predicted of a cited figure, in its unit."""
    one, on, how = work(raw["model"], raw["quant"]), rig(raw["rig"]), engine(raw["engine"])
    isl, osl = int(raw["isl"]), int(raw["osl"])
    if raw["what"] == "answer":
        return roofline.single_stream(one, on, how, isl + osl // 2).answer
    served = roofline.serving(one, on, how, isl, osl, int(raw["users"]))
    return served.output if raw["what"] == "output" else served.tpot.times(1e3)


def missed(found: Mapping[tuple[str, str], Figures]) -> list[str]:
    """Return what does not hold of the claims."""
    said = []
    for key, (most, least_held, most_held) in CLAIMS.items():
        one, name = found[key], " ".join(key)
        if one.error > most:
            said.append(f"{name}: median error {one.error:.1%} > {most:.0%}")
        if not least_held <= one.coverage <= most_held:
            said.append(f"{name}: {one.coverage:.1%} of the 80 % intervals held")
    return said


def speeds_toml(found: Mapping[tuple[str, str], Figures]) -> str:
    """Write the factors fitted to all rows, and the bounds of rows that were left out."""
    lines = [
        "# Written by `python benches/choose/published.py --refit` from benches/choose/published/*.csv; not by hand."
    ]
    lines += ["# spread: measured over predicted; four of five left-out rows fell between."]
    for rows in (Rows("one", singles()), Rows("many", many())):
        fit = rows.fit()
        for key in rows.pairs():
            made = rows.of(key).rows
            factors = ", ".join(f"{k} = {v:.3g}" for k, v in fit.factors(key).items())
            lines += ["", "[[speed]]", f'engine = "{key[0]}"', f'on = "{key[1]}"', f'fit = "{rows.kind}"']
            tells = MANY if rows.kind == "many" else sorted({r.what for r in made})
            lines += [f"rows = {len(made)}", f"covers = {json.dumps(tells)}"]
            lines += [f"vendors = {json.dumps(sorted({r.vendor for r in made}))}"]
            lines += [f"factors = {{ {factors} }}"]
            if rows.kind == "one":
                own = {what: found[" ".join(("one", *key)), what] for what in tells}
                spread = ", ".join(f"{what} = [{f.low:.3f}, {f.high:.3f}]" for what, f in own.items())
                lines += [f"spread = {{ {spread} }}"]
    lines += ["", "[spread.many]"]
    lines += [f"{what} = [{f.low:.3f}, {f.high:.3f}]" for (kind, what), f in found.items() if kind == "many"]
    return "\n".join(lines) + "\n"


def _show(kind: str, what: str, f: Figures) -> None:
    print(
        f"{kind:<18}{what:<8}{f.rows:>6}{f.error:>8.1%}{f.within_half:>8.0%}{f.coverage:>11.1%}"
        f"  {f.low:.2f} to {f.high:.2f}"
    )


def main() -> int:
    """Measure, print, write where asked; return 1 when a claim fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--refit", action="store_true", help="write speeds.toml")
    args = parser.parse_args()
    found = measure()
    if args.refit:
        SPEEDS.write_text(speeds_toml(found), encoding="utf-8")
        forget()
    found["cited", "all"] = cited()
    by_source = unseen()
    found["unseen", "answer"] = by_source.pop("")
    print(
        f"{'rows':<18}{'what':<8}{'count':>6}{'error':>8}{'<=50 %':>8}{'80 % held':>11}  measured/predicted"
    )
    for (kind, what), f in found.items():
        _show(kind, what, f)
    for source, f in sorted(by_source.items(), key=lambda item: -item[1].rows):
        _show(f"  {source}", "answer", f)
    for line in (failed := missed(found)):
        print("missed:", line)
    print(json.dumps({f"{kind} {what}": asdict(f) for (kind, what), f in found.items()}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
