"""The tiny models that see and are judged by whole pictures and chats: a row of EYES each; draws, computes nothing.

Path: EYES[name] -> make_eyes.py runs it through transformers; tests/models/test_eyes_golden.py runs it through us.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.run.models.tiny import make

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]
GREEDY = 6  # tokens of an answer, which is compared up to the first that is not
COLUMNS = 4  # of logits, one in so many is kept
CLEAR = 0.005  # above the next: three times how far logits may be apart
Chat = tuple[tuple[str, tuple[int | str, ...]], ...]  # messages: a role, and parts; a number is a picture

# Without a picture, before words, two between words, and a second turn with another picture.
CHATS: tuple[Chat, ...] = (
    (("user", ("no picture",)),),
    (("user", (0, "hi")),),
    (("user", ("see ", 1, " and\n\n", 2, "?")),),
    (("user", (3, "one")), ("assistant", ("two",)), ("user", (3, "three"))),
)
# The same, with lines beside pictures that join those around them.
LINES: tuple[Chat, ...] = (
    (("user", ("no picture\n\n\n",)),),
    (("user", (0, "hi")),),
    (("user", ("a\n", 1, "\nb")),),
    (("user", ("see ", 2, " and\n\n", 3, "?")),),
    (("user", (0, "one")), ("assistant", ("two",)), ("user", ("\n", 0, "three"))),
)


@dataclass(frozen=True)
class Eyes:
    """How a tiny model that sees is judged."""

    module: str  # of tests/vectors/towers: how transformers is asked
    sizes: tuple[tuple[int, int], ...]  # width and height of pictures: small, large, far from square
    chats: tuple[Chat, ...] = CHATS
    forms: tuple[str, ...] = ("safetensors", "gguf")  # how its files are written: golden_towers.FORMS
    older: tuple[
        tuple[str, str], ...
    ] = ()  # how names begin without `model.`, and what hubs have in its place
    lines_join: bool = False  # whether two and three line ends are one token each
    cosine: float = 0.999  # of a feature with the golden one, matrices rounded to int8: the least of all rows
    features: float = 5e-5  # how far features may be from the golden ones, in their standard deviations

    def picture(self, number: int) -> U8:
        """Draw one of the pictures, [height, width, 3]: slopes of two colours and stripes of the third."""
        width, height = self.sizes[number]
        y, x = np.mgrid[:height, :width]
        stripes = (x // 5 + y // (3 + number)) % 2 * 200
        slopes = x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1)
        return np.stack([stripes, *slopes], -1).astype(np.uint8)

    def hub_tensors(self, tiny: make.TinyConfig) -> dict[str, F32]:
        """Return all tensors as published files have them."""
        tensors = {self._hub_name(name): value for name, value in make.hf_tensors(tiny).items()}
        return _of_moonshot(tiny, tensors) if self.module == "kimivl" else tensors

    def hub_settings(self, tiny: make.TinyConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return config.json and preprocessor_config.json as published files have them."""
        if tiny.hf["model_type"] == "kimi_k25":
            return _moonshot_settings(tiny)
        return tiny.hf, tiny.preprocessor

    def _hub_name(self, name: str) -> str:
        inner = name.removeprefix("model.")
        return next((b + inner.removeprefix(a) for a, b in self.older if inner.startswith(a)), inner)

    def pictures_crc32(self) -> int:
        """Sum up all pictures."""
        return zlib.crc32(b"".join(self.picture(i).tobytes() for i in range(len(self.sizes))))


