import contextlib

import pytest

from labelgen import extract, run


@pytest.fixture
def in_process(monkeypatch):
    """Videos are made in this process, in their order: what was changed here is changed there. The list of the tasks."""
    begun = []

    def each(function, tasks):
        for task in sorted(tasks, key=lambda task: task.path):
            begun.append(task)
            yield function(task)

    @contextlib.contextmanager
    def pool(*_):
        yield each, 1

    monkeypatch.setattr(run, "pool", pool)
    monkeypatch.setattr(extract, "pool", pool)
    return begun
