"""Time, memory and disk of a table of features, estimated from a few of the videos."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.embeddings.extract import Extractor, VideoSource
from trainer.embeddings.table import write_part


@dataclass(frozen=True)
class Estimate:
    """videos: in all; measured: in the sample; rows: of the table; opening, computing: seconds of reading all videos,
    and of the network; memory, on_device: largest memory of this process, and on the GPU (0 without one), in bytes;
    disk: bytes of the table"""

    videos: int
    measured: int
    rows: int
    opening: float
    computing: float
    memory: int
    on_device: int
    disk: int


def estimate(extract: Extractor, source: VideoSource) -> Estimate:
    """Compute the rows of a few videos, or of their beginning, in a temporary folder, which is removed."""
    few, share = source.sample()
    opening = computing = 0.0
    rows = disk = 0
    with tempfile.TemporaryDirectory(prefix="vssl-plan-") as folder:
        scratch = Path(folder)
        for timed in (False, True):  # the first round starts processes and warms the network up
            for number, part in enumerate(few.parts[: None if timed else 1]):
                begin = time.perf_counter()
                with few.open(part, scratch) as piece:
                    opened = time.perf_counter()
                    vectors, columns = extract(piece)
                    end = time.perf_counter()
                if timed:
                    opening, computing, rows = opening + opened - begin, computing + end - opened, rows + len(vectors)
                    write_part(path := scratch / f"{number}.parquet", {"failures": []}, vectors, columns)
                    disk += path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return Estimate(
        source.count,
        few.count,
        round(rows / share),
        opening / share,
        computing / share,
        peak if sys.platform == "darwin" else 1024 * peak,
        on_device,
        round(disk / share),
    )