_HUB = (("vision_tower.", "vision_tower.vision_model."), ("language_model.", "language_model.model."))
_WHOLE = (("lm_head.", "language_model.lm_head."), ("language_model.", "language_model.model."))
_SIGLIP = (
    ("vision_tower.", "vision_tower.vision_model."),
    ("language_model.", "language_model.model."),
)
EYES: dict[str, Eyes] = {
    "gemma3-eyes": Eyes(
        "gemma3",
        ((97, 160), (64, 64), (30, 200), (2, 3)),
        chats=LINES,
        forms=("safetensors", "hub", "gguf", "swapped"),
        older=_HUB,
        lines_join=True,
    ),
    "mistral3-eyes": Eyes(
        "pixtral",
        # One that is taken as it is (of a single block transformers fails), one stretched, one shrunk, a line.
        ((56, 28), (47, 33), (150, 97), (139, 2), (60, 300)),
        chats=(*CHATS, (("user", ("up ", 4)),)),
        forms=("safetensors", "hub", "gguf", "break", "mistral"),
        older=_WHOLE,
        cosine=0.994,  # of a line on a machine without dot products of bytes; else 0.997
    ),
    # A square, one that is wide, a line, and one that is enlarged.
    "smolvlm": Eyes(
        "smolvlm", ((70, 70), (97, 40), (2, 90), (20, 30)), forms=("safetensors", "gguf", "swapped")
    ),
    # The same tower under its first name, as GraniteDocling has it: blocks of 4 x 4 patches.
    "idefics3": Eyes("smolvlm", ((120, 120), (97, 40), (2, 90), (20, 30)), forms=("safetensors", "gguf")),
    # One that has a tile's size, one shrunk to six tiles, a line of six, and one of two that is not enlarged.
    "llama4-eyes": Eyes(
        "llama4",
        ((32, 32), (200, 150), (3, 170), (40, 20)),
        forms=("safetensors", "hub", "gguf", "post"),
        older=_WHOLE,
    ),
    # As many patches as learned positions, more and fewer of them a side, one that is shrunk, a line.
    "kimi_k25": Eyes(
        "kimivl",
        ((48, 48), (90, 50), (130, 150), (300, 9)),
        forms=("safetensors", "hub", "gguf"),
        older=_WHOLE,
    ),
    "kimi_vl": Eyes(
        "kimivl",
        ((48, 48), (90, 50), (130, 150), (30, 9)),
        forms=("safetensors", "hub", "gguf"),
        older=_WHOLE,
    ),
    # One tile, six of a picture that is enlarged, five in a row, and a column.
    "internvl": Eyes(
        "internvl",
        ((24, 24), (40, 25), (127, 25), (9, 50)),
        forms=("safetensors", "hub", "chat", "gguf"),
        older=_WHOLE,
    ),
    "internvl-rms": Eyes(
        "internvl",
        ((24, 24), (40, 25), (127, 25), (9, 50)),
        forms=("safetensors", "hub", "chat"),
        older=_WHOLE,
    ),
    # Three wholes: one as it is, one enlarged, a line whose rows of positions shrink; and two tiles beside a whole.
    "lfm2_vl": Eyes(
        "lfm2vl",
        ((24, 24), (13, 9), (130, 3), (97, 40)),
        forms=("safetensors", "hub", "gguf"),
        older=_SIGLIP,
    ),
}
EYES["gemma3-eyes-wide"] = EYES["gemma3-eyes"]  # which pools 2 x 2 patches, with heads of 72 columns
EYES["pixtral"] = EYES["mistral3-eyes"]  # whose patches are not joined


# --- Kimi's published names -------------------------------------------------------------------------------

_MOON = {
    "norm1": "norm0",
    "norm2": "norm1",
    "mlp.fc1": "mlp.fc0",
    "mlp.fc2": "mlp.fc1",
    "attn.proj": "wo",
}
_MOON_ENDS = {
    "vision_tower.final_layernorm": "vision_tower.encoder.final_layernorm",
    "vision_tower.patch_embed.pos_emb.position_embeddings": "vision_tower.patch_embed.pos_emb.weight",
}
_MERGERS = {"kimi_k25": ("mm_projector.proj.0", "mm_projector.proj.2")}
_MERGERS["kimi_vl"] = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")


