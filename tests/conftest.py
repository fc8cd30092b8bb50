"""Before torch is imported: its threads must not spin beside other work."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
