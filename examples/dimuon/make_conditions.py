#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write conditions/run_N.json: the calibration that the experiment publishes."""

from __future__ import annotations

import json
from pathlib import Path

from dimuon import detector

RUNS = 18

if __name__ == "__main__":
    folder = Path(__file__).parent / "conditions"
    for run in range(RUNS):
        (folder / f"run_{run}.json").write_text(json.dumps(detector(run), indent=2) + "\n")
