"""The public API is the list the package prints, and nothing more."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import freehold

ROOT = Path(__file__).parent.parent
EXPORTS = [
    "LLM",
    "AsyncLLM",
    "Audio",
    "ChatModel",
    "Chunk",
    "Collection",
    "Completion",
    "DeployedLLM",
    "FakeModel",
    "Format",
    "FreeholdError",
    "Image",
    "Listed",
    "Message",
    "ModelRef",
    "SamplingParams",
    "Segment",
    "Speech",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Transcript",
    "Usage",
    "Word",
    "advise",
    "cost",
    "deploy",
    "deploy_bench",
    "deploy_capacity",
    "fit",
    "fuse",
    "license",
    "list",
    "load",
    "load_speech",
    "plan_deployment",
    "pull",
]
HEAVY = (
    "numpy",
    "tokenizers",
    "jinja2",
    "prompt_toolkit",
    "httpx2",
    "huggingface_hub",
    "psutil",
    "freehold._native",
)


def test_export_list_is_what_we_promise():
    assert sorted(freehold.__all__) == sorted(EXPORTS)
    assert set(dir(freehold)) == {*EXPORTS, "__version__"}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_exists_and_is_documented(name: str):
    assert inspect.getdoc(getattr(freehold, name))


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "src/freehold/__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = [a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert sorted(seen) == sorted(EXPORTS)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        freehold.lod  # noqa: B018


def test_version_is_the_distribution_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert freehold.__version__ == project["version"]


def modules_after(code: str) -> set[str]:
    show = f"import sys\n{code}\nsys.stderr.write('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_freehold_imports_nothing_heavy():
    assert not modules_after("import freehold") & set(HEAVY)


def test_help_imports_nothing_heavy():
    code = "from freehold.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not modules_after(code) & set(HEAVY)
