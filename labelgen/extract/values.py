"""Flow as it is stored: in 8 bits per component, or as floating-point numbers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from labelgen.compiled import njit

_FLO = np.float32(
    202021.25
)  # the first four bytes of a .flo file [Baker et al., "A database and evaluation methodology", IJCV 2011]


def quantised(flow: np.ndarray, bound: float) -> tuple[np.ndarray, int]:
    """Quantise each component of a flow, float32 [H, W, 2], to 8 bits as denseflow does: 255 (v + bound) / (2 bound),
    rounded half to even; 0 below -bound, 255 above bound. No motion is 128.

    Returns uint8 [2, H, W], and how many of the 2 H W values are out of bounds.
    """
    out = np.empty((2, *flow.shape[:2]), np.uint8)
    return out, int(_quantise(np.ascontiguousarray(flow).reshape(-1), float(bound), out.reshape(2, -1)))


@njit(nogil=True, error_model="numpy")
def _quantise(flow: np.ndarray, bound: float, out: np.ndarray) -> int:
    outside = 0
    for component in range(2):
        plane = out[component]
        for i in range(plane.size):
            value = np.float64(flow[2 * i + component])
            held = min(max(value, -bound), bound)
            outside += int(held != value)
            plane[i] = np.uint8(np.int32(np.rint(255 * (held + bound) / (2 * bound))))
    return outside


def write_picture(path: Path, picture: np.ndarray, quality: int) -> int:
    """Write a picture, uint8 [H, W] or BGR [H, W, 3], as PNG if the path ends in .png, else as JPEG; returns the size
    in bytes."""
    options = [] if path.suffix.lower() == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality]
    encoded = cv2.imencode(path.suffix.lower(), picture, options)[1]
    with open(path, "wb") as file:
        return file.write(encoded.tobytes())


def write_flo(path: Path, flow: np.ndarray) -> int:
    """Write one flow, float32 [H, W, 2], as a Middlebury .flo file; returns the size in bytes."""
    height, width, _ = flow.shape
    content = _FLO.tobytes() + np.array([width, height], "<i4").tobytes() + flow.astype("<f4").tobytes()
    with open(path, "wb") as file:
        return file.write(content)


class Npy:
    """A .npy file, float16 [flows, H, W, 2], to which flows are appended one by one."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - open for as long as the video is decoded
        self._count, self._shape = 0, (0, 0)

    def add(self, flow: np.ndarray) -> int:
        """Append a flow, float32 [H, W, 2]; returns the number of bytes added."""
        begin = self._file.tell()
        if not self._count:
            self._shape = flow.shape[:2]
            self._header()
        self._count += 1
        self._file.write(np.ascontiguousarray(flow, "<f2").data)
        return self._file.tell() - begin

    def _header(self) -> None:
        # NumPy leaves room for the number of flows to grow: the header keeps its length
        form = {"descr": "<f2", "fortran_order": False, "shape": (self._count, *self._shape, 2)}
        np.lib.format.write_array_header_1_0(self._file, form)

    def close(self) -> None:
        """Write the number of flows into the header, and close the file."""
        if self._count and not self._file.closed:
            self._file.seek(0)
            self._header()
        self._file.close()
