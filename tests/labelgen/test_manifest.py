import os
from pathlib import Path

import pytest

from labelgen.errors import ConfigError, ManifestError, VsslError
from labelgen.manifest import load, select, split_name

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HMDB_CLASSES = 51


def put(root, *files):
    for file in files:
        path = Path(root, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def manifest(folder, text):
    """Path of a manifest of the user's own, named `mine`, beside the videos in folder/v."""
    return str(write(folder / "mine.yaml", "name: mine\n" * (not text.startswith("name:")) + text))


def fails(match, dataset, root):
    with pytest.raises((ManifestError, ConfigError), match=match) as error:
        load(dataset, root)
    assert isinstance(error.value, VsslError)
    assert "expected" in str(error.value) or "cannot read" in str(error.value)


def rows(dataset):
    return [(v.id, v.label, v.group, v.split) for v in dataset.videos]


# --- each official layout ---


@pytest.fixture
def ucf(tmp_path):
    write(tmp_path / "ucfTrainTestlist/classInd.txt", "1 Zumba\r\n2 Archery\r\n")
    a, b, c = ("Archery/v_Archery_g01_c01.avi", "Archery/v_Archery_g02_c01.avi", "Zumba/v_Zumba_g03_c04.avi")
    for k, test in (1, a), (2, b), (3, c):
        train = [f"{v} 2\r\n" for v in (a, b, c) if v != test]
        write(tmp_path / f"ucfTrainTestlist/trainlist0{k}.txt", "".join(train))
        write(tmp_path / f"ucfTrainTestlist/testlist0{k}.txt", test + "\r\n\r\n")
    put(tmp_path / "UCF-101", a, c.replace(".avi", ".MP4"), "Archery/own.avi", "Archery/.hidden.avi", "Archery/a.txt")
    return tmp_path


@pytest.mark.parametrize("separator", ["/", "\\"])  # of lists that were written anew on Windows
def test_ucf101_layout(ucf, separator):
    for path in ucf.glob("ucfTrainTestlist/t*list0?.txt"):
        path.write_bytes(path.read_bytes().replace(b"/", separator.encode()))
    dataset = load("ucf101", ucf)
    assert rows(dataset) == [
        ("Archery/own.avi", "Archery", "", (0, 0, 0)),
        ("Archery/v_Archery_g01_c01.avi", "Archery", "g01", (3, 1, 1)),
        ("Zumba/v_Zumba_g03_c04.MP4", "Zumba", "g03", (1, 1, 3)),
    ]
    assert dataset.classes == ("Zumba", "Archery")
    assert dataset.splits == ("1", "2", "3")
    assert dataset.missing == (f"Archery{separator}v_Archery_g02_c01.avi",)
    assert dataset.unlisted == ("Archery/own.avi",)
    assert dataset.videos[1].path == ucf / "UCF-101/Archery/v_Archery_g01_c01.avi"
    summary = dataset.summary()
    for text in (
        "2 of 13,320",
        f"missing: 1 (Archery{separator}v_",
        "unlisted: 1 (",
        "split 1: train 1, validation 0, test 1",
    ):
        assert text in summary


def test_ucf101_broken(ucf):
    put(ucf / "UCF-101", "Dance/x.avi")
    fails("label of 'Dance/x.avi': 'Dance'; expected a declared class", "ucf101", ucf)
    (ucf / "UCF-101/Dance/x.avi").unlink()
    put(ucf / "UCF-101", "Zumba/v_Zumba_g03_c04.mkv")
    fails("two videos for", "ucf101", ucf)
    (ucf / "UCF-101/Zumba/v_Zumba_g03_c04.mkv").unlink()
    listed = ucf / "ucfTrainTestlist/testlist01.txt"
    listed.write_text("Zumba/v_Zumba_g03_c04.avi\n")
    fails("two parts of split 1", "ucf101", ucf)
    listed.unlink()
    fails("cannot read list file.*testlist01.txt", "ucf101", ucf)


def test_hmdb51_layout(tmp_path):
    lists = tmp_path / "testTrainMulti_7030_splits"
    classes = load_classes("hmdb51")
    assert len(classes) == HMDB_CLASSES
    names = ["My_kick_film_kick_ball_f_cm_np1_le_bad_0.avi", "B_kick_ball_u_nm_np2_fr_goo_12.avi", "C_x_1.avi"]
    for label in classes:
        for k in (1, 2, 3):
            lines = [f"{n} {(k + i) % 3} \n" for i, n in enumerate(names)] if label == "kick_ball" else []
            write(lists / f"{label}_test_split{k}.txt", "".join(lines))
    put(tmp_path / "videos/kick_ball", *names[:2])
    dataset = load("hmdb51", tmp_path)
    assert rows(dataset) == [
        ("kick_ball/" + names[1], "kick_ball", "B", (3, 0, 1)),  # flags 2 0 1
        ("kick_ball/" + names[0], "kick_ball", "My_kick_film", (1, 3, 0)),  # flags 1 2 0
    ]
    assert dataset.missing == ("C_x_1.avi",)
    assert dataset.classes == classes
    (lists / "wave_test_split3.txt").write_text("a.avi 3\n")
    fails("expected a file name and 0, 1 or 2", "hmdb51", tmp_path)


def load_classes(name):
    import yaml

    text = (Path(__file__).resolve().parents[2] / f"data_manifests/{name}.yaml").read_text()
    return tuple(yaml.safe_load(text)["classes"]["names"])


def test_kinetics400_layout(tmp_path):
    header = "label,youtube_id,time_start,time_end,split"
    train = f'{header},is_cc\n"petting animal (not cat)",-a_b,7,17,train,0\nzumba,0012,0,10,train,1\n'
    write(tmp_path / "kinetics-400_train.csv", train)
    write(tmp_path / "kinetics-400_val.csv", f"{header}\r\nzumba,ccc,101,111,val\r\n")
    write(tmp_path / "kinetics-400_test.csv", "youtube_id,time_start,time_end,split\nddd,1,11,test\neee,2,12,test\n")
    put(
        tmp_path,
        "train/petting_animal_not_cat/-a_b_000007_000017.mkv",
        "train/petting_animal_not_cat/new_000007_000017.mkv",
        "val/zumba/ccc_000101_000111.mp4",
        "test/ddd_000001_000011.webm",
    )
    dataset = load("kinetics400", tmp_path)
    pet = "petting animal (not cat)"
    assert [(v.label, v.split) for v in dataset.videos] == [("", (3,)), (pet, (1,)), (pet, (0,)), ("zumba", (2,))]
    assert dataset.classes == (pet, "zumba")
    assert dataset.missing == ("0012_000000_000010", "eee_000002_000012")
    assert dataset.unlisted == ("train/petting_animal_not_cat/new_000007_000017.mkv",)

    (tmp_path / "kinetics-400_train.csv").unlink()
    dataset = load("kinetics400", tmp_path)
    assert [v.split for v in dataset.videos] == [(3,), (0,), (0,), (2,)]
    write(tmp_path / "kinetics-400_val.csv", f"{header}\nzumba,ccc,101,111,vla\n")
    fails("split of 'val/zumba/ccc.*': 'vla'", "kinetics400", tmp_path)


def test_demo_layout(tmp_path):
    put(tmp_path, "train/b/1.mp4", "train/a/1.mp4", "test/a/2.mp4")
    dataset = load("demo", tmp_path)
    assert rows(dataset) == [
        ("test/a/2.mp4", "a", "", (3,)),
        ("train/a/1.mp4", "a", "", (1,)),
        ("train/b/1.mp4", "b", "", (1,)),
    ]
    assert (dataset.splits, dataset.classes, dataset.missing, dataset.unlisted) == (("1",), ("a", "b"), (), ())
    put(tmp_path, "trian/a/3.mp4")
    fails("split of 'trian/a/3.mp4': 'trian'", "demo", tmp_path)


def test_folder(tmp_path):
    put(tmp_path, "b.MP4", "a.mov", "notes.txt", ".cache/c.mp4", ".d.mp4")
    os.mkfifo(tmp_path / "f.avi")
    (tmp_path / "folder.avi").mkdir()
    dataset = load("folder", tmp_path)
    assert rows(dataset) == [("a.mov", "", "", ()), ("b.MP4", "", "", ()), ("f.avi", "", "", ())]
    assert (dataset.classes, dataset.splits, dataset.others) == ((), (), ("notes.txt",))
    assert "no labels" in dataset.summary() and "not videos by their names: 1 (notes.txt)" in dataset.summary()
    put(tmp_path, "z/1.mkv", "y/deep/er/1.mkv")
    dataset = load("folder", tmp_path)
    assert [v.label for v in dataset.videos] == ["", "", "", "y", "z"]
    assert dataset.classes == ("y", "z")
    assert "classes: 2 of 2\n  without a label: 3 (a.mov, b.MP4, f.avi)" in dataset.summary()


def test_grid_labels_from_csv(tmp_path):
    write(tmp_path / "labels.csv", "video,command,colour\r\na.mp4,bin,red\r\nb.mp4,lay,blue\r\n")
    put(tmp_path / "videos", "a.mp4", "c.mp4")
    dataset = load("grid", tmp_path)
    assert rows(dataset) == [("a.mp4", "bin", "", ()), ("c.mp4", "", "", ())]
    assert (dataset.classes, dataset.missing, dataset.unlisted) == (("bin", "lay"), ("b.mp4",), ("c.mp4",))
    assert "1 of 2 videos" in dataset.summary()


def test_label_and_group_patterns(tmp_path):
    put(tmp_path, "s1/run_1.avi", "s2/walk_1.avi")
    mine = manifest(
        tmp_path, "label: {pattern: '^(?P<label>[a-z]+)_'}\ngroup: {folder: 1}\nclasses: {names: [walk, run]}"
    )
    dataset = load(mine, tmp_path)
    assert [(v.label, v.group) for v in dataset.videos] == [("run", "s1"), ("walk", "s2")]
    assert dataset.classes == ("walk", "run")
    put(tmp_path, "s1/007.avi")
    fails("label pattern does not match the file name: 's1/007.avi'", mine, tmp_path)


# --- the manifest ---


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("lable: {folder: 1}", "unknown key 'lable', expected name or like or source"),
        ("label: {folder: first}", "label, folder is 'first', expected a whole number"),
        ("label: {folder: true}", "label, folder is True, expected a whole number"),
        ("label: {folder: 0}", "expected 1 for the first"),
        ("videos: [a]", "videos is .'a'., expected a mapping"),
        ("videos: {extensions: avi}", "expected a list"),
        ("classes: {names: [yes]}", "names is True, expected text. .*quotes"),
        ("classes: {file: c.txt}", "expected names, file and pattern, or a JSON file"),
        ("classes: {names: [a, a]}", "class declared twice"),
        ("label: {pattern: '(?P<label>'}", "bad regular expression"),
        ("label: {pattern: '(.*)'}", r"expected a part named \(\?P<label>"),
        ("group: {pattern: '(?P<group>zz+)'}", "no video has a group by"),
        ("label: {column: a}", "expected a csv section"),
        (
            "csv: {files: [t.csv], video: '{video}'}\nlabel: {column: b}",
            "CSV column not found: 'b'; expected a or video",
        ),
        ("csv: {files: [t.csv], video: '{id}'}", "column not found in .*'id'"),
        ("csv: {files: [t.csv], video: '{video:06d}'}", "video in .*line 2: 'run/x.avi'"),
        ("csv: {files: [t.csv], video: '{video'}", "csv video"),
        ("csv: {files: [t.csv], video: 'c{video}'}\nlabel: {column: a}", "no video has a label by: 'column a'"),
        ("csv: {files: [u.csv], video: '{video}'}", "CSV file not found"),
        ("csv: {files: [t.csv]}", "expected files and video"),
        ("splits: {folder: 1, column: a}", "expected one of lists"),
        ("splits: {folder: 1, names: ['1']}", "expected lists, flags or match"),
        ("splits: {flags: 'a{class}'}", "expected classes"),
        ("splits: {leave_out: group}", "with a group in the manifest"),
        ("splits: {leave_out: group}\ngroup: {folder: 1}", "one group only: 'run'"),
        ("label: {folder: 2}", "label by folder level: '2'; expected an existing level: 'run/x.avi' has 1"),
        ("group: {folder: 3}", "group by folder level: '3'"),
        ("splits: {folder: 2}", "split by folder level: '2'"),
        ("splits: {lists: {training: a.txt}}", "unknown key"),
        ("splits: {lists: {train: a.txt}}", "cannot read list file"),
        ("name: a/b", "name in manifest"),
        ("a: [", "cannot read the manifest"),
        # of strangers
        ("label: {pattern: 'x{99999999999}'}", "bad regular expression"),
        (f"label: {{pattern: '{'(' * 5000}'}}", "bad regular expression"),
        ("csv: {files: [t.csv], video: '{video:>2000000000}'}\nlabel: {column: a}", "csv video"),
        (f"csv: {{files: [t.csv], video: '{'{video}' * 30}'}}\nlabel: {{column: a}}", "a few columns"),
        ("label: {folder: 4611686018427387904}", "label in manifest .*: '4611686018427387904'"),
        ("videos: {levels: [4611686018427387904]}", "levels in manifest"),
        ("expected: {videos: " + "9" * 5000 + "}", "a number of 5,000 characters"),
        ('classes: {file: "a\\0b", pattern: "(?P<label>.)"}', "(?s)cannot read the manifest .* NUL"),
        ("a: &a [*a]", "a value contains itself"),
    ],
)
def test_errors(tmp_path, text, match):
    put(tmp_path, "run/x.avi")
    write(tmp_path / "t.csv", "video,a\nrun/x.avi,1\n")
    fails(match, manifest(tmp_path, text), tmp_path)


