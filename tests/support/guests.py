# SPDX-License-Identifier: Apache-2.0
"""Daemons as a worker's, on the host of one, in containers of their own."""

from __future__ import annotations

import shlex


class Guests:
    """On one host of a cluster. Each keeps its files in a folder of its name below `folder`."""

    def __init__(self, cluster, host, folder, port):
        self.cluster, self.host, self.folder, self.port = cluster, host, folder, port
        self._started = []

    def start(self, name, proxy=None, files=None, **settings):
        """Start a master and a startd that take no jobs, with a proxy (PEM) or none, and settings of HTCondor.

        files: contents of more files in the guest's folder, by name.
        """
        folder = f"{self.folder}/{name}"
        settings = {
            "STARTD_NAME": name, "MASTER_NAME": name, "SHARED_PORT_PORT": self.port + len(self._started),
            "DAEMON_LIST": "MASTER STARTD", "LOG": f"{folder}/log", "EXECUTE": f"{folder}/execute",
            "SPOOL": f"{folder}/spool", "LOCK": f"{folder}/lock", "DAEMON_SOCKET_DIR": f"{folder}/s",
            "START": "False", "STARTD_DEBUG": "D_FULLDEBUG D_SECURITY", **settings,
        }  # fmt: skip
        lines = "\n".join(f"{key} = {value}" for key, value in settings.items())
        run = self.cluster.run
        run(self.host, f"mkdir -p {folder} && cat /etc/dodas/worker/condor_config - > {folder}/config", f"\n{lines}\n")
        for file, content in {**(files or {}), **({"proxy.pem": proxy} if proxy else {})}.items():
            run(self.host, f"umask 077 && cat > {folder}/{file}", content)
        folders = [f"{folder}/{one}" for one in ("log", "execute", "spool", "lock", "s")]
        script = f"install -d -o condor {' '.join(folders)} /run/condor /run/lock/condor && exec condor_master -f"
        run(self.host, shlex.join([
            "podman", "run", "--detach", "--replace", "--rm", f"--name={name}", "--network=host", "--cgroups=disabled",
            "--privileged", "--pull=never", f"--volume={folder}:{folder}", "--volume=/etc/dodas:/etc/dodas:ro",
            f"--env=CONDOR_CONFIG={folder}/config", f"--env=X509_USER_PROXY={folder}/proxy.pem",
            "--entrypoint=/bin/sh", "localhost/dodas/worker:latest", "-c", script,
        ]))  # fmt: skip
        self._started.append(name)
        return folder

    def stop(self):
        """Remove them, and what they kept; the host may be gone by now, and they with it."""
        command = f"podman rm --force --time 1 {' '.join(self._started)}; rm -rf {self.folder}"
        self.cluster.run(self.host, command, check=False)
