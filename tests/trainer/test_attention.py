import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from labelgen.errors import VsslError
from labelgen.flow import flow
from labelgen.labels.clip import clip_boundaries
from tests.command import vssl
from tests.labelgen import reference
from tests.trainer.planted import write_colored
from tests.trainer.synthetic import CONFIG, write_shard
from trainer.evaluate import features
from trainer.evaluate.evaluator import measure
from trainer.evaluate.features import Compute
from trainer.evaluate.protocols import attention as maps
from trainer.evaluate.protocols.attention import Attention, attention_map, correlation, middle_clip
from trainer.evaluate.results import read_results


def test_map_by_hand():
    stage = torch.tensor([[1.0, 0.0], [-2.0, 1.0]]).reshape(1, 2, 1, 1, 2)  # channels (1, 0) and (-2, 1)
    later = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 1, 1, 2)
    # squared sums: 9 and 1, later 1 and 1; their mean 5 and 1
    assert attention_map(torch.cat([stage, later], 2))[0].tolist() == [[1.0, pytest.approx(0.2)]]


def test_map_equals_plain_loops_whatever_the_sign_and_scale():
    stage = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    slow = np.zeros((2, 5, 6))
    for b, t, y, x in np.ndindex(2, 4, 5, 6):
        slow[b, y, x] += sum(abs(float(stage[b, c, t, y, x])) for c in range(3)) ** 2 / 4
    slow /= slow.max((1, 2), keepdims=True)
    np.testing.assert_allclose(attention_map(stage), slow, rtol=1e-5)
    np.testing.assert_allclose(attention_map(-7 * stage), slow, rtol=1e-5)
    assert not attention_map(torch.zeros(1, 3, 2, 2, 2)).any()


def test_correlation_by_hand():
    moving = np.zeros((4, 4), np.float32)
    moving[:, 2:] = 3  # the right half
    left = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    assert correlation(1 - left, moving) == pytest.approx(100) and correlation(left, moving) == pytest.approx(-100)
    moving[:2, 2] = 0  # means of the cells: 0, 1.5, 0, 3
    assert correlation(1 - left, moving) == pytest.approx(100 * np.corrcoef([0, 1, 0, 1], [0, 1.5, 0, 3])[0, 1])
    assert correlation(left, np.ones((4, 4))) is None and correlation(np.ones((2, 2)), moving) is None


@pytest.mark.parametrize("length, first", [(64, 24), (17, 0), (16, 0)])
def test_middle_clip(length, first):
    assert middle_clip(length, 16).tolist() == [list(range(first, first + 16))]


def test_tiles_of_a_sheet_are_those_it_was_made_of(tmp_path):
    tiles = {name: np.full((224, 224, 3), value, np.uint8) for name, value in (("a", 10), ("b", 90), ("c", 200))}
    drawn = cv2.imread(str(tmp_path.parent / maps.write_sheet(tmp_path, "a/b", "title", tiles)))
    for tile, own in zip(maps.tiles_of(drawn, 3), tiles.values(), strict=True):
        assert (tile == own).all()
    assert maps.tiles_of(drawn, 2) == [] == maps.tiles_of(drawn[1:], 3)


def test_middle_clip_of_a_short_video_loops():
    assert middle_clip(6, 16).tolist() == [[0, 1, 2, 3, 4, 5] * 2 + [0, 1, 2, 3]]


def lamp(seed: int, n: int) -> np.ndarray:
    """Grey frames with a white square of 8 pixels, its corner in the crop (4, 8) of the frame at (8, 8 seed % 24)."""
    frames = np.full((n, 40, 48, 3), 115, np.uint8)  # 0.45: the network sees 0
    frames[:, 12:20, 8 + 8 * (seed % 3) :][:, :, :8] = 255
    return frames


