"""The base of the structs that say what whole answers look like, for the OpenAPI document.

Handlers build plain objects and do not know these structs; tests/server/test_openapi.py compares the two by field.
Path: a protocol's replies.py -> app.py's routes -> openapi.document
"""

from __future__ import annotations

from msgspec import Struct


class WireReply(Struct, kw_only=True, forbid_unknown_fields=True):
    """An object with these fields and no others."""
