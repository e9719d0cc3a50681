# SPDX-License-Identifier: Apache-2.0
"""A worker whose proxy lasts for a minute begins here; test_place.py looks at it again after the tests between."""


def test_a_worker_with_a_proxy_of_a_minute_joins(short_lived):
    assert short_lived.proxy_life() <= short_lived.LIFETIME
