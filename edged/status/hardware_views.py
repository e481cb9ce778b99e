"""From facts, matches, reports and choices to what people see of the hardware. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edged.governor import Limits
from edged.hardware.adapt import Report
from edged.hardware.matching import Matched
from edged.hardware.settings import Choice, Failure, Measurement, Setting
from edged.hardware.shapes import Facts
from edged.hardware.store import Need
from edged.status.hardware import HardwareState, MeasuredState, ModelHardware, Temperature, TriedState

if TYPE_CHECKING:
    from edged.inventory import Heat

SAFE = "on the CPU in the safe way: the first variant that runs here, one thread a picture"


def device_name(facts: Facts) -> str:
    """Board, product or CPU, for people."""
    product = " ".join(filter(None, (facts.dmi.get("sys_vendor", ""), facts.dmi.get("product_name", ""))))
    return facts.model or product or facts.cpu.name


def device_state(
    facts: Facts, matched: Matched, problems: Sequence[str], limits: Limits, heat: Heat | None
) -> HardwareState:
    """The device without its models."""
    holders = [*([matched.soc] if matched.soc else []), *matched.accels]
    accelerators = [
        profile
        for profile in holders
        if any(spec.provider != "cpu" or spec.runtime not in ("onnxruntime", "litert") for spec in profile.candidate)
    ]
    return HardwareState(
        known=True,
        name=device_name(facts),
        accelerators=[profile.name or profile.id for profile in accelerators],
        profiles=matched.refs,
        untested=[profile.ref for profile in matched.profiles if profile.candidate and profile.status == "untested"],
        explanations=matched.explanations,
        problems=list(problems),
        temperatures=[Temperature(zone=one.zone, celsius=one.celsius) for one in heat.readings] if heat else [],
        soft_c=limits.soft_c,
        hard_c=limits.hard_c,
        throttled=heat.throttled if heat else [],
    )


def model_state(
    report: Report,
    need: Need,
    services: Iterable[str],
    choice: Choice | None,
    failures: Iterable[Failure] = (),
) -> ModelHardware:
    """One model, as far as it is known without a running worker."""
    return ModelHardware(
        model=report.model,
        objective=need.objective,
        services=sorted(services),
        phase="safe" if choice is None else "chosen" if choice.measured else "unmeasured",
        chosen=choice.setting.text() if choice is not None else "",
        reasons=list(choice.reasons) if choice is not None else [],
        accepted=list(report.accepted),
        rejected=[TriedState(candidate=one.candidate, reason=one.reason, remedy=one.remedy) for one in report.rejected],
        failed=[
            TriedState(candidate=one.setting.candidate, reason=f"{one.setting.variant}: {one.reason}")
            for one in failures
        ],
        measurements=measured(choice),
        at=choice.at if choice is not None and choice.at else None,
    )


def measured(choice: Choice | None) -> list[MeasuredState]:
    """The measured settings of a choice, best by its objective first."""
    if choice is None:
        return []
    best = {
        "latency": lambda m: m.p50_ms,
        "throughput": lambda m: -m.throughput,
        "efficiency": lambda m: m.cpu_ms,
    }[choice.objective]
    newest: dict[str, Measurement] = {one.setting_key: one for one in choice.measurements}
    return [
        MeasuredState(
            setting=one.setting.text(),
            candidate=one.setting.candidate,
            p50_ms=one.p50_ms,
            p95_ms=one.p95_ms,
            throughput=one.throughput,
            cpu_ms=one.cpu_ms,
            rss_mb=one.rss_mb,
            chosen=one.setting == choice.setting,
        )
        for one in sorted(newest.values(), key=best)
    ]


def labels(setting: Setting | None) -> dict[str, str]:
    """A setting in use as labels of a metric."""
    if setting is None:
        return {"variant": "", "runtime": "", "provider": "cpu", "threads": "1", "safe": "1"}
    return {
        "variant": setting.variant,
        "runtime": setting.runtime,
        "provider": setting.provider,
        "threads": str(setting.threads),
        "workers": str(setting.workers),
    }
