# SPDX-License-Identifier: Apache-2.0
"""A minute of tests/bench/credentials/soak.py, which runs for as long as one likes."""

import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).resolve().parents[2] / "bench" / "credentials" / "soak.py"


def test_200_workers_through_outages_rotations_and_kills():
    done = subprocess.run(
        [sys.executable, SOAK, "--minutes", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    for figure in ("kill -9 of a service", "kill -9 of a provider", "kill -9 of a renewal daemon", "key rotations"):
        assert figure in done.stdout
