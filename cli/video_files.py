"""Video files as a source of features: labelgen writes shards of their frames, which the trainer reads."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from labelgen.progress import say

PART_VIDEOS, PART_BYTES = 16, 1 << 28  # largest part of the video files that is read at a time


def video_files(places, dataset, config, workers, image_fps):
    """The videos of folders and files as a source. With several folders, ids begin with the name of the folder or, if
    names are equal, with its path."""
    from labelgen.manifest import Video, load
    from labelgen.texts import path_text

    whole = [os.path.abspath(place) for place in places]
    names = [os.path.basename(path) for path in whole]
    names = whole if len(set(names)) < len(names) else names
    videos, rate = [], image_fps or config.get("fps")
    for place, name in zip(places, map(path_text, names), strict=True):
        if place.is_file():
            videos.append(Video(name if len(places) > 1 else path_text(place.name), place.absolute(), "", "", ()))
        elif len(places) > 1:
            found = load(dataset, place, images=rate is not None).videos
            itself = place.absolute()  # a folder of images
            videos += [replace(video, id=name if video.path == itself else f"{name}/{video.id}") for video in found]
        else:
            videos = load(dataset, place, images=rate is not None).videos
    folders = [os.path.dirname(path) if place.is_file() else path for path, place in zip(whole, places, strict=True)]
    return VideoFiles(Path(os.path.commonpath(folders)), videos, config, workers, image_fps=image_fps)


def _say(text):
    say(text, sys.stderr)


class VideoFiles:
    """Video files as a trainer.embeddings.extract.VideoSource: shards of their frames, without labels, are made for one part
    of the files at a time, and deleted once read.

    config: height, width, region, crop, fps and jpeg_quality of the frames, as in the shards of the network's training
    image_fps: rate of folders of images, see labelgen.config.Config
    """

    def __init__(
        self,
        folder: Path,
        videos,
        config: dict,
        workers: int,
        image_fps: float | None = None,
    ):
        from labelgen.config import MAX_PIXELS
        from labelgen.manifest.segments import Part
        from labelgen.numbered import stamp_of
        from labelgen.texts import path_text

        self.config = {"fps": None, "jpeg_quality": 90, "region": None, "max_pixels": MAX_PIXELS} | config
        self.about = {"kind": "videos", "folder": path_text(folder.resolve())}
        self.parts: list[list] = []
        self.count, self._workers = len(videos), workers
        self._image_fps = image_fps
        self._folder = Path(os.path.abspath(folder))  # as workers have another current folder
        room = 0
        if any(video.part for video in videos):
            videos = [
                replace(video, part=video.part or Part()) for video in videos
            ]  # so that all times are counted in the same way
        for video in videos:
            size = stamp_of(video.path)[0] if os.path.exists(video.path) else 0
            if not self.parts or len(self.parts[-1]) == PART_VIDEOS or size > room:
                self.parts.append([])
                room = PART_BYTES
            self.parts[-1].append(video)
            room -= size

    def stamp(self, part: list) -> object:
        """Ids, paths, labels, splits, sizes and times of a part's files, and the rate of folders of images."""
        from labelgen.numbered import stamp_of

        seen = [stamp_of(video.path) if os.path.exists(video.path) else None for video in part]
        return [
            (video.id, str(video.path), video.label, video.split, file)
            + (self._image_fps,) * video.path.is_dir()
            + (video.part or ())
            for video, file in zip(part, seen, strict=True)
        ]

    def files(self) -> dict[str, str]:
        """A digest per video id, in order, that changes with the video's file, label and split."""
        from labelgen.files import json_sha256

        return {video.id: json_sha256(self.stamp([video])) for part in self.parts for video in part}

    def only(self, ids):
        """The same source with some of the videos only."""
        videos = [video for part in self.parts for video in part if video.id in ids]
        return VideoFiles(self._folder, videos, self.config, self._workers, self._image_fps)

    def sample(self):
        """The same source with the beginning of a few videos, from small to large files, as one part; and its share of
        all videos."""
        import numpy as np

        from labelgen.run.estimate import first_seconds, lengths_of, spread
        from labelgen.run.plan import file_sizes
        from trainer.errors import TrainerError

        videos = [video for part in self.parts for video in part]
        sizes = file_sizes(videos)
        rate = self._image_fps or self.config["fps"]
        begun = {row: first_seconds(videos[row], self.config["max_pixels"], rate) for row in spread(sizes)}
        begun = {row: found for row, found in begun.items() if found is not None}
        if not begun:
            raise TrainerError(
                f"{self._folder}: the lengths of all sampled videos are unknown; nothing can be estimated"
            )
        lengths = lengths_of(videos, sizes)
        seconds = sum(found[1] for found in begun.values()) / lengths[[*begun]].sum() * np.sum(lengths)
        few = VideoFiles(
            self._folder, [found[0] for found in begun.values()], self.config, self._workers, self._image_fps
        )
        few.parts = [[video for part in few.parts for video in part]]
        return few, float(sum(found[2] for found in begun.values()) / seconds)

    def size(self, part: list) -> int:
        return len(part)

    @contextmanager
    def open(self, part: list, scratch: Path):
        """The videos of a part as a trainer.embeddings.extract.Piece."""
        from labelgen.config import Config
        from labelgen.manifest import Dataset, Videos
        from labelgen.processes import cores
        from labelgen.run import run
        from labelgen.shards import open_shards
        from labelgen.shards.checks import escaped
        from labelgen.shards.reader import forget
        from labelgen.texts import path_text
        from trainer.embeddings.extract import piece_of, split_part

        names = ("height", "width", "crop", "clip_length", "fps", "jpeg_quality", "max_pixels")
        region = self.config["region"] and tuple(self.config["region"])
        settings = {name: self.config[name] for name in names if name in self.config}
        by_shard_id = {video.id.lstrip("/"): video for video in part}  # ids of shards are relative paths
        none, paths = [""] * len(by_shard_id), {id: str(video.path) for id, video in by_shard_id.items()}
        parts = {id: video.part for id, video in by_shard_id.items() if video.part}
        videos = Videos("", paths, [*by_shard_id], none, none, [()] * len(by_shard_id), parts)
        data = Dataset("videos", self._folder, videos, (), (), (), ())
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=scratch.absolute()) as folder:
            config = Config(**settings, region=region, image_fps=self._image_fps)
            run(data, videos, Path(folder), config, max(1, min(self._workers, cores())), 1, say=_say, labels={})
            piece = piece_of(open_shards(folder), self.config)
            by_id = {escaped(id): video for id, video in by_shard_id.items()}
            for failure in piece.failures:
                video = by_id[failure["id"]]
                failure |= {"id": video.id, "path": path_text(video.path)}
            for field in piece.fields:
                video = by_id[field["id"]]
                field |= {"id": video.id, "path": path_text(video.path)}
                field |= {"label": video.label, "split": split_part(video.split)}
            try:
                yield piece
            finally:
                forget()  # else the maps of deleted files would keep their disk space
