"""Why a wire cannot carry a request is kept in the ledger as a reason, so it says nothing of the request."""

from __future__ import annotations

import pytest

from freehold.base.errors import FreeholdError
from freehold.base.serving import Job
from freehold.base.types import Format, Image, Message, Tool, ToolCall
from freehold.route.providers.contract import Abilities, Kind, Provider, RemoteModel
from freehold.route.providers.upstream import wire_of

MARK = "kq0123456789abz"
USER = Message("user", MARK)
CALL = Message("assistant", "", tool_calls=(ToolCall(MARK, MARK, f"[{MARK}"),))
JOBS = {
    "arguments that are no object": Job((USER, CALL, Message("tool", MARK, tool_call_id=MARK))),
    "a result without its call": Job((USER, Message("tool", MARK, tool_call_id=MARK))),
    "a picture of a tool": Job((USER, Message("tool", MARK, name=MARK, parts=(Image(MARK, MARK),)))),
    "a picture of a strange type": Job((Message("user", MARK, parts=(Image("image/x", MARK),)),)),
    "many stops": Job((USER,), stop=tuple(f"{MARK}{n}" for n in range(20))),
    "a grammar": Job((USER,), format=Format("regex", MARK)),
    "an unknown tool": Job((USER,), tools=(Tool(MARK),), tool_choice="required", tool_name=f"x{MARK}"),
    "a prompt": Job(prompt=MARK, suffix=MARK, template=MARK),
    "biases": Job((USER,), sampling={"logit_bias": {1: 2.0}}, effort=MARK),
    "an empty chat": Job((Message("system", MARK),)),
    "two openings": Job((Message("assistant", MARK), Message("assistant", ""))),
}
KINDS: tuple[Kind, ...] = ("openai", "anthropic", "gemini", "mistral", "deepseek", "openai-compatible")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_no_reason_or_warning_of_a_wire_quotes_the_request(kind: Kind, able: bool, job: Job):
    abilities = Abilities() if able else Abilities(images=False, tools=False, json_schema=False)
    model = RemoteModel(Provider("far", kind, "http://127.0.0.1:9"), "big-1", abilities=abilities)
    try:
        said = "\n".join(wire_of(kind).request(model, job, stream=True).warnings)
    except FreeholdError as e:
        said = f"{e.message}\n{e.hint}"
    assert MARK not in said
