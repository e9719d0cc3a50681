# SPDX-License-Identifier: Apache-2.0
"""An authority in a temporary directory, keys made once, and OpenSSL as the foreign verifier."""

import subprocess

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files


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

    def verify(*chain, at=None):
        path = tmp_path / "verify.pem"
        path.write_bytes(b"".join(map(files.certificate_pem, chain)))
        command = ["openssl", "verify", "-allow_proxy_certs", "-crl_check_all", "-x509_strict"]
        command += ["-CApath", str(tmp_path / "ca" / "certificates"), "-no-CAfile", "-no-CAstore"]
        command += ["-attime", str(int(at))] if at else []
        result = subprocess.run(
            [*command, "-untrusted", str(path), str(path)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return "" if result.returncode == 0 else result.stderr

    return verify
