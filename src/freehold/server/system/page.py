"""The page that a browser finds at `/`: what this is, which models there are, and how to point a client at it.

One document without a script and without anything from elsewhere; its style is the only thing that its policy lets
in. Knows HTML and the models a caller may see; knows no protocol's fields.
Path: Gate -> app.root -> page
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from html import escape

import freehold
from freehold.server.core.call import HttpCall
from freehold.server.core.problems import Refused
from freehold.serving import LoadedInfo, StoredModel

MAX_SHOWN = 100  # models
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #666; --code: #8881; }
@media (prefers-color-scheme: dark) { :root { --dim: #aaa; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 2rem 1.25rem 4rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h1 small { color: var(--dim); font-weight: normal; font-size: 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; } .dim { color: var(--dim); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-top: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; border-top: 0; } td { overflow-wrap: anywhere; }
td:last-child, th:last-child { padding-right: 0; }
code, pre { font: .875rem/1.5 ui-monospace, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--code); padding: .75rem; border-radius: .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }
a { color: inherit; } ul { padding-left: 1.25rem; }
@media (max-width: 40rem) {
  body { padding: 1.25rem .9rem 3rem; }
  th { display: none; }
  tr { display: block; padding: .4rem 0; border-top: 1px solid var(--line); }
  tr:first-child { display: none; }
  td { display: block; border: 0; padding: 0; }
}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"vary", b"accept"),
)


async def page(call: HttpCall) -> None:
    """Answer a browser."""
    keyed = bool(call.server.guard.keys)
    held, loaded = (await call.models.names(), call.models.loaded()) if _may_see(call) else ((), ())
    host = call.headers.get(b"host", b"localhost").decode("latin-1")
    url = f"{call.scope.get('scheme', 'http')}://{host}"
    model = next((m.name for m in [*loaded, *held]), "MODEL")
    body = "".join(
        (
            _models(held, loaded, hidden=not _may_see(call)),
            _apis(url),
            _example(url, model, keyed=keyed),
            _links(),
        )
    )
    await call.answer(_document(body, keyed=keyed).encode(), 200, HEADERS, b"text/html; charset=utf-8")


def _may_see(call: HttpCall) -> bool:
    """Return whether the caller may see models; the page itself is public."""
    try:
        call.key, _ = call.server.guard.check("/v1/models", call.headers)
    except Refused:
        return False
    return True


def _document(body: str, *, keyed: bool) -> str:
    needs = "Each request needs a key." if keyed else "No key is needed."
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Freehold</title>'
        f"<style>{_STYLE}</style><h1>Freehold <small>{escape(freehold.__version__)}</small></h1>"
        f"<p>A server for language models, which programs ask over HTTP. {needs}</p>{body}</html>"
    )


def _models(held: Sequence[StoredModel], loaded: Sequence[LoadedInfo], *, hidden: bool) -> str:
    if hidden:
        return '<h2>Models</h2><p class="dim">Listed for callers with a key: <code>GET /v1/models</code>.</p>'
    if not held and not loaded:
        return "<h2>Models</h2><p>None yet: <code>freehold pull qwen2.5-coder:0.5b</code> fetches one.</p>"
    there = {m.name: m for m in loaded}
    rows = [(m.name, f"in memory, {m.info.context:,} tokens of context") for m in loaded if m.info]
    rows += [(m.name, "on disk, loaded when a request names it") for m in held if m.name not in there]
    more = f'<p class="dim">and {len(rows) - MAX_SHOWN:,} more</p>' if len(rows) > MAX_SHOWN else ""
    return f"<h2>Models</h2>{_table(('name', 'state'), rows[:MAX_SHOWN])}{more}"


def _apis(url: str) -> str:
    rows = [
        ("OpenAI", f"{url}/v1", "chat, completions, responses, embeddings, files, batches"),
        ("Anthropic", url, "messages, count_tokens: Claude Code and the like"),
        ("Ollama", url, "OLLAMA_HOST of its clients"),
    ]
    return f"<h2>Point a client at it</h2>{_table(('API', 'base URL', 'for'), rows, code=1)}"


def _example(url: str, model: str, *, keyed: bool) -> str:
    key = ' -H "Authorization: Bearer KEY"' if keyed else ""
    said = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]})
    line = f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(said)}"
    return f"<pre>{escape(line)}</pre>"


def _links() -> str:
    links = (
        ("/openapi.json", "every route and field, for programs"),
        ("/v1/models", "models, as OpenAI lists them"),
        ("/health", "whether the server lives"),
        ("/ready", "whether new requests may come"),
        ("/metrics", "counts and times, for Prometheus"),
    )
    items = "".join(f'<li><a href="{path}"><code>{path}</code></a>: {said}</li>' for path, said in links)
    docs = "Guides: <code>docs</code> of the source. <code>freehold --help</code> lists the verbs."
    return f"<h2>More</h2><ul>{items}</ul><p class='dim'>{docs}</p>"


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], code: int = 0) -> str:
    """Write a table; the cells of column `code` are shown as code."""
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = ("".join(_cell(text, i == code) for i, text in enumerate(row)) for row in rows)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(text: str, code: bool) -> str:
    return f"<td><code>{escape(text)}</code></td>" if code else f"<td>{escape(text)}</td>"
