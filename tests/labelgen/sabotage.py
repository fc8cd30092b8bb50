"""Processes that go wrong when they decode certain videos."""

from pathlib import Path

SEGFAULT, HANG = "os.kill(os.getpid(), signal.SIGSEGV)", "time.sleep(1000)"
_SITE = """
import os, signal, sys, time
def _sabotage():
    import labelgen.decode as decode
    original = decode.FrameStream._decode
    def broken(self, fps):
        for index, frame in enumerate(original(self, fps)):
            if index == {at}:
                exec({codes}.get(os.path.basename(self.path), ""))
            yield frame
    decode.FrameStream._decode = broken
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "labelgen.run.video":
            sys.meta_path.remove(self)
            _sabotage()
sys.meta_path.insert(0, Finder())
"""


def sabotaged(folder: Path, at: int, codes: dict[str, str]) -> str:
    """A folder for the path of processes to be started, which run the code of a video's name before its frame `at`."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_SITE.format(at=at, codes=codes))
    return str(folder / "site")
