"""Pictures in `run`: --image, /image, a dropped path; refused where the model reads text, and kept with the chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.base.types import Image, Message
from freehold.cli.chat.chat import ModelFacts
from freehold.cli.chat.pictures import dropped, with_images
from freehold.cli.chat.sessions import ChatSession, Sessions
from freehold.serve.fake import FakeModel
from tests.cli.test_run import freehold, scripted  # noqa: F401
from tests.cli.test_run_chat import Desk

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
SIGHT = ModelFacts("Q4_K_M", 8192, can_see=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FREEHOLD_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "a cat.png"
    path.write_bytes(PNG)
    return path


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    path = tmp_path / "b.jpg"
    path.write_bytes(JPEG)
    return path


def seeing(home: Path, *replies: str, **chat: object) -> Desk:
    return Desk(home, *replies, **{"facts": SIGHT, **chat})


# --- freehold run --image ---------------------------------------------------------------------------


def test_pictures_come_before_the_prompt_in_their_order(freehold, scripted, png, jpeg):  # noqa: F811
    model = scripted("A cat.", can_see=True)
    status, out, err = freehold(
        "run", "smollm2:135m", "--image", str(png), "--image", str(jpeg), "What", "is it?"
    )
    assert (status, out, err) == (0, "A cat.\n", "")
    parts = (Image.of(PNG), Image.of(JPEG), "What is it?")
    assert model.calls[0].messages == (Message("user", "What is it?", parts=parts),)


def test_stdin_is_text_beside_a_picture(freehold, scripted, png):  # noqa: F811
    model = scripted("ok", can_see=True)
    freehold("run", "smollm2:135m", "--image", str(png), "Fix it", stdin=b"def f(:\n")
    assert model.calls[0].messages[0].parts == (Image.of(PNG), "def f(:\n\nFix it")


def test_model_that_reads_text_refuses_and_names_the_way(freehold, scripted, png):  # noqa: F811
    model = scripted("ok")
    status, out, err = freehold("run", "smollm2:135m", "--image", str(png), "What?")
    assert (status, out) == (2, "") and model.calls == []
    assert "cannot read pictures" in err
    assert "freehold list shows which models can" in err


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (None, "cannot be read"),
        (b"<svg/>", "is not a PNG, JPEG, GIF, WebP or AVIF"),
        (PNG.ljust(11 << 20), "has more than"),
    ],
)
def test_wrong_file_is_named_before_a_model_is_loaded(freehold, monkeypatch, tmp_path, data, part):  # noqa: F811
    path = tmp_path / "x.png"
    if data is not None:
        path.write_bytes(data)
    status, out, err = freehold("run", "smollm2:135m", "--image", str(path), "What?")
    assert (status, out) == (2, "") and f"{path} {part}" in err and err.count("error:") == 1


def test_picture_stays_in_the_session(freehold, scripted, home, png):  # noqa: F811
    scripted("A cat.", can_see=True)
    freehold("run", "smollm2:135m", "--session", "pets", "--image", str(png), "What is it?")
    model = scripted("Black.", can_see=True)
    freehold("run", "smollm2:135m", "--session", "pets", "What colour?")
    first, answer, second = model.calls[0].messages
    assert first == with_images([Image.of(PNG)], "What is it?")
    assert (answer.content, second.parts) == ("A cat.", ())


# --- the chat ---------------------------------------------------------------------------------------


def test_image_goes_with_the_next_message_alone(home, png, jpeg):
    desk = seeing(home, "A", "B").type(f"/image {png}", f"/image {jpeg}", "/image", "What?", "And?")
    assert desk.said.count("a cat.png: PNG, 0.0 kB, attached to the next message") == 2
    first, _, second = desk.model.calls[1].messages
    assert first.parts == (Image.of(PNG), Image.of(JPEG), "What?") and second.parts == ()
    assert "no picture; /image PATH" in desk.type("/image").said


def test_image_that_is_none_is_an_error_of_the_turn(home, tmp_path):
    (tmp_path / "x.png").write_bytes(b"text")
    desk = seeing(home, "A").type("/image x.png", "/image none.png", "hi")
    assert "x.png is not a PNG" in desk.said and "none.png cannot be read" in desk.said
    assert desk.model.calls[0].messages == (Message("user", "hi"),)


def test_image_goes_after_a_file_of_text(home, tmp_path, png):
    (tmp_path / "a.txt").write_text("one")
    desk = seeing(home, "A").type("/file a.txt", f"/image {png}", "What?")
    [message] = desk.model.calls[0].messages
    assert message.parts == (Image.of(PNG), "File a.txt:\n```\none\n```\n\nWhat?")


@pytest.mark.parametrize("write", ["{}", "'{}'", '"{}"', "file://{}", " '{}' "])
def test_dropped_path_is_asked_about(home, png, write):
    line = write.format(str(png).replace(" ", "%20") if "file:" in write else png)
    desk = seeing(home, "A").type(line)
    assert "attach a cat.png to the next message?" in desk.said and desk.model.calls == []
    desk.type("", "What?")
    assert desk.model.calls[0].messages[0].parts == (Image.of(PNG), "What?")


def test_several_dropped_at_once(home, png, jpeg):
    desk = seeing(home, "A").type(str(png).replace(" ", "\\ ") + f" {jpeg}", "y", "Both?")
    assert desk.model.calls[0].messages[0].parts == (Image.of(PNG), Image.of(JPEG), "Both?")


def test_no_means_no_and_a_question_is_not_sent_without_its_picture(home, png):
    desk = seeing(home, "A", "B").type(str(png), "What is it?")
    assert desk.model.calls == [] and desk.said.count("attach a cat.png") == 2
    desk.type("n", "What?")
    assert "not attached" in desk.said and desk.model.calls[0].messages[0].parts == ()
    desk.type(str(png), "/ctx", "Well?")
    assert desk.model.calls[1].messages[-1] == Message("user", "Well?")


def test_line_that_is_more_than_a_path_is_a_message(home, png, tmp_path):
    (tmp_path / "notes.png").write_text("text")
    (tmp_path / "cat").write_bytes(PNG)
    lines = [f"What is {png}?", "notes.png", "cat and dog", "don't", "~nobody/x", "\0", "a" * 10_000]
    assert [dropped(line) for line in lines] == [()] * len(lines)
    assert dropped("cat") == (Path("cat"),) == dropped("./cat")
    assert dropped("~/cat") == (tmp_path / "cat",)


def test_model_that_reads_text_is_not_shown_any(home, png):
    desk = Desk(home, "A").type(f"/image {png}", str(png), "hi")
    assert desk.said.count("fake cannot read pictures") == 2 and "attach " not in desk.said
    assert desk.model.calls[0].messages == (Message("user", "hi"),)


def test_switching_to_a_model_that_reads_text_says_so_with_the_next_picture(home, png):
    other = FakeModel(["B"], name="other")
    desk = seeing(home, "A", switch=lambda name: (other, ModelFacts("Q8_0", 100)))
    desk.type(f"/image {png}", "/model other", "What?")
    assert "other cannot read pictures" in desk.said and other.calls == []


def test_retry_edit_and_load_keep_the_picture(home, png, monkeypatch):
    desk = seeing(home, "A", "B", "C").type(f"/image {png}", "What?", "/retry")
    assert desk.model.calls[1].messages == desk.model.calls[0].messages
    monkeypatch.setattr("freehold.cli.chat.chat.edited", lambda text: f"{text} Really?")
    desk.type("/edit", "/name pets")
    assert desk.model.calls[2].messages[0].parts == (Image.of(PNG), "What? Really?")
    other = seeing(home, "D").type("/load pets", "And?")
    assert other.model.calls[0].messages[0] == with_images([Image.of(PNG)], "What? Really?")


def test_session_s_pictures_are_counted_where_it_is_shown(home, capsys):
    from freehold.cli.chat.opened import show
    from freehold.cli.chat.request import RunRequest

    sessions = Sessions(home)
    saved = sessions.save(
        ChatSession("a", "m", (with_images([Image.of(PNG)], "What?"), Message("assistant", "A")))
    )
    show(sessions.load(saved.name).messages[0], RunRequest())
    assert capsys.readouterr().err == ">>> [pictures: 1] What?\n"
