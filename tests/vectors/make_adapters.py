"""Makes golden/lora-<case>.npz: logits of tiny models with adapters, merged by `peft` in float32 on the CPU.

Run from the repository's root in an environment with torch, transformers and peft, such as "oracle" of
benches/lib/environments.py:
`python -m tests.vectors.make_adapters [CASE ...]`. Adapters are read from the files that adapters.py writes.
Merged and beside their base they give the same within rounding, or nothing is stored. Never reads our own engine's
output.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import peft  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]

from tests.vectors import adapters, weights
from tests.vectors.make import AGREEMENT, GOLDEN, full_logits, load


def make(name: str) -> None:
    """Compute and store one case's golden file, and print how far the adapter moves the logits."""
    case = adapters.CASES[name]
    ids = weights.token_ids(case.family)
    with tempfile.TemporaryDirectory() as folder:
        base = load(case.family, Path(folder) / "base", legacy=False)
        plain = full_logits(base, ids)
        adapters.write_peft(case, Path(folder) / "adapter")
        model = peft.PeftModel.from_pretrained(base, Path(folder) / "adapter").eval()
        beside = full_logits(model, ids)
        merged = full_logits(model.merge_and_unload(), ids)
    apart, moved = float(np.abs(beside - merged).max()), float(np.abs(merged - plain).max())
    assert np.isfinite(merged).all() and apart < AGREEMENT and moved > 0.1, (name, apart, moved)
    np.savez_compressed(
        GOLDEN / f"lora-{name}.npz",
        ids=ids,
        full=merged,
        made_by=np.array(f"peft {peft.__version__}, torch {torch.__version__}"),
    )
    print(f"{name:14} std {merged.std():.2f}  moved {moved:.2f}  merged and beside apart {apart:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    for each in sys.argv[1:] or adapters.CASES:
        make(each)
