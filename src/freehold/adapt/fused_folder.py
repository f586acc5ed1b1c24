"""Adapters in a folder of safetensors: the same files with other bytes where a matrix is changed.

Types, names and places stay, so what opened the model's folder opens this one. Knows safetensors' layout; measures
nothing itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from freehold.adapt.licences import base_licence
from freehold.adapt.quantize.changed import AdapterSum, ChangedTensor, changed_tensors
from freehold.adapt.quantize.encoding import encode_rows, slabs
from freehold.adapt.quantize.recipes import FLOATS
from freehold.adapt.run import RunFolder, cpu_seconds, file_digest, on_disk, receipt, text_digest, write_whole
from freehold.adapt.stages import StageBases
from freehold.base.errors import NotMet, UnsupportedModel, UsageError
from freehold.base.version import __version__
from freehold.run.formats import QuantType, SafetensorsFile, open_model_file
from freehold.run.models.binding.bind import read_source
from freehold.run.store import ModelRef

if TYPE_CHECKING:
    from freehold.adapt.quantize.planning import QuantizeRequest
    from freehold.adapt.quantize.quantising import Examine, Watching

_HEAD = 8  # bytes of the header's length
_COPY = 1 << 24
MOST_SIDE = 256 << 20  # bytes of a file beside the weights: tokenizers have some ten million
# Other weights of the same model, which would not be the fused ones.
_LEFT_OUT = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt")


def fuse_folder(
    ref: ModelRef,
    paths: Sequence[Path],
    out: Path,
    request: QuantizeRequest,
    watching: Watching,
    examine: Examine,
) -> dict[str, Any]:
    """Write the folder `out` with the model's files, adapters in its weights, and a receipt; return that.

    Raises UsageError for a type of its own, UnsupportedModel for weights that are not floats, and as `fuse` does.
    """
    if request.quant:
        raise UsageError(
            f"{ref.name} is a folder of safetensors, which keeps its types; --quant {request.quant} writes a GGUF",
            "use a GGUF of the model, or leave out --quant",
        )
    bases = StageBases.of(ref, paths)
    for note in bases.notes:
        watching.on_note(note)
    with closing(open_model_file(ref.path)) as opened:
        assert isinstance(opened, SafetensorsFile)
        source = read_source(opened)
        changed = changed_tensors(source, AdapterSum.of(paths, source))
        _check_floats(changed.values(), ref)
        inputs = {
            "base": {"name": ref.name, "sha256": bases.digest},
            **bases.inputs,
            "type": "as the base",
            "code": __version__,
        }
        with RunFolder.open(out, "fuse", inputs, fresh=request.fresh) as run:
            files = [_shard(path, run.path(path.name), changed) for path in opened.paths]
            opened.check_whole()
            _beside(opened, run)
            try:
                parts = examine(run.folder)
            except NotMet:
                run.discard()
                raise
            digests = {path.name: file_digest(path) for path in files}
            one = next(iter(digests.values()))
            record = receipt(
                "fuse",
                inputs,
                result={
                    "file": "" if len(files) > 1 else files[0].name,
                    "files": digests,
                    "sha256": one if len(digests) == 1 else text_digest("\n".join(digests.values())),
                    "bytes": sum(path.stat().st_size for path in files),
                    "source_bytes": sum(path.stat().st_size for path in opened.paths),
                    "type": "/".join(sorted({each.stored.type.name for each in changed.values()})),
                    "changed": len(changed),
                },
                licence=base_licence(ref, request.facts).as_json(),
                notes=[],
                chain=bases.chain,
                cpu_seconds_by_part={"fuse": cpu_seconds()},
                **parts,
            )
            run.finish(record)
    return record


def _check_floats(changed: Any, ref: ModelRef) -> None:
    for each in changed:
        if each.stored.type not in FLOATS:
            raise UnsupportedModel(
                f"{each.name} of {ref.name} has the type {each.stored.type.name}, into which no adapter is fused",
                "use the model's weights in BF16, F16 or F32, or as a GGUF",
            )


def _shard(source: Path, target: Path, changed: Mapping[str, ChangedTensor]) -> Path:
    """Write one file of weights: the header as it is, then each tensor, changed or copied.

    A file that an interrupted run wrote has its name once it is whole, so it is not written again.
    """
    if target.is_file():
        return target

    def write(file: BinaryIO) -> None:
        with source.open("rb") as reading:
            length = int.from_bytes(head := reading.read(_HEAD), "little")
            header = reading.read(length)
            file.write(head + header)
            described = json.loads(header)
            spans = sorted(
                (each["data_offsets"][0], each["data_offsets"][1], name)
                for name, each in described.items()
                if name != "__metadata__"
            )
            for begin, end, name in spans:
                if name in changed:
                    _write_changed(changed[name], file)
                    continue
                reading.seek(_HEAD + length + begin)
                left = end - begin
                while left:
                    piece = reading.read(min(left, _COPY))
                    if not piece:
                        raise OSError(f"{source} ended early")
                    file.write(piece)
                    left -= len(piece)

    with on_disk(target):
        write_whole(target, write)
    return target


def _write_changed(tensor: ChangedTensor, file: BinaryIO) -> None:
    for values in slabs(tensor):
        file.write(_rounded(values, tensor.stored.type))


def _rounded(values: Any, type: QuantType) -> bytes:
    if type is QuantType.F64:
        return values.astype("<f8").tobytes()
    return encode_rows(values, type, _no_threads()).tobytes()


def _no_threads() -> Any:
    from freehold import _native as native

    return native.Threads(1)  # floats are rounded without any


def _beside(opened: SafetensorsFile, run: RunFolder) -> None:
    """Copy the files beside the weights: config, tokenizer, template, the index of shards."""
    folder = opened.path if opened.path.is_dir() else opened.path.parent
    names = {path.name for path in opened.paths}
    for path in sorted(folder.iterdir()):
        if path.name in names or path.name.startswith(".") or path.suffix in _LEFT_OUT or not path.is_file():
            continue
        if path.name == "receipt.json" or os.path.getsize(path) > MOST_SIDE:
            continue
        with on_disk(run.path(path.name)):
            shutil.copyfile(path, run.path(path.name))
