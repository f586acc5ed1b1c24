"""What packaging/ carries agrees with the program: completions, and the container's ports, paths and packages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from freehold.cli.main import cli
from tools import sbom, wheel_checks

ROOT = Path(__file__).parent.parent.parent
PACKAGING = ROOT / "packaging"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_those_that_the_program_prints(shell: str) -> None:
    """Red after a change of the program's: freehold completion SHELL > packaging/completions/freehold.SHELL."""
    printed = CliRunner().invoke(cli, ["completion", shell]).output
    assert (PACKAGING / "completions" / f"freehold.{shell}").read_text("utf-8") == printed


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_reads_its_completion() -> None:
    subprocess.run(["bash", "-n", str(PACKAGING / "completions" / "freehold.bash")], check=True)


def test_the_container_holds_its_packages_by_hash_and_runs_as_a_user_of_its_own() -> None:
    text = (PACKAGING / "Containerfile").read_text("utf-8")
    assert "--require-hashes --requirement requirements/run.txt" in text
    final = text.rpartition("FROM ")[2]
    assert re.search(r"^USER freehold$", final, re.MULTILINE)
    port = re.search(r"EXPOSE (\d+)", final)
    assert port is not None
    assert f"a free one. Default: {port[1]}." in " ".join(
        CliRunner().invoke(cli, ["serve", "--help"]).output.split()
    )


def test_what_docker_leaves_out_of_the_image_is_named_where_docker_looks() -> None:
    """docker reads .dockerignore alone, podman and buildah too; a checkout's own module must not reach the image."""
    left = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert {".git", ".venv", "**/*.so"} <= set(left) and not (ROOT / ".containerignore").exists()


def test_compose_publishes_loopback_alone_and_gives_answers_time_to_end() -> None:
    services = yaml.safe_load((PACKAGING / "compose.yaml").read_text("utf-8"))["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    server = services["server"]
    assert (PACKAGING / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert int(server["stop_grace_period"].removesuffix("s")) > 30  # --drain


def test_the_bill_of_materials_in_wheels_is_that_of_the_lock() -> None:
    """Red after a change of requirements/run.txt by hand: make sbom."""
    assert json.loads((PACKAGING / "freehold.cdx.json").read_text("utf-8")) == sbom.bill()


def test_a_wheel_carries_the_bill_and_what_shells_look_for() -> None:
    """pip puts .data/data/share under the environment, .dist-info/sboms is PEP 770's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    carried = project["tool"]["scikit-build"]["wheel"]["force-include"]
    assert all((ROOT / source).is_file() for source in carried)
    folders = {"${SKBUILD_METADATA_DIR}": ".dist-info", "${SKBUILD_DATA_DIR}": ".data/data"}
    spelled = {re.sub(r"\$\{\w+\}", lambda m: folders[m[0]], to) for to in carried.values()}
    assert spelled < set(wheel_checks.CARRIED)
