"""Each layout in which copies of the data sets lie on disk, with empty files."""

import json
import re

import pytest

from labelgen.errors import ConfigError, ManifestError
from labelgen.manifest import load
from labelgen.manifest.form import builtin_manifests, read_manifest
from tests.labelgen.test_manifest import put

NONE, TRAIN, VALIDATION, TEST = range(4)
HEADER = "label,youtube_id,time_start,time_end,split"


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def rows(dataset):
    return [(video.id, video.label, video.split) for video in dataset.videos]


@pytest.mark.parametrize(
    ("layout", "root", "videos", "lists"),
    [
        ("as published", ".", "UCF-101", "ucfTrainTestlist"),
        ("MMAction2", ".", "videos", "annotations"),
        ("class folders in the root", "UCF-101", "UCF-101", "UCF-101/ucfTrainTestlist"),
        ("class folders in the root and the lists next to it", "UCF-101", "UCF-101", "ucfTrainTestlist"),
    ],
)
def test_ucf101(tmp_path, layout, root, videos, lists):
    write(tmp_path / lists / "classInd.txt", "1 Zumba", "2 Archery")
    for k in (1, 2, 3):
        write(tmp_path / lists / f"trainlist0{k}.txt", "Archery/v_Archery_g01_c01.avi 2")
        write(tmp_path / lists / f"testlist0{k}.txt", "Zumba/v_Zumba_g02_c01.avi")
    put(tmp_path / videos, "Archery/v_Archery_g01_c01.avi", "Zumba/v_Zumba_g02_c01.avi")
    dataset = load("ucf101", tmp_path / root)
    assert rows(dataset) == [
        ("Archery/v_Archery_g01_c01.avi", "Archery", (TRAIN,) * 3),
        ("Zumba/v_Zumba_g02_c01.avi", "Zumba", (TEST,) * 3),
    ]
    assert (dataset.layout, dataset.classes, dataset.missing) == (layout, ("Zumba", "Archery"), ())
    assert f"\n  layout: {layout}\n" in dataset.summary() and "\n  groups: 2\n" in dataset.summary()


@pytest.mark.parametrize(
    ("layout", "root", "videos", "lists"),
    [
        ("as unpacked", ".", "hmdb51_org", "testTrainMulti_7030_splits"),
        ("MMAction2", ".", "videos", "annotations"),
        ("videos and split files as published", ".", "videos", "testTrainMulti_7030_splits"),
        ("class folders in the root", ".", ".", "testTrainMulti_7030_splits"),
        ("class folders in the root and the split files next to it", "org", "org", "testTrainMulti_7030_splits"),
    ],
)
def test_hmdb51(tmp_path, layout, root, videos, lists):
    train, test = "A_wave_f_cm_np1_le_bad_0.avi", "B_wave_f_cm_np1_le_bad_1.avi"
    for label in read_manifest("hmdb51")["classes"]["names"]:
        for k in (1, 2, 3):
            lines = [f"{train} 1 ", f"{test} 2 "] if label == "wave" else []
            write(tmp_path / lists / f"{label}_test_split{k}.txt", *lines)
    put(tmp_path / videos / "wave", train, test)
    dataset = load("hmdb51", tmp_path / root)
    assert rows(dataset) == [(f"wave/{train}", "wave", (TRAIN,) * 3), (f"wave/{test}", "wave", (TEST,) * 3)]
    assert (dataset.layout, [video.group for video in dataset.videos], dataset.missing) == (layout, ["A", "B"], ())


def test_no_layout_fits(tmp_path):
    put(tmp_path, "hmdb51/wave/x.avi", "notes.txt", ".hidden/a")
    with pytest.raises(ManifestError) as error:
        load("hmdb51", tmp_path)
    for text in (
        "no layout of hmdb51 fits",
        "as unpacked: the folder hmdb51_org is missing",
        "MMAction2: the folder videos is missing",
        "class folders in the root: the folder testTrainMulti_7030_splits is missing",
        "Found there: hmdb51/, notes.txt. ",
    ):
        assert text in str(error.value)
    with pytest.raises(ManifestError, match="folder not found"):
        load("hmdb51", tmp_path / "absent")


# --- one folder per class, scenes, ASLAN ---


