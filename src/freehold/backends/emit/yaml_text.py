"""Documents as YAML, with a head of comments.

PyYAML writes it, which the extra `gateway` brings. Keys keep their order, so a file reads from what it is to details.
Path: kubernetes.kubernetes_files, compose.compose_files, skypilot.skypilot_files -> yaml_text
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.errors import UsageError


def yaml_text(documents: Sequence[Any], head: str = "") -> str:
    """Return the documents as one text. Raises UsageError without PyYAML."""
    try:
        import yaml
    except ImportError as e:
        raise UsageError(
            "these files are YAML, and PyYAML is not installed", "pip install 'freehold[gateway]'"
        ) from e

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # an alias is harder to change by hand than what it stands for

    def written(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, written)
    text = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    return head + text
