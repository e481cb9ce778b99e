"""Real handshakes between real sockets: who is let in, who is refused before a byte of a request, and when."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgekit.identity import (
    Authority,
    IdentityError,
    IdentityStore,
    client_context,
    device_id,
    generate_key,
    make_csr,
    peer_device_id,
    pinned_context,
    save_key,
    server_context,
)

DAY = 86_400.0


@dataclass
class Party:
    """Files of one side."""

    key: Path
    certificate: Path
    identity: str


@dataclass
class Outcome:
    """What the server saw."""

    received: bytes = b""
    peer: str | None = None
    expired_peer: str | None = None
    error: str = ""
    contexts: list[ssl.SSLContext] = field(default_factory=list)


def _party(directory: Path, name: str, certificate: str, key_source: object) -> Party:
    key = directory / f"{name}-key.pem"
    save_key(key_source, key)  # type: ignore[arg-type]
    path = directory / f"{name}.pem"
    path.write_text(certificate)
    return Party(key, path, device_id(key_source.public_key()))  # type: ignore[attr-defined]


def server_of(authority: Authority, directory: Path, name: str = "server") -> Party:
    key = generate_key()
    return _party(directory, name, authority.server_certificate(key, ["127.0.0.1"], time.time()), key)


def device_of(authority: Authority, directory: Path, name: str = "device", lifetime: float = 30 * DAY) -> Party:
    key = generate_key()
    return _party(directory, name, authority.sign_csr(make_csr(key), time.time(), lifetime, 60 * DAY)[0], key)


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> Outcome:
    """One connection: the client sends `secret`, the server answers `welcome`; returns the server's view."""
    outcome = Outcome()
    left, right = socket.socketpair()
    left.settimeout(5)
    right.settimeout(5)

    def serve() -> None:
        try:
            with server.wrap_socket(left, server_side=True) as connection:
                outcome.peer = peer_device_id(connection)
                outcome.expired_peer = peer_device_id(connection, allow_expired=True)
                outcome.received = connection.recv(100)
                connection.sendall(b"welcome")
        except OSError as error:
            outcome.error = str(error)
        finally:
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(right) as connection:
            connection.sendall(b"secret")
            assert connection.recv(100) == b"welcome"
    finally:
        right.close()
        thread.join()
    return outcome


@pytest.fixture
def authority() -> Authority:
    return Authority.create("plant", time.time())


@pytest.fixture
def root(authority: Authority, tmp_path: Path) -> Path:
    authority.save(tmp_path / "authority")
    return tmp_path / "authority" / "root.pem"


def test_a_device_and_its_server_know_each_other(authority: Authority, root: Path, tmp_path: Path) -> None:
    server, device = server_of(authority, tmp_path), device_of(authority, tmp_path)
    outcome = shake(
        server_context(server.certificate, server.key, root), client_context(root, device.certificate, device.key)
    )
    assert outcome.received == b"secret"
    assert outcome.peer == device.identity


def test_a_stranger_is_served_but_has_no_name(authority: Authority, root: Path, tmp_path: Path) -> None:
    server = server_of(authority, tmp_path)
    outcome = shake(server_context(server.certificate, server.key, root), client_context(root))
    assert outcome.received == b"secret"
    assert outcome.peer is None
    assert peer_device_id(None) is None


def test_a_rogue_server_gets_no_byte(authority: Authority, root: Path, tmp_path: Path) -> None:
    rogue_authority = Authority.create("plant", time.time())  # it even has the same name
    rogue = server_of(rogue_authority, tmp_path, "rogue")
    device = device_of(authority, tmp_path)
    rogue_root = tmp_path / "rogue-root.pem"
    rogue_root.write_text(rogue_authority.certificate_pem)
    outcome = Outcome()
    left, right = socket.socketpair()

    def serve() -> None:
        context = server_context(rogue.certificate, rogue.key, rogue_root)
        try:
            with context.wrap_socket(left, server_side=True) as connection:
                outcome.peer = peer_device_id(connection)
                outcome.received = connection.recv(100)
        except OSError as error:
            outcome.error = str(error)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(ssl.SSLCertVerificationError):
        client_context(root, device.certificate, device.key).wrap_socket(right)
    right.close()
    thread.join()
    left.close()
    assert outcome.received == b""
    assert outcome.peer is None


