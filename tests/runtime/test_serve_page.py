"""The page of the service, driven in a real browser."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs sodeploy[serve]")
pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives a browser")

from playwright.sync_api import sync_playwright

from sodeploy.runtime.serve.app import make_app
from sodeploy.runtime.serve.listening import listening_socket, make_server
from sodeploy.runtime.serve.settings import Settings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)"),
    pytest.mark.usefixtures("estimation"),
]

SaveModel = Callable[..., Path]


@pytest.fixture
def address(save_model: SaveModel) -> Iterator[str]:
    """Of a service with two models that differ."""
    models = {"fp32": save_model("a.onnx"), "int8": save_model("b.onnx", weights=(0.2, 0.5, 0.3))}
    settings = Settings(models, drain_s=0.1)
    with listening_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        server = make_server(make_app(settings), True, settings.deadline_s, settings.drain_s)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{port}/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, ready; a test fails where anything comes from another address, or the browser reports an error."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda one: one.url.startswith((address, "blob:")) or problems.append(one.url))
    opened.goto(address)
    opened.get_by_text("Ready: 2 models on cpu").wait_for()
    yield opened
    context.close()
    assert [problem for problem in problems if "422 (Unprocessable" not in problem] == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[15:45, 30:60] = (40, 160, 240)
    cv2.imwrite(str(tmp_path / "photo.png"), picture)
    return tmp_path / "photo.png"


DROP = """([bytes, name, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
PASTE = """([bytes, name, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
}"""


@pytest.mark.parametrize("script", [DROP, PASTE], ids=["drop", "paste"])
def test_a_picture_is_cut_out_and_downloaded(page: Any, photo: Path, tmp_path: Path, script: str) -> None:
    page.evaluate(script, [list(photo.read_bytes()), "photo.png", "image/png"])
    page.get_by_role("status").filter(has_text="photo.png is done").wait_for()
    assert page.get_by_role("heading", name="photo.png").is_visible()
    page.wait_for_function("document.getElementById('download-map').download === 'photo.fp32.map.png'")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the cut-out").click()
    download.value.save_as(tmp_path / "cut.png")
    cut = cv2.imread(str(tmp_path / "cut.png"), cv2.IMREAD_UNCHANGED)
    assert cut.shape == (60, 90, 4)
    assert cut[30, 45, 3] > 100 > cut[5, 5, 3]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the map").click()
    download.value.save_as(tmp_path / "map.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "map.png"))[..., 0], cut[..., 3])


def test_a_picture_waits_for_the_models(browser: Any, address: str, photo: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    ready = threading.Event()
    page.route("**/readyz", lambda route: route.continue_() if ready.is_set() else route.fulfill(status=503))
    page.goto(address)
    page.get_by_text("The models are loading").wait_for()
    page.get_by_label("Choose pictures").set_input_files(photo)
    ready.set()
    page.get_by_role("status").filter(has_text="photo.png is done").wait_for()
    assert page.locator("#errors").inner_text() == ""
    context.close()


def test_two_models_side_by_side(page: Any, photo: Path) -> None:
    page.get_by_label("Choose pictures").set_input_files(photo)
    figures = page.locator("#figures")
    figures.filter(has_text="Mean difference 0.0").wait_for()
    assert page.get_by_role("img", name="Saliency map by int8").is_visible()
    assert page.get_by_role("img", name="Difference of the two maps").is_visible()
    page.get_by_label("Beside it").select_option("nothing")
    figures.wait_for(state="hidden")


def test_the_color_is_behind_the_cutout(page: Any, photo: Path, tmp_path: Path) -> None:
    page.get_by_label("Choose pictures").set_input_files(photo)
    page.get_by_role("status").filter(has_text="photo.png is done").wait_for()
    page.locator("#color").fill("#00ff00")
    page.wait_for_function("document.getElementById('stage').classList.contains('color')")
    assert page.get_by_label("color", exact=True).first.is_checked()
    time.sleep(0.5)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the cut-out").click()
    download.value.save_as(tmp_path / "green.png")
    green = cv2.imread(str(tmp_path / "green.png"), cv2.IMREAD_UNCHANGED)
    assert green[2, 2].tolist()[:3] == [0, 255, 0]


def test_a_text_file_is_refused_in_words(page: Any, photo: Path) -> None:
    files = [
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello, this is no picture"},
        {"name": "photo.png", "mimeType": "image/png", "buffer": photo.read_bytes()},
    ]
    page.get_by_label("Choose pictures").set_input_files(files)
    alert = page.get_by_role("alert").get_by_text("notes.txt: the picture is broken or no image")
    alert.wait_for()
    page.get_by_role("heading", name="photo.png").wait_for()  # the other one is served


def test_by_keyboard_alone(page: Any, photo: Path) -> None:
    # From the first listener on the browser hands file choosers over. It learns so beside the next call, which a key
    # pressed at once would overtake.
    page.on("filechooser", lambda chooser: None)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photo)
    page.get_by_role("status").filter(has_text="photo.png is done").wait_for()
    reached = []
    for _ in range(15):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"model", "second", "background", "color", "clear", "slider", "download", "download-map"} <= set(reached)
    page.locator("#slider").focus()
    before = page.evaluate("getComputedStyle(document.getElementById('stage')).getPropertyValue('--cut')")
    page.keyboard.press("ArrowRight")
    after = page.evaluate("getComputedStyle(document.getElementById('stage')).getPropertyValue('--cut')")
    assert (before.strip(), after.strip()) == ("50%", "51%")
    assert page.locator("#slider").get_attribute("aria-valuetext") == "51 % before, 49 % after"
    page.locator("#clear").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.locator("#results").is_hidden()


def test_names_and_widths(page: Any, photo: Path) -> None:
    page.get_by_label("Choose pictures").set_input_files(photo)
    page.locator("#figures").filter(has_text="Mean difference").wait_for()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, a, img, canvas")].filter((one) =>
          one.checkVisibility() && !(one.labels?.length || one.ariaLabel || one.alt || one.textContent.trim()
            || one.querySelector("img[alt]"))).map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    for width in (320, 390, 1200):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
