"""receipt.json: what a run did, to what, from what, and what came of it; a result without one is not ours.

Knows the parts that every verb states; what a verb measures it adds as parts of its own. Numbers are plain JSON:
NaN and infinity are mistakes of the verb, and refused.
Path: a verb of adapt -> receipt -> RunFolder.finish
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from freehold import platforms
from freehold.store.records import ModelRef
from freehold.tokenizer import ChatTemplate
from freehold.version import __version__

SCHEMA = 1
NAME = "receipt.json"
_CHUNK = 1 << 20


def receipt(verb: str, inputs: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    """Return a receipt: who made it, `inputs` (hashes, settings, seeds), and a verb's own parts.

    Parts that several verbs have keep one name: `licence`, `before_after`, `control`, `text_loss`, `mismatch`,
    `divergence`, `speed`. `cpu_seconds` are this process's, unless a part says those of interrupted ones too.
    """
    return {
        "schema": SCHEMA,
        "verb": verb,
        "freehold": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": {
            "system": platforms.SYSTEM,
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "inputs": dict(inputs),
        "cpu_seconds": cpu_seconds(),
        **parts,
    }


def as_json(record: Mapping[str, Any]) -> str:
    """Return a receipt's text. Raises ValueError for NaN and infinity, TypeError for what JSON does not hold."""
    return json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def cpu_seconds() -> float:
    """Return the processor seconds of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(u.ru_utime + u.ru_stime for u in used), 2)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def model_digest(model: ModelRef) -> str:
    """Return the digest of a model's file, or of the list of its files' digests; of a user's file it is made now."""
    if model.digest:
        return model.digest
    files = model.files or (model.path,)
    digests = [file_digest(path) for path in files if path.is_file()]
    return digests[0] if len(digests) == 1 else text_digest("\n".join(digests))


def template_digest(template: ChatTemplate | None) -> str:
    """Return the SHA-256 of a chat template, of an empty text where a model has none."""
    return text_digest(template.source if template else "")


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
