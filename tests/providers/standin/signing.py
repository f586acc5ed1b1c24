"""How the stand-in signs what its models think, and knows its own signatures again."""

from __future__ import annotations

import base64
import hashlib
import hmac

_SECRET = b"the stand-in's own, new with nothing"


def signature(model: str, *signed: str) -> str:
    """Sign texts as a model's own; base64, with the letters that urls do not take."""
    message = "\0".join((model, *signed)).encode()
    return base64.b64encode(b"\xfb\xff" + hmac.digest(_SECRET, message, hashlib.sha256)).decode()
