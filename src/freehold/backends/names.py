"""What a deployment may be called: one line that can be read, of a length that a file of its name can have.

Names come from folders and from engines that run already, which others made. They are written into command lines,
comments of files for clusters, labels of metrics and terminals. Knows no model.
Path: planning.facts.deployed, engines.survey.attached_plan, DeployedModels.add -> named
"""

from __future__ import annotations

from urllib.parse import quote

from freehold.errors import UsageError

MOST = 128  # characters
_MOST_QUOTED = 200  # bytes of it in the name of a file, which has 255 with the text around it


def named(name: str) -> str:
    """Return the name. Raises UsageError for one that another program would read as something else."""
    if not 0 < len(name) <= MOST or len(quote(name, safe="+:@ ", errors="replace")) > _MOST_QUOTED:
        wrong = f"has {len(name)} characters, and 1 to {MOST} are taken"
    elif not name.isprintable() or name != name.strip():
        wrong = "has characters that do not print"
    elif name.startswith("-"):
        wrong = "begins with a dash, as an option does"
    elif set(name) & set("$`"):
        wrong = "has characters that a shell fills in"
    else:
        return name
    raise UsageError(f"the name {name[:60]!r} {wrong}", "give another with --name NAME", field="name")
