"""Read the settings once, at the edge: environment over `config.toml` over defaults.

Knows where the data home lies and what the user allowed; knows no model and opens no socket.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freehold.base.errors import UsageError
from freehold.base.options import option, options_of
from freehold.base.types import image_budget

HUB_ENDPOINT = "https://huggingface.co"
# Beside Ollama's 11434, so that both run on one machine; 8000 and 8080 are often taken.
PORT = 11435
CHATS_PER_KEY = "1GB"
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MAX_IN_FLIGHT = 16 << 20  # bytes a killed download may have to fetch again, over all its connections
# Environment variables that are read, here and where they are used.
VARIABLES = ("FREEHOLD_HOME", "FREEHOLD_OFFLINE", "FREEHOLD_API_KEY", "FREEHOLD_ISA", "FREEHOLD_DEBUG")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user decided. `home` holds everything Freehold writes.

    `connections` x `range_bytes` is what a kill -9 may cost, so it is limited to 16 MB.
    """

    home: Path
    offline: bool = False
    hub_endpoint: str = HUB_ENDPOINT
    hub_token: str = field(default="", repr=False)
    adopt: bool = True  # look for models that Ollama, LM Studio and the hub cache hold
    foreign_roots: tuple[tuple[str, Path], ...] = ()  # (owner, folder) of the stores to look into
    default_model: str = ""  # empty: the catalogue's
    speech_model: str = ""  # of `transcribe`; empty: the catalogue's
    connections: int = 4
    range_bytes: int = 4 << 20
    host: str = option(  # where `serve` listens
        "127.0.0.1",
        "Listen on this address; beyond loopback a key is required. Default: 127.0.0.1.",
        metavar="ADDRESS",
    )
    port: int = option(PORT, f"Listen on this port; 0: a free one. Default: {PORT}.", least=0, most=65535)
    eyes: str = option(
        "lazy",
        "When to load the vision encoder: lazy, with the first picture; eager, with the model; off, never. "
        "FILE: use this mmproj file. Default: lazy.",
        metavar="lazy|eager|off|FILE",
    )
    image_tokens: str = option(
        "",
        "Least and most tokens that a picture becomes. Default: the model's own limits.",
        metavar="MIN:MAX",
    )
    keep_alive: str = "5m"  # how long an idle model stays in the server's memory
    key_file: str = ""  # hashes of the API keys of `serve`; empty: keys.json in the home
    api_key: str = field(default="", repr=False)  # one more, from the environment
    gateway: str = ""  # the gateway.toml of `serve`, and of the verbs that read it; empty: none
    chats_per_key: int = 10**9  # bytes that the chats of one key may have; [console] in the file,
    titles: bool = True  # as is this: models write titles for chats, while they have nothing else to do
    company: Mapping[str, Any] = field(
        default_factory=dict
    )  # your facts for licences: advisor.verdict reads them
    mcp: Mapping[str, Any] = field(
        default_factory=dict, repr=False
    )  # servers of tools, by name: tools.mcp reads them; an `env` may hold secrets

    @property
    def keys(self) -> Path:
        """Where the API keys are kept, as hashes."""
        return Path(self.key_file).expanduser() if self.key_file else self.home / "keys.json"

    @property
    def owner_token(self) -> Path:
        """Where the token lies that opens the owner's routes to other programs of this user."""
        return self.home / "owner.token"

    @property
    def accounts(self) -> Path:
        """Where the server counts what each key spends."""
        return self.home / "accounts"

    @property
    def socket(self) -> Path:
        """Where the server of this home listens for its owner."""
        return self.home / "serve" / "server.sock"


# key in config.toml -> the type it must have
_KEYS: dict[str, type] = {
    "offline": bool,
    "hub_endpoint": str,
    "adopt": bool,
    "default_model": str,
    "speech_model": str,
    "connections": int,
    "range_bytes": int,
    "host": str,
    "port": int,
    "eyes": str,
    "image_tokens": str,
    "keep_alive": str,
    "key_file": str,
    "gateway": str,
    "console": dict,
    "company": dict,
    "mcp": dict,
}


def load_settings(env: Mapping[str, str] | None = None, *, offline: bool = False) -> Settings:
    """Build the settings from `env` (default: the process's) and `config.toml` in the data home.

    `offline` True wins over both (the command line asked for it). Raises UsageError for an unknown
    key, a wrong type or a value out of bounds.
    """
    env = os.environ if env is None else env
    home = data_home(env)
    values = _read_file(home / "config.toml")
    values |= _console(values.pop("console", {}))
    for name in ("FREEHOLD_OFFLINE", "HF_HUB_OFFLINE"):
        if name in env:
            values["offline"] = bool(values.get("offline")) or _flag(name, env[name])
    if endpoint := env.get("HF_ENDPOINT"):
        values["hub_endpoint"] = endpoint
    if offline:
        values["offline"] = True
    values["hub_endpoint"] = str(values.get("hub_endpoint", HUB_ENDPOINT)).rstrip("/")
    roots = foreign_roots(env) if values.get("adopt", True) else ()
    tokens = {"hub_token": _hub_token(env), "api_key": env.get("FREEHOLD_API_KEY", "").strip()}
    return _checked(Settings(home=home, foreign_roots=roots, **tokens, **values))


def tool_table(home: Path) -> dict[str, Any]:
    """Return `[mcp]` as config.toml has it now: a server that runs uses what `freehold mcp add` has just written."""
    return _read_file(home / "config.toml").get("mcp", {})


