"""The store of choices: valid in exactly its circumstances, whole after anything, never in the way."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.hardware import store as store_module
from edged.hardware.settings import Choice, Failure, Setting
from edged.hardware.store import ChoiceStore, Need, StoreKey

KEY = StoreKey(
    fingerprint="f" * 64,
    kernel="6.1.0",
    runtimes={"onnxruntime/cpu": "1.32.0"},
    profiles=["cpu/x86@1"],
    model="m" * 64,
    power_mode="nvpmodel:0",
    cpus=2,
)
NEED = Need(objective="latency")


def setting(name: str = "a") -> Setting:
    return Setting(candidate=f"test#{name}", variant="model.onnx", provider_options={"b": "1", "a": "2"})


def choice(name: str = "a", at: float = 1.0) -> Choice:
    return Choice(setting=setting(name), objective="latency", reasons=["it is quick"], at=at)


def failure(name: str = "a", at: float = 1.0) -> Failure:
    return Failure(setting=setting(name), kind="crash", reason="SIGSEGV", at=at)


def test_a_choice_is_found_by_another_process_and_for_its_need_only(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    ChoiceStore(path).put(KEY, NEED, choice())
    again = ChoiceStore(path)
    assert again.find(KEY, NEED) == choice()
    assert again.find(KEY, Need(objective="throughput")) is None
    assert again.find(KEY, Need(objective="latency", rate=5.0)) is None
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "g"},
        {"kernel": "6.2.0"},
        {"runtimes": {"onnxruntime/cpu": "1.33.0"}},
        {"profiles": ["cpu/x86@2"]},
        {"model": "n"},
        {"power_mode": "nvpmodel:1"},
        {"cpus": 1},
        {"interpreters": {"onnxruntime/openvino": "/opt/python"}},
    ],
)
def test_any_change_of_circumstances_is_another_entry(tmp_path: Path, change: dict[str, object]) -> None:
    store = ChoiceStore(tmp_path / "choices.json")
    store.put(KEY, NEED, choice())
    store.add_failure(KEY, failure("b"))
    other = msgspec.structs.replace(KEY, **change)
    assert store.find(other, NEED) is None and store.failures(other) == []
    store.put(other, NEED, choice("c"))
    assert store.find(KEY, NEED) == choice(), "and going back costs nothing"


def test_the_order_of_a_table_does_not_matter() -> None:
    one = msgspec.structs.replace(KEY, runtimes={"a": "1", "b": "2"})
    two = msgspec.structs.replace(KEY, runtimes={"b": "2", "a": "1"})
    assert one.digest == two.digest


def test_a_failure_is_remembered_and_takes_the_choice_with_it(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    store = ChoiceStore(path)
    store.put(KEY, NEED, choice())
    store.add_failure(KEY, failure())
    store.add_failure(KEY, failure(at=2.0))
    again = ChoiceStore(path)
    assert again.find(KEY, NEED) is None
    assert again.failures(KEY) == [failure(at=2.0)], "once a setting"
    again.forget_failures(KEY)
    assert ChoiceStore(path).failures(KEY) == []


def test_the_last_choice_for_a_model_is_a_guess_to_begin_with(tmp_path: Path) -> None:
    store = ChoiceStore(tmp_path / "choices.json")
    store.put(KEY, NEED, choice("old", at=1.0))
    store.put(msgspec.structs.replace(KEY, kernel="7"), NEED, choice("new", at=2.0))
    assert store.last(KEY.model, NEED) == choice("new", at=2.0)
    assert store.last("other", NEED) is None
    store.forget(KEY.model)
    assert store.last(KEY.model, NEED) is None and store.find(KEY, NEED) is None


def test_old_entries_and_failures_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_ENTRIES", 3)
    store = ChoiceStore(tmp_path / "choices.json")
    keys = [msgspec.structs.replace(KEY, kernel=str(number)) for number in range(5)]
    for at, key in enumerate(keys):
        store.put(key, NEED, choice(at=float(at)))
    assert [store.find(key, NEED) is not None for key in keys] == [False, False, True, True, True]
    for number in range(100):
        store.add_failure(keys[4], failure(str(number), at=float(number)))
    kept = store.failures(keys[4])
    assert len(kept) == 64 and kept[-1].setting == setting("99")


@given(st.binary(max_size=200) | st.sampled_from([b"[" * 5000, b"{}", b'{"schema":2}', b'{"entries":{"x":{}}}']))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_spoilt_file_is_set_aside(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "choices.json"
    path.write_bytes(data)
    store = ChoiceStore(path)
    assert store.find(KEY, NEED) is None
    store.put(KEY, NEED, choice())
    assert ChoiceStore(path).find(KEY, NEED) == choice()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "choices.json"
    ChoiceStore(path).put(KEY, NEED, choice())
    monkeypatch.setattr(store_module, "MAX_BYTES", 10)
    assert ChoiceStore(path).find(KEY, NEED) is None
    assert path.with_name("choices.json.bad").exists()
