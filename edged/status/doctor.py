"""The doctor: small checks that say what is wrong and what to do, shared by the command line, the page and scripts.

A check is an object with a stable id. It gets an Examination (the state directory, and the daemon's own state if a
daemon runs) and returns a Finding, or None when it does not apply. Checks block; run them in a thread.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from edged.api import Finding
from edged.learning.bodies import LearningState
from edged.status.state import StatusState
from edgekit.identity import IdentityError, IdentityStore
from edgekit.messages import Level
from edgekit.packages import PackageError, installed, learning_file, open_package

CLOCK_FLOOR = 1_735_689_600.0
"""1 January 2025: no device runs this program before it was written, so an earlier clock is unset."""
CERTIFICATE_WARNING_S = 5 * 86_400.0
SPOOL_WARNING = 0.8
SPOOL_AGE_WARNING_S = 7 * 86_400.0
DISK_WARNING = 512 << 20
_CONNECT_S = 2.0
_KEY_SIZE = 32
_LIBRARIES = {"numpy": "arrays", "cv2": "pictures", "onnxruntime": "ONNX models", "safetensors": "tensors"}


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What a check may look at."""

    state_dir: Path
    status: StatusState | None = None  # None: no daemon answers
    now: float = msgspec.field(default_factory=time.time)
    credentials: Path | None = msgspec.field(default_factory=lambda: _credentials())  # systemd's, of this process


class Check(NamedTuple):
    """One check. `severity` is how bad its failure is."""

    id: str
    title: str
    severity: Level
    run: Callable[[Examination], Outcome | None]


class Outcome(NamedTuple):
    """What a check saw: an empty remedy means that all is well. `level` overrides the check's severity."""

    text: str
    remedy: str = ""
    level: Level | None = None


def examine(examination: Examination, checks: tuple[Check, ...] | None = None) -> list[Finding]:
    """Run every check. One that breaks is itself a finding; it never hides the others."""
    findings: list[Finding] = []
    for check in CHECKS if checks is None else checks:
        try:
            outcome = check.run(examination)
        except Exception as error:
            outcome = Outcome(f"this check itself failed: {type(error).__name__}: {error}", "report this as a bug")
        if outcome is None:
            continue
        level: Level = "ok" if not outcome.remedy else outcome.level or check.severity
        findings.append(Finding(id=check.id, title=check.title, level=level, text=outcome.text, remedy=outcome.remedy))
    return findings


def worst(findings: list[Finding]) -> Level:
    """The worst level among the findings."""
    levels = {finding.level for finding in findings}
    return "error" if "error" in levels else "warning" if "warning" in levels else "ok"


# --- the checks -------------------------------------------------------------------------------------------------------


def _daemon(examination: Examination) -> Outcome:
    if examination.status is None:
        return Outcome("no daemon answers for this state directory", "start it: edged run, or systemctl start edged")
    hours = (examination.now - examination.status.started_at) / 3600
    return Outcome(f"edged {examination.status.version} has been running for {hours:.1f} hours")


def _identity(examination: Examination) -> Outcome:
    directory = examination.state_dir / "identity"
    key = directory / "device-key.pem"
    if not key.exists():
        return Outcome("there is no device key yet", "start edged once: it makes its key", "warning")
    for path in (directory, key):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            return Outcome(f"{path} can be read by others (mode {mode:04o})", f"chmod go-rwx {path}")
    try:
        store = IdentityStore(directory)
        identity = store.current()
    except (IdentityError, OSError) as error:
        return Outcome(str(error), "restore the identity directory, or remove it and join again with a new token")
    if identity is None:
        return Outcome(f"the device key is fine; the device has not joined a cloudd ({store.device_id})")
    left = identity.not_after - examination.now
    if left <= 0:
        return Outcome("the device's certificate has ended", "bring the link up, it renews itself; or join again")
    if left < CERTIFICATE_WARNING_S:
        text = f"the device's certificate ends in {left / 86_400:.1f} days and has not been renewed"
        return Outcome(text, "look at the check 'cloud': renewal needs a working link", "warning")
    return Outcome(f"the certificate is valid for another {left / 86_400:.0f} days")


