"""Every command of a parser, each with arguments that are only there to be parsed, and a daemon that is none."""

from __future__ import annotations

import argparse
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def leaves(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[argparse.Action]]]:
    """Every verb or action that does something itself, as its words and its arguments."""
    inner = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not inner:
        yield words, parser._actions
    for group in inner:
        for name, one in group.choices.items():
            yield from leaves(one, (*words, name))


def example(parser: argparse.ArgumentParser, words: tuple[str, ...], file: Path) -> list[str]:
    """A command that argparse accepts: what is needed and nothing else; `file` for every path."""
    for word in words:
        inner = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
        parser = inner.choices[word]
    line = list(words)
    for group in parser._mutually_exclusive_groups:
        if group.required:
            line += _written(group._group_actions[0], file)
    for one in parser._actions:
        if one.required and one.nargs != argparse.PARSER:
            line += _written(one, file)
    return line


def _written(action: argparse.Action, file: Path) -> list[str]:
    value = str(file) if action.type is Path else str(next(iter(action.choices or ["x"])))
    if not action.option_strings:
        return [value]
    return [action.option_strings[0], *([] if action.nargs == 0 else [value])]


FOREIGN = (
    b"",
    b"\x1b[2Jno HTTP\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n[1",
    b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}",
)
"""Replies that no daemon of ours gives to a question that has an answer."""


@contextmanager
def answering(path: Path, reply: bytes) -> Iterator[None]:
    """Something else than a daemon on a unix socket: it reads a request, gives this reply and closes."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()

    def answer() -> None:
        while True:
            try:
                with listening.accept()[0] as connection:
                    connection.recv(65_536)
                    connection.sendall(reply)
            except ConnectionError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)
