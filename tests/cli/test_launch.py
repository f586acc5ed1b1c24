"""`freehold launch`: what it writes into other programs' files, what it leaves alone, and how it takes it back."""

from __future__ import annotations

import json
import re
import shlex
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.cli.clients.apps import (
    APPS,
    BEGIN,
    END,
    NotUnderstood,
    Target,
    list_items,
    merged_json,
    named_item,
    set_yaml,
)
from tests.cli.test_serve import freehold

GUIDES = Path(__file__).parents[2] / "docs" / "guides" / "clients"
PAGES = {
    "llm": "llm.md",
    "claude": "claude-code.md",
    "codex": "codex.md",
    "aider": "aider.md",
    "continue": "continue.md",
    "open-webui": "open-webui.md",
}
GIVEN = ("--model", "a:1b", "--url", "http://127.0.0.1:11435", "--key", "fh-secret")


def file_of(home: Path, app: str) -> Path:
    file = APPS[app].file
    assert file is not None
    return file({"HOME": str(home), "LLM_USER_PATH": str(home / "llm")}, home)


def launch(home: Path, app: str, *args: str):  # type: ignore[no-untyped-def]
    return freehold(home, "launch", app, *args, LLM_USER_PATH=str(home / "llm"))


@pytest.mark.parametrize("app", PAGES)
def test_a_page_shows_what_the_program_prints(tmp_path: Path, app: str):
    page = (GUIDES / PAGES[app]).read_text(encoding="utf-8")
    command = re.search(r"^freehold (launch .*)$", page, re.M)
    assert command is not None
    assert f"```\n{freehold(tmp_path, *command[1].split()).out}```" in re.sub(
        r"```(text|json|toml)\n", "```\n", page
    )


@pytest.mark.parametrize("app", [name for name, app in APPS.items() if app.file is None])
def test_settings_without_a_file_are_shown_with_their_steps(tmp_path: Path, app: str):
    shown = launch(tmp_path, app, *GIVEN)
    assert shown.status == 0 and "http://127.0.0.1:11435" in shown.out and "then: " in shown.err
    assert launch(tmp_path, app, *GIVEN, "--write").status == 2
    assert json.loads(launch(tmp_path, app, *GIVEN, "--json").out)["file"] == ""


def test_continue_completes_by_the_route_that_takes_a_suffix():
    text = APPS["continue"].edit("", Target("http://127.0.0.1:1", "a:1b"))
    chats, completes = text.split("  - name: ")[1:]
    assert "provider: openai" in chats and "roles: [chat, edit, apply]" in chats
    assert "provider: ollama" in completes and "roles: [autocomplete]" in completes and "/v1" not in completes


def test_a_named_item_takes_the_place_of_its_namesake():
    old = json.dumps([{"name": "Mine", "vendor": "x"}, {"name": "Freehold", "models": [1]}, {"name": "z"}])
    new = json.loads(named_item(old, {"name": "Freehold", "models": [2]}))
    assert [each["name"] for each in new] == ["Mine", "Freehold", "z"] and new[1]["models"] == [2]
    for text in ("{}", '[{"name": "Freehold"}, {"name": "Freehold"}]', "[1, // x\n]"):
        with pytest.raises(NotUnderstood):
            named_item(text, {"name": "Freehold"})


@pytest.mark.parametrize("app", [name for name, app in APPS.items() if app.file is not None])
def test_settings_are_written_once_and_taken_back(tmp_path: Path, app: str):
    shown = launch(tmp_path, app, *GIVEN)
    path = file_of(tmp_path, app)
    assert shown.status == 0 and str(path) in shown.err and not path.exists()
    assert launch(tmp_path, app, *GIVEN, "--write").status == 0
    assert path.read_text() == shown.out and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "has these settings already" in launch(tmp_path, app, *GIVEN, "--write").err
    assert launch(tmp_path, app, "--restore").status == 0 and not path.exists()
    assert launch(tmp_path, app, "--restore").status == 2


