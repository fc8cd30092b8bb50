"""Clusters of the videos or moments of a table as files: a CSV file, a contact sheet per cluster, and a page of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from labelgen.files import write_png, write_text
from trainer.embeddings.clustering import Points, clusters, points
from trainer.embeddings.sheets import Film, Moving, entries, figures, moment, thumbnails_sheet
from trainer.embeddings.table import Table
from trainer.evaluate.results import csv_text
from trainer.pages.films import PLAY
from trainer.pages.page import details, join, page, paragraph

_SHOWN = 18  # pictures of a group at most
_FILMS, _STILLS = 120, 2000  # about as many of a page move; so many have a picture


@dataclass(frozen=True)
class Groups:
    """Clusters of points, see clustering.clusters and points. group: int64 [n], number of each point's cluster, -1 for none;
    values: float64 [n], distances from the mean"""

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
        return f"{self.count} clusters of {len(self.group):,} {self._noun}"

    @property
    def _noun(self) -> str:
        return "moments" if self.points.level == "row" else "videos"

    def describe(self, number: int) -> str:
        """The size of a group, and its most frequent label or, without labels, the first names."""
        fields = [self.points.fields[point] for point in np.flatnonzero(self.group == number)]
        label, count = Counter(field["label"] for field in fields).most_common(1)[0]
        names = ", ".join(dict.fromkeys(field["id"] for field in fields[:4])) + (", ..." if len(fields) > 4 else "")
        return f"{len(fields):,} {self._noun}, " + (f"{count:,} of them {label}" if label else names)

    def write(self, folder: Path, film: Film) -> list[Path]:
        """Write clusters.csv, a sheet per group with the most typical members first, and index.html, on which these move; returns
        the first and the last path."""
        folder.mkdir(parents=True, exist_ok=True)
        rows, page_file = folder / "clusters.csv", folder / "index.html"
        write_text(rows, self._csv())
        for old in folder.glob("clusters-[0-9]*.png"):
            old.unlink()
        members = [self._members(number) for number in range(self.count)]
        alone = np.flatnonzero(self.group < 0)
        pictured = np.concatenate([*(own[:_SHOWN] for own in members), *(own[_SHOWN:] for own in members), alone])
        pictured = pictured[: max(_STILLS, sum(len(own[:_SHOWN]) for own in members))]
        found = self.table.take(self.points.rows[pictured], ("thumbnail",))
        pictures = dict(zip(pictured.tolist(), found, strict=True))
        moving = Moving(film)
        sections = [
            (f"group-{number}", f"Cluster {number}", self._draw(folder, number, own, pictures, moving))
            for number, own in enumerate(members)
        ]
        if len(alone):
            listed = details(f"{len(alone):,} of {len(self.group):,}", self._list(alone, pictures, folder))
            sections.append(("none", "In no cluster", listed))
        lead = "The most typical members first. Distance: of the features of a member from their mean over the cluster."
        foot = f"{self.table.name}: {self.table.rows:,} rows."
        if moving.still:
            foot += f" {moving.still:,} pictures do not move, as their videos cannot be read."
        write_text(page_file, page(self.title, lead, PLAY, sections, foot, moving.style()))
        return [rows, page_file]

    def _csv(self) -> str:
        names = ("id", "path", "label", "start", "end")
        fields = self.points.fields
        ordered = sorted(range(len(fields)), key=lambda i: (self.group[i] < 0, self.group[i], fields[i]["id"]))
        rows = [
            {
                "group": self.group[i],
                **{name: fields[i][name] for name in names},
                "distance": f"{self.values[i]:.6f}",
            }
            for i in ordered
        ]
        return csv_text(rows, ["group", *names, "distance"])

    def _members(self, number: int) -> np.ndarray:
        """The members of a group, the most typical first, int64."""
        members = np.flatnonzero(self.group == number)
        return members[np.argsort(self.values[members], kind="stable")]

    def _draw(
        self, folder: Path, number: int, members: np.ndarray, pictures: Mapping[int, dict], moving: Moving
    ) -> Markup:
        """Write the sheet of a group; returns its section of the page."""
        head = self.describe(number)
        captions = [
            (pictures[point]["thumbnail"], [self.points.fields[point]["id"], *reversed(self._about(point))])
            for point in members[:_SHOWN].tolist()
        ]
        write_png(folder / f"clusters-{number:03d}.png", thumbnails_sheet(f"{number}: {head}", captions))
        first, others = np.split(members, [min(_SHOWN, max(2, _FILMS // self.count))])
        rows = [self.points.fields[point] | pictures[point] for point in first.tolist()]
        lines = ["; ".join(self._about(point)) for point in first.tolist()]
        shown = figures(rows, lines, folder, moving if number < _FILMS // 2 else None)
        listed = Markup()
        if len(others):
            summary = f"The other {len(others):,} members, the most typical first"
            listed = details(summary, self._list(others, pictures, folder))
        return join((paragraph(head, "muted"), shown, listed))

    def _list(self, members: np.ndarray, pictures: Mapping[int, dict], folder: Path) -> Markup:
        rows = [self.points.fields[point] | pictures.get(point, {}) for point in members.tolist()]
        return entries(rows, ["; ".join(self._about(point)) for point in members.tolist()], folder)

    def _about(self, point: int) -> list[str]:
        """When a moment is, and its value with the name of the value; without the value for a point in no group."""
        time = [moment(self.points.fields[point])] if self.points.level == "row" else []
        return [
            *filter(None, time),
            *([f"distance from the mean {self.values[point]:.3f}"] if self.group[point] >= 0 else []),
        ]


def clustered(table: Table, level: str, method: str, k: int | None, smallest: int) -> Groups:
    """Clusters of the videos or rows of a table by their features, see clustering.clusters."""
    found = points(table, level)
    return Groups(table, found, *clusters(found.vectors, method, k, smallest))
