"""The dashboard's row of a device that is retrained, in a real Chromium: on a desk and on a phone."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from test_dashboard_page import state

from cloudd.dashboard.page import render
from cloudd.retraining.view import RetrainingView

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs Debian's chromium and chromium-driver"),
]


def page(folder: Path) -> Path:
    """A device with two jobs under way, whose service has a long name, and one that was refused with a long reason."""
    trains = RetrainingView(
        device_id="ABCDEFG-HIJKLMN", short_id="ABCDEFG", job="ab" * 16, service="solder", stage="training",
        text="trains a larger network", done=40, total=100, pictures=840, bytes=700_000, created_at=50.0, ended_at=None,
        removed=False,
    )  # fmt: skip
    waits = msgspec.structs.replace(
        trains, job="cd" * 16, service="s" * 64, stage="waiting", text="has the job in its queue", done=0, total=0
    )
    refused = msgspec.structs.replace(trains, job="ef" * 16, stage="refused", text="it " * 330 + "x" * 9, ended_at=60.0)
    path = folder / "page.html"
    path.write_text(render(msgspec.structs.replace(state(), retraining=[trains, waits, refused])), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_what_is_retrained_can_be_read_whole_in_the_row_of_its_device(width: int, tmp_path: Path) -> None:
    options = Options()
    options.binary_location = BROWSER or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(page(tmp_path).as_uri())
        lines = [one for one in driver.find_elements(By.CSS_SELECTOR, "#devices div.soft") if "retraining" in one.text]
        assert [line.text.split(" with ")[0] for line in lines[:2]] == ["retraining solder", f"retraining {'s' * 64}"]
        assert lines[0].text.endswith("cloudd trains a larger network (step 40 of 100)")
        assert lines[2].text.startswith("retraining of solder refused 40 s ago: it it")
        card = driver.find_element(By.ID, "devices").rect
        for line in lines:
            box = line.rect
            assert card["x"] <= box["x"] and box["x"] + box["width"] <= card["x"] + card["width"]
            assert driver.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", line)
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        driver.quit()
