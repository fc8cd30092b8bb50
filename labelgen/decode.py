"""One video, a file or a folder of numbered images, to upright RGB frames, streamed."""

from __future__ import annotations

import bisect
import contextlib
import math
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction

import av
import av.filter
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter

from labelgen.config import MAX_PIXELS
from labelgen.errors import DecodeError, ReadError
from labelgen.media import Decoded, Turn, choose, cropping, on_samples, opened, orientation, reason
from labelgen.numbered import frame_files, image_times
from labelgen.pictures import Pictures
from labelgen.timeline import Times, resample, seek_point

VERSION = 3  # counts up with every change that may change a pixel of a frame
TICK = 1e-6  # seconds: times that differ by less are equal
_RESIZE = Interpolation.AREA | Interpolation.ACCURATE_RND


class FrameStream(Iterator[np.ndarray]):
    """Iterator of RGB uint8 frames [height, width, 3] in presentation order, made by `frames`.

    native_height, native_width: size of the upright picture before resizing, in pixels
    fps:    frames per second as yielded; if the file gives no rate or a wrong one, the rate of the time stamps, set
            after the last frame; 0.0 if there is none
    count:  frames yielded so far
    time:   presentation time of the last frame yielded, in seconds, as stored in the file; with `fps`, its point on the
            file's time line; nan throughout if the file has no time stamps. It never decreases: time stamps that step
            back continue one frame after the last
    damage: of that frame: 0 none, 1 the decoder reports damage, 2 frames are lost just before it, 3 both
    origin: presentation time of the video's first frame, known once a frame was yielded
    broken: how the file is cut short, "" if it is not
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        height: int | None,
        width: int | None,
        fps: float | None,
        max_pixels: int = MAX_PIXELS,
        region: Sequence[float] | None = None,
        alive: Callable[[], object] = lambda: None,
        image_fps: float | None = None,
        short: int | None = None,
        since: float = 0.0,
    ) -> None:
        self.path, self._height, self._width, self._short = os.fspath(path), height, width, short
        self._max_pixels, self._region, self._alive = max_pixels, region, alive
        self.native_height = self.native_width = self.count = 0
        self._image_fps, self._since = image_fps or fps, since
        self.origin, self.broken = math.nan, ""
        self.fps = float(fps or 0)
        self.time, self.damage = math.nan, 0
        self._cut = (0, 0, 0, 0)  # by the container: left, right, top, bottom
        self._turns: dict[int, Turn | None] = {}
        self._upside = ""
        self._reformatter = VideoReformatter()  # kept: a new one per frame costs more than the decoding
        self._cropper = _Cropper()
        self._frames = self._decode(fps)

    def __next__(self) -> np.ndarray:
        frame = next(self._frames)
        if not self.count and math.isnan(self.origin):
            self.origin = self.time
        self.count += 1
        return frame

    def close(self) -> None:
        """Close the file; iteration ends."""
        self._frames.close()

    def _decode(self, fps: float | None) -> Generator[np.ndarray, None, None]:
        stream: av.VideoStream | None = None
        bound = _bound(self._max_pixels)
        try:
            if os.path.isdir(self.path):
                notes = yield from self._of_images(fps, bound)
            else:
                point = self._seek_point(bound)
                with opened(self.path, bound) as container:
                    if container.format.name == "tty":  # FFmpeg would draw the text
                        raise DecodeError(self.path, "a text file, no video")
                    stream, several = choose(container)
                    self._prepare(stream, bound)
                    if point is not None:
                        self.origin, stamp = point
                        container.seek(stamp, stream=stream)
                    notes = [*(yield from self._of_film(container, stream, fps)), several]
        except ReadError as error:
            raise DecodeError(self.path, str(error).removeprefix(f"{self.path}: ")) from error
        except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
            if isinstance(error, av.ArgumentError) and stream and not stream.width * stream.height:
                raise DecodeError(self.path, self._too_large("have no size, or more than twice")) from error
            if isinstance(error, ValueError) and not isinstance(error, av.FFmpegError):
                raise DecodeError(self.path, str(error)) from error
            where = f"after {self.count} frames" if self.count else "at opening"
            why = reason(error, [])
            if os.path.islink(self.path) and not os.path.exists(self.path):
                why = f"a link to {os.readlink(self.path)}, which does not exist"
            raise DecodeError(self.path, f"cannot be decoded {where}: {why}") from error
        if not self.count:
            raise DecodeError(self.path, "; ".join(["no frame in the video stream", *filter(None, notes)]))
        if any(notes):
            raise DecodeError(self.path, "; ".join(filter(None, notes)))

    def _prepare(self, stream: av.VideoStream, bound: dict[str, str]) -> None:
        stream.thread_count = 1  # parallelism is by video
        stream.codec_context.options = bound
        self._check_size(stream.width, stream.height)

    def _seek_point(self, bound: dict[str, str]) -> tuple[float, int] | None:
        if not self._since:
            return None
        with opened(self.path, bound) as container:
            stream, _ = choose(container)
            self._prepare(stream, bound)
            return seek_point(container, stream, self._since, self._alive)

    def _of_film(
        self, container: InputContainer, stream: av.VideoStream, fps: float | None
    ) -> Generator[np.ndarray, None, list[str]]:
        """The frames of a file; returns what was wrong with it."""
        self._cut = cropping(container, stream)
        times = Times(stream.average_rate, stream.guessed_rate)
        self.fps = self.fps or times.rate
        decoded = Decoded(container, stream, times.rate, self._alive)
        timed = times.of(decoded)
        frames = timed if fps is None else resample(timed, fps, self.origin)
        for frame, self.damage, self.time in frames:
            yield self._upright(frame)
        self.fps = float(fps or times.rate)
        truncation = self._truncation(container, stream, decoded, times.last) if decoded.read else ""
        ended = f"cannot be decoded after {self.count} frames: {decoded.ended}" if decoded.ended else ""
        broken = [ended, f"the file ends {truncation}" if truncation else ""]
        self.broken = "; ".join(filter(None, broken))
        return [
            *broken,
            *decoded.faults(bool(truncation), "" if fps is None else " of the file"),
            *times.faults(fps),
            self._upside,
        ]

    def _of_images(self, fps: float | None, bound: dict[str, str]) -> Generator[np.ndarray, None, list[str]]:
        """The frames of a folder of images; returns what was wrong with them."""
        images = Pictures(self.path, self._image_fps, self._max_pixels, bound, self._alive, self._since)
        self.origin = 0.0
        self.fps = float(fps or images.rate)
        for frame, self.damage, self.time in images if fps is None else resample(images, fps, 0.0):
            yield self._upright(frame)
        return [*images.faults(), self._upside]

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise DecodeError(self.path, self._too_large(f"are {width} x {height}, more than"))

    def _too_large(self, what: str) -> str:
        after = f"after {self.count} frames, " if self.count else ""
        return f"{after}its pictures {what} --max-pixels {self._max_pixels:,}"

    def _truncation(self, container: InputContainer, stream: av.VideoStream, decoded: Decoded, last: float) -> str:
        """Where the file is cut short, which FFmpeg takes for its end; "" if it is complete or its length is unknown.
        last: time of the last frame in seconds"""
        promised, read = stream.frames, decoded.read
        time = 0.0 if math.isnan(last) else last
        each = float(1 / (stream.average_rate or 1000))
        average = time / max(1, read - 1)  # longer than one frame if most frames of an AVI are repeats
        end = time + max(decoded.each, each, average)
        if promised:
            # The number of frames alone does not decide: an AVI may count repeats, an MP4 those before the start of its
            # edit list.
            # The duration of a truncated AVI is unreliable: FFmpeg derives it from the size of the file.
            duration = promised if container.format.name == "avi" else stream.duration or 0
            if promised - read > max(2, 0.02 * promised) and end < 0.98 * duration * (stream.time_base or 0):
                return f"after {read} of {promised} frames"
        else:
            seconds = 0.0
            if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):  # of Matroska
                seconds = sum(float(part) * unit for part, unit in zip(tag.groups(), (3600, 60, 1), strict=True))
            elif stream.duration is None and len(container.streams) == 1:  # that of a stream may be an estimate
                seconds = (container.duration or 0) / av.time_base
            if end < seconds - max(0.5, 0.05 * seconds):
                return f"after {end:.1f} of {seconds:.1f} s"
        return f"within frame {read}" if decoded.at_end else ""

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        self._check_size(frame.width, frame.height)
        # read once per angle: PyAV's side data keep a frame in memory until the garbage collector runs
        angle = frame.rotation
        if angle not in self._turns:
            self._turns[angle] = orientation(frame)
        if (turn := self._turns[angle]) is None:
            turn = Turn(False, False, False)
            self._upside = "its display matrix is none of the eight orientations; frames are left as stored"
        left, right, top, bottom = self._part(frame, turn)
        if (right - left, bottom - top) != (frame.width, frame.height):
            if not on_samples(frame.format, (left, right), (top, bottom)):
                frame = self._reformatter.reformat(frame, format="rgb24", interpolation=_RESIZE, threads=1)
            frame = self._cropper(frame, left, top, right - left, bottom - top)
        if self._short and self._height is None:  # the first picture sets the size of all
            self._height, self._width = turn.shortened(bottom - top, right - left, self._short)
            self._check_size(self._width, self._height)
        height, width = self._height, self._width
        if turn.exchanged:
            height, width = width, height
        rgb = self._reformatter.reformat(
            frame, width or frame.width, height or frame.height, "rgb24", interpolation=_RESIZE, threads=1
        ).to_ndarray()
        if not any(turn):
            return rgb
        rgb = rgb.transpose(1, 0, 2) if turn.exchanged else rgb
        return np.ascontiguousarray(rgb[:: -1 if turn.flipped else 1, :: -1 if turn.mirrored else 1])

    def _part(self, frame: av.VideoFrame, turn: Turn) -> tuple[int, int, int, int]:
        """Left, right, top and bottom of the used part of a stored picture; keeps the size of the upright one."""
        left, right, top, bottom = self._cut
        x, y = (left, frame.width - right), (top, frame.height - bottom)  # from, to
        across, down = (y, x) if turn.exchanged else (x, y)  # of the upright picture
        self.native_width, self.native_height = across[1] - across[0], down[1] - down[0]
        if self._region:
            edges = self._region
            across = _share(*across, edges[0], edges[2], turn.mirrored)
            down = _share(*down, edges[1], edges[3], turn.flipped)
            x, y = (down, across) if turn.exchanged else (across, down)
        return *x, *y


def _share(begin: int, end: int, low: float, high: float, backwards: bool) -> tuple[int, int]:
    """The part of a side from `begin` to `end` between two shares of its length, counted from its end if backwards."""
    near, far = math.floor(low * (end - begin)), math.ceil(high * (end - begin))
    return (end - far, end - near) if backwards else (begin + near, begin + far)


def _bound(max_pixels: int) -> dict[str, str]:
    """Options by which FFmpeg refuses larger pictures before it allocates them; it counts rows up to 63 pixels longer."""
    return {"max_pixels": str(2 * max_pixels + (1 << 20))}


class _Cropper:
    """Crops stored pictures, so that parts are resized as whole pictures are."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._graph = av.filter.Graph()

    def __call__(self, frame: av.VideoFrame, x: int, y: int, width: int, height: int) -> av.VideoFrame:
        key = (frame.width, frame.height, frame.format.name, x, y, width, height)
        if key != self._key:
            self._key, self._graph = key, av.filter.Graph()
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            crop = self._graph.add("crop", f"{width}:{height}:{x}:{y}:exact=1")
            self._graph.link_nodes(source, crop, self._graph.add("buffersink")).configure()
        self._graph.push(frame)
        part = self._graph.pull()
        assert isinstance(part, av.VideoFrame)
        return part


