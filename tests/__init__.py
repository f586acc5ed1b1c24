"""Tests mirror `src/freehold` and `csrc`; `pytest` alone needs no network, no weights and no torch."""
