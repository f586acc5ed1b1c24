"""What an engine would be given: a model as a DeployedModel, hardware as Nodes. No engine is imported or started.

    model = deployed(settings, "./tiny")          # a folder, a GGUF, a name of the store or of the catalogue
    nodes = nodes_here(settings.home)             # this machine
    nodes = nodes_on("2x8xh100")                  # two boxes of eight

Reads headers and small JSON files, never weights. Knows no engine and no flag.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.base import catalog
from freehold.base.catalog import quants
from freehold.base.catalog.hardware import Device, Rig, device, rig
from freehold.base.catalog.model import Model
from freehold.base.catalog.quants import Copy
from freehold.base.config import Settings
from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel, UsageError
from freehold.base.regular import read_regular
from freehold.choose.advisor.anatomy import Anatomy, WeightGroup, expert_width, from_catalogue, in_quant
from freehold.choose.advisor.file_anatomy import (
    SizeKeys,
    config_context,
    config_head_dim,
    config_layers,
    from_file,
)
from freehold.outgrow.contract import DeployedModel, Nodes, named
from freehold.outgrow.planning import wording
from freehold.outgrow.planning.eyes import with_folder, with_hub, with_mmproj
from freehold.run.formats.safetensors import MAX_CONFIG_BYTES
from freehold.run.store.refs import parse_ref

if TYPE_CHECKING:
    from freehold.choose.advisor.machine import Machine

MOST_NODES = 64
_MOST_CONFIGS = 64  # of a folder; Qwen3-VL has five
_MOST_DEEP = 100  # of JSON; real configurations are less than ten deep
_SEVERAL = re.compile(r"(\d{1,3})\s*[x×*]\s*(\d{1,4}\s*[x×*].+)")
# llama_pooling_type of llama.cpp: 0 makes no vector of a text, 4 a score of a pair; the others make vectors.
_POOLED = {0: "generator", 4: "reranker"}
USUAL_GGUF = "Q4_K_M"
_PACKED = ("I32", "U8")  # of safetensors: types whose values hold several weights of four bits


# --- the model --------------------------------------------------------------------------------------


def deployed(settings: Settings, text: str, *, name: str = "", quant: str = "") -> DeployedModel:
    """Return what `text` names: a folder, a GGUF, a model of the store, or one of the catalogue that is not here.

    `name`: under which clients ask for it; else the store's or the folder's own. `quant`: chooses a published copy of
    a catalogue's model. A repository that is named is the one that runs.
    Raises ModelNotFound with the nearest names, BadModelFile for files that contradict themselves, and UsageError for
    a name that no deployment may have, and for weights that are not published in `quant`.
    """
    from freehold.run.store import Store

    parsed = parse_ref(text)
    if parsed.kind == "path":
        model = of_path(Path(parsed.text))
        if quant and quants.mix(quant).name != model.anatomy.quant:
            raise UsageError(
                f"--quant {quant}: {model.source} is in {model.anatomy.quant}",
                "leave it out: files are what they are; --quant chooses among copies at the hub",
            )
        return replace(model, name=named(name or model.name))
    if not quant:
        try:
            ref = Store(settings).resolve(text)
        except ModelNotFound:
            pass
        else:
            return replace(of_path(ref.path, ref.name, ref.eyes), name=named(name or ref.name))
    return replace(at_the_hub(parsed.repo or text, quant or parsed.quant), name=named(name or text))


def of_path(path: Path, name: str = "", mmproj: Path | None = None) -> DeployedModel:
    """Return a folder of safetensors or a GGUF file. `name`: what else it is called, for its family.

    `mmproj`: the tower of a GGUF; None: the one that lies beside it and fits, if there is one.
    """
    if not path.exists():
        raise ModelNotFound(f"there is no {path}", "name a folder, a GGUF file, or a model of the catalogue")
    if path.is_dir() or path.suffix == ".safetensors":
        folder = path if path.is_dir() else path.parent
        return with_folder(_of_folder(folder, name), folder)
    return with_mmproj(_of_gguf(path, name), path, mmproj)


def at_the_hub(text: str, quant: str = "") -> DeployedModel:
    """Return a model of the catalogue: the repository that is named, or the published copy in `quant`.

    Raises ModelNotFound, and UsageError where that copy is not published or its weights' type is not known.
    """
    model = catalog.model(text)
    copy = quants.named(text, model)
    if copy is None and quant and quants.mix(quant).name != (model.native or "BF16"):
        copy = quants.chosen(model, quant)
        if copy is None:
            raise _not_published(model, quant)
    if copy is not None and not copy.quant:
        raise UsageError(
            f"{copy.repository}: its name does not say in which type its weights are",
            f"fetch it and name the folder: freehold pull hf://{copy.repository}",
        )
    if copy is not None and copy.files == "safetensors" and quant and quants.mix(quant).name != copy.quant:
        raise UsageError(
            f"--quant {quant}: {copy.repository} is in {copy.quant}", "name the model, or leave it out"
        )
    return of_catalogue(model, quant, copy)


def of_catalogue(model: Model, quant: str = "", copy: Copy | None = None) -> DeployedModel:
    """Return a model of the catalogue by its published sizes; an engine would load it, or a copy, from the hub."""
    gguf = copy is not None and copy.files == "gguf"
    kind = (quant or USUAL_GGUF) if gguf else copy.quant if copy else quant or model.native or "BF16"
    anatomy = from_catalogue(model, kind)
    source = copy.repository if copy else model.id
    # Blocks lie along an expert's width, where its width is known: labs' FP8 has blocks of 128.
    width, block = expert_width(model), {"FP8": 128, "INT4": 128, "INT4-32": 32}.get(anatomy.quant, 0)
    whole = not gguf and not (copy and copy.channels) and block and width % block == 0
    deployed_model = DeployedModel(
        name=model.name or model.id,
        source=f"{source}:{anatomy.quant}" if gguf else source,
        files="gguf" if gguf else "safetensors",
        anatomy=anatomy,
        family=wording.family((model.id, model.name), model.family, model.architecture),
        kv_heads=max((g.kv_heads for g in model.layers), default=0),
        head_size=max((g.head_dim for g in model.layers), default=0),
        experts=model.experts,
        quantised="" if anatomy.quant in ("BF16", "F16", "F32") else anatomy.quant,
        tools=model.tools,
        thinks=None if not model.thinking else model.thinking != "none",
        template=model.instructed,
        here=False,
        blocks=width // block if whole else 0,
        base=model.id,
    )
    return with_hub(deployed_model, model) if gguf else deployed_model


def _not_published(model: Model, quant: str) -> UsageError:
    known = ", ".join(f"{each.repository} ({each.quant})" for each in quants.copies(model))
    round_it = "--engine-flag=--quantization=fp8_per_tensor lets vLLM round while it loads"
    hints = [f"known are {known}" if known else "none is known"]
    hints += [round_it] if quants.mix(quant).name == "FP8" else []
    return UsageError(f"no copy of {model.id} in {quant} is known", "; ".join(hints))


def _of_folder(folder: Path, name: str) -> DeployedModel:
    config = _json(folder / "config.json")
    if not config:
        raise ModelNotFound(
            f"{folder} has no config.json", "name a folder with config.json and safetensors, or a GGUF file"
        )
    text = config.get("text_config")
    keys = SizeKeys(text if isinstance(text, Mapping) else config, "")
    method, quant = quantisation(config)
    template = _template(folder)
    # sentence-transformers' folders list the parts that make vectors.
    role = "embedder" if (folder / "modules.json").exists() else "generator"
    return DeployedModel(
        name=name or folder.resolve().name,
        source=str(folder.resolve()),
        files="safetensors",
        anatomy=replace(_anatomy(folder, keys, quant), role=role),
        family=wording.family((name, folder.resolve().name), "", str(config.get("model_type", ""))),
        heads=keys.number("num_attention_heads"),
        kv_heads=keys.number("num_key_value_heads", "num_attention_heads"),
        head_size=config_head_dim(keys),
        experts=keys.number("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
        quantised=method,
        own_code=_own_code(folder),
        tools=None if template is None else "tools" in template,
        thinks=None if template is None else "think" in template,
        template=template is not None,
        mistral=(folder / "tekken.json").exists(),
        blocks=_blocks(config, keys),
    )


def _of_gguf(path: Path, name: str) -> DeployedModel:
    from freehold.run.formats import GGUFFile, open_model_file

    anatomy = from_file(path)
    with open_model_file(path) as opened:
        assert isinstance(opened, GGUFFile)
        meta = SizeKeys(opened.metadata, f"{opened.architecture}.")
        heads = max(meta.each("attention.head_count"), default=0)
        kv_heads = max(meta.each("attention.head_count_kv"), default=heads)
        experts = meta.number("expert_count")
        role = _POOLED.get(meta.number("pooling_type"), "embedder")
        template = opened.metadata.get_str("tokenizer.chat_template", "")
    return DeployedModel(
        name=name or path.stem,
        source=str(path.resolve()),
        files="gguf",
        anatomy=replace(anatomy, role=role),
        family=wording.family((name, path.stem, anatomy.name), "", anatomy.architecture),
        heads=heads,
        kv_heads=kv_heads,
        head_size=max((g.head_dim for g in anatomy.layers), default=0),
        experts=experts,
        tools="tools" in template if template else None,
        thinks="think" in template if template else None,
        template=bool(template),
    )


def quantisation(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return how config.json says that its weights are packed: the engine's word, and the catalogue's; or two ""."""
    packing = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(packing, Mapping):
        return "", ""
    method = str(packing.get("quant_method") or packing.get("quant_algo") or "").lower()
    words = json.dumps(packing).lower()
    for four_bits in ("NVFP4", "MXFP4"):
        if four_bits.lower() in words:
            return method, four_bits
    if method in ("fp8", "fbgemm_fp8") or '"float"' in words or "fp8" in words:
        return method, "FP8"
    bits = re.search(r'"(?:num_)?(?:w_)?bits": (\d+)', words)
    if (bits and bits[1] == "4") or method in ("awq", "gptq") or "load_in_4bit" in words:
        return method, "INT4-32" if re.search(r'"(?:q_)?group_size": 32\b', words) else "INT4"
    return method, ""


