"""The review page of a real daemon in a real Chromium: keyboard, mouse and finger, a lost connection, two people."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from support.edged import Edged
from support.receivers import free_port

from edged.api import Done
from edged.samples.bodies import AddHeader, AddReply, RemoveBody
from edged.samples.records import NewSample, Opinion, SampleDetail, ScoredBox
from edgekit.envelope import seal
from edgekit.vision.images import encode_png
from examples.feeds import simulated
from examples.golden_board import make_package, shot

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
HOSTILE = '<img src=x onerror="document.title=1">"\'&'
DEFECTS = ("insufficient", "bridge", "pinhole", "cold")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs Debian's chromium and chromium-driver"),
]


class Plant:
    """A daemon with two services, and what people have in its queue."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.edged = self.start()
        self.number = 0

    def start(self) -> Edged:
        return Edged(self.folder / "state", "--page", f"127.0.0.1:{self.port}", "--name", "line-3")

    @property
    def token(self) -> str:
        return (self.folder / "state" / "page-token").read_text().strip()

    def solder(self, count: int, service: str = "solder") -> list[str]:
        """Disputed joints, the first the most useful; each of a board of its own."""
        items = [item for batch in islice(simulated("north", 40 + self.number), 1 + count // 12) for item in batch]
        return [
            self.keep(item.data, service, item.label, DEFECTS[n % 4], n / 1000) for n, item in enumerate(items[:count])
        ]

    def board(self, label: str = "short") -> str:
        made = shot(label, 5 + self.number)
        left, top, right, bottom = made.box
        aside = ScoredBox(label=label, score=0.41, left=left + 6, top=top, right=right + 6, bottom=bottom)
        return self.keep(encode_png(made.image), "board", label, "open", 0.0, aside)

    def keep(
        self, data: bytes, service: str, cloud: str, edge: str, margin: float, box: ScoredBox | None = None
    ) -> str:
        self.number += 1
        boxes = (box,) if box is not None else None
        new = NewSample(
            service=service,
            source="disputed",
            captured_at=1_790_000_000.0 - self.number,
            group=f"N{self.number:04d}",
            edge=Opinion(label=edge, score=0.55, margin=margin, model="small@1", boxes=boxes),
            cloud=Opinion(label=cloud, score=0.93, margin=0.8, model="large@1", boxes=boxes),
        )
        return self.edged.client.post("/samples", AddReply, seal(AddHeader(new=new), data)).id

    def said(self, id: str) -> list[tuple[str, str]]:
        detail = self.edged.client.get(f"/samples/{id}", SampleDetail)
        return [(one.author, str(one.label)) for one in detail.labels if one.kind == "operator"]

    def clear(self) -> None:
        for service in ("solder", "board"):
            self.edged.client.post("/samples/remove", Done, RemoveBody(service=service))


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("r")
    make_package(folder / "golden-board")
    plant = Plant(folder)
    try:
        plant.edged.add_model(MODELS / "solder-small")
        plant.edged.add_model(folder / "golden-board")
        plant.edged.add_service('name = "solder"\nmodel = "solder-small"\n')
        plant.edged.add_service('name = "board"\ntask = "detection"\nmodel = "golden-board"\n')
        yield plant
    finally:
        plant.edged.kill()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    driver = start_browser(tmp_path / "one")
    yield driver
    driver.quit()


def start_browser(profile: Path) -> webdriver.Chrome:
    options = Options()
    options.binary_location = BROWSER or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", "window-size=1280,860",
                 f"user-data-dir={profile}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, Service(DRIVER))


def enter(
    browser: webdriver.Chrome, plant: Plant, author: str = "anna", service: str = "", empty: bool = False
) -> None:
    """Log in, say who it is, and wait for the first picture, or to hear that there is none."""
    browser.get(f"http://127.0.0.1:{plant.port}/review")
    field = browser.find_element(By.NAME, "token")
    field.send_keys(plant.token)
    field.submit()
    until(browser, lambda: browser.find_elements(By.ID, "author"))
    browser.get_log("browser")  # the login page is a 401
    until(browser, lambda: browser.switch_to.active_element.get_attribute("id") == "author")
    browser.switch_to.active_element.send_keys(author, Keys.ENTER)
    if service:
        until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, f"#service option[value={service}]"))
        browser.execute_script(
            "const s = document.getElementById('service'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change'));",
            service,
        )
    if empty:
        until(browser, lambda: "Nothing more waits" in text(browser, "stage"))
    else:
        seen(browser)


