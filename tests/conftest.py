"""What every test starts from."""

from __future__ import annotations

import os

# Two test processes on two cores: one thread each, so that they do not fight; and results that do not
# depend on the machine's number of cores. Set before torch or numpy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
