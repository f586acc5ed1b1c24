"""torch is the extra of four verbs: imported inside functions only, and never by `quantize` and `eval`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import freehold
from freehold.adapt.training.trainee import half_helps
from freehold.base.machine import Processor
from freehold.run.models.tiny import make

PACKAGE = Path(freehold.__file__).parent
EXTRA = {"torch"}
NOT_AT_RUN_TIME = {"transformers", "peft", "trl", "accelerate", "datasets"}

# Refuses the extra's packages as if they were not installed, then runs the command line.
WITHOUT_TORCH = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRA | NOT_AT_RUN_TIME}:
            raise ImportError(f"{{name}} is refused here")
sys.meta_path.insert(0, Refused())
from freehold.cli import main
sys.exit(main.run(sys.argv[1:]))
"""


def imports(node: ast.AST, *, inside: bool) -> Iterator[tuple[str, bool]]:
    """Yield each imported package with whether a function imports it; what is for type checkers alone is left out."""
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name.partition(".")[0], inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module.partition(".")[0], inside
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, inside=inside or function)


@pytest.mark.heavy
def test_torch_is_imported_inside_functions_and_other_trainers_nowhere():
    for path in PACKAGE.rglob("*.py"):
        found = set(imports(ast.parse(path.read_text(encoding="utf-8")), inside=False))
        assert not found & {(name, False) for name in EXTRA}, path
        assert not {name for name, _ in found} & NOT_AT_RUN_TIME, path


def test_the_search_sees_imports_of_modules_and_skips_those_for_type_checkers():
    source = "import torch.nn\nif TYPE_CHECKING:\n    import peft\ndef f():\n    from trl import x\n"
    assert set(imports(ast.parse(source), inside=False)) == {("torch", False), ("trl", True)}


def without_torch(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {"FREEHOLD_HOME": str(home), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", WITHOUT_TORCH, *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make.write_gguf(make.config("llama"), tmp_path / "tiny.gguf")


@pytest.mark.heavy
def test_quantize_needs_no_torch(tiny: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("One two three four. " * 200)
    given = ("--bits", "3", "--calibrate", str(text))
    made = without_torch(tmp_path, "quantize", str(tiny), "-o", "out", *given, "--json")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out" / "model.gguf").exists() and json.loads(made.stdout)["verb"] == "quantize"


def test_eval_needs_no_torch(tiny: Path, tmp_path: Path):
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "Say a.", "contains": "a", "max_tokens": 2}))
    made = without_torch(tmp_path, "eval", str(tiny), "--data", "own.jsonl", "--context", "256", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["answered"] == {"own": 1}


def test_finetune_without_torch_names_the_extra(tiny: Path, tmp_path: Path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    made = without_torch(tmp_path, "finetune", str(tiny), "--data", "data.jsonl", "-o", "out")
    assert made.returncode != 0 and 'pip install "freehold[adapt]"' in made.stderr
    assert "Traceback" not in made.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "features", "helps"),
    [
        ("AMD EPYC 9755", ("avx512f", "avx512_bf16"), True),
        ("AMD EPYC 7763", ("avx2",), False),
        ("Intel(R) Xeon(R) Processor", ("avx512_bf16", "amx_bf16"), True),
        ("Intel(R) Xeon(R) Processor", ("avx512_bf16",), False),
    ],
)
def test_bfloat16_is_the_default_where_it_is_the_faster(
    name: str, features: tuple[str, ...], helps: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("freehold.base.machine.processor", lambda: Processor(name, "", (), features))
    assert half_helps() is helps
