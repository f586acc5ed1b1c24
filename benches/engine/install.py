"""Seconds from `pip install` of a wheel to the first token of a model that is already there, without a compiler.

`python benches/engine/install.py dist [--model smollm2:135m] [--python python3.13 ...] [--rounds 3]`. Each round has a
new virtual environment, made before the clock starts, and a PATH of that alone, so that nothing can be compiled. The
wheel comes from the folder, its dependencies from pip's configured index; `--wheels FOLDER` names a folder for those
too, and no network is used. pip is the one that Python brings, or with `--new-pip` the newest. Ends in one JSON line;
exit 1 where a median misses its target.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET_S = 10.0
PROMPT = "The capital of France is"


def first_token(command: list[str], env: dict[str, str]) -> float:
    """Run a model until its first bytes arrive; return when that was."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, bufsize=0, stdout=pipe, stderr=pipe) as run:
        assert run.stdout is not None and run.stderr is not None
        first = run.stdout.read(1)
        arrived = time.perf_counter()
        rest, said = run.communicate()
        if run.returncode or not first:
            raise SystemExit(f"error: {' '.join(command)}: {said.decode()[-500:]}")
    print("   ", (first + rest).decode().strip().replace("\n", " ")[:70], file=sys.stderr)
    return arrived


def processor_seconds() -> float:
    """Return what ended children have computed, which other programs of a busy machine change little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(python: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """Return the seconds of one installation, those to the first token after it, and the processor's of both."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "env"
        subprocess.run([python, "-m", "venv", str(home)], check=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        env |= {"PATH": str(home / "bin"), "FREEHOLD_OFFLINE": "1"}
        pip = [str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        if options.new_pip:
            subprocess.run([*pip, "--upgrade", "pip"], env=env, check=True)
        pip += ["--find-links", str(options.folder), "--only-binary", ":all:"]
        if options.wheels:
            pip += ["--no-index", "--find-links", str(options.wheels)]
        computed, start = processor_seconds(), time.perf_counter()
        subprocess.run([*pip, "freehold"], env=env, check=True)
        installed = time.perf_counter()
        ask = [str(home / "bin" / "freehold"), "run", options.model, PROMPT]
        arrived = first_token([*ask, "--raw", "--temperature", "0", "--max-tokens", "8"], env)
    return installed - start, arrived - installed, processor_seconds() - computed


def main() -> int:
    """Measure each Python, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of Freehold's wheels")
    parser.add_argument(
        "--wheels", type=Path, help="a folder of its dependencies' wheels, instead of an index"
    )
    parser.add_argument("--model", default="smollm2:135m", help="in the store already")
    parser.add_argument("--python", action="append", help="default: this one; may be repeated")
    parser.add_argument("--new-pip", action="store_true", help="upgrade pip first, before the clock starts")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    medians = {}
    for python in options.python or [sys.executable]:
        version = subprocess.run(
            [python, "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
        rounds = [measured(python, options) for _ in range(options.rounds)]
        install, run, computed = (statistics.median(part) for part in zip(*rounds, strict=True))
        whole = [parts[0] + parts[1] for parts in rounds]
        medians[version] = round(statistics.median(whole), 2)
        span = f"({min(whole):.1f} to {max(whole):.1f})"
        print(
            f"{version:<16}install {install:5.1f} s  run {run:4.1f} s  together {medians[version]:5.1f} s  {span}"
        )
        print(f"{'':<16}of these the processors computed {computed:.1f} s")
    load = os.getloadavg()[0]
    print(json.dumps({"model": options.model, "load": load, "target_s": TARGET_S, "first_token_s": medians}))
    return int(max(medians.values()) > TARGET_S)


if __name__ == "__main__":
    sys.exit(main())
