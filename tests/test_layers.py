"""Imports go to earlier rooms alone: the order of docs/design/house.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.sources import PACKAGE, nodes, tree

# Wings in the order of their imports, each with its rooms in that order; where none is named, the wing is one room.
WINGS = {
    "base": "errors layers platforms private stopping version garbage regular terminal"
    " options machine types config serving sandbox prompts catalog",
    "run": "formats tokenizer pictures sounds store models engine local",
    "choose": "advisor choosing",
    "route": "providers router",
    "outgrow": "",
    "adapt": "evals",
    "serve": "chats worker remote documents reports fake tools agent http",
    "cli": "",
}
ORDER = [
    name for wing, rooms in WINGS.items() for name in (*(f"{wing}.{room}" for room in rooms.split()), wing)
]
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(name: str) -> str:
    """The room of a module, or its wing, where that is not divided."""
    parts = name.split(".")[1:]
    room = ".".join(parts[:2])
    return room if room in ORDER else parts[0]


def module_of(path: Path) -> str:
    return ".".join(("freehold", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported_rooms(parsed: Iterable[ast.AST], package: str) -> set[str]:
    """Rooms that a module in `package` imports anywhere, also inside functions."""
    rooms = set()
    for node in parsed:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        rooms |= {room_of(name) for name in names if name.startswith("freehold.")}
    return rooms & set(ORDER)


def test_every_room_is_of_a_wing():
    below = {".".join(p.relative_to(PACKAGE).with_suffix("").parts[:2]) for p in FILES}
    rooms = {name.removesuffix(".__init__") for name in below}
    undivided = ("outgrow.", "adapt.", "cli.")
    assert {name for name in rooms if not name.startswith(undivided)} <= set(ORDER)


def test_imports_go_to_earlier_rooms_only():
    later: list[str] = []
    for path in FILES:
        room = room_of(module_of(path))
        package = ".".join(("freehold", *path.relative_to(PACKAGE).parts[:-1]))
        for other in imported_rooms(nodes(path), package) - {room}:
            if ORDER.index(other) > ORDER.index(room):
                later.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not later


def test_the_check_sees_imports_inside_functions_and_relative_ones():
    source = "def f():\n    from freehold.run.engine import Engine\n    from ..store import Store\n"
    assert imported_rooms(ast.walk(ast.parse(source)), "freehold.run.tokenizer") == {
        "run.engine",
        "run.store",
    }


def test_nothing_outside_the_cli_prints():
    """stdout belongs to the command line; a library that prints corrupts its host's output."""
    for path in FILES:
        if room_of(module_of(path)) in ("cli", "serve.http"):
            continue
        calls = (n for n in nodes(path) if isinstance(n, ast.Call))
        printing = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        assert not printing, f"{path.name} prints on line {printing[0]}"


def test_every_file_says_what_it_is():
    assert not [p for p in FILES if not ast.get_docstring(tree(p))]


SERVER = PACKAGE / "serve" / "http"
# What each folder of the server may import of the others: core is below all protocols, which do not know each other.
SEES: dict[str, set[str]] = {
    "core": set(),
    "batches": {"core"},
    "openai": {"core", "batches"},
    "anthropic": {"core"},
    "ollama": {"core"},
    "system": {"core"},
    "console": {"core"},
}
COMPOSED = ["__init__", "app", "serve", "inside"]  # the files that see all of them


def imported_folders(path: Path) -> set[str]:
    """Folders of the server that a module imports anywhere, also inside functions and for types alone."""
    imports = [n for n in nodes(path) if isinstance(n, ast.ImportFrom) and n.module]
    paths = [f"{n.module}.{alias.name}".split(".") for n in imports for alias in n.names]
    return {path[3] for path in paths if path[:3] == ["freehold", "serve", "http"]}


def test_no_protocol_of_the_server_imports_another():
    for path in sorted(SERVER.rglob("*.py")):
        folder = path.relative_to(SERVER).parts[0]
        if path.parent == SERVER:
            assert path.stem in COMPOSED, f"{path.name} belongs into a folder"
        else:
            strangers = imported_folders(path) - SEES[folder] - {folder}
            assert not strangers, f"{path.relative_to(SERVER)} imports {strangers}"


