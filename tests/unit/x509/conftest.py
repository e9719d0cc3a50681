# SPDX-License-Identifier: Apache-2.0
"""An authority in a temporary directory, keys made once, and OpenSSL as the foreign verifier."""

import functools

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr
from openssl_verify import verify


@pytest.fixture(scope="session")
def keys():
    """Three RSA keys."""
    return [csr.make_key() for _ in range(3)]


@pytest.fixture
def ca(tmp_path):
    return authority.Authority.open(tmp_path / "ca", "/DC=dodas/O=tier3/CN=dodas online CA")


@pytest.fixture
def openssl_verify(ca, tmp_path):
    """(leaf, *chain) -> what ``openssl verify`` says; "" where it accepts."""

    return functools.partial(verify, tmp_path / "ca" / "certificates", tmp_path)
