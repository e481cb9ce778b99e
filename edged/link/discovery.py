"""Looking for cloudd by DNS-SD (`_cloudd._tcp.local.`): a supervised task that survives having no network at all."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Final

from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from edged.link.address import host_url
from edged.link.backoff import Backoff
from edged.link.candidates import MAX_ADDRESSES, MAX_SERVICES, Advertisement
from edgekit import dnssd
from edgekit.messages import Level

_RESOLVE_MS: Final = 3_000
_RESCAN_S: Final = 15.0
"""How soon a plugged-in cable or a late DHCP lease is noticed."""


class Discovery:
    """Browses until cancelled, and tells its owner what it saw."""

    def __init__(
        self,
        seen: Callable[[Advertisement], None],
        lost: Callable[[str], None],
        report: Callable[[Level, str, str], None],
        interfaces: list[str] | None = None,
    ) -> None:
        """`interfaces` restricts browsing to these IP addresses; default is every interface."""
        self._seen, self._lost, self._report = seen, lost, report
        self._interfaces = interfaces
        self._resolving: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Browse for ever; when the network is not there, say so once and try again."""
        backoff = Backoff(2.0, 60.0, floor_s=1.0)
        while True:
            try:
                await self._browse(backoff)
            except Exception as error:  # zeroconf raises many kinds; none of them may end the daemon
                self._report("warning", "discovery", f"cloudd cannot be looked for on the network ({error}); trying on")
            await asyncio.sleep(backoff.next_s())

    async def _browse(self, backoff: Backoff) -> None:
        if self._interfaces is not None:
            responder = AsyncZeroconf(interfaces=list(self._interfaces))
        else:
            responder = dnssd.first_that_opens(lambda version: AsyncZeroconf(ip_version=version))
        browser: AsyncServiceBrowser | None = None
        try:
            browser = AsyncServiceBrowser(responder.zeroconf, dnssd.SERVICE_TYPE, handlers=[self._changed])
            self._report("ok", "discovery", "cloudd is looked for on the network")
            backoff.reset()
            while True:
                await asyncio.sleep(_RESCAN_S)
                if self._interfaces is None:
                    await responder.async_update_interfaces()
        finally:
            for task in list(self._resolving.values()):
                task.cancel()
            if browser is not None:
                await browser.async_cancel()
            await responder.async_close()

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            self._lost(name)
        elif name not in self._resolving and len(self._resolving) < MAX_SERVICES:
            task = asyncio.get_running_loop().create_task(self._resolve(zeroconf, service_type, name))
            self._resolving[name] = task
            task.add_done_callback(lambda _task: self._resolving.pop(name, None))

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        if await info.async_request(zeroconf, _RESOLVE_MS):
            advertisement = read_advertisement(name, info.parsed_scoped_addresses(), info.port, info.decoded_properties)
            if advertisement is not None:
                self._seen(advertisement)


def read_advertisement(
    instance: str, addresses: list[str], port: int | None, properties: dict[str, str | None]
) -> Advertisement | None:
    """What a hostile record claims, cut to size; None if it is not of our version or names no usable address."""
    claim = dnssd.read_properties(properties)
    if claim is None or not port:
        return None
    usable: list[str] = []
    for address in addresses:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            continue
        if not (ip.is_multicast or ip.is_unspecified):
            usable.append(address)
    # A link-local IPv6 address needs a scope and is asked last.
    usable.sort(key=lambda address: "%" in address)
    if not usable:
        return None
    return Advertisement(
        instance=instance[:255],
        urls=tuple(host_url(address, port) for address in usable[:MAX_ADDRESSES]),
        pin=claim[0],
        name=claim[1],
    )
