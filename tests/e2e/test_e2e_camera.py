"""A camera on a real daemon, seen through the status page in a real Chromium."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from edgekit.vision.images import decode
from examples.feeds import simulated
from tests.support.edged import Edged, wait_for

MODEL = Path(__file__).resolve().parents[2] / "examples" / "models" / "solder-small"
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")

needs_browser = pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs Debian's chromium and chromium-driver")


def definition(folder: Path) -> str:
    return (
        'name = "solder"\nmodel = "solder-small"\ndeadline_ms = 5000\n'
        f'[source]\nkind = "replay"\npath = "{folder}"\nfps = 2.0\nrepeat = true\n'
        '[decision]\npass = ["normal"]\nfail = ["insufficient", "bridge", "pinhole"]\n'
    )


@pytest.fixture(scope="module")
def edged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edged]:
    root = tmp_path_factory.mktemp("camera")
    folder = root / "film"
    folder.mkdir()
    for item in [item for batch in islice(simulated("north", 21), 2) for item in batch]:
        (folder / f"{item.serial}.jpg").write_bytes(item.data)
    with Edged(root / "state") as edged:
        edged.add_model(MODEL)
        edged.add_service(definition(folder))
        wait_for(lambda: (service := edged.service("solder")) and service.report.preview)
        yield edged


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = BROWSER or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", f"user-data-dir={tmp_path}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def test_the_page_port_serves_the_preview(edged: Edged) -> None:
    page = edged.status().addresses.page
    with urllib.request.urlopen(f"http://{page}/preview/solder.jpg") as reply:
        assert reply.headers["Content-Type"] == "image/jpeg"
        assert reply.headers["Cache-Control"] == "no-store"
        assert max(decode(reply.read()).shape) <= 640 + 28
    for name in ("nobody", "%2e%2e", "solder%2f..%2fsolder"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{page}/preview/{name}.jpg")
        assert caught.value.code in (404, 503)


def test_the_status_names_the_camera(edged: Edged) -> None:
    service = edged.service("solder")
    assert service is not None and service.source.startswith("replay /")


@needs_browser
@pytest.mark.browser
def test_the_newest_picture_lives_on_the_page(edged: Edged, browser: webdriver.Chrome) -> None:
    origin = f"http://{edged.status().addresses.page}"
    browser.set_window_size(1100, 1000)
    browser.get(f"{origin}/")
    shown = "return Array.from(document.querySelectorAll('#pictures img')).map(i => [i.src, i.naturalWidth, i.alt])"

    def seen() -> list[list[object]]:
        return browser.execute_script(shown)  # type: ignore[no-any-return]

    WebDriverWait(browser, 10).until(lambda _: seen() and seen()[0][1])
    first = seen()[0][0]
    WebDriverWait(browser, 10).until(lambda _: seen()[0][0] != first and seen()[0][1])
    assert str(seen()[0][2]).startswith("Newest picture of solder: ")
    # It is never blank while the page renews itself around it.
    until = time.monotonic() + 5
    while time.monotonic() < until:
        assert seen()[0][1], "the picture went blank"
        time.sleep(0.05)
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
