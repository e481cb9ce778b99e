"""The `[source]` table: which kind has which keys, and what a path and a URL may be."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from edgekit import toml
from edgekit.services.definition import Source

_SOURCE_KEYS = {
    "path": ("folder", "v4l2", "replay"),
    "url": ("rtsp", "mjpeg"),
    "credentials": ("rtsp", "mjpeg"),
    "transport": ("rtsp",),
    "width": ("v4l2",),
    "height": ("v4l2",),
    "fps": ("v4l2", "rtsp", "mjpeg", "replay"),
    "silent_s": ("v4l2", "rtsp", "mjpeg"),
    "speed": ("replay",),
    "repeat": ("replay",),
}
"""Which kinds of source have a key; the others have all kinds, and ignore them where they mean nothing."""
_DEVICE = re.compile(r"/dev/video\d{1,3}|/dev/v4l/by-(?:id|path)/[A-Za-z0-9._:+-]{1,200}")
_SCHEMES = {"rtsp": ("rtsp", "rtsps"), "mjpeg": ("http", "https")}


def place(source: Source) -> str:
    """Where the pictures come from, for people: without the query of a URL, which often holds a password."""
    if source.kind in _SCHEMES:
        address = source.url.partition("?")[0].partition("#")[0]
        return address if source.kind == "rtsp" else f"{source.kind} {address}"
    return f"{source.kind} {source.path}".strip()


def check_source(source: Source) -> None:
    """Raise TomlError for a source that cannot be read, or a key that means nothing to it."""
    default = Source()
    for key, kinds in _SOURCE_KEYS.items():
        if source.kind not in kinds and getattr(source, key) != getattr(default, key):
            only = " or ".join(f'"{kind}"' for kind in kinds)
            raise toml.TomlError(f'"source.{key}" is set', f"it belongs to source.kind = {only} only")
    if "path" in _keys_of(source.kind):
        check_path("source.path", source.path)
    if not source.pattern or "/" in source.pattern or "\0" in source.pattern:
        raise toml.TomlError(f'"source.pattern" is {toml.show(source.pattern)}', "a file name pattern belongs there")
    if source.kind == "v4l2" and not _DEVICE.fullmatch(source.path):
        raise toml.TomlError(
            f'"source.path" is {toml.show(source.path)}',
            "a camera like /dev/video0 or /dev/v4l/by-id/... belongs there",
        )
    if bool(source.width) != bool(source.height):
        raise toml.TomlError('"source.width" and "source.height" belong together', "set both or neither")
    if source.kind in _SCHEMES:
        _check_url(source)
        if source.credentials:
            check_path("source.credentials", source.credentials)


def _keys_of(kind: str) -> list[str]:
    return [key for key, kinds in _SOURCE_KEYS.items() if kind in kinds]


def _check_url(source: Source) -> None:
    """Nothing that is not printable ASCII: the URL goes to foreign parsers, and into messages."""
    schemes = _SCHEMES[source.kind]
    wanted = f"a URL like {schemes[0]}://10.0.0.9/stream belongs there"
    found = f'"source.url" is {toml.show(_without_user(source.url))}'
    if not all("!" <= character <= "~" for character in source.url):
        raise toml.TomlError(found, wanted)
    try:
        parts = urlsplit(source.url)
        known = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise toml.TomlError(found, wanted)
    if "@" in parts.netloc:
        raise toml.TomlError(
            '"source.url" has a user in it', "put USER:PASSWORD into a file and name that in source.credentials"
        )


def _without_user(url: str) -> str:
    """For messages: what stands before an @ may be a password."""
    return re.sub(r"(?<=//)[^/]*@", "", url)


def check_path(key: str, path: str) -> None:
    """A worker runs in an empty directory, so a relative path would mean nothing to it."""
    if not path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise toml.TomlError(f'"{key}" is {toml.show(path)}', 'an absolute path without ".." belongs there')
