"""Settings: environment over file over defaults, and nothing misread in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base.config import load_settings, nearest
from freehold.base.errors import UsageError


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"FREEHOLD_HOME": str(tmp_path), "HOME": str(tmp_path)}


def test_a_name_that_only_shares_a_few_letters_is_not_guessed():
    assert nearest("foo", ["tools", "format", "model"]) == ""
    assert nearest("temprature", ["tools", "temperature"]) == "temperature"


def test_defaults_need_no_file(env: dict[str, str], tmp_path: Path):
    settings = load_settings(env)
    assert (settings.home, settings.offline, settings.hub_endpoint) == (
        tmp_path,
        False,
        "https://huggingface.co",
    )
    assert settings.connections * settings.range_bytes == 16 << 20


def test_the_file_is_read_and_the_environment_wins(env: dict[str, str], tmp_path: Path):
    (tmp_path / "config.toml").write_text('hub_endpoint = "https://a.example/"\nconnections = 2\n')
    assert load_settings(env).hub_endpoint == "https://a.example"
    assert load_settings({**env, "HF_ENDPOINT": "http://b.example"}).hub_endpoint == "http://b.example"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("ofline = true", "unknown key 'ofline'", "did you mean offline?"),
        ("offline = 1", "must be a bool", ""),
        ("connections = true", "must be a int", ""),
        ("connections = 99", r"not within 1\.\.16", ""),
        ("range_bytes = 16777216", "not within", "connections x range_bytes"),
        ('hub_endpoint = "ftp://x"', "not an http", ""),
        ("port = 70000", r"not within 0\.\.65535", "a free one"),
        ("= 3", "not valid TOML", ""),
    ],
)
def test_a_wrong_file_is_named(env: dict[str, str], tmp_path: Path, text: str, message: str, hint: str):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as e:
        load_settings(env)
    assert hint in e.value.hint


@pytest.mark.parametrize("name", ["FREEHOLD_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_comes_from_either_variable(env: dict[str, str], name: str):
    assert load_settings({**env, name: "1"}).offline
    assert not load_settings({**env, name: "0"}).offline
    with pytest.raises(UsageError, match="neither true nor false"):
        load_settings({**env, name: "maybe"})


def test_the_token_is_read_where_the_hub_s_tools_keep_it_and_never_shown(env: dict[str, str], tmp_path: Path):
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "token").write_text("from-file\n")
    assert load_settings(env).hub_token == "from-file"
    settings = load_settings({**env, "HF_TOKEN": "from-env"})
    assert settings.hub_token == "from-env"
    assert "from-env" not in repr(settings)


def test_the_server_s_place_is_read_and_its_key_never_shown(env: dict[str, str], tmp_path: Path):
    (tmp_path / "config.toml").write_text('host = "::1"\nport = 1\nkeep_alive = "1h"\nkey_file = "k"\n')
    settings = load_settings({**env, "FREEHOLD_API_KEY": " secret\n"})
    assert (settings.host, settings.port, settings.keep_alive, settings.key_file) == ("::1", 1, "1h", "k")
    assert settings.api_key == "secret" and "secret" not in repr(settings)
    assert settings.socket == tmp_path / "serve" / "server.sock"


def test_adoption_can_be_switched_off(env: dict[str, str], tmp_path: Path):
    assert dict(load_settings({**env, "HF_HUB_CACHE": "/c"}).foreign_roots)["hub-cache"] == Path("/c")
    (tmp_path / "config.toml").write_text("adopt = false")
    assert load_settings(env).foreign_roots == ()


@pytest.mark.parametrize("said, most", [("250MB", 250_000_000), ("1.5 GB", 1_500_000_000), (None, 10**9)])
def test_chats_of_a_key_have_a_limit_in_bytes(tmp_path, said, most):
    text = f'[console]\nchats_per_key = "{said}"\n' if said else ""
    (tmp_path / "config.toml").write_text(text)
    assert load_settings({"FREEHOLD_HOME": str(tmp_path)}).chats_per_key == most


@pytest.mark.parametrize(
    "text",
    [
        'chats_per_key = "much"',
        'chats_per_key = "0GB"',
        "chats_per_key = 5",
        'chats = "1GB"',
        'titles = "no"',
    ],
)
def test_a_limit_that_is_not_one_is_refused_with_the_way_out(tmp_path, text):
    (tmp_path / "config.toml").write_text(f"[console]\n{text}\n")
    with pytest.raises(UsageError) as refused:
        load_settings({"FREEHOLD_HOME": str(tmp_path)})
    assert "console." in refused.value.message and refused.value.hint
