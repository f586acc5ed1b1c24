"""Read what a user typed as MODEL: a catalogue name, a file path, a hub reference or a URL.

Touches the disk only to see whether a path exists, and not for a client's request.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from freehold.base.errors import UsageError

RefKind = Literal["name", "path", "hub", "url"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[\w][\w./-]{0,127}")
_HUB_HOSTS = ("hf.co/", "huggingface.co/")
# What Ollama's clients write around a name that needs neither.
LIBRARY, LATEST = "registry.ollama.ai/library/", ":latest"
_MAX_LENGTH = 2048
MODEL_SUFFIXES = (".gguf", ".safetensors")


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed MODEL. `text` is the canonical spelling; hub references fill the last three."""

    kind: RefKind
    text: str
    repo: str = ""
    quant: str = ""  # a quantisation such as Q4_K_M, or a file name inside the repository
    revision: str = "main"


def parse_ref(text: str, *, disk: bool = True) -> Ref:
    """Tell the kinds of MODEL apart; raise UsageError for what can be none of them.

    Without `disk` only the spelling counts: what a request is answered must not tell which files and users there are.
    """
    text = text.strip().removeprefix(LIBRARY)
    if not text or len(text) > _MAX_LENGTH or any(ord(c) < 32 for c in text):
        raise UsageError(f"not a model: {text[:60]!r}", "give a name, a file path or org/repo")
    if text.startswith("file://"):
        return Ref("path", str(Path(unquote(urlsplit(text).path))))
    if text.startswith(("http://", "https://")):
        return _from_url(text)
    if text.startswith("hf://"):
        return _hub(text, text[5:])
    for host in _HUB_HOSTS:
        if text.startswith(host):
            return _hub(text, text[len(host) :])
    if _is_path(text) or (disk and "/" in text and Path(text).exists()):
        return Ref("path", str(_home(text).absolute()) if disk else text)
    if "/" in text:
        return _hub(text, text)
    return Ref("name", text.lower().removesuffix(LATEST))


def slug(name: str) -> str:
    """Return a folder name for a model: readable, safe on every file system, different for each name."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name.replace("/", "--").replace(":", "@").split("?")[0])[-80:]
    plain = plain.replace("@", "_").lstrip(".-")
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain}-{digest}"


def _is_path(text: str) -> bool:
    if text.startswith(("/", "./", "../", "~", ".\\", "..\\")) or re.match(r"[A-Za-z]:\\", text):
        return True
    return text.lower().endswith(MODEL_SUFFIXES) and ":" not in text


def _home(text: str) -> Path:
    """Resolve a leading ~ or ~user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as e:  # pathlib's word for a user that is not there
        raise UsageError(f"{text!r} begins with the home of a user that this machine lacks") from e


def _from_url(text: str) -> Ref:
    parts = urlsplit(text)
    if not parts.hostname:
        raise UsageError(f"{text!r} is not a URL")
    if parts.username or parts.password:
        raise UsageError(
            f"the address of {parts.hostname} carries a password", "leave it out: it would be recorded"
        )
    if parts.hostname in ("huggingface.co", "hf.co"):
        match = re.fullmatch(rf"/({_REPO.pattern})(?:/(?:resolve|blob)/([^/]+)/(.+))?/?", parts.path)
        if match:
            repo, revision, file = match.groups()
            file = unquote(file or "")
            label = f"{repo}:{file}" if file else repo
            return Ref("hub", label, repo, file, revision or "main")
    return Ref("url", text.partition("#")[0])


def _hub(text: str, rest: str) -> Ref:
    """Parse org/repo[@revision][:quant]."""
    path, _, quant = rest.partition(":")
    repo, _, revision = path.partition("@")
    if not _REPO.fullmatch(repo) or (revision and not _REVISION.fullmatch(revision)) or ".." in path:
        adapter = "; an adapter behind + is for run, eval and serve" if "+" in text else ""
        raise UsageError(
            f"{text!r} is neither a file here nor a hub reference",
            f"write org/repo or org/repo:Q4_K_M{adapter}",
        )
    label = f"{path}:{quant}" if quant else path
    return Ref("hub", label, repo, quant, revision or "main")