def test_only_the_parsed_certificate_is_trusted(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL reads labels that the parser skips; a certificate hidden that way must not become a second root."""
    other = Authority.create("other", time.time()).certificate_pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE")
    assert len(pinned_context(authority.certificate_pem + other).get_ca_certs()) == 1
    store = IdentityStore(tmp_path / "identity")
    certificate, _ = authority.sign_csr(make_csr(store.key), time.time())
    identity = store.install(certificate, authority.certificate_pem + other)
    assert identity.authority_path.read_text() == authority.certificate_pem


def test_an_enrolled_device_cannot_pose_as_the_server(authority: Authority, root: Path, tmp_path: Path) -> None:
    impostor = device_of(authority, tmp_path, "impostor")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        shake(server_context(impostor.certificate, impostor.key, root), client_context(root))


def test_a_server_certificate_is_no_device(authority: Authority, root: Path, tmp_path: Path) -> None:
    server = server_of(authority, tmp_path)
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        shake(
            server_context(server.certificate, server.key, root),
            client_context(root, server.certificate, server.key),
        )


def test_a_device_of_another_authority_is_refused(authority: Authority, root: Path, tmp_path: Path) -> None:
    server = server_of(authority, tmp_path)
    foreigner = device_of(Authority.create("plant", time.time()), tmp_path, "foreigner")
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        shake(
            server_context(server.certificate, server.key, root),
            client_context(root, foreigner.certificate, foreigner.key),
        )


def test_an_expired_device_is_a_stranger_except_for_renewal(authority: Authority, root: Path, tmp_path: Path) -> None:
    server, device = server_of(authority, tmp_path), device_of(authority, tmp_path, lifetime=-5 * DAY)
    outcome = shake(
        server_context(server.certificate, server.key, root), client_context(root, device.certificate, device.key)
    )
    assert outcome.received == b"secret"
    assert outcome.peer is None
    assert outcome.expired_peer == device.identity


def test_an_expired_server_is_refused_unless_the_clock_is_surely_wrong(
    authority: Authority, root: Path, tmp_path: Path
) -> None:
    key = generate_key()
    server = _party(tmp_path, "old", authority.server_certificate(key, ["127.0.0.1"], time.time(), -DAY / 2), key)
    context = server_context(server.certificate, server.key, root)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake(context, client_context(root))
    assert shake(context, client_context(root, now=0.0)).received == b"secret"


def test_old_protocols_are_off(authority: Authority, root: Path, tmp_path: Path) -> None:
    server = server_of(authority, tmp_path)
    for context in (client_context(root), server_context(server.certificate, server.key, root)):
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_unusable_files_are_named(authority: Authority, root: Path, tmp_path: Path) -> None:
    server, other = server_of(authority, tmp_path), server_of(authority, tmp_path, "other")
    with pytest.raises(IdentityError, match="cannot be used"):
        server_context(server.certificate, other.key, root)
    with pytest.raises(IdentityError, match="not a usable"):
        client_context(root, server.certificate, other.key)
    root.write_text("nonsense")
    with pytest.raises(IdentityError, match="cannot be read"):
        client_context(root)


def test_a_stored_identity_opens_a_connection(authority: Authority, root: Path, tmp_path: Path) -> None:
    store = IdentityStore(tmp_path / "identity")
    identity = store.install(authority.sign_csr(make_csr(store.key), time.time())[0], authority.certificate_pem)
    server = server_of(authority, tmp_path)
    outcome = shake(
        server_context(server.certificate, server.key, root),
        client_context(identity.authority_path, identity.certificate_path, identity.key_path),
    )
    assert outcome.peer == store.device_id
