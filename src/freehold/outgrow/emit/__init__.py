"""Writes a plan as files of another system: text in, text out; nothing is started, nothing is written to disk.

    for file in emit(plan, "k8s", EmitOptions(image="vllm/vllm-openai@sha256:...", server_image="...")):
        (folder / file.name).write_text(file.text)

EmitOptions are what a plan does not know: images, volumes, the place of the program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from typing import Any

from freehold.base.config import suggestion
from freehold.base.errors import UsageError
from freehold.outgrow.contract import DeployPlan

SERVER_PORT = 11435  # of our server, in containers too
Doc = dict[str, Any]  # an object of a YAML file
DIGEST = re.compile(r"[a-z0-9][\w./:-]*@sha256:[0-9a-f]{64}")
_LABEL = re.compile(r"[^a-z0-9]+")
_OBJECT = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")  # RFC 1123's subdomain; a namespace has no dots
_MOST_NAMESPACE, _MOST_OBJECT = 63, 253


@dataclass(frozen=True, slots=True)
class EmittedFile:
    """One file, to be written where the user says."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class EmitOptions:
    """What the user adds to a plan for its files. Empty: the kind needs it and says so, or has a default."""

    image: str = ""  # the engine's, with its digest
    server_image: str = ""  # ours, with its digest (packaging/Containerfile builds it)
    claim: str = ""  # PersistentVolumeClaim whose root is the model's folder; default NAME-model
    namespace: str = "default"
    start: tuple[str, ...] = ()  # our command line in a systemd unit; default: from the plan
    home: str = "/var/lib/freehold"  # data folder of a systemd unit
    user: str = "freehold"  # who runs it
    members: tuple[str, ...] = ()  # of a Ray cluster: addresses of its machines and of our server's
    monitoring: str = ""  # namespace of a cluster's Prometheus, which then reads the engines' counters
    scale: str = ""  # "1..4": replicas by the engines' queues, by KEDA; needs `monitoring`
    pool: str = ""  # a Gateway before an InferencePool of the engines: prefixes keep their replica
    drain_s: int = 60  # for running answers, when something is asked to end


def file_text(file: str, /, **values: object) -> str:
    """Return a file of this folder, with `values` in place of each `@name@`."""
    text = resources.files("freehold.outgrow.emit").joinpath(file).read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda place: str(values.get(place[1], place[0])), text)


def label(name: str) -> str:
    """Return a model's name as a DNS label of at most 40 characters, so that suffixes fit."""
    text = _LABEL.sub("-", name.lower()).strip("-")[:40].strip("-")
    return text if text[:1].isalpha() else f"m-{text}".rstrip("-")


def check_objects(options: EmitOptions) -> None:
    """Raise UsageError for a namespace or a claim that no cluster has: lines for a shell have them too."""
    space, claim = options.namespace, options.claim
    if not _OBJECT.fullmatch(space) or "." in space or len(space) > _MOST_NAMESPACE:
        raise UsageError(
            f"--namespace {space[:80]!r} is not a name of Kubernetes", "lower-case letters, digits and dashes"
        )
    if claim and (not _OBJECT.fullmatch(claim) or len(claim) > _MOST_OBJECT):
        raise UsageError(
            f"--claim {claim[:80]!r} is not a name of Kubernetes",
            "lower-case letters, digits, dashes and dots",
        )


def comment(lines: Iterable[str]) -> str:
    """Return lines as comments of YAML. Nothing in them ends one: a name of others may have what looks like a line."""
    return "".join(f"# {''.join(c if c.isprintable() else ' ' for c in line)}\n" for line in lines)


def heading(plan: DeployPlan, kind: str, lines: Sequence[str], size: str = "") -> str:
    """Return a file's first comment: what it starts (`size`: on how much), then `lines`."""
    engine = f"{plan.engine} {plan.version}".rstrip()
    first = f"{plan.model.name} on {engine}{size}, written by freehold deploy --emit {kind}."
    return comment((first, *lines))


def pinned(option: str, image: str, example: str) -> str:
    """Return the image. Raises UsageError without a digest: a tag may be another program tomorrow."""
    if DIGEST.fullmatch(image):
        return image
    problem = f"{option} is {image!r}, which has no digest" if image else f"these files need {option}"
    raise UsageError(
        problem,
        f"write {option} {example}@sha256:..., 64 hex digits (docker buildx imagetools inspect {image or example} "
        "prints them)",
        field="image",
    )


def yaml_text(documents: Sequence[Any], head: str = "") -> str:
    """Return the documents as one text, keys in their order. Raises UsageError without PyYAML (extra `gateway`)."""
    try:
        import yaml
    except ImportError as e:
        raise UsageError(
            "these files are YAML, and PyYAML is not installed", "pip install 'freehold[gateway]'"
        ) from e

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # an alias is harder to change by hand than what it stands for

    def written(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, written)
    text = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    return head + text


# kind -> the file of this room that writes it, by its KIND_files
KINDS = {
    "systemd": "systemd",
    "compose": "compose",
    "k8s": "kubernetes",
    "skypilot": "skypilot",
    "ray": "ray",
}


def emit(plan: DeployPlan, kind: str, options: EmitOptions | None = None) -> Sequence[EmittedFile]:
    """Return the files. Raises UsageError: an unknown kind, an image that is missing, what the kind cannot run."""
    if kind not in KINDS:
        raise UsageError(
            f"{kind!r} is not a kind of files",
            suggestion(kind, tuple(KINDS), f"one of {', '.join(KINDS)}"),
            "emit",
        )
    if plan.attached and kind != "systemd":
        raise UsageError(
            f"the engine at {plan.attached} runs already: --emit {kind} would have nothing to start",
            "--emit systemd starts a server of ours in front of it",
        )
    file = KINDS[kind]
    write: Callable[[DeployPlan, EmitOptions], Sequence[EmittedFile]]
    write = getattr(import_module(f"freehold.outgrow.emit.{file}"), f"{file}_files")
    return write(plan, options or EmitOptions())