class Bright(nn.Module):
    """Cells of 8 x 8 pixels; how far each differs from grey."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        cells = nn.functional.avg_pool3d(x, (8, 8, 8))
        return {"conv4": cells[:, :, :, ::2, ::2], "conv5": cells}


class Even(Bright):
    def forward(self, x):
        return {name: torch.ones_like(stage) for name, stage in super().forward(x).items()}


@pytest.fixture
def lamps(tmp_path, monkeypatch):
    names = [f"lamp {i}" for i in range(3)]
    write_shard(tmp_path / "lamps" / "00000.h5", [20] * 3, names=names, frames=lamp, splits=())
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": Bright(), "random": Even()})
    return tmp_path / "lamps"


def where_white(frames, config):
    assert frames.shape == (16, 40, 48, 3) and config["crop"] == CONFIG["crop"]
    return np.stack([(frames[0, ..., 0] > 200).astype(np.float32)] * 2)


def test_planted_network(lamps, run):
    """One that is active where the picture is white follows boundaries that are there; one that is even has none to follow."""
    result = measure("attention", lamps, run, compute=Compute(2, 0, "cpu"), boundaries=where_white)
    assert [sheet["video"] for sheet in result["sheets"]] == ["lamp 0", "lamp 1", "lamp 2"]
    assert [row["value"] for row in result["rows"]] == pytest.approx([100] * 3, abs=1)
    assert {row["network"] for row in result["rows"]} == {"pretrained"} and "3 maps have no correlation" in result[
        "notes"
    ][0]
    for i, sheet in enumerate(result["sheets"]):
        drawn = cv2.imread(str(run / "results" / sheet["file"]))
        assert drawn.shape == (264, 5 * 230 - 6, 3) and len(sheet["shown"]) == 5
        overlay = cv2.cvtColor(drawn[40:, 230:454], cv2.COLOR_BGR2GRAY)
        y, x = np.unravel_index(cv2.blur(overlay, (25, 25)).argmax(), overlay.shape)
        assert (y * 4 // 224, x * 4 // 224) == (1, i)  # of the 4 x 4 cells of the crop
    stored = json.loads((run / "results" / "attention-lamps.json").read_text())
    assert stored["sheets"] == result["sheets"] and sheet["file"] in Attention.format_table(result)
    for compute in (Compute(1, 0, "cpu"), Compute(3, 2, "cpu")):
        assert measure("attention", lamps, run, compute=compute, boundaries=where_white)["rows"] == result["rows"]


def test_chosen_stage_and_videos(lamps, run):
    result = measure("attention", lamps, run, compute=Compute(4, 0, "cpu"), stage="conv4", videos=("2", "lamp 0"))
    assert [sheet["video"] for sheet in result["sheets"]] == ["lamp 0", "lamp 2"] and result["rows"] == []
    assert result["sheets"][0]["shown"] == ["frame 10", "pretrained conv4", "random conv4"]
    for options, message in (
        ({"stage": "conv9"}, "stage is 'conv9', expected one of: conv4, conv5"),
        ({"videos": ("7",)}, "'7'"),
        ({"videos": ("lamp 1", "")}, "''"),
    ):
        with pytest.raises(VsslError, match=message):
            measure("attention", lamps, run, compute=Compute(4, 0, "cpu"), **options)


def test_a_video_is_named_without_its_extension(tmp_path, run, monkeypatch):
    names = ["Lips/v_Lips_g01_c01.avi", "Lips/v_Lips_g02_c01.avi"]
    write_shard(tmp_path / "lamps" / "00000.h5", [20] * 2, names=names, frames=lamp, splits=())
    monkeypatch.setattr(features, "networks", lambda _: {"pretrained": Bright()})
    result = measure("attention", tmp_path / "lamps", run, compute=Compute(4, 0, "cpu"), videos=("v_Lips_g02_c01",))
    assert [sheet["video"] for sheet in result["sheets"]] == names[1:]
    with pytest.raises(VsslError, match="'c01' is the name of 2 videos"):
        measure("attention", tmp_path / "lamps", run, compute=Compute(4, 0, "cpu"), videos=("c01",))


def test_random_videos_are_of_the_test_part(tmp_path, run):
    write_colored(tmp_path / "c" / "00000.h5", 8, split=[1, 1, 1, 1, 1, 3, 3, 3])
    first, again, other = (
        {
            sheet["video"]
            for sheet in measure("attention", tmp_path, run, compute=Compute(4, 0, "cpu"), count=2, seed=s)["sheets"]
        }
        for s in (0, 0, 1)
    )
    assert first == again and first | other <= {"00000_5", "00000_6", "00000_7"} and len(first) == 2


def test_boundaries_of_the_command_are_the_signed_sum_over_15_clipped_flows():
    frames = np.full((16, 40, 48, 3), 60, np.uint8)
    texture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for t in range(16):
        frames[t, 12:28, 4 + 2 * t :][:, :16] = texture[:, : 44 - 2 * t]
    of_u, of_v = clip_boundaries(frames, {"flow": {"backend": "dis"}})
    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    flows = np.stack([flow(luma[t], luma[t + 1], "dis") for t in range(15)])
    summed = reference.boundaries(np.clip(flows, -20, 20)).sum(0)
    np.testing.assert_allclose(of_u, np.hypot(summed[0], summed[1]), atol=1e-4)
    np.testing.assert_allclose(of_v, np.hypot(summed[2], summed[3]), atol=1e-4)
    assert of_u.sum() > 2 * of_v.sum() > 0  # it moves to the right


def test_command(tmp_path, run):
    write_shard(tmp_path / "s" / "00000.h5", [20, 30], config={**CONFIG, "flow": {"backend": "dis"}})
    told = vssl("eval", "attention", "--shards", tmp_path, "--checkpoint", run, "--count", 1, "--workers", 0)
    assert "correlation" in told and [*(run / "results" / "attention").glob("s-*.png")]


def test_middle_clip_at_other_paces():
    assert middle_clip(64, 16, 2).tolist() == [list(range(16, 48, 2))]  # 31 frames, 33 others
    assert middle_clip(20, 16, 3).tolist() == [[3 * i % 20 for i in range(16)]]


def test_a_pace_has_a_result_of_its_own(demo, run):
    shown = []
    for pace in (1, 2):
        result = measure("attention", demo, run, compute=Compute(8, 0, "cpu"), pace=pace, count=1)
        shown.append(cv2.imread(str(run / "results" / result["sheets"][0]["file"])))
    assert result["file"].endswith("attention-pace2-demo-split1.json") and "pace 2" in result["protocol"]["views"]
    assert (run / "results/attention-demo-split1.json").exists() and (shown[0] != shown[1]).any()
    titles = [one.title for one in read_results(run)[0]]
    assert "Attention (pace2) on demo, split split1" in titles and "Attention on demo, split split1" in titles
