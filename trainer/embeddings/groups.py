"""Groups of the videos or moments of a table as files: a CSV file, a contact sheet per group, and a page of all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from labelgen.files import write_png, write_text
from trainer.embeddings.clustering import Points, clusters, points
from trainer.embeddings.sheets import figures, moment, thumbnails_sheet
from trainer.embeddings.table import Table
from trainer.evaluate.results import csv_text
from trainer.pages.page import join, page, paragraph

_SHOWN = 18  # pictures of a group


@dataclass(frozen=True)
class GroupKind:
    """A kind of groups: name of the files, plural and singular name, the value of each member and its meaning."""

    name: str
    plural: str
    singular: str
    value: str
    about: str


CLUSTERS = GroupKind("clusters", "clusters", "Cluster", "distance", "of the features from the mean of the cluster")


@dataclass(frozen=True)
class Groups:
    """Groups of points, see clustering.points. group: int64 [n], number of each point's group, -1 for none; values:
    float64 [n]"""

    kind: GroupKind
    table: Table
    points: Points
    group: np.ndarray
    values: np.ndarray

    @property
    def count(self) -> int:
        return int(self.group.max()) + 1

    @property
    def title(self) -> str:
        """The number of groups and of videos or moments, in words."""
        noun = "moments" if self.points.level == "row" else "videos"
        return f"{self.count} {self.kind.plural} of {len(self.group):,} {noun}"

    def describe(self, number: int) -> str:
        """The size of a group, and its most frequent label or, without labels, the first names."""
        fields = [self.points.fields[point] for point in np.flatnonzero(self.group == number)]
        label, count = Counter(field["label"] for field in fields).most_common(1)[0]
        names = ", ".join(dict.fromkeys(field["id"] for field in fields[:4])) + (", ..." if len(fields) > 4 else "")
        return f"{len(fields):,}, " + (f"{count:,} of them {label}" if label else names)

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.csv, a sheet per group with the most typical members first, and index.html; returns the first and
        the last path."""
        folder.mkdir(parents=True, exist_ok=True)
        rows, page_file = folder / f"{self.kind.name}.csv", folder / "index.html"
        write_text(rows, self._csv())
        for old in folder.glob(f"{self.kind.name}-[0-9]*.png"):
            old.unlink()
        sections = [
            (f"group-{number}", f"{self.kind.singular} {number}", self._draw(folder, number))
            for number in range(self.count)
        ]
        lead = (
            f"Each shows up to {_SHOWN} members, the most typical first. "
            f"{self.kind.value.capitalize()}: {self.kind.about}."
        )
        write_text(page_file, page(self.title, lead, "", sections, f"{self.table.name}: {self.table.rows:,} rows"))
        return [rows, page_file]

    def _csv(self) -> str:
        names = ("id", "path", "label", "start", "end")
        fields = self.points.fields
        ordered = sorted(range(len(fields)), key=lambda i: (self.group[i] < 0, self.group[i], fields[i]["id"]))
        rows = [
            {
                "group": self.group[i],
                **{name: fields[i][name] for name in names},
                self.kind.value: f"{self.values[i]:.6f}",
            }
            for i in ordered
            if self.group[i] >= 0 or self.kind is CLUSTERS
        ]
        return csv_text(rows, ["group", *names, self.kind.value])

    def _draw(self, folder: Path, number: int) -> Markup:
        """Write the sheet of a group; returns its section of the page."""
        members = np.flatnonzero(self.group == number)
        typical = self.values[members] if self.kind is CLUSTERS else -self.values[members]
        chosen = members[np.argsort(typical, kind="stable")][:_SHOWN]
        pictures = self.table.take(self.points.rows[chosen], ("thumbnail",))
        rows = [self.points.fields[point] | picture for point, picture in zip(chosen, pictures, strict=True)]
        values = [f"{self.kind.value} {self.values[point]:.3f}" for point in chosen]
        times = [moment(row) if self.points.level == "row" else "" for row in rows]
        head = self.describe(number)
        captions = [(row["thumbnail"], [row["id"], *lines]) for row, *lines in zip(rows, values, times, strict=True)]
        path = folder / f"{self.kind.name}-{number:03d}.png"
        write_png(path, thumbnails_sheet(f"{number}: {head}", captions))
        lines = ["; ".join(filter(None, of_row)) for of_row in zip(values, times, strict=True)]
        return join((paragraph(head, "muted"), figures(rows, lines, folder)))


def clustered(table: Table, level: str, method: str, k: int | None, smallest: int) -> Groups:
    """Clusters of the videos or rows of a table by their features, see clustering.clusters."""
    found = points(table, level)
    return Groups(CLUSTERS, table, found, *clusters(found.vectors, method, k, smallest))
