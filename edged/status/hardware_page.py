"""The status page's card about the hardware: what the device is, how each model runs on it, and why."""

from __future__ import annotations

from edged.status.hardware import HardwareState, ModelHardware
from edgekit.html import age, badge, table, text

_PHASES = {
    "safe": ("on the CPU, the safe way", ""),
    "waiting": ("waits for a quiet moment", ""),
    "measuring": ("is being measured", "warning"),
    "chosen": ("chosen by measurement", "ok"),
    "unmeasured": ("not measured", ""),
}
_ROWS = 8
"""Measured settings shown for one model; `edged doctor` has all."""


def hardware_card(state: HardwareState, now: float) -> str:
    """The whole card."""
    if not state.known:
        return _card('<p class="soft">The hardware has not been looked at yet.</p>')
    return _card(_device(state) + "".join(_model(model, now) for model in state.models))


def _card(body: str) -> str:
    return f'<section class="card" id="hardware"><h2>Hardware</h2>{body}</section>'


def _device(state: HardwareState) -> str:
    lost = [
        f"{badge('lost', 'error')} {text(one.candidate)}: {text(one.reason)}"
        f" ({text(', '.join(one.services))} on the CPU)"
        for one in state.lost
    ]
    temperatures = ", ".join(f"{text(one.zone)} {one.celsius:.0f} °C" for one in state.temperatures[:6])
    slowed = " ".join(text(sentence) for sentence in state.throttled)
    gentler = f"{state.level} step{'s' if state.level != 1 else ''} below the chosen settings because of heat"
    facts = [
        ("device", text(state.name)),
        ("accelerator", "<br>".join([*map(text, state.accelerators), *lost]) or "none: models run on the CPU"),
        ("profiles", text(", ".join(state.profiles)) + (" (untested)" if state.untested else "")),
        ("temperature", temperatures),
        ("throttled", f"{badge('yes', 'warning')} {slowed}" if slowed else "no"),
        ("gentler", f"{badge('hot', 'warning')} {gentler}" if state.level else ""),
        ("adaptation", "off" if state.mode == "never" else text(state.busy)),
    ]
    listing = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts if value)
    return f"<dl>{listing}</dl>"


def _model(model: ModelHardware, now: float) -> str:
    word, kind = _PHASES[model.phase]
    when = f' <span class="soft">{age(now, model.at)}</span>' if model.at is not None else ""
    head = (
        f"<p><code>{text(model.model)}</code> for {text(model.objective)}"
        f' <span class="soft">({text(", ".join(model.services))})</span> {badge(word, kind)}{when}'
        f"<br>{text(model.running)}"
        f'<br><span class="soft">{text(" ".join(model.reasons[:2]) or model.detail)}</span></p>'
    )
    if not model.measurements:
        return head
    rows = [
        [
            text(one.setting) + (" " + badge("chosen", "ok") if one.chosen else ""),
            _ms(one.p50_ms),
            _ms(one.p95_ms),
            f"{one.throughput:.0f}/s",
            _ms(one.cpu_ms),
            f"{one.rss_mb:.0f} MB",
        ]
        for one in model.measurements[:_ROWS]
    ]
    columns = [("setting", False), ("p50", True), ("p95", True), ("rate", True), ("CPU", True), ("memory", True)]
    return head + table(columns, rows, "")


def _ms(value: float) -> str:
    """Two digits that matter: a small model takes hundredths of a millisecond."""
    return f"{value:.1f} ms" if value >= 1 else f"{value:.2g} ms"
