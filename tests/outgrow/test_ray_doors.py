"""Ray's ports: each has a number of ours, and the firewall's rule names each of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from freehold.base.errors import UsageError
from freehold.outgrow.ray import plan

# `ray start --help` of Ray 2.60.0: every option that is a port.
PORTS_OF_RAY = (
    *(
        "--port",
        "--object-manager-port",
        "--node-manager-port",
        "--ray-client-server-port",
        "--dashboard-port",
    ),
    *("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--runtime-env-agent-port"),
    *("--metrics-export-port", "--min-worker-port", "--max-worker-port"),
)


def flags() -> dict[str, str | None]:
    return {flag.name: flag.value for flag in plan.start_flags(cpus=2, gpus=0, folder="/tmp/r")}


def test_every_port_of_ray_start_is_named():
    given = flags()
    assert {name for name in given if name.endswith("-port") or name == "--port"} == set(PORTS_OF_RAY)
    numbers = [int(given[name] or 0) for name in PORTS_OF_RAY]
    variables = [int(n) for name, n in plan.environment().items() if name.endswith("_PORT")]
    assert len({*numbers, *variables}) == len(numbers) + len(variables)


def test_token_on_usage_reports_off_and_engines_not_starved():
    held = plan.environment()
    assert held["RAY_AUTH_MODE"] == "token"
    assert held["RAY_USAGE_STATS_ENABLED"] == "0"
    assert held["RAY_worker_niceness"] == "0"
    assert "--disable-usage-stats" in flags()
    assert flags()["--dashboard-host"] == "127.0.0.1"


def test_a_cluster_of_one_machine_is_held_to_loopback():
    assert plan.environment()["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in plan.environment(alone=False)
    assert flags()["--node-ip-address"] == "127.0.0.1"


def dropped(rules: str) -> set[int]:
    found: set[int] = set()
    for first, last in re.findall(r"tcp dport (\d+)(?:-(\d+))? drop", rules):
        found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("base", [plan.BASE, 30000])
def test_the_firewall_names_each_port_and_the_kernels_range(base: int):
    closed = dropped(plan.firewall(["10.0.0.7"], base))
    assert set(plan.named_ports(base).values()) <= closed
    first, last = plan.worker_ports(base)
    assert set(range(first, last + 1)) <= closed
    assert {32768, 60999} <= closed  # a replica's own port, which takes no option
    assert 22 not in closed and 443 not in closed


def test_the_firewall_lets_members_in_before_it_drops():
    lines = plan.firewall(["10.0.0.7", "fd00::/8"]).splitlines()
    allowed = [i for i, line in enumerate(lines) if line.endswith(" accept")]
    closed = [i for i, line in enumerate(lines) if " drop" in line]
    assert len(allowed) == 4 and max(allowed) < min(closed)
    assert any("10.0.0.7/32" in line for line in lines) and any("fd00::/8" in line for line in lines)


def test_a_member_that_is_no_address_is_refused():
    with pytest.raises(UsageError, match="'head; drop'"):
        plan.firewall(["head; drop"])


@pytest.mark.skipif(not (shutil.which("nft") and plan.can_fence()), reason="no nft or no namespaces here")
def test_nft_takes_the_rules_twice(tmp_path: Path):
    rules = tmp_path / "ray.nft"
    rules.write_text(plan.firewall(["10.0.0.7", "fd00::1"]))
    script = f"nft -f {rules} && nft -f {rules} && nft list ruleset"
    done = subprocess.run([*plan.FENCE, "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("drop") == len(plan.named_ports()) + 2
