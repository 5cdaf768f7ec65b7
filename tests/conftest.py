"""For all tests, before any of them loads torch: waiting threads sleep, so that workers on few cores do not starve."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
