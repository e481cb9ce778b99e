"""Zero configuration on a real network stack: found by DNS-SD, not fooled by it, and well without it."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
import pytest
from zeroconf import ServiceInfo, Zeroconf

from benchmarks.daemons import Cloud, Edge
from edgekit import dnssd
from edgekit.identity import Authority, generate_key, parse_token, save_key
from edgekit.messages import PROTOCOL, AuthorityInfo
from tests.support.edged import wait_for
from tests.support.stage import wait_for_api

FOUND_S = 30.0


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="e2e-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def daemons(place: Path) -> Iterator[ExitStack]:
    """Ends by SIGKILL what was pushed."""
    with ExitStack() as stack:
        yield stack


def start_cloud(place: Path, daemons: ExitStack, listen: str = "127.0.0.1:0", advertise: bool = True) -> Cloud:
    cloud = Cloud(place / "cloud", advertise=advertise, flags=["--name", f"plant {os.getpid()}"])
    cloud.listen = listen
    daemons.callback(cloud.kill)
    cloud.start()
    return cloud


def start_edge(place: Path, daemons: ExitStack, name: str = "edge", discover: bool = True) -> Edge:
    edge = Edge(place / name, name, discover=discover)
    daemons.callback(edge.kill)
    edge.start(wait=False)
    wait_for_api(edge)
    return edge


def port_of(cloud: Cloud) -> int:
    return int(urlsplit(cloud.url).port or 0)


class Rogue:
    """A TLS server with the name of a cloudd that writes down every byte it can read.

    It shows strangers any authority it likes, even the right one, which is public; it has not got that one's key.
    """

    def __init__(self, place: Path, shown: str = "") -> None:
        """`shown`: the authority (PEM) that it claims to belong to, its own by default."""
        place.mkdir()
        now = time.time()
        self.authority, key = Authority.create("rogue", now), generate_key()
        save_key(key, place / "key.pem")
        (place / "server.pem").write_text(self.authority.server_certificate(key, ["127.0.0.1"], now))
        shown = shown or self.authority.certificate_pem
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(place / "server.pem", place / "key.pem")
        self._context.verify_mode = ssl.CERT_OPTIONAL  # it would take a client's certificate, too
        self._context.load_verify_locations(cadata=shown)
        info = AuthorityInfo(protocol=PROTOCOL, name="rogue", certificate_pem=shown, fingerprint="x")
        body = msgspec.json.encode(info)
        self._reply = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        self.heard = b""
        self.connections = self.certificates = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        try:
            with self._context.wrap_socket(connection, server_side=True) as tls:
                self.certificates += tls.getpeercert(binary_form=True) is not None
                while data := tls.recv(65_536):
                    self.heard += data
                    tls.sendall(self._reply)
        except OSError:
            connection.close()

    def close(self) -> None:
        self._listener.close()


@contextmanager
def advertised(name: str, port: int, fingerprint: str) -> Iterator[None]:
    """Anybody's record, on loopback."""
    zeroconf = Zeroconf(interfaces=["127.0.0.1"])
    info = ServiceInfo(
        dnssd.SERVICE_TYPE,
        f"{name}.{dnssd.SERVICE_TYPE}",
        port=port,
        parsed_addresses=["127.0.0.1"],
        properties=dict(dnssd.properties(fingerprint, name)),
        server=f"{name}.local.",
    )
    try:
        zeroconf.register_service(info)
        yield
    finally:
        zeroconf.close()


def test_a_device_joins_with_nothing_but_a_token_and_goes_on_without_discovery(place: Path, daemons: ExitStack) -> None:
    cloud = start_cloud(place, daemons)
    edge = start_edge(place, daemons)
    joined = edge.command("join", cloud.invite("press-1"))
    assert joined.returncode == 0, joined.stderr
    assert joined.stdout.startswith(f"Joined the cloudd at {cloud.url}.")
    edge.wait_for_link(True)
    # A network that forbids multicast: the address that worked last is enough.
    edge.kill()
    config = edge.state_dir / "edged.toml"
    config.write_text(config.read_text().replace("discover = true", "discover = false"))
    edge.start(wait=False)
    wait_for_api(edge)
    edge.wait_for_link(True)
    assert edge.status().cloud.url == cloud.url


