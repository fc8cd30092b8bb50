"""What options of several commands take."""

from __future__ import annotations

import os
from pathlib import Path

import click


class _Written(click.Path):
    """A path that is written, which the libraries that write it want in UTF-8."""

    def convert(self, value, param, ctx):
        path = super().convert(value, param, ctx)
        try:
            os.fspath(path).encode()
        except UnicodeEncodeError:
            from labelgen.texts import path_text

            self.fail(f"{path_text(path)}: a name that is no UTF-8; expected one that is", param, ctx)
        return path


WRITTEN = _Written(path_type=Path)
