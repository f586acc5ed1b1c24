"""The programs of `freehold launch`: the file each reads, the settings it needs, the command that starts it.

Facts from their documentation, with the page and the date. Knows no disk: text in, text out.
Path: launch -> APPS[name] -> App.edit -> edits.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import click

from freehold.cli.clients.edits import list_items, merged_json, named_item, quoted, set_yaml
from freehold.platforms import IS_MAC

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
    return Path(env.get("XDG_CONFIG_HOME") or _home(env) / ".config") / "Code" / "User"


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
        lambda env, _: Path(env.get("CODEX_HOME") or _home(env) / ".codex") / "freehold.config.toml",
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
        lambda t, _: ["choose the model in Continue's list; the editor reads the file again by itself"],
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
