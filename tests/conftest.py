"""Before torch is imported: its threads must not spin beside other work. A shell that starts the tests in the background has SIGINT
ignored, which some tests raise."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
