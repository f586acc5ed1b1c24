"""Write the flags of an engine's version as data: src/freehold/outgrow/flags/data/ENGINE-VERSION.json.

    /path/to/vllm-env/bin/python tools/engine_schema.py vllm
    /path/to/vllm-env/bin/python tools/engine_schema.py sglang /path/to/unpacked-wheel
    python tools/engine_schema.py trtllm trtllm_serve_cli.yaml VERSION
    python tools/engine_schema.py llamacpp /path/to/llama-server BUILD
    python tools/engine_schema.py mlx /path/to/unpacked-wheel

vLLM's come from its own parser, in its own environment, with the names that it keeps in registries (parsers, weight
formats, quantisations), which its parser lacks. SGLang's come from the unpacked wheel: what its files import and this
interpreter lacks is stood in for, and for its files alone, since other packages look for optional ones. TensorRT-LLM's
come from its repository's tests/unittest/api_stability/references/trtllm_serve_cli.yaml, llama.cpp's from what its
server prints, mlx_lm's from the text of its wheel. Runs in the engine's interpreter: imports nothing of Freehold, but
for llama.cpp, which has none.
Path: engine_schema.py -> outgrow/flags/data -> flags/__init__.py
"""

from __future__ import annotations

import argparse
import builtins
import importlib.abc
import importlib.machinery
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "src" / "freehold" / "outgrow" / "flags" / "data"
# argparse's type functions by name -> a kind of flags/__init__.py. Any other function takes text.
KINDS = {
    "int": "int",
    "float": "float",
    "str": "text",
    "loads": "json",
    "parse_dataclass": "json",
    "json_list_type": "json",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size",
}
SWITCHES = ("store_true", "store_false", "deprecatedstoretrue", "store_const", "deprecatedstoreconst")
Row = list[Any]


def main(words: list[str]) -> None:
    """Write one file."""
    engine, rest = words[0], words[1:]
    version, rows = {"vllm": vllm, "sglang": sglang, "trtllm": trtllm, "llamacpp": llamacpp, "mlx": mlx}[
        engine
    ](*rest)
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{engine}-{version}.json"
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    path.write_text(
        f'{{"engine":"{engine}","version":"{version}","flags":[\n{lines}\n]}}\n', encoding="utf-8"
    )
    print(f"{path}: {len(rows)} flags")


# --- vLLM -------------------------------------------------------------------------------------------


def vllm() -> tuple[str, list[Row]]:
    """Return version and flags of the vLLM beside this interpreter."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.version import __version__

    parser = make_arg_parser(FlexibleArgumentParser())
    return plain_version(__version__), of_argparse(parser, vllm_registries())


def vllm_registries() -> dict[str, list[str]]:
    """Return the words that these flags take, by flag: argparse does not know them."""
    from typing import get_args

    from vllm.config.quantization import _ONLINE_SHORTHANDS
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import LoadFormats
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    return {
        "--tool-call-parser": ToolParserManager.list_registered(),
        "--reasoning-parser": ReasoningParserManager.list_registered(),
        "--quantization": sorted({*QUANTIZATION_METHODS, *_ONLINE_SHORTHANDS}),
        "--load-format": sorted(get_args(LoadFormats)),
    }


# --- SGLang -----------------------------------------------------------------------------------------


def sglang(folder: str) -> tuple[str, list[Row]]:
    """Return version and flags of an unpacked wheel."""
    root = Path(folder).resolve()
    sys.path.insert(0, str(root))
    sys.meta_path.append(StandIns(root))
    version = next(root.glob("sglang-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return version, of_argparse(parser, {})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for a module that is not there, where a file below `root` imports it.

    It comes last among the finders, so it is asked for what none of them has. sympy and others try optional imports:
    those fail as they should.
    """

    def __init__(self, root: Path) -> None:
        self.root = f"{root}/"
        self.made: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        """Answer for imports by the engine's own files, and for what is below a stand-in."""
        if name.partition(".")[0] == "sglang":
            return None
        if name.rpartition(".")[0] in self.made or self._asked_by_engine():
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def _asked_by_engine(self) -> bool:
        for frame in inspect.stack(context=0)[2:]:
            if "importlib" not in frame.filename:
                return frame.filename.startswith(self.root)
        return False

    def create_module(self, spec: Any) -> types.ModuleType:
        """Return a module that has every name."""
        self.made.add(spec.name)
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Run nothing."""


class StandIn(types.ModuleType):
    """A module whose every attribute is a class that takes anything."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__init__": lambda self, *a, **k: None, "__getattr__": lambda self, n: None})
        setattr(self, name, made)
        return made


# --- both -------------------------------------------------------------------------------------------