def test_weizmann_leaves_one_actor_out(tmp_path):
    put(tmp_path, "run/lena_run1.avi", "run/lena_run2.avi", "run/ido_run.avi", "walk/eli_walk.avi")
    dataset = load("weizmann", tmp_path)
    assert dataset.splits == ("1", "2", "3")
    assert [(v.group, v.split) for v in dataset.videos] == [
        ("ido", (1, 3, 1)),
        ("lena", (1, 1, 3)),
        ("lena", (1, 1, 3)),
        ("eli", (3, 1, 1)),
    ]
    put(tmp_path, "run/nobody.avi")
    with pytest.raises(ManifestError, match="video without a group: 'run/nobody.avi'"):
        load("weizmann", tmp_path)
    put(tmp_path, "top/run/lena_run3.avi")
    with pytest.raises(ManifestError, match="expected 1 folder above every video, not 2"):
        load("weizmann", tmp_path)


def test_yupenn_has_one_folder_per_scene(tmp_path):
    put(tmp_path / "good", "Beach/1.mov", "Elevator/1.mov")
    assert load("yupenn", tmp_path / "good").classes == ("Beach", "Elevator")
    put(tmp_path / "top", "YUPENN/Beach/1.mov", "YUPENN/Elevator/1.mov")
    put(tmp_path / "flat", "1.mov")
    yuppp = ("camera_moving/Beach/Beach_moving_cam_1.mp4", "camera_stationary/Beach/Beach_static_cam_1.mp4")
    put(tmp_path / "yuppp", *yuppp)
    for folder, found in (("top", 2), ("flat", 0), ("yuppp", 2)):
        with pytest.raises(
            ManifestError, match=f"wrong folder level .* expected 1 folder above every video, not {found}"
        ):
            load("yupenn", tmp_path / folder)
    dataset = load("yuppp", tmp_path / "yuppp")
    assert [(video.id, video.label) for video in dataset.videos] == [(id, "Beach") for id in yuppp]
    wanted = "expected one of camera_stationary/, camera_moving/; found there: Beach/, Elevator/. Check the folder"
    with pytest.raises(ManifestError, match=wanted):
        load("yuppp", tmp_path / "good")


@pytest.mark.parametrize("folder", ["ASLAN_AVI", "ASLAN_MP4", "."])
def test_aslan(tmp_path, folder):
    put(tmp_path / folder, "0001.avi", "3697.avi")
    dataset = load("aslan", tmp_path)
    assert rows(dataset) == [("0001.avi", "", ()), ("3697.avi", "", ())]
    assert dataset.expected == {"videos": 3697, "folds": 10, "pairs": 6000}
    assert "2 of 3,697 videos" in dataset.summary()


# --- groups by a pattern, and manifests like others ---


def test_group_by_a_pattern(tmp_path):
    put(tmp_path, "run/ann_1.mp4", "run/bob_1.mp4", "walk/ann_2.mp4", "walk/x.mp4")
    assert "groups" not in load("folder", tmp_path).summary()
    for pattern in ("^([a-z]+)_", "^(?P<group>[a-z]+)(_)", "(?P<group>[a-z]+)_"):
        dataset = load("folder", tmp_path, pattern)
        assert [video.group for video in dataset.videos] == ["ann", "bob", "ann", ""]
        assert "\n  groups: 2; without one: 1 (walk/x.mp4)" in dataset.summary()
    assert [video.group for video in load("folder", tmp_path, "(.+)/").videos] == ["run", "run", "walk", "walk"]
    for pattern, message in (
        ("(", "bad regular expression"),
        ("a(b)(c)", "group pattern"),
        ("a", "one part in brackets"),
    ):
        with pytest.raises(ConfigError, match=message):
            load("folder", tmp_path, pattern)
    with pytest.raises(ManifestError, match="no video has a group by"):
        load("folder", tmp_path, "(zz)")
    put(tmp_path / "flat", "ann_walk.mp4")
    with pytest.raises(ManifestError, match="no label, but the pattern of the group contains it: 'ann_walk.mp4'"):
        load("folder", tmp_path / "flat", "(.+)_{label}")


