"""Each check finds its fault, says what to do, and is silent when all is well."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import msgspec
import pytest
from support.models import make_package
from test_status_server import example_state

from edged.api import Finding
from edged.collab.sealing import Kek
from edged.learning.bodies import LearningState, Stock
from edged.status import doctor
from edged.status.doctor import Check, Examination, Outcome, examine, worst
from edged.status.state import Addresses, CloudState, HealthItem, Machine, StatusState, WorkerState
from edgekit import packages
from edgekit.identity import Authority, IdentityStore, make_csr
from edgekit.messages import ServiceReport, SpoolReport

NOW = time.time()
changed = msgspec.structs.replace


def find(findings: list[Finding], identity: str) -> Finding:
    return next(finding for finding in findings if finding.id == identity)


def look(directory: Path, identity: str, status: StatusState | None = None, now: float = NOW) -> Finding:
    checks = tuple(check for check in doctor.CHECKS if check.id == identity)
    return find(examine(Examination(state_dir=directory, status=status, now=now), checks), identity)


def assert_fault(finding: Finding, level: str, *words: str) -> None:
    assert finding.level == level, finding
    assert finding.remedy
    for word in words:
        assert word in finding.text + finding.remedy, finding


def test_check_ids_are_unique_and_every_finding_of_a_fault_has_a_remedy(tmp_path: Path) -> None:
    ids = [check.id for check in doctor.CHECKS]
    assert len(ids) == len(set(ids))
    for finding in examine(Examination(state_dir=tmp_path)):
        assert (finding.level == "ok") == (finding.remedy == "")
    assert worst(examine(Examination(state_dir=tmp_path))) == "error", "no daemon answers"


def test_a_broken_check_does_not_hide_the_others(tmp_path: Path) -> None:
    def breaks(_: Examination) -> Outcome:
        raise ZeroDivisionError("oops")

    checks = (Check("a", "A", "warning", breaks), Check("b", "B", "error", lambda _: Outcome("fine")))
    findings = examine(Examination(state_dir=tmp_path), checks)
    assert [(finding.id, finding.level) for finding in findings] == [("a", "warning"), ("b", "ok")]
    assert "ZeroDivisionError: oops" in findings[0].text


def test_identity(tmp_path: Path) -> None:
    assert_fault(look(tmp_path, "identity"), "warning", "no device key")
    store = IdentityStore(tmp_path / "identity")
    assert look(tmp_path, "identity").level == "ok"
    authority = Authority.create("test", NOW)
    certificate, _ = authority.sign_csr(make_csr(store.key), NOW)
    store.install(certificate, authority.certificate_pem)
    assert "30 days" in look(tmp_path, "identity", now=NOW + 3600).text
    assert_fault(look(tmp_path, "identity", now=NOW + 27 * 86_400), "warning", "3.0 days", "cloud")
    assert_fault(look(tmp_path, "identity", now=NOW + 40 * 86_400), "error", "has ended")
    (tmp_path / "identity" / "device-key.pem").chmod(0o644)
    assert_fault(look(tmp_path, "identity"), "error", "0644", "chmod go-rwx")


def test_key_says_where_it_comes_from_and_what_it_protects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert "not here yet" in look(tmp_path, "key").text
    file = tmp_path / "keys" / "kek"
    Kek.open(file)
    finding = look(tmp_path, "key")
    assert finding.level == "ok" and "beside the data" in finding.text and "not a stolen disk" in finding.text
    file.chmod(0o640)
    assert_fault(look(tmp_path, "key"), "error", "0640", "chmod go-rwx")
    file.chmod(0o600)
    file.write_bytes(b"short")
    assert_fault(look(tmp_path, "key"), "error", "32 bytes", "backup")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    (credentials / "kek").write_bytes(bytes(32))
    finding = look(tmp_path, "key")
    assert finding.level == "ok" and "systemd credential" in finding.text and f"{file} is not used" in finding.text
    (credentials / "kek").write_bytes(bytes(31))
    assert_fault(look(tmp_path, "key"), "error", "credential", "docs/operations.md")
    item = HealthItem(code="spool.wrong-key", severity="error", text="does not open 3 waiting samples", since=NOW)
    status = changed(example_state(), health=changed(example_state().health, items=[item]))
    assert_fault(look(tmp_path, "key", status), "error", "3 waiting samples", "edged spool purge")


def test_clock(tmp_path: Path) -> None:
    assert look(tmp_path, "clock").level == "ok"
    assert_fault(look(tmp_path, "clock", now=86_400.0), "error", "1970-01-02", "NTP")
    item = HealthItem(code="clock", severity="warning", text="the clocks differ by 400 seconds", since=NOW)
    status = changed(example_state(), health=changed(example_state().health, items=[item]))
    assert_fault(look(tmp_path, "clock", status), "warning", "400 seconds")


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_fault(look(tmp_path / "absent", "disk"), "warning", "does not exist")
    monkeypatch.setattr(doctor, "DISK_WARNING", 1)
    assert look(tmp_path, "disk").level == "ok"
    monkeypatch.setattr(doctor, "DISK_WARNING", 1 << 60)
    assert_fault(look(tmp_path, "disk"), "warning", "spool.quota_mb")


def test_spool(tmp_path: Path) -> None:
    fine = changed(example_state(), spool=SpoolReport(items=1, bytes=1, quota=100, oldest_at=NOW - 60))
    assert look(tmp_path, "spool", fine).level == "ok"
    full = changed(fine, spool=SpoolReport(items=1, bytes=90, quota=100))
    assert_fault(look(tmp_path, "spool", full), "warning", "nearly full")
    old = changed(fine, spool=SpoolReport(items=1, bytes=1, quota=100, oldest_at=NOW - 9 * 86_400))
    assert_fault(look(tmp_path, "spool", old), "warning", "9 days")


def test_sockets(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = f"127.0.0.1:{listener.getsockname()[1]}"
        anywhere = f"0.0.0.0:{listener.getsockname()[1]}"
        status = changed(example_state(), addresses=Addresses(inference=here, page=anywhere))
        assert look(tmp_path, "sockets", status).level == "ok"
    assert_fault(look(tmp_path, "sockets", status), "error", "inference port", here)


def test_worker_and_memory(tmp_path: Path) -> None:
    assert_fault(look(tmp_path, "worker", example_state()), "warning", "2 times")
    waiting = changed(example_state(), worker=WorkerState(state="waiting"))
    assert_fault(look(tmp_path, "worker", waiting), "error", "nothing is inspected")
    short = changed(example_state(), machine=Machine(memory_total=100 << 20, memory_available=5 << 20))
    assert_fault(look(tmp_path, "memory", short), "warning", "5 of 100 MB")


def test_models(tmp_path: Path) -> None:
    assert_fault(look(tmp_path, "models"), "warning", "edged models add")
    package = packages.install(make_package(tmp_path / "source").root, tmp_path / "models")
    assert look(tmp_path, "models").level == "ok"
    (package.root / "labels.txt").write_text("dork\nbright\n")
    assert_fault(look(tmp_path, "models"), "error", "brightness@1", "labels.txt")


def test_services(tmp_path: Path) -> None:
    status = example_state()
    assert look(tmp_path, "services", status).level == "ok"
    service = status.services[0]
    failed = changed(service, report=ServiceReport(name="solder", model="m", state="failed", detail="no such file"))
    assert_fault(look(tmp_path, "services", changed(status, services=[failed])), "error", "no such file")
    refused = changed(service, refused="the label differs", last_good=True)
    assert_fault(look(tmp_path, "services", changed(status, services=[refused])), "warning", "last good one")
    assert_fault(look(tmp_path, "services", changed(status, services=[])), "warning", "edged services add")


def test_cloud(tmp_path: Path) -> None:
    status = example_state()
    assert look(tmp_path, "cloud", status).level == "ok"
    down = changed(status, cloud=CloudState(joined=True, url="https://c:1", detail="it does not answer"))
    assert_fault(look(tmp_path, "cloud", down), "warning", "it does not answer", "local work goes on")
    item = HealthItem(code="link.refused", severity="error", text="revoked; `cloudd devices restore`", since=NOW)
    refused = changed(down, health=changed(status.health, items=[item]))
    assert_fault(look(tmp_path, "cloud", refused), "warning", "cloudd devices restore", "do there what it says")
    alone = changed(status, cloud=CloudState())
    assert_fault(look(tmp_path, "cloud", alone), "warning", "edged join TOKEN")
    assert look(tmp_path, "cloud", changed(alone, services=[])).level == "ok", "working alone is no fault"


def test_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(tmp_path, "libraries").level == "ok"
    monkeypatch.setattr(doctor, "_LIBRARIES", {"no_such_library_at_all": "tests"})
    assert_fault(look(tmp_path, "libraries"), "error", "no_such_library_at_all (tests)", "pip install")


def learns(**changes: object) -> StatusState:
    """A service that can learn but for what is changed."""
    one = LearningState(
        service="solder", start="automatic", stage="waiting", sentence="Nothing asks.", base="brightness@1",
        keep="asked", stock=Stock(kept=4000, labelled=1900, known=1850), wanted=1700,
    )  # fmt: skip
    return changed(example_state(), learning=[changed(one, **changes)])


def test_learning_is_no_finding_where_nothing_learns_and_fine_where_all_is_there(tmp_path: Path) -> None:
    alone = doctor.examine(
        Examination(state_dir=tmp_path, status=example_state()),
        tuple(check for check in doctor.CHECKS if check.id == "learning"),
    )
    assert alone == []
    packages.install(make_package(tmp_path / "source").root, tmp_path / "models")
    assert look(tmp_path, "learning", learns()).text == "nothing keeps solder from learning"
    assert look(tmp_path, "learning", learns(stock=None)).level == "ok", "not counted yet"
    only_recalibrates = learns(wanted=0, stock=Stock(), keep="none", never="no way")
    assert look(tmp_path, "learning", only_recalibrates).level == "ok"


def test_a_service_without_pictures_or_labels_is_told_how_to_get_them(tmp_path: Path) -> None:
    nothing = learns(stock=Stock(), keep="none")
    assert_fault(look(tmp_path, "learning", nothing), "warning", 'samples.keep is "none"', "about 1,700", "[samples]",
                 "edged samples import DIR_OR_FILE --service solder")  # fmt: skip
    assert look(tmp_path, "learning", learns(keep="none")).level == "ok", "what was imported is enough"
    unlabelled = learns(stock=Stock(kept=2500))
    assert_fault(look(tmp_path, "learning", unlabelled), "warning", "none of its 2,500 pictures", "/review")


def test_too_few_labels_to_judge_are_counted_against_what_is_needed(tmp_path: Path) -> None:
    few = look(tmp_path, "learning", learns(stock=Stock(kept=2000, labelled=900, known=412)))
    assert_fault(few, "warning", "412 of its 2,000 pictures", "about 1,700", "samples import", "learning.judging.items")
    assert "keep more" not in few.remedy, "enough is kept, it has to be labelled"
    fewer = look(tmp_path, "learning", learns(stock=Stock(kept=500, labelled=412, known=412)))
    assert_fault(fewer, "warning", 'keep = "all"')


def test_a_model_that_no_job_can_change_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_fault(look(tmp_path, "learning", learns(never="it cuts pictures into tiles")), "warning", "tiles", "export")
    path = packages.install(make_package(tmp_path / "source").root, tmp_path / "models").root
    manifest = path / "package.toml"
    text = manifest.read_text()
    manifest.write_text(text.replace('"fp32"', '"int8"') if '"fp32"' in text else text.replace(
        'runtime = "onnxruntime"', 'runtime = "onnxruntime"\nprecision = "int8"'))  # fmt: skip
    assert_fault(look(tmp_path, "learning", learns()), "warning", "brightness@1 has no fp32 file", "models add")
    assert look(tmp_path, "learning", learns(base="other@1")).level == "ok", "another check names a missing model"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_fault(look(tmp_path, "learning", learns()), "warning", "onnx is not installed", "edged-cloudd[train]")
