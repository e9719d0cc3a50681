# SPDX-License-Identifier: Apache-2.0
"""A real sshd on an address of the loopback, for root, with keys of a test's own."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time


class Sshd:
    """keys: the SshKeys of a deployment, whose `host` this is. Its programs are looked for in `path` first."""

    def __init__(self, folder, keys, host, path=None):
        self.address = ".".join(["127", *(str(random.randint(2, 250)) for _ in range(3))])
        self.folder = folder / f"sshd-{host}"
        self.folder.mkdir(mode=0o700)
        authorized = self.folder / "authorized_keys"
        authorized.write_text(keys.public_key + "\n", encoding="utf-8")
        shutil.copy(keys.folder / "hosts" / host / "host", self.folder / "key")  # it is read at each connection
        path = f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"
        self.config = self.folder / "config"
        self.config.write_text(
            f"ListenAddress {self.address}:22\nHostKey {self.folder}/key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {authorized}\nStrictModes no\nPermitRootLogin prohibit-password\n"
            f"PasswordAuthentication no\nSetEnv PATH={path}\n",
            encoding="utf-8",
        )
        self.process = None

    def start(self):
        with (self.folder / "log").open("ab") as log:
            command = ["/usr/sbin/sshd", "-D", "-e", "-f", self.config]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)
        return self

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def _answers(self):
        try:
            with socket.create_connection((self.address, 22), 1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False
