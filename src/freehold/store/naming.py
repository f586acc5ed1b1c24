"""Names that a request or a file gives: `base+adapter` split, where the store has no model of the whole name.

Path: cli/chat, reports/gateway_file -> parted -> Store.resolve
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from freehold.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from freehold.store import Store


def parted(store: Store, model: str) -> tuple[str, str]:
    """Split `base+adapter`; the name of a stored model, or a file, has no adapter."""
    from freehold.formats.adapter_names import ADAPTER_NAME
    from freehold.store.refs import parse_ref

    base, plus, adapter = model.rpartition("+")
    if not (base and plus and re.fullmatch(ADAPTER_NAME, adapter)) or parse_ref(base).kind == "path":
        return model, ""
    try:
        store.resolve(model)
    except (ModelNotFound, UsageError):
        return base, adapter
    return model, ""
