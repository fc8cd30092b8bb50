"""The numbers of papers on the page of a run."""

import yaml

from tests.trainer.pages import Page
from trainer.backbones import BACKBONES
from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.methods import METHODS
from trainer.pages.published import PUBLISHED, published_html


def test_published_numbers_are_of_known_methods_and_sources():
    content = yaml.safe_load(PUBLISHED.read_text())
    numbers = [(group, number) for group in content["groups"] for number in group["numbers"]]
    assert len(numbers) > 60
    for group, number in numbers:
        assert number.keys() <= {"method", "variant", "backbone", "pretraining", "values", "source"}
        assert (
            number["method"] in (*METHODS, "none")
            and (number["backbone"] in BACKBONES or " " in number["backbone"])  # one that is not here, in words
            and group["protocol"] in PROTOCOLS
        )
        assert number["source"].split()[0] in content["papers"] and ("pretraining" in number) == (
            number["method"] != "none"
        )
        for values in number["values"].values():
            several = values if isinstance(values, list) else [values]
            assert len(several) == len(protocol_class(group["protocol"]).published)
            known = [value for value in several if value is not None]
            assert known == sorted(known) and all(0 < value < 100 for value in known)


def test_numbers_of_data_that_were_not_measured_are_folded():
    text = str(published_html({"method": "pace", "backbone": "r3d10", "width": 1.0}, None, []))
    for dataset in ("ucf101", "hmdb51"):
        assert f"<details><summary>Retrieval on {dataset}: not measured for this run</summary>" in text
    assert text.count("<table") == text.count("<details") - 1  # and the sources


def shown(method, backbone, initial=None, results=()):
    settings = {"method": method, "backbone": backbone, "width": 1.0}
    return Page(published_html(settings, initial, results)).text


def test_published_numbers_of_the_same_method_and_backbone():
    text = shown("statistics", "r2plus1d10")
    for number in ["73.6", "34.1", "76.5", "37.9", "77.8", "40.5", "56.0", "21.2", "77.1", "61.6"]:
        assert f" {number} " in text
    for number in ["73.9", "30.9", "69.3", "58.8"]:  # of other methods and backbones
        assert f" {number} " not in text
    assert "29.95" in shown("statistics", "c3d_light") and "80.5" in shown("ascnet", "r3d18")
    moco = shown("moco", "c3d")
    assert "with moco" in moco and " 66.6 moco, Slow R50, 2 clips of a video, " in moco and " 61.5 " not in moco
    assert shown("rotation", "c3d") == "" == shown("recognition", "r3d18", None)
    finetuned = {"settings": {"method": "pace"}, "dataset": "ucf101"}
    assert "75.9" in shown("recognition", "r2plus1d10", finetuned)
