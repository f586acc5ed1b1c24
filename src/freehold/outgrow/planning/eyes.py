"""What a plan knows of a model's eyes: where its tower is, what it takes, how many tokens engines make of a picture.

    model = with_mmproj(model, gguf, None)     # DeployedModel.tower, and its weights among the sizes
    model = with_hub(model, published)         # the same of a GGUF that is not here yet
    counts = llamacpp_counts(model.tower)      # what its limits are to be, and where it counts otherwise than we do

vLLM and SGLang use the processor of the model's own repository, as our towers do (models/towers). llama.cpp has rules
of its own, which its counts showed (tests/outgrow/recorded/llamacpp_picture_tokens.json). Reads headers alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.base.catalog.model import Model
from freehold.base.errors import FreeholdError
from freehold.base.sandbox.children import passed_on
from freehold.base.types import MAX_PICTURES
from freehold.choose.advisor.anatomy import WeightGroup, from_catalogue
from freehold.outgrow.contract import DeployedModel, DeployedTower, PlanRequest

if TYPE_CHECKING:
    from freehold.run.formats import Tensor

# What engines take in a request beside text: as our server does.
ONLY_PICTURES = json.dumps({"image": MAX_PICTURES, "video": 0, "audio": 0})
PICTURES_GIB = 1  # of vLLM's cache of pictures as its processor left them, in each process that has one
# Of tensors in a folder of safetensors, whatever the tower: it is counted where it is not one of ours, too.
_VISION = (
    "vision_",
    "visual.",
    "multi_modal_projector.",
    "embed_vision.",
    "connector.",
    "mlp1.",
    "mm_projector.",
)
COMMAND = (sys.executable, "-P", "-m", "freehold.run.models.counts")
LIMIT_S = 60.0


def seeing(model: DeployedModel, tower: DeployedTower | None, parts: Iterable[WeightGroup]) -> DeployedModel:
    """Return a model with its tower, whose weights are among its sizes; without one as it is."""
    if tower is None:
        return model
    anatomy = replace(model.anatomy, parts=(*model.anatomy.parts, *parts))
    return replace(model, anatomy=anatomy, tower=tower)


def with_folder(model: DeployedModel, folder: Path) -> DeployedModel:
    """Return the model of a folder of safetensors with the tower that its files hold."""
    from freehold.run.formats import open_model_file

    with suppress(FreeholdError), open_model_file(folder) as opened:
        tensors = [t for name, t in opened.tensors.items() if name.removeprefix("model.").startswith(_VISION)]
        if tensors:
            return seeing(model, _of_file(str(folder), "", str(folder)), _weights(tensors))
    return model


def with_mmproj(model: DeployedModel, gguf: Path, mmproj: Path | None) -> DeployedModel:
    """Return the model of a GGUF with its tower: `mmproj`, or else the file beside it that fits."""
    from freehold.run.formats import open_model_file
    from freehold.run.store.eyes import beside, misfit

    if mmproj is None:
        near = beside(gguf)
        mmproj = Path(near.eyes.path) if near.eyes else None
    if mmproj is None or misfit(gguf, mmproj):
        return model
    with open_model_file(mmproj) as opened:
        return seeing(
            model, _of_file(str(mmproj), str(mmproj.resolve()), str(gguf)), _weights(opened.tensors.values())
        )


# By architecture: towers beside the GGUF copies that are published of these models, which llama.cpp fetches with them.
# Tokens of a picture are the published files' limits.
_AT_HUB = {
    "gemma3": DeployedTower("", "gemma3", 256, 256, True),
    "gemma4": DeployedTower("", "gemma4", 252, 280, True),
    "qwen2vl": DeployedTower("", "qwen25vl", 4, 16_384),
    **dict.fromkeys(
        ("qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"), DeployedTower("", "qwen3vl", 64, 16_384)
    ),
    **dict.fromkeys(("mistral3", "mistral4"), DeployedTower("", "pixtral", 1, 3025)),
}
_WORD_BY_WORD = (1536, 2560)  # widths of Gemma 4 E2B and E4B, which see a picture as they read words


def with_hub(model: DeployedModel, published: Model) -> DeployedModel:
    """Return the model of a GGUF at the hub with the tower that is published beside it, where it is one that is known.

    Sizes are those of the catalogue; without a count of the tower's weights the model stays one of text.
    """
    tower = _AT_HUB.get(published.architecture)
    if tower is None or "image" not in published.modalities:
        return model
    if tower.name == "gemma4" and published.hidden in _WORD_BY_WORD:
        tower = replace(tower, whole=False)
    parts = from_catalogue(published, "BF16").parts
    towers = [part for part in parts if part.role == "towers"]
    return seeing(model, tower, towers) if towers else model


def _weights(tensors: Iterable[Tensor]) -> list[WeightGroup]:
    """Return a tower's tensors by type; no token of text reads them."""
    import math

    sums: dict[str, list[float]] = {}
    for tensor in tensors:
        weights, nbytes = sums.setdefault(tensor.type.name, [0.0, 0.0])
        sums[tensor.type.name] = [weights + math.prod(tensor.shape), nbytes + tensor.nbytes]
    return [WeightGroup("towers", kind, weights, nbytes, 0.0) for kind, (weights, nbytes) in sums.items()]


