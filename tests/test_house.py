"""The house stays in order: no circle of imports, `Path:` lines that name what exists, files of a readable length.

`tests/test_layers.py` has the order of imports.
"""

from __future__ import annotations

import ast
import fnmatch
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from tests.sources import PACKAGE, ROOT, nodes, text
from tests.test_layers import WINGS

FILES = sorted(PACKAGE.rglob("*.py"))
LINES = 700
# Names of Path lines that lie outside the package: of a program, a protocol or a library.
OUTSIDE = {"Starlette", "True", "Unix"}
CODE = (".py", ".cpp", ".h", ".inl")


def module_of(path: Path) -> str:
    parts = [*path.relative_to(PACKAGE.parent).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, inside functions too."""
    me = module_of(path)
    package = me if path.name == "__init__.py" else me.rpartition(".")[0]
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES or n.endswith("._native") else module for n in names}
    return (found & MODULES.keys()) - {me}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    left = {module: set(others) for module, others in graph.items()}
    while bare := [
        m for m in left if not left[m] & left.keys() or not any(m in others for others in left.values())
    ]:
        for module in bare:  # reaches none that is left, or none that is left reaches it
            del left[module]

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(left[start])
        while waiting:
            module = waiting.pop()
            if module in left and module not in seen:
                seen.add(module)
                waiting += left[module]
        return seen

    reached = {module: reach(module) for module in left}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in left
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


def test_no_circle_of_imports_in_the_package():
    found = circles({name: imported(path) for name, path in MODULES.items()})
    assert found == []


def test_the_search_for_circles_sees_one_and_what_only_leads_to_it():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(graph) == [["b", "c"]]


def paths_of(text: str) -> Iterator[str]:
    """The text of every `Path:` in a docstring, up to the end of its sentence or paragraph."""
    for match in re.finditer(r"\bPath: ", text):
        paragraph = text[match.end() :].partition("\n\n")[0]
        yield re.split(r"\.\s+(?=[A-Z])", " ".join(paragraph.split()), maxsplit=1)[0]


def names_in(path_line: str) -> Iterator[str]:
    """Names that a Path line takes from the code: dotted, with a slash, with an underscore, or capitalised.

    `advisor.{cost, fit}` and `Metrics.first/gap` stand for each of their names; quoted text, routes, files of data and
    modules that Python runs with -m are left out.
    """
    plain = re.sub(
        r"`[^`]*`|\"[^\"]*\"|<\w+>\S*|(?<!\S)~?/\S+|\S+\.(?:json|toml|safetensors)\b", " ", path_line
    )
    plain = re.sub(r"([\w.]+)\.\{([^}]*)\}", lambda m: _each(m[1], m[2].split(",")), plain)
    plain = re.sub(r"\b(\w+)\.(\w+(?:/\w+)+)", lambda m: _each(m[1], m[2].split("/")), plain)
    for word in re.split(r"[\s,;()\[\]|=]+|->|<-", plain):
        word = word.strip(".:'\"").removesuffix("'s")
        if re.fullmatch(r"\w[\w/.*]+", word) and re.search(r"[./_]|^[A-Z]\w*[a-z]", word):
            yield word


def _each(owner: str, members: list[str]) -> str:
    return ", ".join(f"{owner}.{member.strip()}" for member in members)


@cache
def defined(path: Path) -> frozenset[str]:
    """Every name that a file defines: functions, classes, methods, fields, constants, attributes."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.rpartition(".")[2])
    return frozenset(names)


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


@cache
def holds(owner: str, name: str) -> bool:
    """Whether a module, a room or a class named `owner` has `name`, which may end in a star."""
    for path in FILES:
        rooms = path.relative_to(PACKAGE).parts[:-1]
        if (path.stem == owner or owner in rooms) and fnmatch.filter(
            {*defined(path), path.stem, *rooms}, name
        ):
            return True
    for node in classes().get(owner, []):
        inside = list(ast.walk(node))
        members = {
            n.name for n in inside if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        members |= {n.attr for n in inside if isinstance(n, ast.Attribute)}
        members |= {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        if fnmatch.filter(members, name) or any(holds(base, name) for base in bases if base != owner):
            return True
    return owner == "freehold" and name in {p.stem for p in PACKAGE.iterdir()} | defined(
        PACKAGE / "__init__.py"
    )


def exists(name: str, asking: Path) -> bool:
    """Whether a name of a Path line is a file, a room, or something that the package or its C++ module defines."""
    if name in OUTSIDE or name in native_names():
        return True
    if "/" in name or name.endswith(CODE):
        pattern = name if name.endswith(CODE) else f"{name}*"
        places = (asking.parent, PACKAGE, ROOT, *folders())
        return any(next(place.glob(pattern), None) for place in places)
    if "." in name:
        owners = [part for part in name.split(".") if part]
        return all(
            owner in ("native", "_native") or owner in native_names() or holds(owner, member)
            for owner, member in pairwise(owners)
        )
    return name in names() or bool(fnmatch.filter(names(), name))


@cache
def folders() -> list[Path]:
    return [p for p in PACKAGE.rglob("*") if p.is_dir()]


@cache
def names() -> frozenset[str]:
    """Every file and everything that the package defines."""
    return frozenset(path.stem for path in FILES).union(*map(defined, FILES))


@cache
def native_names() -> frozenset[str]:
    """What the stub of the C++ module defines."""
    return frozenset(
        re.findall(r"(?:def|class) (\w+)", (PACKAGE / "_native.pyi").read_text(encoding="utf-8"))
    )


def docstrings(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_only_rooms_have_path_lines():
    files = [path for path in FILES if path.name != "__init__.py"]
    assert not [path for path in files if any("Path: " in docstring for docstring in docstrings(path))]


def test_path_lines_name_what_exists():
    wrong = [
        f"{path.relative_to(ROOT)}: {name} of {line}"
        for path in FILES
        for text in docstrings(path)
        for line in paths_of(text)
        for name in names_in(line)
        if not exists(name, path)
    ]
    assert not wrong


def test_the_check_of_path_lines_refuses_what_is_gone():
    here = PACKAGE / "cli" / "run.py"
    for good in ("cli/run", "Store.pull", "local.load", "errors.py", "SamplingParams", "load_settings"):
        assert exists(good, here), good
    for gone in (
        "cli/walk",
        "Store.levitate",
        "local.unheard",
        "errors_of.py",
        "SamplingHabits",
        "load_clouds",
    ):
        assert not exists(gone, here), gone


SOURCES = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in CODE)
# Names of other projects that end like a source.
FOREIGN = r"(?:ik_)?llama\.cpp|whisper\.cpp|bitnet\.cpp|ggml-common\.h"


def remarks(path: Path) -> str:
    """The docstrings and comments of a Python file, or the line comments of a C++ one."""
    if path.suffix != ".py":
        return "\n".join(re.findall(r"//(.*)", text(path)))
    tokens = tokenize.generate_tokens(io.StringIO(text(path)).readline)
    comments = (t.string for t in tokens if t.type == tokenize.COMMENT)
    return "\n".join([*docstrings(path), *comments])


def missing_sources(text: str, asking: Path) -> list[str]:
    """Source files that a text names, as `room/file.py` or `file.h`, and that are nowhere in the repository."""
    named = re.findall(r"(?<![\w./<-])[\w./-]+\.(?:py|cpp|h|inl)\b(?![\w/>])", text)
    return [n for n in named if not re.fullmatch(FOREIGN, n) and not is_source(n, asking)]


def is_source(name: str, asking: Path) -> bool:
    if (asking.parent / name).is_file():
        return True
    return any(path.endswith(f"/{name}") for path in repository().get(name.rpartition("/")[2], ()))


@cache
def repository() -> dict[str, list[str]]:
    """Paths of all sources, by their file's name."""
    folders = ("src", "csrc", "tests", "benches", "tools", "docs", "examples")
    paths: dict[str, list[str]] = {}
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.*") if p.suffix in CODE):
        paths.setdefault(path.name, []).append(f"/{path}")
    return paths


def test_docstrings_and_comments_name_source_files_that_exist():
    missing = {str(p.relative_to(ROOT)): missing_sources(remarks(p), p) for p in (*FILES, *SOURCES)}
    assert not {path: names for path, names in missing.items() if names}


def test_the_check_of_source_files_sees_one_that_is_gone():
    here = PACKAGE / "cli" / "run.py"
    text = "main.py, chat/answer.py, csrc/plan.h and cli/walk.py; walls.inl, llama.cpp's, <fcntl.h>"
    assert missing_sources(text, here) == ["cli/walk.py", "walls.inl"]


def test_files_end_within_seven_hundred_lines():
    long = {str(p.relative_to(PACKAGE)): n for p in FILES if (n := len(p.read_text().splitlines())) > LINES}
    assert not long


def test_the_page_of_the_house_names_every_room_and_no_other():
    page = (ROOT / "docs" / "design" / "house.md").read_text(encoding="utf-8")
    tree = page.split("```text\nsrc/freehold/\n", 1)[1].split("```", 1)[0]
    named, parents = set(), {0: PACKAGE}
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        room = parents[indent - 2] / name.rstrip("/")
        parents[indent] = room
        assert room.is_dir() if name.endswith("/") else room.is_file(), room
        named.add(room)
    rooms = {p.parent for p in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    files = {PACKAGE / wing / f"{room}.py" for wing, names in WINGS.items() for room in names.split()}
    assert named == rooms | {p for p in files if p.is_file()} | {PACKAGE / "_native.pyi"}


def test_a_class_name_occurs_once_in_the_package():
    assert not {name for name, found in classes().items() if len(found) > 1}
