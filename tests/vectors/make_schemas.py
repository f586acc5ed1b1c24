"""Writes schemas/suite.json: what of the JSON Schema Test Suite our grammars speak, and how they do.

The suite's JSON lies in the source distribution of `jsonschema` (MIT licence, as the suite's own):

    python -m pip download --no-deps --no-binary :all: jsonschema
    python -m tests.vectors.make_schemas jsonschema-4.26.0.tar.gz

Kept are the schemas of draft 2020-12 that compile, with their instances; of the others the keyword and the reason.
An instance that a grammar treats otherwise than the suite says lies in `taken` or `refused`.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

from freehold.base.errors import UsageError
from freehold.base.types import Format
from freehold.run.engine.constrain.grammar import Grammars
from freehold.run.tokenizer import tokenizer_from_gguf
from tests.engine.instances import accepts
from tests.tokenizer.toys import byte_level

OUT = Path(__file__).parent / "schemas" / "suite.json"
FOLDERS = ("json/tests/draft2020-12/", "json/tests/draft2020-12/optional/format/")


def main(archive: str) -> None:
    """Try each group of the suite and write what came."""
    tokenizer = tokenizer_from_gguf(byte_level())
    grammars = Grammars(tokenizer)
    kept: list[dict[str, Any]] = []
    refused: dict[str, list[str]] = {}
    for file, group in _groups(archive):
        try:
            grammar = grammars.grammar(Format("json_schema", json.dumps(group["schema"])))
        except UsageError as e:
            refused.setdefault(file, []).append(f"{group['description']}: {e.message[:120]}")
            continue
        entry: dict[str, Any] = {"file": file, "schema": group["schema"]}
        entry |= {name: [] for name in ("valid", "invalid", "taken", "refused")}
        for test in group["tests"]:
            got = accepts(grammar, tokenizer, test["data"])
            as_told = ("invalid", "valid")[got] if got == test["valid"] else ("refused", "taken")[got]
            entry[as_told].append(test["data"])
        kept.append(entry)
    told = {"source": Path(archive).name.removesuffix(".tar.gz"), "licence": "MIT", "draft": "2020-12"}
    rows = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in kept)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        f'{{"about": {json.dumps(told)},\n"refused": {json.dumps(refused, ensure_ascii=False, indent=1)},\n'
        f'"kept": [\n{rows}\n]}}\n',
        encoding="utf-8",
    )
    same = sum(len(e["valid"]) + len(e["invalid"]) for e in kept)
    print(
        f"{len(kept)} schemas kept, {sum(map(len, refused.values()))} refused; {same} instances as the suite says,"
    )
    other = [sum(len(e[name]) for e in kept) for name in ("taken", "refused")]
    print(f"{other[0]} taken and {other[1]} refused otherwise")


def _groups(archive: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            name = member.name.split("/", 1)[-1]
            folder, _, file = name.rpartition("/")
            if f"{folder}/" in FOLDERS and file.endswith(".json") and (data := tar.extractfile(member)):
                prefix = "format/" if folder.endswith("format") else ""
                found += [(prefix + file.removesuffix(".json"), group) for group in json.load(data)]
    return found


if __name__ == "__main__":
    main(sys.argv[1])