def _of_moonshot(tiny: make.TinyConfig, tensors: dict[str, F32]) -> dict[str, F32]:
    """Join q, k and v of each layer, pairs that turn together side by side, and give all the older names."""
    heads, merger = tiny.hf["vision_config"]["num_attention_heads"], _MERGERS[tiny.hf["model_type"]]
    ends = _MOON_ENDS | {f"mm_projector.{key}_proj": merger[i] for i, key in enumerate(("in", "out"))}
    ends["mm_projector.pre_norm"] = f"{merger[0].split('.')[0]}.pre_norm"
    out: dict[str, F32] = {}
    for name, value in tensors.items():
        module, _, end = name.rpartition(".")
        if module.startswith("vision_tower.layers."):
            number, _, inner = module.removeprefix("vision_tower.layers.").partition(".")
            block = f"vision_tower.encoder.blocks.{number}"
            if inner == "attn.q_proj":
                parts = [tensors[f"{module[:-6]}{key}_proj.{end}"] for key in "qkv"]
                pairs = [make.in_gguf_order(each, len(each) // heads) for each in parts[:2]]
                out[f"{block}.wqkv.{end}"] = np.concatenate([*pairs, parts[2]])
            elif inner not in ("attn.k_proj", "attn.v_proj"):
                out[f"{block}.{_MOON[inner]}.{end}"] = value
        else:
            out[ends.get(name) or f"{ends.get(module, module)}.{end}"] = value
    return out


def _moonshot_settings(tiny: make.TinyConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name sizes as Kimi K2.5's own class does."""
    vision, stated = dict(tiny.hf["vision_config"]), tiny.preprocessor
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    vision |= {f"vt_{key}": vision.pop(key) for key in sizes}
    vision |= {f"init_pos_emb_{key}": vision.pop(f"pos_emb_{key}") for key in ("height", "width", "time")}
    vision |= {"projector_ln_eps": 1e-5, "projector_hidden_act": "gelu", "mm_projector_type": "patchmerger"}
    vision |= {
        "merge_type": "sd2_tpool",
        "pos_emb_type": "divided_fixed",
        "mm_hidden_size": vision["vt_hidden_size"],
    }
    config = {key: tiny.hf[key] for key in ("model_type", "pad_token_id", "tie_word_embeddings")}
    config |= {"architectures": ["KimiK25ForConditionalGeneration"], "media_placeholder_token_id": 254}
    text = tiny.hf["text_config"] | {"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"]}
    pixels = {"in_patch_limit": stated["max_patches"], "merge_kernel_size": 2, "patch_limit_on_one_side": 512}
    pixels |= {"fixed_output_tokens": None, "in_patch_limit_each_frame": 4096}
    pixels |= {key: stated[key] for key in ("image_mean", "image_std", "patch_size")}
    return config | {"text_config": text, "vision_config": vision}, {"media_proc_cfg": pixels}


# --- InternVL's own class -----------------------------------------------------------------------------------

_OPENGVLAB = {
    "vision_tower.embeddings.cls_token": "vision_model.embeddings.class_embedding",
    "vision_tower.embeddings.patch_embeddings.projection": "vision_model.embeddings.patch_embedding",
    "vision_tower.embeddings.position_embeddings": "vision_model.embeddings.position_embedding",
    "multi_modal_projector.layer_norm": "mlp1.0",
    "multi_modal_projector.linear_1": "mlp1.1",
    "multi_modal_projector.linear_2": "mlp1.3",
}
_OPENGVLAB_LAYERS = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "lambda_1": "ls1", "lambda_2": "ls2",
    "attention.projection_layer": "attn.proj", "attention.q_norm": "attn.q_norm", "attention.k_norm": "attn.k_norm",
}  # fmt: skip


def opengvlab_tensors(tiny: make.TinyConfig) -> dict[str, F32]:
    """Return all tensors of an InternVL as OpenGVLab's own class names them: q, k and v of a layer as one."""
    tensors = {name.removeprefix("model."): value for name, value in make.hf_tensors(tiny).items()}
    out: dict[str, F32] = {}
    for name, value in tensors.items():
        module, _, end = name.rpartition(".")
        if name.startswith("vision_tower.encoder.layer."):
            number, _, inner = name.removeprefix("vision_tower.encoder.layer.").partition(".")
            layer, part = f"vision_model.encoder.layers.{number}", inner.removesuffix(f".{end}")
            if part.endswith("q_proj"):
                own = [tensors[name.replace("q_proj", f"{key}_proj")] for key in "qkv"]
                out[f"{layer}.attn.qkv.{end}"] = np.concatenate(own)
            elif inner in _OPENGVLAB_LAYERS:
                out[f"{layer}.{_OPENGVLAB_LAYERS[inner]}"] = value
            elif not part.endswith(("k_proj", "v_proj")):
                out[f"{layer}.{_OPENGVLAB_LAYERS.get(part, part)}.{end}"] = value
        elif name in _OPENGVLAB:
            out[_OPENGVLAB[name]] = value
        elif module in _OPENGVLAB:
            out[f"{_OPENGVLAB[module]}.{end}"] = value
        elif name == "lm_head.weight":
            out["language_model.lm_head.weight"] = value
        else:
            out[name.replace("language_model.", "language_model.model.")] = value
    return out


def opengvlab_config(tiny: make.TinyConfig) -> dict[str, Any]:
    """Return the config.json of OpenGVLab's own class."""
    vision, tiles = tiny.hf["vision_config"], tiny.preprocessor
    same = (
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_norm_eps",
        "norm_type",
        "num_attention_heads",
    )
    own = {key: vision[key] for key in (*same, "num_channels", "num_hidden_layers")}
    own |= {
        "model_type": "intern_vit_6b",
        "image_size": vision["image_size"][0],
        "patch_size": vision["patch_size"][0],
    }
    own |= {"qkv_bias": vision["attention_bias"], "qk_normalization": vision["use_qk_norm"]}
    config: dict[str, Any] = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": own["image_size"],
        "min_dynamic_patch": tiles["min_patches"], "max_dynamic_patch": tiles["max_patches"],
        "ps_version": "v2", "select_layer": -1, "use_thumbnail": True, "template": "internvl2_5",
    }  # fmt: skip
    return config | {"llm_config": tiny.hf["text_config"], "vision_config": own}


