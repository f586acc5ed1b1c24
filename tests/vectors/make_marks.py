"""Writes tokens/gemma3-270m-marks.json: texts with U+2581 in them, and the ids SentencePiece gives them.

The reference is SentencePiece itself with the vocabulary of the GGUF file: pieces, scores and kinds as they are, but
for spaces in user-defined pieces, which conversion wrote in place of U+2581. Gemma's normalizer is "identity", without
a dummy prefix, extra white space kept. Needs `sentencepiece` and `gguf`, in an environment of its own.

    python make_marks.py gemma3-270m.gguf
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "tokens" / "gemma3-270m-marks.json"
MARK = "\u2581"
PIECES = [MARK, MARK, MARK * 2, " ", "  ", "a", "the", "\n", "\t", "<b>", "é", "🙂", "def f():"]
CHOSEN = [
    MARK,
    MARK * 2,
    MARK * 31,
    MARK * 40,
    f"a{MARK}b",
    f"{MARK} the",
    f" {MARK}the",
    f"{MARK}{MARK} x",
    f"x {MARK}",
]


def processor(path: str) -> Any:
    """Return SentencePiece with the vocabulary of a GGUF file."""
    import gguf
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as proto

    fields = gguf.GGUFReader(path).fields
    texts, scores, kinds = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type")
    )
    model = proto.ModelProto()
    for text, score, kind in zip(texts, scores, kinds, strict=True):
        piece = model.pieces.add()
        piece.piece = text.replace(" ", MARK) if kind == 4 else text
        piece.score, piece.type = score, kind
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = 2, len(texts), True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    normalizer.name, normalizer.escape_whitespaces = "identity", True
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def main() -> None:
    encode = processor(sys.argv[1]).encode
    source = random.Random(1)
    texts = CHOSEN + ["".join(source.choices(PIECES, k=source.randint(2, 12))) for _ in range(150)]
    PATH.write_text(json.dumps({text: encode(text) for text in texts}) + "\n")


if __name__ == "__main__":
    main()
