"""Label kinds: what is computed for each clip and each video."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping

from labelgen import plugins
from labelgen.errors import ConfigError
from labelgen.labels.kind import Kind

# A new kind is a file and one line here. Reading a shard imports these files, so that they import Numba only to compute.
LABELS = {
    "statistics": "labelgen.labels.statistics:STATISTICS",
    "curriculum": "labelgen.labels.curriculum:CURRICULUM",
    "pace": "labelgen.labels.pace:PACE",
    "order": "labelgen.labels.order:ORDER",
}

# Kinds that are made on request; shards with them can always be read.
ON_DEMAND = {"amount": "labelgen.labels.amount:AMOUNT"}


def known() -> list[Kind]:
    """All label kinds that a shard may hold."""
    return kinds(LABELS | ON_DEMAND)


def kinds(labels: Mapping[str, str] = LABELS) -> list[Kind]:
    """The label kinds of a registry such as LABELS, in the order of their data sets in a shard."""
    return [pkgutil.resolve_name(where) for where in labels.values()]


def register_own() -> None:
    """Add the label kinds that the user has named, see labelgen.plugins, to LABELS. Raises ConfigError if one cannot be
    imported or its name is taken."""
    for path in plugins.named():
        if isinstance(found := plugins.find(path), Kind) and LABELS.setdefault(found.name, path) != path:
            raise ConfigError(
                f"{path}: its kind is called {found.name!r}, which is the name of {LABELS[found.name]}; choose another"
            )
