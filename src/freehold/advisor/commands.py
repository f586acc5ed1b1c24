"""Gives the command that runs a model on an engine, or the reason why none is known.

A line is given for files that are known to be there: a repository of GGUFs with that quantisation, the weights as
published, or what an engine makes of them while it loads. Knows no memory, no speed, and not what our engine runs:
places asks for models that it does.
Path: places, cli/fit -> line -> Line
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.catalog.model import Model

# GGUF's or config.json's names of what vLLM's page on pooling models lists
_POOLED = frozenset({"bert", "xlm-roberta", "qwen3", "modernbert", "gemma-embedding", "gte", "nomic-bert"})
# Qwen3's rerankers are language models that say yes or no; vLLM's page makes classifiers of them so.
_CLASSIFIER = (
    '{"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"], '
    '"is_original_qwen3_reranker": true}'
)
_FLOAT = ("BF16", "F16")
_MLX_BITS = {"Q4_0": 4, "Q8_0": 8}  # what mlx_lm.convert makes, by the names that these widths have here


@dataclass(frozen=True, slots=True)
class Line:
    """A command; or an empty one, and why."""

    command: str
    why_none: str = ""


def line(
    model: Model,
    quant: str,
    engine: str,
    *,
    devices: int = 1,
    context: int = 0,
    users: int = 1,
    held: str = "",
) -> Line:
    """Return what runs `model` in `quant` on `engine` over this many devices; `held`: a file that is here.

    `context` is each conversation's, 0: the engine's default. `users`: conversations at a time.
    """
    if model.role != "generator":
        known = engine in ("freehold", "vllm")
        none = Line("", f"no line of {engine} is known here for what finds texts")
        return finder_line(model, here=engine == "freehold") if known else none
    if engine == "freehold":
        return _ours(model, quant, context, users, held)
    if engine == "llama.cpp":
        return _llama_cpp(model, quant, context, users)
    if not model.hub:
        return Line(
            "", f"{model.id} is not a repository on the hub: its lab distributes the weights elsewhere"
        )
    if engine == "mlx":
        return _mlx(model, quant)
    return _server(model, quant, engine, devices, context)


def finder_line(model: Model, *, here: bool) -> Line:
    """Return what runs an embedder or a reranker: our engine here, vLLM elsewhere."""
    if here:
        known = model.role == "embedder" and model.hub
        return (
            Line(f"freehold embed {model.name or model.id}")
            if known
            else Line("", "our engine does not rerank pairs")
        )
    if model.architecture not in _POOLED or not model.hub:
        return Line("", f"vLLM is not known to serve {model.architecture or 'its architecture'}")
    classified = model.role == "reranker" and model.architecture == "qwen3"
    return Line(
        f"vllm serve {model.id} --runner pooling" + (f" --hf-overrides '{_CLASSIFIER}'" if classified else "")
    )


def published(model: Model) -> tuple[str, ...]:
    """Return the quantisations in which the weights of a model's own repository are."""
    return _FLOAT if model.native in ("", "F32", *_FLOAT) else (model.native,)


def gguf(model: Model, quant: str = "") -> str:
    """Return a repository of GGUFs known to have a quantisation, or any where that is empty; else an empty string."""
    repos = (r.repo for r in model.repos if r.format == "gguf" and (not quant or quant in r.quants))
    return next(repos, "")


def _ours(model: Model, quant: str, context: int, users: int, held: str) -> Line:
    room = f" --context {context}" if context else ""
    repo = gguf(model, quant)
    own = model.id if model.hub and quant in published(model) else ""
    name = held or (model.name if model.name and quant == _fetched(model) else "")
    name = name or (f"{repo}:{quant}" if repo else own)
    if name:
        return Line(f"freehold {'run' if users == 1 else 'serve'} {name}{room}")
    return Line("", _no_gguf(model, quant))


def _fetched(model: Model) -> str:
    """Return the quantisation that the short name fetches; without a hub's repository, whatever the file is."""
    quants = [r.quants[0] for r in model.repos if r.format == "gguf" and r.quants]
    return quants[0] if quants else "BF16"


def _llama_cpp(model: Model, quant: str, context: int, users: int) -> Line:
    repo = gguf(model, quant)
    if not repo:
        return Line("", _no_gguf(model, quant))
    room = f" -c {context * users}" if context else ""  # llama-server divides -c among its slots
    return Line(f"llama-server -hf {repo}:{quant}{room}" + (f" -np {users}" if users > 1 else ""))


def _no_gguf(model: Model, quant: str) -> str:
    any_repo = gguf(model)
    if any_repo:
        has = ", ".join(q for r in model.repos if r.repo == any_repo for q in r.quants)
        return f"{any_repo} has {has} for certain; whether it has {quant} is not known here"
    return f"no repository with a GGUF in {quant} is known here"


def _mlx(model: Model, quant: str) -> Line:
    if quant in published(model):
        return Line(f"mlx_lm.server --model {model.id}")
    if quant in _MLX_BITS:
        convert = f"mlx_lm.convert --hf-path {model.id} -q --q-bits {_MLX_BITS[quant]} --mlx-path mlx_model"
        return Line(f"{convert} && mlx_lm.server --model mlx_model")
    return Line("", f"no copy of the weights in {quant} is known here")


def _server(model: Model, quant: str, engine: str, devices: int, context: int) -> Line:
    """Return the line of an engine for many users; vLLM and SGLang round to FP8 while they load."""
    rounded = quant == "FP8" and quant not in published(model)
    if quant not in published(model) and not (rounded and engine in ("vllm", "sglang")):
        return Line("", f"no copy of the weights in {quant} is known here")
    start, several, room = {
        "vllm": (f"vllm serve {model.id}", "--tensor-parallel-size", "--max-model-len"),
        "sglang": (
            f"python -m sglang.launch_server --model-path {model.id}",
            "--tp-size",
            "--context-length",
        ),
        "tensorrt-llm": (f"trtllm-serve {model.id}", "--tp_size", "--max_seq_len"),
    }[engine]
    parts = [start, f"{several} {devices}" if devices > 1 else "", f"{room} {context}" if context else ""]
    rounds = f"--quantization {'fp8_per_tensor' if engine == 'vllm' else 'fp8'}" if rounded else ""
    return Line(" ".join(p for p in (*parts, rounds) if p))
