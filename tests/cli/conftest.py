import contextlib

import pytest

from tests.cli.tables import LENGTHS, SIZE
from tests.command import vssl
from tests.labelgen.synthetic import write_video


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with videos/, one of them copied at a lower quality, their shards in out/ and a run trained on these."""
    folder = tmp_path_factory.mktemp("embed")
    with contextlib.chdir(folder):
        for seed, (name, length) in enumerate(LENGTHS.items()):
            write_video(folder / "videos" / name, length, seed=seed, step=seed - 1)
        write_video(folder / "videos" / "copy.mp4", 64, seed=0, step=-1, qscale="12")
        vssl("labelgen", "--dataset", "folder", "--root", "videos", "--videos-per-shard", 2, *SIZE)
        vssl("train", "--width", 0.05, "--epochs", 1, "--workers", 0, "--precision", "float32")
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """A folder of one's own, with what `place` holds."""
    for name in ("videos", "out", "runs"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
