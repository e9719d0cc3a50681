# SPDX-License-Identifier: Apache-2.0
"""A CVMFS repository on loopback with proxies before it, and a place where a client can mount it.

The client is the stand-in (tests/standins/cvmfs), or the real one where DODAS_CVMFS_ARCHIVE names an archive of
it.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import importlib.util
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "tests/standins/cvmfs"
REAL = os.environ.get("DODAS_CVMFS_ARCHIVE", "")


def load(path):
    """The Python file at `path` as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


repository = load(STANDIN / "repository.py")
build = load(STANDIN / "build.py")


class Web:
    """Serves a folder on loopback; `asked` are the paths."""

    def __init__(self, folder):
        self.asked = asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                super().do_GET()

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


class Proxy:
    """An HTTP proxy on loopback that fetches for its clients; `status` other than 0 is what it says to everything."""

    def __init__(self):
        self.asked, self.status = [], 0
        self.port = None
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                proxy.asked.append(self.path)
                status, content = (proxy.status, b"") if proxy.status else proxy.fetch(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", self.port or 0), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def fetch(url):
        parts = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
        try:
            connection.request("GET", parts.path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 503, b""
        finally:
            connection.close()

    def stop(self):
        """Listen no more; `start` listens on the same port."""
        self.http.shutdown()
        self.http.server_close()


class Origin:
    """Repository `name` with `files` {path: text, or a Path that a link leads to}, its server and two proxies."""

    def __init__(self, folder, name="sft.example.org", files=None):
        self.name, self.folder = name, Path(folder)
        self.source = self.folder / "source"
        self.source.mkdir(parents=True)
        self.repository = repository.Repository(self.folder / "web", name)
        self.publish(files or {"hello": "hello\n", "dir/other": "other\n"})
        self.web = Web(self.folder / "web")
        self.proxies = [Proxy(), Proxy()]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.web.port}/cvmfs/@fqrn@"

    @property
    def key(self):
        return self.repository.key

    def publish(self, files):
        for name, content in files.items():
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                path.symlink_to(content)
            else:
                path.write_text(content)
        return self.repository.publish(self.source)

    def close(self):
        self.web.close()
        for proxy in self.proxies:
            with contextlib.suppress(OSError):
                proxy.stop()


BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
for one in proc dev tmp cvmfs run var/lib/cvmfs etc/cvmfs; do
  mkdir -p "$one"
  mount -t tmpfs none "$one"
done
mount -t proc none proc
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/fuse c 10 229
echo 'cvmfs:x:6789:6789::/var/lib/cvmfs:/usr/sbin/nologin' >> etc/passwd
echo 'cvmfs:!:19000::::::' >> etc/shadow
echo 'cvmfs:x:6789:' >> etc/group
tar -xzf "$2" --keep-directory-symlink --no-same-owner
mkdir -p run/cvmfs
exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin python3 -c '
import pathlib, socket
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
pathlib.Path("/dev/log").chmod(0o666)
print("up", flush=True)
with open("/tmp/log", "ab", buffering=0) as kept:
    while True:
        kept.write(log.recv(65536).rstrip(bytes(1)) + b"\\n")
'
"""


class Place:
    """A root of its own: the machine's files, another /dev, and the client installed. Nothing outside changes."""

    def __init__(self, folder, archive):
        folder = Path(folder)
        folder.mkdir(parents=True)
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", BOOT, "sh", folder, archive],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout.readline() == "up\n", "the place was not made"
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.target = children[0]

    def run(self, *command, data=None, timeout=60, before=()):
        """Run a command in there."""
        inside = ["nsenter", "--target", self.target, "--mount", "--pid", "--root", "--wd", *before]
        return subprocess.run(
            [*inside, "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *command], input=data,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def write(self, path, text):
        done = self.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && cat > "$1"', "sh", path, data=text)
        assert done.returncode == 0, done.stderr

    def log(self):
        return self.run("cat", "/tmp/log").stdout

    def close(self):
        self.process.kill()
        self.process.wait(10)


def client_archive(folder):
    """The archive of the client: the real one where there is one, else the stand-in."""
    if REAL:
        return REAL
    target = Path(folder) / "cvmfs.tar.gz"
    build.build(target)
    return str(target)


def can_mount():
    """Why no client can be tried here, or ""."""
    if os.geteuid() != 0:
        return "mounting needs root"
    return "" if os.path.exists("/dev/fuse") and shutil.which("nsenter") else "there is no FUSE"


def eventually(condition, seconds=10):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return found
