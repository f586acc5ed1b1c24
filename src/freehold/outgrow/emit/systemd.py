"""A plan as a system unit: our server starts the deployment, and engines are its children.

The unit may reach loopback alone, so neither engine can report or fetch anything, and what an engine opens beside its
socket is closed from outside; a server that listens beyond loopback is reached from private networks too. Devices stay
visible: engines need them. What engines compile is kept in the data folder: homes are read-only, and /tmp is new at
each start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.emit import EmitOptions, EmittedFile, file_text, label
from freehold.outgrow.flags import BY_OPTION

PROGRAM = "/opt/freehold/bin/freehold"  # where packaging/Containerfile has it


# Our data, and what vLLM, SGLang, Triton, Torch and FlashInfer compile.
_FOLDERS = (
    ("FREEHOLD_HOME", ""),
    ("VLLM_CACHE_ROOT", "/compiled/vllm"),
    ("SGLANG_CACHE_DIR", "/compiled/sglang"),
    ("TRITON_CACHE_DIR", "/compiled/triton"),
    ("TORCHINDUCTOR_CACHE_DIR", "/compiled/torch"),
    ("FLASHINFER_WORKSPACE_BASE", "/compiled"),
)
_PRIVATE = "localhost link-local 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7"
_LOOPBACK = ("127.", "::1", "localhost")


def systemd_files(plan: DeployPlan, options: EmitOptions) -> list[EmittedFile]:
    """Return the unit. Raises UsageError for more than one machine."""
    if plan.nodes.count > 1:
        raise UsageError(
            f"a unit starts one machine, and this plan is for {plan.nodes.count}", "--emit k8s or skypilot"
        )
    name = f"freehold-{label(plan.model.name)}.service"
    return [EmittedFile(name, unit_text(plan, options, name))]


def unit_text(plan: DeployPlan, options: EmitOptions, name: str) -> str:
    """Return the unit's text."""
    words = options.start or (PROGRAM, *deploy_words(plan))
    ours = options.user == EmitOptions.user
    # Its KillMode=mixed: the SIGTERM that begins the drain goes only to our server, which then ends its engines.
    # Its Restart=always: an end that was not asked for is a death, whatever its status; 2 is a wrong command line.
    return file_text(
        "unit.service",
        model=_plain(plan.model.name),
        engine=plan.engine,
        name=name,
        home=_quoted(options.home, variables=False),
        user=_word(options.user),
        before=f"# useradd --system --home-dir {options.home} --create-home {options.user}\n" if ours else "",
        command=" ".join(map(_quoted, words)),
        environment="\n".join(
            f"Environment={_quoted(f'{variable}={options.home}{below}', variables=False)}"
            for variable, below in _FOLDERS
        ),
        reaches=_reached(words),
        stop_s=options.drain_s + 30,
    )


def deploy_words(plan: DeployPlan) -> tuple[str, ...]:
    """Return the verb that starts this plan again: what was decided is decided anew, from the same choices."""
    words = ["deploy", plan.model.source, "--engine", plan.engine]
    if plan.replicas > 1:
        words += ["--replicas", str(plan.replicas)]
    if plan.context:
        words += ["--context", str(plan.context)]
    engine_flags = (
        f"--engine-flag={'='.join(flag.words())}" for flag in plan.flags if flag.reason == BY_OPTION
    )
    return (*words, "--name", plan.model.name, *engine_flags)


def _reached(words: Sequence[str]) -> str:
    """Return the addresses that may be reached, and from which clients come."""
    host = " ".join(words).replace("--host=", "--host ").partition("--host ")[2]
    return "localhost" if not host or host.startswith(_LOOPBACK) else _PRIVATE


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).replace("%", "%%")


def _word(word: str) -> str:
    if not re.fullmatch(r"[\w.@-]+", word):
        raise UsageError(f"{word!r} is not a user's name")
    return word


def _quoted(word: str, *, variables: bool = True) -> str:
    """Quote a word for systemd: no specifier, no line end; where it puts in `variables`, none of these."""
    if any(ord(c) < 32 for c in word):
        raise UsageError(f"{word!r} cannot be written in a unit file")
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    plain = plain.replace("$", "$$") if variables else plain
    return plain if plain and not any(c in plain for c in " '\"\\;#") else f'"{plain}"'
