"""Makes GGUF files of the tiny models by llama.cpp's own converter, which shares no line with ours.

Run in an environment with torch, transformers, Freehold and gguf's dependencies:
`python -m tests.vectors.convert LLAMA_CPP OUT [FAMILY ...]`, where LLAMA_CPP is the folder with convert_hf_to_gguf.py
(the source distribution of llama-cpp-python carries it in vendor/llama.cpp). One process a file, as the converter
keeps state in its classes. Of a model that sees, its tower becomes OUT/mmproj-FAMILY.gguf. check_families.py and
check_towers.py read OUT.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# The converter knows these classes by the name that published files have.
PUBLISHED = {
    "BailingHybridForCausalLM": "BailingMoeV3ForCausalLM",
    "MinistralForCausalLM": "MistralForCausalLM",
    "PhimoeForCausalLM": "PhiMoEForCausalLM",
}
WRAPPED = ("Mistral4ForCausalLM",)
# It reads these configs through transformers, which renames what they state.
AS_WRITTEN = ("bailing_hybrid", "falcon", "granitemoehybrid", "mimo_v2_flash", "nemotron_h", "step3p7")
AS_NAMED = ("gemma4", "gemma4_unified")  # models whose towers hubs name as our files do


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
        kind.no_mtp = not weights.FAMILIES[family].head
        kind(path, gguf.LlamaFileType.ALL_F32, out / f"{family}.gguf", eager=True).write()


def convert_tower(name: str, out: Path) -> None:
    """Convert the tower of one model that sees to out/mmproj-NAME.gguf."""
    import conversion  # pyright: ignore[reportMissingImports]
    import gguf
    import torch  # pyright: ignore[reportMissingImports]
    from conversion import ModelBase, ModelType  # pyright: ignore[reportMissingImports]

    from freehold.run.models.tiny import make
    from tests.vectors.eyes import EYES

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        tiny = make.config(name)
        path = make.write_safetensors(tiny, Path(folder))
        if tiny.hf["model_type"] == "gemma4_unified":  # whose converter asks for sizes of sound
            config = tiny.hf | {"audio_config": {"audio_embed_dim": 640}}
            (path / "config.json").write_text(json.dumps(config))
        renamed = tiny.hf["model_type"] not in AS_NAMED
        tensors = {_older_name(k) if renamed else k: v for k, v in make.hf_tensors(tiny).items()}
        if name in EYES and EYES[name].older:
            tensors, (config, pixels) = EYES[name].hub_tensors(tiny), EYES[name].hub_settings(tiny)
            vision = config["vision_config"]
            heads = vision.get("vt_num_attention_heads")  # it reads these of Kimi K2.5, but for one place
            vision = vision | ({"num_attention_heads": heads} if heads else {})
            (path / "config.json").write_text(json.dumps(config | {"vision_config": vision}))
            (path / "preprocessor_config.json").write_text(json.dumps(pixels))
        (path / "model.safetensors").write_bytes(make.safetensors_bytes(tensors, "BF16"))
        architecture = conversion.get_model_architecture(
            ModelBase.load_hparams(path, False), ModelType.MMPROJ
        )
        kind = conversion.get_model_class(architecture, mmproj=True)
        kind(path, gguf.LlamaFileType.ALL_F32, out / f"mmproj-{name}.gguf", eager=True).write()


def _older_name(name: str) -> str:
    """Return what hubs call a tensor of a tower that transformers has renamed since."""
    inner = name.removeprefix("model.").replace("projector.linear_", "mlp_AR.linear_")
    inner = inner.replace("projector.pre_norm", "mlp_AR.pre_norm")
    if inner.startswith(
        ("vision_tower.embeddings.", "vision_tower.encoder.", "vision_tower.post_layernorm.")
    ):
        return inner.replace("vision_tower.", "vision_tower.vision_model.")
    return (
        inner if inner.startswith(("vision_tower.", "multi_modal_projector.", "visual.", "mlp_AR.")) else name
    )


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
    """Convert each file in a process of its own; print those that the converter refuses."""
    source, out, *names = sys.argv[1:]
    from freehold.run.models.tiny import make
    from tests.vectors import weights  # before the converter's own tests are found first

    sys.path[:0] = [f"{source}/gguf-py", source]
    Path(out).mkdir(parents=True, exist_ok=True)
    for family in names or make.names():
        tasks = [convert] if family in weights.FAMILIES else []
        for task in [*tasks, convert_tower] if make.config(family).sees else tasks:
            child = os.fork()
            if not child:
                try:
                    task(family, Path(out))
                    os._exit(0)
                except BaseException as error:
                    print(f"{family:24} {type(error).__name__}: {error}", flush=True)
                    os._exit(1)
            os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
