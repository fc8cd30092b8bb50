"""Names, links, folders and lists as strangers leave them: each video is found once, by the name that it has."""

import os

import pytest

from labelgen.decode import frames
from labelgen.errors import DecodeError
from labelgen.manifest import load
from tests.labelgen.test_manifest import fails, manifest, put, rows, write


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path)
    open(folder + b"/caf\xe9.avi", "w").close()
    (video,) = load("folder", tmp_path).videos
    assert video.id == "caf\\xe9.avi"
    video.id.encode("utf-8")
    assert os.fsencode(video.path) == folder + b"/caf\xe9.avi" and video.path.exists()
    put(tmp_path, "caf\\xe9.avi")
    fails("two videos with one id", "folder", tmp_path)


def test_links(tmp_path):
    put(tmp_path, "far/x.avi", "root/a/1.avi")
    root = tmp_path / "root"
    (root / "b").symlink_to(tmp_path / "far")
    (root / "a/up").symlink_to(root)
    (root / "a/self.avi").symlink_to(root / "a/self.avi")
    (root / "dangling.avi").symlink_to(root / "nowhere")
    (root / "2.avi").symlink_to(root / "a/1.avi")
    # what is named like a video is counted, be it there or not: labelgen lists it as failed
    assert [v.id for v in load("folder", root).videos] == ["2.avi", "a/1.avi", "a/self.avi", "b/x.avi", "dangling.avi"]


def test_where_videos_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VSSL_DATA", raising=False)
    put(tmp_path, "data/folder/a.avi", "elsewhere/folder/b.avi", "c/c.avi")
    assert load("folder").videos[0].path == tmp_path / "data/folder/a.avi"
    monkeypatch.setenv("VSSL_DATA", str(tmp_path / "elsewhere"))
    assert load("folder").videos[0].path == tmp_path / "elsewhere/folder/b.avi"
    assert load("folder", "c").videos[0].path == tmp_path / "c/c.avi"
    fails("folder not found.*absent.*another root", "folder", "absent")
    assert load("folder").name == "folder"
    (tmp_path / "empty").mkdir()
    fails("no videos found in", "folder", "empty")


@pytest.mark.parametrize(
    ("folder", "name"), [("clips", "clips"), ("my videos (2)", "my-videos--2"), ("v1.0_ü", "v1.0_ü"), ("%", "folder")]
)
def test_a_folder_names_its_data_set(tmp_path, monkeypatch, folder, name):
    put(tmp_path, f"{folder}/a.avi")
    assert load("folder", tmp_path / folder).name == name
    monkeypatch.chdir(tmp_path / folder)
    assert load("folder", ".").name == name
    assert load(manifest(tmp_path / folder, ""), ".").name == "mine"


@pytest.mark.parametrize("splits", ["{lists: {train: odd}}", "{column: split}"])
def test_a_pipe_as_list_or_table_is_refused(tmp_path, splits):
    table = "csv: {files: [odd], video: '{video}'}\n" if "column" in splits else ""
    put(tmp_path, "a/1.avi")
    os.mkfifo(tmp_path / "odd")
    mine = manifest(tmp_path, f"{table}splits: {splits}\n")
    fails("cannot read .*a named pipe; expected a regular file", mine, tmp_path)


def test_a_path_that_is_too_long_is_listed_and_the_others_are_found(tmp_path):
    put(tmp_path, "a/1.avi")
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # deeper than any path may be
        os.mkdir("d" * 250, dir_fd=handle)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(os.open("2.avi", os.O_CREAT | os.O_WRONLY, dir_fd=handle))
    os.close(handle)
    long, short = sorted(load("folder", tmp_path).videos, key=lambda video: -len(video.id))
    assert short.id == "a/1.avi" and long.id == "/".join(["d" * 250] * 20) + "/2.avi"
    with pytest.raises(DecodeError, match="File name too long"):
        list(frames(long.path))


def test_folders_of_links_that_fan_out_are_visited_once(tmp_path):
    """Two links a level, 25 levels: 2^25 paths to one video."""
    for level in range(25):
        (tmp_path / f"v/l{level}").mkdir(parents=True)
    for level in range(24):
        for name in "ab":
            (tmp_path / f"v/l{level}/{name}").symlink_to(tmp_path / f"v/l{level + 1}")
    put(tmp_path / "v/l24", "x.mp4")
    assert load("folder", tmp_path / "v").videos.ids == ["l24/x.mp4"]  # as what it is, and not by a link
    (tmp_path / "w").mkdir()
    (tmp_path / "w/z").symlink_to(tmp_path / "v/l0")
    (tmp_path / "w/y").symlink_to(tmp_path / "v/l0")
    (tmp_path / "w/a").symlink_to(tmp_path / "v/l20")
    deep = "a/a/a/a/a/x.mp4"  # of the links, the one in the first of the orders is taken at each level
    assert load("folder", tmp_path / "w").videos.ids == [deep]


def test_names_match_however_their_accents_are_written(tmp_path):
    one, several = "Caf\u00e9", "Cafe\u0301"
    for files, listed in ((several, one), (one, several)):
        root = tmp_path / ascii(files)
        put(root, f"{files}/{files}.mp4", f"{files}/b.mp4")
        write(root / "train.txt", f"{listed}/{listed}.mp4\n")
        write(root / "test.txt", f"{listed}/b\n")
        write(root / "t.csv", f"video,label\n{listed},Ein {listed}\nb,Ein {listed}\n")
        lists = manifest(root, "label: {folder: 1}\nsplits: {lists: {train: train.txt, test: test.txt}}\n")
        assert [parts for _, _, _, parts in rows(load(lists, root))] == [(1,), (3,)]
        table = manifest(root, "csv: {files: [t.csv], video: '{video}'}\nlabel: {column: label}\n")
        assert {label for _, label, _, _ in rows(load(table, root))} == {f"Ein {listed}"}
        classes = manifest(root, f"label: {{folder: 1}}\nclasses: {{names: ['{listed}']}}\n")
        assert {label for _, label, _, _ in rows(load(classes, root))} == {listed}


def test_names_that_look_the_same_are_told_apart(tmp_path):
    put(tmp_path, "x/Caf\u00e9.mp4", "y/Cafe\u0301.mp4")
    write(tmp_path / "train.txt", "Caf\u00e9\n")
    write(tmp_path / "test.txt", "")
    text = "splits: {lists: {train: train.txt, test: test.txt}}\n"
    fails(
        r"two videos for 'Caf\u00e9' of the lists: 'x/Caf.*xe9.mp4 and y/Cafe.*u0301.mp4'",
        manifest(tmp_path, text),
        tmp_path,
    )
    (tmp_path / "y/Cafe\u0301.mp4").unlink()
    write(tmp_path / "test.txt", "Cafe\u0301\n")
    fails(r"two list entries for 'x/Caf\u00e9.mp4': 'Caf.*xe9 and Cafe.*u0301'", manifest(tmp_path, text), tmp_path)
