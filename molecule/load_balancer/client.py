# SPDX-License-Identifier: Apache-2.0
"""client.py URL SECONDS: ask ten times a second; print the longest time without an answer, and how many there were."""

import sys
import time
import urllib.request

url, seconds = sys.argv[1], float(sys.argv[2])
ended = time.monotonic() + seconds
last, longest, answers = time.monotonic(), 0.0, 0
while time.monotonic() < ended:
    try:
        with urllib.request.urlopen(url, timeout=0.5) as answer:
            answer.read()
        answers += 1
        longest = max(longest, time.monotonic() - last)
        last = time.monotonic()
    except OSError:
        pass
    time.sleep(0.1)
print(f"{max(longest, time.monotonic() - last):.1f} {answers}")