def _credentials() -> Path | None:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory) if directory else None


def _key(examination: Examination) -> Outcome:
    """Where the key-encryption key of the spool comes from, and so what it protects."""
    for item in examination.status.health.items if examination.status else []:
        if item.code == "spool.wrong-key":
            return Outcome(item.text, "put the right key back, or remove those samples: edged spool purge")
    file = examination.state_dir / "keys" / "kek"
    credential = examination.credentials / "kek" if examination.credentials is not None else None
    if credential is not None and credential.exists():
        if credential.stat().st_size != _KEY_SIZE:
            return Outcome(f"the credential kek has not {_KEY_SIZE} bytes", "make it anew as docs/operations.md says")
        text = (
            "the spool's key is a systemd credential, not beside the data; bound to a TPM it guards a stolen disk too"
        )
        return Outcome(f"{text}; {file} is not used any more and may go" if file.exists() else text)
    if not file.exists():
        return Outcome("the spool's key is not here yet: it is made at the start, or comes as a systemd credential")
    status = file.stat()
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        return Outcome(f"{file} can be read by others (mode {mode:04o})", f"chmod go-rwx {file}")
    if status.st_size != _KEY_SIZE:
        return Outcome(f"{file} has not {_KEY_SIZE} bytes, so nothing can be spooled", "restore it from the backup")
    return Outcome(
        f"the spool's key lies beside the data ({file}): it guards a backup of the spool without keys/, "
        "not a stolen disk; a systemd credential would"
    )


def _clock(examination: Examination) -> Outcome:
    if examination.now < CLOCK_FLOOR:
        day = time.strftime("%Y-%m-%d", time.gmtime(examination.now))
        return Outcome(f"the clock says {day}, so it is unset", "set the clock or install a time service (NTP)")
    status = examination.status
    if status is not None:
        for item in status.health.items:
            if item.code == "clock":
                return Outcome(item.text, "set the clocks of both machines, best by a time service (NTP)", "warning")
    return Outcome(time.strftime("the clock says %Y-%m-%d %H:%M:%S UTC", time.gmtime(examination.now)))


def _disk(examination: Examination) -> Outcome:
    directory = examination.state_dir
    if not directory.is_dir():
        return Outcome(f"{directory} does not exist", "start edged once: it makes its directory", "warning")
    numbers = os.statvfs(directory)
    free = numbers.f_bavail * numbers.f_frsize
    if numbers.f_flag & os.ST_RDONLY:
        return Outcome(f"{directory} is on a read-only file system", "remount it; a worn card goes read-only")
    if numbers.f_files and numbers.f_favail < 1000:
        return Outcome(f"only {numbers.f_favail} inodes are free", "remove small files from this file system")
    if free < DISK_WARNING:
        text = f"only {free >> 20} MB are free on the disk of {directory}"
        return Outcome(text, "make room, or lower spool.quota_mb in edged.toml", "warning")
    return Outcome(f"{free >> 20} MB are free")


def _spool(examination: Examination) -> Outcome | None:
    spool = examination.status.spool if examination.status else None
    if spool is None:
        return None
    text = f"{spool.items} hard samples wait, {spool.bytes >> 20} of {spool.quota >> 20} MB"
    if spool.quota and spool.bytes > SPOOL_WARNING * spool.quota:
        return Outcome(f"the spool is nearly full: {text}", "bring the link up, or raise spool.quota_mb in edged.toml")
    if spool.oldest_at is not None and examination.now - spool.oldest_at > SPOOL_AGE_WARNING_S:
        days = (examination.now - spool.oldest_at) / 86_400
        return Outcome(f"{text}; the oldest has waited {days:.0f} days", "look at the check 'cloud'")
    return Outcome(text)


