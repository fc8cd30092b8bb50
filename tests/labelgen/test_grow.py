"""Folders of shards that grow: what is new is labelled, what is gone forgotten, and a stop in the middle changes nothing."""

import json
import os
import shutil

import numpy as np
import pytest

from labelgen import run
from labelgen.config import Config
from labelgen.errors import ShardError
from labelgen.manifest import load
from labelgen.run import growth
from labelgen.shards import ShardReader, open_shards
from labelgen.shards.verify import verify
from tests.labelgen.synthetic import write_video
from tests.trainer.synthetic import extent
from trainer import data

SMALL = Config(height=48, width=64, crop=32, flow="dis", rows=4)


def label(root, out, add=True, config=SMALL, **options):
    found = load("folder", root)
    return run.run(found, found.videos, out, config, add=add, **{"videos_per_shard": 2} | options)


def ids(out):
    return [list(shard.arrays["videos/id"]) for shard in open_shards(out)]


def content(out):
    return {path.name: path.read_bytes() for path in sorted((out / "videos").glob("*.h5"))}


def rows(out):
    """Everything stored of each video and of its clips, by its id."""
    found = {}
    for shard in open_shards(out):
        arrays = shard.arrays
        for video, id in enumerate(arrays["videos/id"]):
            first, count = extent(shard, video)
            clips = np.flatnonzero(arrays["clips/video"] == video)
            own = {"frames": [shard.jpeg(frame).tobytes() for frame in range(first, first + count)]}
            own |= {
                key: np.asarray(arrays[key])[clips].tolist()
                for key in ("clips/start", "statistics/motion", "curriculum/score")
            }
            own |= {
                key: np.asarray(arrays[key])[video].tolist()
                for key in ("videos/label", "pace/pace", "order/permutation")
            }
            own["time"] = arrays["frames/time"][first : first + count].tolist()
            found[id] = own
    return found


@pytest.fixture
def root(tmp_path):
    for index, n_frames in enumerate((40, 20, 70, 18, 36)):
        write_video(tmp_path / "videos" / "left" / f"{index}.mp4", n_frames, index)
    (tmp_path / "videos" / "left" / "9.mp4").write_text("no video")
    return tmp_path / "videos"


def change(root):
    """Two videos more, one less, one another."""
    write_video(root / "right" / "a.mp4", 30, 11)
    write_video(root / "right" / "b.mp4", 44, 12)
    (root / "left" / "1.mp4").unlink()
    write_video(root / "left" / "3.mp4", 50, 13)


@pytest.mark.parametrize("first", [True, False], ids=["added", "plain"])
def test_what_is_new_is_added_and_what_is_gone_forgotten(root, tmp_path, first):
    label(root, tmp_path / "out", add=first)
    before = content(tmp_path / "out")
    change(root)
    report = label(root, tmp_path / "out")
    assert report["added"] == {"new": 3, "kept": 4, "forgotten": ["left/1.mp4"], "changed": ["left/3.mp4"]}
    assert report["videos"]["asked"] == 7 and report["videos"]["labelled"] == 6 and report["videos"]["failed"] == 1
    names = [["left/0.mp4"], ["left/2.mp4"], ["left/4.mp4"], ["left/3.mp4", "right/a.mp4"], ["right/b.mp4"]]
    assert ids(tmp_path / "out") == names
    after = content(tmp_path / "out")
    assert [name for name in before if before[name] == after[name]] == ["00002.h5"]  # it holds what it held
    assert rows(tmp_path / "out") == (label(root, tmp_path / "anew", add=False), rows(tmp_path / "anew"))[1]
    assert verify(tmp_path / "out") == (5, [])
    again = label(root, tmp_path / "out")
    assert again["added"] == {"new": 0, "kept": 7, "forgotten": [], "changed": []}
    assert content(tmp_path / "out") == after and again["this_run"]["frames"] == 0
    shards = data.Shards(tmp_path / "out")
    assert len(shards.videos) == 6 and shards.classes == ["left", "right"]
    assert shards.config_hash not in (
        data.Shards(tmp_path / "anew").config_hash,
        ShardReader(shards.readers[0].path).config_hash,
    )


def test_a_remade_shard_is_one_that_was_made_of_those_videos(root, tmp_path):
    label(root, tmp_path / "out")
    (root / "left" / "1.mp4").unlink()
    label(root, tmp_path / "out")
    other = shutil.copytree(root, tmp_path / "other" / "videos")
    for name in ("2", "3", "4", "9"):
        (other / "left" / f"{name}.mp4").unlink()
    label(other, tmp_path / "one")
    assert content(tmp_path / "out")["00000.h5"] == content(tmp_path / "one")["00000.h5"]


