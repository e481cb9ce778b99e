"""The review page over real HTTP with a real sample store: who may see pictures, who may label, what two people get."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from test_status_server import FORM, TOKEN, Backend, Page, start

from edged.config import Address
from edged.samples.bodies import AddHeader
from edged.samples.records import Label, LabelRecord, NewSample, Opinion, ScoredBox
from edged.status import review_page
from edged.status.review import COUNTED, LabelKept, LabelSaid, Review, ReviewSample, ReviewService, classes_of
from edgekit.datasets.dataset import LabelledBox
from edgekit.services import parse_service
from edgekit.vision.images import encode_jpeg, encode_png
from edgekit.webguard import security_headers

BEARER = {"Authorization": f"Bearer {TOKEN}"}
HOSTILE = "</script><img src=x onerror=alert(1)>"


def drawn(number: int, side: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(number).integers(0, 255, (side, side), dtype=np.uint8)


def facts(number: int, service: str = "solder", edge: str = "good", cloud: str = "bridge") -> NewSample:
    boxes = (ScoredBox(label=edge, score=0.6, left=2, top=2, right=9, bottom=9),) if service == "board" else None
    return NewSample(
        service=service,
        source="disputed",
        captured_at=1_700_000_000.0 + number,
        edge=Opinion(label=edge, score=0.6, margin=0.1, model="small@1", boxes=boxes),
        cloud=Opinion(label=cloud, score=0.9, margin=0.8, model="large@1"),
    )


class Site(NamedTuple):
    page: Page
    backend: Backend

    async def keep(self, number: int, service: str = "solder", picture: bytes = b"") -> str:
        header = AddHeader(new=facts(number, service))
        return (await self.backend.samples.add(header, picture or encode_png(drawn(number)))).id

    async def say(self, id: str, label: Label, author: str, seen: int = 0) -> LabelKept:
        body = msgspec.json.encode(LabelSaid(label=label, author=author, seen=seen)).decode()
        status, _, text = await self.page.ask("POST", f"/api/samples/{id}/label", body, **BEARER)
        assert status == 200, text
        return msgspec.json.decode(text, type=LabelKept)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    (tmp_path / "state").mkdir()
    backend = Backend(tmp_path / "state")
    page, runner = await start(backend)
    yield Site(page, backend)
    await runner.cleanup()
    await backend.samples.close()


def bridge() -> Label:
    return Label(label="bridge")


async def test_pictures_and_labels_are_shown_to_nobody_without_the_token_not_even_on_loopback(site: Site) -> None:
    id = await site.keep(1)
    for path in ("/review/services.json", "/review/queue.json?service=solder", f"/review/samples/{id}.json"):
        status, _, text = await site.page.ask("GET", path)
        assert status == 401 and "bridge" not in text and id not in text
        assert (await site.page.ask("GET", path, **BEARER))[0] == 200
    path = f"/review/samples/{id}/picture"
    assert (await site.page.ask("GET", path))[0] == 401
    assert (await site.page.ask("GET", path, Authorization="Bearer wrong"))[0] == 401
    assert (await site.page.ask("GET", path, host="evil.example", **BEARER))[0] == 403
    assert (await site.page.ask("GET", "/"))[0] == 200, "the status page is open on loopback as before"


@pytest.mark.parametrize(("encode", "kind"), [(encode_png, "image/png"), (encode_jpeg, "image/jpeg")])
async def test_a_picture_is_served_as_what_it_is_and_kept_nowhere(site: Site, encode: Any, kind: str) -> None:
    id = await site.keep(1, picture=encode(drawn(1)))
    status, headers, _ = await site.page.ask("GET", f"/review/samples/{id}/picture", **BEARER)
    assert (status, headers["content-type"]) == (200, kind)
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"


async def test_a_login_leads_back_to_the_review_page_and_to_no_other(site: Site) -> None:
    status, _, html = await site.page.ask("GET", "/review")
    assert status == 401 and 'name="next" value="/review"' in html
    for wanted, leads in (("/review", "/review"), ("//evil.example", "/"), ("/metrics", "/"), ("", "/")):
        status, headers, _ = await site.page.ask("POST", "/login", f"token={TOKEN}&next={wanted}", **FORM)
        assert (status, headers["location"]) == (303, leads)
    session = {"Cookie": headers["set-cookie"].partition(";")[0]}
    status, headers, html = await site.page.ask("GET", "/review", **session)
    assert status == 200 and "<script>alert(1)" not in html, "the device's name is hostile"
    assert (
        headers["content-security-policy"]
        == security_headers(review_page.STYLES, review_page.SCRIPTS)["Content-Security-Policy"]
    )


async def test_nobody_labels_from_elsewhere(site: Site) -> None:
    id = await site.keep(1)
    body = '{"label":{"label":"bridge"},"author":"anna"}'
    path = f"/api/samples/{id}/label"
    assert (await site.page.ask("POST", path, body))[0] == 401
    _, headers, _ = await site.page.ask("POST", "/login", f"token={TOKEN}", **FORM)
    session = {"Cookie": headers["set-cookie"].partition(";")[0]}
    for origin in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert (await site.page.ask("POST", path, body, **session, **origin))[0] == 403
    own = f"http://127.0.0.1:{site.page.address.port}"
    assert (await site.page.ask("POST", path, body, Origin=own, **session))[0] == 200


async def test_a_label_has_author_and_time_and_the_sample_leaves_the_queue(site: Site) -> None:
    first, second = await site.keep(1), await site.keep(2)
    kept = await site.say(first, bridge(), "anna")
    assert [(one.author, one.kind, str(one.label)) for one in kept.said] == [("anna", "operator", "bridge")]
    assert kept.said[0].at > 1.7e9 and kept.others == []
    _, _, text = await site.page.ask("GET", "/review/queue.json?service=solder", **BEARER)
    assert [one["id"] for one in json.loads(text)] == [second]


async def test_a_label_that_is_sent_again_because_its_reply_was_lost_is_kept_once(site: Site) -> None:
    id = await site.keep(1)
    await site.say(id, bridge(), "anna")
    assert len((await site.say(id, bridge(), "anna")).said) == 1
    await site.say(id, Label(label="good"), "bert", seen=1)
    late = await site.say(id, bridge(), "anna")
    assert [one.author for one in late.said] == ["anna", "bert"], "what was repeated overrules nobody"
    assert [one.author for one in late.others] == ["bert"]
    again = await site.say(id, bridge(), "anna", seen=2)
    assert [str(one.label) for one in again.said] == ["bridge", "good", "bridge"], "but a second thought counts"


async def test_two_people_at_once_both_are_in_the_history_and_the_later_is_told(site: Site) -> None:
    id = await site.keep(1)
    assert (await site.say(id, bridge(), "anna")).others == []
    later = await site.say(id, Label(label="good"), "bert")
    assert [(one.author, str(one.label)) for one in later.others] == [("anna", "bridge")]
    _, _, text = await site.page.ask("GET", f"/review/samples/{id}.json", **BEARER)
    shown = msgspec.json.decode(text, type=ReviewSample)
    assert shown.sample.label is not None and shown.sample.label.author == "bert"
    assert [one.author for one in shown.said] == ["anna", "bert"]


async def test_boxes_of_a_large_label_pass_and_nonsense_is_refused_with_a_reason(site: Site) -> None:
    id = await site.keep(1, "board")
    many = tuple(LabelledBox("open", 1, 1, 9.5, 9.5) for _ in range(5000))
    assert len((await site.say(id, Label(boxes=many), "anna")).said) == 1
    assert str((await site.say(id, Label(boxes=()), "anna", 1)).said[-1].label) == "nothing there"
    for body, status, why in (
        ('{"label":{"label":"x"}}', 400, "author"),
        ('{"label":{"label":"x"},"author":""}', 400, "author"),
        ('{"label":{},"author":"a"}', 400, "one of three"),
        ('{"label":{"boxes":[["x",1,1,900,9]]},"author":"a"}', 400, "cannot be read"),
        ('{"label":{"boxes":[{"label":"x","left":1,"top":1,"right":900,"bottom":9}]},"author":"a"}', 400, "outside"),
        ('{"label":{"label":"x"},"author":"a\\u0000"}', 400, "printable"),
        ('{"label":{"label":"' + "x" * 200 + '"},"author":"a"}', 400, "128"),
        ("{" * 100_000, 400, "cannot be read"),
        ("x" * (2 << 20) + "x", 413, "2 MiB"),
    ):
        got, _, text = await site.page.ask("POST", f"/api/samples/{id}/label", body, **BEARER)
        assert got == status and why in json.loads(text)["error"], text
    for absent in ("0" * 64, "zz", "../../x"):
        got, _, _ = await site.page.ask("POST", f"/api/samples/{absent}/label", '{"label":{"label":"x"},"author":"a"}',
                                        **BEARER)  # fmt: skip
        assert got == 404


async def test_services_have_the_classes_of_their_model_and_those_that_people_made(site: Site) -> None:
    id = await site.keep(1)
    await site.keep(2)
    await site.say(id, Label(label=HOSTILE), "anna")
    _, headers, text = await site.page.ask("GET", "/review/services.json", **BEARER)
    assert headers["content-type"] == "application/json"
    board, solder = msgspec.json.decode(text, type=list[ReviewService])
    assert (board.name, board.task, board.labels, board.waiting) == ("board", "detection", ["open"], 0)
    assert (solder.task, solder.labels, solder.waiting) == ("classification", ["good", "bridge", HOSTILE], 1)
    assert (await site.page.ask("GET", "/review/queue.json?service=solder&limit=x", **BEARER))[0] == 400


async def test_the_status_page_says_how_many_wait_and_the_metrics_count_them(site: Site) -> None:
    _, _, html = await site.page.ask("GET", "/")
    assert "/review" not in html, "nothing to do, nothing to say"
    await site.keep(1)
    id = await site.keep(2)
    await site.say(id, bridge(), "anna")
    _, _, html = await site.page.ask("GET", "/")
    assert '1 sample waits for a label. <a href="/review">Review</a>' in html
    _, _, text = await site.page.ask("GET", "/metrics")
    assert "edged_samples_items 2\n" in text and "edged_samples_labelled 1\n" in text


async def test_a_store_that_cannot_be_opened_takes_neither_page_nor_metrics_with_it(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "index.db").mkdir()
    backend = Backend(tmp_path)
    page, runner = await start(backend)
    try:
        assert (await page.ask("GET", "/"))[0] == 200
        status, _, text = await page.ask("GET", "/metrics")
        assert status == 200 and "edged_samples" not in text and "edged_decisions_total" in text
        assert (await page.ask("GET", "/review/services.json", **BEARER))[0] == 503
    finally:
        await runner.cleanup()
        await backend.samples.close()


async def test_the_number_of_waiting_samples_is_counted_rarely_but_falls_with_a_label(tmp_path: Path) -> None:
    backend, now = Backend(tmp_path), [0.0]
    review = Review(backend.samples, backend.classes, lambda: now[0])
    ids = [
        (await backend.samples.add(AddHeader(new=facts(number)), encode_png(drawn(number)))).id for number in range(2)
    ]
    assert await review.waiting(["solder"]) == 2
    await backend.samples.add(AddHeader(new=facts(3)), encode_png(drawn(3)))
    assert await review.waiting(["solder"]) == 2
    now[0] = 31.0
    assert await review.waiting(["solder"]) == 3
    await review.label(ids[0], LabelSaid(label=bridge(), author="anna"))
    assert await review.waiting(["solder"]) == 2 < COUNTED
    await backend.samples.close()


async def test_labels_of_imports_and_of_the_cloud_are_nobody_s_word(site: Site) -> None:
    record = LabelRecord(label=bridge(), kind="import", author="labels.csv", at=1.0)
    header = AddHeader(new=facts(1), label=record)
    id = (await site.backend.samples.add(header, encode_png(drawn(1)))).id
    _, _, text = await site.page.ask("GET", f"/review/samples/{id}.json", **BEARER)
    shown = msgspec.json.decode(text, type=ReviewSample)
    assert shown.said == [] and shown.sample.label == record


async def test_away_from_loopback_the_login_page_comes_first(tmp_path: Path) -> None:
    page, runner = await start(Backend(tmp_path), Address("0.0.0.0", 8701))
    try:
        status, _, html = await page.ask("GET", "/review")
        assert status == 401 and "<form" in html and "Review" not in html
    finally:
        await runner.cleanup()


def test_a_package_that_is_not_there_has_no_labels(tmp_path: Path) -> None:
    assert classes_of(None, None).labels == [] and classes_of(None, tmp_path).labels == []
    small = Path(__file__).resolve().parents[2] / "examples" / "models" / "solder-small"
    assert "bridge" in classes_of(None, small).labels


def test_the_scripts_cannot_end_their_element_and_make_no_html(tmp_path: Path) -> None:
    for script in review_page.SCRIPTS:
        assert "</" not in script
        for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
            assert way not in script


@pytest.mark.parametrize(
    ("aggregate", "learns", "task"),
    [("worst", True, "detection"), ("worst", False, "classification"), ("mean", True, "classification")],
)
def test_boxes_are_drawn_where_tiles_learn_from_them(aggregate: str, learns: bool, task: str) -> None:
    worst = 'worst = ["bad", "good"]\n' if aggregate == "worst" else ""
    tiles = f'[pipeline.tiles]\nwidth = 64\nheight = 64\naggregate = "{aggregate}"\n{worst}'
    text = f'name = "boards"\nmodel = "tiles"\n{tiles}'
    service = parse_service(text + ("[samples]\n[learning]\n" if learns else ""), "this test")
    assert classes_of(service, None).task == task
