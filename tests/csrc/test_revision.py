"""The module says which sources it was built from, and what is cached on disk is good for these alone."""

from __future__ import annotations

from hashlib import sha256

from freehold import _native as native

from .test_lint import CSRC


def test_revision_is_the_hash_of_the_sources_here():
    paths = sorted((p for p in CSRC.rglob("*") if p.suffix in {".cpp", ".h", ".inl"}), key=str)
    hashes = "".join(sha256(p.read_bytes()).hexdigest() for p in paths)
    assert native.REVISION.split()[0] == sha256(hashes.encode()).hexdigest(), "build the native module again"