def of_argparse(parser: argparse.ArgumentParser, registries: dict[str, list[str]]) -> list[Row]:
    """Return the rows of a parser: name, kind, and what else is to be said."""
    return [row(action, registries) for action in parser._actions if action.option_strings]


def row(action: argparse.Action, registries: dict[str, list[str]]) -> Row:
    """Return one flag. The first spelling that begins with two dashes is its name."""
    spelled = list(action.option_strings)
    name = next((s for s in spelled if s.startswith("--")), spelled[0])
    made = type(action).__name__.strip("_").removesuffix("Action").lower().replace("storetrue", "store_true")
    made = made.replace("storefalse", "store_false").replace("storeconst", "store_const")
    more: dict[str, Any] = {}
    if len(spelled) > 1:
        more["also"] = [s for s in spelled if s != name]
    if made.endswith("booleanoptional"):
        return [name, "on-off", more] if more else [name, "on-off"]
    if action.nargs == 0 or any(
        word in made for word in ("store_true", "store_false", "store_const", "help")
    ):
        return [name, "switch", more] if more else [name, "switch"]
    kind, optional = kind_of(action.type)
    choices = registries.get(name) or [c for c in action.choices or () if c is not None]
    if choices:
        more["choices"] = [str(c) for c in choices]
    if optional or None in (action.choices or ()):
        more["none"] = True
    if action.nargs in ("+", "*"):
        more["many"] = True
    elif action.nargs == "?":
        more["bare"] = True
    if made == "append":
        more["repeats"] = True
    return [name, kind, more] if more else [name, kind]


def kind_of(type_: Callable | None) -> tuple[str, bool]:
    """Return a kind, and whether "None" is taken too. Wrappers are looked through."""
    inner, optional = type_, False
    while inner is not None and getattr(inner, "__closure__", None):
        optional = optional or inner.__name__ == "_optional_type"
        cells = inspect.getclosurevars(inner).nonlocals
        if inner.__name__ in KINDS or "return_type" not in cells:
            break
        inner = cells["return_type"]
    name = getattr(inner, "__name__", "str")
    if name not in KINDS and ("json" in name or "dict" in name):
        return "text", optional
    return KINDS.get(name, "text"), optional


def plain_version(text: str) -> str:
    """Return a version without the label of a build: 0.32.0 of 0.32.0+cpu."""
    return text.partition("+")[0]


# --- TensorRT-LLM -----------------------------------------------------------------------------------


def trtllm(path: str, version: str) -> tuple[str, list[Row]]:
    """Return the flags of `trtllm-serve serve` from its reference of stability."""
    import yaml

    said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return version, list(of_click(said["commands"]["serve"]["options"]))


def of_click(options: dict[str, dict[str, Any]]) -> Iterable[Row]:
    """Yield a row for each option of a click command."""
    for said in options.values():
        flags = sorted(said["flags"], key=lambda f: (f.startswith("--no-"), -len(f)))
        more: dict[str, Any] = {"also": flags[1:]} if flags[1:] else {}
        kind = {"int": "int", "float": "float"}.get(said["type"], "text")
        if said["is_flag"]:
            kind = "on-off" if any(f.startswith("--no-") for f in flags) else "switch"
        elif said["type"].startswith("Choice"):
            more["choices"] = re.findall(r"'([^']*)'", said["type"])
        if said["multiple"]:
            more["repeats"] = True
        if said["status"] != "stable":
            more["status"] = said["status"]
        yield [flags[0], kind, more] if more else [flags[0], kind]


# --- llama.cpp --------------------------------------------------------------------------------------


def llamacpp(program: str, build: str) -> tuple[str, list[Row]]:
    """Return the flags that a llama-server prints; a build from a shallow copy does not know its own number."""
    import subprocess

    from freehold.outgrow.flags import help_rows

    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    return build, help_rows(told.stdout)


# --- mlx_lm -----------------------------------------------------------------------------------------


def mlx(folder: str) -> tuple[str, list[Row]]:
    """Return version and flags of an unpacked wheel: its parser is made inside its main function, which is not run."""
    import ast

    root = Path(folder).resolve()
    version = next(root.glob("mlx_lm-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    server = ast.parse((root / "mlx_lm" / "server.py").read_text(encoding="utf-8"))
    main_of = next(n for n in server.body if isinstance(n, ast.FunctionDef) and n.name == "main")
    made = [n for n in main_of.body if "parser" in ast.unparse(n) and "parse_args" not in ast.unparse(n)]
    names = Unread(argparse=argparse, json=json)
    exec(compile(ast.Module(made, []), "server.py", "exec"), {}, names)
    return version, of_argparse(names["parser"], {})


class Unread(dict[str, Any]):
    """Names of a file; one that was not read is `str`."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return str


if __name__ == "__main__":
    main(sys.argv[1:])