def test_a_manifest_like_another(tmp_path):
    mine = tmp_path / "mine.yaml"
    write(mine, "name: mine", "like: kinetics400", "label: {folder: 2}", "group: {pattern: '^(?P<group>.{2})'}")
    put(tmp_path / "v", "train/dance/abc.mp4")
    write(tmp_path / "v/train.csv", HEADER, "zumba,abc,0,10,train")
    (video,) = load(str(mine), tmp_path / "v").videos
    assert (video.label, video.group, video.split) == ("dance", "ab", (TRAIN,))  # holds for each layout
    for text, message in (
        ("like: nobody", "like in manifest.*'nobody'"),
        ("like: kinetics400\nlabel: 1", "label is 1, expected a mapping"),
    ):
        write(mine, "name: mine", text)
        with pytest.raises(ManifestError, match=message):
            load(str(mine), tmp_path / "v")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layouts: [{lists: a}]", "layout 1 of .*expected a name"),
        ("layouts: [{name: a, source: b}]", "unknown key"),
        ("layouts: [{name: a, label: {column: b}}]", "expected a csv section"),
        ("layouts: []", "layouts is .., expected at least one entry"),
        ("label: {number: true}", "lists in splits"),
        ("label: {number: 1}", "label, number is 1, expected true or false"),
        ("label: {number: true, folder: 1}\nsplits: {lists: {train: a}}", "nothing beside it"),
        ("splits: {folder: 1, by_name: true}", "lists beside optional or by_name"),
        ("csv: {files: [a], video: b, may_lack: '('}", "bad regular expression for csv, may_lack"),
        ("videos: {within: [a]}", "expected one of a/; found there: "),
    ],
)
def test_mistakes_in_a_manifest(tmp_path, text, message):
    put(tmp_path, "v/x.mp4")
    write(tmp_path / "mine.yaml", "name: mine", text)
    with pytest.raises(ManifestError, match=message):
        load(str(tmp_path / "mine.yaml"), tmp_path / "v")


def test_every_layout_names_where_it_was_found():
    for name, file in builtin_manifests().items():
        spec = read_manifest(name)
        layouts = [layout["name"] for layout in spec.get("layouts", [])]
        assert len(set(layouts)) == len(layouts)
        for project in ("mmaction2", "torchvision", "slowfast", "cvdf"):
            if any(project in layout.casefold() for layout in layouts) and "like" not in spec:
                assert re.search(rf"# .*({project}|{project}oundation)", file.read_text(), re.IGNORECASE), (
                    name,
                    project,
                )


def test_official_lists_and_groups_hold_for_folders_of_images(tmp_path):
    for k in (1, 2, 3):
        write(tmp_path / f"ucfTrainTestlist/trainlist0{k}.txt", "Archery/v_Archery_g01_c01.avi 1")
        write(tmp_path / f"ucfTrainTestlist/testlist0{k}.txt", "Archery/v_Archery_g02_c01.avi")
    write(tmp_path / "ucfTrainTestlist/classInd.txt", "1 Archery")
    for clip in ("v_Archery_g01_c01", "v_Archery_g02_c01"):
        put(tmp_path / "UCF-101/Archery" / clip, "image_00001.jpg", "image_00002.jpg", "n_frames")
    dataset = load("ucf101", tmp_path)
    assert rows(dataset) == [
        ("Archery/v_Archery_g01_c01", "Archery", (TRAIN,) * 3),
        ("Archery/v_Archery_g02_c01", "Archery", (TEST,) * 3),
    ]
    assert [video.group for video in dataset.videos] == ["g01", "g02"] and dataset.missing == ()


# --- lists of other forms ---


@pytest.mark.parametrize(
    ("videos", "lists"), [("20bn-jester-v1", "."), ("20bn-jester-v1", "annotations"), ("rawframes", "annotations")]
)
def test_jester(tmp_path, videos, lists):
    write(tmp_path / lists / "jester-v1-labels.csv", "Swiping Left", "Drumming Fingers")
    write(tmp_path / lists / "jester-v1-train.csv", "34870;Drumming Fingers", "2;Swiping Left")
    write(tmp_path / lists / "jester-v1-validation.csv", "3;Swiping Left")
    write(tmp_path / lists / "jester-v1-test.csv", "4")
    for video in ("34870", "3", "4", "5"):
        put(tmp_path / videos / video, "00001.jpg", "00002.jpg")
    dataset = load("jester", tmp_path)
    assert rows(dataset) == [
        ("3", "Swiping Left", (VALIDATION,)), ("34870", "Drumming Fingers", (TRAIN,)), ("4", "", (TEST,)), ("5", "", (NONE,)),
    ]  # fmt: skip
    assert (dataset.missing, dataset.unlisted, dataset.classes) == (
        ("2",),
        ("5",),
        ("Swiping Left", "Drumming Fingers"),
    )


