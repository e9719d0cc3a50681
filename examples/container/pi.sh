#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# pi.sh NUMBER DARTS: throws darts at a square, and counts those in the circle.
set -eu
image=$(sed -n 's/^ID=//p' /etc/os-release)
awk -v seed="$1" -v darts="$2" -v image="$image" 'BEGIN {
    srand(seed + 1)
    for (i = 0; i < darts; i++) { x = rand(); y = rand(); hits += x * x + y * y < 1 }
    print hits, darts, image
}' > "pi_$1.txt"
