"""Stand-ins: one program that speaks the recorded dialect of an engine that cannot run where the tests do.

    process = await asyncio.create_subprocess_exec(*standin.command("vllm", start_s=0.2), "--uds", path, ...)

After its own options it takes the engine's, in the engine's spelling: host, port, socket, served name; it ignores the
others. `server.py` lists how it dies on demand.
"""

from __future__ import annotations

import sys
from pathlib import Path

DIALECTS = ("vllm", "sglang", "trtllm", "llamacpp", "ollama", "mlx")


def command(dialect: str, **options: object) -> tuple[str, ...]:
    """Return the program that stands in for an engine's: `EngineFacts.command`. Options as `__main__.py` has them."""
    words = [sys.executable, str(Path(__file__).parent), "--dialect", dialect]
    for name, value in options.items():
        words.append(f"--standin-{name.replace('_', '-')}={value}")
    return tuple(words)
