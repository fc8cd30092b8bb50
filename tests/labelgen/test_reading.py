"""Files of strangers: regular ones of bounded size, depth and number of values, or an error that says what is wrong."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from labelgen.errors import ReadError
from labelgen.reading import (
    Only,
    load_json,
    load_yaml,
    open_regular,
    parse_json,
    parse_yaml,
    read_bytes,
    read_text,
    validate,
)


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a folder"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "odd"
    {"a named pipe": os.mkfifo, "a device": lambda p: p.symlink_to("/dev/zero"), "a folder": os.mkdir}[kind](path)
    for read in (open_regular, read_bytes, read_text, load_json, load_yaml):
        with pytest.raises(ReadError, match=f"odd: {kind}; expected a regular file"):
            read(path)


def test_size_and_text(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\xff" * 10)
    assert read_bytes(path, 10) == b"\xff" * 10
    with pytest.raises(ReadError, match="a: more than 9 bytes"):
        read_bytes(path, 9)
    with pytest.raises(ReadError, match="a: not valid UTF-8"):
        read_text(path)
    for name in (tmp_path / "none", "a\0b"):
        with pytest.raises(ReadError):
            read_bytes(name)
    path.write_text("a: [1, 2]")
    assert load_yaml(path) == {"a": [1, 2]}


NINES = [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else 'x'] * 9)}]\n" for i in range(12)]  # 9^12 values


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "values nest too deep"),
        ("".join(NINES), "too many values"),
        ("".join(NINES).replace("[", "{<<: [").replace("]", "]}").replace("x", "{y: 1}"), "too many values"),
        ("a: &a [*a]", "a value contains itself"),
        ("a: " + "9" * 5000, "a number of 5,000 characters"),
        ("a: 1" + ":1" * 5000, "a number of 10,001 characters"),
        ("a: " + "b" * 20_000, "a string of 20,000 characters"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ('a: "\\0"', "a string with NUL"),
        ('a: "\\ud800"', "unpaired surrogate"),
        ('a: "\\U99999999"', "invalid YAML"),
        ("!!int ''", "invalid YAML"),
        ("seeds: [0]\nclips: 2\nseeds: [1]", "line 3: the key 'seeds' is given twice, first in line 1; expected once"),
        ("rows:\n  a: {lr: 1}\n  'a': {lr: 2}", "line 3: the key 'a' is given twice, first in line 2"),
        ("- {a: [{b: 1, c: 2, b: 3}]}", "line 1: the key 'b' is given twice"),
        ("1: a\n0x1: b", "line 2: the key '0x1' is given twice"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: {y: 1}", "line 4: the key '<<' is given twice"),
        ("a: {<<: {y: 1, y: 2}}", "the key 'y' is given twice"),
        ("!!set {a, a}", "the key 'a' is given twice"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
    ],
)
def test_yaml_bombs_are_refused(text, message):
    with pytest.raises(ReadError, match=f"(?s)^here: .*{message}"):
        parse_yaml(text, "here")


def test_all_yaml_is_read_by_this_loader():
    package = Path(__file__).parents[2]
    files = [path for part in ("labelgen", "trainer", "cli") for path in (package / part).rglob("*.py")]
    calling = re.compile(r"\b(yaml\.\w*load|SafeLoader)")
    assert [path.name for path in files if calling.search(path.read_text())] == ["reading.py"]


def test_a_key_of_a_merged_mapping_may_be_given_anew():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "")["b"] == {"x": 3, "y": 2}


def test_aliases_count_as_often_as_they_stand():
    text = "a: &a [1, 2, 3]\nb: [*a, *a]\nc: {<<: {x: 1}, y: *a}\n"
    assert parse_yaml(text, "") == {"a": [1, 2, 3], "b": [[1, 2, 3]] * 2, "c": {"x": 1, "y": [1, 2, 3]}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "invalid JSON"),
        ("[" * 41 + "]" * 41, "deeper than 40"),
        ("9" * 41, "a number of 41 digits"),
        ('{"a": ["\\ud800"]}', "surrogates not allowed"),
        ('{"\\uDC01": 1}', "surrogates not allowed"),
        ("[" + "1," * 4_000_001 + "1]", "more than 4,000,000 values"),
        ("{", "invalid JSON"),
    ],
)
def test_json_bombs_are_refused(text, message):
    begin = time.monotonic()
    with pytest.raises(ReadError, match=f"^here: .*{message}"):
        parse_json(text, "here")
    assert parse_json(json.dumps({"a": [1.5, None]}), "") == {"a": [1.5, None]} and time.monotonic() - begin < 60


FORM = {"a": int, "b?": [str | None], "c?": {"*": {"d": float}}, "e?": Only({"f?": [int, ...], "g?": bool})}


@pytest.mark.parametrize(
    "value, message",
    [
        ([], "it is"),
        ({}, "it has no a"),
        ({"a": "1"}, "a is '1', expected a whole number"),
        ({"a": True}, "a is True, expected a whole number"),
        ({"a": 2**63}, "smaller than 2.63"),
        ({"a": 1, "b": ["x", 1]}, "b is 1, expected text or nothing"),
        ({"a": 1, "e": {"f": []}}, "e, f is .., expected at least one entry"),
        ({"a": 1, "e": {"h": 1}}, "e has the unknown key 'h', expected f or g"),
        ({"a": 1, "c": {"x": {"d": float("nan")}}}, "d is nan"),
        ({"a": 1, "c": {1: {"d": 1.0}}}, "a name is 1"),
    ],
)
def test_a_form_says_what_does_not_fit(value, message):
    with pytest.raises(ValueError, match=message):
        validate(value, FORM, "it")


def test_a_form_leaves_other_keys_alone():
    validate({"a": 1, "b": ["x", None], "c": {"y": {"d": 1}}, "e": {"f": [1], "g": True}, "z": object()}, FORM, "it")
