import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.labelgen.synthetic import write_video
from tests.trainer.synthetic import extent
from trainer.data import ClipDataset, Shards
from trainer.errors import SettingError, TrainerError

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def pixels(dataset, item, corner, mirrored=False):
    """The crop that an item shows, decoded by itself."""
    shard, video = dataset.shards.videos[item["video"]]
    reader = dataset.shards.readers[shard]
    first, n = extent(reader, video)
    y, x = corner
    shown = reader.frames(first + (item["start"] + np.arange(16)) % n)[:, y : y + 32, x : x + 32]
    return shown[:, :, ::-1] if mirrored else shown


def test_clips_are_the_pixels_of_the_shards(demo):
    stored = ClipDataset(demo, clips="sliding", crop="centre", mirror=False, uint8=True)
    floats = ClipDataset(demo, clips="sliding", crop="centre", mirror=False)
    assert (
        len(stored)
        == len(floats)
        == sum(max(1, (n - 16) // 8 + 1) for n in stored.shards.readers.numbers("videos/n_frames"))
    )
    for i in (0, 5, len(stored) - 1):
        item, normalised = stored[i], floats[i]
        expected = pixels(stored, item, (4, 8))
        assert item["clip"].dtype == torch.uint8 and np.array_equal(item["clip"], expected)
        assert normalised["clip"].shape == (3, 16, 32, 32)
        back = (normalised["clip"].permute(1, 2, 3, 0) * 0.225 + 0.45) * 255
        assert torch.allclose(back, item["clip"].float(), atol=1e-3)
        assert stored.classes[item["label"]] == stored.shards.text("videos/label")[item["video"]]


def test_crops_and_mirrors_are_drawn_and_repeated_by_the_seed(demo):
    dataset = ClipDataset(demo, part="train", uint8=True)
    assert len(dataset) == 8 and len({dataset[0]["start"] for _ in range(20)}) > 3
    torch.manual_seed(3)
    shown = [dataset[0] for _ in range(30)]
    torch.manual_seed(3)
    assert all(torch.equal(item["clip"], dataset[0]["clip"]) for item in shown)
    views = set()
    for item in shown:
        for number, corner in enumerate(dataset.shards.crop_grid.tolist()):
            for mirrored in (False, True):
                if np.array_equal(item["clip"], pixels(dataset, item, corner, mirrored)):
                    views.add((number, mirrored))
    assert len(views) > 8 and {mirrored for _, mirrored in views} == {False, True}


def test_labels_are_those_of_the_crop_and_the_mirror(demo):
    dataset = ClipDataset(demo, clips="labelled", labels=["statistics/motion", "curriculum/score"], uint8=True)
    shards, told = Shards(demo), set()
    assert len(dataset) == len(shards.clips)
    for index in range(0, len(dataset), 3):
        shard, clip = shards.clips[index]
        reader, item = shards.readers[shard], dataset[index]
        assert item["start"] == reader.arrays["clips/start"][clip]
        assert item["curriculum/score"] == reader.arrays["curriculum/score"][clip]
        views = [
            (crop, mirror)
            for crop, corner in enumerate(shards.crop_grid.tolist())
            for mirror in (0, 1)
            if np.array_equal(item["clip"], pixels(dataset, item, corner, mirror))
        ]
        stored = [reader.arrays["statistics/motion"][(clip, *view)] for view in views]
        assert any(np.array_equal(item["statistics/motion"], of_view) for of_view in stored)
        told |= set(views)
    assert len(told) > 3


def test_pickled_and_in_worker_processes(demo):
    dataset = ClipDataset(demo, clips="spread", crop="centre", mirror=False, uint8=True)
    again = pickle.loads(pickle.dumps(dataset))
    assert len(again) == len(dataset) == 130 and torch.equal(again[17]["clip"], dataset[17]["clip"])
    loader = DataLoader(dataset, batch_size=13, num_workers=1, multiprocessing_context="spawn")
    batches = [*loader]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [dataset[i]["label"] for i in range(130)]
    assert torch.equal(batches[3]["clip"][2], dataset[41]["clip"])
    assert sum(1 for _ in dataset) == 130  # a plain loop ends


def test_parts(demo):
    assert len(ClipDataset(demo)) == 13 and len(ClipDataset(demo, part="test")) == 5
    with pytest.raises(TrainerError, match="demo: no random clip of validation videos"):
        ClipDataset(demo, part="validation")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"part": "all"}, "part is 'all', expected one of: None, train, validation, test"),
        ({"clips": "every"}, "clips is 'every', expected one of: random, labelled, spread, sliding, adjacent"),
        ({"crop": "corner"}, "crop is 'corner', expected one of: random, centre"),
        ({"clips": "labelled", "labels": ["pace/pace"]}, "labels are 'pace/pace', expected some of: statistics/motion"),
        ({"labels": ["statistics/motion"]}, "labels are given, but clips are 'random', expected 'labelled'"),
    ],
)
def test_values_that_make_no_sense(demo, given, told):
    with pytest.raises(SettingError, match=re.escape(told)):
        ClipDataset(demo, **given)


def test_the_page_runs(demo, pace_run, here, capsys):
    """Every block of the page, one after the other, in one namespace, with small shards and a small run."""
    shutil.copytree(demo, "out/demo")
    shutil.copytree(pace_run, "runs/pace-r3d10-1")
    write_video(Path("video.mp4"), 40, 0)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["features"].shape == (2, names["network"].features) and names["labels"].shape == (4,)
    assert names["speed"] > 0 and names["loss"].isfinite() and "1-NN" in capsys.readouterr().out
