"""Before torch is imported: its threads must not spin beside other work. SIGINT, which some tests raise, is heard, even in the
background. And no file waits for the disk: no test cuts the power."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.fsync = lambda _: None

import pytest  # noqa: E402

from tests.browser import PROGRAM, Chromium  # noqa: E402


@pytest.fixture(scope="session")
def browser():
    """A Chromium for the pages of all tests, which are skipped if there is none."""
    if PROGRAM is None:
        pytest.skip("no Chromium is installed (chromium, chromium-browser or google-chrome)")
    with Chromium() as running:
        yield running
