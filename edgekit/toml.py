"""TOML in with errors that a person can act on, and TOML out; shared by service definitions and package manifests.

Reading goes in three steps: text to a table (`read`), table to a msgspec Struct (`convert`), where every unknown key,
wrong type and value out of range becomes one sentence that names the key, the value and what is allowed instead.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import msgspec.inspect as inspect

StructT = TypeVar("StructT", bound=msgspec.Struct)
_MAX_LINE = 4096
"""Bytes. A dotted key costs the parser the square of its parts, so one long line could keep it busy for hours."""
_MAX_SHOWN = 60


class TomlError(ValueError):
    """The text is not TOML, or not the TOML that was asked for: what is wrong, and what would be right."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}: {advice}" if advice else what)
        self.what = what
        self.advice = advice

    def at(self, where: str) -> str:
        """The message with the place in it: `unknown key "modle" in service "solder": did you mean "model"?`"""
        return f"{self.what} in {where}: {self.advice}" if self.advice else f"{where}: {self.what}"


def read(data: bytes, max_bytes: int) -> dict[str, Any]:
    """Parse UTF-8 TOML of at most `max_bytes`. Raises TomlError (too large, bad UTF-8, syntax, duplicate keys)."""
    if len(data) > max_bytes:
        raise TomlError(f"it has {len(data)} bytes; {max_bytes} are allowed")
    if any(len(line) > _MAX_LINE for line in data.split(b"\n")):
        raise TomlError(f"it has a line of more than {_MAX_LINE} bytes")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TomlError(f"it is not UTF-8 text (byte {error.start})") from None
    except ValueError as error:  # also what int() and datetime() raise for values beyond them
        raise TomlError(f"it is not valid TOML: {error}") from None
    except RecursionError:
        raise TomlError("its tables are nested too deeply") from None


def convert(table: Mapping[str, Any], struct: type[StructT]) -> StructT:
    """Turn a table into `struct`, strictly. Raises TomlError naming the first key that does not fit."""
    info = inspect.type_info(struct)
    _check(table, info, "")
    try:
        return msgspec.convert(table, struct, strict=True)
    except msgspec.ValidationError as error:  # a constraint that _check does not know
        raise TomlError(str(error)) from None


def dump(value: msgspec.Struct) -> str:
    """Write a Struct as TOML: plain values first, then sub-tables and lists of tables. None is left out."""
    lines: list[str] = []
    _dump_table(msgspec.to_builtins(value), "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


# --- checking -------------------------------------------------------------------------------------------------------


def _check(value: object, expected: inspect.Type, path: str) -> None:
    if isinstance(expected, inspect.Metadata):
        expected = expected.type
    match expected:
        case inspect.StructType():
            if not isinstance(value, Mapping):
                raise TomlError(_found(path, value), f"a table ([{path}]) belongs there")
            _check_keys(value, expected, path)
        case inspect.DictType():
            if not isinstance(value, Mapping):
                raise TomlError(_found(path, value), f"a table ([{path}]) belongs there")
            for key, item in value.items():
                _check(item, expected.value_type, _join(path, key))
        case inspect.ListType():
            if not isinstance(value, list):
                raise TomlError(_found(path, value), "a list belongs there")
            for index, item in enumerate(value):
                _check(item, expected.item_type, f"{path}[{index}]")
        case inspect.UnionType():  # an optional value: TOML has no null, so what is written must be the other type
            _check(value, next(t for t in expected.types if not isinstance(t, inspect.NoneType)), path)
        case _:
            if not _fits(value, expected):
                raise TomlError(_found(path, value), f"{_allowed(expected)} belongs there")


def _check_keys(table: Mapping[str, object], expected: inspect.StructType, path: str) -> None:
    known = {field.encode_name: field for field in expected.fields}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"known keys are {', '.join(known)}"
            raise TomlError(f"unknown key {show(_join(path, key))}", hint)
        _check(value, known[key].type, _join(path, key))
    for name, field in known.items():
        if field.required and name not in table:
            raise TomlError(f'"{_join(path, name)}" is missing', f"{_allowed(field.type)} belongs there")


def _fits(value: object, expected: inspect.Type) -> bool:
    match expected:
        case inspect.StrType():
            return isinstance(value, str) and (expected.max_length is None or len(value) <= expected.max_length)
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.LiteralType():
            return any(value == one and type(value) is type(one) for one in expected.values)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool) and _in_range(value, expected)
        case inspect.FloatType():
            return isinstance(value, (int, float)) and not isinstance(value, bool) and _in_range(value, expected)
    raise TypeError(f"no check for {expected}")


def _in_range(value: int | float, expected: inspect.IntType | inspect.FloatType) -> bool:
    """NaN and infinity are valid TOML and fit no setting."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return (
        (expected.ge is None or value >= expected.ge)
        and (expected.gt is None or value > expected.gt)
        and (expected.le is None or value <= expected.le)
        and (expected.lt is None or value < expected.lt)
        and abs(value) < 2**63
    )


def _allowed(expected: inspect.Type) -> str:
    match expected:
        case inspect.Metadata():
            return _allowed(expected.type)
        case inspect.LiteralType():
            shown = [show(one) for one in expected.values]
            return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"
        case inspect.StrType():
            return "text" if expected.max_length is None else f"text of at most {expected.max_length} characters"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(expected, inspect.IntType) else "a number"
            bounds = [
                f"{word} {limit:g}"
                for word, limit in (
                    ("at least", expected.ge),
                    ("above", expected.gt),
                    ("at most", expected.le),
                    ("below", expected.lt),
                )
                if limit is not None
            ]
            return " ".join([noun, " and ".join(bounds)]).strip()
        case inspect.ListType():
            return "a list"
        case inspect.UnionType():
            return _allowed(next(t for t in expected.types if not isinstance(t, inspect.NoneType)))
    return "a table"


def _found(path: str, value: object) -> str:
    return f'"{path}" is {show(value)}'


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def show(value: object) -> str:
    """A value as it may appear in a message: short, on one line, text in double quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = '"' + value.encode("unicode_escape").decode("ascii") + '"' if not value.isprintable() else f'"{value}"'
    elif isinstance(value, Mapping):
        return "a table"
    elif isinstance(value, list):
        return "a list"
    else:
        text = str(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


# --- writing --------------------------------------------------------------------------------------------------------


def _dump_table(table: Mapping[str, Any], path: str, lines: list[str]) -> None:
    plain = {k: v for k, v in table.items() if v is not None and not _is_table(v)}
    nested = {k: v for k, v in table.items() if _is_table(v)}
    if path and (plain or not nested):
        lines += ["", f"[{path}]"]
    lines += [f"{_key(key)} = {_literal(value)}" for key, value in plain.items()]
    for key, value in nested.items():
        where = f"{path}.{_key(key)}" if path else _key(key)
        if isinstance(value, Mapping):
            _dump_table(value, where, lines)
            continue
        for item in value:  # tables in a list hold plain values only in our formats
            lines += ["", f"[[{where}]]"]
            lines += [f"{_key(k)} = {_literal(v)}" for k, v in item.items() if v is not None]


def _is_table(value: object) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _quote(key)


def _literal(value: str | bool | int | float | Sequence[Any]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, (int, float)):
        return repr(value)
    return "[" + ", ".join(_literal(item) for item in value) + "]"


def _quote(text: str) -> str:
    """A TOML basic string: the quote, the backslash and every control character are escaped."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            out.append(f"\\u{ord(char):04x}")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'