@pytest.mark.parametrize(
    ("layout", "videos", "lists", "begin"),
    [
        ("MMAction2, videos", "videos", "annotations", "something-something-v2-"),
        ("as unpacked, with the lists next to it", "20bn-something-something-v2", ".", "something-something-v2-"),
        ("as unpacked, with Qualcomm's labels", "20bn-something-something-v2", "labels", ""),
    ],
)
def test_something_something(tmp_path, layout, videos, lists, begin):
    template = "Holding [something] next to [something]"
    full = {
        "id": "1",
        "label": "holding potato next to vicks",
        "template": template,
        "placeholders": ["potato", "vicks"],
    }
    for name, content in {
        "labels": {"Dropping something": "1", "Holding something next to something": "0"},
        "train": [full, {**full, "id": "2"}],
        "validation": [{**full, "id": "3", "template": "Dropping [something]"}],
        "test": [{"id": "4"}],
    }.items():
        write(tmp_path / lists / f"{begin}{name}.json", json.dumps(content))
    put(tmp_path / videos, "1.webm", "3.webm", "4.webm")
    dataset = load("something2", tmp_path)
    holding, dropping = "Holding something next to something", "Dropping something"
    assert rows(dataset) == [
        ("1.webm", holding, (TRAIN,)),
        ("3.webm", dropping, (VALIDATION,)),
        ("4.webm", "", (TEST,)),
    ]
    assert (dataset.layout, dataset.classes, dataset.missing) == (layout, (holding, dropping), ("2",))


def test_diving48(tmp_path):
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"]]
    one = {"vid_name": "-mmq0PT-u8k_00155", "label": 1, "start_frame": 0, "end_frame": 48}
    for name, content in {
        "vocab": vocabulary, "V2_train": [one, {**one, "vid_name": "gone_00001"}],
        "V2_test": [{**one, "vid_name": "a_b-c_00001", "label": 0}],
    }.items():  # fmt: skip
        write(tmp_path / "annotations" / f"Diving48_{name}.json", json.dumps(content))
    put(tmp_path / "rgb", "-mmq0PT-u8k_00155.mp4", "a_b-c_00001.mp4")
    dataset = load("diving48", tmp_path)
    classes = ("Back 15som 05Twis FREE", "Back 15som 15Twis FREE")
    assert rows(dataset) == [("-mmq0PT-u8k_00155.mp4", classes[1], (TRAIN,)), ("a_b-c_00001.mp4", classes[0], (TEST,))]
    assert [video.group for video in dataset.videos] == ["-mmq0PT-u8k", "a_b-c"]
    assert (dataset.classes, dataset.missing) == (classes, ("gone_00001",))
    write(
        tmp_path / "annotations" / "Diving48_V2_test.json", json.dumps([{**one, "vid_name": "a_b-c_00001", "label": 2}])
    )
    with pytest.raises(ManifestError, match="expected the index of one of 2 classes, counted from 0"):
        load("diving48", tmp_path)


@pytest.mark.parametrize("folder", ["nturgb+d_rgb", "s001"])
def test_ntu60(tmp_path, folder):
    names = ("S001C001P001R001A001_rgb.avi", "S001C002P003R002A060_rgb.avi", "S017C003P040R001A012_rgb.avi")
    put(tmp_path / folder, *names)
    dataset = load("ntu60", tmp_path)
    assert dataset.splits == ("subject", "view")
    assert [(video.label, video.group, video.split) for video in dataset.videos] == [
        ("A001", "P001", (TRAIN, TEST)), ("A060", "P003", (TEST, TRAIN)), ("A012", "P040", (TEST, TRAIN)),
    ]  # fmt: skip
    people = read_manifest("ntu60")["splits"]["match"]
    for person in range(1, 41):  # 20 train, 20 test
        found = [bool(re.search(people[part][0], f"P{person:03d}R")) for part in ("train", "test")]
        assert sum(found) == 1
    assert sum(bool(re.search(people["train"][0], f"P{person:03d}R")) for person in range(1, 41)) == 20


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("splits: {names: [a], match: {train: [x, y]}}", "names, and an expression for each"),
        ("splits: {names: [a], match: {train: ['(']}}", "bad regular expression for match"),
        ("splits: {names: [a], match: {train: [x], test: [x]}}", "two parts of split a for one video"),
        ("splits: {files: {train: x}}", "a csv section that these files belong to"),
        ("csv: {files: [x.json], video: '{v}', delimiter: ab}", "expected one character"),
        ("label: {index: true}", "classes in the manifest"),
        ("classes: {file: a.txt}", "names, file and pattern, or a JSON file"),
        ("csv: {files: [x.json], video: '{v}'}", "cannot read .*x.json: it is 5, expected a list"),
        ("classes: {file: x.json}", "cannot read the classes of .*x.json"),
    ],
)
def test_lists_of_other_forms_that_cannot_be(tmp_path, lines, told):
    put(tmp_path, "x.mp4")
    write(tmp_path / "x.json", "5")
    write(tmp_path / "m.yaml", "name: m", lines)
    with pytest.raises(ManifestError, match=told):
        load(str(tmp_path / "m.yaml"), tmp_path)
