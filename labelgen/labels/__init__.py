"""Label kinds: what is computed of each clip and each video."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping

from labelgen.labels.kind import Kind

# A new kind is its file and one line here. Reading a shard imports these files: they import Numba where they compute.
LABELS = {
    "statistics": "labelgen.labels.statistics:STATISTICS",
    "curriculum": "labelgen.labels.curriculum:CURRICULUM",
    "pace": "labelgen.labels.pace:PACE",
    "order": "labelgen.labels.order:ORDER",
}

# Those that are made if they are asked for; shards with them can always be read.
ON_DEMAND = {"amount": "labelgen.labels.amount:AMOUNT"}


def known() -> list[Kind]:
    """All label kinds that a shard may hold."""
    return kinds(LABELS | ON_DEMAND)


def kinds(labels: Mapping[str, str] = LABELS) -> list[Kind]:
    """The label kinds of a registry such as LABELS, in the order of their data sets in a shard."""
    return [pkgutil.resolve_name(where) for where in labels.values()]
