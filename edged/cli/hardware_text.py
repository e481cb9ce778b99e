"""The Hardware section of `edged doctor`: facts, matched profiles, rejected candidates, measurements, choice."""

from __future__ import annotations

from collections.abc import Iterator

from edged.cli.output import clean, size
from edged.hardware.shapes import Facts
from edged.status.hardware import HardwareReport, HardwareState, ModelHardware

_PHASES = {
    "safe": "not measured yet; runs in the safe way, on the CPU",
    "waiting": "will be measured in a quiet moment",
    "measuring": "is being measured",
    "chosen": "chosen by measurement",
    "unmeasured": "not measured",
}


def lines(report: HardwareReport) -> Iterator[str]:
    """The whole section, line by line, without control characters."""
    for line in _lines(report):
        yield clean(line)


def _lines(report: HardwareReport) -> Iterator[str]:
    state = report.state
    yield "Hardware"
    yield from _facts(report.facts, state)
    for explanation in state.explanations:
        yield f"  profile   {explanation}"
    for ref in state.untested:
        yield f"  untested  {ref}: nobody has measured this profile; edged measures what it proposes before it uses it"
    for problem in state.problems:
        yield f"  PROBLEM   {problem}"
    if state.temperatures:
        readings = ", ".join(f"{one.zone} {one.celsius:.0f} °C" for one in state.temperatures)
        yield f"  heat      {readings}; gentler from {state.soft_c:.0f} °C"
    for sentence in state.throttled:
        yield f"  THROTTLED {sentence}"
    if state.level:
        yield f"  HOT       models run {state.level} step{'s' if state.level > 1 else ''} more gently than chosen"
    for lost in state.lost:
        yield f"  LOST      {lost.candidate}: {lost.reason}; {', '.join(lost.services)} on the CPU"
    for model in state.models:
        yield from _model(model)
    if not state.models:
        yield "  no service runs a model yet, so there is nothing to choose"
    elif state.mode == "never":
        yield "  adaptation is switched off (adapt.mode); measure by hand with: edged adapt"


def _facts(facts: Facts, state: HardwareState) -> Iterator[str]:
    cpu = facts.cpu
    limited = f", {len(cpu.allowed)} of them allowed" if 0 < len(cpu.allowed) < cpu.count else ""
    quota = f", {facts.cpu_quota:g} CPUs' time" if facts.cpu_quota is not None else ""
    clusters = "+".join(str(len(cluster.cpus)) for cluster in cpu.clusters)
    kinds = f" ({clusters})" if len(cpu.clusters) > 1 else ""
    yield f"  device    {state.name or 'unknown'} ({facts.architecture}, Linux {facts.kernel})"
    yield f"  CPU       {cpu.name or 'unknown'}: {cpu.count} CPUs{kinds}{limited}{quota}; {size(facts.memory)} memory"
    if facts.power_mode or facts.governor:
        yield f"  power     {', '.join(filter(None, (facts.power_mode, facts.governor, facts.power)))}"
    for node in facts.nodes:
        note = "" if node.openable else f": edged may not open it (group {node.group})"
        yield f"  node      {node.path}{f' ({node.driver})' if node.driver else ''}{note}"


def _model(model: ModelHardware) -> Iterator[str]:
    yield ""
    yield f"  {model.model} for {model.objective} ({', '.join(model.services)}): {_PHASES[model.phase]}"
    if model.detail:
        yield f"    {model.detail}"
    for tried in model.rejected:
        yield f"    rejected  {tried.candidate}: {tried.reason}"
        if tried.remedy:
            yield f"              -> {tried.remedy}"
    for tried in model.failed:
        yield f"    failed    {tried.candidate}: {tried.reason}"
    if model.measurements:
        yield f"    {'p50 ms':>8} {'p95 ms':>8} {'per s':>7} {'CPU ms':>7} {'MB':>5}  setting"
    for one in model.measurements:
        numbers = f"{one.p50_ms:8.2f} {one.p95_ms:8.2f} {one.throughput:7.0f} {one.cpu_ms:7.2f} {one.rss_mb:5.0f}"
        yield f"    {numbers}  {one.setting}{'  <- chosen' if one.chosen else ''}"
    for reason in model.reasons:
        yield f"    because   {reason}"
    if model.running:
        yield f"    running   {model.running}"
