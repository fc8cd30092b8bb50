"""What a JPEG says of itself before it is decoded."""

from __future__ import annotations

_TABLES = {0xE0, 0xC4, 0xDB, 0xDD}  # JFIF, Huffman and quantisation tables, restart interval


def header_length(jpeg: bytes, size: tuple[int, int]) -> int:
    """Bytes before the picture of a JPEG as `encode_frame` makes them: of this size (height, width), baseline, all three
    components in one scan. 0 for any other, which a decoder might need any amount of memory or time for. [ITU T.81, annex B]
    """
    at, sized = 2, False
    if jpeg[:2] != b"\xff\xd8":
        return 0
    for _ in range(32):
        segment = jpeg[at + 2 : at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")]
        if len(segment) < 2 or jpeg[at] != 0xFF:
            return 0
        marker, at = jpeg[at + 1], at + 2 + len(segment)
        if marker == 0xC0 and not sized:
            height, width = size
            sized = segment[2:8] == b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x03"
        elif marker == 0xDA:
            return at if sized and segment[2:3] == b"\x03" else 0
        elif marker not in _TABLES:
            return 0
    return 0
