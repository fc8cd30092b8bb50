"""What the tests of tables of features have in common."""

import numpy as np
import pyarrow.parquet as pq

LENGTHS = {"near/a.mp4": 64, "near/b.mp4": 40, "far/c.mp4": 9, "far/d.mp4": 33}
SIZE = ("--height", 40, "--width", 48, "--crop", 32, "--clips", 1)


def columns(path):
    table = pq.read_table(path)
    vectors = np.stack(table["vector"].to_pylist()).astype(np.float32)
    return vectors, {name: table[name].to_pylist() for name in table.column_names if name != "vector"}
