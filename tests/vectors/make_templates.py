"""Writes templates/<name>.json: chat templates, chats, and what `transformers` renders for them.

Needs `transformers` and `gguf`, in an environment of its own. A PATH is a GGUF file or a model directory with
a tokenizer_config.json. `features` exercises Jinja's corners with templates written here.

    python make_templates.py features qwen2.5-coder-0.5b=qwen2.5-coder-0.5b.gguf qwen3=path/to/qwen3
"""

from __future__ import annotations

import datetime as clock
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "templates"
NOW = clock.datetime(2026, 11, 24, 9, 5, 7)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather for a city; <b>°C</b> & 'quotes' \"double\" 日本",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Köln", "n": 1.5, "x": None}},
}
SYSTEM = {"role": "system", "content": "Be brief.\n"}
USER = {"role": "user", "content": "  Hi <|im_end|> there, 5 < 6 & é 🙂\n"}
ANSWER = {"role": "assistant", "content": "Hello!"}
THOUGHT = {"role": "assistant", "content": "42", "reasoning_content": "Let me think.\nYes."}
INLINE = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "get_weather", "content": '{"t": 3}'}

CHATS: list[dict[str, Any]] = [
    {"messages": [USER]},
    {"messages": [USER], "add_generation_prompt": False},
    {"messages": [SYSTEM, USER]},
    {"messages": [SYSTEM, USER, ANSWER, USER]},
    {"messages": [USER, THOUGHT, USER]},
    {"messages": [USER, INLINE, USER, THOUGHT], "add_generation_prompt": False},
    {"messages": [USER], "tools": [TOOL]},
    {"messages": [SYSTEM, USER, CALLING, RESULT, RESULT], "tools": [TOOL, TOOL]},
    {"messages": [USER, ANSWER, USER], "variables": {"enable_thinking": False}},
    {"messages": [USER], "variables": {"enable_thinking": True}},
    {"messages": [USER], "variables": {"thinking": True}},
    {"messages": [ANSWER, ANSWER]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "part"}]}]},
    {"messages": []},
]

FEATURES = {
    "tojson": "{{ messages | tojson }}|{{ messages | tojson(indent=2) }}|{{ tools"
    " | tojson(separators=(',', ':')) }}"
    "|{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true, ensure_ascii=true) }}",
    "none-true": "{{ none }} {{ true }} {{ [none, true, 1.0, 'x'] }} {{ missing }} {{ missing is defined }}",
    "blocks": "{% if true %}\n  a\n{% endif %}\n  {%- if true %}\n b {% endif -%}\n\n c\n  {# note #}\n d",
    "loop": "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ loop.last }} "
    "{{ loop.previtem.role if loop.previtem }} {{ loop.nextitem is defined }} {{ loop.cycle('x', 'y') }};"
    "{% else %}empty{% endfor %}",
    "controls": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 6 %}"
    "{% break %}{% endif %}"
    "{{ i }}{% endfor %}",
    "filtered": "{% for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ m['role'] }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, s='') %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.s = ns.s ~ m.content | string | length ~ ',' %}{% endfor %}{{ ns.n }}{{ ns.s }}",
    "macro": "{% macro show(m, upper=false) %}[{{ m.role | upper if upper else m.role }}"
    "{{ caller() if caller }}]"
    "{% endmacro %}{% for m in messages %}{{ show(m) }}{% call show(m, upper=true) %}!{% endcall %}"
    "{% endfor %}",
    "strings": "{% for m in messages %}{% set c = m.content | string %}{{ c.strip() }}|{{ c | trim }}"
    "|{{ c[:3] }}|"
    "{{ c.split('<')[-1] }}|{{ 'im_end' in c }}|{{ c.startswith('  ') }}|{{ c | replace('é', 'e') }}|"
    "{{ '%s-%d' % (m.role, 3) }}|{{ c | length }}|{{ c.lstrip('\n') }}|{{ 'ab' * 3 }}{% endfor %}",
    "lists": "{{ messages | map(attribute='role') | join(', ') }} {{ messages"
    " | selectattr('role', 'equalto', 'user') "
    "| list | length }} {{ (messages | last).role if messages }} {{ [1, 2] + [3] }}"
    " {{ {'a': 1}.items() | list }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "date": "{{ strftime_now('%d %b %Y %H:%M:%S') }}{% set x %}{{ bos_token }}-{{ eos_token }}"
    "{% endset %}{{ x }}",
    "refusal": "{% if messages | length > 1 %}{{ raise_exception('only one message') }}{% endif %}ok",
    "escape": "{{ '<a&b>' | e }} {{ '<a>' | upper }} {{ \"it's\" | tojson }} {{ '\\n' | length }}",
    "numbers": "{{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 1 / 2 }} {{ 3.0 | int }} {{ '5' | int + 1 }}"
    " {{ 1 ~ 'a' }}",
    "dict": "{% set d = dict(a=1) %}{{ d.a }}{{ d | length }}{% for k, v in d | items %}{{ k }}={{ v }}"
    "{% endfor %}",
}


def render(source: str, tokens: dict[str, str], chat: dict[str, Any]) -> str | None:
    """Return transformers' rendering, None where the template refuses or fails."""
    from transformers.utils import chat_template_utils

    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[chat["messages"]],
            tools=chat.get("tools"),
            chat_template=source,
            add_generation_prompt=chat.get("add_generation_prompt", True),
            **tokens,
            **chat.get("variables", {}),
        )
    except Exception:
        return None
    return rendered[0]


def source_of(path: Path) -> tuple[str, dict[str, str]]:
    """Return the template and the special tokens of a GGUF file or a model directory."""
    if path.is_dir():
        config = json.loads((path / "tokenizer_config.json").read_text())
        tokens = {key: config.get(key) for key in ("bos_token", "eos_token")}
        texts = {k: v["content"] if isinstance(v, dict) else v for k, v in tokens.items() if v}
        return config["chat_template"], texts
    import gguf

    fields = gguf.GGUFReader(path).fields
    texts = fields["tokenizer.ggml.tokens"].contents()
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("bos", "eos")}
    tokens = {f"{name}_token": texts[id] for name, id in ids.items()}
    return fields["tokenizer.chat_template"].contents(), tokens


def freeze_clock() -> None:
    """Make `strftime_now` return NOW."""
    from transformers.utils import chat_template_utils

    class Frozen(clock.datetime):
        @classmethod
        def now(cls, tz: object = None) -> clock.datetime:
            return NOW

    chat_template_utils.datetime = Frozen


def write(name: str, templates: dict[str, tuple[str, dict[str, str]]]) -> None:
    """Render every template with every chat and store the results."""
    data = {
        "now": NOW.isoformat(),
        "chats": CHATS,
        "templates": [
            {
                "name": key,
                "source": source,
                **tokens,
                "expected": [render(source, tokens, chat) for chat in CHATS],
            }
            for key, (source, tokens) in templates.items()
        ],
    }
    HERE.mkdir(exist_ok=True)
    (HERE / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    for entry in data["templates"]:
        refused = sum(expected is None for expected in entry["expected"])
        print(f"{entry['name']}: {len(CHATS)} chats, {refused} refused")


def main() -> None:
    freeze_clock()
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        if name == "features":
            tokens = {"bos_token": "<s>", "eos_token": "</s>"}
            write(name, {key: (source, tokens) for key, source in FEATURES.items()})
        else:
            write(name, {name: source_of(Path(path))})


if __name__ == "__main__":
    main()