def test_without_discovery_and_without_an_address_the_command_says_what_to_do(place: Path, daemons: ExitStack) -> None:
    cloud = start_cloud(place, daemons)
    edge = start_edge(place, daemons, discover=False)
    token = cloud.invite("press-1")
    lost = edge.command("join", token)
    assert lost.returncode == 1 and "--url" in lost.stderr and len(lost.stderr.splitlines()) == 1
    found = edge.command("join", token, "--url", cloud.url.removeprefix("https://"))
    assert found.returncode == 0, found.stderr
    edge.wait_for_link(True)


def test_a_device_follows_its_cloudd_to_another_port(place: Path, daemons: ExitStack) -> None:
    cloud = start_cloud(place, daemons)
    edge = start_edge(place, daemons)
    edge.command("join", cloud.invite("press-1"))
    edge.wait_for_link(True)
    before = cloud.url
    cloud.stop()
    cloud.listen = "127.0.0.1:0"
    with socket.create_server(("127.0.0.1", int(urlsplit(before).port or 0))):  # somebody else has the old port now
        cloud.start()
        assert cloud.url != before
        edge.wait_for(lambda: edge.status().cloud.up and edge.status().cloud.url == cloud.url, "to follow", 60.0)


def test_a_spoofed_advertisement_gets_neither_token_nor_request_nor_certificate(
    place: Path, daemons: ExitStack
) -> None:
    cloud = start_cloud(place, daemons, advertise=False)
    token = cloud.invite("press-1")
    pin = parse_token(token)
    shown = (cloud.state_dir / "authority" / "root.pem").read_text()
    # All are advertised; one claims the pin with an authority of its own, one shows the right one and cannot prove it,
    # and one is honest about being another.
    own, mirror, other = Rogue(place / "own"), Rogue(place / "mirror", shown), Rogue(place / "other")
    rogues = [own, mirror, other]
    for rogue in rogues:
        daemons.callback(rogue.close)
    edge = start_edge(place, daemons)
    daemons.enter_context(advertised(f"own-{own.port}", own.port, pin.fingerprint))
    daemons.enter_context(advertised(f"mirror-{mirror.port}", mirror.port, pin.fingerprint))
    daemons.enter_context(advertised(f"other-{other.port}", other.port, other.authority.fingerprint))

    # Only the rogues are there: the device asks both, tells them nothing and joins nobody.
    lost = edge.command("join", token)
    assert lost.returncode == 1 and len(lost.stderr.splitlines()) == 1, lost
    assert own.connections and mirror.connections
    assert other.connections == 0, "a record of another authority is not even asked"
    assert not edge.status().cloud.joined

    # The real one answers at an address that a person gives, and the same token still works.
    joined = edge.command("join", token, "--url", cloud.url)
    assert joined.returncode == 0, joined.stderr
    edge.wait_for_link(True)

    # The real one goes away; the device now has a certificate, and looks for its cloudd among the records.
    asked = [rogue.connections for rogue in (own, mirror)]
    cloud.kill()
    edge.wait_for_link(False)
    edge.wait_for(lambda: own.connections > asked[0] and mirror.connections > asked[1], "to look around", 60.0)
    edge.wait_for_link(False)
    for rogue in rogues:
        words = (b"POST", b"REQUEST", b"Upgrade", pin.secret.encode(), edge.status().device_id.encode())
        assert not any(word in rogue.heard for word in words), rogue.heard
        for request in rogue.heard.split(b"\r\n\r\n"):
            assert not request or request.startswith(b"GET /v1/authority HTTP/1.1"), request
        assert rogue.certificates == 0
    assert b"GET /v1/authority" in own.heard and b"GET /v1/authority" in mirror.heard


# --- a foreign client ----------------------------------------------------------------------------------------------


