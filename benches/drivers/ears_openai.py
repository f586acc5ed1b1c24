"""openai-whisper's driver for ears/golden.py: the reference in float32, greedy, with its best two tokens.

Path: ears/golden.py -> peer.Child -> this file
"""

from __future__ import annotations

import sys
import wave
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import whisper  # pyright: ignore[reportMissingImports]
from whisper.audio import N_FRAMES, N_SAMPLES, log_mel_spectrogram, pad_or_trim  # pyright: ignore[reportMissingImports]
from whisper.decoding import DecodingOptions, DecodingTask  # pyright: ignore[reportMissingImports]
from whisper.model import ModelDimensions, Whisper  # pyright: ignore[reportMissingImports]

from benches.lib.driver import serve


class OpenAIWhisper:
    """A model from tensors by openai's names."""

    def load(self, path: str, sizes: list[int], heads: list[list[int]], threads: int) -> dict[str, Any]:
        """Load an npz; `sizes` in the order of lib/ggml_whisper.SIZES, `heads` those that align words."""
        torch.set_num_threads(threads)
        vocab, audio, width, audio_heads, audio_layers, texts, _, text_heads, text_layers, bands = sizes
        dimensions = ModelDimensions(
            bands, audio, width, audio_heads, audio_layers, vocab, texts, width, text_heads, text_layers
        )
        self._model = Whisper(dimensions).eval()
        with np.load(path) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
        lacking, _ = self._model.load_state_dict(tensors, strict=False)
        assert not [name for name in lacking if not name.endswith("key.bias")], lacking
        mask = torch.zeros(text_layers, text_heads, dtype=torch.bool)
        for layer, head in heads:
            mask[layer, head] = True
        self._model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
        return {"version": f"openai-whisper {version('openai-whisper')}, torch {torch.__version__}"}

    def follow(self, path: str) -> dict[str, Any]:
        """Return the greedy tokens of a recording of one window; of each step the best two ids and their distance."""
        samples = torch.from_numpy(_samples(path))
        mel = log_mel_spectrogram(samples, self._model.dims.n_mels, padding=N_SAMPLES)
        frames = pad_or_trim(mel[:, : mel.shape[-1] - N_FRAMES], N_FRAMES)
        task = DecodingTask(self._model, DecodingOptions(language="en", fp16=False))
        tokens = torch.tensor([task.initial_tokens])
        ids: list[int] = []
        best: list[tuple[int, int, float]] = []
        with torch.no_grad():
            sound = self._model.encoder(frames[None])
            while len(ids) < task.sample_len and (not ids or ids[-1] != task.tokenizer.eot):
                row = self._model.decoder(tokens, sound)[:, -1]
                for rule in task.logit_filters:
                    rule.apply(row, tokens)
                values, two = row[0].topk(2)
                ids.append(int(two[0]))
                best.append((int(two[0]), int(two[1]), float(values[0] - values[1])))
                tokens = torch.cat([tokens, two[None, :1]], dim=1)
        return {"tokens": ids, "best": best, "text": task.tokenizer.decode(ids)}

    def words(self, path: str) -> dict[str, Any]:
        """Return the words of a recording with their times."""
        heard = whisper.transcribe(
            self._model, _samples(path), language="en", temperature=0.0, fp16=False, word_timestamps=True
        )
        return {"words": [[w["word"], w["start"], w["end"]] for s in heard["segments"] for w in s["words"]]}


def _samples(path: str) -> Any:
    with wave.open(path) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


if __name__ == "__main__":
    serve(OpenAIWhisper())
