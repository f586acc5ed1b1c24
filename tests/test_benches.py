"""The benchmarks: every mention of one names a file that exists, and every program finds the repository."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHES = ROOT / "benches"


@pytest.mark.heavy
def test_every_mention_of_a_benchmark_names_a_file():
    command = ["git", "-C", str(ROOT), "ls-files", "*.md", "*.py", "*.toml", "Makefile"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    mentions = {
        (name, mention)
        for name in files
        if (ROOT / name).is_file()
        for mention in re.findall(
            r"\bbenches/[\w/]+\.(?:py|csv)\b", (ROOT / name).read_text(encoding="utf-8")
        )
    }
    assert len(mentions) > 40
    assert not {(name, mention) for name, mention in mentions if not (ROOT / mention).is_file()}


def test_every_program_puts_the_repository_on_its_path_before_it_imports_another():
    programs = [path for path in BENCHES.rglob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert len(programs) > 20
    for path in programs:
        text = path.read_text(encoding="utf-8")
        imported = re.search(r"^from (benches|tests)\b", text, re.MULTILINE)
        if imported:
            assert "parents[2]" in text[: imported.start()], path


def test_words_are_counted_by_place_and_names_apart():
    module = runpy.run_path(str(BENCHES / "words.py"))

    def counted(name: str, text: str) -> list[tuple[str, str, int]]:
        texts, matches = module["texts"], module["matches"]
        return [(pattern, t.place, line) for t in texts(name, text) for pattern, line, _ in matches(t)]

    code = '"""It goes on."""\nfound = 1  # a door\nraise E(\n    f"{held} is held in a room"\n)\n'
    assert counted("src/a.py", code) == [
        ("goes on", "src", 1),
        ("held", "errors", 4),
        ("room", "errors", 4),
    ]
    page = "A door\n```text\nstands\n```\n`held`\nlies in\n"
    assert counted("docs/guides/a.md", page) == [("lies", "guides", 6), ("door", "guides", 1)]
    assert counted("docs/design/a.md", page) == [("lies", "docs", 6)]
    assert counted("docs/log/a.md", page) == []
    assert module["names"]("found = _asked = Given = 'said'  # made\n") == {
        "found": 1,
        "asked": 1,
        "given": 1,
    }


def test_pages_have_none_of_the_patterns_that_words_counts():
    module = runpy.run_path(str(BENCHES / "words.py"))
    counted = {
        (name, line, words)
        for name, text in module["files"](None)
        if name.endswith(".md") and module["page_place"](name) in ("guides", "docs")
        for piece in module["texts"](name, text)
        for _, line, words in module["matches"](piece)
    }
    assert not counted
