"""Both pages in a real Chromium: live numbers, pictures, login and a button, and nothing fetched from elsewhere."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.daemons import Cloud, Edge, Fleet
from examples.feeds import Item, simulated

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
DEFINITION = (
    'name = "solder"\nmodel = "solder-small"\ndeadline_ms = 5000\n[hard_samples]\nanswer_model = "solder-large"\n'
)
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs Debian's chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cloud, Edge]]:
    with Fleet(tmp_path_factory.mktemp("p")) as fleet:
        cloud, edge = fleet.start_cloud(), fleet.start_edge("line-3")
        for name in ("solder-small", "solder-large"):
            cloud.add_model(MODELS / name)
        edge.join(cloud)
        edge.add_service(DEFINITION)
        yield cloud, edge


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = BROWSER or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", f"user-data-dir={tmp_path}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


def text(browser: webdriver.Chrome, identity: str) -> str:
    return browser.find_element(By.ID, identity).text


def wait_for(browser: webdriver.Chrome, identity: str, expected: str, timeout_s: float = 20.0) -> None:
    """Without a reload: only the page's own script may bring it."""
    WebDriverWait(browser, timeout_s, ignored_exceptions=[Exception]).until(
        lambda driver: expected in text(driver, identity), f"{expected!r} did not appear in #{identity}"
    )


def assert_quiet(browser: webdriver.Chrome, origin: str) -> None:
    """No error on the console (a policy violation is one) and no request to anywhere else."""
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [url for url in asked if not url.startswith((origin, "data:"))] == []


def items(count: int) -> list[Item]:
    return [item for batch in islice(simulated("north", 21), 1 + count // 12) for item in batch][:count]


def test_the_status_page_lives(fleet: tuple[Cloud, Edge], browser: webdriver.Chrome) -> None:
    _, edge = fleet
    origin = f"http://{edge.status().addresses.page}"
    browser.get(f"{origin}/")
    assert "line-3" in browser.title
    assert "Everything works." in text(browser, "verdict")
    assert "connected" in text(browser, "cloud")
    before = edge.service("solder").report.inspected
    for item in items(7):
        edge.inspect("solder", item.data)
    wait_for(browser, "services", f"cloud {before + 7}")
    wait_for(browser, "services", "Calibrating")
    assert_quiet(browser, origin)


def test_the_last_minutes_are_drawn_in_both_schemes(fleet: tuple[Cloud, Edge], browser: webdriver.Chrome) -> None:
    """Pictures that a page of this size can show: inside of their card, with lines, and legible in light and dark."""
    _, edge = fleet
    edge.add_service('name = "drawn"\nmodel = "solder-small"\n[decision]\npass = ["normal"]\nfail = ["bridge"]\n')
    origin = f"http://{edge.status().addresses.page}"
    browser.get(f"{origin}/")
    end = time.monotonic() + 40
    for number, item in enumerate(cycle(items(20))):
        edge.inspect("drawn", item.data)
        time.sleep(0.03)
        if number % 20 == 0 and (lines_drawn(browser) >= 3 or time.monotonic() > end):
            break
    wait_for(browser, "history", "drawn")
    assert "pass" in text(browser, "services") and "review" in text(browser, "services")
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        shown = browser.execute_script(
            """
            const card = document.getElementById("history").getBoundingClientRect();
            const paper = getComputedStyle(document.getElementById("history")).backgroundColor;
            return Array.from(document.querySelectorAll("#history svg.chart")).map(svg => {
              const box = svg.getBoundingClientRect(), lines = Array.from(svg.querySelectorAll("path"));
              return {inside: box.left >= card.left && box.right <= card.right && box.height > 60,
                      label: svg.getAttribute("aria-label"),
                      colours: lines.map(line => getComputedStyle(line).stroke)
                        .concat(getComputedStyle(svg.querySelector("text")).fill), paper: paper};
            });
            """
        )
        assert len(shown) >= 2
        for picture in shown:
            assert picture["inside"] and "over the last 10 minutes" in picture["label"]
            assert all(contrast(colour, picture["paper"]) >= 3 for colour in picture["colours"]), (scheme, picture)
        assert lines_drawn(browser) >= 3
    assert_quiet(browser, origin)


def lines_drawn(browser: webdriver.Chrome) -> int:
    """Lines of the pictures that are more than a dot."""
    paths = "Array.from(document.querySelectorAll('#history svg.chart path'))"
    return int(browser.execute_script(f"return {paths}.filter(line => line.getTotalLength() > 3).length"))


def contrast(one: str, other: str) -> float:
    """Of two CSS colours "rgb(r, g, b)", by WCAG 2.1; from 1 to 21. Lines and large text need 3."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_a_phone_shows_every_cell_without_scrolling_sideways(
    fleet: tuple[Cloud, Edge], browser: webdriver.Chrome
) -> None:
    _, edge = fleet
    edge.inspect("solder", items(1)[0].data)
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(f"http://{edge.status().addresses.page}/")
    assert browser.execute_script("return document.querySelectorAll('#services td').length") >= 9
    beyond = "Array.from(document.querySelectorAll('main *')).filter(e => e.getBoundingClientRect().right > 391)"
    assert browser.execute_script(f"return {beyond}.map(e => e.outerHTML.slice(0, 80))") == []
    name = browser.execute_script(
        "return getComputedStyle(document.querySelector('#services td:nth-child(2)'), '::before').content"
    )
    assert name == '"model"', "each cell says what it is"


def test_an_operator_logs_in_and_recalibrates(fleet: tuple[Cloud, Edge], browser: webdriver.Chrome) -> None:
    _, edge = fleet
    origin = f"http://{edge.status().addresses.page}"
    browser.get(f"{origin}/")
    assert "Recalibrate" not in text(browser, "services")
    field = browser.find_element(By.NAME, "token")
    field.send_keys((edge.state_dir / "page-token").read_text().strip())
    field.submit()
    wait_for(browser, "services", "Recalibrate")
    browser.find_element(By.CSS_SELECTOR, "#services form button").click()
    wait_for(browser, "services", "Calibrating")
    assert_quiet(browser, origin)


def test_the_dashboard_shows_the_hard_samples_with_their_pictures(
    fleet: tuple[Cloud, Edge], browser: webdriver.Chrome
) -> None:
    cloud, edge = fleet
    for item in items(3):
        edge.inspect("solder", item.data, {"Edged-Serial": item.serial})
    browser.get(cloud.dashboard_url)
    wait_for(browser, "samples", items(3)[-1].serial)
    wait_for(browser, "devices", "line-3")
    assert "solder-small@1" in text(browser, "samples")
    assert "solder-large@1" in text(browser, "samples")
    WebDriverWait(browser, 10).until(
        lambda driver: driver.execute_script(
            "return Array.from(document.querySelectorAll('img.sample')).slice(0, 3).every(i => i.naturalWidth > 0)"
        )
    )
    assert_quiet(browser, cloud.dashboard_url.rstrip("/"))