@pytest.mark.parametrize("step", (0, 2, 4, 6))
@pytest.mark.parametrize("first", [True, False], ids=["added", "plain"])
def test_a_kill_changes_nothing(root, tmp_path, monkeypatch, step, first):
    label(root, tmp_path / "out", add=first)
    change(root)
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    label(root, tmp_path / "whole")
    calls = []

    def killed(of, name):
        function = getattr(of, name)

        def counted(*arguments, **options):
            calls.append(name)
            if len(calls) == step + 1:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        monkeypatch.setattr(of, name, counted)

    with monkeypatch.context() as monkeypatch:
        killed(growth, "keep_videos")
        killed(growth, "write_collection")
        killed(run, "write_json")
        killed(run.Finished, "summary")
        with pytest.raises(KeyboardInterrupt):
            label(root, tmp_path / "out")
    label(root, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    for name in ("collection.json",):
        assert (tmp_path / "out/videos" / name).read_bytes() == (tmp_path / "whole/videos" / name).read_bytes()


def test_a_kill_between_shards(root, tmp_path, monkeypatch):
    label(root, tmp_path / "out")
    change(root)
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    label(root, tmp_path / "whole")
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    label(root, tmp_path / "again")
    lost = tmp_path / "again" / "videos"
    collection = {name: [] for name in content(tmp_path / "whole")}
    collection["00003.h5"] = ["left/3.mp4", "right/a.mp4"]
    (lost / "collection.json").write_text(json.dumps({"shards": collection}))
    (lost / "00003.h5").unlink()  # 00004.h5 was made before it
    with pytest.raises(
        ShardError, match=r"4 of 5 shards are done, 00003.h5 is missing; run the same `vssl labelgen --add`"
    ):
        open_shards(tmp_path / "again")
    write_video(root / "right" / "c.mp4", 20, 14)  # new in between: it comes last
    label(root, tmp_path / "again")
    assert ids(tmp_path / "again") == [*ids(tmp_path / "whole"), ["right/c.mp4"]]
    assert {name: content(tmp_path / "again")[name] for name in content(tmp_path / "whole")} == content(
        tmp_path / "whole"
    )


def test_labels_that_change_are_changed_without_labelling(root, tmp_path):
    (root / "m.yaml").write_text("name: videos\nlabel: {folder: 1}\ngroup: {pattern: '(?P<group>[0-9])'}\n")

    def add():
        found = load(str(root / "m.yaml"), root)
        return run.run(found, found.videos, tmp_path / "out", SMALL, add=True, videos_per_shard=3)

    add()
    (root / "m.yaml").write_text("name: videos\nlabel: {folder: 1}\n")
    assert add()["this_run"]["frames"] == 0
    assert {group for shard in open_shards(tmp_path / "out") for group in shard.arrays["videos/group"]} == {""}
    (root / "m.yaml").write_text("name: videos\nlabel: {folder: 1}\nsplits: {folder: 1}\n")
    os.rename(root / "left", root / "train")
    with pytest.raises(ShardError, match="splits are none, those of the data set are now 1"):
        add()


def test_what_cannot_be_added(root, tmp_path):
    label(root, tmp_path / "out", add=False)
    change(root)
    with pytest.raises(ShardError, match="or add what is new with --add"):
        label(root, tmp_path / "out", add=False)
    with pytest.raises(ShardError, match="made with other settings .*seed: 0 there, 1 now"):
        label(root, tmp_path / "out", config=Config(height=48, width=64, crop=32, flow="dis", rows=4, seed=1))
    label(root, tmp_path / "out")
    with pytest.raises(ShardError, match="has grown by --add"):
        label(root, tmp_path / "out", add=False)
    (tmp_path / "out/videos/collection.json").write_text('{"shards": {"../x.h5": []}}')
    with pytest.raises(ShardError, match="collection.json: it has the shard '../x.h5', expected a name"):
        open_shards(tmp_path / "out")


def test_an_unfinished_run_is_finished_first(root, tmp_path):
    label(root, tmp_path / "out", add=False)
    (tmp_path / "out/videos/00001.h5").unlink()
    with pytest.raises(ShardError, match="2 of 3 shards are done; first finish the run that began them"):
        label(root, tmp_path / "out")


def test_a_shard_of_which_all_is_gone_goes_too(root, tmp_path):
    label(root, tmp_path / "out")
    for name in ("0", "1"):
        (root / "left" / f"{name}.mp4").unlink()
    label(root, tmp_path / "out")
    assert sorted(content(tmp_path / "out")) == ["00001.h5", "00002.h5"] and verify(tmp_path / "out")[1] == []
    write_video(root / "left" / "0.mp4", 30)
    label(root, tmp_path / "out")
    assert sorted(content(tmp_path / "out")) == ["00001.h5", "00002.h5", "00003.h5"]


def test_a_failure_is_tried_again_when_its_file_has_changed(root, tmp_path):
    label(root, tmp_path / "out")
    assert label(root, tmp_path / "out")["videos"]["failed"] == 1
    write_video(root / "left" / "9.mp4", 30)
    report = label(root, tmp_path / "out")
    assert report["added"]["changed"] == ["left/9.mp4"] and report["videos"]["failed"] == 0
    # without shards.jsonl a file counts as what it is
    (tmp_path / "out/videos/shards.jsonl").unlink()
    assert label(root, tmp_path / "out")["added"]["new"] == 0
    write_video(root / "left" / "9.mp4", 60)
    assert label(root, tmp_path / "out")["added"]["changed"] == ["left/9.mp4"]
