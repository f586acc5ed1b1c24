"""What packaging/ carries agrees with the program: completions, and the container's ports, paths and packages."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from freehold.cli.main import cli

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


def test_compose_publishes_loopback_alone_and_gives_answers_time_to_end() -> None:
    services = yaml.safe_load((PACKAGING / "compose.yaml").read_text("utf-8"))["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    server = services["server"]
    assert (PACKAGING / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert int(server["stop_grace_period"].removesuffix("s")) > 30  # --drain
