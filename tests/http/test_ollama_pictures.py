"""/api/create from a model's GGUF and its projector, and Modelfiles with two of FROM: what sees afterwards."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.cli import main
from freehold.run.models.tiny import make
from tests.http.ollama_rig import error_of, refused

TINY = make.config("qwen3_vl")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model and its tower, a second model, and a tower of another width."""
    folder = tmp_path_factory.mktemp("files")
    other = make.config("gemma3-eyes").mmproj | {"clip.vision.projection_dim": 96}
    (folder / "mmproj-wide.gguf").write_bytes(make.gguf_bytes(other, {}))
    return {
        "model": make.write_gguf(TINY, folder / "sees.gguf"),
        "tower": make.write_mmproj(TINY, folder / "mmproj-sees.gguf"),
        "text": make.write_gguf(make.config("qwen2"), folder / "text.gguf"),
        "wide": folder / "mmproj-wide.gguf",
    }


@pytest.fixture
def server(serving: Callable[..., Any]) -> Any:
    return serving()


def sent(server: Any, *paths: Path) -> dict[str, str]:
    """Send blobs; return what `files` says of them."""
    names = {}
    for path in paths:
        data = path.read_bytes()
        names[path.name] = f"sha256:{hashlib.sha256(data).hexdigest()}"
        answer = server.owner.post(f"/api/blobs/{names[path.name]}", content=data)
        assert answer.status_code in (200, 201)
    return names


def created(server: Any, name: str, **fields: Any) -> Any:
    answer = server.owner.post("/api/create", json={"model": name, "stream": False, **fields})
    assert answer.status_code == 200, answer.text
    return server.owner.post("/api/show", json={"model": name}).json()


@pytest.mark.parametrize("order", [("model", "tower"), ("tower", "model")])
def test_a_model_of_two_files_sees_whatever_their_order(server: Any, files: dict[str, Path], order: Any):
    shown = created(server, "eyes", files=sent(server, *(files[each] for each in order)))
    assert "vision" in shown["capabilities"]
    ref = server.store.resolve("eyes")
    assert ref.eyes is not None and ref.eyes.read_bytes() == files["tower"].read_bytes()
    assert ref.path.read_bytes() == files["model"].read_bytes()
    gone = {path.name for path in (server.store.settings.home / "blobs").iterdir()}
    assert not gone & {
        f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in (ref.path, ref.eyes)
    }
    again = created(server, "more", files=sent(server, files["tower"], files["model"]), system="Look.")
    assert "vision" in again["capabilities"] and again["system"] == "Look."


def test_the_same_file_without_its_tower_reads_text_alone(server: Any, files: dict[str, Path]):
    """Each pair is a model of its own; a file that is here is not asked for again."""
    assert (
        "vision"
        in created(server, "eyes", files=sent(server, files["model"], files["tower"]))["capabilities"]
    )
    digest = next(iter(sent(server, files["model"]).values()))
    assert server.owner.head(f"/api/blobs/{digest}").status_code == 200
    blind = created(server, "blind", files={"sees.gguf": digest})
    assert "vision" not in blind["capabilities"]
    assert server.store.resolve("blind").eyes is None and server.store.resolve("eyes").eyes is not None


@pytest.mark.parametrize(
    "named, why",
    [
        (("model", "text"), "both files are models"),
        (("tower", "wide"), "both files are encoders"),
        (("model", "wide"), "belongs to another model: its features have 96 columns"),
        (("tower",), "a projector (mmproj) without its model"),
        (("model", "tower", "text"), "files has 3; expected a GGUF file, or one and its projector"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_stays(
    server: Any, files: dict[str, Path], named: tuple[str, ...], why: str
):
    blobs = sent(server, *(files[each] for each in named))
    assert why in refused(server, "/api/create", model="x", files=blobs)
    assert all(server.owner.head(f"/api/blobs/{digest}").status_code == 200 for digest in blobs.values())
    assert not any(listed.name == "x" for listed in server.store.list())


def test_a_tower_that_is_not_here_is_named(server: Any, files: dict[str, Path]):
    blobs = sent(server, files["model"]) | {"mmproj.gguf": f"sha256:{'0' * 64}"}
    assert f"no blob sha256:{'0' * 64}" in refused(server, "/api/create", model="x", files=blobs)


def test_a_modelfile_over_http_names_no_files(server: Any):
    text = "FROM ./model.gguf\nFROM ./mmproj.gguf"
    answer = server.owner.post("/api/create", json={"model": "x", "modelfile": text})
    assert "send both files as blobs" in error_of(answer, 400)


# --- freehold create ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model whose tower lies elsewhere, and a home of its own."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", None)
    (tmp_path / "towers").mkdir()
    (tmp_path / "sees.gguf").write_bytes(files["model"].read_bytes())
    (tmp_path / "towers" / "projector.gguf").write_bytes(files["tower"].read_bytes())
    return tmp_path


def run(folder: Path, text: str) -> int:
    (folder / "Modelfile").write_text(text)
    return main.run(["create", "eyes", "-f", str(folder / "Modelfile")])


@pytest.mark.parametrize(
    "order",
    ["FROM ./sees.gguf\nFROM ./towers/projector.gguf", "FROM ./towers/projector.gguf\nFROM ./sees.gguf"],
)
def test_a_modelfile_with_two_of_from_makes_a_model_that_sees(
    folder: Path, capsys: pytest.CaptureFixture[str], order: str
):
    assert run(folder, order) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main.run(["show", "eyes"]) == 0
    assert "yes, encoder" in capsys.readouterr().out
    assert (
        main.run(["run", "eyes", "--local", "--max-tokens=2", "--image", str(picture(folder)), "What?"]) == 0
    )


def picture(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (64, 48), "red").save(folder / "red.png")
    return folder / "red.png"


@pytest.mark.parametrize(
    "text, why",
    [
        ("FROM ./sees.gguf\nFROM ./sees.gguf", "both files are models"),
        (
            "FROM qwen3.5:4b\nFROM ./towers/projector.gguf",
            "FROM qwen3.5:4b: two FROM lines must both name files",
        ),
        ("FROM ./sees.gguf\nFROM ./gone.gguf", "there is no such file"),
        ("FROM ./sees.gguf\nFROM ./b.gguf\nFROM ./c.gguf", "line 3: a third FROM"),
    ],
)
def test_a_modelfile_whose_files_make_no_pair_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, why: str
):
    assert run(folder, text) != 0
    assert why in capsys.readouterr().err
