# SPDX-License-Identifier: Apache-2.0
"""How many cases hypothesis makes where a suite asks for many: 2,000, or 100,000 with HYPOTHESIS_PROFILE=nightly."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("thorough", max_examples=2_000, deadline=None)
settings.register_profile(
    "nightly", max_examples=100_000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
# Not loaded: for all other tests the default stays.
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "thorough"))