def test_unknown_manifest(tmp_path):
    fails(
        "unknown data set: 'ucf'; expected .*folder, grid, hmdb51, jester, kinetics400, .*ucf101, weizmann",
        "ucf",
        tmp_path,
    )
    fails("manifest not found", str(tmp_path / "no.yaml"), tmp_path)


def test_conflicting_rows(tmp_path):
    put(tmp_path, "x.avi")
    mine = manifest(tmp_path, "csv: {files: ['*.csv'], video: '{video}'}\nlabel: {column: a}")
    write(tmp_path / "1.csv", "video,a\nx.avi,1\nx.avi,1\n")
    assert load(mine, tmp_path).videos[0].label == "1"
    write(tmp_path / "2.csv", "video,a\nx,2\n")
    fails("two list entries for 'x.avi'", mine, tmp_path)
    write(tmp_path / "2.csv", "video,a\nx.avi,2\n")
    fails("two different rows for one video", mine, tmp_path)


# --- select ---


def test_select(ucf):
    dataset = load("ucf101", ucf)

    def chosen(which):
        return [v.id[-11:-4] for v in select(dataset.videos, dataset.splits, which)]

    archery, zumba = "g01_c01", "g03_c04"
    assert len(chosen(None)) == 3
    assert chosen("1") == chosen("3") == [archery, zumba]
    assert chosen("train") == chosen("1/train") == [zumba]
    assert chosen("test") == chosen("2/train")[:1] == [archery]
    assert chosen("3/test") == [zumba]
    with pytest.raises(ConfigError, match="'4'; expected 1, 2, 3, train, validation, test"):
        chosen("4")
    with pytest.raises(ManifestError, match="no video in split: 'val'"):
        chosen("val")
    with pytest.raises(ConfigError, match="no splits"):
        select(dataset.videos, (), "train")
    names = {
        which: split_name(dataset.splits, which) for which in (None, "1", "train", "1/train", "val", "2/validation")
    }
    assert list(names.values()) == ["all", "1", "1/train", "1/train", "1/validation", "2/validation"]


