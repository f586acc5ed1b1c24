"""Embeddings of all-minilm:22m beside sentence-transformers on torch: one text at a time, and 32 together.

    python benches/engine/embeddings.py [--rounds 7]

Each peer runs in processes of its own, one for each number of threads; the best number is found for each workload
first. Rounds alternate: in each, every workload is done by both, one right after the other. Vectors are compared before
any time is taken. Ends in one JSON line; exit 1 below TARGET, or when vectors are further apart than APART.
Path: embeddings.py -> peer_embeddings.py in the peer's environment
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benches.lib.environments import DRIVERS, NotInstalled, environment  # noqa: E402

MODEL = "all-minilm:22m"
OURS, THEIRS = "freehold", "sentence-transformers"
TARGET, APART = 2.0, 1e-4
TIMES = {1: 24, 32: 2}  # runs of one round, by batch
WORDS = (ROOT / "tests" / "vectors" / "text.txt").read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class Workload:
    """So many texts at once, of so many words each."""

    name: str
    batch: int
    shortest: int
    longest: int

    def texts(self, seed: int) -> list[str]:
        """Cut texts out of the test text, other ones for every seed."""
        draw = random.Random(f"{self.name} {seed}")
        out = []
        for _ in range(self.batch):
            count = draw.randint(self.shortest, self.longest)
            at = draw.randrange(max(len(WORDS) - count, 1))
            out.append(" ".join(WORDS[at : at + count]))
        return out


WORKLOADS = (
    Workload("1 sentence", 1, 8, 16),
    Workload("1 passage", 1, 80, 100),
    Workload("32 sentences", 32, 8, 16),
    Workload("32 of 5 to 150 words", 32, 5, 150),
    Workload("32 of 90 words", 32, 90, 90),
)


class Peer:
    """A process that embeds."""

    def __init__(self, name: str, python: Path, folder: Path, threads: int) -> None:
        script = str(DRIVERS / "peer_embeddings.py")
        self.name, self.threads = name, threads
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            [str(python), script, name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        )
        self.version: str = self._read()["version"]

    def vectors(self, texts: list[str]) -> list[list[float]]:
        return self._ask(texts=texts, vectors=True)["vectors"]

    def seconds(self, texts: list[str], times: int) -> float:
        """Return the median seconds of embedding `texts`."""
        return statistics.median(self._ask(texts=texts, times=times)["seconds"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = self._said.read().strip().rpartition("\n")[2]
            raise SystemExit(f"{self.name} ended ({self._process.returncode}) before it answered: {last}")
        return json.loads(line)


def furthest(ours: Peer, theirs: Peer) -> float:
    """Return the greatest one-minus-cosine of all workloads' texts."""
    worst = 0.0
    for workload in WORKLOADS:
        texts = workload.texts(0)
        for a, b in zip(ours.vectors(texts), theirs.vectors(texts), strict=True):
            dot, aa, bb = (sum(x * y for x, y in zip(p, q, strict=True)) for p, q in ((a, b), (a, a), (b, b)))
            worst = max(worst, 1 - dot / (aa * bb) ** 0.5)
    return worst


def best(peers: list[Peer], workload: Workload) -> Peer:
    """Return the peer whose number of threads is fastest at a workload."""
    texts = workload.texts(0)
    for peer in peers:
        peer.seconds(texts, 2)
    return min(peers, key=lambda peer: peer.seconds(texts, 2 * TIMES[workload.batch]))


