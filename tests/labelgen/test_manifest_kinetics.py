"""Each layout in which copies of Kinetics lie on disk, with empty files."""

from pathlib import Path

import pytest

from labelgen.errors import ManifestError
from labelgen.manifest import load
from tests.labelgen.test_manifest import put
from tests.labelgen.test_manifest_layouts import HEADER, NONE, TEST, TRAIN, VALIDATION, rows, write

PET = "petting animal (not cat)"


def labelled(dataset):
    return {Path(video.id).stem: (video.label, *video.split) for video in dataset.videos}


def write_lists(folder, train="train.csv", val="val.csv"):
    write(folder / train, HEADER, f"{PET},-a_b,7,17,train", "zumba,0012,0,10,train")
    write(folder / val, HEADER, "zumba,ccc,101,111,val")


EXPECTED = {  # of the files that stand below
    "-a_b_000007_000017": (PET, TRAIN),
    "0012_000000_000010": ("zumba", TRAIN),
    "ccc_000101_000111": ("zumba", VALIDATION),
}


@pytest.mark.parametrize("name", ["kinetics400", "kinetics600", "kinetics700"])
@pytest.mark.parametrize("lists", ["annotations", "."])
def test_kinetics_of_cvdf(tmp_path, name, lists):
    write_lists(tmp_path / lists)
    put(tmp_path, "train/-a_b_000007_000017.mp4", "train/0012_000000_000010.mp4", "val/ccc_000101_000111.mp4")
    dataset = load(name, tmp_path)
    assert (dataset.name, dataset.layout) == (name, "lists with YouTube ids")
    assert labelled(dataset) == EXPECTED
    assert (dataset.classes, dataset.missing, dataset.unlisted) == ((PET, "zumba"), (), ())
    assert dataset.expected == {"classes": int(name[-3:])}


def test_kinetics600_lists_of_cvdf_are_text_files(tmp_path):
    write_lists(tmp_path / "annotations", "train.txt", "val.txt")
    put(tmp_path, *(f"{'val' if part == VALIDATION else 'train'}/{name}.mp4" for name, (_, part) in EXPECTED.items()))
    assert labelled(load("kinetics600", tmp_path)) == EXPECTED


def test_kinetics_replacements_take_the_place_of_broken_videos(tmp_path):
    write_lists(tmp_path / "annotations")
    put(tmp_path, "train/-a_b_000007_000017.mp4", "val/ccc_000101_000111.mp4")
    better = tmp_path / "replacement/replacement_for_corrupted_k400"
    put(better, "-a_b_000007_000017.mp4", "0012_000000_000010.mp4", "zzz_000000_000010.mp4")
    dataset = load("kinetics400", tmp_path)
    assert rows(dataset) == [
        ("replacement/0012_000000_000010.mp4", "zumba", (TRAIN,)),  # its original is not there
        ("replacement/zzz_000000_000010.mp4", "", (NONE,)),
        ("train/-a_b_000007_000017.mp4", PET, (TRAIN,)),
        ("val/ccc_000101_000111.mp4", "zumba", (VALIDATION,)),
    ]
    assert dataset.videos[2].path == better / "-a_b_000007_000017.mp4"
    assert dataset.videos[3].path == tmp_path / "val/ccc_000101_000111.mp4"


def test_kinetics_of_cvdf_arranged_by_classes(tmp_path):
    write_lists(tmp_path / "annotations")
    for name, (label, part) in EXPECTED.items():
        split = "val" if part == VALIDATION else "train"
        put(tmp_path, f"{split}/{name}.mp4")
        (tmp_path / "videos" / split / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / split / label / f"{name}.mp4").symlink_to(tmp_path / split / f"{name}.mp4")
    dataset = load("kinetics400", tmp_path)
    assert labelled(dataset) == EXPECTED and dataset.layout == "CVDF, arranged by classes"
    assert dataset.videos[0].id == f"train/{PET}/-a_b_000007_000017.mp4"


def test_kinetics_files_that_are_named_by_the_id_alone(tmp_path):
    write_lists(tmp_path / "annotations")
    put(tmp_path, "train/-a_b.mp4", "train/0012_000000_000010.mp4", "val/ccc.webm", "val/own.mp4")
    dataset = load("kinetics400", tmp_path)
    expected = {"-a_b": (PET, TRAIN), "0012_000000_000010": ("zumba", TRAIN), "ccc": ("zumba", VALIDATION)}
    assert labelled(dataset) == {**expected, "own": ("", NONE)}
    assert (dataset.missing, dataset.unlisted) == ((), ("val/own.mp4",))

    write(tmp_path / "annotations/test.csv", HEADER, "zumba,ccc,1,11,val")  # which of the two moments is it?
    assert load("kinetics400", tmp_path).missing == ("ccc_000001_000011",)  # the labels are the same
    write(tmp_path / "annotations/test.csv", HEADER, f"{PET},ccc,1,11,val")
    with pytest.raises(ManifestError, match="two list entries for 'val/ccc.webm': 'ccc_000101_000111 and ccc_000001_0"):
        load("kinetics400", tmp_path)
    put(tmp_path, "val/ccc_000001_000011.mp4")
    assert labelled(load("kinetics400", tmp_path))["ccc"] == ("zumba", VALIDATION)
    put(tmp_path, "train/ccc.mp4")
    with pytest.raises(ManifestError, match="two videos for 'ccc_000101_000111' of the lists"):
        load("kinetics400", tmp_path)


def put_mmaction2(root):
    put(
        root,
        "videos_train/petting_animal_(not_cat)/-a_b_000007_000017.mp4",
        "videos_train/zumba/0012_000000_000010.mp4",
        "videos_val/zumba/ccc_000101_000111.mp4",
        "rawframes_train/zumba/0012_000000_000010/x.mp4",  # not searched
    )


