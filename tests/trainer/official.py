"""Data sets laid out as they are published, each a few small videos."""

from itertools import product
from pathlib import Path

import numpy as np
import yaml
from scipy.io import savemat

import data_manifests
from tests.labelgen.synthetic import write_video

FRAMES = 90  # enough for orders of four clips and for paces up to 5


def _videos(folder: Path, names, frames: int = FRAMES) -> None:
    for seed, name in enumerate(names):
        write_video(folder / name, frames, seed=seed)


def ucf101(root: Path) -> None:
    """Two classes, five groups of each; groups 1, 8 and 15 are the test part of splits 1, 2 and 3."""
    classes, groups = ("ApplyLipstick", "SumoWrestling"), (1, 8, 15, 20, 22)
    files = {group: [f"{name}/v_{name}_g{group:02}_c01.avi" for name in classes] for group in groups}
    _videos(root / "UCF-101", [file for each in files.values() for file in each])
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(classes)))
    for split, tested in (("1", 1), ("2", 8), ("3", 15)):
        (lists / f"testlist0{split}.txt").write_text("".join(f"{file}\n" for file in files[tested]))
        train = [f"{file} {i + 1}\n" for group in groups if group != tested for i, file in enumerate(files[group])]
        (lists / f"trainlist0{split}.txt").write_text("".join(train))


def hmdb51(root: Path) -> None:
    """Two classes, three films to train and one to test in each split."""
    names = ("golf", "wave")
    clip = "film{}_{}_u_cm_np1_fr_med_0.avi"
    _videos(root / "hmdb51_org", [f"{name}/{clip.format(film, name)}" for name in names for film in range(4)])
    lists, manifest = root / "testTrainMulti_7030_splits", Path(data_manifests.__file__).with_name("hmdb51.yaml")
    lists.mkdir()
    for name, split in product(yaml.safe_load(manifest.read_text())["classes"]["names"], (1, 2, 3)):
        lines = [f"{clip.format(film, name)} {2 if film == split else 1} \n" for film in range(4) if name in names]
        (lists / f"{name}_test_split{split}.txt").write_text("".join(lines))


def kinetics400(root: Path) -> None:
    """Two classes, of each eight videos to train, two of which hold 64 frames at twice the speed, and one to validate."""
    for name in ("golf putting", "tai chi"):
        _videos(root / "train" / name, [f"{i:011}_000000_000010.mp4" for i in range(6)])
        _videos(root / "train" / name, [f"{i:011}_000000_000010.mp4" for i in range(6, 8)], 130)
        _videos(root / "val" / name, ["v0000000000_000000_000010.mp4"])


def yupenn(root: Path) -> None:
    _videos(root, [f"{scene}/{scene}_{i}.avi" for scene in ("Beach", "Fountain") for i in range(4)], 40)


def aslan(root: Path) -> None:
    """Twenty pairs of eight videos in ten folds."""
    _videos(root / "ASLAN_AVI", [f"{i:04}.avi" for i in range(1, 9)], 40)
    (root / "Views").mkdir()
    rng = np.random.default_rng(0)
    pairs = np.stack([np.stack([1 + rng.permutation(8)[:2] for _ in range(4)]) for _ in range(10)], -1)
    content = np.zeros((4, 5, 10))
    content[:, :2], content[:, 2] = pairs, np.array([1, 0, 1, 0])[:, None]
    savemat(root / "Views" / "View2.mat", {"action_splits_pairs": content})


DATASETS = {write.__name__: write for write in (ucf101, hmdb51, kinetics400, yupenn, aslan)}
