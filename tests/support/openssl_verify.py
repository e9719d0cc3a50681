# SPDX-License-Identifier: Apache-2.0
"""What OpenSSL says of a certificate, by a directory of authorities."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files


def verify(directory: Path, folder: Path, *chain, crl: bool = True, at: float | None = None) -> str:
    """What ``openssl verify`` says of the first certificate; "" where it accepts. folder: for a file in between."""
    path = folder / "verify.pem"
    path.write_bytes(b"".join(map(files.certificate_pem, chain)))
    command = ["openssl", "verify", "-allow_proxy_certs", "-x509_strict", "-no-CAfile", "-no-CAstore"]
    command += ["-CApath", str(directory), *(["-crl_check_all"] if crl else [])]
    command += ["-attime", str(int(at))] if at else []
    done = subprocess.run(
        [*command, "-untrusted", str(path), str(path)], capture_output=True, text=True, timeout=30, check=False
    )
    return "" if done.returncode == 0 else done.stderr
