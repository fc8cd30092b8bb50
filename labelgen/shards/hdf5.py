"""The HDF5 structure of a shard, as other programs see it, inspected in a separate process because files may be untrusted.

The HDF5 library trusts the files that it opens: damaged files crash or hang it, crafted ones make it read other files.
Readers avoid it; only `verify` checks, in a separate process, whether it finds the arrays where the header says.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from labelgen.processes import start
from labelgen.shards.checks import escaped
from labelgen.shards.header import Header
from labelgen.shards.schema import attributes

_SECONDS = 20  # for one file
_LONGEST = 1 << 24  # bytes of an answer
_MEMORY = 4 << 30  # bytes of address space


class Viewer:
    """Inspects HDF5 files in a separate process, which is started on demand and again after each crash. Use it in a
    `with` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def fault(self, path: str, header: Header) -> str | None:
        """How the HDF5 structure of a file differs from its header, None if it does not."""
        seen = self._seen(path)
        if "fault" in seen:
            return str(seen["fault"])
        stored = {
            name: [where.dtype, list(where.shape), where.offset if where.nbytes else None]
            for name, where in header.stored.items()
        }
        if seen["datasets"] != stored:
            names = [
                name for name in seen["datasets"].keys() | stored if seen["datasets"].get(name) != stored.get(name)
            ]
            return f"has other data sets: {escaped(', '.join(sorted(names))[:200])}"
        expected = attributes(vars(header.shared), header.sha256)
        groups = [group for group, values in seen["attributes"].items() if values != _plain(expected.get(group, {}))]
        return f"has other attributes of {escaped(', '.join(groups)[:200])}" if groups else None

    def _seen(self, path: str) -> dict[str, Any]:
        if self._process is None:
            no_plugins = {"HDF5_PLUGIN_PRELOAD": "::"}  # so that no file makes HDF5 load a library
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = start(_answer, threads=1, variables=no_plugins, **pipes)
        process = self._process
        assert process.stdin and process.stdout
        timer = threading.Timer(_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(path).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline(_LONGEST)
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            self._end()
            return {"fault": f"crashes the HDF5 library, or hangs it for more than {_SECONDS} s"}
        seen: dict[str, Any] = json.loads(line)
        return seen

    def _end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, np.generic | np.ndarray) else value for key, value in values.items()
    }


# --- in the other process


def _answer() -> None:
    import h5py

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what libraries print must not mix with the answers
        for line in sys.stdin.buffer:
            try:
                with h5py.File(json.loads(line), "r") as file:
                    answer = json.dumps(_view(file))
            except _Foreign as error:
                answer = json.dumps({"fault": f"has {error}"})
            except Exception as error:  # h5py raises errors of many types
                answer = json.dumps({"fault": f"cannot be read ({type(error).__name__})"})
            out.write(answer.encode() + b"\n")
            out.flush()


class _Foreign(Exception):
    """Something that HDF5 files may contain, but shards do not."""


def _view(file: Any) -> dict[str, Any]:
    """The type, shape and offset of every data set, and the attributes of every group; raises _Foreign for everything
    else that HDF5 files can contain, without following it."""
    import h5py

    datasets, found = {}, {"/": dict(file.attrs)}
    for group in _members(file):
        if not isinstance(inside := file[group], h5py.Group):
            raise _Foreign("a data set without a group")
        found[group] = dict(inside.attrs)
        for name in _members(inside):
            dataset = inside[name]
            if not isinstance(dataset, h5py.Dataset):
                raise _Foreign("a group in a group")
            settings = dataset.id.get_create_plist()
            if settings.get_layout() != h5py.h5d.CONTIGUOUS or settings.get_external_count() or settings.get_nfilters():
                raise _Foreign("a data set that is not contiguous in the file")
            offset = dataset.id.get_offset() if dataset.size else None  # an empty one has no place
            datasets[f"{group}/{name}"] = [dataset.dtype.str, list(dataset.shape), offset]
    return {"datasets": datasets, "attributes": {group: _plain(values) for group, values in found.items()}}


def _members(group: Any) -> Iterator[str]:
    import h5py

    for name in group:
        if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise _Foreign("a link")
        yield name