def test_kinetics_of_mmaction2_with_annotations(tmp_path):
    write_lists(tmp_path / "annotations", "kinetics_train.csv", "kinetics_val.csv")
    put_mmaction2(tmp_path)
    dataset = load("kinetics400", tmp_path)
    assert labelled(dataset) == EXPECTED and dataset.layout == "MMAction2, with the annotations"


@pytest.mark.parametrize("name", ["kinetics400", "kinetics600", "kinetics700"])
def test_kinetics_of_mmaction2_with_file_lists(tmp_path, name):
    put_mmaction2(tmp_path)
    pet = "petting_animal_(not_cat)"
    write(
        tmp_path / f"{name}_train_list_videos.txt",
        "zumba/0012_000000_000010.mp4 399",
        f"{pet}/-a_b_000007_000017.mp4 25",
        "zumba/gone_000000_000010.mp4 399",
    )
    write(tmp_path / f"{name}_val_list_videos.txt", "zumba/ccc_000101_000111.mp4 399")
    dataset = load(name, tmp_path)
    assert labelled(dataset) == {**EXPECTED, "-a_b_000007_000017": (pet, TRAIN)}
    assert (dataset.classes, dataset.missing) == ((pet, "zumba"), ("gone_000000_000010.mp4",))
    assert dataset.layout == "MMAction2, with the file lists"


@pytest.mark.parametrize("separator", [" ", ","])
def test_kinetics_of_slowfast(tmp_path, separator):
    """Paths of another machine, class numbers, no header: a class is called as the folder that holds its videos."""
    write(
        tmp_path / "train.csv",
        separator.join(("/old/place/train_256/petting_animal/-a_b_000007_000017.mp4", "2")),
        separator.join(("/old/place/train_256/abseiling/0012_000000_000010.mp4", "10")),
    )
    put(tmp_path, "train/petting_animal/-a_b_000007_000017.mp4", "train/abseiling/0012_000000_000010.mp4")
    dataset = load("kinetics400", tmp_path)  # val.csv is not there
    expected = {"-a_b_000007_000017": ("petting_animal", TRAIN), "0012_000000_000010": ("abseiling", TRAIN)}
    assert labelled(dataset) == expected
    assert dataset.layout == "SlowFast"
    assert dataset.classes == ("petting_animal", "abseiling")  # in the order of their numbers

    write(tmp_path / "val.csv", separator.join(("val/petting_animal/ccc_000101_000111.mp4", "10")))
    put(tmp_path, "val/petting_animal/ccc_000101_000111.mp4", "val/abseiling/own.mp4")
    dataset = load("kinetics400", tmp_path)  # the folders contradict the numbers, which are the lists' word
    expected = {"-a_b_000007_000017": ("2", TRAIN), "0012_000000_000010": ("10", TRAIN)}
    assert labelled(dataset) == {**expected, "ccc_000101_000111": ("10", VALIDATION), "own": ("", NONE)}
    assert dataset.classes == ("2", "10") and dataset.unlisted == ("val/abseiling/own.mp4",)


def test_kinetics_of_slowfast_in_flat_folders(tmp_path):
    write(tmp_path / "train.csv", "train/a.mp4 0")
    write(tmp_path / "val.csv", "val/b.mp4 1")
    put(tmp_path, "train/a.mp4", "val/b.mp4")
    dataset = load("kinetics400", tmp_path)
    assert labelled(dataset) == {"a": ("0", TRAIN), "b": ("1", VALIDATION)}
    write(tmp_path / "val.csv", "val/b.mp4 1", "val/a.mp4 1")
    with pytest.raises(ManifestError, match="two class numbers for one video in .*val.csv: 'a.mp4'; expected 0"):
        load("kinetics400", tmp_path)
    write(tmp_path / "val.csv", "path label")
    with pytest.raises(ManifestError, match="'path label'; expected a video and the number of its class"):
        load("kinetics400", tmp_path)


def test_kinetics_of_torchvision(tmp_path):
    put(tmp_path, "train/petting_animal_not_cat/-a_b.mp4", "val/zumba/ccc.avi", "tars/k400.tar.gz", "test/x.mp4")
    dataset = load("kinetics400", tmp_path)
    assert labelled(dataset) == {
        "-a_b": ("petting_animal_not_cat", TRAIN),
        "ccc": ("zumba", VALIDATION),
        "x": ("", TEST),  # the classes of the test videos are not published
    }
    assert dataset.layout == "torchvision" and dataset.others == ()
    write_lists(tmp_path / "annotations")  # its download leaves them there
    assert labelled(load("kinetics400", tmp_path))["-a_b"] == (PET, TRAIN)


def test_a_folder_too_many_is_no_class(tmp_path):
    put(tmp_path, "train/k400/zumba/a.mp4")
    with pytest.raises(ManifestError, match="expected 1 or 2 folders above every video, not 3"):
        load("kinetics400", tmp_path)


def test_kinetics_without_lists_or_classes_is_refused(tmp_path):
    put(tmp_path, "train/-a_b_000007_000017.mp4")
    with pytest.raises(ManifestError) as error:
        load("kinetics400", tmp_path)
    for text in ("lists with YouTube ids: one of the files kinetics-?00_*.csv, train.csv", "torchvision: a folder */*"):
        assert text in str(error.value)
    write(tmp_path / "annotations/train.csv", "a,b", "1,2")
    with pytest.raises(ManifestError, match="the column time_end or time_start or youtube_id of annotations/train.csv"):
        load("kinetics400", tmp_path)
