"""Makes golden/whisper.npz: what `transformers` computes of a tiny Whisper, eagerly in float32 on the CPU.

Run from the repository's root in an environment with torch and transformers: `python -m tests.vectors.make_whisper`.
Arrays: windows, prompts, `features` [2, rows, width], `logits` after each token of the prompts, `first` after the start
alone, `cross` [layers, 2, heads, tokens, rows], `greedy` ids from the start on. Never reads our own engine's output.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import WhisperForConditionalGeneration  # pyright: ignore[reportMissingImports]

from tests.vectors.make import GOLDEN
from tests.vectors.whisper import windows, write_whisper

PROMPTS = np.array([[1, 7, 9, 11, 40], [1, 8, 100, 31, 5]])
GREEDY = 12


@torch.no_grad()
def main() -> None:
    """Compute and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        model = WhisperForConditionalGeneration.from_pretrained(
            write_whisper(Path(folder)), attn_implementation="eager"
        ).eval()
    heard = windows()
    out = model(
        input_features=torch.tensor(heard), decoder_input_ids=torch.tensor(PROMPTS), output_attentions=True
    )
    features = out.encoder_last_hidden_state

    def logits(i: int, ids: list[int]) -> torch.Tensor:
        return model(encoder_outputs=(features[i : i + 1],), decoder_input_ids=torch.tensor([ids])).logits[
            0, -1
        ]

    greedy = []
    for i in range(2):
        ids = [1]
        for _ in range(GREEDY):
            ids.append(int(logits(i, ids).argmax()))
        greedy.append(ids)
    np.savez(
        GOLDEN / "whisper.npz",
        windows=heard,
        prompts=PROMPTS,
        features=features,
        logits=out.logits,
        first=torch.stack([logits(i, [1]) for i in range(2)]),
        cross=np.stack([each.numpy() for each in out.cross_attentions]),
        greedy=np.array(greedy),
    )


if __name__ == "__main__":
    main()