def data_home(env: Mapping[str, str]) -> Path:
    """Return the folder that contains everything: FREEHOLD_HOME, or the user's data folder."""
    if chosen := env.get("FREEHOLD_HOME"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("freehold", appauthor=False))


def strange_variables(env: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that is called like ours and is none."""
    out = []
    for name in sorted(name for name in env if name.startswith("FREEHOLD_") and name not in VARIABLES):
        near = nearest(name, VARIABLES)
        out.append(f"{name} is not read" + (f"; did you mean {near}?" if near else ""))
    return out


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return the known name that looks most like `name`, or an empty string."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return near[0] if near else ""


def suggestion(name: str, known: list[str] | tuple[str, ...], otherwise: str | None = None) -> str:
    """Return a hint for a name that is not known: the nearest one that is, else `otherwise`, else all that are."""
    near = nearest(name, known)
    if near:
        return f"did you mean {near}?"
    return f"known: {', '.join(known)}" if otherwise is None else otherwise


def check_names(table: Mapping[str, object], known: Sequence[str]) -> None:
    """Raise UsageError for a keyword that is not known, with the nearest one that is."""
    for name in table:
        if name not in known:
            hint = suggestion(name, [*known])
            raise UsageError(f"unknown option {name!r}", hint)


def foreign_roots(env: Mapping[str, str]) -> tuple[tuple[str, Path], ...]:
    """Return where other programs keep models: (owner, folder), whether the folder exists or not."""
    user = Path(env.get("HOME") or env.get("USERPROFILE") or "~").expanduser()
    hub = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or hub_home(env) / "hub"
    ollama = [env["OLLAMA_MODELS"]] if env.get("OLLAMA_MODELS") else []
    return (
        *(("ollama", Path(p).expanduser()) for p in ollama),
        ("ollama", user / ".ollama" / "models"),
        ("ollama", Path("/usr/share/ollama/.ollama/models")),
        ("lm-studio", user / ".lmstudio" / "models"),
        ("lm-studio", user / ".cache" / "lm-studio" / "models"),
        ("hub-cache", Path(hub).expanduser()),
    )


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}") from e
    import tomllib

    try:
        values = tomllib.loads(text.decode("utf-8"))
    except ValueError as e:
        raise UsageError(f"{path} is not valid TOML: {e}") from e
    for key, value in values.items():
        if key not in _KEYS:
            hint = suggestion(key, list(_KEYS), f"known keys: {', '.join(_KEYS)}")
            raise UsageError(f"{path}: unknown key {key!r}", hint)
        if type(value) is not _KEYS[key]:
            raise UsageError(f"{path}: {key} = {value!r} must be a {_KEYS[key].__name__}")
    return values


def _checked(s: Settings) -> Settings:
    if not s.hub_endpoint.startswith(("http://", "https://")):
        raise UsageError(f"hub endpoint {s.hub_endpoint!r} is not an http(s) URL", "see HF_ENDPOINT")
    if not 1 <= s.connections <= 16:
        raise UsageError(f"connections = {s.connections} is not within 1..16")
    if not 64 << 10 <= s.range_bytes <= MAX_IN_FLIGHT // s.connections:
        raise UsageError(
            f"range_bytes = {s.range_bytes:,} is not within 65,536..{MAX_IN_FLIGHT // s.connections:,}",
            f"connections x range_bytes is limited to {MAX_IN_FLIGHT:,} so that a kill costs no more",
        )
    port = options_of(Settings)["port"]
    if not port.allows(s.port):
        raise UsageError(f"port = {s.port} is not within {port.least}..{port.most}", "0 takes a free one")
    if s.image_tokens:
        image_budget(s.image_tokens)
    return s


def _console(table: Mapping[str, Any]) -> dict[str, Any]:
    """Read [console]: how many bytes a key's chats may have, and whether models write their titles."""
    known = ("chats_per_key", "titles")
    for name in table:
        if name not in known:
            hint = f"did you mean {nearest(name, known) or ' or '.join(known)}?"
            raise UsageError(f"config.toml: unknown key 'console.{name}'", hint)
    titles = table.get("titles", True)
    if not isinstance(titles, bool):
        raise UsageError(f"console.titles = {titles!r} is neither true nor false", "write titles = false")
    return {"chats_per_key": _chats_per_key(table), "titles": titles}


def _chats_per_key(table: Mapping[str, Any]) -> int:
    text = str(table.get("chats_per_key", CHATS_PER_KEY))
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?(kB|MB|GB|TB)", text)
    if match is None or not float(match[1]):
        raise UsageError(
            f"console.chats_per_key = {text!r} is not a number of bytes", 'write it as "500MB" or "2GB"'
        )
    return round(float(match[1]) * _UNITS[match[2]])


def _flag(name: str, value: str) -> bool:
    word = value.strip().lower()
    if word not in _TRUE | _FALSE:
        raise UsageError(f"{name}={value!r} is neither true nor false", f"set {name}=1 or {name}=0")
    return word in _TRUE


def _hub_token(env: Mapping[str, str]) -> str:
    if token := env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    path = Path(env.get("HF_TOKEN_PATH") or hub_home(env) / "token")
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def hub_home(env: Mapping[str, str]) -> Path:
    """Return the folder the hub's own tools use: HF_HOME, or the user's cache folder."""
    if home := env.get("HF_HOME"):
        return Path(home).expanduser()
    cache = env.get("XDG_CACHE_HOME") or Path(env.get("HOME") or "~").expanduser() / ".cache"
    return Path(cache) / "huggingface"
