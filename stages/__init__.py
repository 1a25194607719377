"""One thin entry point per stage, run as `python -m stages.<name>`."""

import os
import sys
from pathlib import Path

# The library beside this folder goes first: a stage that DVC runs in a temporary copy of the repository must use the
# copy's code, not the code of the workspace that the package was installed from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
# One compute thread gives the same bytes as many and is faster for small models; a user of a large one sets it higher.
os.environ.setdefault("OMP_NUM_THREADS", "1")
