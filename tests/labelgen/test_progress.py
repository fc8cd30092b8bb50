"""Long work prints a heartbeat."""

import re
import time

import pytest

from labelgen import progress


def test_the_innermost_work_prints_a_heartbeat_every_ten_seconds(monkeypatch, capsys):
    assert progress.EVERY == 10
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with progress.busy("the whole"):
        time.sleep(0.12)
        for _ in range(8):  # parts that are shorter than the time between two lines do not silence it
            with progress.busy("a part"):
                time.sleep(0.03)
        with progress.heartbeat(None):  # as where a bar is drawn
            told = capsys.readouterr().err
            time.sleep(0.12)
    assert told.startswith("the whole, 0 s\n") and "a part, 0 s\n" in told
    assert not capsys.readouterr().err


def test_without_a_terminal_what_is_left_is_printed_also_while_a_step_lasts(monkeypatch, capsys):
    monkeypatch.setattr("labelgen.progress.EVERY", 0.05)
    with progress.ProgressBar("linear probe", "fold", 50) as bar:
        time.sleep(0.12)
        bar.step(3)
        time.sleep(0.12)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "linear probe: 0 of 50 folds"
    assert re.fullmatch("linear probe: 3 of 50 folds, about [2-9] s left", lines[-1])
    bar = progress.ProgressBar("linear probe", "fold", 50)
    bar.step(48)
    assert bar.line(4 * 48) == "linear probe: 48 of 50 folds, about 8 s left"


def test_what_was_done_before_is_not_counted_as_done_in_this_time(capsys):
    bar = progress.ProgressBar("labelled", "video")
    bar(40, 100)
    assert bar.line(5) == "labelled: 40 of 100 videos"
    bar(50, 100, 3000)
    assert bar.line(20) == "labelled: 50 of 100 videos, 150 frames/s, about 2 min left"
    bar.say("a note")
    assert capsys.readouterr().err == "a note\n"


@pytest.mark.parametrize(
    ("level", "out", "err"),
    [(-1, "warning: b\nc\n", ""), (0, "a\nwarning: b\nc\n", ""), (1, "a\nwarning: b\nc\n", "d\n")],
)
def test_how_much_is_told(capsys, level, out, err):
    try:
        progress.set_level(level)
        progress.say("a")
        progress.say("warning: b")
        progress.say("c", result=True)
        progress.detail("d")
        assert capsys.readouterr() == (out, err)
        with progress.ProgressBar("made", "part", 2) as bar:
            bar.say("note")
    finally:
        progress.set_level(0)
    assert ("note" in capsys.readouterr().err) == (level >= 0)
