# SPDX-License-Identifier: Apache-2.0
"""Images built from Containerfiles by users without rights: with further ids, without any, and without namespaces.

podman (buildah) builds the same files as root: its trees and configurations are what ours are compared with.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time

import pytest

import udocker_images as images
from udocker_program import LIBRARY, Program, image, until

MODES = {"subids": {}, "one-id": {"subids": False}, "denied": {"subids": False, "deny": True}}
PASSED_ON = 'CMD ["a", "b"]'


@pytest.fixture(scope="module", params=MODES)
def anybody(request):
    with Program(**MODES[request.param]) as udocker:
        udocker.mode = request.param
        yield udocker


@pytest.fixture(scope="module")
def udocker():
    with Program(subids=True) as found:
        yield found


@pytest.fixture
def build(udocker):
    """build(text, {path: content}, *options): in a new context; the finished process."""
    return builder(udocker)


def builder(udocker):
    number = [0]

    def build(text, files=None, *options, check=True, **more):
        number[0] += 1
        context = udocker.folder(f"context{number[0]}")
        for path, content in {"Containerfile": text, **(files or {})}.items():
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            (context / path).write_text(content)
        return run(context, *options, check=check, **more)

    def run(context, *options, check=True, **more):
        for path in [context, *context.rglob("*")]:
            os.chown(path, udocker.person.uid, udocker.person.gid, follow_symlinks=False)
        done = udocker("build", "-t", "made", *options, context, **{"timeout": 300, **more})
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    build.run = run
    return build


def show(udocker, *command):
    """What a command prints in a container of the image that was built."""
    return udocker.out("run", "--rm", "--entrypoint", "", "made", *command)


def config(udocker):
    return saved(udocker)[0]["config"]


def saved(udocker):
    """(configuration, tree) of the image that was built, out of the archive that `save` writes."""
    path = udocker.home / "saved.tar"
    path.unlink(missing_ok=True)
    udocker.out("save", "-o", path, "made")
    return read(path)


def read(path):
    """(configuration, {path: what it is}) of the image in an archive of Docker's format."""
    with tarfile.open(path) as archive:
        (entry,) = json.load(archive.extractfile("manifest.json"))
        tree = {}
        for name in entry["Layers"]:
            apply(tree, archive.extractfile(name).read())
        return json.load(archive.extractfile(entry["Config"])), tree


def apply(tree, layer):
    """Put a layer on a tree, as the image specification says."""

    def remove(path, itself=True):
        for known in [one for one in tree if one.startswith(path + "/") or (itself and one == path)]:
            del tree[known]

    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for member in archive:
            path = clean(member.name)
            folder, _slash, name = path.rpartition("/")
            if name == ".wh..wh..opq":
                remove(folder, itself=False)
            elif name.startswith(".wh."):
                remove(f"{folder}/{name[4:]}".lstrip("/"))
            elif member.islnk():
                tree[path] = tree[clean(member.linkname)]
            elif path:
                if not member.isdir():
                    remove(path)
                content = hashlib.sha256(archive.extractfile(member).read()).hexdigest() if member.isreg() else ""
                mode = None if member.issym() else oct(member.mode & 0o7777)
                tree[path] = (member.type, mode, member.uid, member.gid, member.linkname, content)


def clean(name):
    return "/".join(part for part in name.split("/") if part not in ("", "."))


# As podman builds it


