"""Code outside of vssl, by its import path MODULE:NAME, such as my.module:Arrow.

It is imported only if the user has named it: checkpoints, shards and recipes, which may come from others, record what they were
made with but cause no import. The names are kept in an environment variable, so that child processes know them, too.
"""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Iterable
from typing import Any

from labelgen.errors import ConfigError

VARIABLE = "VSSL_USE"  # import paths, separated by blanks
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_path(name: str) -> bool:
    """Whether a name is an import path; no name within vssl looks like one."""
    return ":" in name


def named() -> list[str]:
    """The import paths that the user has named."""
    return os.environ.get(VARIABLE, "").split()


def use(path: str) -> None:
    """Name an import path for this process and its child processes. Raises ConfigError if it is not one."""
    if not _PATH.fullmatch(path):
        raise ConfigError(f"{path!r:.80}: expected an import path MODULE:NAME, such as my.module:Arrow")
    if path not in (before := named()):
        os.environ[VARIABLE] = " ".join([*before, path])


def check_named(names: Iterable[str], error: type[ConfigError] = ConfigError) -> None:
    """Raises an error of this type for an import path that the user has not named."""
    for name in names:
        if is_path(name) and name not in named():
            raise error(
                f"{name!r:.80} is code outside of vssl, which is not imported just because a file names it; if you trust it, "
                f"name it yourself: {VARIABLE}=MODULE:NAME in the environment"
            )


def find(path: str, error: type[ConfigError] = ConfigError) -> Any:
    """The object at an import path that the user has named. Raises an error of this type for other paths and if the
    import fails."""
    check_named([path], error)
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as cause:
        raise error(
            f"{path}: cannot be imported ({cause}); expected MODULE:NAME of a module that Python finds: install it, or add its "
            "folder to PYTHONPATH"
        ) from cause
