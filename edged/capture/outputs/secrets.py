"""Files with secrets: read anew for every connection, so that a changed one is used without a restart."""

from __future__ import annotations

import os
import ssl
import stat

MAX_SECRET = 8192
"""Bytes of a secret file."""


class SecretError(Exception):
    """A file with a secret or a certificate cannot be used; the text says which and why."""


def read_secret(path: str) -> bytes:
    """The content without white space around it. Raises SecretError, also if everybody may read the file."""
    data = _private(path).strip()
    if not data:
        raise SecretError(f"the file {path} is empty")
    return data


def read_credentials(path: str) -> tuple[str, str]:
    """User and password from a file with USER:PASSWORD. Raises SecretError."""
    try:
        user, colon, password = read_secret(path).decode("utf-8").partition(":")
    except UnicodeDecodeError:
        raise SecretError(f"the file {path} is not UTF-8 text") from None
    if not colon or not user:
        raise SecretError(f"the file {path} must have USER:PASSWORD in it")
    return user, password


def tls_context(ca_file: str, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """A context that verifies the server and its name, by the system's authorities or those in `ca_file`, and shows
    the client certificate if there is one. Raises SecretError. Blocks.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SecretError(f"the authorities in {ca_file} cannot be used: {_reason(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate:
        _private(key)
        try:
            # An encrypted key would make OpenSSL ask at a terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise SecretError(
                f"the client certificate {certificate} with {key} cannot be used: {_reason(error)}"
            ) from None
    return context


def _private(path: str) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretError(f"the file {path} cannot be read: {_reason(error)}") from None
    with os.fdopen(file, "rb") as handle:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise SecretError(f"{path} is no file")
        if status.st_mode & stat.S_IRWXO:
            raise SecretError(f"everybody on this machine may open the secret in {path}; chmod o= {path}")
        data = handle.read(MAX_SECRET + 1)
    if len(data) > MAX_SECRET:
        raise SecretError(f"the file {path} has more than {MAX_SECRET} bytes")
    return data


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