def _sockets(examination: Examination) -> Outcome | None:
    status = examination.status
    if status is None:
        return None
    for what, address in (("inference", status.addresses.inference), ("page", status.addresses.page)):
        host, _, port = address.rpartition(":")
        reachable = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
        try:
            socket.create_connection((reachable, int(port)), _CONNECT_S).close()
        except (OSError, ValueError) as error:
            text = f"the {what} port {address} does not accept connections: {error}"
            return Outcome(text, "look for a local firewall, then restart edged")
    return Outcome(f"inference on {status.addresses.inference}, page on {status.addresses.page}")


def _worker(examination: Examination) -> Outcome | None:
    status = examination.status
    if status is None:
        return None
    worker = status.worker
    if worker.state != "ready":
        return Outcome(f"the worker is {worker.state}, nothing is inspected", "read its log: journalctl -u edged")
    if worker.restarts:
        text = f"the worker is ready; it was restarted {worker.restarts} times"
        return Outcome(text, "read the daemon's log to see why: journalctl -u edged", "warning")
    return Outcome(f"the worker is ready and uses {worker.rss >> 20} MB")


def _models(examination: Examination) -> Outcome:
    found = installed(examination.state_dir / "models")
    for ref, path in found.items():
        try:
            open_package(path)
        except PackageError as error:
            return Outcome(f"{ref}: {error}", f"install it again: edged models remove {ref}, then models add or pull")
    if not found:
        return Outcome("no model is installed", "install one: edged models add DIR, or join a cloudd", "warning")
    return Outcome(f"{len(found)} installed, every file has the right hash")


def _services(examination: Examination) -> Outcome | None:
    status = examination.status
    if status is None:
        return None
    for service in status.services:
        if service.report.state == "failed":
            text = f"{service.name} does not run: {service.report.detail or service.refused}"
            return Outcome(text, f"correct its definition and add it again: edged services show {service.name}")
        if service.refused:
            text = f"the newest definition of {service.name} does not run, the last good one does: {service.refused}"
            return Outcome(text, f"correct it and add it again: edged services show {service.name}", "warning")
        if service.report.state == "loading":
            text = f"{service.name} is not ready yet: {service.report.detail}"
            return Outcome(text, "wait, or see the checks 'cloud' and 'models'", "warning")
    if not status.services:
        return Outcome("no service runs", "add one: edged services add FILE.toml", "warning")
    return Outcome(f"{len(status.services)} ready: {', '.join(service.name for service in status.services)}")


def _cloud(examination: Examination) -> Outcome | None:
    status = examination.status
    if status is None:
        return None
    cloud = status.cloud
    if not cloud.joined:
        asking = [service.name for service in status.services if service.hard_samples != "off"]
        if asking:
            text = f"this device has not joined a cloudd, but {', '.join(asking)} would ask one about hard samples"
            return Outcome(text, "make a token there with 'cloudd invite', then: edged join TOKEN")
        return Outcome("this device works alone; it has not joined a cloudd")
    for item in status.health.items:
        if item.code == "link.refused":
            return Outcome(item.text, "an operator of cloudd decides: do there what it says")
    if not cloud.up:
        return Outcome(
            f"no link to cloudd at {cloud.url or 'an unknown address'}: {cloud.detail}",
            "check the network and that cloudd runs; local work goes on",
        )
    return Outcome(f"connected to {cloud.name or 'cloudd'} at {cloud.url}")


def _libraries(examination: Examination) -> Outcome:
    wanted = dict(_LIBRARIES)
    for ref, path in installed(examination.state_dir / "models").items():
        try:
            variants = open_package(path, verify=False).manifest.variants
        except PackageError:
            continue  # the check 'models' names it
        if variants and all(variant.runtime == "litert" for variant in variants):
            wanted["ai_edge_litert"] = f"LiteRT models such as {ref}"
    missing = [f"{name} ({use})" for name, use in wanted.items() if importlib.util.find_spec(name) is None]
    if missing:
        extra = "serve,tflite" if "ai_edge_litert" in wanted else "serve"
        return Outcome(f"not installed: {', '.join(missing)}", f"pip install 'edged-cloudd[{extra}]'")
    return Outcome(f"all installed: {', '.join(wanted)}")


