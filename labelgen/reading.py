"""Untrusted files: only regular files of bounded size are read, and only YAML and JSON of bounded content."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, get_args, get_origin

import yaml

from labelgen.errors import ReadError

YAML_BYTES, JSON_BYTES, TEXT_BYTES = 1 << 18, 1 << 26, 1 << 30
_NODES, _JSON_NODES = 20_000, 4_000_000  # values, including those that aliases repeat
_DEPTH = 40  # levels of nested mappings and lists
_CHARACTERS = 10_000  # of one string of a YAML file
_NUMBER = 40  # characters of a number
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # surrogate escapes in JSON, which may or may not form pairs
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """`regular_handle` as a binary file."""
    return os.fdopen(regular_handle(path), "rb")


def regular_handle(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading a regular file, or one that a link leads to; never blocks, as opening a pipe would.

    Raises OSError if it cannot be opened, its subclass ReadError for a pipe, socket, device or folder.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            check_regular(path)
        raise
    except ValueError as error:
        raise ReadError(f"{str(path)!r}: not a valid path ({error})") from error
    try:
        _check_kind(path, os.fstat(handle).st_mode)
    except BaseException:
        os.close(handle)
        raise
    return handle


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises ReadError if a path leads to a pipe, socket, device or folder, OSError if nothing is there."""
    _check_kind(path, os.stat(path).st_mode)


