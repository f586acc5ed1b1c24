"""Prose of the project uses plain technical words: CONTRIBUTING.md lists those that this test refuses.

Checked are comments and strings of Python (in tests, docstrings alone of the strings), comments and strings of C++ and
TypeScript, and pages except the log and the generated reference.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REFUSED = re.compile(
    r"\b(?:nobody|somebody|everybody|anybody|whoever|whomever)\b"  # things are not people
    r"|(?<!there )(?<!there\n)\bis no (?!longer|more|less|such|better|worse|larger|smaller|slower|faster)[a-z]+"
    r"|\btold\b|\bheld (?:to|against)\b",
    re.IGNORECASE,
)
REFUSED_IN_PACKAGE = re.compile(  # pages and tests still have them
    r"\b(?:so many|go(?:es|ing)? on|under way|for want of|order of things)\b", re.IGNORECASE
)
ROOMS = (
    "src",
    "csrc",
    "console/src",
    "docs",
    "benches",
    "examples",
    "tests",
    "tools",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
)
LISTS = ("tests/test_words.py", "benches/words.py")  # they have the words themselves
APART = (
    "docs/log/",
    "docs/reference/",
    "src/freehold/base/catalog/data/",
)  # history; generated; quotations of sources


def files() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", *ROOMS]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    kinds = (".py", ".md", ".cpp", ".h", ".inl", ".ts", ".tsx")
    return [
        f
        for f in found
        if f.endswith(kinds) and f not in LISTS and not f.startswith(APART) and (ROOT / f).is_file()
    ]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """What people read in a file, with its line: comments and strings of code, all of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        data = "tests" in path.relative_to(ROOT).parts
        kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds and not (
                data and token.type != tokenize.COMMENT and '"""' not in token.string
            ):
                in_braces = r"\{[^{}\n]*\}" if token.string[0] in "fF" else "$^"
                yield token.start[0], _unquoted(re.sub(in_braces, "", token.string))
    elif path.suffix != ".md":
        template = "|`[^`]*`" if path.suffix in (".ts", ".tsx") else ""
        for match in re.finditer(r'//.*|/\*(?:(?!\*/).)*|"(?:[^"\\\n]|\\.)*"' + template, text):
            yield text.count("\n", 0, match.start()) + 1, match[0]
    else:  # CONTRIBUTING.md has the list of words itself, in bold
        yield 1, _unquoted(re.sub(r"\*\*.*?\*\*", "", text) if path.name == "CONTRIBUTING.md" else text)


def _unquoted(text: str) -> str:
    """Leave out what stands in backticks: names of code."""
    return re.sub(r"`[^`\n]*`", "", text)


def refused(path: Path) -> list[str]:
    name = path.relative_to(ROOT)
    rules = (REFUSED, REFUSED_IN_PACKAGE) if name.parts[0] == "src" else (REFUSED,)
    bare = _unquoted(path.read_text(encoding="utf-8"))
    if not any(rule.search(bare) for rule in rules):  # cheap: most files have none, in names of code either
        return []
    return [
        f"{name}:{line + text.count(chr(10), 0, match.start())}: {match[0]}"
        for line, text in prose(path)
        for rule in rules
        for match in rule.finditer(text)
    ]


def test_prose_has_no_refused_word():
    assert not [word for name in files() for word in refused(ROOT / name)]


def test_the_search_finds_words_and_leaves_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    code = tmp_path / "code.py"
    code.write_text(
        'told = 1  # nobody is\nraise E(f"{told} is no size")\n"""There is no\nlimit; x is no longer."""\n'
    )
    assert refused(code) == ["code.py:1: nobody", "code.py:2: is no size"]


def test_the_package_has_stricter_words_than_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    for folder, wrong in (("src", ["src/a.py:1: goes on"]), (".", [])):
        code = tmp_path / folder / "a.py"
        code.write_text('"""A stream goes on."""\n')
        assert refused(code) == wrong
