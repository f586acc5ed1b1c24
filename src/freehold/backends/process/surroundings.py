"""The environment that an engine is given: what it needs of ours, by an allow-list, and what the plan says.

Ours may hold keys of providers, tokens of hubs, and switches that open an engine's doors (VLLM_SERVER_DEV_MODE); what
is not on the list stays with us. Knows variables; knows no engine.
Path: OwnProcess -> engine_environment
"""

from __future__ import annotations

import getpass
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress

from freehold import private
from freehold.backends.contract import DeployPlan, SecretRef
from freehold.errors import UsageError

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
        found = os.lstat(folder)
        writable = stat.S_IWGRP | stat.S_IWOTH
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & writable:
            return folder
    return ""


def values_of(references: tuple[SecretRef, ...], ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return variable -> value: 32 random bytes each, or what another variable holds. Raises UsageError."""
    ours = os.environ if ours is None else ours
    values = {}
    for reference in references:
        kind, _, name = reference.source.partition(":")
        if kind == "random":
            values[reference.variable] = secrets.token_hex(32)
        elif kind == "env" and ours.get(name):
            values[reference.variable] = ours[name]
        elif kind == "env":
            raise UsageError(
                f"the plan takes {reference.variable} from the environment's {name}, which is not set",
                f"export {name}, or leave the key to be made at random",
            )
        else:
            raise UsageError(
                f"{reference.source!r} is a secret of a cluster and has no value on this machine"
            )
    return values