# --- real data ---


@pytest.mark.parametrize(
    ("name", "videos", "classes", "missing", "first"),
    [
        ("ucf101", 4, 101, 13320 - 4, ("ApplyEyeMakeup", "g01", (3, 1, 1))),
        ("hmdb51", 2, 51, 6766 - 2, ("wave", "RATRACE", (1, 3, 1))),
        ("kinetics400", 2, 400, 19906 - 2, ("using segway", "", (2,))),
        ("weizmann", 50, 10, 0, ("bend", "daria", (3, 1, 1, 1, 1))),
        ("grid", 600, 4, 0, ("bin", "", ())),
    ],
)
def test_real_data(name, videos, classes, missing, first):
    if not (DATA / name).is_dir():
        pytest.skip(f"no real data: {name}")
    dataset = load(name, DATA / name)
    found = len(dataset.videos), len(dataset.classes), len(dataset.missing), len(dataset.unlisted)
    assert found == (videos, classes, missing, 0)
    assert (dataset.videos[0].label, dataset.videos[0].group, dataset.videos[0].split) == first
    if name == "kinetics400":
        assert dataset.classes == tuple((DATA / name / "label_map_k400.txt").read_text().splitlines())
    if name == "weizmann":
        assert all(sum(video.split[k] == 3 for video in dataset.videos) == 10 for k in range(5))
