"""The pictures at the beginning of a study's page: videos with their labels, nearest neighbours, and maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from labelgen.shards import ShardReader
from trainer import data
from trainer.embeddings.map_page import drawing
from trainer.pages.films import Films, frame_seconds
from trainer.pages.page import figure, fill, grid, heading, join, paragraph, scroll
from trainer.pages.queries import FRAMES, query_html
from trainer.study.jobs import Store
from trainer.study.planning import Plan
from trainer.study.sources import Source
from trainer.study.spec import HISTOGRAMS, RANDOM, WEIGHTS

_VIDEOS, _QUERIES = 3, 6  # numbers for each data set
_LINES = 160  # largest height of a clip, pixels
_MAP = (560, 400)  # width and height
_FLOW = next(name for name, kind in HISTOGRAMS.items() if kind == "flow")
_LABELS = (
    "Three test videos, spread evenly over the classes, each with what is computed from its pixels, without a human, and becomes "
    "the labels of its middle clip. Flow: how every pixel moves; the hue is the direction (red is to the right, then "
    "counter-clockwise), and paler is slower. Motion boundaries: where the flow changes, which a moving camera hardly affects. "
    "Blocks of most motion: the parts of the frame with the largest boundaries of horizontal (red) and vertical flow (green), "
    "with the direction there. Most diverse, most stable colours: the parts with the most (yellow) and the least varied "
    "colours (blue), filled with their main colour. The method statistics learns to predict these parts, directions and colours."
)
_PLAYS = '<p><label><input type="checkbox" checked> play</label></p>\n'
_CLIP = '<div><p>{}</p>\n<div class="films">{}</div></div>\n'
_MAPS = (
    "A point is a test video. Videos with similar features are close together (t-SNE; only near distances mean something). The "
    "colours show the classes, which were not used for the map: the better each colour stays together, the better the features "
    "tell the classes apart. Point at a video, or move to it with the tab key, to see it."
)
# films by name, RGB uint8 [n, H, W, 3], of a labelled clip (shard, row) and of the data behind its labels
Draw = Callable[[ShardReader, int], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class _Retrieved:
    """The stored retrieval results on a data set, by the rows to show; title: of the column."""

    title: str
    name: str
    source: Source
    target: str
    rows: dict[str, dict]


def pictures(
    content: dict, planned: Plan, store: Store, sources: Mapping[str, Source], films: Films, draw: Draw | None
) -> list[tuple[str, str, Markup]]:
    """The sections of the page: id, heading, content."""
    found = [*_retrieved(content, planned, store, sources)]
    tested = dict.fromkeys(column.tested_on for _, column, _ in planned.numbers)
    return [
        ("videos", "Videos and their labels", _videos({name: sources[name] for name in tested}, films, draw)),
        ("neighbours", "Nearest neighbours", _neighbours(found, films)),
        ("map", "Maps of the test videos", _maps(found, films)),
    ]


def readers_of(sources: Mapping[str, Source]) -> dict[str, list[ShardReader]]:
    """The readers of the shards of each data set, for Films."""
    return {name: [*source.opened(source.splits[0]).readers] for name, source in sources.items()}


def _videos(sources: Mapping[str, Source], films: Films, draw: Draw | None) -> Markup:
    out: list[Markup] = []
    if draw is None:
        return Markup()
    for name, source in sources.items():
        shown = [_video(opened, row, films, draw) for opened, row in _chosen(source)]
        out += [heading(name), *shown] if shown else []
    if not out:
        return Markup()
    return paragraph(_LABELS, "muted") + fill('<div class="playing">{}{}</div>\n', Markup(_PLAYS), join(out))


def _chosen(source: Source) -> list[tuple[data.Shards, int]]:
    """Test videos with labelled clips (data set, row), spread evenly over the classes."""
    opened = source.opened(source.splits[0])
    ids, labels = opened.text("videos/id"), opened.text("videos/label")
    rows = [row for row in np.flatnonzero(opened.part == data.TEST).tolist() if len(_clips(opened, row))]
    rows.sort(key=lambda row: (labels[row], ids[row]))
    return [(opened, rows[i]) for i in np.unique(np.linspace(0, len(rows) - 1, _VIDEOS).astype(int))] if rows else []


def _clips(opened: data.Shards, row: int) -> np.ndarray:
    """The labelled clips of a video, int64 rows of its shard."""
    shard, video = opened.videos[row]
    return np.flatnonzero(opened.readers[shard].arrays["clips/video"][:] == video)


def _video(opened: data.Shards, row: int, films: Films, draw: Draw) -> Markup:
    (shard, video), clips = opened.videos[row], _clips(opened, row)
    reader, label = opened.readers[shard], opened.text("videos/label")[row]
    seconds, name = frame_seconds(reader, video), opened.text("videos/id")[row]
    shown = (
        figure(what, films.clip(frames, seconds, f"{what} of {name}", _LINES))
        for what, frames in draw(reader, int(clips[len(clips) // 2])).items()
    )
    return fill(_CLIP, f"{name} ({label})" if label else name, join(shown))


def _retrieved(content: dict, planned: Plan, store: Store, sources: Mapping[str, Source]) -> Iterator[_Retrieved]:
    """For each data set, the first retrieval in the charts."""
    seed, seen = content["seeds"][0], set[str]()
    for number, column in enumerate(dict.fromkeys(column for _, column, _ in planned.numbers)):
        if column.measure.protocol != "retrieval" or not column.measure.headline or column.tested_on in seen:
            continue
        ids = {row: planned.numbers.get((row, column, seed)) for row in _rows(content, number)}
        made = {row: store.result(id) for row, id in ids.items() if id and store.has(id)}
        if rows := {row: result for row, result in made.items() if result.get("neighbours")}:
            seen.add(column.tested_on)
            title = f"{column.tested}: {column.measure.title}"
            yield _Retrieved(title, column.tested_on, sources[column.tested_on], column.target, rows)


def _rows(content: dict, number: int) -> list[str]:
    """The pretrained row with the highest number in a column, random weights of the same network, and the flow histogram."""
    rows = content["rows"]
    entries = [entry for entry in content["numbers"] if entry["column"] == number]
    trained = [entry for entry in entries if rows[entry["row"]]["kind"] in ("method", WEIGHTS)]
    if not trained:
        return []
    best = max(trained, key=lambda entry: entry["value"])["row"]
    network = rows[best].get("settings", rows[best])
    random = [
        row
        for row, of in rows.items()
        if of["kind"] == RANDOM and all(of[key] == network.get(key, of[key]) for key in ("backbone", "width"))
    ]
    return [best, *random[:1], _FLOW]


def _neighbours(found: list[_Retrieved], films: Films) -> Markup:
    out = []
    for retrieved in found:
        by_query = {row: {query["query"]: query for query in of["neighbours"]} for row, of in retrieved.rows.items()}
        names = [*next(iter(by_query.values()))]
        shown = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, _QUERIES).astype(int))]
        lists = (
            fill(
                "<li>{}</li>\n",
                join(
                    fill("<div><p>{}</p>{}</div>\n", row, query_html(of[name], films, retrieved.name, retrieved.name))
                    for row, of in by_query.items()
                    if name in of
                ),
            )
            for name in shown
        )
        out += [heading(retrieved.title), fill('<ul class="found beside">{}</ul>\n', join(lists))]
    if not out:
        return Markup()
    about = (
        "Features are good if they find videos of the same kind. Beside each of a few test videos, spread evenly, are the five "
        "training videos whose features are most similar. The lines of each query differ in the features: those of the "
        "pretrained row with the highest number, of the same network before training (random weights), and counts of the "
        f"directions of the flow, without a network (flow histogram); all of the first seed.{FRAMES} The number is the "
        "similarity to the query (cosine, at most 1). Point at a picture, or tap it, to play it."
    )
    return paragraph(about, "muted") + join(out)


def _maps(found: list[_Retrieved], films: Films) -> Markup:
    out = []
    for retrieved in found:
        opened = retrieved.source.opened(retrieved.source.splits[0], retrieved.target)
        labels = dict(zip(opened.text("videos/id"), opened.text("videos/label"), strict=True))
        maps, key = list[Markup](), Markup()
        for row, result in retrieved.rows.items():
            if places := {name: place for name, place in result.get("map", {}).items() if name in labels}:
                points = [
                    {"id": name, "start": None, "end": None, "thumbnail": films.thumbnail(retrieved.name, name)}
                    for name in places
                ]
                kinds = [labels[name] for name in places]
                key, shown = drawing(np.array([*places.values()]), points, kinds, "class", _MAP)
                maps.append(figure(row, scroll(f"Map of {row}", shown)))
        out += [heading(retrieved.title), key, grid(maps)] if maps else []
    return paragraph(_MAPS, "muted") + join(out) if out else Markup()
