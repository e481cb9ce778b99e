"""The link as the supervisor sees it: one object that finds cloudd, joins it, stays connected and renews itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from edged.link import known
from edged.link.address import cloud_url
from edged.link.asking import first_answer
from edged.link.backoff import Backoff
from edged.link.candidates import Advertisement, Advertisements, Candidate, order
from edged.link.control import converse
from edged.link.discovery import Discovery
from edged.link.enroll import enroll
from edged.link.errors import LinkError, Refused, SyncError, Unreachable, WrongAuthority
from edged.link.http import open_session
from edged.link.renew import renew, renewal_time, unrenewed
from edged.link.reporter import Reporter, compare_clocks
from edged.link.sync import fetch_model
from edged.link.timing import Timing
from edgekit.dnssd import pin_of
from edgekit.identity import Identity, IdentityError, IdentityStore, client_context, parse_token
from edgekit.messages import PROTOCOL, Desired, Hello, Level, Link, Report, Welcome
from edgekit.packages import Package

log = logging.getLogger("edged.link")

T = TypeVar("T")


class LinkService:
    """Everything between this device and its cloudd. Nothing local ever waits for it.

    Life: construct (reads or makes the device key), `await start()`, use, `await stop()`. All methods and callbacks
    belong to one event loop; callbacks are plain functions, must not block and must not raise.

    on_link(Link)       whenever `link` changes: joined, up, down, moved, renewed (generation rises); for the worker.
    on_desired(Desired) desired state from cloudd; it may repeat a revision that is already in force.
    state() -> Report   asked for at every heartbeat; its `revision` also goes into the greeting, so that cloudd sends
                        desired state only if it differs. Call `nudge()` to have a report sent at once.
    report(level, code, text)  health: a code is raised with "warning" or "error" and cleared with "ok"; equal reports
                        are not repeated. Codes: link, link.authority, link.refused, link.message, link.fault, clock,
                        certificate, identity, discovery, and cloudd.<code> for notices of cloudd (cleared when the
                        device connects again).

    `link`        the present edgekit.messages.Link; url is "" while not joined, identity is a directory with key.pem,
                  certificate.pem and authority.pem.
    `device_id`   of this device, joined or not.  `cloud_name`  of the cloudd last spoken to.  `name` of this device.
    `identity`    the present edgekit.identity.Identity or None: authority_fingerprint, not_before, not_after.
    `candidates()` the addresses that would be asked now, best first, for the doctor and the page.
    `await join(token, url="", name="") -> Link`   raises LinkError with a sentence.
    `await fetch_model(ref, models_dir) -> edgekit.packages.Package`   raises SyncError with a sentence; resumes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        version: str,
        name: str,
        on_link: Callable[[Link], None],
        on_desired: Callable[[Desired], None],
        state: Callable[[], Report],
        report: Callable[[Level, str, str], None],
        url: str = "",
        machine: str = "",
        discover: bool = True,
        name_is_given: bool = False,
        interfaces: list[str] | None = None,
        timing: Timing | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`directory` is edged's state directory: identity/ and link.json in it belong to the link.

        `name` is what people call the device until they name it in `join`, or for good if `name_is_given`; `url` is
        cloudd's address from the configuration, if any; `machine` describes the hardware for people; `interfaces` are
        the IP addresses on which to look for cloudd, default all. Raises LinkError for an unusable `url`, OSError or
        IdentityError if the device key can be neither read nor made.
        """
        self._store = IdentityStore(directory / "identity")
        self._store.sweep()
        self._known_path = directory / "link.json"
        self._known = known.load(self._known_path)
        self._configured = cloud_url(url) if url else ""
        self._version, self._name, self._machine = version, name, machine or platform.machine()
        self._name_is_given = name_is_given
        self._on_link, self._on_desired, self._state = on_link, on_desired, state
        self._health = Reporter(report)
        self._discover, self._interfaces = discover, interfaces
        self._timing, self._wall = timing or Timing(), wall
        self._lan = Advertisements()
        self._joining, self._fetching = asyncio.Lock(), asyncio.Lock()
        self._wake = asyncio.Event()  # try to connect now
        self._ended = asyncio.Event()  # end the present conversation: the device has joined another cloudd
        self._nudge = asyncio.Event()
        self._renewable = asyncio.Event()  # look at the certificate's dates again
        self._found = asyncio.Event()  # something new on the LAN
        self._tasks: list[asyncio.Task[None]] = []
        self._talking_to = ""
        self.cloud_name = ""
        self._damage = ""
        self._identity: Identity | None = None
        try:
            self._identity = self._store.current()
        except IdentityError as error:
            self._damage = str(error)
        self._wanted_pin = pin_of(self._identity.authority_fingerprint) if self._identity else ""
        self.link = Link()
        if self._identity is not None:
            url = next((candidate.url for candidate in self.candidates()), "")
            self.link = Link(url=url, identity=str(self._identity.directory), generation=1)

    @property
    def device_id(self) -> str:
        """The canonical id of this device."""
        return self._store.device_id

    @property
    def identity(self) -> Identity | None:
        """The certificate in use, None before the device has joined."""
        return self._identity

    @property
    def name(self) -> str:
        """What people call this device."""
        return self._name if self._name_is_given else self._known.name or self._name

    async def start(self) -> None:
        """Begin to look, connect and renew; returns at once, whatever the network does."""
        if self._damage:
            self._health.raise_("error", "identity", self._damage)
        works = [self._keep_connected(), self._keep_renewed()]
        if self._discover:
            works.append(Discovery(self._seen, self._lan.lost, self._health.say, self._interfaces).run())
        self._tasks = [asyncio.create_task(work) for work in works]

    async def stop(self) -> None:
        """End every task and connection. Takes at most a few seconds."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def candidates(self, manual: str = "") -> list[Candidate]:
        """The addresses that would be asked now, best first; `manual` stands before what people gave earlier."""
        given = (manual, self._configured, self._known.manual)
        return order(given, self._known.url, self._lan.fitting(self._wanted_pin))

    def nudge(self) -> None:
        """The state has changed: report it now instead of at the next heartbeat."""
        self._nudge.set()

    async def join(self, token: str, url: str = "", name: str = "") -> Link:
        """Become a device of the cloudd that made the token; replaces an earlier membership. Raises LinkError.

        Asks `url` first if given, then what else is known and found on the LAN. The secret goes only to a server that
        has proved to be certified by the authority that the token names.
        """
        async with self._joining:
            try:
                parsed = parse_token(token)
            except IdentityError as error:
                raise LinkError(str(error)) from error
            manual = cloud_url(url) if url else ""
            name = name.strip()[:64] or self.name
            if self._name_is_given and name != self._name:
                raise LinkError(f"the configuration calls this device {self._name!r}; change `name` in edged.toml")
            before, self._wanted_pin = self._wanted_pin, pin_of(parsed.fingerprint)
            try:
                where, certificate = await self._search(
                    manual, lambda place: enroll(place, parsed, self._store, name, self._timing.attempt)
                )
                identity = await asyncio.to_thread(
                    self._store.install, certificate.certificate_pem, certificate.authority_pem
                )
                self._remember(known.Known(url=where, manual=manual, name=name))
            except (IdentityError, OSError) as error:
                self._wanted_pin = before
                raise LinkError(f"cloudd let this device in, but that cannot be stored: {error}") from error
            except BaseException:
                self._wanted_pin = before
                raise
            self._identity = identity
            self._set_link(Link(url=where, identity=str(identity.directory), generation=self.link.generation + 1))
            for code in ("identity", "certificate", "link.authority", "link.refused"):
                self._health.clear(code, "this device has joined cloudd")
            for event in (self._ended, self._wake, self._renewable):
                event.set()
            return self.link

    async def fetch_model(
        self, ref: str, models: Path, progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> Package:
        """Download the model `ref` into `models` and return it; one download at a time.

        `progress` is called with bytes done and bytes in all. Raises SyncError.
        """
        async with self._fetching:
            identity, url = self._identity, self.link.url
            if identity is None:
                raise SyncError(f"the model {ref} cannot be fetched: this device has not joined a cloudd")
            if not url:
                raise SyncError(f"the model {ref} cannot be fetched: cloudd has not been found yet")
            try:
                async with open_session(self._context(identity)) as session:
                    backoff = Backoff(self._timing.fetch_retry_base, self._timing.fetch_retry_cap)
                    patience_s = self._timing.fetch_patience
                    return await fetch_model(session, url, ref, models, progress, backoff, patience_s)
            except (IdentityError, OSError) as error:
                raise SyncError(f"the model {ref} cannot be fetched: {error}") from error

    # --- what a conversation asks and tells: edged.link.control.Host --------------------------------------------------

    def hello(self) -> Hello:
        """The greeting."""
        revision = self._state().revision
        return Hello(protocol=PROTOCOL, version=self._version, name=self.name, revision=revision, machine=self._machine)

    def state(self) -> Report:
        """The reported state."""
        return self._state()

    def welcomed(self, welcome: Welcome) -> None:
        """cloudd has answered: the link is up."""
        self.cloud_name = "".join(c for c in welcome.name[:64] if c.isprintable())
        if self._known.url != self._talking_to:
            with contextlib.suppress(OSError):  # only a hint for the next start
                self._remember(msgspec.structs.replace(self._known, url=self._talking_to))
        for prefix in ("link", "cloudd."):
            self._health.clear_prefix(prefix, f"connected to cloudd at {self._talking_to}")
        compare_clocks(self._health, welcome.time, self._wall())
        self._set_link(msgspec.structs.replace(self.link, url=self._talking_to, up=True))

    def desired(self, desired: Desired) -> None:
        """Desired state has come."""
        self._on_desired(desired)

    def notice(self, level: Level, code: str, text: str) -> None:
        """Something for a person."""
        self._health.raise_(level, code, text)

    # --- connecting ---------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        timing = self._timing
        backoff = Backoff(timing.retry_base, timing.retry_cap, floor_s=timing.retry_base / 10)
        while True:
            self._ended.clear()
            if self._identity is None:
                await self._wait(self._wake)
                continue
            started, pause = time.monotonic(), None
            try:
                await self._connect(self._identity)
            except Refused as error:
                self._health.raise_("error", "link.refused", error.sentence)
                pause = timing.refused
            except (LinkError, IdentityError, OSError) as error:
                self._health.raise_("warning", "link", f"no connection to cloudd: {error}; local work goes on")
            except Exception as error:  # a fault of ours must not end the link for good
                log.exception("the link failed in a way it should not")
                self._health.raise_("error", "link.fault", f"the link to cloudd failed: {error!r}; trying on")
            self._set_link(msgspec.structs.replace(self.link, up=False))
            if self._ended.is_set():
                continue
            if time.monotonic() - started > timing.stable:
                backoff.reset()
            pause = backoff.next_s() if pause is None else pause
            # Not even a flood of advertisements makes the device try without any pause.
            await asyncio.sleep(min(pause, timing.retry_base))
            await self._wait(self._wake, max(0.0, pause - timing.retry_base))

    async def _connect(self, identity: Identity) -> None:
        """Find cloudd and talk until the connection breaks (raises) or the device joins another one (returns)."""
        context = self._context(identity)

        async def talk(url: str) -> LinkError | None:
            self._talking_to = url
            async with open_session(context) as session:
                try:
                    await converse(
                        session, url, self, self._ended, self._nudge, self._timing.attempt, self._timing.ping
                    )
                except Unreachable as error:
                    if not self.link.up:
                        raise
                    return error  # it was the right one and it broke: begin anew instead of asking all others
            return None

        _, failure = await first_answer(self.candidates(), talk, self._impostor)
        if failure is not None:
            raise failure

    def _impostor(self, candidate: Candidate, error: WrongAuthority) -> None:
        """A forged advertisement is noise; the address that has always been cloudd's in other hands is an alarm."""
        if candidate.source != "lan":
            self._health.raise_("error", "link.authority", str(error))

    async def _search(self, manual: str, ask: Callable[[str], Awaitable[T]]) -> tuple[str, T]:
        """As first_answer, but wait a while for new addresses to appear on the LAN."""
        deadline = time.monotonic() + (self._timing.search if self._discover else 0.0)
        asked: set[str] = set()
        failure: LinkError | None = None
        while True:
            self._found.clear()
            fresh = [candidate for candidate in self.candidates(manual) if candidate.url not in asked]
            asked.update(candidate.url for candidate in fresh)
            try:
                if fresh:
                    return await first_answer(fresh, ask)
            except (Unreachable, WrongAuthority) as error:
                failure = failure or error
            left = deadline - time.monotonic()
            # An address that a person typed and that does not answer is reported soon, not after a search.
            if left <= 0 or not await self._wait(self._found, min(left, 1.0) if manual else left):
                break
        raise failure or Unreachable(
            "no cloudd was found on this network; give its address, for example --url https://cloudd.plant:8440"
        )

    def _seen(self, advertisement: Advertisement) -> None:
        if self._lan.seen(advertisement, self._wanted_pin):
            self._found.set()
            if not self.link.up and not self._health.raised("link.refused"):
                self._wake.set()

    # --- renewing -----------------------------------------------------------------------------------------------------

    async def _keep_renewed(self) -> None:
        backoff = Backoff(self._timing.renew_retry_base, self._timing.renew_retry_cap)
        jitter = random.random()  # noqa: S311  (spreads load, hides nothing)
        while True:
            self._renewable.clear()
            identity = self._identity
            if identity is None:
                await self._wait(self._renewable)
                continue
            due = renewal_time(identity.not_before, identity.not_after, jitter) - self._wall()
            if due > 0:
                backoff.reset()
                await self._wait(self._renewable, min(due, self._timing.renew_check))
                continue
            try:
                await self._renew(identity)
                self._health.clear("certificate", "the device's certificate was renewed")
            except Exception as error:  # whatever it is, the next try must come
                if not isinstance(error, LinkError | IdentityError | OSError):
                    log.exception("renewing failed in a way it should not")
                self._health.raise_(*unrenewed(identity.not_after - self._wall(), error))
            # After a success too: with a clock weeks ahead the new certificate is due at once, again and again.
            await self._wait(self._renewable, backoff.next_s())

    async def _renew(self, identity: Identity) -> None:
        _, certificate = await first_answer(
            self.candidates(), lambda url: renew(url, identity, self._store, self._timing.attempt)
        )
        async with self._joining:
            if self._identity is not identity:
                return  # the device joined another cloudd meanwhile
            self._identity = await asyncio.to_thread(
                self._store.install, certificate.certificate_pem, certificate.authority_pem
            )
        directory = str(self._identity.directory)
        self._set_link(msgspec.structs.replace(self.link, identity=directory, generation=self.link.generation + 1))
        self._wake.set()

    # --- small things -------------------------------------------------------------------------------------------------

    def _context(self, identity: Identity) -> ssl.SSLContext:
        return client_context(identity.authority_path, identity.certificate_path, identity.key_path, self._wall())

    def _remember(self, remembered: known.Known) -> None:
        known.save(self._known_path, remembered)
        self._known = remembered

    def _set_link(self, link: Link) -> None:
        if link != self.link:
            self.link = link
            self._on_link(link)

    async def _wait(self, event: asyncio.Event, seconds: float | None = None) -> bool:
        """Wait for the event, at most so long, and clear it. True if it came."""
        try:
            async with asyncio.timeout(seconds):  # unlike wait_for it never swallows a cancellation
                await event.wait()
        except TimeoutError:
            return False
        event.clear()
        return True
