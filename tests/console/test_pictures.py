"""Pictures in the page: taken in by every way there is, sent to a tiny model that sees, there after a reload.

One server for the file, with a model that sees and one that reads text alone.
Path: file button, drop, paste, camera -> picture.ts -> POST .../pictures -> POST .../runs -> GET .../pictures/DIGEST
"""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("playwright")
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from freehold.run.models.tiny import make
from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import AskedTool
from tests.console.conftest import SCRIPTS, Served
from tests.console.scripted import write_scripted
from tests.console.test_accessible import _FOUND, inject

ORIENTATION, MAKER, GPS = 0x0112, 0x010F, 0x8825
CORNERS = [(220, 40, 40), (40, 200, 60), (40, 60, 220), (230, 220, 40)]  # from the upper left, clockwise
NEAR = 40  # of 255, between a colour and what a JPEG makes of it


def scene(width: int = 320, height: int = 240) -> Image.Image:
    """Draw a picture whose corners tell which way up it is."""
    picture = Image.new("RGB", (width, height))
    pen, x, y = ImageDraw.Draw(picture), width // 2, height // 2
    places = [(0, 0, x, y), (x, 0, width, y), (x, y, width, height), (0, y, x, height)]
    for place, colour in zip(places, CORNERS, strict=True):
        pen.rectangle(place, colour)
    return picture


