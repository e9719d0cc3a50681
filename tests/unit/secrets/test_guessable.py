# SPDX-License-Identifier: Apache-2.0
"""Passwords that roles refuse, and that those which dodas makes are none of them."""

import hashlib

import pytest

from ansible_collections.dodas.cluster.plugins.test.guessable import guessable

GUESSED = (
    "", "changeme", "changemechangeme", "ChangeMe-ChangeMe-", "password12345678", "x" * 64, "ab" * 8, "0f9d3b7a1c2e4d5",
)  # fmt: skip


@pytest.mark.parametrize("secret", GUESSED)
def test_it_could_be_guessed(secret):
    assert guessable(secret)


def test_it_could_not():
    assert not guessable("0f9d3b7a1c2e4d56")
    assert not guessable("0f9d3b7a", 8)


@pytest.mark.parametrize("shortest", [8, 12, 16])
def test_what_dodas_makes_passes(shortest):
    made = (hashlib.sha256(str(i).encode()).hexdigest()[:shortest] for i in range(2000))
    assert not [one for one in made if guessable(one, shortest)]
