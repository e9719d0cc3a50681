# SPDX-License-Identifier: Apache-2.0
"""TLS of the servers, and towards the leader: from a PKCS #12 keystore as Marathon's, or from PEM files."""

from __future__ import annotations

import re
import ssl
import subprocess
import tempfile
from pathlib import Path

from .flags import FlagError

PARTIAL_CHAIN = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN, which Python 3.9 has no name for
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", re.S)


def contexts(options):
    """The contexts (of servers, of requests to the leader); (None, None) without TLS. Raises FlagError."""
    if not options.tls:
        return None, None
    if options.standin_tls_certificate:
        pem = Path(options.standin_tls_certificate).read_text() + Path(options.standin_tls_key).read_text()
    else:
        pem = keystore(options.ssl_keystore_path, options.ssl_keystore_password or "")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "both.pem")
        file.touch(0o600)
        # The first certificate is the server's own; what follows is its chain.
        file.write_text(pem)
        try:
            server.load_cert_chain(file)
        except ssl.SSLError as exc:
            raise FlagError(f"the certificate and the key of TLS do not fit: {exc}") from exc
    client = ssl.create_default_context()
    client.check_hostname = not options.leader_proxy_ssl_ignore_hostname
    # An instance trusts what is in its own keystore, a server's certificate too.
    client.verify_flags |= PARTIAL_CHAIN
    client.load_verify_locations(cadata="".join(CERTIFICATE.findall(pem)))
    return server, client


def keystore(path, password):
    """What a PKCS #12 keystore holds, as PEM. Raises FlagError."""
    done = subprocess.run(
        ["openssl", "pkcs12", "-in", path, "-nodes", "-passin", "stdin"],
        input=password + "\n", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FlagError(f"ssl_keystore_path: {path} cannot be read: {done.stderr.strip()[-300:]}")
    return done.stdout