@pytest.fixture(scope="module")
def podman():
    """build(context, *options) -> (configuration, tree), by podman, of images on busybox."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="podman-"))  # it takes no long paths
    program = ["podman", "--root", folder / "root", "--runroot", folder / "run", "--tmpdir", folder / "tmp"]
    base = image()

    def build(context, *options):
        for command in (
            ["load", "-q", "-i", base],
            ["build", "-q", "--isolation=chroot", "--network=host", "--format=docker", "--pull=never", "-t", "made",
             *options, context],
            ["save", "-q", "--format", "docker-archive", "-o", folder / "made.tar", "made"],
        ):  # fmt: skip
            done = subprocess.run([*program, *command], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        try:
            return read(folder / "made.tar")
        finally:
            (folder / "made.tar").unlink()

    yield build
    subprocess.run([*program, "rmi", "-a", "-f"], capture_output=True, timeout=120)
    subprocess.run([*program, "system", "reset", "-f"], capture_output=True, timeout=120)
    shutil.rmtree(folder, ignore_errors=True)


SAME = """\
ARG BASE=busybox
FROM ${BASE} AS one
ARG who=me
ENV who2=${who:-x} P="a b" Q='c $who'
WORKDIR /w/x
RUN echo "$who $who2 $P $Q" > out && mkdir -p made/it && chown 3:4 made && ln -s out lnk && rm /etc/os-release
COPY a.txt b.txt ./
COPY dir /copied
COPY dir/ /copied2/
COPY *.txt /wild/
COPY alias /followed
COPY aliasdir /followeddir
COPY . /all/
COPY --chown=1:2 a.txt /owned/a
COPY --chown=ann:more dir /owneddir
COPY --chmod=751 a.txt /mode
COPY a.txt /bin/
COPY dir/sub/ /w/x/made/
ADD t.tar.gz /untar/
ADD a.txt /added
RUN mkdir -p /realdir && ln -s realdir /linkdir && rm -r /home && mkdir /home && touch /home/new
COPY a.txt /linkdir/
COPY dir /linkdir/
FROM busybox
LABEL a=1 "b c"="d e"
COPY --from=one /w /w
COPY --from=one /copied/one /copied/link /from1/
COPY --from=one --chown=7 /w/x/made /from2
COPY --from=busybox /etc/passwd /etc/passwd.busybox
WORKDIR sub
RUN pwd > here
WORKDIR ../other
RUN id -u > here; pwd >> here
EXPOSE 80 81/udp
VOLUME /data ["/x"]
VOLUME ["/y y"]
USER ann
ENTRYPOINT exec sh
CMD ["a", "b"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --retries=3 CMD test -e /x
SHELL ["/bin/sh", "-ec"]
ONBUILD RUN echo built
"""


def context_of_same(folder):
    for path in ("dir/sub", "dir/deep/er", "only", "keep"):
        (folder / path).mkdir(parents=True)
    for path in ("a.txt", "b.txt", "dir/one", "dir/sub/two", ".hidden", "skip.log", "keep/skip.log", "only/not"):
        (folder / path).write_text(path)
        (folder / path).chmod(0o644)
    (folder / "dir/one").chmod(0o755)
    (folder / "dir/sub").chmod(0o700)
    for path, target in {"dir/link": "one", "dir/abs": "/etc/passwd", "alias": "a.txt", "aliasdir": "dir"}.items():
        (folder / path).symlink_to(target)
    with tarfile.open(folder / "t.tar.gz", "w:gz") as archive:
        archive.add(folder / "dir", "top", filter=lambda info: info.replace(uid=11, gid=12, deep=False))
    (folder / ".dockerignore").write_text("*.log\n!keep/*.log\nonly\n")
    (folder / "Containerfile").write_text(SAME)
    return folder


@pytest.mark.parametrize("target", ["one", "1"])
def test_trees_and_configurations_are_those_that_podman_builds(udocker, build, podman, target):
    context = context_of_same(udocker.folder("same"))
    build.run(context, "--target", target)
    ours, tree = saved(udocker)
    theirs, other = podman(context, "--target", "one" if target == "one" else "1")
    # Places that podman's mounts were put on stay in its images.
    stubs = {"run", "etc/hosts", "etc/hostname", "etc/resolv.conf", "dev", "proc", "sys"}
    differ = {path: (tree.get(path), other.get(path)) for path in {*tree, *other} if tree.get(path) != other.get(path)}
    # The folder of a WORKDIR is made at once, as Docker does; podman waits until it is used.
    assert {path: both for path, both in differ.items() if path not in stubs} == {}
    for name in ("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "ExposedPorts", "Volumes", "StopSignal",
                 "Healthcheck", "Shell", "OnBuild"):  # fmt: skip
        assert (ours["config"].get(name) or None) == (theirs["config"].get(name) or None), name
    assert (ours["config"].get("Labels") or {}) == {
        key: value for key, value in (theirs["config"].get("Labels") or {}).items() if key != "io.buildah.version"
    }
    assert len(ours["rootfs"]["diff_ids"]) == sum(not one.get("empty_layer") for one in ours["history"])


# As anybody


def test_files_are_copied_and_commands_are_run(anybody):
    build = builder(anybody)
    text = """\
FROM busybox AS tools
RUN mkdir /tools && printf '#!/bin/sh\\necho "tool $1"\\n' > /tools/tool && chmod 4755 /tools/tool
FROM busybox
ENV GREETING="hello you"
WORKDIR /app
COPY --chown=1000:1000 data/ ./data
COPY --from=tools /tools /usr/local/bin
RUN rm /etc/os-release && chown 5:6 data/a && echo "$GREETING" > greeting && test "$(id -u)" = 0
USER ann
RUN id -u > /tmp/who
ENTRYPOINT ["tool"]
CMD ["works"]
"""
    build(text, {"data/a": "1", "data/b": "2"})
    assert anybody.out("run", "--rm", "made") == "tool works"
    tree = saved(anybody)[1]
    assert "etc/os-release" not in tree
    assert tree["usr/local/bin/tool"][1] == "0o4755"
    assert tree["app/data/b"][2:4] == (1000, 1000)
    assert {"app/greeting", "tmp/who"} <= set(tree)
    assert not any(path.startswith(("dev/", "proc/", "sys/", "etc/hosts", "etc/resolv.conf")) for path in tree)
    assert left(anybody) == []


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """A Debian root as an archive."""
    path = tmp_path_factory.mktemp("debian") / "debian.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(images.debian(), ".")
    return path


def test_apt_installs_packages(anybody, debian):
    anybody.out("load", "-i", anybody.person.give(debian), timeout=300)
    build = builder(anybody)
    text = """\
FROM debian:bookworm
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends hello openssh-client \\
    && rm -rf /var/lib/apt/lists/*
CMD ["hello"]
"""
    done = build(text, timeout=600)
    assert "Setting up hello" in done.stdout + done.stderr
    assert anybody.out("run", "--rm", "made") == "Hello, world!"
    assert "ok installed" in show(anybody, "dpkg-query", "-W", "-f", "${Status}", "hello")
    # A group of its own and setgid: what a package asks for beyond root.
    assert saved(anybody)[1]["usr/bin/ssh-agent"][1] == "0o2755"


@pytest.mark.parametrize("tools", ["apt", "mmdebstrap"])
def test_a_debian_root_is_made_without_root(tools):
    """With subids by mmdebstrap; without, by apt, dpkg-deb and our own runtime: the same packages, all configured."""
    with Program(subids=tools == "mmdebstrap") as udocker:
        udocker.person.give(LIBRARY, "library")
        code = (
            "import sys; from library import bootstrap, store\n"
            "bootstrap.bootstrap(store.Store(), ['made'], 'bookworm', ['hello'], exclude=['/usr/share/doc/*'],"
            " progress=lambda event, **facts: event == 'output' and sys.stdout.buffer.write(facts['data']))\n"
        )
        done = udocker.person.run(
            [udocker.person.python, "-c", code], env={"PYTHONPATH": str(udocker.home)}, timeout=900
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert show(udocker, "hello") == "Hello, world!"
        listed = show(udocker, "dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n").splitlines()
        assert "installed hello" in listed
        assert all(line.startswith("installed ") for line in listed)
        tree = saved(udocker)[1]
        essential = read_packages(images.debian())
        assert {line.partition(" ")[2] for line in listed} == essential | {"hello"}
        assert not any(path.startswith("usr/share/doc/") and kind[0] == tarfile.REGTYPE for path, kind in tree.items())
        assert not {"usr/sbin/policy-rc.d", "debs", "script"} & set(tree)
        assert tree["bin"][4] == "usr/bin"
        assert tree["usr/bin/passwd"][1] == "0o4755"
        assert left(udocker) == []


def read_packages(layout):
    """The packages of the Debian root in an OCI layout."""
    blobs = layout / "blobs/sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
    with tarfile.open(blobs / manifest["layers"][0]["digest"][7:]) as archive:
        status = archive.extractfile("./var/lib/dpkg/status").read().decode()
    return {line[9:] for line in status.splitlines() if line.startswith("Package: ")}


# The cache


def cached(done):
    return [("(cached)" in line) for line in (done.stdout + done.stderr).splitlines() if line.startswith("STEP")]


def test_steps_on_the_same_files_are_not_done_again(udocker, build):
    context = udocker.folder("again")
    (context / "Containerfile").write_text(
        "FROM busybox\nLABEL a=1\nRUN date +%N > /when\nCOPY a b /\nRUN cat /a /b > /both\nCMD x\n"
    )
    for name in "ab":
        (context / name).write_text(name)
    build.run(context)
    first = saved(udocker)[0]
    for name in "ab":
        os.utime(context / name, (1, 1))  # another time is no other content
    done = build.run(context)
    assert cached(done) == [False, False, True, True, True, False]
    assert saved(udocker)[0]["rootfs"] == first["rootfs"]
    (context / "Containerfile").write_text((context / "Containerfile").read_text().replace("LABEL a=1", "LABEL a=2"))
    assert cached(build.run(context)) == [False, False, True, True, True, False], "labels are no files"
    (context / "b").write_text("other")
    assert cached(build.run(context)) == [False, False, True, False, False, False]
    assert show(udocker, "cat", "/both") == "aother"
    (context / "b").chmod(0o700)
    assert cached(build.run(context)) == [False, False, True, False, False, False], "the mode is part of a file"
    assert True not in cached(build.run(context, "--no-cache"))
    assert saved(udocker)[0]["rootfs"] != first["rootfs"]


def test_arguments_and_what_is_mounted_count_for_the_cache_and_proxies_do_not(udocker, build):
    text = "FROM busybox\nARG v=1\nRUN --mount=type=bind,target=/c cat /c/f > /f; echo $v $http_proxy > /v\n"
    build(text, {"f": "1"})
    assert cached(build(text, {"f": "1"})) == [False, False, True]
    assert cached(build(text, {"f": "2"})) == [False, False, False]
    assert cached(build(text, {"f": "2"}, "--build-arg", "http_proxy=http://localhost:1")) == [False, False, True]
    assert cached(build(text, {"f": "2"}, "--build-arg", "v=2")) == [False, False, False]
    assert show(udocker, "cat", "/v") == "2"


def test_a_stage_that_made_the_same_files_leaves_later_steps_in_the_cache(udocker, build):
    text = "FROM busybox AS a\nRUN echo {} > /dev/null; mkdir /r; echo x > /r/x\nFROM busybox\nCOPY --from=a /r /r\n"
    build(text.format(1))
    assert cached(build(text.format(2)))[-1:] == [True]


# What commands see


def test_mounts(udocker, build):
    text = """\
FROM busybox AS other
RUN mkdir /from && echo other > /from/file
FROM busybox
RUN --mount=type=cache,target=/cache,id=c1 echo x >> /cache/count; wc -l < /cache/count > /count
RUN --mount=type=bind,target=/context cp /context/in /in; ! touch /context/out 2>/dev/null
RUN --mount=type=bind,target=/context,rw touch /context/out /context/in
RUN --mount=type=bind,from=other,source=/from,target=/from cp /from/file /copied
RUN --mount=type=tmpfs,target=/scratch echo gone > /scratch/x
RUN --mount=type=secret,id=key cat /run/secrets/key | wc -c > /length
RUN --mount=type=secret,id=key,env=KEY test ${#KEY} = 12
RUN --network=none ! grep -v -e Inter -e face -e lo: /proc/net/dev
RUN ls -d /context /from /cache /scratch /run/secrets 2>/dev/null > /left || true
"""
    secret = udocker.home / "key"
    secret.write_text("s3cret-value")
    os.chown(secret, udocker.person.uid, udocker.person.gid)
    options = ("--secret", f"id=key,src={secret}")
    build(text, {"in": "1", "skip": "2", ".dockerignore": "skip"}, *options)
    assert show(udocker, "cat", "/count", "/copied", "/length", "/left").split() == ["1", "other", "12"]
    build(text + "# \n", {"in": "1"}, "--no-cache", *options)
    assert show(udocker, "cat", "/count").split() == ["2"], "the folder stays between builds"
    for path in udocker.store.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"s3cret-value" not in path.read_bytes(), path
    done = build("FROM busybox\nRUN --mount=type=secret,id=none,required true", check=False)
    assert done.returncode
    assert "Containerfile:2: RUN: secret none is required" in done.stderr


def test_files_of_the_machine_are_lent_and_stay_out(udocker, build):
    lent = udocker.home / "lent.conf"
    lent.write_text("lent")
    build(f"FROM busybox\nRUN cat {lent} > /seen && ls /home > /homes\n", None, "--volume", lent)
    assert show(udocker, "cat", "/seen") == "lent"
    assert not any(path.startswith(f"home/{udocker.person.name}") for path in saved(udocker)[1])


def test_here_documents(udocker, build):
    text = """\
FROM busybox
ENV who=you
RUN <<EOF
echo "first $who" > /out
echo 'second' >> /out
EOF
RUN <<-"X" sh
\techo "third $who" >> /out
\tX
RUN <<S
#!/bin/busybox sh
echo "$0" | wc -c > /script
S
COPY <<a <<"b" /copied/
$who "quoted" \\$who
a
$who
b
"""
    build(text)
    assert show(udocker, "cat", "/out").splitlines() == ["first you", "second", "third you"]
    assert int(show(udocker, "cat", "/script")) > 5
    assert show(udocker, "cat", "/copied/a") == 'you "quoted" $who'
    assert show(udocker, "cat", "/copied/b") == "$who"


def test_shell_and_forms_of_commands(udocker, build):
    text = """\
FROM busybox
RUN ["/bin/sh", "-c", "echo $0 > /exec", "zero"]
SHELL ["/bin/sh", "-ec"]
RUN echo "$-" > /flags; true
CMD echo "$HOME"
"""
    build(text)
    assert show(udocker, "cat", "/exec") == "zero"
    assert "e" in show(udocker, "cat", "/flags")
    assert config(udocker)["Cmd"] == ["/bin/sh", "-ec", 'echo "$HOME"']
    build('FROM made\nENTRYPOINT ["x"]\n')
    assert "Cmd" not in config(udocker), "it was made for another entry point"
    build('FROM made\nCMD ["y"]\nENTRYPOINT ["x"]\n')
    assert config(udocker)["Cmd"] == ["y"]


def test_variables(udocker, build):
    text = """\
ARG TAG=latest
ARG UNUSED
FROM busybox:${TAG} AS a
ARG TAG
ARG NAME=n1
ENV NAME=n2 OTHER=${NAME}-x
ENV MORE=$OTHER$NAME
ARG TARGETARCH
RUN echo "$TAG $NAME $OTHER $MORE $TARGETARCH" > /out
LABEL l="$NAME" m='$NAME'
"""
    build(text, None, "--build-arg", "NAME=n3")
    out = show(udocker, "cat", "/out").split()
    assert out[:4] == ["latest", "n2", "n3-x", "n3-xn2"]
    assert out[4] in ("amd64", "arm64", "ppc64le", "s390x", "riscv64", "386")
    assert config(udocker)["Labels"] == {"l": "n2", "m": "$NAME"}
    done = build("FROM busybox\n", None, "--build-arg", "NONE=1")
    assert "build argument NONE is used by no ARG" in done.stderr


def test_triggers_of_a_base(udocker, build):
    build("FROM busybox\nONBUILD COPY f /f\nONBUILD RUN echo trigger >> /f\nRUN echo base > /f\n")
    assert show(udocker, "cat", "/f") == "base"
    build("FROM made\nRUN echo own >> /f\n", {"f": "context\n"})
    assert show(udocker, "cat", "/f").split() == ["context", "trigger", "own"]
    assert "OnBuild" not in config(udocker)


def test_what_is_downloaded_is_verified(udocker, build):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        archive.addfile(*(lambda info, data: (info, io.BytesIO(data)))(*images.member("inner", b"1")))
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path != "/none" else 404)
            self.send_header("Last-Modified", "Sun, 13 Sep 2020 12:26:40 GMT")
            self.end_headers()
            self.wfile.write(content.getvalue())

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/x.tar.gz"
        digest = "sha256:" + hashlib.sha256(content.getvalue()).hexdigest()
        text = f"FROM busybox\nADD --checksum={digest} {url} /got/\n"
        build(text)
        mode, size, when = show(udocker, "stat", "-c", "%a %s %Y", "/got/x.tar.gz").split()
        assert (mode, int(size), int(when)) == ("600", len(content.getvalue()), images.WHEN)
        assert cached(build(text)) == [False, True]
        assert asked == ["/x.tar.gz"], "what is known by its checksum is not asked for again"
        build(f"FROM busybox\nADD --unpack=true {url} /got/\n")
        assert show(udocker, "cat", "/got/inner") == "1"
        done = build(f"FROM busybox\nADD --checksum=sha256:{'0' * 64} {url} /got/\n", check=False)
        assert f"{url}: is {digest}, not sha256:000" in done.stderr
        done = build(f"FROM busybox\nADD {url.replace('x.tar.gz', 'none')} /got/\n", check=False)
        assert "404" in done.stderr or "Not Found" in done.stderr
    finally:
        server.shutdown()
        server.server_close()


# What goes wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM busybox\nRUN true && \\\n exit 7", "Containerfile:2: RUN: `true &&  exit 7` failed with exit status 7"),
        ("FROM busybox\nRUN kill -9 $$", "was ended by SIGKILL (exit status 137)"),
        ('FROM busybox\nRUN ["/nothing"]', 'Containerfile:2: RUN: exec: "/nothing"'),
        ("FROM busybox\nUSER nobody-at-all\nRUN true", "Containerfile:3: RUN: unable to find user nobody-at-all"),
        ("FROM busybox\nCOPY none /", "Containerfile:2: COPY: none is not in the build's context"),
        ("FROM busybox\nCOPY left.out /", "left.out is not in the build's context (.dockerignore leaves it out)"),
        ("FROM busybox\nCOPY outside /", "outside is a link to /etc/shadow-of-the-host, which is not in"),
        ("FROM busybox\nCOPY ../../etc/hostname /", "../../etc/hostname is not in the build's context"),
        ("FROM busybox\nCOPY f f2 /into", "several files are copied to /into: a folder is needed, write /into/"),
        ("FROM busybox\nCOPY --chown=nobody-at-all f /", "user nobody-at-all is not in /etc/passwd of the image"),
        ("FROM busybox\nCOPY f /bin/busybox/x", "/bin/busybox is in the way: it is no folder"),
        ("FROM busybox AS x\nCOPY --from=late f /\nFROM x AS late", "stage late is needed by an earlier one"),
        ("FROM busybox\nRUN --mount=type=stuff,target=/x true", "--mount=type=stuff: there are bind, cache"),
        ("FROM busybox\nRUM true", "Containerfile:2: unknown instruction RUM: did you mean RUN?"),
        ("FROM $NOTHING", "Containerfile:1: FROM what?"),
        ("FROM busybox\nENV a=${b", "Containerfile:2: ${b"),
        ("FROM localhost:1/none", "localhost:1"),
        ("FROM busybox\nEXPOSE 99999", "99999: is no port"),
    ],
)
def test_an_error_names_the_line_and_the_reason_and_leaves_nothing(udocker, build, text, message):
    before = sorted(path.name for path in (udocker.store / "images").rglob("*.json"))
    context = udocker.folder("wrong")
    (context / "outside").symlink_to("/etc/shadow-of-the-host")
    for name in ("f", "f2", "left.out"):
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("*.out")
    (context / "Containerfile").write_text(text)
    done = udocker("build", "-t", "never", context)
    assert done.returncode
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert left(udocker) == []
    assert sorted(path.name for path in (udocker.store / "images").rglob("*.json")) == before


def left(udocker):
    """What is half-made in the store."""
    folder = udocker.store / "tmp"
    return list(folder.iterdir()) if folder.exists() else []


def test_links_in_a_context_stay_in_it(udocker, build):
    context = udocker.folder("links")
    (context / "passwd").symlink_to("/etc/passwd")
    (context / "etc").mkdir()
    (context / "etc/passwd").write_text("of the context")
    (context / "up").symlink_to("../../../../../../etc")
    (context / "Containerfile").write_text("FROM busybox\nCOPY passwd /a\nCOPY up/passwd /b\nCOPY . /c/\n")
    build.run(context)
    assert show(udocker, "cat", "/a", "/b") == "of the contextof the context"
    assert show(udocker, "readlink", "/c/passwd") == "/etc/passwd"


def test_a_tar_does_not_lead_out(udocker, build):
    context = udocker.folder("tar")
    with tarfile.open(context / "bad.tar", "w") as archive:
        archive.addfile(*(lambda info, data: (info, io.BytesIO(data)))(*images.member("../../evil", b"1")))
    (context / "Containerfile").write_text("FROM busybox\nADD bad.tar /x/\n")
    done = build.run(context, check=False)
    assert done.returncode
    assert "../../evil: leads outside" in done.stderr


# Several at once, and interrupted


def test_stages_that_do_not_need_each_other_are_built_side_by_side(udocker, build):
    wait = "n=0; until test -e /meet/{}; do n=$((n+1)); test $n -lt 300 || exit 1; sleep 0.1; done"
    text = "\n".join([
        "FROM busybox AS a", f"RUN --mount=type=cache,id=meet,target=/meet touch /meet/a; {wait.format('b')}; touch /a",
        "FROM busybox AS b", f"RUN --mount=type=cache,id=meet,target=/meet touch /meet/b; {wait.format('a')}; touch /b",
        "FROM busybox AS unused", "RUN exit 1",
        "FROM busybox", "COPY --from=a /a /", "COPY --from=b /b /",
    ])  # fmt: skip
    build(text)
    assert show(udocker, "ls", "/a", "/b").split() == ["/a", "/b"]


def test_a_failure_ends_what_runs_beside_it(udocker, build):
    text = "\n".join([
        "FROM busybox AS a", "RUN touch /tmp/x; sleep 1000",
        "FROM busybox AS b", "RUN exit 3",
        "FROM busybox", "COPY --from=a / /a/", "COPY --from=b / /b/",
    ])  # fmt: skip
    done = build(text, check=False, timeout=60)
    assert "Containerfile:4: RUN: `exit 3` failed with exit status 3" in done.stderr
    until(lambda: not udocker.person.processes(), "the end of all processes")
    assert left(udocker) == []


@pytest.mark.parametrize("stages", [1, 2])
def test_interrupted_it_leaves_nothing(udocker, build, stages):
    context = udocker.folder("interrupted")
    parts = [f"FROM busybox AS s{number}\nRUN echo started-{number}; sleep 1000\n" for number in range(stages)]
    parts += ["FROM busybox\n", *(f"COPY --from=s{number} / /x/\n" for number in range(stages))]
    (context / "Containerfile").write_text("".join(parts))
    process = udocker.start("build", "-t", "never", context, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    os.set_blocking(process.stdout.fileno(), False)
    seen = b""

    def begun():
        nonlocal seen
        seen += process.stdout.read() or b""
        return all(f"\nstarted-{number}".encode() in seen for number in range(stages))

    until(begun, "the commands")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    process.stdout.close()
    until(lambda: not udocker.person.processes(), "the end of all processes")
    assert left(udocker) == []


def test_killed_it_leaves_a_store_that_works(udocker, build):
    context = udocker.folder("killed")
    (context / "Containerfile").write_text("FROM busybox\nRUN echo started; sleep 1000\n")
    process = udocker.start("build", "-t", "never", context, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for line in process.stdout:
        if line.startswith(b"started"):
            break
    process.kill()
    process.wait(30)
    process.stdout.close()
    until(lambda: not udocker.person.processes(), "the end of all processes")
    build("FROM busybox\nRUN echo works > /works\n")
    assert show(udocker, "cat", "/works") == "works"


def test_a_build_takes_little_longer_than_its_steps(udocker, build):
    text = "FROM busybox\n" + "".join(f"RUN echo {number} > /file{number}\n" for number in range(10))
    start = time.monotonic()
    build(text)
    assert time.monotonic() - start < 15
    start = time.monotonic()
    assert cached(build(text)) == [False] + [True] * 10
    assert time.monotonic() - start < 5


def test_a_context_that_is_not_there(udocker):
    done = udocker("build", "-t", "x", "/nowhere")
    assert done.returncode
    assert "/nowhere" in done.stderr
    done = udocker("build", "-t", "x", udocker.folder("empty"))
    assert done.returncode
    assert "--file names the Containerfile" in done.stderr
