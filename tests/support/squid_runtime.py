# SPDX-License-Identifier: Apache-2.0
"""A real squid with the configuration of its role, on loopback, and a server that it asks."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from agent_runtime import eventually


class Squid:
    """squid with the text of its configuration; address and port: where it listens. Root's runs as user proxy."""

    def __init__(self, text, address, port):
        # The user of squid cannot come to a folder of pytest's.
        self.folder = Path(tempfile.mkdtemp(prefix="dodas-squid-"))
        self.address, self.port = address, port
        self.service = f"dodas{self.folder.name[-8:].replace('_', 'x')}"  # of which shared memory has its name
        self.folder.chmod(0o755)
        self.state = self.folder / "state"
        self.state.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.state, "proxy", "proxy")
        text = text.replace("/var/lib/dodas/squid", str(self.state)).replace("/run/squid.pid", f"{self.folder}/pid")
        text = text.replace(" 16 256\n", " 2 2\n")  # thousands of folders take seconds
        self.config = self.folder / "squid.conf"
        self.config.write_text(text)
        self.process = None

    def start(self):
        command = ["squid", "-N", "-n", self.service, "-f", self.config]
        made = subprocess.run([*command, "-z"], capture_output=True, text=True, timeout=60, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
        with (self.folder / "output").open("wb") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream)
        eventually(lambda: self.process.poll() is not None or self.get("/squid-internal-mgr/info"), 20)
        assert self.process.poll() is None, (self.folder / "output").read_text()

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def remove(self):
        self.kill()
        shutil.rmtree(self.folder)
        for path in Path("/dev/shm").glob(f"{self.service}-*"):
            path.unlink()

    def get(self, url, source="127.0.0.1", seconds=30):
        """(status, body) of a request through the proxy, or to it; None when there is no answer."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=seconds, source_address=(source, 0))
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", url)
            answer = connection.getresponse()
            return answer.status, answer.read()
        return None

    @property
    def log(self):
        path = self.state / "access.log"
        return path.read_text() if path.exists() else ""


class Origin:
    """A server whose answers may be kept for a minute. /SIZE... has SIZE bytes; those of /slow... come in 2 s; those
    of /unsaid... say nothing of how long they hold. Counts requests by path in `asked`."""

    def __init__(self, address="127.0.0.1"):
        self.asked = {}
        origin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                origin.asked[self.path] = origin.asked.get(self.path, 0) + 1
                digits = self.path.strip("/").partition("-")[0]
                size = int(digits) if digits.isdigit() else 2**20
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                if "unsaid" in self.path:
                    self.send_header("Last-Modified", "Mon, 01 Jan 2001 00:00:00 GMT")
                else:
                    self.send_header("Cache-Control", "max-age=60")
                self.end_headers()
                for _ in range(20):
                    self.wfile.write(b"x" * (size // 20))
                    time.sleep(0.1 if "slow" in self.path else 0)
                self.wfile.write(b"x" * (size % 20))

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.http.handle_error = lambda *_: None
        self.port = self.http.server_address[1]
        self.address = address
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path, host=None):
        return f"http://{host or self.address}:{self.port}{path}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
