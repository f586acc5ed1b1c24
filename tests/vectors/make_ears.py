"""Makes golden/NAME.npz of towers of sound: what `transformers` computes of sounds, in float32 on the CPU.

Run from the repository's root in an environment with torch and transformers:
`python -m tests.vectors.make_ears [NAME ...]`. The model is loaded from the folder that make-tiny writes, so the writer
is checked too. Never reads our own engine's output.

A file has, for each sound i of LENGTHS, `features_i` float32 [rows, width]; for each chat c of CHATS `ids_c`, `full_c`
float32 [KEPT, vocabulary], the last rows of its logits, `greedy_c` and `margins_c`, what follows.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from transformers.models.gemma4.feature_extraction_gemma4 import (  # pyright: ignore[reportMissingImports]
    Gemma4AudioFeatureExtractor,
)
from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import (  # pyright: ignore
    Gemma4UnifiedAudioFeatureExtractor,
)

from freehold.run.models.tiny import make
from tests.vectors.ears import CHATS, GREEDY, KEPT, LENGTHS, NAMES, RATE, samples
from tests.vectors.make import GOLDEN
from tests.vectors.weights import checksum

EXTRACTORS: dict[str, Any] = {
    "gemma4": Gemma4AudioFeatureExtractor,
    "gemma4_unified": Gemma4UnifiedAudioFeatureExtractor,
    "voxtral": transformers.WhisperFeatureExtractor,
}
MARGIN = 0.02  # of a greedy token's logit above the next
SOUND = 3  # what a processor calls tokens of sound


class Reference:
    """A model with what makes its frames, as transformers loads them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.tiny = tiny = make.config(name)
        make.write_safetensors(tiny, folder)
        kind: Any = getattr(transformers, tiny.hf["architectures"][0])
        self.model, report = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"], report
        self.model.eval()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = {key: value for key, value in tiny.extractor.items() if key != "feature_extractor_type"}
        self.extractor = EXTRACTORS[tiny.hf["model_type"]](**settings)
        # Of Voxtral: samples of a chunk, to which its processor fills a sound up.
        self.chunk = tiny.hf["audio_config"].get("max_source_positions", 0) * 320

    def heard(self, numbers: list[int]) -> dict[str, Any]:
        """Return what the model takes of sounds."""
        if self.chunk:
            return {"input_features": torch.cat([self.chunks(number) for number in numbers])}
        out = self.extractor([samples(number) for number in numbers], return_tensors="pt")
        return {key: out[key] for key in ("input_features", "input_features_mask")}

    def chunks(self, number: int) -> torch.Tensor:
        """Return the frames of a sound chunk by chunk, as VoxtralProcessor lays them: [chunks, bands, frames]."""
        options: dict[str, Any] = {"padding": True, "truncation": False, "pad_to_multiple_of": self.chunk}
        out = self.extractor(samples(number), sampling_rate=RATE, return_tensors="pt", **options)
        frames = out["input_features"].reshape(self.extractor.feature_size, -1, self.chunk // 160)
        return frames.transpose(0, 1)

    def features(self, number: int) -> torch.Tensor:
        """Return the features of a sound, [rows, width]."""
        out = self.model.model.get_audio_features(**self.heard([number]), return_dict=True)
        return out.pooler_output if self.chunk else out.pooler_output[out.attention_mask]

    def ids(self, chat: Any, counts: list[int]) -> list[int]:
        """Return a chat's tokens, with those that a processor writes for sounds of so many rows."""
        mark, begin, end = (
            (self.tiny.marks[-1], self.tiny.marks[0], "") if self.chunk else self.tiny.marks[-3:]
        )
        messages = [{"role": role, "content": [_part(part) for part in parts]} for role, parts in chat]
        template = jinja2.Template(make.chat_template(self.tiny.picture_marks), keep_trailing_newline=True)
        text, *others = template.render(messages=messages, add_generation_prompt=True).split(mark)
        for count, after in zip(counts, others, strict=True):
            text += begin + mark * count + end + after
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def logits(self, ids: list[int], numbers: list[int]) -> torch.Tensor:
        """Run the model over tokens, which hold all rows of the sounds: [tokens, vocabulary]."""
        tokens = torch.tensor([ids])
        kinds = (tokens == self.tiny.hf["audio_token_id"]).int() * SOUND
        shown = self.heard(numbers) if numbers else {}
        shown |= {} if self.chunk else {"mm_token_type_ids": kinds}
        return self.model(input_ids=tokens, use_cache=False, **shown).logits[0]


def _part(part: int | str) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "audio"}


def of_chat(reference: Reference, chat: Any, counts: dict[int, int]) -> dict[str, np.ndarray]:
    """Return a chat's arrays."""
    numbers = [part for _, parts in chat for part in parts if isinstance(part, int)]
    ids = reference.ids(chat, [counts[number] for number in numbers])
    full = reference.logits(ids, numbers)
    chosen: list[int] = []
    margins: list[float] = []
    row = full[-1]
    for _ in range(GREEDY):
        best = torch.sort(row).values
        chosen.append(int(row.argmax()))
        margins.append(float(best[-1] - best[-2]))
        row = reference.logits([*ids, *chosen], numbers)[-1]
    print(f"  {len(ids)} tokens, std {full.std():.2f}, margins {min(margins):.2f}", flush=True)
    assert min(margins) > MARGIN, margins
    return {
        "ids": np.array(ids),
        "full": full[-KEPT:].numpy(),
        "greedy": np.array(chosen),
        "margins": np.array(margins),
    }


@torch.no_grad()
def of_model(name: str) -> None:
    """Compute and store one golden file."""
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(name, Path(folder))
    arrays: dict[str, np.ndarray] = {}
    counts: dict[int, int] = {}
    for i in range(len(LENGTHS)):
        arrays[f"features_{i}"] = features = reference.features(i).numpy()
        counts[i] = len(features)
        print(f"  {LENGTHS[i]} samples to {features.shape}, std {features.std():.2f}", flush=True)
    for c, chat in enumerate(CHATS):
        arrays |= {f"{key}_{c}": value for key, value in of_chat(reference, chat, counts).items()}
    path = GOLDEN / f"{name}.npz"
    np.savez_compressed(
        path,
        config=np.array(json.dumps(reference.tiny.hf)),
        weights_crc32=np.array(checksum(make.hf_tensors(reference.tiny))),
        made_by=np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
        **arrays,  # pyright: ignore[reportArgumentType]
    )
    print(f"  {path.stat().st_size:,} bytes", flush=True)


def main() -> None:
    """Make the files that are named, or all."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or NAMES:
        print(name, flush=True)
        of_model(name)


if __name__ == "__main__":
    main()
