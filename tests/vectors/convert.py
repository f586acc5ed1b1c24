"""Makes GGUF files of the tiny models by llama.cpp's own converter, which shares no line with ours.

Run in an environment with torch, transformers, Freehold and gguf's dependencies:
`python -m tests.vectors.convert LLAMA_CPP OUT [FAMILY ...]`, where LLAMA_CPP is the folder with convert_hf_to_gguf.py
(the source distribution of llama-cpp-python carries it in vendor/llama.cpp). One process a model, as the converter
keeps state in its classes. check_families.py reads OUT.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# The converter knows these classes by the name that published files have.
PUBLISHED = {"PhimoeForCausalLM": "PhiMoEForCausalLM", "MinistralForCausalLM": "MistralForCausalLM"}
WRAPPED = ("Mistral4ForCausalLM",)
# It reads these configs through transformers, which renames what they state.
AS_WRITTEN = ("granitemoehybrid", "nemotron_h")


def convert(family: str, out: Path) -> None:
    """Convert one family's published form to out/FAMILY.gguf."""
    import conversion  # pyright: ignore[reportMissingImports]
    import gguf
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
    from conversion import ModelBase, ModelType, TextModel  # pyright: ignore[reportMissingImports]

    from tests.vectors import files, weights  # after its gguf is found first

    transformers.AutoTokenizer.from_pretrained = transformers.PreTrainedTokenizerFast.from_pretrained
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = files.write_published(family, Path(folder))
        config = _as_published(json.loads((path / "config.json").read_text()))
        (path / "config.json").write_text(json.dumps(config))
        if weights.FAMILIES[family].hf["model_type"] in AS_WRITTEN:
            ModelBase.load_hparams = staticmethod(lambda folder, is_mistral_format=False: dict(config))
        name = conversion.get_model_architecture(ModelBase.load_hparams(path, False), ModelType.TEXT)
        kind = conversion.get_model_class(name)
        for each in (kind, *vars(kind).values()):  # the tokenizer is none that it knows
            if isinstance(each, type) and hasattr(each, "set_vocab"):
                each.set_vocab = lambda self: self._set_vocab_gpt2()
        kind.no_mtp = True
        kind(path, gguf.LlamaFileType.ALL_F32, out / f"{family}.gguf", eager=True).write()


def _as_published(config: dict[str, Any]) -> dict[str, Any]:
    name = config["architectures"][0]
    config["architectures"] = [PUBLISHED.get(name, name)]
    if name in WRAPPED:
        inner = {key: value for key, value in config.items() if key != "architectures"}
        return {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "model_type": "mistral3",
            "text_config": inner,
        }
    return config


def main() -> int:
    """Convert each family in a process of its own; print those that the converter refuses."""
    source, out, *names = sys.argv[1:]
    sys.path[:0] = [f"{source}/gguf-py", source]
    Path(out).mkdir(parents=True, exist_ok=True)
    from tests.vectors import weights

    for family in names or weights.FAMILIES:
        child = os.fork()
        if not child:
            try:
                convert(family, Path(out))
                os._exit(0)
            except BaseException as error:
                print(f"{family:24} {type(error).__name__}: {error}", flush=True)
                os._exit(1)
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
