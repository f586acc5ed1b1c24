"""What a published file server says is taken as it says it: 14 tools, schemas that hold a call, results once.

The dialect is that of `@modelcontextprotocol/server-filesystem` 2026.8.31 on the SDK for Node: `$schema`, `title`,
`execution`, `outputSchema`, structured beside plain content, errors as results.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from freehold.base.types import Tool, ToolCall
from freehold.run.engine.constrain.grammar import LIMITS
from freehold.run.engine.constrain.trial_compile import try_compile
from freehold.run.tokenizer.dialects.grammar import lark, lark_of_bare
from freehold.run.tokenizer.dialects.json_calls import FORM
from freehold.serve.chats.types import ToolResult
from freehold.serve.tools.mcp.use import RunTools
from tests.tools.world import Desk, pool

pytest.importorskip("mcp")
HERE = Path(__file__).parent
RECORDED = HERE / "recorded" / "filesystem.json"
SAID = json.loads(RECORDED.read_text())
NOTES = "Meeting with Ada: Thursday at 14:20 in room 4.\nBuy milk.\n"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Tool], list[ToolResult], Desk]:
    """The tools offered, the results of the recorded calls, and the desk that allowed them."""
    command = [sys.executable, str(HERE / "replay.py"), str(RECORDED)]
    desk = Desk("once")

    async def run() -> tuple[list[Tool], list[ToolResult]]:
        servers = pool(tmp_path_factory.mktemp("home"), files={"command": command})
        tools = RunTools(servers, ["files"], key="", chat="c")
        try:
            offered = list(await tools.offer())
            assert servers.seen["files"].left_out == ()
            return offered, [await tools.use(_call(call), desk) for call in SAID["calls"]]
        finally:
            await servers.close()

    return (*asyncio.run(run()), desk)


def _call(call: dict[str, Any]) -> ToolCall:
    return ToolCall("c1", call["name"], json.dumps(call["arguments"]))


def test_all_its_tools_are_offered_by_their_names_and_schemas(seen):
    offered, _, _ = seen
    assert [(t.name, t.parameters) for t in offered] == [(t["name"], t["inputSchema"]) for t in SAID["tools"]]


def test_a_text_reaches_the_model_once_as_it_is(seen):
    _, results, _ = seen
    assert results[0] == ToolResult(content=NOTES, server="files")  # without the structured content beside it
    assert results[2].content == "[FILE] notes.txt"


def test_its_error_is_a_failed_result_in_its_words(seen):
    _, results, _ = seen
    assert results[1].failed and results[1].content.startswith("ENOENT: no such file")


def test_a_file_as_a_resource_is_named_and_not_shown(seen):
    _, results, _ = seen
    assert results[3].content == "[file:///home/ann/notes/notes.txt, 57 bytes: not shown]"


def test_the_question_shows_its_hints(seen):
    _, _, desk = seen
    assert desk.asked[0].claims["annotations"] == {"readOnlyHint": True, "openWorldHint": False}


@pytest.mark.parametrize("marked", [True, False])
def test_its_schemas_hold_a_call_together(seen, marked: bool):
    offered, _, _ = seen
    source = lark(FORM, offered, json.dumps, many=False) if marked else lark_of_bare(offered)
    assert try_compile(source, LIMITS) == ""
