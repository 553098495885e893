"""One module per DVC stage, run as `python -m macflow.stages.NAME`."""

import os

# Read when torch is imported. Threads that wait by spinning make a step 2 to 4 times slower as soon as
# anything else runs beside it, another stage for one; on idle cores it makes no difference.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
