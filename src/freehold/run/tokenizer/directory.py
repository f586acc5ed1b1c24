"""Builds a Tokenizer from a Hugging Face model directory.

Knows tokenizer.json, tokenizer_config.json, special_tokens_map.json and generation_config.json; knows no
weights. The pipeline (normaliser, word splitter, merges) is the file's own and runs in the `tokenizers`
library; only its added tokens and its BOS/EOS template are taken over here.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, pre_tokenizers

from freehold._native import Bpe, Strings
from freehold.base.errors import BadModelFile, ModelNotFound, UnsupportedModel
from freehold.base.regular import read_regular
from freehold.run.tokenizer.core import (
    AddedToken,
    Tokenizer,
    TokenKind,
    Vocabulary,
    byte_alphabet,
    check_ids,
    library_encoder,
    merging_encoder,
)
from freehold.run.tokenizer.vocab import MAX_TOKENS, end_ids

MAX_JSON_BYTES = 256 << 20  # the largest tokenizer.json in use has some 35 MB
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")


def tokenizer_from_dir(path: str | Path) -> Tokenizer:
    """Build the tokenizer of a model directory that holds a tokenizer.json, or else Mistral's tekken.json.

    Raise ModelNotFound without one, BadModelFile if a file is damaged, UnsupportedModel for a tokenizer
    that is neither BPE, unigram nor WordPiece.
    """
    folder = Path(path)
    if not (folder / "tokenizer.json").is_file():
        if (folder / "tekken.json").is_file():
            return _guarded(folder / "tekken.json", tokenizer_from_tekken, read_json(folder / "tekken.json"))
        raise ModelNotFound(
            f"{folder} holds no tokenizer.json", hint="fetch the model again with its tokenizer files"
        )
    data = read_json(folder / "tokenizer.json")
    config = read_json(folder / "tokenizer_config.json")
    generation = read_json(folder / "generation_config.json")
    special = read_json(folder / "special_tokens_map.json")
    return _guarded(folder / "tokenizer.json", _build, data, {**special, **config}, generation)


def _guarded(file: Path, build: Callable[..., Tokenizer], *files: Mapping[str, Any]) -> Tokenizer:
    """Build a tokenizer from what a file holds; damage of any kind is a BadModelFile."""
    try:
        return build(*files)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadModelFile(f"{file} is not a tokenizer: {error!r}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in the JSON file `path`, an empty one if there is no such file."""
    data = _read(path, {})
    if not isinstance(data, dict):
        raise BadModelFile(f"{path} holds a {type(data).__name__}; an object is needed")
    return data


def read_json_list(path: Path) -> list[Any]:
    """Return the list in the JSON file `path`, an empty one if there is no such file."""
    data = _read(path, [])
    if not isinstance(data, list):
        raise BadModelFile(f"{path} holds a {type(data).__name__}; a list is needed")
    return data


