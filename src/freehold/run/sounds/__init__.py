"""Recordings that strangers send: bytes of a known form become samples at 16 kHz, within limits.

Path: open_sound -> open_wav, open_flac or open_compressed -> resampled_pieces -> Sound
"""

from __future__ import annotations

from freehold.run.sounds.opening import Sound, open_sound

__all__ = ["Sound", "open_sound"]
