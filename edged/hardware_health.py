"""What the hardware adds to the health list: heat, slow models, lost accelerators, profiles that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from edged.governor import Governor
from edged.health import Health
from edged.inventory import Heat
from edged.load import SLOW
from edged.lost import Lost

_COOLING = "Look at the cooling and the power supply."


class HardwareHealth:
    """Raises and clears the items `hardware.*`."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._why = ""

    def heat(self, governor: Governor, heat: Heat | None, order_reason: str) -> None:
        """After each reading; `order_reason` is the reason of a new level, "" without one."""
        self._why = order_reason or self._why
        if governor.level:
            steps = f"{governor.level} step{'s' if governor.level > 1 else ''}"
            text = f"Models run {steps} more gently than chosen: {self._why}. {_COOLING}"
            self._health.report("hardware.hot", "warning", text)
        elif governor.lasting and heat is not None:
            why = " ".join(heat.throttled) or f"{heat.celsius or 0.0:.0f} °C."
            text = f"The device is hot, and models run as gently as they can already. {why} {_COOLING}"
            self._health.report("hardware.hot", "warning", text)
        else:
            self._health.clear("hardware.hot", "The device is cool again; models run as chosen.")

    def slow(self, services: Iterable[str]) -> None:
        """Services whose models are slower than measured, and heat does not explain it."""
        names = ", ".join(sorted(services))
        if names:
            text = f"The models of {names} take over {SLOW:.0f} times as long as measured on this device."
            self._health.report("hardware.slow", "warning", f"{text} They are measured again in a quiet moment.")
        else:
            self._health.clear("hardware.slow", "Models are as quick as measured again.")

    def lost(self, entries: Sequence[Lost], users: Callable[[str], Sequence[str]]) -> None:
        """Accelerators that do not work; `users` gives the services of a model."""
        if not entries:
            self._health.clear("hardware.lost", "Every accelerator in use works again.")
            return
        what = "; ".join(
            f"{one.candidate} for {', '.join(users(one.ref)) or one.ref}: {one.reason.rstrip('.')}" for one in entries
        )
        text = f"An accelerator does not work, so models run on the CPU: {what}."
        self._health.report("hardware.lost", "error", f"{text} It is tried again by itself; see edged doctor.")

    def problems(self, sentences: Sequence[str]) -> None:
        """Profiles that cannot be used."""
        if sentences:
            text = f"A hardware profile is left out: {sentences[0]}."
            self._health.report("hardware.profiles", "warning", text)
        else:
            self._health.clear("hardware.profiles")

    def note_chosen(self, text: str) -> None:
        """A new choice is put into use."""
        self._health.note("ok", "hardware.chosen", text)

    def note_failed(self, text: str) -> None:
        """Something could not be measured or used."""
        self._health.note("warning", "hardware.failed", text)
