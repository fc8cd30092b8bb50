"""Tensors by name: read from a .safetensors file, which may be untrusted, and their digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from labelgen.errors import ReadError
from labelgen.reading import open_regular, parse_json, validate
from trainer.errors import TrainerError

IMPORT = "import them first, as a run that every command takes: vssl import {} --out runs/NAME"
_HEADER = 1 << 22  # largest header of a .safetensors file, bytes
_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


def is_pytorch(start: bytes) -> bool:
    """Whether a file that begins with these nine bytes is from `torch.save`: a zip file or a pickle. The length at the
    start of a .safetensors file may look like a pickle, but a brace follows it."""
    return start[:4] == b"PK\3\4" or (start[:1] == b"\x80" and start[8:] != b"{")


def read_tensors(file: Path) -> tuple[object, dict[str, Tensor]]:
    """Metadata and tensors of a .safetensors file. Raises TrainerError if it is damaged."""
    try:
        with open_regular(file) as opened:
            if is_pytorch(opened.read(9)):
                raise TrainerError(f"{file}: weights in the format of PyTorch; {IMPORT.format(file)}")
            opened.seek(0)
            length = int.from_bytes(opened.read(8), "little")
            if length > _HEADER:
                raise ReadError(f"a header of {length:,} bytes, expected at most {_HEADER:,}")
            header = parse_json(opened.read(length).decode(), "its header")
        tensors = {"__metadata__?": {"*": str}, "*": dict}
        validate(header, tensors, "its header")
        for name, value in header.items():
            if name != "__metadata__" and value.get("dtype") not in _DTYPES:
                raise ReadError(f"{name!r:.60} is of type {value.get('dtype')!r:.20}")
        meta = parse_json(header.get("__metadata__", {}).get("vssl", "null"), "its metadata")
        with safe_open(file, "pt") as opened:
            return meta, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise TrainerError(f"{file}: not a readable checkpoint ({error})") from error


def digest(weights: dict[str, Tensor]) -> str:
    """A digest of the names and values of weights, 16 characters."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
