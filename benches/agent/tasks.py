"""Ten tasks by a real model: `python benches/agent/tasks.py MODEL... [--budget 60k tokens,4m] [--only WORDS] [--keep]`.

The tasks of tests/agent/tasks.py, each in a folder of its own, by `freehold agent` as a program, with --seed 1 and
temperature 0. By task: how the run ended, whether the folder is right, steps, tokens, the share of prompt tokens that
the prefix cache had from the third step on. Each run is then replayed without the model and undone, and its folder
compared with the one before. Ends in one JSON line a model. Path: tasks.py -> freehold agent -> replay -> undo
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.agent.tasks import TASKS, AgentTask  # noqa: E402


def main() -> None:
    """Run the tasks by each model."""
    parser = argparse.ArgumentParser(description="Ten tasks by real models.")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--budget", default="60k tokens, 4m")
    parser.add_argument("--only", default="", help="tasks whose name has these words")
    parser.add_argument("--keep", action="store_true", help="keep the folders, and print where they are")
    options = parser.parse_args()
    tasks = [task for task in TASKS if options.only in task.name]
    for model in options.models:
        rows = [row(model, task, options) for task in tasks]
        whole = {"model": model, "right": sum(r["right"] for r in rows), "of": len(rows), "tasks": rows}
        whole |= {name: all(r[name] for r in rows) for name in ("replayed", "undone")}
        print(json.dumps(whole))


def row(model: str, task: AgentTask, options: Any) -> dict[str, Any]:
    """Run one task; print and return what came of it."""
    above = Path(tempfile.mkdtemp(prefix="agent-"))
    folder = above / "folder"
    for path, text in task.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    before = contents(folder)
    words = [task.task, "--folder", str(folder), "-m", model, "--budget", options.budget]
    words += ["--seed", "1", "--temperature", "0", "--context", "8192", "--allow", "remove_file:*", "--json"]
    ended = freehold("agent", *words)
    try:
        report = json.loads(ended.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise SystemExit(f"{task.name}: {ended.stderr[-2000:]}") from None
    right = task.right(folder)
    lines = [
        json.loads(line) for line in freehold("agent", "show", report["run"], "--json").stdout.splitlines()
    ]
    late = [line for line in lines if line["kind"] == "answer"][2:]
    prompts, cached = (sum(line.get(f"{name}_tokens", 0) for line in late) for name in ("prompt", "cached"))
    out = {
        "task": task.name,
        "right": right,
        "end": report["reason"],
        "steps": report["steps"],
        "tokens": report["spent"]["tokens"],
        "seconds": round(report["spent"]["seconds"], 1),
        "cached": round(cached / prompts, 3) if prompts else None,
        "failed": sum(line.get("state") == "failed" for line in lines),
        "replayed": json.loads(freehold("agent", "replay", report["run"], "--json").stdout)["same"],
    }
    freehold("agent", "undo", report["run"])
    out["undone"] = contents(folder) == before
    print(" ".join(f"{name}={value}" for name, value in out.items()), flush=True)
    if options.keep:
        print(f"  {above}, run {report['run']}: {report['text'][:200]!r}", flush=True)
    return out


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return what a folder has: by path, the bytes of a file, None of a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))
    }


def freehold(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program with this tree's source."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "freehold.cli.main", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, check=False
    )


if __name__ == "__main__":
    main()
