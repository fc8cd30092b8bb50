"""Precision and recall of `vssl cluster --duplicates` on copies made from real videos.

python benchmarks/duplicates.py FOLDER [FOLDER ...] --out made

Of the videos in the folders are made, in OUT/videos, beside links to them:

re-encoded  at a low rate                           excerpt   5 to 7 s, at any time of a longer video
rescaled    to another size, format and frame rate  shared    5 to 7 s of one video between parts of others
mirrored    left and right exchanged                joined    some videos one after the other, from which excerpts are cut, too
still       title cards that differ in their text, and one frame shown for 6 s, which are copies of nothing

Excerpts and shared parts are re-encoded and rescaled, and half of them mirrored. Every pair of two videos that have no
common part is a negative: other videos of the same people and places, joined ones, still ones. Common parts of less than
5 s count neither way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]  # so that `labelgen` is the package

import av  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402

from labelgen.times import frame_bounds  # noqa: E402
from trainer.embeddings.copies import SIMILAR  # noqa: E402
from trainer.embeddings.duplicates import Pair, duplicates  # noqa: E402
from trainer.embeddings.pictures import packed, sampled  # noqa: E402
from trainer.embeddings.table import TEXTS, Table, write_part  # noqa: E402

SUFFIXES = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg"}
LEAST = 5.0  # seconds of excerpts
JOINED = 8  # videos in a joined one


@dataclass(frozen=True)
class Piece:
    """Seconds `start` to `end` of a source (path), mirrored or not."""

    source: str
    start: float
    end: float
    mirrored: bool = False


def seconds_of(path: str) -> float:
    """From the first frame to the end of the last one."""
    with av.open(path) as container:
        times = [frame.time for frame in container.decode(container.streams.video[0])]
    return float(frame_bounds([i / 25 if time is None else time for i, time in enumerate(times)], 25)[-1])


class Maker:
    """Writes videos of pieces by FFmpeg, and keeps of which pieces each consists."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, dict[str, list[Piece]]()

    def write(self, name: str, pieces: list[Piece], fps: float, size: tuple[int, int], crf: int) -> None:
        """Write a video of a width and height."""
        self.made[name] = pieces
        inputs, chains = [], []
        for number, piece in enumerate(pieces):
            inputs += (
                ["-ss", f"{piece.start:.3f}"] if piece.start else []
            )  # FFmpeg may lose a first frame that it seeks
            inputs += ["-t", f"{piece.end - piece.start:.3f}", "-i", piece.source]
            turned = ",hflip" if piece.mirrored else ""
            chains.append(f"[{number}:v]scale={size[0]}:{size[1]},setsar=1,fps={fps}{turned}[v{number}]")
        labels = "".join(f"[v{number}]" for number in range(len(pieces)))
        self.encode(name, inputs, f"{';'.join(chains)};{labels}concat=n={len(pieces)}[v]", crf)

    def encode(self, name: str, inputs: list[str], graph: str, crf: int) -> None:
        path = self.folder / name
        if path.exists():  # made by an earlier call
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        quick = ["-c:v", "libx264", "-preset", "ultrafast", "-crf", str(crf), "-pix_fmt", "yuv420p", "-threads", "1"]
        command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-filter_threads", "1", "-filter_complex_threads", "1"]
        subprocess.run(
            [*command, *inputs, "-filter_complex", graph, "-map", "[v]", "-an", *quick, unfinished], check=True
        )
        unfinished.replace(path)


def parts(pieces: list[Piece], start: float, end: float, mirrored: bool) -> list[Piece]:
    """The pieces of seconds start to end of a video of pieces."""
    found, begin = [], 0.0
    for piece in pieces:
        low, high = max(start - begin, 0.0), min(end - begin, piece.end - piece.start)
        if low < high - 0.02:
            found.append(replace(piece, start=piece.start + low, end=piece.start + high, mirrored=mirrored))
        begin += piece.end - piece.start
    return found