def _blocks(config: Mapping[str, Any], keys: SizeKeys) -> int:
    """Return how many blocks of weights that share scales lie along the width of an MLP, or of an expert."""
    text = json.dumps(config.get("quantization_config") or {})
    match = re.search(r'"(?:weight_block_size": \[|(?:q_)?group_size": )(\d+)', text)
    width = keys.number("moe_intermediate_size", "intermediate_size")
    return width // int(match[1]) if match and int(match[1]) and width % int(match[1]) == 0 else 0


def _anatomy(folder: Path, keys: SizeKeys, quant: str) -> Anatomy:
    """Return a folder's sizes; types that our own readers refuse are counted by the files' bytes alone."""
    try:
        anatomy = from_file(folder)
    except UnsupportedModel:
        anatomy = _by_size(folder, keys, quant)
    except BadModelFile as error:
        raise BadModelFile(error.message, error.hint or "fetch the folder again") from error
    if not quant:
        return in_quant(anatomy, "BF16") if anatomy.quant in ("F32", "F64") else anatomy
    # Packed values hold weights of four bits, two a byte; the bytes are right as they are.
    parts = (
        replace(part, type=quant, weights=part.bytes * 2) if part.type in _PACKED else part
        for part in anatomy.parts
    )
    return replace(anatomy, quant=quant, parts=tuple(parts))


