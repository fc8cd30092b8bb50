"""Before torch is imported: its threads must not spin beside other work. And SIGINT, which some tests raise, is heard, even in
the background."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
