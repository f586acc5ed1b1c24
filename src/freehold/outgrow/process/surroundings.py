"""What an engine is given at its start: an environment, its secrets, a port, and files and links in its folder.

Our environment may hold keys of providers, tokens of hubs, and switches that open an engine's doors
(VLLM_SERVER_DEV_MODE); what is not on the list here stays with us. Knows variables and placeholders; knows no engine.
"""

from __future__ import annotations

import getpass
import json
import os
import random
import secrets
import socket
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from freehold.base import private
from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan, Listens, SecretRef, fill

# What keeps the hub's client and the libraries below engines from calling out.
PRIVATE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
# Programs and libraries, places of caches, devices, threads, network interfaces of collectives.
_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "SSL_CERT_FILE", "SSL_CERT_DIR", "CC", "CXX", "MAX_JOBS"),
        *("HF_HOME", "HF_HUB_CACHE", "VLLM_CACHE_ROOT", "VLLM_TARGET_DEVICE", "SGLANG_CACHE_DIR"),
        "FLASHINFER_WORKSPACE_BASE",
        *("OLLAMA_MODELS", "OLLAMA_LLM_LIBRARY", "ZE_AFFINITY_MASK", "FREEHOLD_ISA"),
    }
)
_BEGINNINGS = (
    *("LC_", "XDG_", "CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_", "HSA_", "ROCM_", "GPU_DEVICE_", "ONEAPI_"),
    *("OMP_", "MKL_", "KMP_", "GOMP_", "GLOO_", "UCX_", "TORCHINDUCTOR_", "TRITON_", "VLLM_CPU_", "GGML_"),
)


def engine_environment(
    plan: DeployPlan, held: Mapping[str, str], ours: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the whole environment of an engine: what is passed on, the plan's variables, and its secrets' values."""
    ours = os.environ if ours is None else ours
    passed = {name: value for name, value in ours.items() if name in _NAMES or name.startswith(_BEGINNINGS)}
    filed = {reference.variable for reference in plan.secrets if reference.file}
    keys = {name: value for name, value in held.items() if name not in filed}
    # The engine's temporary files go with it; what Torch compiled stays.
    kept = {"TORCHINDUCTOR_CACHE_DIR": folder} if (folder := _compiled()) else {}
    return {**kept, **passed, "PYTHONNOUSERSITE": "1", **plan.environment, **keys}


def _compiled() -> str:
    """Return where Torch keeps what it compiled, unless a variable says otherwise: a folder that is ours alone.

    Torch runs what it finds there, and any account may make a folder of that name first, or a link. Then there is none:
    what is compiled goes with the engine's other temporary files.
    """
    folder = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    with suppress(OSError):
        with suppress(FileExistsError):
            os.mkdir(folder, private.FOLDER)
        status = os.lstat(folder)
        writable = stat.S_IWGRP | stat.S_IWOTH
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & writable:
            return folder
    return ""


def values_of(references: tuple[SecretRef, ...]) -> dict[str, str]:
    """Return variable -> value: 32 random bytes each, or what another variable holds. Raises UsageError."""
    values = {}
    for reference in references:
        kind, _, name = reference.source.partition(":")
        if kind == "random":
            values[reference.variable] = secrets.token_hex(32)
        elif kind == "env" and os.environ.get(name):
            values[reference.variable] = os.environ[name]
        elif kind == "env":
            raise UsageError(
                f"the plan takes {reference.variable} from the environment's {name}, which is not set",
                f"export {name}, or leave the key to be made at random",
            )
        else:
            where = "is a secret of a cluster and has no value on this machine"
            raise UsageError(f"{reference.source!r} {where}")
    return values


# --- what a plan leaves open until the start: a port of loopback, files and links in the replica's folder ---------

# Below the ports that systems lend to outgoing connections (32768 on for Linux, 49152 on for macOS): an engine that
# needs a minute to start would else find its port taken by some program's request.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """Return a port of loopback that was free just now, and that no outgoing connection is lent meanwhile.

    Raises:
        OSError: none of 100 ports drawn by chance was free.
    """
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port of loopback among 100 drawn from {_PORTS.start} to {_PORTS.stop - 1}")


def filled(plan: DeployPlan, folder: Path) -> DeployPlan:
    """Return the plan with the replica's folder, and a port in place of 0, in its flags and variables too."""
    listens = plan.listens
    if listens.socket is not None:
        listens = Listens(Path(str(listens.socket).replace("{folder}", str(folder))))
    elif not listens.port:
        listens = Listens(host=listens.host, port=free_port())
    places = {"{folder}": str(folder), "{port}": str(listens.port)}
    return replace(
        plan,
        listens=listens,
        flags=tuple(replace(flag, value=flag.value and fill(flag.value, places)) for flag in plan.flags),
        environment={name: fill(value, places) for name, value in plan.environment.items()},
    )


def make_links(plan: DeployPlan, folder: Path) -> None:
    """Make the plan's links in the replica's folder, in place of those of an earlier start."""
    for name, target in plan.links.items():
        link = folder / name
        private.folder(link.parent, folder)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def write_keys(plan: DeployPlan, folder: Path, held: Mapping[str, str]) -> None:
    """Write the secrets that an engine reads from files, where it takes them from no variable."""
    for name in {reference.file for reference in plan.secrets if reference.file}:
        keys = {r.variable: held[r.variable] for r in plan.secrets if r.file == name}
        write_settings(folder / name, keys)


def write_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Write a file of settings that its user alone can read. JSON is YAML."""
    with open(path, "w", encoding="utf-8", opener=private.opener) as file:
        json.dump(dict(settings), file)