# Files directly in cli/ that are no verb: what every verb or several of them use.
NO_VERBS = {
    "__init__",
    "main",
    "verbs",
    "complete",
    "shared",
    "options",
    "progress",
    "training",
    "helping",
}


def test_every_file_directly_in_the_cli_is_a_verb_or_known_to_be_none():
    from freehold.cli.verbs import VERBS

    verbs = {verb.file or name.replace("-", "_") for name, verb in VERBS.items()}
    assert {path.stem for path in (PACKAGE / "cli").glob("*.py")} == verbs | NO_VERBS


# --- the HTTP process imports no engine ------------------------------------------------------------------------------

MODULES = {module_of(path): path for path in FILES}
# What runs in the HTTP process: the server, the verb that starts it, and the server's half of worker/. It starts the
# other half, worker/process, by its module's name in a command line, which does not count as an import.
HTTP = {name for name in MODULES if name.startswith("freehold.serve.http")} | {
    *("freehold.cli.serve", "freehold.serve.worker.models"),
}
ENGINE_SIDE = ("run.engine", "run.models", "run.local", "serve.worker.process")
# Before `freehold serve NAME` fetches a model, the families say whether they compute it; no server runs yet.
BEFORE_SERVING = {("freehold.cli.shared", "freehold.run.local.runnable")}


def run_time_imports(root: ast.Module, package: str) -> Iterator[str]:
    """Yield the modules that a file may import when it runs, inside functions too; not those for type checkers."""
    waiting: list[ast.AST] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def reached_from(starts: Iterable[str]) -> dict[str, str]:
    """Return every module of the package that `starts` reach, each with the module that imports it."""
    reached = dict.fromkeys(starts, "")
    waiting = list(reached)
    while waiting:
        name = waiting.pop()
        path = MODULES[name]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for other in run_time_imports(tree(path), package):
            if (name, other.removesuffix(".check_runs")) in BEFORE_SERVING:
                continue
            parts = other.split(".")
            for each in (
                ".".join(parts[:n]) for n in range(2, len(parts) + 1)
            ):  # its packages are imported too
                if each in MODULES and each not in reached:
                    reached[each] = name
                    waiting.append(each)
    return reached


def on_engine_side(name: str) -> bool:
    return any(name == f"freehold.{room}" or name.startswith(f"freehold.{room}.") for room in ENGINE_SIDE)


def test_the_http_process_reaches_no_engine():
    reached = reached_from(HTTP)
    assert {"freehold.serve.worker.handle", "freehold.run.store", "freehold.base.serving"} <= reached.keys()
    assert {name: by for name, by in reached.items() if on_engine_side(name)} == {}


def test_the_closure_sees_imports_inside_functions_and_skips_those_for_type_checkers():
    source = "if TYPE_CHECKING:\n    import freehold.run.models\ndef f():\n    from freehold.run.engine import Engine\n"
    assert {"freehold.run.engine"} == {
        name for name in run_time_imports(ast.parse(source), "freehold.serve.http") if name in MODULES
    }
    assert any(map(on_engine_side, reached_from(["freehold.cli.run"])))


def test_importing_the_server_loads_no_engine():
    code = (
        "import sys, freehold.cli.serve, freehold.serve.http.serve, freehold.serve.worker.models\n"
        "from freehold.serve.http.app import endpoints\n"
        f"print(*(m for m in sys.modules if m.startswith(tuple('freehold.' + r for r in {ENGINE_SIDE}))))"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert got.stdout.split() == []


STARTED = """
import sys
from pathlib import Path
import freehold.cli.serve, freehold.serve.worker.models
from freehold.serve.http.serve import Doors, ServerSettings, make_app
make_app(Doors(None, ServerSettings(home=Path(sys.argv[1]))).server)
print(*(name for name in sys.modules if name.startswith("freehold.")))
"""
# Of the page, what a server needs before anything is asked of it: sessions, the page's files, counts of runs.
AT_START = ("page", "login", "choose", "runs", "runs.run")


def test_a_server_starts_without_the_routes_of_its_page_its_chats_and_tools(tmp_path: Path):
    command = [sys.executable, "-c", STARTED, str(tmp_path)]
    got = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    later = ("freehold.serve.tools", "freehold.serve.chats", "freehold.serve.http.console.")
    found = {name for name in got if name.startswith(later)}
    assert found == {f"freehold.serve.http.console.{name}" for name in AT_START}
