"""The programs of `freehold launch`: the file each reads, the settings it needs, the command that starts it.

Facts from their documentation, with the page and the date. Knows no disk: text in, text out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import click

from freehold.base.errors import UsageError
from freehold.base.platforms import IS_MAC

# Tokens that an editor may use of a context: it asks for a number, and the server fits what is longer or refuses it.
_ROOM, _ANSWER = 32_768, 4096
NO_KEY = "none"  # for clients that require a key; a server without keys ignores it


@dataclass(frozen=True, slots=True)
class Target:
    """The server to use. `url` has no /v1; `key` is "" if it needs none."""

    url: str
    model: str
    key: str = ""

    @property
    def v1(self) -> str:
        """The base of OpenAI's routes."""
        return f"{self.url}/v1"

    @property
    def some_key(self) -> str:
        """The key, or a word in its place."""
        return self.key or NO_KEY


Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class App:
    """One program. `edit`: returns its file's text (empty: no file) with our settings."""

    title: str
    file: (
        Callable[[Environment, Path], Path] | None
    )  # from the environment and the data folder; None: it has none
    edit: Callable[[str, Target], str]
    start: Callable[[Target, Path], list[str]]  # commands or steps, `path` being the file
    source: str
    speaks: str  # the protocol it needs


def _home(env: Environment) -> Path:
    return Path(env.get("HOME") or Path.home())