def make(sources: list[str], out: Path, rng: np.random.Generator) -> dict[str, list[Piece]]:
    """Write all videos, by name the pieces of each."""
    maker = Maker(out)
    whole: dict[str, list[Piece]] = {}
    for path in sources:
        name = path.removeprefix(os.path.commonpath(sources)).lstrip("/")
        whole[name] = [Piece(path, 0.0, seconds_of(path))]
        target = out / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(path)
        maker.made[f"source/{name}"] = whole[name]

    def length(pieces: list[Piece]) -> float:
        return sum(piece.end - piece.start for piece in pieces)

    def cut(name: str, pieces: list[Piece], kind: str, mirrored: bool, around: list[list[Piece]]) -> None:
        seconds = float(rng.uniform(LEAST, min(7.0, length(pieces))))
        start = float(rng.uniform(0, length(pieces) - seconds))
        found = parts(pieces, start, start + seconds, mirrored)
        before, after = (parts(other, 0, 4, False) for other in around) if around else ([], [])
        size, fps = [((256, 192), 25), ((320, 180), 15), ((160, 120), 30), ((240, 240), 12)][int(rng.integers(4))]
        kind = f"mirrored-{kind}" if mirrored else kind
        maker.write(f"{kind}/{name}.mp4", [*before, *found, *after], fps, size, int(rng.integers(26, 38)))

    names = [*whole]
    for number, name in enumerate(names):
        pieces, flat = whole[name], name.replace("/", "_")
        if length(pieces) >= 1:
            kind = (
                ("re-encoded", "rescaled", "mirrored")[number // 4 % 3]
                if not number % 4 or length(pieces) > LEAST
                else ""
            )
            if kind == "re-encoded":
                maker.write(f"{kind}/{flat}.mp4", pieces, 25, (320, 240), 38)
            elif kind == "rescaled":
                maker.write(f"{kind}/{flat}.mp4", pieces, 12, (160, 160), 32)
            elif kind == "mirrored":
                maker.write(f"{kind}/{flat}.mp4", parts(pieces, 0, 1e9, True), 30, (320, 240), 28)
        if length(pieces) > LEAST + 1:
            for mirrored in (False, True):
                cut(flat, pieces, "excerpt", mirrored, [])
    groups = [names[i : i + JOINED] for i in range(0, len(names), JOINED)]
    for number, group in enumerate(groups):
        pieces = [piece for name in group for piece in whole[name]]
        if length(pieces) > 3 * LEAST:
            maker.write(f"joined/{number:03d}.mp4", pieces, 25, (240, 180), 26)
            other = groups[(number + 1) % len(groups)]
            for mirrored in (False, True):
                cut(f"{number:03d}", pieces, "excerpt", mirrored, [])
                cut(f"{number:03d}", pieces, "shared", mirrored, [whole[other[-1]], whole[other[len(other) // 2]]])
    return maker.made | still(sources[:: max(1, len(sources) // 12)], maker)


def still(sources: list[str], maker: Maker) -> dict[str, list[Piece]]:
    """Films in which nothing moves, and one title card before films that differ. None has a part in common with another."""
    names = []
    for number, text in enumerate(("PART ONE", "PART TWO", "The end", "Chapter 7, the sea", "Chapter 8, the sky")):
        words = f"drawtext=text='{text}':x=30:y=110:fontsize=28:fontcolor=white"
        names.append(f"still/card-{number}.mp4")
        maker.encode(names[-1], ["-f", "lavfi", "-i", "color=black:s=320x240:r=25:d=6"], f"[0:v]{words}[v]", 28)
        card = "[0:v]drawtext=text='A film of ours':x=30:y=110:fontsize=36:fontcolor=yellow,setsar=1[c]"
        graph = f"{card};[1:v]scale=320:240,setsar=1,fps=25[f];[c][f]concat[v]"
        names.append(f"still/after-card-{number}.mp4")
        inputs = ["-f", "lavfi", "-i", "color=gray:s=320x240:r=25:d=6", "-t", "4", "-i", sources[number]]
        maker.encode(names[-1], inputs, graph, 28)
    for number, path in enumerate(sources):
        hold = "[0:v]select='eq(n,0)',scale=320:240,setsar=1,loop=149:1,setpts=N/25/TB,fps=25,noise=alls=8:allf=t[v]"
        names.append(f"still/frame-{number}.mp4")
        maker.encode(names[-1], ["-i", path], hold, 26)
    return {name: [] for name in names}


def common(one: list[Piece], other: list[Piece]) -> list[tuple[float, float, float, bool]]:
    """The common parts of two videos: start in each, seconds, and whether one is mirrored; adjacent parts are joined."""
    found: list[tuple[float, float, float, bool]] = []
    begin = 0.0
    for a in one:
        start = 0.0
        for b in other:
            low, high = max(a.start, b.start), min(a.end, b.end)
            if a.source == b.source and low < high - 0.05:
                part = (begin + low - a.start, start + low - b.start, high - low, a.mirrored != b.mirrored)
                last = next((i for i, p in enumerate(found) if _follows(p, part)), None)
                if last is None:
                    found.append(part)
                else:
                    found[last] = (*found[last][:2], found[last][2] + part[2], part[3])
            start += b.end - b.start
        begin += a.end - a.start
    return found


def _follows(part: tuple, after: tuple) -> bool:
    ends = part[0] + part[2], part[1] + part[2]
    return part[3] == after[3] and all(abs(end - begin) < 0.1 for end, begin in zip(ends, after[:2], strict=True))


def table_of(folder: Path, names: list[str], path: Path) -> Table:
    """The table of these videos that `vssl embed --level video` writes, except for the features."""
    columns: dict[str, list] = {name: names for name in TEXTS} | {"path": [str(folder / name) for name in names]}
    columns |= {name: [] for name in ("start", "end", "thumbnail", "signature")}
    for name in names:
        with av.open(str(folder / name)) as container:
            frames = list(container.decode(container.streams.video[0]))
        bounds = frame_bounds([i / 25 if frame.time is None else frame.time for i, frame in enumerate(frames)], 25)
        shown, of_times = np.unique(sampled(bounds, 25), return_inverse=True)
        small = [frames[i].reformat(171, 128, "rgb24").to_ndarray() for i in shown]
        middle = frames[len(frames) // 2].reformat(128, 96, "bgr24").to_ndarray()
        columns["start"].append(0.0)
        columns["end"].append(float(bounds[-1]))
        columns["thumbnail"].append(cv2.imencode(".jpg", middle, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())
        columns["signature"].append(packed(small)[of_times].tobytes())
    write_part(path, {"key": "", "failures": []}, np.ones((len(names), 1), np.float32), columns)
    return Table(path)


def is_true(pieces: tuple[list[Piece], list[Piece]], pair: Pair) -> bool:
    """Whether what a pair says is so: a common part there, at this shift between the times, and as mirrored as it says."""
    if None in pair.spans:
        return False
    (begin, end), (start, _) = pair.spans
    return any(
        mirrored == ("mirrored" in pair.kind)
        and abs((b - a) - (start - begin)) < 0.5
        and begin < a + seconds
        and a < end
        for a, b, seconds, mirrored in common(*pieces)
    )


def wanted(pieces: tuple[list[Piece], list[Piece]]) -> str:
    """The kind of the longest common part of two videos, "" if it is shorter than five seconds and than either."""
    one, other = (sum(piece.end - piece.start for piece in video) for video in pieces)
    a, b, seconds, mirrored = max(common(*pieces), key=lambda part: part[2], default=(0.0, 0.0, 0.0, False))
    if seconds >= 0.95 * max(one, other) and seconds:
        kind = "same" if seconds >= LEAST else "same, shorter than 5 s"
    elif seconds >= LEAST:
        kind = "excerpt" if seconds >= 0.95 * min(one, other) else "shared part"
    else:
        return ""
    return f"mirrored {kind}" if mirrored else kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("made"))
    parser.add_argument("--threshold", type=float, default=SIMILAR)
    given = parser.parse_args()
    files = [path for folder in given.folders for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]
    made = make([str(path.resolve()) for path in files], given.out / "videos", np.random.default_rng(0))
    names = sorted(made)
    found = duplicates(table_of(given.out / "videos", names, given.out / "features.parquet"), given.threshold)
    found.write(given.out)
    true, false, pairs_found = Counter[str](), [], set()
    for pair in found.pairs:
        if is_true((made[names[pair.first]], made[names[pair.second]]), pair):
            true[pair.kind] += 1
            pairs_found.add(frozenset((pair.first, pair.second)))
        else:
            false.append(pair)
    asked, hit = Counter[str](), Counter[str]()
    for one in range(len(names)):
        for other in range(one + 1, len(names)):
            if kind := wanted((made[names[one]], made[names[other]])):
                asked[kind] += 1
                hit[kind] += {one, other} in pairs_found
    print(f"{len(names)} videos, {len(files)} of them real, {len(names) * (len(names) - 1) // 2:,} pairs")
    print(f"found: {sum(true.values())} pairs that are right, {len(false)} that are wrong")
    for kind in sorted(asked):
        print(f"{kind:30} {hit[kind]:4} of {asked[kind]:4} found")
    for pair in false:
        print("wrong:", found.describe(pair))


if __name__ == "__main__":
    main()