def _by_size(folder: Path, keys: SizeKeys, quant: str) -> Anatomy:
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    bits = quants.mix(quant).bits if quant else 16
    return Anatomy(
        name=folder.name,
        quant=quant or "BF16",
        architecture=str(keys.get("model_type") or ""),
        parts=(WeightGroup("body", quant or "BF16", size * 8 / bits, size),),
        layers=config_layers(keys),
        context=config_context(keys),
        hidden=keys.number("hidden_size"),
        vocab=keys.number("vocab_size"),
        queries=keys.number("num_attention_heads") * config_head_dim(keys),
    )


def _own_code(folder: Path) -> str:
    """Return where a folder's files name Python code of their own, however deep; "" for nowhere."""
    files = sorted({*folder.glob("*config*.json"), folder / "params.json"})
    if len(files) > _MOST_CONFIGS:
        raise BadModelFile(f"{folder} has {len(files):,} configurations, and {_MOST_CONFIGS} are read")
    for path in files:
        for code in _values_of("auto_map", _parsed(path)):
            first = next(iter(code.values()), "") if isinstance(code, Mapping) else code
            name = first[0] if isinstance(first, list) and first else first
            return f"{path.name}: auto_map" + (f" names {name}" if isinstance(name, str) and name else "")
    return ""


def _values_of(name: str, value: Any) -> Iterator[Any]:
    """Yield every value of the key `name`, however deep, but for null."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, Mapping):
            if each.get(name) is not None:
                yield each[name]
            left += each.values()
        elif isinstance(each, list):
            left += each


def _template(folder: Path) -> str | None:
    """Return the text of a folder's chat templates; None where it has none."""
    files = [folder / "chat_template.jinja", folder / "chat_template.json"]
    texts = [body.decode("utf-8", "replace") for body in map(_small, files) if body is not None]
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    texts += [template if isinstance(template, str) else json.dumps(template)] if template else []
    return "\n".join(texts) if texts else None


