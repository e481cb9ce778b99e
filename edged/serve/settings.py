"""How the worker runs each service's model: the supervisor's settings applied, and what to do when one does not work.

Without a setting, and whenever one fails, a model runs in the safe way: the first variant that any machine can run, on
the CPU, with one thread a run. A failure is told to the supervisor, which chooses anew; nobody waits for that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from edged.hardware.settings import Setting
from edged.serve.inspecting import Vision, load_vision
from edgekit.messages import RunSetting, SettingFailed, TroubleKind
from edgekit.packages import Package, PackageError
from edgekit.runtimes import ModelError

LOAD_S = 90.0
"""An accelerator's compiler may need most of a minute; a load that takes longer is taken for hung."""
CACHE = Path("cache", "runtimes")
"""Below the state directory: what providers compile for this device."""

Failed = Callable[[SettingFailed], None]


class Unusable(Exception):
    """A setting cannot be used; `kind` and the sentence are for SettingFailed."""

    def __init__(self, kind: TroubleKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def applied(settings: Mapping[str, RunSetting]) -> dict[str, Setting]:
    """The supervisor's settings as the drivers' room knows them."""
    return {name: msgspec.convert(setting, Setting, from_attributes=True) for name, setting in settings.items()}


def sent(setting: Setting) -> RunSetting:
    """The other way round."""
    return msgspec.convert(setting, RunSetting, from_attributes=True)


def engine_threads(configured: int, settings: Mapping[str, Setting], services: int) -> int:
    """Model threads of the worker: as configured, else enough for every service's runs at once, within reason.

    More than the CPUs only if one accelerator wants that many runs at a time.
    """
    if configured:
        return configured
    cpus = len(os.sched_getaffinity(0))
    if len(settings) < services or not settings:
        return max(cpus, *(setting.workers for setting in settings.values()), 1)
    workers = [setting.workers for setting in settings.values()]
    return max(max(workers), min(sum(workers), cpus))


def load(package: Package, setting: Setting | None, state_dir: Path) -> Vision:
    """Load and prove, in the safe way without a setting. Raises Unusable for a setting, ModelError without one."""
    if setting is None:
        vision = load_vision(package)
        vision.prove()
        return vision
    if not setting.accelerated:
        return _with(package, setting, state_dir)
    # A vendor's library may hang in its own threads for ever. The thread is lost then, the service is not.
    outcome: list[Vision | Unusable] = []

    def work() -> None:
        try:
            outcome.append(_with(package, setting, state_dir))
        except Unusable as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="loading-accelerated", daemon=True)
    thread.start()
    thread.join(LOAD_S)
    if not outcome:
        raise Unusable("hang", f"it was not loaded within {LOAD_S:.0f} s")
    if isinstance(outcome[0], Unusable):
        raise outcome[0]
    return outcome[0]


def _with(package: Package, setting: Setting, state_dir: Path) -> Vision:
    variant = next((variant for variant in package.manifest.variants if variant.file == setting.variant), None)
    if variant is None:
        raise Unusable("load", f"the package {package.ref} has no file {setting.variant}")
    options = replace(setting.options(), cache=str(state_dir / CACHE)) if setting.accelerated else setting.options()
    try:
        # The setting names the driver: a file may be run by more than one.
        vision = load_vision(package, options, msgspec.structs.replace(variant, runtime=setting.runtime))
        vision.prove()
        return vision
    except (ModelError, PackageError, OSError) as error:
        raise Unusable("load", str(error)) from error
    except Exception as error:  # a vendor library's own exception
        raise Unusable("load", f"{type(error).__name__}: {error}") from error


class Watch:
    """Notices when a service's accelerated setting stops working at run time, and says so once. For the event loop."""

    FAILURES = 3
    """Failed runs in a row: one may be the picture's fault."""
    HANG_S = 30.0
    """No accelerator needs as long for one picture; its thread will not come back."""

    def __init__(self, service: str, setting: Setting | None, tell: Failed) -> None:
        self._service, self._tell = service, tell
        self._setting = sent(setting) if setting is not None and setting.accelerated else None
        self._failures = 0

    def failed(self, reason: str) -> None:
        """One run failed."""
        self._failures += 1
        if self._failures >= self.FAILURES:
            self._say("run", reason)

    def worked(self) -> None:
        """One run was answered."""
        self._failures = 0

    def running(self, seconds: float) -> None:
        """The oldest run at hand has been going on for so long."""
        if seconds > self.HANG_S:
            self._say("hang", f"one picture has taken {seconds:.0f} s and is not done")

    def _say(self, kind: TroubleKind, reason: str) -> None:
        if self._setting is not None:
            self._tell(SettingFailed(service=self._service, setting=self._setting, kind=kind, reason=reason))
            self._setting = None
