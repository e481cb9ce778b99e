"""The choice rule and the grid: pure, so every case is a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.hardware.candidates import CPU_FLOOR, Candidate
from edged.hardware.choose import HEADROOM, TIE, choose, score
from edged.hardware.facts import Cluster, CpuFacts, Facts
from edged.hardware.gate import Accepted
from edged.hardware.grid import Cpus, default_setting, first_looks, usable_cpus, variations
from edged.hardware.profiles import Artefact
from edged.hardware.settings import Choice, Measurement, Objective, Setting
from edgekit.packages.manifest import Variant


def setting(name: str = "a", **more: object) -> Setting:
    return Setting(candidate=f"test#{name}", variant="model.onnx", **more)  # type: ignore[arg-type]


def measured(what: Setting, p50: float, **more: float) -> Measurement:
    values: dict[str, float] = {"p95_ms": p50 * 1.2, "throughput": 1000 / p50, "cpu_ms": p50, "cpu_share": 1, **more}
    return Measurement(setting=what, p50_ms=p50, rss_mb=90, n=100, **values)  # type: ignore[arg-type]


def names(choice: Choice) -> list[str]:
    return [choice.setting.candidate[5:], *(one.candidate[5:] for one in choice.alternatives)]


def test_the_quickest_wins_and_the_rest_is_ordered_with_the_cpu_last() -> None:
    npu = setting("npu", provider="openvino")
    choice = choose(
        [measured(setting("slow"), 20), measured(setting("quick", threads=2), 9), measured(npu, 3)], "latency", at=7.0
    )
    assert names(choice) == ["npu", "quick", "slow"]
    assert choice.at == 7.0 and choice.measured and "3 ms a picture" in choice.reasons[-1]


def test_about_as_quick_but_cheaper_wins_and_says_why() -> None:
    choice = choose([measured(setting("spin"), 9.7, cpu_ms=20), measured(setting("calm"), 10, cpu_ms=9)], "latency")
    assert names(choice)[0] == "calm"
    assert "as good as the best (9.7 ms a picture) with 9 instead of 20 ms of CPU" in choice.reasons[-1]


def test_latency_gives_away_at_most_five_percent_and_the_others_ten() -> None:
    pair = [measured(setting("best"), 10, cpu_ms=20), measured(setting("frugal"), 10.8, cpu_ms=5)]
    assert names(choose(pair, "latency"))[0] == "best"
    assert names(choose(pair, "throughput"))[0] == "frugal"


def test_equal_cost_prefers_the_cooler_then_the_simpler() -> None:
    hot = measured(setting("hot", provider="openvino"), 10, cpu_ms=5, temperature_slope=6.0)
    cool = measured(setting("cool", provider="openvino", threads=4), 10, cpu_ms=5, temperature_slope=1.0)
    assert names(choose([hot, cool], "latency"))[0] == "cool"
    plain = measured(setting("plain"), 10.1, cpu_ms=5)
    process = measured(setting("process", interpreter="/usr/bin/python3"), 10, cpu_ms=5)
    threads = measured(setting("threads", threads=2), 10, cpu_ms=5)
    assert names(choose([threads, process, plain], "latency"))[0] == "plain"


def test_a_setting_that_keeps_up_beats_a_better_one_that_does_not() -> None:
    quick = measured(setting("quick"), 5, throughput=40.0)
    wide = measured(setting("wide"), 8, throughput=100.0)
    assert names(choose([quick, wide], "latency", rate=60.0))[0] == "wide"
    assert names(choose([quick, wide], "latency", rate=20.0))[0] == "quick"
    assert names(choose([quick, wide], "latency", rate=40.0 / HEADROOM + 1))[0] == "wide", "with headroom"


def test_deadlines_are_for_the_slow_ones_of_a_hundred() -> None:
    jumpy = measured(setting("jumpy"), 5, p95_ms=80.0)
    steady = measured(setting("steady"), 9, p95_ms=10.0)
    assert names(choose([jumpy, steady], "latency", deadline_ms=20.0))[0] == "steady"
    choice = choose([jumpy, steady], "latency", deadline_ms=1.0)
    assert names(choice)[0] == "steady" and "no setting gives an answer within 1 ms" in choice.reasons[0]
    lost = choose([jumpy, measured(setting("wide"), 9, throughput=300.0)], "latency", rate=1000.0)
    assert names(lost)[0] == "wide" and "no setting gives 1000 pictures a second" in lost.reasons[0]


def test_efficiency_takes_the_least_cpu() -> None:
    pair = [measured(setting("quick"), 5, cpu_ms=9), measured(setting("lazy"), 30, cpu_ms=2)]
    assert names(choose(pair, "efficiency"))[0] == "lazy"
    assert names(choose(pair, "efficiency", deadline_ms=20.0))[0] == "quick"


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to choose"):
        choose([], "latency")


_measurement = st.builds(
    lambda number, provider, p50, cpu, throughput, slope: Measurement(
        setting=setting(str(number), provider=provider),
        p50_ms=p50,
        p95_ms=p50 * 1.1,
        throughput=throughput,
        cpu_ms=cpu,
        cpu_share=1.0,
        rss_mb=1.0,
        temperature_slope=slope,
        n=10,
    ),
    st.integers(0, 10_000),
    st.sampled_from(["cpu", "openvino"]),
    st.floats(0.01, 1e4),
    st.floats(0.0, 1e4),
    st.floats(0.0, 1e4),
    st.none() | st.floats(-10, 10),
)


@given(
    st.lists(_measurement, min_size=1, max_size=12, unique_by=lambda m: m.setting.key),
    st.sampled_from(["latency", "throughput", "efficiency"]),
    st.none() | st.floats(0.1, 1e3),
    st.none() | st.floats(0.1, 1e3),
    st.data(),
)
def test_the_choice_is_never_worse_than_it_may_be(
    measurements: list[Measurement],
    objective: Objective,
    rate: float | None,
    deadline: float | None,
    data: st.DataObject,
) -> None:
    default = data.draw(st.sampled_from(measurements))
    choice = choose(measurements, objective, rate=rate, deadline_ms=deadline, default=default.setting)
    chosen = next(m for m in measurements if m.setting == choice.setting)

    def meets(m: Measurement) -> bool:
        return (rate is None or m.throughput >= rate * HEADROOM) and (deadline is None or m.p95_ms <= deadline)

    pool = [m for m in measurements if meets(m)]
    if pool:
        assert meets(chosen)
        assert score(chosen, objective) <= min(score(m, objective) for m in pool) * (1 + TIE[objective]) + 1e-12
        if meets(default) and objective != "efficiency":
            assert score(chosen, objective) <= score(default, objective) * 1.0101, "never worse than the default"
    keys = [choice.setting.key, *(one.key for one in choice.alternatives)]
    assert len(set(keys)) == len(keys)
    if any(not m.setting.accelerated for m in measurements if m.setting != choice.setting):
        assert not choice.alternatives[-1].accelerated


# --- the grid -------------------------------------------------------------------------------------------------------

FLOOR = CPU_FLOOR[0]


def facts(allowed: list[int], quota: float | None = None, clusters: list[Cluster] | None = None) -> Facts:
    return Facts(cpu=CpuFacts(count=8, allowed=allowed, clusters=clusters or []), cpu_quota=quota)


def test_threads_follow_the_allowed_cpus_and_the_quota() -> None:
    assert usable_cpus(facts([0, 1, 2, 3])) == Cpus(4, 4)
    assert usable_cpus(facts([5])) == Cpus(1, 1)
    assert usable_cpus(facts([0, 1, 2, 3], quota=1.5)) == Cpus(1, 1)
    assert usable_cpus(facts([0, 1, 2, 3], quota=0.2)) == Cpus(1, 1)
    assert usable_cpus(Facts()) == Cpus(1, 1), "nothing known"
    rk3588 = [Cluster(cpus=[4, 5, 6, 7], cores=4), Cluster(cpus=[0, 1, 2, 3], cores=4)]
    assert usable_cpus(facts(list(range(8)), clusters=rk3588)) == Cpus(8, 4)
    assert usable_cpus(facts([0, 1, 7], clusters=rk3588)) == Cpus(3, 1)
    assert usable_cpus(facts([0, 1], clusters=rk3588)) == Cpus(2, 2), "no fast core at all is allowed"
    smt = [Cluster(cpus=list(range(8)), cores=4)]
    assert usable_cpus(facts(list(range(8)), clusters=smt)) == Cpus(8, 4), "threads of one core share it"


@pytest.mark.parametrize("cpus", [Cpus(1, 1), Cpus(2, 2), Cpus(4, 4), Cpus(8, 4), Cpus(20, 6), Cpus(128, 64)])
def test_the_grid_stays_small_and_within_the_cpus(cpus: Cpus) -> None:
    base = first_looks([Accepted(candidate=FLOOR, variants=[Variant(file="m.onnx")])], cpus, {})[0][1]
    points = [base, *variations(FLOOR, base, cpus)]
    assert len(points) <= 12 and len({one.key for one in points}) == len(points)
    assert all(1 <= one.threads <= cpus.usable and one.threads * one.workers <= max(cpus) for one in points)
    assert default_setting(base, cpus) in points, "what the runtime does by itself is always compared"
    if cpus.usable == 1:
        assert points == [base] and base.threads == 1 and not base.spinning


def test_litert_has_no_spinning_and_one_interpreter_a_worker() -> None:
    floor = CPU_FLOOR[1]
    accepted = Accepted(candidate=floor, variants=[Variant(file="m.tflite", runtime="litert", precision="int8")])
    base = first_looks([accepted], Cpus(4, 4), {})[0][1]
    assert base.workers == 4 and base.options().contexts == 4 and base.precision == "int8"
    assert not any(one.spinning for one in variations(floor, base, Cpus(4, 4)))
    assert default_setting(base, Cpus(4, 4)) == base


def test_an_accelerator_varies_what_its_profile_says_and_runs_apart() -> None:
    npu = Candidate(
        id="soc/rk3588#rknn",
        runtime="rknnlite",
        provider="npu",
        precision=["int8"],
        artefact=Artefact(format="rknn", targets=["rk3588"]),
        options={"core_mask": "auto"},
        search={"core_mask": ["0", "all"]},
        workers=[1, 3],
        prior=90,
    )
    accepted = [
        Accepted(candidate=npu, variants=[Variant(file="m.rknn", runtime="rknnlite", target="rk3588")]),
        Accepted(candidate=FLOOR, variants=[Variant(file="m.onnx")]),
    ]
    looks = first_looks(accepted, Cpus(8, 4), {})
    assert [one.runtime for _, one in looks] == ["onnxruntime", "rknnlite"], "the CPU gives the reference"
    base = looks[1][1]
    assert base.interpreter and base.threads == 1 and base.provider_options == {"core_mask": "auto"}
    found = {(one.provider_options["core_mask"], one.workers) for one in variations(npu, base, Cpus(8, 4))}
    assert found == {("0", 1), ("0", 3), ("all", 1), ("all", 3)}


def test_an_interpreter_of_its_own_comes_from_the_site() -> None:
    candidate = Candidate(
        id="cpu/x#openvino",
        runtime="onnxruntime",
        provider="openvino",
        precision=["fp32"],
        artefact=Artefact(format="onnx"),
        options={"device_type": "CPU"},
    )
    accepted = Accepted(candidate=candidate, variants=[Variant(file="m.onnx")])
    base = first_looks([accepted], Cpus(4, 4), {("onnxruntime", "openvino"): "/opt/ov/bin/python"})[0][1]
    assert base.interpreter == "/opt/ov/bin/python" and base.workers == 4
    assert {one.threads for one in variations(candidate, base, Cpus(4, 4))} == {2, 4}