MINE = {
    "claude": '{"model": "opus", "env": {"EDITOR": "vi", "ANTHROPIC_MODEL": "x"}}',
    "aider": "# mine\nauto-commits: false\nmodel: gpt-5   # usual\nread:\n  - A.md\n",
    "continue": "name: Mine\nversion: 1.0.0\nschema: v1\nmodels:\n  # first\n  - name: GPT\n    provider: openai\n"
    "rules:\n  - Be brief\n",
    "llm": "- model_id: mine\n  model_name: x\n",
    "zed": '{"theme": "One", "language_models": {"openai_compatible": {"Other": {"api_url": "u"}}, "ollama": {}}}',
    "opencode": '{"theme": "tokyo", "provider": {"mine": {"npm": "p"}}}',
    "vscode": '[{"name": "Mine", "vendor": "customendpoint"}]',
    "llama-vscode": '{"editor.fontSize": 12}',
}


@pytest.mark.parametrize("app", MINE)
def test_what_a_file_holds_already_stays_and_comes_back(tmp_path: Path, app: str):
    path = file_of(tmp_path, app)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MINE[app])
    path.chmod(0o644)
    for model in ("a:1b", "b:2b"):  # the second one takes the first one's place
        done = launch(tmp_path, app, *GIVEN, "--model", model, "--write")
        assert done.status == 0, done.err
    text = path.read_text()
    assert (text.count("b:2b") >= 1 or app == "llama-vscode") and "a:1b" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # there is a key in it now
    for kept in re.findall(r"[\w.]+", re.sub(r"(model: gpt-5|\"x\").*", "", MINE[app])):
        assert kept in text
    assert path.with_name(path.name + ".before-freehold").read_text() == MINE[app]
    assert launch(tmp_path, app, "--restore").status == 0 and path.read_text() == MINE[app]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert not list(path.parent.glob("*.before-freehold*"))


@pytest.mark.parametrize(
    ("app", "text"),
    [
        ("claude", '{"env": {}, // mine\n}'),
        ("claude", "[]"),
        ("claude", '{"env": "x"}'),
        ("aider", "model: |\n  x\n"),
        ("aider", "{model: x}"),
        ("aider", "model: a\nmodel: b\n"),
        ("continue", "name: x\nmodels: [{name: y}]\n"),
        ("continue", "name: x\nmodels:\n  a: b\n"),
        ("continue", "name: x\n\tmodels:\n"),
        ("llm", "model_id: x\n"),
        ("zed", '{"theme": "One", // mine\n}'),
        ("vscode", "{}"),
    ],
)
def test_what_is_not_understood_is_left_alone_and_the_lines_are_shown(tmp_path: Path, app: str, text: str):
    path = file_of(tmp_path, app)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    done = launch(tmp_path, app, *GIVEN, "--write")
    assert done.status == 2 and "is left unchanged" in done.err and "a:1b" in done.err
    assert path.read_text() == text and [p.name for p in path.parent.iterdir() if "before" in p.name] == []


def test_a_file_that_changed_since_is_not_put_back_unasked(tmp_path: Path):
    path = file_of(tmp_path, "aider")
    path.write_text("dark-mode: true\n")
    launch(tmp_path, "aider", *GIVEN, "--write")
    path.write_text(path.read_text() + "later: yes\n")
    done = launch(tmp_path, "aider", "--restore")
    assert done.status == 2 and "changed since" in done.err and ".before-freehold" in done.err
    assert launch(tmp_path, "aider", "--restore", "--force").status == 0
    assert path.read_text() == "dark-mode: true\n"


@pytest.mark.parametrize(
    "app, word", [("codex", "KEY=a b$(c)"), ("llm", "a b$(c)"), ("open-webui", "/a b/$c;")]
)
def test_a_shell_reads_the_commands_as_they_are_meant(app: str, word: str):
    commands = APPS[app].start(Target("http://127.0.0.1:1", "a:1b", "a b$(c)"), Path("/a b/$c"))
    assert any(each.endswith(word) for each in shlex.split(commands[0]))


def test_a_key_that_is_missing_is_told(tmp_path: Path):
    said = "the server requires a key"
    assert said not in launch(tmp_path, "aider", "--model", "a:1b").err
    assert freehold(tmp_path, "keys", "add", "me").status == 0
    assert said in launch(tmp_path, "aider", "--model", "a:1b").err
    assert said not in launch(tmp_path, "aider", "--model", "a:1b", "--key", "fh-secret").err


def test_a_link_stays_a_link(tmp_path: Path):
    path = file_of(tmp_path, "aider")
    (tmp_path / "dotfiles").write_text("dark-mode: true\n")
    path.symlink_to(tmp_path / "dotfiles")
    launch(tmp_path, "aider", *GIVEN, "--write")
    assert path.is_symlink() and "a:1b" in (tmp_path / "dotfiles").read_text()