def _small(path: Path) -> bytes | None:
    """Read a small file; None where there is none. Raises BadModelFile for a long one, and for anything but a file."""
    try:
        return read_regular(path, MAX_CONFIG_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}") from error


def _json(path: Path) -> dict[str, Any]:
    """Read a small JSON file; {} where it is not there. Raises BadModelFile for anything but an object."""
    table = _parsed(path)
    if not isinstance(table, dict):
        raise BadModelFile(f"{path} holds no JSON object")
    return table


def _parsed(path: Path) -> Any:
    """Read any small JSON file; {} where it is not there. Raises BadModelFile."""
    body = _small(path)
    if body is None:
        return {}
    try:
        value = json.loads(body)
        deep = _depth(value) > _MOST_DEEP
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{path} is not JSON", "fetch the folder again") from error
    if deep:
        raise BadModelFile(f"{path} is nested more than {_MOST_DEEP} deep", "fetch the folder again")
    return value


def _depth(value: Any) -> int:
    """Return how deep a JSON value is nested, or the first number beyond what is taken."""
    level, depth = [value], 0
    while level and depth <= _MOST_DEEP:
        inner: list[Any] = []
        for each in level:
            inner += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        level, depth = inner, depth + 1
    return depth


# --- the hardware -----------------------------------------------------------------------------------


def nodes_here(home: Path) -> Nodes:
    """Return this machine: its GPUs if the catalogue knows them, else the Mac or the processor with its free memory."""
    from freehold.choose.advisor import machine

    this = machine.here(home, measure=False)
    known = [g for g in this.gpus if g.device]
    if known:
        same = [g for g in known if g.device == known[0].device]
        gpu = device(same[0].device)
        least = min(g.memory for g in same) / (1 << 30)
        free = min(g.free / g.memory for g in same)
        return Nodes(Rig(replace(gpu, memory_gib=min(gpu.memory_gib, least)), len(same)), free=free)
    if this.device:
        gpu = device(this.device)
        return Nodes(Rig(replace(gpu, memory_gib=this.memory / (1 << 30))))
    return _processor(this)


def processor_here(home: Path) -> Nodes:
    """Return this machine's processor with its free memory, whatever GPUs are beside it: our own engine runs there."""
    from freehold.choose.advisor import machine

    return _processor(machine.here(home, measure=False))


def _processor(this: Machine) -> Nodes:
    return Nodes(Rig(processor(this.cpu, this.threads, this.free, this.rates.read_gb_s)))


def processor(title: str, threads: int, free: int, read_gb_s: float) -> Device:
    """Return a processor as hardware, with the memory that may still be taken."""
    from datetime import date

    return Device(
        name="cpu",
        title=title or "this processor",
        vendor="CPU",
        kind="cpu",
        generation="",
        memory_gib=max(free / (1 << 30), 0.01),
        bandwidth_gb_s=max(read_gb_s, 0.1),
        watts=1.0,
        source="this machine",
        checked=date.min,
        cores=threads,
    )


def nodes_on(text: str, count: int = 0) -> Nodes:
    """Return named hardware: "8xh100", or with its boxes "2x8xh100"; `count` boxes where the text says none.

    More GPUs than a box has are boxes of as many as it has: 16xh100 is two of eight.
    Raises UsageError for what names no hardware, and where text and `count` differ.
    """
    match = _SEVERAL.fullmatch(text.strip())
    count_in_text = int(match[1]) if match else 0
    if count_in_text and count and count_in_text != count:
        raise UsageError(f"{text!r} has {count_in_text} boxes, and {count} are asked for", "say it once")
    box = rig(match[2] if match else text)
    boxes = count_in_text or count
    most = box.device.box
    if not boxes and box.count > most and box.count % most:
        raise UsageError(
            f"{text!r}: a box has {most} of {box.device.title}, and {box.count} fill none evenly",
            f"--on {most * -(-box.count // most)}x{box.device.name}, or --on {box.count % most}x{box.device.name}",
        )
    if not boxes:
        boxes = max(box.count // most, 1)
        box = Rig(box.device, min(box.count, most))
    if not 1 <= boxes <= MOST_NODES:
        raise UsageError(f"{boxes} boxes are not within 1..{MOST_NODES}", "2x8xh100 is two boxes of eight")
    return Nodes(box, boxes, here=False)
