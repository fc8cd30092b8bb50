"""The header of a JPEG, read before it is decoded."""

from __future__ import annotations

_TABLES = {0xE0, 0xC4, 0xDB, 0xDD}  # JFIF, Huffman and quantisation tables, restart interval


def header(jpeg: bytes) -> tuple[int, tuple[int, int]]:
    """Length of the header and size (height, width) of a JPEG of the kind that vssl writes: baseline, all three components in
    one scan. (0, (0, 0)) for other kinds, which might take a decoder any amount of memory or time. [ITU T.81, annex B]
    """
    none = 0, (0, 0)
    at, size = 2, (0, 0)
    if jpeg[:2] != b"\xff\xd8":
        return none
    for _ in range(32):
        segment = jpeg[at + 2 : at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")]
        if len(segment) < 2 or jpeg[at] != 0xFF:
            return none
        marker, at = jpeg[at + 1], at + 2 + len(segment)
        if marker == 0xC0 and size == (0, 0):
            if segment[2:3] != b"\x08" or segment[7:8] != b"\x03":
                return none
            size = int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[5:7], "big")
        elif marker == 0xDA:
            return (at, size) if all(size) and segment[2:3] == b"\x03" else none
        elif marker not in _TABLES:
            return none
    return none