def _read(path: Path, absent: Any) -> Any:
    try:
        return json.loads(read_regular(path, MAX_JSON_BYTES).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return absent
    except OSError as error:
        raise BadModelFile(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{path} is not JSON: {error}") from error


def _build(data: dict[str, Any], config: Mapping[str, Any], generation: Mapping[str, Any]) -> Tokenizer:
    model = data["model"]
    if model.get("type", "BPE") not in ("BPE", "Unigram", "WordPiece"):
        raise UnsupportedModel(
            f"tokenizer.json holds a {model['type']} model", hint="BPE, Unigram and WordPiece are known"
        )
    added = tuple(_added(entry, data) for entry in data.get("added_tokens") or ())
    texts = _texts(model["vocab"], added)
    byte_level = any(step.get("type") == "ByteLevel" for step in _steps(data.get("decoder")))
    word_pieces = model.get("type") == "WordPiece"
    kinds = _kinds(texts, added, model, byte_level=byte_level)
    ids = {token.text: token.id for token in added} | _plain_ids(model["vocab"])
    bos = ids.get(_content(config.get("bos_token")))
    eos = ids.get(_content(config.get("eos_token")))
    prefix, suffix = _edges(data.get("post_processor"), config, bos, eos)
    named = [*_numbers(generation.get("eos_token_id")), *(() if eos is None else (eos,))]
    check_ids("eos_token_id", named, len(texts))
    vocabulary = Vocabulary(
        texts=texts,
        kinds=kinds,
        byte_level=byte_level,
        added=added,
        prefix_ids=prefix,
        suffix_ids=suffix,
        bos_id=bos,
        eos_id=eos,
        eos_ids=end_ids(added, named),
        marks_are_spaces=False,
        strips_leading_space=word_pieces or _strips_leading_space(data.get("decoder")),
        word_pieces=word_pieces,
        pad_id=ids.get(_content(config.get("pad_token"))),
        unk_id=ids.get(_content(config.get("unk_token"))),
    )
    return Tokenizer(library_encoder(_inner(data)), vocabulary)


def _inner(data: dict[str, Any]) -> tokenizers.Tokenizer:
    """Load the pipeline: padding, BOS, EOS and most added tokens are this package's own work."""
    kept = [entry for entry in data.get("added_tokens") or () if _is_normalized(entry, data)]
    bare = {**data, "added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(bare))
    except Exception as error:  # the library raises a bare Exception
        raise BadModelFile(f"tokenizer.json cannot be loaded: {error}") from error


def _added(entry: Mapping[str, Any], data: Mapping[str, Any]) -> AddedToken:
    return AddedToken(
        id=int(entry["id"]),
        text=str(entry["content"]),
        control=bool(entry.get("special")),
        lstrip=bool(entry.get("lstrip")),
        rstrip=bool(entry.get("rstrip")),
        single_word=bool(entry.get("single_word")),
        normalized=_is_normalized(entry, data),
    )


def _is_normalized(entry: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Tell whether the library matches a token in text it has normalised, which makes a difference there.

    A control token is always matched as the template wrote it. The library gives a token outside the model's own
    vocabulary an id by its place in the list, so such a one is matched here.
    """
    wanted = bool(entry.get("normalized")) and not entry.get("special") and data.get("normalizer") is not None
    vocabulary = data["model"]["vocab"]
    return wanted and isinstance(vocabulary, dict) and vocabulary.get(entry["content"]) == entry["id"]


def _plain_ids(vocab: Any) -> dict[str, int]:
    if isinstance(vocab, dict):
        return vocab
    return {piece[0]: id for id, piece in enumerate(vocab)}


def _texts(vocab: Any, added: Iterable[AddedToken]) -> list[str]:
    """List the tokens' texts by id; a gap has an empty text."""
    ids = _plain_ids(vocab)
    entries = [*ids.items(), *((token.text, token.id) for token in added)]
    size = max(id for _, id in entries) + 1
    if min(id for _, id in entries) < 0 or size > MAX_TOKENS:
        raise BadModelFile(f"tokenizer.json has token ids outside 0..{MAX_TOKENS - 1:,}")
    texts = [""] * size
    for text, id in entries:
        texts[id] = text
    return texts


def _kinds(
    texts: list[str], added: Iterable[AddedToken], model: Mapping[str, Any], *, byte_level: bool
) -> list[int]:
    kinds = [int(TokenKind.NORMAL if text else TokenKind.UNUSED) for text in texts]
    if not byte_level:
        for id, text in enumerate(texts):
            if _BYTE_TOKEN.match(text):
                kinds[id] = TokenKind.BYTE
    for token in added:
        kinds[token.id] = TokenKind.CONTROL if token.control else TokenKind.USER_DEFINED
    unk = model.get("unk_id")
    if isinstance(unk, int) and 0 <= unk < len(kinds):
        kinds[unk] = TokenKind.UNKNOWN
    return kinds


def _content(value: Any) -> str:
    """Return a special token's text; configs hold it bare, as an object with `content`, or as null."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _numbers(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool)]


def _steps(node: Any) -> list[Mapping[str, Any]]:
    """Flatten a component that may be a sequence of components."""
    if not isinstance(node, dict):
        return []
    children = node.get("decoders") or node.get("processors") or node.get("pretokenizers")
    return [step for child in children for step in _steps(child)] if children else [node]


def _strips_leading_space(decoder: Any) -> bool:
    for step in _steps(decoder):
        if step.get("type") == "Strip" and step.get("content") == " " and step.get("start", 0) > 0:
            return True
        if step.get("type") == "Metaspace":
            default = "always" if step.get("add_prefix_space", True) else "never"
            return step.get("prepend_scheme", default) != "never"
    return False


def _edges(
    processor: Any, config: Mapping[str, Any], bos: int | None, eos: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids put before and after a text: the file's template, then the config's switches."""
    before: list[int] = []
    after: list[int] = []
    for step in _steps(processor):
        if step.get("type") == "TemplateProcessing":
            before, after = _template_edges(step)
    return (
        _switched(before, config.get("add_bos_token"), bos),
        _switched(after, config.get("add_eos_token"), eos),
    )


def _template_edges(step: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    before: list[int] = []
    after: list[int] = []
    side = before
    for part in step["single"]:
        if "Sequence" in part:
            side = after
        else:
            side += step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
    return before, after


def _switched(ids: list[int], switch: Any, id: int | None) -> tuple[int, ...]:
    if switch is False and ids == [id]:
        return ()
    if switch is True and not ids and id is not None:
        return (id,)
    return tuple(ids)


# --- Mistral's tekken.json, which its repositories may ship in place of a tokenizer.json ------------
# Two neighbours merge where their union is a token, the lowest rank first, and a word that is a token needs
# no merge (tiktoken's rule).

# Files of versions 3 to 7 name no control tokens: these are theirs, and the rest up to the stated count are fillers.
_CONTROL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)
_IMPLIED = ("v3", "v7")


def tokenizer_from_tekken(data: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of a parsed tekken.json. Raise BadModelFile for tokens that leave gaps or exceed it."""
    config = data["config"]
    control = _control(data, int(config["default_num_special_tokens"]))
    words = _words(data["vocab"], int(config["default_vocab_size"]) - len(control))
    texts = Strings([*control, *words])
    kinds = [TokenKind.CONTROL] * len(control) + [TokenKind.NORMAL] * len(words)
    reachable = (np.arange(len(kinds)) >= len(control)).astype(np.uint8)
    bpe = Bpe(texts, reachable, byte_level=True, ignore_merges=True)
    bpe.merge_by_rank(np.arange(len(kinds), dtype=np.int32))
    added = tuple(AddedToken(id, text, control=True) for id, text in enumerate(control))
    ids = {token.text: token.id for token in added}
    vocabulary = Vocabulary(
        texts=texts,
        kinds=kinds,
        byte_level=True,
        added=added,
        prefix_ids=(ids["<s>"],),
        suffix_ids=(),
        bos_id=ids["<s>"],
        eos_id=ids["</s>"],
        eos_ids=end_ids(added, (ids["</s>"],)),
        marks_are_spaces=False,
        strips_leading_space=False,
        pad_id=ids.get("<pad>"),
        unk_id=ids.get("<unk>"),
    )
    return Tokenizer(merging_encoder(bpe, byte_alphabet(), None, _cutter(config["pattern"])), vocabulary)


def _cutter(pattern: str) -> pre_tokenizers.PreTokenizer:
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:  # the library raises a bare Exception
        raise BadModelFile(f"tekken.json's word pattern cannot be read: {error}") from error
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _control(data: Mapping[str, Any], count: int) -> list[str]:
    """List the control tokens by id."""
    listed = data.get("special_tokens")
    if listed is None:
        if (version := data["config"].get("version")) not in _IMPLIED:
            raise BadModelFile(f"tekken.json of version {version!r} lists no special_tokens")
        named = _CONTROL.split()
    else:
        ranked = sorted(listed, key=lambda token: token["rank"])
        named = [str(token["token_str"]) for token in ranked]
        if [token["rank"] for token in ranked] != [*range(len(named))]:
            raise BadModelFile("the ranks of tekken.json's special_tokens are not those from 0 on")
    if not 0 < len(named) <= count <= MAX_TOKENS:
        raise BadModelFile(f"tekken.json states {count:,} special tokens and names {len(named):,}")
    return named + [f"<SPECIAL_{id}>" for id in range(len(named), count)]


def _words(vocab: list[Mapping[str, Any]], count: int) -> list[str]:
    """List the first `count` tokens by rank, spelled in the byte alphabet."""
    symbols = {byte: char for char, byte in byte_alphabet().items()}
    if not 0 < count <= min(len(vocab), MAX_TOKENS):
        raise BadModelFile(f"tekken.json states {count:,} tokens and holds {len(vocab):,}")
    if any(entry["rank"] != rank for rank, entry in enumerate(vocab[:count])):
        raise BadModelFile("the ranks of tekken.json's vocab are not those from 0 on")
    spelled = (base64.b64decode(entry["token_bytes"], validate=True) for entry in vocab[:count])
    return ["".join(symbols[byte] for byte in token) for token in spelled]