def until(browser: webdriver.Chrome, what: Callable[[], object], timeout_s: float = 8.0) -> None:
    WebDriverWait(browser, timeout_s, 0.05, ignored_exceptions=[Exception]).until(lambda _: what())


def seen(browser: webdriver.Chrome, id: str = "") -> None:
    """Until a picture (of this sample) is shown, and may be labelled."""
    until(browser, lambda: id in shown(browser) != "" and browser.find_element(By.ID, "unusable").is_enabled())


def shown(browser: webdriver.Chrome) -> str:
    """The address of the picture that is seen now."""
    script = "const i = document.querySelector('#stage img'); return i && i.naturalWidth ? i.src : ''"
    return str(browser.execute_script(script))


def press(browser: webdriver.Chrome, *keys: str) -> None:
    ActionChains(browser, 0).send_keys(*keys).perform()


def text(browser: webdriver.Chrome, identity: str) -> str:
    return browser.find_element(By.ID, identity).text


def assert_quiet(browser: webdriver.Chrome) -> None:
    """No error on the console, among which a violation of the policy would be."""
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_one_hand_on_the_keyboard_labels_a_queue(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    ids = plant.solder(7)
    enter(browser, plant)
    assert browser.find_element(By.ID, "me").text == "You are anna"
    order: list[str] = []
    for keys in ((Keys.ENTER,), ("e",), ("3",), ("u",), ("n", "tombstone", Keys.ENTER), (Keys.ARROW_RIGHT,)):
        seen(browser)
        order.append(shown(browser).split("/")[-2])
        press(browser, *keys)
        until(browser, lambda: order[-1] not in shown(browser))
    assert set(order) <= set(ids) and len(set(order)) == 6
    details = [plant.edged.client.get(f"/samples/{id}", SampleDetail).sample for id in order]
    until(browser, lambda: plant.said(order[4]))
    assert details[0].cloud is not None and details[1].edge is not None
    assert plant.said(order[0]) == [("anna", details[0].cloud.label)], "Enter confirms what is suggested"
    assert plant.said(order[1]) == [("anna", details[1].edge.label)]
    assert [plant.said(id) for id in order[2:]] == [
        [("anna", "bridge")], [("anna", "unusable")], [("anna", "tombstone")], [],
    ]  # fmt: skip
    assert "tombstone" in text(browser, "labels")
    assert "2 wait, 5 labelled" in text(browser, "count")
    assert_quiet(browser)


def test_undo_comes_back_and_the_newest_word_counts(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    plant.solder(3)
    enter(browser, plant)
    first = shown(browser).split("/")[-2]
    press(browser, "3")
    until(browser, lambda: first not in shown(browser) and plant.said(first))
    seen(browser)
    press(browser, "z")
    seen(browser, first)
    assert "You said bridge" in text(browser, "said")
    press(browser, "4")
    until(browser, lambda: len(plant.said(first)) == 2)
    assert plant.said(first) == [("anna", "bridge"), ("anna", "pinhole")]
    time.sleep(0.3)
    assert text(browser, "news") == "", "one's own second thought is no conflict"
    assert_quiet(browser)


def test_a_key_that_is_held_down_labels_one_picture(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    plant.solder(5)
    enter(browser, plant)
    for again in (False, True, True, True):
        browser.execute_cdp_cmd(
            "Input.dispatchKeyEvent",
            {"type": "keyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "autoRepeat": again},
        )
    until(browser, lambda: "1 labelled" in text(browser, "count"))
    time.sleep(0.5)
    assert "1 labelled" in text(browser, "count")


def test_a_focused_button_answers_to_its_own_enter_and_keys_typed_into_a_field_label_nothing(
    plant: Plant, browser: webdriver.Chrome
) -> None:
    plant.clear()
    plant.solder(3)
    enter(browser, plant)
    press(browser, "n", "u3ze")
    assert "0 labelled" in text(browser, "count")
    assert browser.find_element(By.ID, "name").get_attribute("value") == "u3ze"
    browser.execute_script("document.getElementById('unusable').focus()")
    first = shown(browser).split("/")[-2]
    press(browser, Keys.ENTER)
    until(browser, lambda: plant.said(first) == [("anna", "unusable")])
    assert browser.switch_to.active_element.get_attribute("id") == "stage", "the next Enter is no unusable"


def test_boxes_are_drawn_moved_and_resized_with_the_mouse(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    id = plant.board()
    enter(browser, plant, service="board")
    assert "Save: short" in text(browser, "confirm")
    press(browser, "x")
    until(browser, lambda: plant.said(id) == [("anna", "nothing there")])
    press(browser, "z")
    seen(browser, id)
    press(browser, "1")
    drag(browser, (100, 100), (200, 180))
    near(browser, ("open", 100, 100, 200, 180))
    drag(browser, (150, 140), (170, 150))
    near(browser, ("open", 120, 110, 220, 190))
    drag(browser, (220, 190), (260, 240))
    near(browser, ("open", 120, 110, 260, 240))
    press(browser, Keys.ESCAPE)
    drag(browser, (130, 120), (180, 160))
    near(browser, ("open", 120, 110, 260, 240), ("open", 130, 120, 180, 160))
    press(browser, "2", Keys.DELETE)
    drag(browser, (600, 440), (900, 900))
    near(browser, ("open", 120, 110, 260, 240), ("short", 600, 440, 640, 480))  # it ends where the picture does
    press(browser, Keys.ENTER)
    until(browser, lambda: len(plant.said(id)) == 2)
    detail = plant.edged.client.get(f"/samples/{id}", SampleDetail)
    kept = detail.labels[-1].label.boxes or ()
    assert [(box.label, box.right) for box in kept] == [("open", pytest.approx(260, abs=3)), ("short", 640)]
    assert_quiet(browser)


def test_a_box_is_drawn_in_a_picture_that_is_shown_larger(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    id = plant.board()
    enter(browser, plant, service="board")
    size = "return document.querySelector('#stage img').getBoundingClientRect().width"
    before = browser.execute_script(size)
    press(browser, "k", Keys.DELETE, "f", "1")
    assert browser.execute_script(size) == pytest.approx(3 * before, rel=0.03)
    drag(browser, (280, 220), (330, 260))
    near(browser, ("open", 280, 220, 330, 260))
    press(browser, "f")
    assert browser.execute_script(size) == pytest.approx(before, rel=0.01)
    near(browser, ("open", 280, 220, 330, 260))
    press(browser, Keys.ENTER)
    until(browser, lambda: plant.said(id))
    assert_quiet(browser)


def test_boxes_without_a_mouse(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    id = plant.board()
    enter(browser, plant, service="board")
    press(browser, "b")
    assert boxes(browser)[1][1:] == (240, 180, 400, 300)
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert boxes(browser)[1][1:] == (244, 188, 404, 308)
    ActionChains(browser, 0).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT).key_up(Keys.SHIFT).perform()
    ActionChains(browser, 0).key_down(Keys.CONTROL).send_keys(Keys.ARROW_UP).key_up(Keys.CONTROL).perform()
    assert boxes(browser)[1][1:] == (244, 187, 400, 307)
    press(browser, Keys.ENTER)
    assert plant.said(id) == [], "a box without a class is not kept"
    assert "no class" in text(browser, "told")
    press(browser, "2", "k", Keys.DELETE, Keys.ENTER)
    until(browser, lambda: plant.said(id))
    assert plant.said(id) == [("anna", "short at 244,187")]
    assert_quiet(browser)


def test_a_finger_draws_and_chooses_and_every_target_is_large(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    id = plant.board()
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 412, "height": 915, "deviceScaleFactor": 2, "mobile": True}
    )
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    enter(browser, plant, service="board")
    small = browser.execute_script(
        "return Array.from(document.querySelectorAll('.panel button')).filter(b => b.offsetParent)"
        ".map(b => [b.textContent, b.getBoundingClientRect()]).filter(([t, r]) => r.height < 44 || r.width < 44)"
        ".map(([t]) => t).concat(document.documentElement.scrollWidth > innerWidth ? ['sideways'] : [])"
    )
    assert small == []
    drag(browser, (100, 100), (300, 200), "touch")
    assert boxes(browser)[1][1:] == pytest.approx((100, 100, 300, 200), abs=2)
    browser.find_element(By.XPATH, "//*[@id='labels']//button[contains(., 'open')]").click()
    drag(browser, (304, 204), (340, 240), "touch")
    assert boxes(browser)[1][1:] == pytest.approx((100, 100, 340, 240), abs=3), "a finger need not hit a corner exactly"
    browser.find_element(By.ID, "confirm").click()
    until(browser, lambda: plant.said(id))
    assert "open at" in plant.said(id)[0][1]
    assert_quiet(browser)


def test_a_lost_connection_loses_no_label(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    plant.solder(6)
    enter(browser, plant)
    until(browser, lambda: "6 wait" in text(browser, "count"))
    time.sleep(1.0)  # pictures ahead
    plant.edged.kill()
    order = []
    for _ in range(3):
        seen(browser)
        order.append(shown(browser).split("/")[-2])
        press(browser, "3")
        until(browser, lambda: order[-1] not in shown(browser))
    until(browser, lambda: "3 labels wait" in text(browser, "link"))
    seen(browser)
    press(browser, "z")
    seen(browser, order[2])
    press(browser, "5")
    browser.get("about:blank")  # and the page is closed
    plant.edged = plant.start()
    browser.get(f"http://127.0.0.1:{plant.port}/review")
    until(browser, lambda: plant.said(order[2]))
    assert [plant.said(id) for id in order] == [[("anna", "bridge")], [("anna", "bridge")], [("anna", "cold")]]
    until(browser, lambda: not browser.find_element(By.ID, "link").is_displayed())
    assert browser.execute_script("return localStorage.length") == 0


def test_labels_wait_for_the_login_that_ended(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    plant.solder(3)
    enter(browser, plant)
    first = shown(browser).split("/")[-2]
    browser.delete_all_cookies()
    press(browser, "2")
    until(browser, lambda: "1 label waits" in text(browser, "link") and "Log in" in text(browser, "link"))
    assert plant.said(first) == []
    browser.find_element(By.LINK_TEXT, "Log in").click()
    until(browser, lambda: browser.find_elements(By.NAME, "token"))
    field = browser.find_element(By.NAME, "token")
    field.send_keys(plant.token)
    field.submit()
    until(browser, lambda: plant.said(first) == [("anna", "insufficient")])
    assert not browser.find_element(By.ID, "who").is_displayed(), "who it is was asked once"


def test_two_people_do_not_overwrite_each_other_silently(
    plant: Plant, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    plant.clear()
    plant.solder(2)
    other = start_browser(tmp_path / "two")
    try:
        enter(browser, plant, "anna")
        enter(other, plant, "bert")
        first = shown(browser).split("/")[-2]
        assert first in shown(other)
        press(browser, "3")
        until(browser, lambda: plant.said(first))
        press(other, "4")
        until(other, lambda: "anna said bridge" in text(other, "news"))
        assert "The newest counts: pinhole, by bert" in text(other, "news")
        assert plant.said(first) == [("anna", "bridge"), ("bert", "pinhole")]
        other.find_element(By.XPATH, "//*[@id='news']//button[.='Show it']").click()
        seen(other, first)
        assert "anna said bridge" in text(other, "said")
        press(browser, Keys.ARROW_LEFT)
        until(browser, lambda: "bert said pinhole" in text(browser, "said"))
        seen(browser)
        press(browser, Keys.ARROW_RIGHT)
        seen(browser)
        press(browser, "1")
        press(other, Keys.ARROW_RIGHT)
        until(other, lambda: "anna has labelled this picture in the meantime: normal" in text(other, "told"))
    finally:
        other.quit()


def test_hostile_names_are_text(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    id = plant.solder(1)[0]
    enter(browser, plant, HOSTILE)
    press(browser, "n", HOSTILE, Keys.ENTER)
    until(browser, lambda: plant.said(id))
    assert plant.said(id) == [(HOSTILE, HOSTILE)]
    plant.keep(encode_png(shot("", 99).image), "solder", HOSTILE, HOSTILE, 0.1)
    browser.refresh()
    until(browser, lambda: HOSTILE in text(browser, "facts") and HOSTILE in text(browser, "labels"))
    assert browser.title == "Review · line-3"
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert_quiet(browser)


def test_what_comes_later_appears_and_the_page_ahead_is_loaded(plant: Plant, browser: webdriver.Chrome) -> None:
    plant.clear()
    enter(browser, plant, service="solder", empty=True)
    plant.solder(6)
    until(browser, lambda: "Nothing more" not in text(browser, "stage"), 15)
    seen(browser)
    loaded = "return performance.getEntriesByType('resource').filter(e => e.name.endsWith('/picture')).map(e => e.name)"
    until(browser, lambda: len(browser.execute_script(loaded)) == 4)
    press(browser, Keys.ENTER)
    until(browser, lambda: len(browser.execute_script(loaded)) == 5)
    names = browser.execute_script(loaded)
    assert len(set(names)) == len(names), "no picture is fetched twice"
    assert_quiet(browser)


def boxes(browser: webdriver.Chrome) -> list[tuple[str, int, int, int, int]]:
    """Label and sides of the boxes that are listed."""
    lines = [line.text for line in browser.find_elements(By.CSS_SELECTOR, "#list li button:first-child")]
    found = []
    for line in lines:
        what, where = line.split(" · ")
        left, top, right, bottom = (int(side) for side in where.split(", "))
        found.append((what.partition(" ")[2], left, top, right, bottom))
    return found


def near(browser: webdriver.Chrome, *expected: tuple[str, int, int, int, int]) -> None:
    """The boxes that are listed are these, but for the rounding of a pointer's place."""
    found = boxes(browser)
    assert [box[0] for box in found] == [box[0] for box in expected]
    for one, other in zip(found, expected, strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=3)


def drag(browser: webdriver.Chrome, start: tuple[int, int], end: tuple[int, int], kind: str = "mouse") -> None:
    """From one pixel of the picture to another, which may lie outside."""
    (x1, y1), (x2, y2) = (
        browser.execute_script(
            "const m = document.querySelector('#stage svg').getScreenCTM();"
            "const p = new DOMPoint(arguments[0], arguments[1]).matrixTransform(m); return [p.x, p.y]",
            *point,
        )
        for point in (start, end)
    )
    width, height = browser.execute_script("return [innerWidth - 1, innerHeight - 1]")
    actions = ActionBuilder(browser, PointerInput(kind, "pointer"), duration=20)
    pointer = actions.pointer_action
    pointer.move_to_location(x1, y1).pointer_down()
    pointer.move_to_location((x1 + min(x2, width)) / 2, (y1 + min(y2, height)) / 2)
    pointer.move_to_location(min(x2, width), min(y2, height)).pointer_up()
    actions.perform()