def frames(
    path: str | os.PathLike[str],
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    max_pixels: int = MAX_PIXELS,
    region: Sequence[float] | None = None,
    alive: Callable[[], object] = lambda: None,
    image_fps: float | None = None,
    short: int | None = None,
    since: float = 0.0,
) -> FrameStream:
    """Decode a video frame by frame. Memory does not grow with the length of the video.

    Parameters
    ----------
    path : str or path
        A video file, or a folder of numbered images, of which `image_fps` (default: `fps`) make a second.
    height, width : int
        Pixels to resize to by area interpolation, after the container's cropping and orientation and `region` are applied;
        default: no resizing, or to a shorter side of `short` pixels.
    fps : float
        Constant rate in frames per second to resample to, by nearest presentation time; default: every frame of the file. If
        time stamps jump, a picture is repeated for MAX_HOLD seconds at most.
    max_pixels : int
        Largest allowed picture.
    region : four floats
        Left, top, right and bottom of the part of the picture to keep, as shares of it; default: all of it.
    alive : callable
        Called for every packet, which distinguishes a long file from one that hangs.
    image_fps : float
        Frames per second of a folder of images.
    short : int
        Pixels of the shorter side, instead of height and width.
    since : float
        Seconds after the first frame; no frame is needed before the one seen at that time, so that decoding may start later,
        see `seek_point`.

    Returns
    -------
    FrameStream
        An iterator of RGB uint8 frames [height, width, 3] in presentation order. Its `fps`, `time` (seconds) and `damage`
        belong to the last frame.

    Raises
    ------
    DecodeError
        At once, if the file is not a regular one, cannot be opened or holds no frame, if a folder of images comes without a
        rate, or if pictures have more than `max_pixels` pixels, which is known before any is decoded. After the last frame, if
        anything was wrong: decoding stopped early, frames are damaged or lost, time stamps jump or step back, numbered images
        are missing, cannot be decoded or differ in size from the first. The frames yielded before are usable.

    Examples
    --------
    >>> from labelgen.decode import frames
    >>> stream = frames("video.mp4", height=48, width=64)
    >>> shapes = [frame.shape for frame in stream]
    >>> len(shapes), shapes[0], stream.fps
    (40, (48, 64, 3), 25.0)
    """
    return FrameStream(path, height, width, fps, max_pixels, region, alive, image_fps, short, since)