def corners(picture: Image.Image) -> list[tuple[int, ...]]:
    w, h = picture.width, picture.height
    places = [(w // 8, h // 8), (w * 7 // 8, h // 8), (w * 7 // 8, h * 7 // 8), (w // 8, h * 7 // 8)]
    return [picture.convert("RGB").getpixel(place) for place in places]


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    with io.BytesIO() as out:
        picture.save(out, kind, **options)
        return out.getvalue()


def camera_data(orientation: int = 1) -> Image.Exif:
    """Return what a phone writes: who made it, where, and which way up."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKER] = orientation, "A Maker"
    exif.get_ifd(GPS)[1] = "N"
    return exif


PNG = encoded(scene(), "PNG")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pictures")
    eyes = make.write_safetensors(make.config("qwen3_vl"), folder / "eyes")
    text = write_scripted(folder / "scripted.gguf", SCRIPTS)
    home = folder / "home"
    home.mkdir()
    settings = 'adopt = false\nconsole.titles = false\nkeep_alive = "24h"\n'
    (home / "config.toml").write_text(settings)
    served = Served(home, (str(eyes), str(text)))
    served.start()
    yield served
    served.stop(signal.SIGKILL)


@pytest.fixture
def chat(server: Served, page: Any) -> Any:
    page.goto(f"{server.url}/#/chat?model=eyes")
    page.get_by_role("button", name="Model: eyes").wait_for()
    return page


def attach(page: Any, name: str, data: bytes, kind: str = "image/png") -> None:
    file = {"name": name, "mimeType": kind, "buffer": data}
    page.locator("form.composer input[type=file]").set_input_files([file])


def facts(page: Any) -> Any:
    return page.get_by_role("list", name="Attached").get_by_role("listitem")


def send(page: Any, text: str = "What is it?") -> None:
    before = page.locator("article:not(.user):not([aria-busy])").count()
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("article:not(.user):not([aria-busy])")).to_have_count(before + 1)


def stored(server: Served, page: Any) -> list[bytes]:
    """Return the pictures of the open chat, in the order of its messages."""
    mine, id = ChatFolder.of(server.home), page.url.rpartition("/")[2]
    branch = mine.read(id).branch()
    return [mine.pictures(id).read(name) for message in branch for name in message.images]


def shown(page: Any) -> list[list[int]]:
    """Return width and height of every picture of the conversation that the browser has drawn."""
    page.wait_for_function(
        "() => [...document.querySelectorAll('.pictures img')].every(i => i.complete && i.naturalWidth)"
    )
    return page.evaluate(
        "() => [...document.querySelectorAll('.pictures img')].map(i => [i.naturalWidth, i.naturalHeight])"
    )


@pytest.mark.heavy
def test_a_picture_is_counted_sent_answered_and_there_after_a_second_turn_and_a_reload(chat, server):
    attach(chat, "scene.png", PNG)
    chip = facts(chat).first
    expect(chip).to_contain_text("scene.png")
    expect(chip).to_contain_text(re.compile("320\\s×\\s240"))
    expect(chip).to_contain_text(re.compile(r"\d+ tokens"))
    tokens = int(re.search(r"(\d+) tokens", chip.inner_text())[1])
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": b64encode(PNG).decode()},
    }
    counts = [
        chat.request.post(
            f"{server.url}/v1/messages/count_tokens",
            data={"model": "eyes", "messages": [{"role": "user", "content": content}]},
        ).json()["input_tokens"]
        for content in ("x", [image, {"type": "text", "text": "x"}])
    ]
    assert tokens == counts[1] - counts[0]
    send(chat)
    assert shown(chat) == [[320, 240]]
    send(chat, "And now?")
    chat.reload()
    expect(chat.locator("article:not(.user):not([aria-busy])")).to_have_count(2)
    assert shown(chat) == [[320, 240]] and stored(server, chat) == [PNG]
    folder = server.home / "sessions" / ".pictures" / chat.url.rpartition("/")[2]
    assert len(list(folder.iterdir())) == 1
    chat.get_by_role("button", name="Show the picture").click()
    dialog = chat.get_by_role("dialog", name="Picture 1")
    expect(dialog.get_by_role("img", name="Picture 1")).to_be_visible()
    chat.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(chat.get_by_role("button", name="Show the picture")).to_be_focused()


_DROPPED = """([data, where, kind]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    transfer.items.add(new File([bytes], kind + ".png", {type: "image/png"}));
    const node = document.querySelector(where);
    const options = {bubbles: true, cancelable: true};
    if (kind === "paste") node.dispatchEvent(new ClipboardEvent("paste", {...options, clipboardData: transfer}));
    else for (const name of ["dragenter", "dragover", "drop"])
        node.dispatchEvent(new DragEvent(name, {...options, dataTransfer: transfer}));
}"""


@pytest.mark.parametrize(
    "kind, where", [("drop", ".conversation"), ("drop", "textarea"), ("paste", "textarea")]
)
def test_a_picture_is_dropped_anywhere_on_the_conversation_and_pasted(chat, server, kind, where):
    chat.evaluate(_DROPPED, [b64encode(PNG).decode(), where, kind])
    expect(facts(chat)).to_have_count(1)
    expect(facts(chat).first).to_contain_text(f"{kind}.png")
    send(chat)
    assert stored(server, chat) == [PNG] and shown(chat) == [[320, 240]]


def test_pictures_stay_in_the_order_in_which_they_came(chat, server):
    slow = encoded(scene(3000, 2000).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=camera_data(6))
    chat.evaluate(_DROPPED, [b64encode(slow).decode(), ".conversation", "drop"])
    chat.evaluate(_DROPPED, [b64encode(PNG).decode(), "textarea", "paste"])
    expect(facts(chat)).to_have_count(2)
    expect(facts(chat).first).to_contain_text("drop.png")


@pytest.mark.heavy
def test_every_way_up_is_upright_and_nothing_of_the_camera_is_sent(chat, server):
    for orientation in range(1, 9):
        turned = scene() if orientation < 5 else scene(240, 320)
        flips = {2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
                 4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE],
                 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
                 8: [Image.Transpose.ROTATE_270]}  # fmt: skip
        for flip in flips.get(orientation, []):
            turned = turned.transpose(flip)  # as the sensor saw it
        data = encoded(turned, "JPEG", quality=95, exif=camera_data(orientation))
        attach(chat, f"{orientation}.jpg", data, "image/jpeg")
        expect(facts(chat)).to_have_count(orientation)
        expect(facts(chat).last).to_contain_text("Metadata removed.")
    chat.get_by_role("textbox", name="Message", exact=True).fill("?")
    chat.get_by_role("button", name="Send", exact=True).click()
    chat.locator("article.user:not(.waits)").wait_for()
    pictures = stored(server, chat)
    assert len(pictures) == 8
    for n, data in enumerate(pictures, 1):
        assert b"Exif" not in data and b"A Maker" not in data
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == ((320, 240) if n < 5 else (240, 320)), n
            near = zip(corners(picture), CORNERS, strict=True)
            assert all(abs(a - b) < NEAR for got, wanted in near for a, b in zip(got, wanted, strict=True)), n


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_upright_picture_loses_its_metadata_and_no_pixel(chat, server, kind):
    options = {"quality": 90, "icc_profile": b"a profile" * 20} if kind == "JPEG" else {"lossless": True}
    exif = camera_data()
    data = encoded(scene(), kind, exif=exif, **(options if kind != "PNG" else {}))
    assert b"A Maker" in data
    attach(chat, f"a.{kind.lower()}", data, f"image/{kind.lower()}")
    expect(facts(chat).first).to_contain_text("Metadata removed.")
    send(chat)
    (kept,) = stored(server, chat)
    assert b"A Maker" not in kept and len(kept) < len(data)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(kept)) as after:
        assert before.format == after.format and before.tobytes() == after.tobytes()
        assert not after.getexif() and (kind != "JPEG" or after.info["icc_profile"] == options["icc_profile"])


def test_what_a_phone_puts_behind_a_picture_is_left_out(chat, server):
    data = encoded(scene(), "JPEG", progressive=True)
    attach(chat, "motion.jpg", data + b"....ftypmp42 a film" * 100, "image/jpeg")
    expect(facts(chat)).to_have_count(1)
    send(chat)
    assert stored(server, chat) == [data]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "JPEG", "PNG"])
def test_a_file_without_metadata_is_sent_byte_for_byte(chat, server, kind):
    data = encoded(scene(), kind)
    attach(chat, "plain", data, f"image/{kind.lower()}")
    expect(facts(chat)).to_have_count(1)
    assert "removed" not in facts(chat).first.inner_text()
    send(chat)
    assert stored(server, chat) == [data]


def test_a_picture_of_another_kind_is_converted_and_one_that_is_none_is_named(chat, server):
    attach(chat, "old.bmp", encoded(scene(), "BMP"), "image/bmp")
    expect(facts(chat).first).to_contain_text("Converted to PNG.")
    attach(chat, "broken.png", PNG[:60] + b"x" * 60)
    chat.get_by_text("broken.png is not a picture that this browser can open").wait_for()
    attach(chat, "page.png", b"<svg onload='alert(1)'>")
    chat.get_by_text("page.png is not a picture").wait_for()
    expect(facts(chat)).to_have_count(1)
    send(chat)
    with Image.open(io.BytesIO(stored(server, chat)[0])) as picture:
        assert picture.format == "PNG" and corners(picture) == CORNERS


@pytest.mark.heavy
def test_a_picture_beyond_the_limits_is_made_smaller_with_a_note(chat, server):
    limit = {"most": 2, "bytes": 30_000, "together": 60_000, "pixels": 200 * 200, "side": 250}
    chat.route(
        "**/console/api/me", lambda route: route.fulfill(json={**route.fetch().json(), "pictures": limit})
    )
    chat.reload()
    chat.get_by_role("button", name="Model: eyes").wait_for()
    noise = Image.effect_noise((600, 400), 90)
    attach(chat, "noise.png", encoded(noise, "PNG"))
    expect(facts(chat).first).to_contain_text(re.compile("Made smaller: 600\\s×\\s400, .* to "))
    attach(chat, "noise.jpg", encoded(noise.convert("RGB"), "JPEG", quality=99), "image/jpeg")
    expect(facts(chat)).to_have_count(2)
    attach(chat, "third.png", PNG)
    chat.get_by_text("A message has at most 2 pictures").wait_for()
    expect(facts(chat)).to_have_count(2)
    send(chat)
    pictures = stored(server, chat)
    for data, kind in zip(pictures, ("PNG", "JPEG"), strict=True):
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.format == kind and len(data) <= 30_000
            assert picture.width * picture.height <= 200 * 200 and max(picture.size) <= 250
            assert abs(picture.width / picture.height - 1.5) < 0.02


def test_a_picture_can_be_taken_out_by_the_keyboard_and_a_draft_survives_a_reload(chat):
    attach(chat, "a.png", PNG)
    attach(chat, "b.png", PNG)
    expect(facts(chat)).to_have_count(2)
    chat.get_by_role("button", name="Take out Picture 1").focus()
    chat.keyboard.press("Enter")
    expect(facts(chat)).to_have_count(1)
    expect(chat.get_by_role("textbox", name="Message", exact=True)).to_be_focused()
    chat.wait_for_timeout(300)  # the draft is written
    chat.reload()
    expect(facts(chat)).to_have_count(1)
    expect(facts(chat).first).to_contain_text("b.png")
    expect(facts(chat).first).to_contain_text(re.compile(r"\d+ tokens"))


def test_a_message_with_a_picture_is_edited_with_it(chat, server):
    attach(chat, "a.png", PNG)
    send(chat)
    chat.locator("article.user").get_by_role("button", name="Edit", exact=True).click()
    expect(facts(chat).first).to_contain_text(re.compile("320\\s×\\s240"))
    expect(facts(chat).first).to_contain_text(re.compile(r"\d+ tokens"))
    chat.get_by_role("textbox", name="Message", exact=True).fill("Once more")
    chat.get_by_role("button", name="Send", exact=True).click()
    chat.locator("article.user", has_text="Once more").locator(".pictures img").wait_for()
    assert stored(server, chat) == [PNG]
    folder = server.home / "sessions" / ".pictures" / chat.url.rpartition("/")[2]
    assert len(list(folder.iterdir())) == 1


def test_a_model_that_reads_text_is_named_with_those_that_see_and_nothing_is_sent(chat, server):
    send(chat, "Hello.")
    chat.goto(f"{server.url}/#/chat?model=scripted")  # the page stays, and has another chat
    chat.get_by_role("button", name="Model: scripted").wait_for()
    attach(chat, "a.png", PNG)
    said = chat.locator(".sightless")
    expect(said).to_contain_text("scripted cannot read pictures. These models here can:")
    assert "tokens" not in facts(chat).first.inner_text()
    button = chat.get_by_role("button", name="Send", exact=True)
    chat.get_by_role("textbox", name="Message", exact=True).fill("What is it?")
    expect(button).to_be_disabled()
    said.get_by_role("button", name="Use eyes").click()
    expect(said).to_have_count(0)
    expect(button).to_be_enabled()
    expect(facts(chat).first).to_contain_text(re.compile(r"\d+ tokens"))
    send(chat)
    chat.get_by_role("button", name="Model: eyes").click()
    chat.get_by_role("option", name="scripted").click()
    expect(said).to_contain_text("cannot read pictures")  # those that are in the chat


@pytest.mark.heavy
def test_the_camera_takes_a_picture_and_is_off_afterwards(chat, server):
    chat.context.grant_permissions(["camera"])
    chat.get_by_role("button", name="Camera").click()
    dialog = chat.get_by_role("dialog", name="Camera")
    take = dialog.get_by_role("button", name="Take the picture")
    expect(take).to_be_enabled()
    chat.evaluate("() => { window.seen = document.querySelector('video').srcObject }")
    take.click()
    expect(facts(chat).first).to_contain_text("camera.jpg")
    assert chat.evaluate("() => window.seen.getTracks().every(track => track.readyState === 'ended')")
    expect(chat.get_by_role("button", name="Camera")).to_be_focused()
    send(chat)
    with Image.open(io.BytesIO(stored(server, chat)[0])) as picture:
        assert picture.format == "JPEG" and picture.width > 100


def test_a_camera_that_is_refused_says_so_and_one_that_is_not_there_has_no_button(chromium, server):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{server.url}/#/chat?model=eyes")
    page.get_by_role("button", name="Camera").click()
    page.get_by_text("This page may not use the camera").wait_for()
    expect(page.get_by_role("button", name="Take the picture")).to_be_disabled()
    page.add_init_script("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    page.reload()
    page.get_by_role("button", name="Attach files or pictures").wait_for()
    page.wait_for_timeout(200)
    expect(page.get_by_role("button", name="Camera")).to_have_count(0)
    context.close()


def test_a_tool_s_picture_shows_without_being_opened(server, page):
    folder = ChatFolder.of(server.home)
    id = folder.create(model="eyes").id
    with folder.writer(id) as writer:
        asked = writer.message("user", "Look.", parent=None)
        calls = [AskedTool(id="c1", server="camera", name="look", arguments="{}")]
        answer = writer.message("assistant", "", parent=asked.id, calls=calls, model="eyes")
        url = f"data:image/png;base64,{b64encode(PNG).decode()}"
        result = writer.message("tool", "[image]", parent=answer.id, call="c1", images=[url], outcome="done")
        writer.message("tool", "[image]", parent=result.id, call="lost", images=[url, "sha256:" + "0" * 64])
    page.goto(f"{server.url}/#/chat/{id}")
    page.get_by_role("button", name="Show the picture").wait_for()
    page.get_by_text("Picture 2 cannot be loaded").wait_for()
    page.errors.clear()  # the browser's own, of the picture that is not there


@pytest.mark.heavy
def test_the_program_that_the_page_shows_sends_the_picture(chat, server, tmp_path):
    attach(chat, "a.png", PNG)
    send(chat, "It costs $5 `now`, \\o/")
    chat.locator("article:not(.user)").hover()
    chat.locator("article:not(.user)").get_by_role("button", name="More for this message").click()
    chat.get_by_role("menuitem", name="As a program").click()
    link = chat.get_by_role("link", name="picture-1.png")
    link.wait_for()
    with chat.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "picture-1.png")
    assert (tmp_path / "picture-1.png").read_bytes() == PNG
    receipt = chat.request.get(f"{server.url}/console/api/chats/{chat.url.rpartition('/')[2]}").json()
    tokens = receipt["messages"][-1]["receipt"]["tokens"]["prompt"]
    curl = chat.locator("pre.request").inner_text().replace("curl -N", "curl -s")
    script = curl.replace('"stream": true', '"stream": false')
    said = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert f'"prompt_tokens":{tokens}' in said.replace(" ", ""), said[:500]
    chat.get_by_role("button", name="Python", exact=True).click()
    program = chat.locator("pre.request", has_text="import base64").inner_text()
    program = program.replace('["choices"][0]["message"]["content"]', '["usage"]["prompt_tokens"]')
    (tmp_path / "ask.py").write_text(program)
    ran = subprocess.run([sys.executable, "ask.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(ran.stdout) == tokens


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pictures_pass_axe_and_make_the_page_no_wider(chromium, server, width, scheme):
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{server.url}/#/chat?model=eyes")
    page.get_by_role("button", name="Model: eyes").wait_for()
    for n in range(3):
        attach(page, "a long name of a picture that was taken on holiday" * (n + 1) + ".png", PNG)
    expect(facts(page)).to_have_count(3)
    send(page)
    attach(page, "b.png", encoded(scene(2000, 60), "PNG"))
    page.get_by_role("button", name="Model: eyes").click()
    page.get_by_role("option", name="scripted").click()
    page.locator(".sightless").wait_for()
    inject(page)
    assert page.evaluate(_FOUND) == []
    assert (
        page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        == 0
    )
    for box in page.locator(".composer, .pictures, .chip").all():
        area = box.bounding_box()
        assert area["x"] >= 0 and area["x"] + area["width"] <= width
    context.close()


@pytest.mark.parametrize("size", [(48, 36), (2600, 1100), (900, 2600)])
def test_a_picture_of_any_size_is_shown_whole_in_its_dialog(chat, server, size):
    for width in (1280, 390):
        chat.set_viewport_size({"width": width, "height": 800})
        chat.goto(f"{server.url}/#/chat?model=eyes")
        chat.reload()
        chat.get_by_role("button", name="Model: eyes").wait_for()
        attach(chat, "a.png", encoded(scene(*size), "PNG"))
        expect(facts(chat)).to_have_count(1)
        send(chat)
        chat.get_by_role("button", name="Show the picture").last.click()
        dialog = chat.get_by_role("dialog", name="Picture 1")
        picture = dialog.get_by_role("img", name="Picture 1")
        expect(picture).to_be_visible()
        outer, inner = dialog.bounding_box(), picture.bounding_box()
        assert outer["x"] >= 0 and outer["x"] + outer["width"] <= width and outer["height"] <= 800
        assert inner["x"] >= outer["x"] and inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1
        assert outer["width"] <= max(inner["width"] + 60, 330)
        assert abs(inner["width"] / inner["height"] - size[0] / size[1]) < 0.05