def _of_file(source: str, file: str, text: str) -> DeployedTower:
    """Return what is known of a tower beside the text model `text`: of one that is none of ours, its file alone."""
    facts = tower_counts(source, text=text)
    if not facts:
        return DeployedTower(file)
    return DeployedTower(file, facts["name"], facts["least"], facts["most"], facts["whole"])


def tower_counts(file: str, sizes: Sequence[tuple[int, int]] = (), text: str = "") -> dict[str, Any]:
    """Return what models/counts.py answers of a file, {} where it answers nothing.

    In a process of its own, about half a second: the HTTP server, which plans too, has no engine.
    """
    request = json.dumps({"file": file, "text": text, "sizes": sizes}) + "\n"
    try:
        done = subprocess.run(
            COMMAND,
            input=request,
            env=passed_on(),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        facts = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


# --- how many tokens llama.cpp makes of a picture -----------------------------------------------------------
# Read from llama-cpp-python 0.3.36 (September 2026), by mtmd_tokenize; the recorded counts are in the tests.


@dataclass(frozen=True, slots=True)
class PictureCounts:
    """What to give llama.cpp of a model's limits, so that it counts as we do; 0: it has no flag for it."""

    least: int = 0
    most: int = 0
    note: str = ""  # where its counts are other than ours; "": nowhere


def llamacpp_counts(tower: DeployedTower) -> PictureCounts:
    """Return what llama.cpp's limits have to be for a tower.

    It takes no limit from a file but its own constants: 8 to 4,096 tokens for Qwen, up to 1,024 for Pixtral, 70 to
    1,120 for Gemma 4, whose pictures it does not fill up to the budget.
    """
    match tower.name:
        case "":
            return PictureCounts(
                note="Freehold does not run this vision encoder itself: the engine's token counts and limits apply"
            )
        case "qwen3vl":
            return PictureCounts(tower.least, tower.most, _ROUNDS)
        case "gemma4" | "gemma4_unified":
            return PictureCounts(tower.most * 9 // 10, tower.most, _FILLS.format(most=tower.most))
        case "pixtral":
            return PictureCounts(note=_SHRINKS.format(most=tower.most))
        case _ if tower.least == tower.most:
            return PictureCounts()
        case "smolvlm":
            return PictureCounts()
        case _:
            return PictureCounts(tower.least, tower.most, _UNTRIED)


_BARS = (
    "llama.cpp adds black bars where other engines stretch a picture, and ignores EXIF, so answers may differ"
)
_ROUNDS = (
    f"llama.cpp rounds a side halfway between two token counts up, Freehold's engine to the even one; {_BARS}"
)
_FILLS = (
    "llama.cpp does not enlarge pictures up to the budget of {most} tokens, so the minimum is set near it; a small "
    "picture may take 10 % more tokens than in Freehold's engine, and a very long or wide one up to twice as many, "
    f"even beyond the budget; {_BARS}"
)
_SHRINKS = (
    "llama.cpp shrinks pictures to 1,024 tokens, Freehold's engine to {most:,}; small print may be lost; "
    f"--engine-flag=--image-max-tokens=N allows more; {_BARS}"
)
_UNTRIED = f"its token counts for pictures were not compared with Freehold's for this model; {_BARS}"


# --- what a plan says of pictures, whatever its engine ----------------------------------------------------


def beyond_context(request: PlanRequest, context: int) -> str:
    """Return a note where the largest picture does not fit the context; "" where it does, or is not known."""
    tower = request.model.tower
    if tower is None or not context or tower.most < context:
        return ""
    return (
        f"a picture may take up to {tower.most:,} tokens, but the context is {context:,}: larger ones are rejected; "
        "send smaller ones, or plan with a longer --context"
    )