def frame_times(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    alive: Callable[[], object] = lambda: None,
    image_fps: float | None = None,
) -> list[float]:
    """Presentation times of the frames in order, read from the packets without decoding, which is exact for nearly
    every undamaged file. As many as can be read; nan for frames without one; arguments as for `frames`."""
    times: list[float] = []
    with contextlib.suppress(DecodeError, av.FFmpegError, OSError, ValueError):
        if os.path.isdir(path):
            times = image_times(frame_files(path), image_fps or 1)
        else:
            with opened(os.fspath(path), _bound(max_pixels)) as container:
                stream, _ = choose(container)
                for packet in container.demux(stream):
                    alive()
                    if packet.size and not packet.is_discard:
                        times.append(float(packet.pts * packet.time_base) if packet.pts is not None else math.nan)
    return sorted(times)


def expected_frames(times: Sequence[float], fps: float | None, begin: float = 0.0, end: float = math.inf) -> int:
    """About how many frames `frames` yields at this rate for a video with these `frame_times`, or a `Span` from second
    `begin` to `end` of it; 0 if that is unknown."""
    if fps is not None:
        try:
            times = [time for _, _, time in resample(((time, 0, time) for time in times), fps)]
        except ValueError:
            return 0
    if (begin, end) == (0, math.inf) or not times:
        return len(times)
    seen = [time - times[0] for time in times]
    first = bisect.bisect_right(seen, begin + TICK) - 1  # the frame seen at that second
    return max(0, bisect.bisect_left(seen, end - TICK) - max(0, first))
