"""Makes golden/<encoder>.npz by transformers, and golden/all-minilm.npz by sentence-transformers, in float32.

Run from the repository's root in an environment with sentence-transformers (benches/lib/environments.py has one of that
name): `python -m tests.vectors.make_encoders [FOLDER]`, FOLDER being where all-minilm:22m lies (`freehold show` tells).
Never reads our own engine's output.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from tests.vectors.encoders import ENCODERS, TEXTS, sequences, write_encoder

GOLDEN = Path(__file__).with_name("golden")


@torch.no_grad()
def make(name: str) -> None:
    """Store the last activations of an encoder's golden sequences, one behind the other."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_encoder(name, Path(folder))
        model = transformers.BertModel.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        rows = [model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0] for ids in sequences(name)]
    hidden = torch.cat(rows).numpy()
    np.savez_compressed(GOLDEN / f"{name}.npz", hidden=hidden, made_by=_made_by())
    print(f"{name:14} std {hidden.std():.2f}")


def make_minilm(folder: Path) -> None:
    """Store the embeddings of TEXTS by the real model, cut nowhere: it is set to read all 512 positions."""
    from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 512
    vectors = model.encode(list(TEXTS), convert_to_numpy=True, normalize_embeddings=True)
    np.savez_compressed(GOLDEN / "all-minilm.npz", vectors=vectors.astype(np.float32), made_by=_made_by())
    print(f"all-minilm     {vectors.shape}")


def _made_by() -> np.ndarray:
    return np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    for each in ENCODERS:
        make(each)
    for place in sys.argv[1:2]:
        make_minilm(Path(place))
