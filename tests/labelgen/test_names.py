import pytest

from labelgen.errors import ShardError
from labelgen.shards import VideoNames

IDS = ["Lips/v_Lips_g01_c01.avi", "Lips/v_Lips_g01_c02.avi", "Eyes/v_Eyes_g01_c01.avi", "clip.1", "clip.10"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Lips/v_Lips_g01_c01.avi", 0),
        ("Lips/v_Lips_g01_c01", 0),
        ("v_Lips_g01_c02", 1),
        ("v_Lips_g01_c02.avi", 1),
        ("Lips_g01_c01", 0),
        ("Eyes_g01_c01.avi", 2),
        ("s/v_Eyes_g01_c01", 2),
        ("clip.1", 3),  # the id itself, and not the end or the stem of another
        ("clip.10", 4),
    ],
)
def test_a_video_is_found_by_id_stem_or_end(name, row):
    assert VideoNames(IDS).rows([name], "here") == [row]


def test_several_names_give_each_video_once_in_the_order_of_the_ids():
    assert VideoNames(IDS).rows(["v_Eyes_g01_c01", "Lips_g01_c01", "Eyes_g01_c01"], "here") == [0, 2]
    assert VideoNames(IDS).rows([], "here") == []


@pytest.mark.parametrize("name", ["g01_c01", "clip", "c01.avi"])
def test_an_ambiguous_name_is_told_with_its_videos(name):
    with pytest.raises(ShardError, match=f"here: '{name}' is the name of 2 videos: '.*', '.*'; give more"):
        VideoNames(IDS).rows([name], "here")


@pytest.mark.parametrize("name", ["", "v_Lips_g01_c03", "Lips/v_Lips"])
def test_an_unknown_name_is_told_with_an_id(name):
    with pytest.raises(ShardError, match=f"here: no video is called '{name}'; ids look like 'Lips/v_Lips_g01_c01.avi'"):
        VideoNames(IDS).rows([name], "here")


def test_composed_and_decomposed_accents_are_one_name_unless_both_are_there():
    composed, decomposed = "caf\u00e9.avi", "cafe\u0301.avi"
    for own, asked in ((composed, decomposed), (decomposed, composed)):
        assert VideoNames(["a.avi", own]).rows([asked.removesuffix(".avi")], "here") == [1]
    both = VideoNames([composed, decomposed])
    assert both.rows([composed], "here") == [0] and both.rows([decomposed], "here") == [1]
    with pytest.raises(ShardError) as told:  # which of the two is meant cannot be seen: they are written with escapes
        both.rows(["caf\u00e9"], "here")
    assert r"'caf\xe9.avi', 'cafe\u0301.avi'" in str(told.value)
