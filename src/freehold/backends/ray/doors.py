"""Ray's doors: the ports of a cluster, each with a number of ours, and what keeps others from them.

On one machine a cluster stays on loopback: in a network namespace of its own, outside which nothing listens, or,
where the system allows none, by Ray's own switch, which leaves one port of each replica on all interfaces. A cluster of
several machines has to be reached by its members: then `firewall` is the rule. Knows no process and no engine.
Path: plan.over -> start_flags; cli/deploy, emit -> firewall
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
import subprocess
from collections.abc import Iterable
from functools import cache

from freehold.backends.contract import PlannedFlag
from freehold.errors import UsageError

BASE = 26300
WORKERS = 200  # ports: one for each process of Ray's; beyond them it starts no more
# Serve's replicas open one more port each, for calls between apps, at a number that the kernel chooses; it takes no
# option. Linux's net.ipv4.ip_local_port_range, unless it was changed.
CHOSEN_BY_KERNEL = (32768, 60999)
_FLAGS = (
    ("--port", 0, "the cluster's state (GCS)"),
    ("--object-manager-port", 1, "objects between machines"),
    ("--node-manager-port", 2, "the raylet"),
    ("--dashboard-port", 3, "dashboard and jobs"),
    ("--dashboard-agent-listen-port", 4, "the dashboard's agent"),
    ("--dashboard-agent-grpc-port", 5, "the dashboard's agent, by gRPC"),
    ("--runtime-env-agent-port", 6, "environments of jobs"),
    ("--metrics-export-port", 7, "Ray's metrics"),
    ("--ray-client-server-port", 8, "drivers outside the cluster"),
)
_VARIABLES = (("AUTOSCALER_METRIC_PORT", 9), ("DASHBOARD_METRIC_PORT", 10))
INGRESS = 11  # after BASE
_FIRST_WORKER = 20


def named_ports(base: int = BASE) -> dict[str, int]:
    """Return every port that has a number of ours, by what names it; the workers' range is beside it."""
    named = {flag: base + at for flag, at, _ in _FLAGS} | {name: base + at for name, at in _VARIABLES}
    return named | {"ingress": base + INGRESS}


def worker_ports(base: int = BASE) -> tuple[int, int]:
    """Return the first and the last port of Ray's workers."""
    return base + _FIRST_WORKER, base + _FIRST_WORKER + WORKERS - 1


def start_flags(base: int = BASE, *, cpus: float, gpus: float, folder: str) -> tuple[PlannedFlag, ...]:
    """Return the flags of `ray start` for the head of a cluster on this machine alone."""
    first, last = worker_ports(base)
    return (
        PlannedFlag("--node-ip-address", "127.0.0.1", "loopback; Ray keeps it only where it sees no other"),
        *(PlannedFlag(flag, str(base + at), f"named: {what}") for flag, at, what in _FLAGS),
        PlannedFlag("--min-worker-port", str(first), "named: Ray's own processes"),
        PlannedFlag("--max-worker-port", str(last), f"{WORKERS} of them"),
        PlannedFlag("--dashboard-host", "127.0.0.1", "the dashboard can start jobs"),
        PlannedFlag("--num-cpus", f"{cpus:g}", "what the replicas ask for; Ray's own actors ask for none"),
        PlannedFlag("--num-gpus", f"{gpus:g}", "as many as the replicas ask for"),
        PlannedFlag(
            "--object-store-memory", str(128 << 20), "requests are small; the default is 30 % of memory"
        ),
        PlannedFlag("--disable-usage-stats", None, "nothing is reported"),
        PlannedFlag("--temp-dir", folder, "logs and sockets, for us alone"),
    )


def environment(base: int = BASE, *, alone: bool = True) -> dict[str, str]:
    """Return the variables of every Ray process. `alone`: a cluster on this machine and no other."""
    held = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else engines run at +15 and starve beside anything
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # the app has drained by then
        **{name: str(base + at) for name, at in _VARIABLES},
    }
    if alone:
        # What macOS and Windows do by default: this node's address is loopback's, and Ray binds that.
        held["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return held


def free_base() -> int:
    """Return the first base whose named ports are all free on loopback just now. Raises UsageError."""
    for base in range(BASE, BASE + 10 * (_FIRST_WORKER + WORKERS), _FIRST_WORKER + WORKERS):
        if all(map(_is_free, named_ports(base).values())):
            return base
    raise UsageError(f"ports from {BASE} on are taken: ten clusters run here", "stop one of them")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@cache
def can_fence() -> bool:
    """Return whether this user may make a network namespace: not every distribution allows it, and macOS has none."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*FENCE, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    return tried.returncode == 0


# A user namespace, so that no right of root is needed; a network namespace, whose loopback is its only interface.
FENCE = ("unshare", "--user", "--map-root-user", "--net", "--")


def firewall(members: Iterable[str], base: int = BASE, *, table: str = "freehold_ray") -> str:
    """Return nftables' rules for each machine of a cluster: its ports are open to `members` alone.

    `members`: addresses or networks of the cluster's machines and of the one where our server runs.
    """
    four, six = [], []
    for member in members:
        try:
            network = ipaddress.ip_network(member, strict=False)
        except ValueError:
            raise UsageError(
                f"{member!r} is not the address of a machine", "10.0.0.7, or 10.0.0.0/24"
            ) from None
        (four if network.version == 4 else six).append(str(network))
    first, last = worker_ports(base)
    lines = [f"# nft -f FILE on each machine of the cluster; nft delete table inet {table} takes it back"]
    lines += [f"add table inet {table}", f"delete table inet {table}", f"table inet {table} {{"]
    for version, addresses in (("4", four), ("6", six)):
        elements = f"elements = {{ {', '.join(addresses)} }}" if addresses else ""
        lines.append(f"  set members{version} {{ type ipv{version}_addr; flags interval; {elements} }}")
    lines += ["  chain input {", "    type filter hook input priority filter; policy accept;"]
    lines += ['    iif "lo" accept', "    ct state established,related accept"]
    lines += ["    ip saddr @members4 accept", "    ip6 saddr @members6 accept"]
    for name, port in named_ports(base).items():
        lines.append(f'    tcp dport {port} drop comment "{name}"')
    lines.append(f'    tcp dport {first}-{last} drop comment "Ray\'s workers"')
    kernel = "-".join(map(str, CHOSEN_BY_KERNEL))
    lines.append(f'    tcp dport {kernel} drop comment "replicas, at ports that the kernel chooses"')
    return "\n".join([*lines, "  }", "}", ""])
