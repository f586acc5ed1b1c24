"""Workflows name what is here: targets of make, files, tools; and each job ends, with no more rights than it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

pytestmark = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in read(path)["jobs"].values():
        yield from job["steps"]


def test_actionlint_finds_nothing(path: Path) -> None:
    if shutil.which("actionlint") is None:
        pytest.skip("no actionlint on the PATH; the workflow ci runs it")
    done = subprocess.run(["actionlint", str(path)], capture_output=True, text=True)
    assert not done.returncode, done.stdout


def test_every_job_has_a_time_limit_and_reads_only_unless_it_says_more(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_a_checkout_leaves_no_token_for_the_code_that_runs_after_it(path: Path) -> None:
    checkouts = [s for s in steps(path) if s.get("uses", "").startswith("actions/checkout@")]
    assert all(s["with"]["persist-credentials"] is False for s in checkouts)


def test_commands_name_targets_and_files_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    for step in steps(path):
        for line in step.get("run", "").splitlines():
            if asked := re.match(r"make ([a-z]+)", line):
                assert asked[1] in targets, line
            for named in re.findall(r"\b(?:tools|tests|docs|requirements)/[\w./]+", line):
                assert (ROOT / named).exists(), line


def test_no_value_of_the_event_is_pasted_into_a_shell(path: Path) -> None:
    """An expression inside `run` is text of a stranger's choosing; env passes it as a value."""
    assert not [s["run"] for s in steps(path) if "${{" in s.get("run", "")]