def test_what_is_written_is_read_as_it_was_meant():
    t = Target("http://h:1", 'odd "name": #1', "fh-k")
    claude = json.loads(APPS["claude"].edit("", t))["env"]
    assert claude["ANTHROPIC_AUTH_TOKEN"] == "fh-k" and claude["CLAUDE_CODE_SUBAGENT_MODEL"] == t.model
    assert claude["ANTHROPIC_API_KEY"] == ""  # a shell's real one does not go out to this server
    codex = tomllib.loads(APPS["codex"].edit("", t))
    assert codex["model"] == t.model and codex["model_providers"]["freehold"]["env_key"] == "FREEHOLD_API_KEY"
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(APPS["aider"].edit("", t))["model"] == f"openai/{t.model}"
    assert yaml.safe_load(APPS["continue"].edit(MINE["continue"], t))["models"][0]["model"] == t.model
    assert [m["model_id"] for m in yaml.safe_load(APPS["llm"].edit(MINE["llm"], t))] == ["mine", "freehold"]


def test_edits_keep_every_other_line():
    assert set_yaml("# c\na: 1\nb: 'x' # y\n", {"b": "z"}) == '# c\na: 1\nb: "z"\n'
    assert list_items("models: []\n", "models", [["a: 1"]]).startswith("models:\n  # freehold")
    assert json.loads(merged_json("", "env", {"A": "b"})) == {"env": {"A": "b"}}
    with pytest.raises(NotUnderstood):
        list_items("# freehold launch: begin\n", "", [["a: 1"]])


lines = st.sampled_from(
    ["a: 1", "key: x", "key:", "models:", "models: []", "  - y: 1", "- y", "  y: 2", "# c", "", "key: |", "---",
     "key: 'x", "a: 'x'  # c", "a: [x, y]", "key: {a: b}", f"  {BEGIN}", f"  {END}", BEGIN, END]
) | st.text(max_size=6)  # fmt: skip
texts = st.builds(
    lambda lines, end: end.join(lines), st.lists(lines, max_size=8), st.sampled_from(["\n", "\r\n"])
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
values = st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(st.text(max_size=3), v), max_leaves=5)
objects = st.dictionaries(st.sampled_from(["env", "x"]) | st.text(max_size=3), values, max_size=3)
many = settings(max_examples=200, deadline=None)


@pytest.mark.heavy
@given(texts, st.text(max_size=5))
@many
def test_any_yaml_gets_its_key_and_keeps_its_other_lines_or_is_refused(text, value):
    try:
        new = set_yaml(text, {"key": value})
    except NotUnderstood:
        return
    others = [line for line in re.split("\r\n|\r|\n", text) if not re.match("key[ \t]*:", line)]
    kept = [line for line in new.split("\n") if not re.match("key[ \t]*:", line)]
    assert "\n".join(kept).strip("\n") == "\n".join(others).strip("\n")
    assert set_yaml(new, {"key": value}) == new


@pytest.mark.heavy
@given(texts, st.sampled_from(["", "models"]))
@many
def test_any_yaml_gets_one_item_of_ours_or_is_refused(text, key):
    try:
        new = list_items(text, key, [["a: 1", "b: 2"]])
    except NotUnderstood:
        return
    assert new.count(BEGIN) == 1 and list_items(new, key, [["a: 1", "b: 2"]]) == new


@pytest.mark.heavy
@given(objects.map(json.dumps) | texts | st.sampled_from(["[" * 100_000, '{"x": "\\ud800"}']))
@many
def test_any_json_gets_its_values_and_keeps_the_others_or_is_refused(text):
    try:
        new = merged_json(text, "env", {"A": "b"})
    except NotUnderstood:
        return
    old = json.loads(text) if text.strip() else {}
    assert json.loads(new.encode()) == {**old, "env": {**old.get("env", {}), "A": "b"}}


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("cladue",), "did you mean claude"),
        (("aider", "--restore"), "written no settings for aider"),
    ],
)
def test_wrong_usage_of_launch_is_said(tmp_path: Path, args: tuple[str, ...], part: str):
    done = freehold(tmp_path, "launch", *args)
    assert done.status == 2 and part in done.err


def test_launch_without_a_model_takes_the_default_of_run(tmp_path: Path):
    from freehold.base import catalog

    done = freehold(tmp_path, "launch", "aider")
    assert done.status == 0 and f"openai/{catalog.default_model().name}" in done.out