# --- a tokenizer that joins empty lines -------------------------------------------------------------------

_JOINED = ("\u010a\u010a", "\u010a\u010a\u010a")  # two and three line ends, as byte-level BPE spells them
_MERGES = ("\u010a \u010a", "\u010a\u010a \u010a")


def lines_join(folder: Path) -> None:
    """Let two and three line ends be one token each in a folder's tokenizer, in place of two words."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    keys = _joined(list(model["vocab"]), [" ".join(merge) for merge in model["merges"]])
    model["vocab"] = {token: i for i, token in enumerate(keys["tokenizer.ggml.tokens"])}
    model["merges"] = [merge.split(" ") for merge in keys["tokenizer.ggml.merges"]]
    path.write_text(json.dumps(data), encoding="utf-8")


def joining_keys(tiny: make.TinyConfig) -> dict[str, Any]:
    """Return the keys of a GGUF with the same tokenizer."""
    keys = make.gguf_keys(tiny.picture_marks)
    return _joined(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.merges"])


def _joined(tokens: Iterable[str], merges: list[str]) -> dict[str, Any]:
    out = list(tokens)
    for merge, joined in zip(merges[-2:], _JOINED, strict=True):
        out[out.index(merge.replace(" ", ""))] = joined
    return {"tokenizer.ggml.tokens": out, "tokenizer.ggml.merges": [*merges[:-2], *_MERGES]}
