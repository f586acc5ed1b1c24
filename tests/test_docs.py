"""What the documentation says is run: commands, Python, examples; generated pages equal the program.

A fenced block of `sh` or `python` runs with a fresh home, unless the line after (or before) it says why not:
`<!-- not run: REASON -->`, or `<!-- model -->` for one that needs real weights and runs under `-m model`, or
`<!-- server -->` for one that asks a server at ADDRESS: it runs under `-m model` beside one that holds MODEL, or
`<!-- continues -->` for one that runs in the folder of the `model` block before it, after that.
A block that names RECORDING finds a short one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from filelock import FileLock

from freehold.base import catalog
from freehold.choose.advisor import machine

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "reference"),
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCK = re.compile(r"(?:^(<!--.*?-->)\n)?^```(\w+)\n(.*?)^```$(?:\n(<!--.*?-->))?", re.M | re.S)
NOT_RUN = re.compile(r"<!-- not run: \S.*-->")
ADDRESS, MODEL = "http://127.0.0.1:11435", "smollm2:135m"
RECORDING = "talk.wav"
RUN, SHOWN = ("sh", "python"), ("text", "json", "toml", "cpp")


@dataclass(frozen=True)
class Block:
    """A fenced block and where it stands."""

    page: str
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            before, language, body, after = match.groups()
            line = text.count("\n", 0, match.start(2)) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, language, body, after or before or ""))
    return found


ALL = blocks()
FAST = [b for b in ALL if b.language in RUN and not b.mark]
WITH_SERVER = [b for b in ALL if b.language in RUN and b.mark == "<!-- server -->"]
MODEL_MARK, CONTINUES = "<!-- model -->", "<!-- continues -->"


def continued(listed: list[Block]) -> list[Block]:
    """Return the blocks that need a model, each with those that continue it."""
    joined: list[Block] = []
    for block in listed:
        if block.language in RUN and block.mark == MODEL_MARK:
            joined.append(block)
        elif block.language in RUN and block.mark == CONTINUES:
            before = joined[-1]
            assert (before.page, before.language) == (block.page, "sh"), f"{block} continues nothing"
            python = f"python -W error - <<'BLOCK'\n{block.text}BLOCK\n"
            joined[-1] = replace(
                before, text=before.text + (block.text if block.language == "sh" else python)
            )
    return joined


WITH_MODEL = continued(ALL)


def run(block: Block, env: dict[str, str], folder: Path) -> None:
    """Run a block in `folder`, where `freehold` means this checkout."""
    shim = folder / "bin" / "freehold"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m freehold.cli.main "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **env}
    env["PATH"] = f"{shim.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    if RECORDING in block.text:
        shutil.copy(ROOT / "tests" / "sounds" / "austen-0880.wav", folder / RECORDING)
    if block.language == "sh":
        command = ["bash", "-euo", "pipefail", "-c", block.text]
    else:
        command = [sys.executable, "-W", "error", "-c", block.text]
    with (folder / "said.txt").open("w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            status = process.wait(600)
        finally:  # what a block starts in the background ends with it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        assert status == 0, f"{block} exits {status}:\n{block.text}\n{said.read()[-2000:]}"


@pytest.mark.heavy
@pytest.mark.parametrize("block", FAST, ids=str)
def test_documented_block_runs(block: Block, tmp_path: Path):
    home = tmp_path / "home"
    # What a page advises must not hang on who else computes here: two quiet cores.
    for _ in range(machine.FIRST):
        machine.keep(home, machine.name_here(), machine.Rates(35.0, 1500.0))
    run(block, {"HOME": str(tmp_path), "FREEHOLD_HOME": str(home), "FREEHOLD_OFFLINE": "1"}, tmp_path)


@pytest.fixture
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have the user's home alone: one server a home, and one at the usual port, in all processes of a test run."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "home.lock"):
        yield


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.parametrize("block", WITH_MODEL, ids=str)
def test_documented_block_runs_with_real_weights(block: Block, at_home: None, tmp_path: Path):
    run(block, {}, tmp_path)


@pytest.fixture
def url(at_home: None, tmp_path: Path) -> Iterator[str]:
    """The address of a server that holds MODEL."""
    program = [sys.executable, "-P", "-m", "freehold.cli.main", "serve", MODEL, "--port", "0", "--json"]
    said = tmp_path / "served.txt"
    with (
        said.open("w") as err,
        subprocess.Popen(program, stdout=subprocess.PIPE, stderr=err, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, said.read_text()
            yield json.loads(line)["url"]
        finally:
            process.terminate()


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.parametrize("block", WITH_SERVER, ids=str)
def test_documented_block_runs_beside_a_server(block: Block, url: str, tmp_path: Path):
    assert ADDRESS in block.text and MODEL in block.text
    run(replace(block, text=block.text.replace(ADDRESS, url)), {}, tmp_path)


@pytest.mark.parametrize("block", ALL, ids=str)
def test_every_block_runs_or_says_why_not(block: Block):
    assert block.language in (*RUN, *SHOWN), f"{block}: language {block.language!r} is neither run nor shown"
    if block.mark:
        known = block.mark in (MODEL_MARK, CONTINUES, "<!-- server -->")
        assert known or NOT_RUN.fullmatch(block.mark), f"{block}: {block.mark}"


def needs_model(example: Path) -> bool:
    return "\n# model\n" in example.read_text(encoding="utf-8")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "example",
    [pytest.param(p, marks=[pytest.mark.model] if needs_model(p) else [], id=p.name) for p in EXAMPLES],
)
def test_example_runs(example: Path, tmp_path: Path):
    run(Block(f"examples/{example.name}", 1, "python", example.read_text(encoding="utf-8"), ""), {}, tmp_path)


def test_reference_pages_equal_the_program():
    """In a process of its own: a command that another test has called alone keeps the help option of that call."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_numbers_that_pages_give_of_the_catalogue_are_true():
    """They are those of catalog.counts, as `advise` prints them, rounded down to tens."""
    known = catalog.counts()
    counts = {
        "models": known.models,
        "open models": known.models,
        "licences": known.licences,
        "of its models": known.rated,
    }
    pages = [ROOT / "README.md", *(ROOT / "docs" / "guides").glob("*.md")]
    said = "".join(page.read_text(encoding="utf-8") for page in pages)
    found = re.findall(r"\b(?:some|about|and)\s([0-9]{2,}) (open models|of its models|models|licences)", said)
    assert {what for _, what in found} == set(counts) and len(found) > 4
    for number, what in found:
        assert int(number) == counts[what] // 10 * 10, (what, counts[what])