@pytest.fixture
def avahi(place: Path) -> Iterator[dict[str, str]]:
    """An avahi-daemon with a private bus; its environment for avahi's tools. Uses the system's if it runs."""
    for tool in ("avahi-daemon", "avahi-browse", "dbus-daemon"):
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{tool} is not installed")
    if any(process.info["name"] == "avahi-daemon" for process in psutil.process_iter(["name"])):
        yield {}
        return
    if os.geteuid() != 0:
        pytest.skip("starting avahi-daemon needs root")
    bus = place / "bus"
    (place / "bus.conf").write_text(
        '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" '
        '"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">\n'
        f"<busconfig><type>system</type><listen>unix:path={bus}</listen><auth>EXTERNAL</auth>"
        '<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>'
        '<allow own="*"/><allow user="*"/></policy></busconfig>\n'
    )
    (place / "avahi.conf").write_text(
        "[server]\nuse-ipv4=yes\nuse-ipv6=no\nhost-name=e2e-foreign\n[publish]\ndisable-publishing=yes\n"
    )
    environ = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
    started: list[subprocess.Popen[bytes]] = []
    log = (place / "avahi.log").open("wb")

    def start(*command: str) -> None:
        path = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or command[0]
        started.append(subprocess.Popen([path, *command[1:]], stdout=log, stderr=log, env={**os.environ, **environ}))

    try:
        start("dbus-daemon", "--config-file", str(place / "bus.conf"), "--nofork", "--nopidfile", "--nosyslog")
        wait_for(bus.exists, 10.0)
        start("avahi-daemon", "-f", str(place / "avahi.conf"), "--no-drop-root", "--no-chroot", "--no-rlimits")
        try:
            wait_for(lambda: browse(environ, "-a").returncode == 0, 15.0)
        except AssertionError:
            pytest.skip(f"avahi-daemon does not run here: {(place / 'avahi.log').read_text(errors='replace')[-500:]}")
        yield environ
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        log.close()


def browse(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """avahi-browse: parsable, ends when everything known has been printed."""
    command = ["avahi-browse", "--parsable", "--terminate", "--resolve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environ})


def multicast_address() -> str:
    """An IPv4 address on an interface that avahi looks at: it ignores loopback."""
    for name, entries in psutil.net_if_addrs().items():
        state = psutil.net_if_stats().get(name)
        if state is None or not state.isup or "multicast" not in state.flags or name == "lo":
            continue
        for entry in entries:
            if entry.family == socket.AF_INET:
                return str(entry.address)
    pytest.skip("no interface with multicast and an IPv4 address but loopback")
    raise AssertionError


def test_avahi_sees_cloudd_as_any_bonjour_client_would(place: Path, daemons: ExitStack, avahi: dict[str, str]) -> None:
    address = multicast_address()
    cloud = start_cloud(place, daemons, listen="0.0.0.0:0")
    port = port_of(cloud)
    lines: list[list[str]] = []

    def seen() -> bool:
        done = browse(avahi, "_cloudd._tcp")
        lines[:] = [line.split(";") for line in done.stdout.splitlines() if line.startswith("=")]
        return any(line[8] == str(port) for line in lines)

    wait_for(seen, FOUND_S, 0.5)
    record: Any = next(line for line in lines if line[8] == str(port) and line[2] == "IPv4")
    _, _, _, name, kind, domain, host, where, _, text = record
    assert (kind, domain) == ("_cloudd._tcp", "local")
    assert name.replace("\\032", " ") == f"plant {os.getpid()}"
    assert where == address
    assert host.startswith("cloudd-") and host.endswith(".local")
    fingerprint = cloud.status()["about"]["fingerprint"]
    assert f'"fp={dnssd.pin_of(fingerprint)}"' in text and '"v=1"' in text
    assert host == f"cloudd-{dnssd.pin_of(fingerprint)}.local"
    # It says goodbye: a stopped cloudd is not offered to anybody.
    cloud.stop()
    wait_for(lambda: not seen(), FOUND_S, 0.5)
