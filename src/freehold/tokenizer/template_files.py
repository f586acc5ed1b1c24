"""Chat templates as files keep them: a GGUF's metadata, a model directory's JSON and .jinja files.

Knows keys and file names; renders nothing.
Path: local/opening.py -> chat_template_from_gguf or chat_template_from_dir -> ChatTemplate
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from freehold.errors import BadModelFile, UsageError
from freehold.regular import read_regular
from freehold.sandbox.limits import MAX_SOURCE
from freehold.tokenizer.core import Tokenizer
from freehold.tokenizer.directory import read_json
from freehold.tokenizer.template import ChatTemplate


def templates_from_gguf(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the chat templates in a GGUF file's metadata by name; the main one is called "default"."""
    key = "tokenizer.chat_template"
    sources = {
        "default" if k == key else k[len(key) + 1 :]: v for k, v in metadata.items() if _is_template(k, key)
    }
    return {name: source for name, source in sources.items() if isinstance(source, str) and source}


def _is_template(key: str, main: str) -> bool:
    return key == main or (key.startswith(main + ".") and len(key) > len(main) + 1)


def templates_from_dir(path: str | Path) -> dict[str, str]:
    """Return a model directory's chat templates by name; a chat_template.jinja wins over the config's."""
    folder = Path(path)
    sources: dict[str, str] = {}
    config = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(config, str):
        sources["default"] = config
    elif isinstance(config, list):
        named = [entry for entry in config if isinstance(entry, dict)]
        sources |= {str(entry.get("name")): str(entry.get("template")) for entry in named}
    for name, file in _template_files(folder):
        try:
            sources[name] = read_regular(file, 4 * MAX_SOURCE).decode("utf-8")
        except OSError as error:
            raise BadModelFile(f"{file} is not a chat template: {error.strerror}") from error
        except ValueError as error:
            raise BadModelFile(f"{file} is not UTF-8: {error}") from error
    return sources


def _template_files(folder: Path) -> list[tuple[str, Path]]:
    named = [(file.stem, file) for file in sorted(folder.glob("additional_chat_templates/*.jinja"))]
    main = folder / "chat_template.jinja"
    return [*named, *([("default", main)] if main.is_file() else [])]


def chat_template_from_gguf(
    metadata: Mapping[str, object], tokenizer: Tokenizer, *, name: str = "default"
) -> ChatTemplate:
    """Return the chat template `name` of a GGUF file, or the format its vocabulary proves if it has none.

    Raise UnsupportedModel without either, UsageError for a name the file does not have.
    """
    return _chosen(templates_from_gguf(metadata), tokenizer, name, "GGUF tokenizer.chat_template")


def chat_template_from_dir(path: str | Path, tokenizer: Tokenizer, *, name: str = "default") -> ChatTemplate:
    """Return the chat template `name` of a model directory, as `chat_template_from_gguf` does for a file."""
    return _chosen(templates_from_dir(path), tokenizer, name, os.fspath(path))


def _chosen(sources: Mapping[str, str], tokenizer: Tokenizer, name: str, origin: str) -> ChatTemplate:
    if name in sources:
        return ChatTemplate.for_tokenizer(sources[name], tokenizer, origin=f"{origin} ({name})")
    if name != "default":
        known = ", ".join(sources) or "none"
        raise UsageError(f"the model has no chat template called {name!r}", hint=f"it has: {known}")
    return ChatTemplate.default_for(tokenizer)
