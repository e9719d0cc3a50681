# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Mesos: see README.md beside `bin`. Python 3.9, standard library and kazoo."""

from __future__ import annotations

VERSION = "1.12.0"
BUILD_TIME = 1795353513.0  # of the build that the answers were compared with
BUILD = {
    "version": VERSION,
    "build_date": "2026-11-22 13:18:33 UTC",
    "build_time": BUILD_TIME,
    "build_user": "stand-in",
}
