"""Edits another program's settings file and leaves the rest unchanged, comments too; or refuses.

Text in, text out: JSON objects, YAML of plain `key: value` lines, and a YAML list that gains one item between two
comments of ours. Other notations are refused, never rewritten: there is no YAML parser here.
Path: apps.App.edit -> here; UsageError -> launch
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from freehold.errors import UsageError

OURS = "freehold"  # what other programs' files call our server
BEGIN, END = "# freehold launch: begin", "# freehold launch: end"
_TOP_KEY = re.compile(r"[A-Za-z_][\w.-]*[ \t]*:([ \t]|$)")


class NotUnderstood(UsageError):
    """A file whose notation an edit could damage."""


def merged_json(old: str, section: str, values: Mapping[str, Any]) -> str:
    """Return a JSON object with `values` in its object `section`, "" for the whole; objects within are merged too."""
    whole = _json(old, {})
    if not isinstance(whole, dict) or not isinstance(whole.get(section, {}), dict):
        raise NotUnderstood(f"it is not a JSON object with an object {section!r}")
    return _written(_merged(whole, {section: values} if section else values))


def named_item(old: str, item: Mapping[str, Any]) -> str:
    """Return a JSON array with `item` in place of the one of the same `name`, or after all others."""
    whole = _json(old, [])
    if not isinstance(whole, list):
        raise NotUnderstood("it is not a JSON array")
    at = [i for i, each in enumerate(whole) if isinstance(each, dict) and each.get("name") == item["name"]]
    if len(at) > 1:
        raise NotUnderstood(f"it has {item['name']} {len(at)} times")
    kept = [item if i in at else each for i, each in enumerate(whole)]
    return _written(kept if at else [*kept, item])


def _json(old: str, empty: Any) -> Any:
    try:
        return json.loads(old) if old.strip() else empty
    except (ValueError, RecursionError) as e:
        raise NotUnderstood(f"it is not JSON: {e}") from e


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge objects within objects; what lies below our own name is replaced as a whole."""
    both = {
        key: _merged(old[key], value)
        for key, value in new.items()
        if key.lower() != OURS and isinstance(value, dict) and isinstance(old.get(key), dict)
    }
    return {**old, **new, **both}


def _written(whole: object) -> str:
    try:
        new = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        new.encode()  # half a surrogate pair can be read, and not be written
    except (ValueError, RecursionError) as e:
        raise NotUnderstood(f"it is not JSON: {e}") from e
    return new


def set_yaml(old: str, values: Mapping[str, str]) -> str:
    """Return YAML with these top-level keys set to texts; lines of other keys stay as they are."""
    lines = _lines(old)
    _plain_mapping(lines)
    for key, value in values.items():
        line = f"{key}: {quoted(value)}"
        named = re.escape(key) + r"[ \t]*:"
        at = [i for i, each in enumerate(lines) if re.match(rf"{named}([ \t]|$)", each)]
        if len(at) > 1:
            raise NotUnderstood(f"it has {key} {len(at)} times")
        if not at:
            lines.append(line)
            continue
        open_ended = re.match(named + r"[ \t]*([|>&*!{\[]|['\"][^'\"]*$)", lines[at[0]])
        if open_ended or _continues(lines, at[0]):
            raise NotUnderstood(f"{key} in line {at[0] + 1} is more than a text on one line")
        lines[at[0]] = line
    return "\n".join(lines) + "\n"


def list_items(old: str, key: str, items: Sequence[Sequence[str]]) -> str:
    """Return YAML with more items in the top-level list `key`, or with `key` "" in the list the file is.

    `items`: their lines without indentation, the first one after the dash. Items of ours are replaced.
    """
    lines = _without_ours(_lines(old))
    if key:
        _plain_mapping(lines)
        at = _list_under(lines, key)
        indent = _indent(lines, at)
    else:
        if any(line.strip() and not line.startswith(("- ", "#", " ")) for line in lines):
            raise NotUnderstood("it is not a list of items that begin with a dash")
        at, indent = len(lines), ""
    ours = [
        f"{indent}{BEGIN}",
        *(f"{indent}{'  ' if i else '- '}{line}" for item in items for i, line in enumerate(item)),
        f"{indent}{END}",
    ]
    return "\n".join([*lines[:at], *ours, *lines[at:]]) + "\n"


def quoted(text: str) -> str:
    """Write a text so that YAML reads it as it is."""
    return json.dumps(text, ensure_ascii=False)


def _lines(text: str) -> list[str]:
    """Split at YAML's line ends; str.splitlines would also split at characters within a text."""
    lines = re.split(r"\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def _without_ours(lines: list[str]) -> list[str]:
    begins = [i for i, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [i for i, line in enumerate(lines) if line.strip() == END]
    if len(begins) != len(ends) or len(begins) > 1 or (begins and begins[0] > ends[0]):
        raise NotUnderstood("our own comments in it do not match")
    return lines[: begins[0]] + lines[ends[0] + 1 :] if begins else lines


def _plain_mapping(lines: Sequence[str]) -> None:
    """Refuse all but keys at the left margin with indented values or lists."""
    for number, line in enumerate(lines, 1):
        odd = "\t" in line[: len(line) - len(line.lstrip())]
        if odd or (line and not line.startswith((" ", "#", "-")) and not _TOP_KEY.match(line)):
            raise NotUnderstood(f"line {number} is not a plain `key: value`: {line[:60]!r}")
        if line.startswith(("---", "- -", "...")) and number > 1:
            raise NotUnderstood(f"line {number} begins another document")


def _list_under(lines: list[str], key: str) -> int:
    """Return where an item goes: under the line `key:`, which is added if it is missing."""
    at = [i for i, line in enumerate(lines) if re.match(rf"{re.escape(key)}[ \t]*:", line)]
    if not at:
        lines.append(f"{key}:")
        return len(lines)
    if len(at) > 1 or not re.fullmatch(rf"{re.escape(key)}[ \t]*:[ \t]*(\[\])?[ \t]*(#.*)?", lines[at[0]]):
        raise NotUnderstood(f"{key} in line {at[0] + 1} is not a list with one item per line")
    lines[at[0]] = lines[at[0]].replace("[]", "").rstrip()
    return at[0] + 1


def _indent(lines: Sequence[str], at: int) -> str:
    """Return the indentation of the list that begins at line `at`; two blanks where it is empty."""
    for line in lines[at:]:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line.lstrip().startswith("- "):
            return line[: len(line) - len(line.lstrip())]
        if line.startswith(" "):
            raise NotUnderstood(f"its value is not a list: {line.strip()[:60]!r}")
        break
    return "  "


def _continues(lines: Sequence[str], at: int) -> bool:
    after = next((line for line in lines[at + 1 :] if line.strip()), "")
    return after.startswith((" ", "-"))