def _learning(examination: Examination) -> Outcome | None:
    """What keeps a service from ever learning: its log would say so only after a job was tried."""
    status = examination.status
    learning = [one for one in status.learning if one.start != "off"] if status is not None else []
    if not learning:
        return None
    found = [(one.service, problem) for one in learning if (problem := _cannot_learn(one, examination.state_dir))]
    if not found:
        return Outcome(f"nothing keeps {', '.join(one.service for one in learning)} from learning")
    text = "; ".join(f"{service}: {outcome.text}" for service, outcome in found)
    return Outcome(text, "; ".join(dict.fromkeys(outcome.remedy for _, outcome in found)))


def _cannot_learn(one: LearningState, state_dir: Path) -> Outcome | None:
    """The first thing that is in the way of a candidate of this service, None if nothing is."""
    service, stock, model = one.service, one.stock, one.learned or one.base
    if one.wanted == 0:  # only its threshold is calibrated anew
        return None
    if one.never:
        return Outcome(
            one.never, f"export the labelled samples of {service} (edged datasets make, export), then cloudd train"
        )
    if importlib.util.find_spec("onnx") is None:
        return Outcome("the package onnx is not installed, so no job can begin", "pip install 'edged-cloudd[train]'")
    if model and not _has_learning_file(model, state_dir):
        text = f"{model} has no fp32 file for onnxruntime on any chip, and only such a file can learn"
        return Outcome(text, f"install a version of the model of {service} with one: edged models add DIR")
    if stock is None:
        return None
    need = f"about {one.wanted:,} labelled pictures are needed to judge a candidate"
    bring = f"edged samples import DIR_OR_FILE --service {service}"
    if not stock.kept and one.keep == "none":
        text = f'no picture is kept (samples.keep is "none") and none was imported; {need}'
        return Outcome(
            text, f'set keep = "asked" in the table [samples] of {service}, or bring labelled pictures: {bring}'
        )
    if not stock.labelled:
        text = f"none of its {stock.kept:,} pictures has a label; {need}"
        return Outcome(text, f"label them on the page /review, or bring labelled pictures: {bring}")
    if stock.known < one.wanted:
        text = f"{stock.known:,} of its {stock.kept:,} pictures have a label that its model knows; {need}"
        remedy = f"label more on the page /review, or bring labelled pictures: {bring}"
        if stock.kept < one.wanted and one.keep != "all":
            remedy += f'; or keep more: keep = "all", or a larger random, in the table [samples] of {service}'
        return Outcome(text, f"{remedy}; fewer judge with a lower learning.judging.items, and prove less")
    return None


def _has_learning_file(ref: str, state_dir: Path) -> bool:
    """Whether `edged.train.network` finds a file to learn from. What is not installed, or broken, has other checks."""
    path = installed(state_dir / "models").get(ref)
    try:
        manifest = open_package(path, verify=False).manifest if path is not None else None
    except PackageError:
        manifest = None
    return manifest is None or learning_file(manifest) is not None


def _memory(examination: Examination) -> Outcome | None:
    machine = examination.status.machine if examination.status else None
    if machine is None or not machine.memory_total:
        return None
    share = machine.memory_available / machine.memory_total
    text = f"{machine.memory_available >> 20} of {machine.memory_total >> 20} MB are available"
    if share < 0.1:
        return Outcome(f"memory is short: {text}", "stop other programs, or use a smaller model")
    return Outcome(text)


CHECKS: tuple[Check, ...] = (
    Check("daemon", "Daemon", "error", _daemon),
    Check("identity", "Identity", "error", _identity),
    Check("key", "Key of the spool", "error", _key),
    Check("clock", "Clock", "error", _clock),
    Check("disk", "Disk", "error", _disk),
    Check("memory", "Memory", "warning", _memory),
    Check("libraries", "Libraries", "error", _libraries),
    Check("sockets", "Sockets", "error", _sockets),
    Check("worker", "Worker", "error", _worker),
    Check("models", "Models", "error", _models),
    Check("services", "Services", "error", _services),
    Check("learning", "Learning", "warning", _learning),
    Check("cloud", "Cloud link", "warning", _cloud),
    Check("spool", "Spool", "warning", _spool),
)
