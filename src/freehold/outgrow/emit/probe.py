"""A probe that containers run: `python3 probe.py ready|alive URL MODEL [KEY] [COUNTERS]`, exit status 0 or 1.

KEY: the variable or the file that has it. COUNTERS: prefix of the engine's series at /metrics.

`ready`: health is 200, and one real token, or one vector, has come since this container started. It is asked for until
the first one came, then health alone: a full engine must not leave its Service because a probe waits in its queue.
`alive`: health is 200, and requests that run move a counter at least every 300 s. A core that hangs passes health.
Its text is shipped in a ConfigMap and run by the engine's Python, so it imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

STILL_S = 300.0  # requests that run and no counter that moves for so long: hung
TOKEN_S = 25.0
REFUSED = (400, 404, 405, 501)  # no such route, or not for this model
MARK = Path(os.environ.get("PROBE_FOLDER", "/tmp"))  # may outlive a container of its pod
# Of requests that run, and of tokens; SGLang counts those of an answer at its end, and as they come in the last one.
RUNNING = ("num_requests_running", "num_running_reqs")
TOKENS = ("generation_tokens_total", "prompt_tokens_total", "realtime_tokens_total")
FIRST, LAST = MARK / "freehold-first-token", MARK / "freehold-last-count"


def _fetch(url: str, key: str, body: dict | None = None, seconds: float = 5.0) -> str:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        return answer.read().decode()


def _gives(url: str, model: str, key: str) -> bool:
    """Ask for a token of a chat, else of a continued text, else for a vector: a model refuses what it is not for."""
    limits = {"max_tokens": 1, "temperature": 0}
    bodies = {
        "chat/completions": {**limits, "messages": [{"role": "user", "content": "1"}]},
        "completions": {**limits, "prompt": "1"},
        "embeddings": {"input": "1"},
    }
    refused: urllib.error.HTTPError | None = None
    for route, body in bodies.items():
        try:
            response = json.loads(_fetch(f"{url}/v1/{route}", key, {"model": model, **body}, TOKEN_S))
        except urllib.error.HTTPError as e:
            if e.code not in REFUSED:
                raise
            refused = refused or e
            continue
        if route == "embeddings":
            return bool(response.get("data"))
        return response.get("usage", {}).get("completion_tokens", 0) >= 1
    assert refused is not None, "each route was refused"
    raise refused


def _counts(text: str, prefix: str) -> tuple[float, float]:
    """Return requests that run, and tokens read and written so far, from Prometheus lines."""
    running = tokens = 0.0
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if not line.startswith(prefix):
            continue
        value = float(line.rsplit(" ", 1)[1])
        if name.removeprefix(prefix) in RUNNING:
            running += value
        elif name.removeprefix(prefix) in TOKENS:
            tokens += value
    return running, tokens


def _moves(url: str, key: str, prefix: str) -> bool:
    running, tokens = _counts(_fetch(f"{url}/metrics", key), prefix)
    now = time.time()
    try:
        since, before = map(float, LAST.read_text().split())
    except (OSError, ValueError):
        since, before = now, -1.0
    if not running or tokens != before:
        since = now
    LAST.write_text(f"{since} {tokens}")
    return now - since < STILL_S


def _key(source: str) -> str:
    """Return a key by the variable or the file that has it."""
    return Path(source).read_text().strip() if source.startswith("/") else os.environ.get(source, "")


def _began() -> str:
    """Return when the container's first process started, in ticks: another one after each restart of the container."""
    try:
        return Path("/proc/1/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return "0"


def _had_token(url: str, model: str, key: str) -> bool:
    began = _began()
    if FIRST.exists() and FIRST.read_text() == began:
        return True
    if fine := _gives(url, model, key):
        FIRST.write_text(began)
    return fine


def main(words: list[str]) -> int:
    """Probe. Says what failed on stderr, never a key."""
    verb, url, model, key_source, prefix = (*words, "", "")[:5]
    try:
        key = _key(key_source)
        _fetch(f"{url}/health", "")
        if verb == "alive":
            fine = not prefix or _moves(url, key, prefix)
        else:
            fine = _had_token(url, model, key)
    except (OSError, ValueError) as e:  # URLError and HTTPError are OSErrors
        sys.stderr.write(f"{verb}: {type(e).__name__}: {e}\n")
        return 1
    if not fine:
        sys.stderr.write(
            "ready: neither a token nor a vector came\n"
            if verb == "ready"
            else f"alive: no token for {STILL_S:g} s\n"
        )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
