"""Long work shows that it lives."""

import time

from labelgen import progress


def test_the_innermost_work_tells_every_ten_seconds_that_it_lives(monkeypatch, capsys):
    assert progress.EVERY == 10
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with progress.working("the whole"):
        time.sleep(0.12)
        for _ in range(8):  # parts that are shorter than the time between two lines do not silence it
            with progress.working("a part"):
                time.sleep(0.03)
        with progress.telling(None):  # as where a bar is drawn
            told = capsys.readouterr().err
            time.sleep(0.12)
    assert told.startswith("the whole, 0 s\n") and "a part, 0 s\n" in told
    assert not capsys.readouterr().err
