"""Telling the LAN where cloudd is (DNS-SD), for as long as it runs and on every interface that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Final

import psutil
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from edgekit import dnssd

log = logging.getLogger("cloudd.advertise")

_RESCAN_S: Final = 15.0
_RETRY_S: Final = 30.0


class Advertiser:
    """Publishes one `_cloudd._tcp.local.` record; whoever follows it still has to be convinced by TLS."""

    def __init__(
        self,
        name: str,
        port: int,
        fingerprint: str,
        addresses: Callable[[], list[str]] | None = None,
        interfaces: list[str] | None = None,
    ) -> None:
        """`name` is cloudd's name for people, `fingerprint` that of its authority, `port` that of the device API.

        `addresses` gives the IP addresses to publish (default: all of this machine that others can reach),
        `interfaces` the addresses to publish on (default: every interface).
        """
        self._name, self._port, self._fingerprint = dnssd.plain(name).replace(".", "-") or "cloudd", port, fingerprint
        self._addresses = addresses or reachable_addresses
        self._interfaces = interfaces

    async def run(self) -> None:
        """Publish until cancelled, then say goodbye. A missing network is logged once and waited for."""
        complained = False
        while True:
            try:
                await self._publish()
            except Exception as error:  # zeroconf raises many kinds; none of them may end the daemon
                if not complained:
                    log.warning("cloudd cannot be advertised on the network (%s); trying on", error)
                complained = True
            await asyncio.sleep(_RETRY_S)

    async def _publish(self) -> None:
        if self._interfaces is not None:
            responder = AsyncZeroconf(interfaces=list(self._interfaces))
        else:
            responder = dnssd.first_that_opens(lambda version: AsyncZeroconf(ip_version=version))
        try:
            addresses = self._addresses()
            info = self._info(self._name, addresses)
            await (await responder.async_register_service(info, allow_name_change=True))
            log.info("advertised on the network as %r at port %d", info.get_name(), self._port)
            while True:
                await asyncio.sleep(_RESCAN_S)
                if self._interfaces is None:
                    await responder.async_update_interfaces()
                present = self._addresses()
                if present != addresses:
                    addresses, info = present, self._info(info.get_name(), present)
                    await (await responder.async_update_service(info))
                    log.info("advertised addresses are now %s", ", ".join(addresses))
        finally:
            await responder.async_close()  # says goodbye first

    def _info(self, name: str, addresses: list[str]) -> AsyncServiceInfo:
        pin = dnssd.pin_of(self._fingerprint)
        return AsyncServiceInfo(
            dnssd.SERVICE_TYPE,
            f"{name}.{dnssd.SERVICE_TYPE}",
            port=self._port,
            parsed_addresses=addresses,
            properties=dict(dnssd.properties(self._fingerprint, self._name)),
            # A host name of our own, because the machine's is often published by avahi already.
            server=f"cloudd-{pin}.local.",
        )


def reachable_addresses() -> list[str]:
    """This machine's IP addresses that another may reach, IPv4 first; loopback only if there is nothing else."""
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for interface in psutil.net_if_addrs().values():
        for entry in interface:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.ip_address(entry.address.partition("%")[0]))
    usable = [ip for ip in found if not (ip.is_loopback or ip.is_link_local or ip.is_unspecified)]
    chosen = usable or [ip for ip in found if ip.is_link_local] or [ip for ip in found if ip.is_loopback]
    return [str(ip) for ip in sorted(set(chosen), key=lambda ip: (ip.version, int(ip)))]
