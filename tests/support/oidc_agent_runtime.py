# SPDX-License-Identifier: Apache-2.0
"""A real oidc-agent (package oidc-agent-cli) with an account at the identity service."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from pathlib import Path


class OidcAgent:
    """Stop it when done. socket: what OIDC_SOCK holds for its clients."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = str(folder / "s")  # short: the path of a Unix socket has 107 bytes at most
        self.log = folder / "log"
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OIDC_SOCK": self.socket,
                            "OIDC_ENCRYPTION_PW": secrets.token_hex()}  # fmt: skip
        (folder / ".oidc-agent").mkdir()
        with self.log.open("w") as stream:
            command = ["oidc-agent", "--console", f"--socket-path={self.socket}"]
            self.process = subprocess.Popen(command, env=self.environment, stdout=stream, stderr=stream)
        deadline = time.monotonic() + 10
        while not os.path.exists(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.02)

    def add(
        self, account: str, issuer: str, client: str, secret: str, refresh_token: str, cafile: Path, scope: str
    ) -> None:
        """Make an account from a refresh token of a client with a secret; without one it sends an empty one."""
        command = ["oidc-gen", account, "--manual", f"--issuer={issuer}", f"--client-id={client}",
                   f"--client-secret={secret}", f"--scope={scope}", f"--cert-path={cafile}", "--rt-env", "--redirect-uri=http://localhost:4242",
                   "--confirm-default", "--prompt=none", "--pw-env", "--no-url-call"]  # fmt: skip
        environment = {**self.environment, "OIDC_REFRESH_TOKEN": refresh_token}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr + self.log.read_text())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
