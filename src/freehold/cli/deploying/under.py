"""The verbs below `freehold deploy`, as data: help and completion list them without an import of any.

Path: cli/deploy.py, cli/complete.py -> UNDER
"""

from __future__ import annotations

# verb -> the file of cli/deploying that has it, its name there, and what the list of verbs says
UNDER = {
    "status": ("verbs", "status", "List deployments, their replicas and latest deaths."),
    "restart": ("verbs", "restart", "Replace every replica by a new engine; no answer is cut."),
    "upgrade": ("verbs", "upgrade", "Move a deployment to another plan, replica by replica."),
    "stop": ("verbs", "stop", "End a deployment after its answers, and forget it."),
    "logs": ("verbs", "logs", "Print what an engine wrote."),
    "bench": ("bench", "command", "Measure what the steps of a running engine take."),
    "capacity": (
        "capacity",
        "command",
        "Find the replicas that a load and an objective need, by simulation.",
    ),
}
