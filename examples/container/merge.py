# SPDX-License-Identifier: Apache-2.0
"""merge.py FOLDER: adds the darts of all jobs; fails unless they ran in the image and give pi."""

import math
import sys
from pathlib import Path

hits = darts = 0
for path in sorted(Path(sys.argv[1]).glob("pi_*.txt")):
    inside, thrown, image = path.read_text().split()
    if image != "darts":
        sys.exit(f"{path}: the job ran in {image}, not in its image")
    hits, darts = hits + int(inside), darts + int(thrown)
pi = 4 * hits / darts
error = 4 * math.sqrt(hits * (darts - hits) / darts) / darts
print(f"pi = {pi:.4f} +- {error:.4f}, from {darts} darts thrown in containers")
sys.exit(abs(pi - math.pi) > 5 * error)
