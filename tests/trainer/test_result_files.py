"""What is read of a result file that anybody may have made."""

import json

import pytest

from trainer.evaluate.results import read_results

PRETRAINING = {"method": "pace", "dataset": "demo", "steps": 3}
WHOLE = {
    "protocol": {
        **{"dataset": "demo", "split": None, "mode": "test part", "views": "10 clips"},
        **{"pretraining": PRETRAINING, "initial": None},
    },
    "rows": [{"metric": "top-1", "value": 50, "low": 40.0, "high": 60.0, "distance": "other video"}],
    "notes": [],
    "neighbours": [{"query": "a", "label": "x", "nearest": [["b", "x"]], "cosines": [0.5]}],
    "confusion": {"classes": ["x", "y"], "counts": [[1, 0], [0, 0]]},
}


def row(**changes):
    return {"rows": [WHOLE["rows"][0] | changes]}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"made_by": "another program"}, None),
        ({"protocol": WHOLE["protocol"] | {"initial": {"settings": {"method": "pace"}, "dataset": "d"}}}, None),
        ({"protocol": WHOLE["protocol"] | {"initial": {"settings": {}, "dataset": "d"}}}, ["method"]),
        (row(value="50"), ["'50'", "a number"]),
        (row(value=1e7), ["10000000.0", "below 10^6"]),
        (row(low=-1e7), ["-10000000.0", "below 10^6"]),
        ({"rows": [{"metric": "top-1", "value": 50, "low": 40}]}, ["both ends"]),
        (row(distance="far"), ["far", "'other video' or a number"]),
        ({"neighbours": [WHOLE["neighbours"][0] | {"nearest": [["b"]]}]}, ["['b']", "video and class"]),
        ({"neighbours": [WHOLE["neighbours"][0] | {"cosines": []}]}, ["cosines", "[]", "1, one for each"]),
        ({"confusion": {"classes": ["x", "y"], "counts": [[1, 0], [0]]}}, ["[[1, 0], [0]]", "2 x 2"]),
        ({"confusion": {"classes": ["x"], "counts": [[0]]}}, ["[[0]]", "1 x 1"]),
        ({"confusion": {"classes": [], "counts": []}}, ["0 x 0"]),
    ],
)
def test_what_no_measurement_gives_is_named_with_what_was_expected(tmp_path, changes, words):
    (tmp_path / "results").mkdir()
    file = tmp_path / "results" / "knn-demo.json"
    file.write_text(json.dumps(WHOLE | changes))
    found, notes = read_results(tmp_path)
    if words is None:
        assert [result.name for result in found] == ["knn"] and not notes
    else:
        (note,) = notes
        assert not found and [word for word in (str(file), "measure again", *words) if word not in note] == []