def _check_kind(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ReadError(f"{os.fspath(path)}: {_KINDS.get(stat.S_IFMT(mode), 'no file')}; expected a regular file")


def read_bytes(path: str | os.PathLike[str], limit: int = TEXT_BYTES) -> bytes:
    """The content of a regular file. Raises ReadError if it cannot be read or has more than `limit` bytes."""
    try:
        with open_regular(path) as file:
            content = file.read(
                min(os.fstat(file.fileno()).st_size, limit) + 1
            )  # not `limit`, which would be allocated
            content += file.read(limit + 1 - len(content)) if len(content) <= limit else b""
    except ReadError:
        raise
    except OSError as error:
        raise ReadError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from error
    if len(content) > limit:
        raise ReadError(f"{os.fspath(path)}: more than {limit:,} bytes; expected a smaller file")
    return content


def read_text(path: str | os.PathLike[str], limit: int = TEXT_BYTES, encoding: str = "utf-8") -> str:
    """The content of a regular UTF-8 file (encoding: utf-8 or utf-8-sig), line ends unchanged. Raises ReadError."""
    try:
        return read_bytes(path, limit).decode(encoding)
    except UnicodeDecodeError as error:
        raise ReadError(f"{os.fspath(path)}: not valid UTF-8 ({error})") from error


def load_json(path: str | os.PathLike[str], limit: int = JSON_BYTES) -> Any:
    """The content of a JSON file, see `parse_json`. Raises ReadError."""
    return parse_json(read_text(path, limit), os.fspath(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises ReadError, which begins with `where`, if the JSON is invalid, nests deeper than
    40 levels, or holds more than four million values, an integer of more than 40 digits or an unpaired surrogate."""
    if sum(map(text.count, ",:[{")) > _JSON_NODES:
        raise ReadError(f"{where}: more than {_JSON_NODES:,} values; expected fewer")
    try:
        value = json.loads(text, parse_int=_whole)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # an unpaired surrogate could be neither printed nor written
    except (ValueError, RecursionError) as error:
        raise ReadError(f"{where}: invalid JSON ({error})") from error
    level = [value]
    for _ in range(_DEPTH):
        level = [child for one in level if isinstance(one, (dict, list)) for child in _children(one)]
    if level:
        raise ReadError(f"{where}: values nest deeper than {_DEPTH} levels; expected fewer")
    return value


def _children(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value


def _whole(text: str) -> int:
    if len(text) > _NUMBER:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def load_yaml(path: Any, limit: int = YAML_BYTES) -> Any:
    """The content of a YAML file, see `parse_yaml`; path: str, Path or a resource of importlib.resources. Raises ReadError."""
    if isinstance(path, (str, Path)):
        return parse_yaml(read_text(path, limit), os.fspath(path))
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))  # part of this package


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text, of plain types only. Raises ReadError, which begins with `where`, if the YAML is invalid,
    repeats a key of a mapping, nests deeper than 40 levels, or holds more than 20,000 values (including those that aliases
    repeat), a string of more than 10,000 characters or with NUL, or a number of more than 40 characters."""
    try:
        return yaml.load(text, _Loader)
    except _Twice as error:
        raise ReadError(f"{where}: {error}") from error
    except yaml.YAMLError as error:
        raise ReadError(f"{where}: invalid YAML: {error}") from error
    except (
        ValueError,
        OverflowError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:  # PyYAML, for invalid numbers and dates
        raise ReadError(f"{where}: invalid YAML ({error})") from error


class _Twice(yaml.YAMLError):
    """A mapping has the same key twice."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that counts values, including those that aliases repeat, before it builds them, and refuses repeated keys."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth, self._sizes, self._total = 0, dict[int, int](), 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        alias = self.check_event(yaml.AliasEvent)
        before, self._depth = self._total, self._depth + 1
        if self._depth > _DEPTH:
            raise yaml.MarkedYAMLError("values nest too deep", None, f"expected at most {_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise yaml.MarkedYAMLError("a value contains itself", None, "expected no recursion", mark)
        self._total += self._sizes[id(node)] if alias else 1
        self._sizes[id(node)] = self._sizes[id(node)] if alias else self._total - before
        if self._total > _NODES:
            raise yaml.MarkedYAMLError("too many values", None, f"expected at most {_NODES:,}", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[Any, yaml.Mark] = {}
        for own, _ in node.value:
            if not isinstance(own, yaml.ScalarNode):
                continue  # not a plain value: building the mapping refuses it
            key = (
                own.value if own.tag == "tag:yaml.org,2002:merge" else self.construct_object(own)
            )  # 1 and 0x1 are the same key
            if key in first:
                raise _Twice(
                    f"line {own.start_mark.line + 1}: the key {own.value!r:.60} is given twice, first in line "
                    f"{first[key].line + 1}; expected once, as one of the two would have no effect"
                )
            first[key] = own.start_mark
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if not isinstance(value, str):
            return value
        text = node.tag == "tag:yaml.org,2002:str"
        if len(value) > (_CHARACTERS if text else _NUMBER):
            raise yaml.MarkedYAMLError(
                f"a {'string' if text else 'number'} of {len(value):,} characters",
                None,
                "expected a shorter one",
                node.start_mark,
            )
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise yaml.MarkedYAMLError(
                "a string with NUL or an unpaired surrogate", None, "expected neither", node.start_mark
            )
        return value


class Only(dict[str, Any]):
    """The form of a mapping that has no other keys than these, see `validate`."""


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "nothing"}
_WORDS |= {dict: "a mapping", list: "a list", tuple: "a list"}


def validate(value: Any, form: Any, name: str) -> None:
    """Check a value that was read from a file. Raises ValueError with the fault, the value and what was expected.

    form: a type of _WORDS or a union of them, float for any number; [form of each entry], [form, ...] for at least one
    entry; {key: form}, where only `Only` refuses other keys, "key?" may be missing and "*" stands for any key
    name: the value's name in messages; "it" for a whole file, whose entries are named by their keys alone
    """
    if isinstance(form, dict):
        _check_type(value, dict, name)
        if isinstance(form, Only) and (unknown := value.keys() - {key.removesuffix("?") for key in form}):
            known = " or ".join(key.removesuffix("?") for key in form)
            raise ValueError(f"{name} has the unknown key {min(map(repr, unknown)):.60}, expected {known}")
        for key, wanted in form.items():
            bare = key.removesuffix("?")
            within = "" if name == "it" else f"{name}, "
            if key == "*":
                for own, one in value.items():
                    validate(own, str, "a name")
                    validate(one, wanted, within + own)
            elif bare in value:
                validate(value[bare], wanted, within + bare)
            elif bare == key:
                raise ValueError(f"{name} has no {key}")
    elif isinstance(form, list):
        _check_type(value, list, name)
        if not value and len(form) > 1:
            raise ValueError(f"{name} is [], expected at least one entry")
        for one in value:
            validate(one, form[0], name)
    else:
        _check_type(value, form, name)


def _check_type(value: Any, form: Any, name: str) -> None:
    kinds = [get_origin(kind) or kind for kind in (get_args(form) if isinstance(form, UnionType) else (form,))]
    allowed = (*kinds, int) if float in kinds else tuple(kinds)
    if not isinstance(value, allowed) or type(value) is bool and bool not in kinds:
        expected = " or ".join(_WORDS[kind] for kind in kinds)
        raise ValueError(f"{name} is {value!r:.60}, expected {expected}")
    if isinstance(value, (int, float)) and not abs(value) < 1 << 63:
        raise ValueError(f"{name} is {value}, expected a finite number smaller than 2^63")
