"""Chat templates of families that call tools: those stored in tests/vectors, and short ones written here.

A short one renders tools and calls in its family's form and nothing else of it; what the forms are is in each
dialect's docstring. Knows no parser.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from freehold.run.tokenizer import ChatTemplate

VECTORS = Path(__file__).parent.parent / "vectors" / "templates"


def stored(name: str) -> ChatTemplate:
    """Return a template of tests/vectors."""
    data = json.loads((VECTORS / f"{name}.json").read_text())
    entry = next(e for e in data["templates"] if e["name"] == name)
    return ChatTemplate(
        entry["source"], bos_token=entry.get("bos_token", ""), eos_token=entry.get("eos_token", "")
    )


def _turns(tools: str, call: str, *, before: str = "", between: str = "", after: str = "") -> str:
    """Return a template of ChatML turns whose assistant writes `call` for each call of its own."""
    return (
        "{% if tools %}<|im_start|>system\n" + tools + "<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% if m.tool_calls %}"
        + before
        + "{% for c in m.tool_calls %}{% set f = c.function %}"
        + call
        + "{% if not loop.last %}"
        + between
        + "{% endif %}{% endfor %}"
        + after
        + "{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


_LISTED = "{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
_XML = (
    "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments.items() %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
_COMMA = "{% if not loop.last %},{% endif %}"
_GEMMA4 = (
    '{% macro value(v) %}{% if v is string %}<|"|>{{ v }}<|"|>{% elif v is boolean %}'
    "{{ 'true' if v else 'false' }}{% elif v is mapping %}{{ '{' }}"
    "{% for k, x in v.items() %}{{ k }}:{{ value(x) }}" + _COMMA + "{% endfor %}{{ '}' }}"
    "{% elif v is sequence %}[{% for x in v %}{{ value(x) }}" + _COMMA + "{% endfor %}]"
    "{% else %}{{ v }}{% endif %}{% endmacro %}"
)


def _marked(head: str, pair: str, end: str) -> str:
    """Return the spelling of a call with `pair` for each argument; `pair` writes {{ k }} and the value."""
    pairs = "{% for k, v in f.arguments.items() %}" + pair + "{% endfor %}"
    return head.replace("NAME", "{{ f.name }}") + pairs + end


_OBJECT = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
_VALUE = "{{ v if v is string else v | tojson }}"
_DSML = "｜DSML｜"
_PYTHON = (
    "{% macro lit(v) %}{% if v is string %}{{ v | tojson }}{% elif v is boolean %}{{ 'True' if v else 'False' }}"
    "{% elif v is mapping %}{{ '{' }}{% for k, x in v.items() %}{{ k | tojson }}: {{ lit(x) }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}{{ '}' }}{% elif v is sequence %}"
    "[{% for x in v %}{{ lit(x) }}{% if not loop.last %}, {% endif %}{% endfor %}]{% else %}{{ v }}{% endif %}"
    "{% endmacro %}"
)
SHORT = {
    "lfm2": _PYTHON
    + _turns(
        _LISTED,
        "{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}={{ lit(v) }}"
        "{% if not loop.last %}, {% endif %}{% endfor %})",
        before="<|tool_call_start|>[",
        between=", ",
        after="]<|tool_call_end|>",
    ),
    "llama4": _turns(
        "Environment: ipython\n" + _LISTED,
        '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}',
        before="<|python_start|>{{ m.content }}<|python_end|>",
    ),
    "kimi": _turns(
        _LISTED,
        "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>"
        "{{ f.arguments | tojson }}<|tool_call_end|>",
        before="<|tool_calls_section_begin|>",
        after="<|tool_calls_section_end|>",
    ),
    "tool-calls": _turns(_LISTED, _OBJECT, before="\n<tool_calls>[", between=", ", after="]</tool_calls>"),
    "granite": _turns(
        "{# available_tools #}" + _LISTED, _OBJECT, before="<|tool_call|>[", between=", ", after="]"
    ),
    "phi4": "{% for m in messages %}{% if m.tools %}<|tool|>{{ m.tools }}<|/tool|>{% endif %}{% endfor %}"
    + _turns("", _OBJECT, before="<|tool_call|>[", between=", ", after="]<|/tool_call|>"),
    "cohere": _turns(
        _LISTED,
        '    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ f.name }}", '
        '"parameters": {{ f.arguments | tojson }}}',
        before="<|START_ACTION|>[\n",
        between=",\n",
        after="\n]<|END_ACTION|>",
    ),
    "functionary": _turns(_LISTED, "<function={{ f.name }}>{{ f.arguments | tojson }}</function>"),
    "glm": _turns(
        _LISTED,
        "\n"
        + _marked(
            "<tool_call>NAME\n",
            "<arg_key>{{ k }}</arg_key>\n<arg_value>" + _VALUE + "</arg_value>\n",
            "</tool_call>",
        ),
    ),
    "glm-4.7": _turns(
        _LISTED,
        _marked(
            "<tool_call>NAME",
            "<arg_key>{{ k }}</arg_key><arg_value>" + _VALUE + "</arg_value>",
            "</tool_call>",
        ),
    ),
    "minimax": _turns(
        _LISTED,
        _marked(
            '<invoke name="NAME">\n',
            '<parameter name="{{ k }}">' + _VALUE + "</parameter>\n",
            "</invoke>\n",
        ),
        before="\n<minimax:tool_call>\n",
        after="</minimax:tool_call>",
    ),
    "seed": _turns(
        _LISTED,
        _marked(
            "\n<seed:tool_call>\n<function=NAME>\n",
            "<parameter={{ k }}>" + _VALUE + "</parameter>\n",
            "</function>\n</seed:tool_call>",
        ),
    ),
    "dsml": _turns(
        _LISTED,
        _marked(
            f'<{_DSML}invoke name="NAME">\n',
            f"<{_DSML}parameter name=\"{{{{ k }}}}\" string=\"{{{{ 'true' if v is string else 'false' }}}}\">"
            f"{_VALUE}</{_DSML}parameter>\n",
            f"</{_DSML}invoke>\n",
        ),
        before=f"\n\n<{_DSML}function_calls>\n",
        after=f"</{_DSML}function_calls>",
    ),
    "hunyuan": _turns(
        _LISTED,
        _marked(
            "<tool_call>NAME<tool_sep>\n",
            "<arg_key>{{ k }}</arg_key>\n<arg_value>" + _VALUE + "</arg_value>\n",
            "</tool_call>\n",
        ),
        before="<tool_calls>\n",
        after="</tool_calls>",
    ),
    "xml": _turns(_LISTED, _XML),
    "nemotron": _turns(
        _LISTED,
        '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}',
        before="<TOOLCALL>[",
        between=", ",
        after="]</TOOLCALL>",
    ),
    "mistral-v3": _turns(
        _LISTED,
        '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}, "id": "{{ c.id }}"}',
        before="[TOOL_CALLS] [",
        between=", ",
        after="]",
    ),
    "mistral-v13": _turns(_LISTED, "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"),
    "llama": _turns(
        "Environment: ipython\n" + _LISTED,
        '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}',
        between="; ",
    ),
    "deepseek-v3.1": _turns(
        _LISTED,
        "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments }}<｜tool▁call▁end｜>",
        before="<｜tool▁calls▁begin｜>",
        after="<｜tool▁calls▁end｜>",
    ),
    "gemma4": _GEMMA4 + _turns(_LISTED, "<|tool_call>call:{{ f.name }}{{ value(f.arguments) }}<tool_call|>"),
    "harmony": (
        "{% if tools %}<|start|>developer<|message|>namespace functions\n"
        "{% for t in tools %}type {{ t.function.name }}\n{% endfor %}<|end|>{% endif %}"
        "{% for m in messages %}{% if m.tool_calls %}{% if m.thinking %}"
        "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}{% for c in m.tool_calls %}"
        "<|start|>assistant to=functions.{{ c.function.name }}<|channel|>commentary json<|message|>"
        "{{ c.function.arguments | tojson }}<|call|>{% endfor %}{% else %}"
        "<|start|>{{ m.role }}<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
}


@cache
def template(name: str) -> ChatTemplate:
    """Return a family's template, stored or short."""
    return ChatTemplate(SHORT[name]) if name in SHORT else stored(name)