def test_every_entry_of_the_log_has_a_heading_of_its_own_and_a_day():
    headings = []
    for page in sorted((ROOT / "docs" / "log").glob("*.md")):
        if page.name != "README.md":
            entries = page.read_text(encoding="utf-8").split("\n## ")[1:]
            for entry in entries:
                heading, stamp, blank, body = entry.split("\n", 3)
                assert re.match(r"20\d\d-\d\d-\d\d", stamp) and not blank and body.strip(), heading
                headings.append(heading)
    assert len(headings) == len(set(headings)) > 200


def test_readme_is_short_and_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 600
    assert {"make run", "make test"} <= {line[:9].strip() for line in text.splitlines()[:12]}


def test_a_block_of_the_readme_fetches_the_models_that_it_takes_from_this_machine():
    """`make run` fetches what suits the machine; `local=` names a model that has to be here."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    needed = [(name, block) for block in blocks for name in re.findall(r'local="([^"]+)"', block)]
    assert needed and not [name for name, block in needed if f"freehold pull {name}\n" not in block]


def test_a_guide_has_at_most_900_words():
    """What is longer is a page of docs/details."""
    guides = (ROOT / "docs" / "guides").rglob("*.md")
    words = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").split()) for p in guides}
    assert len(words) > 50
    assert not {name: count for name, count in words.items() if count > 900}


def test_commands_of_the_readme_and_of_ci_are_the_same():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_names_that_the_glossary_quotes_are_in_the_code():
    quoted = set(re.findall(r"`([A-Za-z]\w+)`", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")))
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "src" / "freehold").rglob("*.py"))
    assert {"block_table", "ScheduledChunk", "max_num_batched_tokens"} <= quoted
    assert not {name for name in quoted - {"src"} if not re.search(rf"\b{name}\b", code)}
