"""Names say a type or a role: five words that name nothing may only become fewer in the package."""

from __future__ import annotations

import io
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "freehold"
WORDS = ("found", "asked", "given", "made", "said")
MOST = 192  # 6,152 before; lower it whenever the count falls


def test_names_that_say_nothing_become_no_more():
    counts: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.NAME:
                counts[token.string.strip("_").lower()] += 1
    left = {word: counts[word] for word in WORDS}
    assert sum(left.values()) <= MOST, f"{left}: a local is named by its type or role, see CONTRIBUTING.md"