def measured(pairs: dict[str, tuple[Peer, Peer]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return each workload's seconds, ours and theirs, round by round."""
    out: dict[str, list[tuple[float, float]]] = {w.name: [] for w in WORKLOADS}
    for number in range(1, rounds + 1):
        for workload in WORKLOADS:
            texts = workload.texts(number)
            both = [peer.seconds(texts, TIMES[workload.batch]) for peer in pairs[workload.name]]
            out[workload.name].append((both[0], both[1]))
    return out


@dataclass(frozen=True)
class Machine:
    """What the work is measured against: int16 operations a second, and those of a token before attention."""

    cpu: str
    commit: str
    gops: float
    token_gop: float

    @staticmethod
    def of(folder: Path, cores: int) -> Machine:
        """Measure this one; a dot of int16 pairs does half the operations of one of int8 quads."""
        from freehold import _native as native
        from freehold.base.machine import cpu_name
        from freehold.run.models.load import load_model

        weights = load_model(folder, tokens=_tokenizer(folder).vocab_size).weights_per_token
        gops = max(native.measure_int8_gops(n) for n in range(1, cores + 1)) / 2
        git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
        return Machine(cpu_name(), commit, gops, 2 * weights / 1e9)


def _tokenizer(folder: Path) -> Any:
    from freehold.run.tokenizer import tokenizer_from_dir

    return tokenizer_from_dir(folder)


@dataclass(frozen=True)
class Row:
    """One workload's outcome: texts a second of both, tokens a second of ours, theirs over ours in seconds."""

    workload: Workload
    threads: tuple[int, int]
    rates: tuple[float, float]
    tokens_s: float
    ratio: tuple[float, float, float]  # median, least, greatest

    @staticmethod
    def of(
        workload: Workload, pair: tuple[Peer, Peer], seconds: list[tuple[float, float]], tokenizer: Any
    ) -> Row:
        """Sum up the rounds."""
        ours, theirs = ([workload.batch / s for s in column] for column in zip(*seconds, strict=True))
        read = (sum(len(tokenizer.encode(t)) for t in workload.texts(n)) for n in range(1, len(seconds) + 1))
        tokens = [count / s for count, (s, _) in zip(read, seconds, strict=True)]
        ratios = [b / a for a, b in seconds]
        return Row(
            workload,
            (pair[0].threads, pair[1].threads),
            (statistics.median(ours), statistics.median(theirs)),
            statistics.median(tokens),
            (statistics.median(ratios), min(ratios), max(ratios)),
        )

    def line(self, machine: Machine) -> str:
        """Write it for a reader."""
        share = self.tokens_s * machine.token_gop / machine.gops
        (ours, theirs), (n, m), (mid, low, high) = self.rates, self.threads, self.ratio
        return (
            f"{self.workload.name:<22}{OURS} {ours:>8.1f} ({n} threads, {self.tokens_s:,.0f} tok/s, {share:.0%} of "
            f"the ceiling)  {THEIRS} {theirs:>8.1f} ({m} threads)  we are {mid:.2f}x ({low:.2f} to {high:.2f})"
        )

    def record(self) -> dict[str, Any]:
        """Give it for the JSON line."""
        return {
            "texts_s": [round(r, 2) for r in self.rates],
            "tokens_s": round(self.tokens_s),
            "threads": self.threads,
            "ratio": [round(r, 3) for r in self.ratio],
        }


def contest(folder: Path, cores: int, rounds: int) -> tuple[float, list[Row], dict[str, str]]:
    """Return how far vectors are apart, a row for each workload, and the peers' versions. Raises NotInstalled."""
    pythons = {OURS: Path(sys.executable), THEIRS: environment("sentence_transformers")}
    counts = range(1, cores + 1)
    ours, theirs = ([Peer(name, python, folder, n) for n in counts] for name, python in pythons.items())
    try:
        apart = furthest(ours[-1], theirs[-1])
        pairs = {w.name: (best(ours, w), best(theirs, w)) for w in WORKLOADS}
        seconds = measured(pairs, rounds)
    finally:
        for peer in (*ours, *theirs):
            peer.close()
    tokenizer = _tokenizer(folder)
    rows = [Row.of(w, pairs[w.name], seconds[w.name], tokenizer) for w in WORKLOADS]
    return apart, rows, {OURS: ours[0].version, THEIRS: theirs[0].version}


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    from freehold.base.config import load_settings
    from freehold.run.store import Store

    folder = Store(load_settings()).pull(MODEL).path
    cores = len(os.sched_getaffinity(0))
    machine = Machine.of(folder, cores)
    try:
        apart, rows, versions = contest(folder, cores, rounds)
    except NotInstalled as why:
        print(f"{THEIRS}: {why}", file=sys.stderr)
        return 1
    print(f"{MODEL} on {machine.cpu}, commit {machine.commit}, {rounds} rounds; texts a second")
    print(f"ceiling: {machine.gops:.0f} G int16 operations a second; {machine.token_gop * 1e3:.1f} M a token")
    for row in rows:
        print(row.line(machine))
    print(f"vectors are within {apart:.1e} of theirs, as one minus cosine; {APART:.0e} is asked")
    record = {"bench": "embeddings", "cpu": machine.cpu, "commit": machine.commit, "versions": versions}
    record |= {"apart": apart, "ceiling_gops": round(machine.gops, 1), "rounds": rounds}
    print(json.dumps({**record, "workloads": {row.workload.name: row.record() for row in rows}}))
    slow = [row.workload.name for row in rows if row.ratio[0] < TARGET]
    if slow:
        print(f"below {TARGET:g}x: {', '.join(slow)}", file=sys.stderr)
    return int(bool(slow) or apart > APART)


if __name__ == "__main__":
    sys.exit(main())