def _claude(old: str, t: Target) -> str:
    tiers = (f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU"))
    models = ("ANTHROPIC_MODEL", *tiers, "CLAUDE_CODE_SUBAGENT_MODEL")
    return merged_json(
        old,
        "env",
        {
            "ANTHROPIC_BASE_URL": t.url,
            "ANTHROPIC_AUTH_TOKEN": t.some_key,
            "ANTHROPIC_API_KEY": "",  # the shell's own, for Anthropic, would go out beside it
            **dict.fromkeys(models, t.model),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )


def _codex(old: str, t: Target) -> str:
    key = 'env_key = "FREEHOLD_API_KEY"\n' if t.key else ""
    return (
        f'model = {json.dumps(t.model)}\nmodel_provider = "freehold"\n\n'
        f'[model_providers.freehold]\nname = "Freehold"\nbase_url = {json.dumps(t.v1)}\n'
        f'wire_api = "responses"\n{key}'
    )


def _aider(old: str, t: Target) -> str:
    return set_yaml(
        old, {"openai-api-base": t.v1, "openai-api-key": t.some_key, "model": f"openai/{t.model}"}
    )


def _continue(old: str, t: Target) -> str:
    head = old if old.strip() else 'name: "Local"\nversion: "0.0.1"\nschema: v1\n'
    chats = [
        f"name: {quoted(f'Freehold {t.model}')}",
        "provider: openai",
        f"model: {quoted(t.model)}",
        f"apiBase: {quoted(t.v1)}",
        f"apiKey: {quoted(t.some_key)}",
        "roles: [chat, edit, apply]",
    ]
    completes = [  # by Ollama's API, which has a field for the text behind the cursor
        f"name: {quoted(f'Freehold {t.model}, completion')}",
        "provider: ollama",
        f"model: {quoted(t.model)}",
        f"apiBase: {quoted(t.url)}",
        f"apiKey: {quoted(t.some_key)}",
        "roles: [autocomplete]",
    ]
    return list_items(head, "models", [chats, completes])


def _opencode(old: str, t: Target) -> str:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Freehold",
        "options": {"baseURL": t.v1, "apiKey": t.some_key},
        "models": {t.model: {"name": t.model}},
    }
    return merged_json(old, "provider", {"freehold": provider})


def _zed(old: str, t: Target) -> str:
    model = {"name": t.model, "max_tokens": _ROOM, "capabilities": {"tools": True, "images": False}}
    ours = {"api_url": t.v1, "available_models": [model]}
    return merged_json(old, "language_models", {"openai_compatible": {"Freehold": ours}})


def _vscode(old: str, t: Target) -> str:
    model = {
        "id": t.model,
        "name": f"{t.model} (Freehold)",
        "url": f"{t.v1}/chat/completions",
        "toolCalling": True,
        "vision": False,
        "maxInputTokens": _ROOM - _ANSWER,
        "maxOutputTokens": _ANSWER,
    }
    item = {
        "name": "Freehold",
        "vendor": "customendpoint",
        "apiKey": t.some_key,
        "apiType": "chat-completions",
    }
    return named_item(old, {**item, "models": [model]})


def _llama_vscode(old: str, t: Target) -> str:
    key = {"llama-vscode.api_key": t.key} if t.key else {}
    return merged_json(old, "", {"llama-vscode.endpoint": t.url, **key})


def _llama_vim(old: str, t: Target) -> str:
    key = f", 'api_key': '{t.key}'" if t.key else ""
    return f"let g:llama_config = {{'endpoint_fim': '{t.url}/infill'{key}}}\n"


def _by_hand(old: str, t: Target) -> str:
    return f"Base URL: {t.v1}\nAPI key:  {t.some_key}\nModel:    {t.model}\n"


def _code_folder(env: Environment) -> Path:
    """The settings folder of VS Code's user."""
    if IS_MAC:
        return _home(env) / "Library" / "Application Support" / "Code" / "User"
    return _config(env) / "Code" / "User"


def _config(env: Environment) -> Path:
    return Path(env.get("XDG_CONFIG_HOME") or _home(env) / ".config")


def _open_webui(old: str, t: Target) -> str:
    return f"OPENAI_API_BASE_URL={t.v1}\nOPENAI_API_KEY={t.some_key}\nENABLE_PERSISTENT_CONFIG=False\n"


def _llm(old: str, t: Target) -> str:
    item = [
        "model_id: freehold",
        f"model_name: {quoted(t.model)}",
        f"api_base: {quoted(t.v1)}",
        *(["api_key_name: freehold"] if t.key else []),
        "supports_schema: true",
        "supports_tools: true",
    ]
    return list_items(old, "", [item])


def _llm_folder(env: Environment) -> Path:
    return Path(env.get("LLM_USER_PATH") or click.get_app_dir("io.datasette.llm"))


APPS: dict[str, App] = {
    "claude": App(
        "Claude Code",
        lambda env, _: Path(env.get("CLAUDE_CONFIG_DIR") or _home(env) / ".claude") / "settings.json",
        _claude,
        lambda t, _: ["claude"],
        "code.claude.com/docs/en/settings and /env-vars, read 2026-11-25",
        "Anthropic",
    ),
    "codex": App(
        "Codex CLI, 0.134 and later",
        lambda env, _: Path(env.get("CODEX_HOME") or _home(env) / ".codex") / "freehold.base.config.toml",
        _codex,
        lambda t, _: [
            *([f"export FREEHOLD_API_KEY={quote(t.key)}"] if t.key else []),
            "codex --profile freehold",
        ],
        "developers.openai.com/codex/config-advanced, read 2026-11-25",
        "OpenAI responses",
    ),
    "aider": App(
        "aider",
        lambda env, _: _home(env) / ".aider.conf.yml",
        _aider,
        lambda t, _: ["aider"],
        "aider.chat/docs/llms/openai-compat.html and /docs/config/aider_conf.html, read 2026-11-25",
        "OpenAI",
    ),
    "continue": App(
        "Continue",
        lambda env, _: _home(env) / ".continue" / "config.yaml",
        _continue,
        lambda t, _: ["choose the model in Continue's list; the editor reloads the file automatically"],
        "docs.continue.dev/customize/model-providers/top-level/openai, read 2026-11-25",
        "OpenAI",
    ),
    "open-webui": App(
        "Open WebUI",
        lambda _, home: home / "launch" / "open-webui.env",
        _open_webui,
        lambda t, path: [f"set -a; . {quote(str(path))}; set +a; open-webui serve --port 8080"],
        "docs.openwebui.com/reference/env-configuration, read 2026-11-25",
        "OpenAI",
    ),
    "opencode": App(
        "opencode",
        lambda env, _: _config(env) / "opencode" / "opencode.json",
        _opencode,
        lambda t, _: [f"opencode --model {quote(f'freehold/{t.model}')}"],
        "opencode.ai/docs/providers, read 2026-12-01",
        "OpenAI",
    ),
    "zed": App(
        "Zed",
        lambda env, _: _config(env) / "zed" / "settings.json",
        _zed,
        lambda t, _: [
            f"export FREEHOLD_API_KEY={quote(t.some_key)}; zed",
            "choose the model in the agent panel",
        ],
        "zed.dev/docs/ai/use-a-local-model and docs.opper.ai/integrations/editors/zed, read 2026-12-01",
        "OpenAI",
    ),
    "vscode": App(
        "VS Code, Copilot's custom endpoint, 1.122 and later",
        lambda env, _: _code_folder(env) / "chatLanguageModels.json",
        _vscode,
        lambda t, _: ["choose the model in the chat's model picker; restart VS Code where it is missing"],
        "github.com/microsoft/vscode/issues/316916, read 2026-12-01",
        "OpenAI",
    ),
    "llama-vscode": App(
        "llama.vscode, completion in VS Code",
        lambda env, _: _code_folder(env) / "settings.json",
        _llama_vscode,
        lambda t, _: ["write code: the suggestion comes as you type; Tab takes it"],
        "github.com/ggml-org/llama.vscode, read 2026-12-01",
        "llama.cpp's /infill",
    ),
    "llama-vim": App(
        "llama.vim, completion in Vim and Neovim",
        None,
        _llama_vim,
        lambda t, _: ["put the line into your vimrc, before the plugin loads"],
        "github.com/ggml-org/llama.vim, read 2026-12-01",
        "llama.cpp's /infill",
    ),
    "cline": App(
        "Cline",
        None,
        _by_hand,
        lambda t, _: [
            "in Cline's settings choose the provider OpenAI Compatible, and enter these",
            f"in a terminal: cline auth --provider openai --apikey {quote(t.some_key)} "
            f"--modelid {quote(t.model)} --baseurl {quote(t.v1)}",
        ],
        "docs.cline.bot/provider-config/openai-compatible, read 2026-12-01",
        "OpenAI",
    ),
    "cursor": App(
        "Cursor",
        None,
        _by_hand,
        lambda t, _: [
            "in Cursor Settings, Models, API Keys: turn on OpenAI API Key and Override OpenAI Base URL, add the model",
            "Cursor's own servers ask the model: give --url a public HTTPS address, with a key; your code passes them",
            "its Tab completion does not use the model",
        ],
        "ngrok.com/docs/gateway/examples/cursor-local-llm, read 2026-12-01",
        "OpenAI",
    ),
    "llm": App(
        "llm",
        lambda env, _: _llm_folder(env) / "extra-openai-models.yaml",
        _llm,
        lambda t, _: [
            *([f"llm keys set freehold --value {quote(t.key)}"] if t.key else []),
            "llm -m freehold 'Hello'",
        ],
        "llm.datasette.io/en/stable/other-models.html and llm 0.36 itself, read 2026-11-25",
        "OpenAI",
    ),
}


# --- edits another program's settings file and leaves the rest unchanged, comments too; or refuses --
# Text in, text out: JSON objects, YAML of plain `key: value` lines, and a YAML list that gains one item
# between two comments of ours. Other notations are refused, never rewritten: there is no YAML parser here.

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
