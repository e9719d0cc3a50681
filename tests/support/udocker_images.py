# SPDX-License-Identifier: Apache-2.0
"""Images for the runtime's tests, made here without network: a tiny one of Debian's busybox, layers to put on top of
it, and a Debian root. Layers are bytes of a tar; an image is an OCI layout or an archive as `docker save` writes it.

    layout = busybox(tmp_path)                                  # folder with oci-layout, index.json, blobs/
    archive = busybox(tmp_path, kind="docker", name="busybox:1") # busybox.tar
    oci(folder, [base(), layer(member("etc/motd", "hello"))], config={"Cmd": ["sh"]})
    debian()                                                    # bookworm minbase, cached
"""

from __future__ import annotations

import copy
import fcntl
import functools
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.images.build import debian_sources

WHEN = 1_600_000_000
CONFIG = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"]}
TYPES = {
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    None: "application/vnd.oci.image.layer.v1.tar",
}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def member(name, content=b"", kind=None, **attributes):
    """One entry of a layer: a folder where the name ends in "/", a link where `linkname` is given; else a file.

    kind: one of tarfile's types; attributes: those of tarfile.TarInfo (mode, uid, linkname, pax_headers, ...)
    """
    info = tarfile.TarInfo(name.rstrip("/"))
    content = content.encode() if isinstance(content, str) else content
    implied = tarfile.SYMTYPE if "linkname" in attributes else tarfile.REGTYPE
    info.type = kind or (tarfile.DIRTYPE if name.endswith("/") else implied)
    info.mode = {tarfile.DIRTYPE: 0o755, tarfile.SYMTYPE: 0o777}.get(info.type, 0o644)
    info.mtime = WHEN
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def layer(*members):
    """The tar of a layer, as bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return target.getvalue()


@functools.cache
def base():
    """The layer that a busybox image begins with."""
    binary = Path("/bin/busybox").read_bytes()
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    folders = ["bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var"]
    return layer(
        *(member(f"{name}/", mode=0o1777 if name == "tmp" else 0o755) for name in folders),
        member("bin/busybox", binary, mode=0o755),
        *(member(f"bin/{name}", linkname="busybox") for name in applets if name != "busybox"),
        member("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"),
        member("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        member("etc/os-release", 'NAME="busybox"\nID=busybox\n'),
    )


# What goes on top of another layer.


def many_files(count, folder="many"):
    """`count` files of 100 bytes in folders of 100."""
    members = []
    for number in range(count):
        if number % 100 == 0:
            members.append(member(f"{folder}/{number // 100:04}/"))
        members.append(member(f"{folder}/{number // 100:04}/{number:06}", f"{number:0100}"))
    return layer(member(f"{folder}/"), *members)


def whiteouts():
    """Layers: files, then whiteouts of some, also at the root and of a folder that is opaque then."""
    return [
        layer(
            member("srv/"), member("srv/gone", "1"), member("keep", "1"), member("drop", "1"),
            member("opaque/"), member("opaque/below", "1"), member("opt/"), member("opt/a", "1"), member("opt/b", "1"),
        ),
        layer(
            member(".wh.srv"), member(".wh.drop"), member("opaque/"), member("opaque/.wh..wh..opq"),
            member("opaque/above", "2"), member("opt/"), member("opt/.wh.a"),
        ),
    ]  # fmt: skip


def links():
    """A layer of links: hard ones, symbolic ones that are absolute, relative, broken."""
    return layer(
        member("links/"), member("links/one", "content"),
        member("links/two", kind=tarfile.LNKTYPE, linkname="links/one"),
        member("links/relative", linkname="one"), member("links/absolute", linkname="/links/one"),
        member("links/broken", linkname="nowhere"),
    )  # fmt: skip


def owned():
    """A layer of files of other owners, with setuid, setgid and sticky bits, and some that their owner cannot read."""
    return layer(
        member("owned/", mode=0o2775, gid=50), member("owned/setuid", "1", mode=0o4755),
        member("owned/daemon", "1", uid=1, gid=1), member("owned/nobody", "1", uid=65534, gid=65534, mode=0o600),
        member("owned/closed", "1", mode=0), member("owned/shut/", mode=0), member("owned/shut/in", "1"),
        member("owned/sticky/", mode=0o1777),
    )  # fmt: skip


def stack(count=30):
    """`count` layers, each with a file of its own and a new version of one file."""
    return [layer(member(f"layer-{number}", f"{number}"), member("last", f"{number}")) for number in range(count)]


# Images


def compress(content, compression="gzip"):
    if compression == "gzip":
        return gzip.compress(content, 1, mtime=0)
    if compression == "zstd":
        return subprocess.run(["zstd", "-1", "-c"], input=content, capture_output=True, check=True).stdout
    return content


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def configuration(layers, config=None, platform="linux/amd64"):
    """The configuration of an image of these layers (tar bytes), as a mapping."""
    system, architecture, *variant = platform.split("/")
    merged = {**copy.deepcopy(CONFIG), **(config or {})}
    return {
        "created": "2020-09-13T12:26:40Z", "architecture": architecture, "os": system, "config": merged,
        **({"variant": variant[0]} if variant else {}),
        "rootfs": {"type": "layers", "diff_ids": [digest(content) for content in layers]},
        "history": [{"created": "2020-09-13T12:26:40Z", "created_by": f"layer {n}"} for n in range(len(layers))],
    }  # fmt: skip


def oci(folder, layers, config=None, name="busybox:latest", compression="gzip", platform="linux/amd64"):
    """Add an image to the OCI layout `folder`, which is made where it is missing; returns the folder."""
    folder = Path(folder)
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def blob(content, media_type, **more):
        (blobs / digest(content)[7:]).write_bytes(content)
        return {"mediaType": media_type, "digest": digest(content), "size": len(content), **more}

    system, architecture, *_variant = platform.split("/")
    manifest = {
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": blob(
            json.dumps(configuration(layers, config, platform)).encode(), "application/vnd.oci.image.config.v1+json"
        ),
        "layers": [blob(compress(content, compression), TYPES[compression]) for content in layers],
    }  # fmt: skip
    entry = blob(
        json.dumps(manifest).encode(), MANIFEST, platform={"os": system, "architecture": architecture},
        annotations={"org.opencontainers.image.ref.name": name},
    )  # fmt: skip
    path = folder / "index.json"
    index = json.loads(path.read_text()) if path.exists() else {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    index["manifests"].append(entry)
    path.write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def docker(path, images):
    """Write the archive `path` as `docker save` does; images: {name: (layers, config)}. Returns the path."""
    manifest, written = [], set()
    with tarfile.open(path, "w") as archive:

        def add(name, content):
            if name not in written:
                written.add(name)
                archive.addfile(*(lambda info, content: (info, io.BytesIO(content)))(*member(name, content)))

        for name, (layers, config) in images.items():
            content = json.dumps(configuration(layers, config)).encode()
            add(f"{digest(content)[7:]}.json", content)
            names = [f"{digest(tar)[7:]}/layer.tar" for tar in layers]
            for file, tar in zip(names, layers, strict=True):
                add(file, tar)
            manifest.append({"Config": f"{digest(content)[7:]}.json", "RepoTags": [name], "Layers": names})
        add("manifest.json", json.dumps(manifest).encode())
    return Path(path)


def busybox(folder, kind="oci", extra=(), config=None, name="busybox:latest", **options):
    """A tiny image that runs, in `folder`: an OCI layout ("busybox"), or archive "busybox.tar" of kind "docker".

    extra: more layers on top; options: those of `oci`
    """
    layers = [base(), *extra]
    if kind == "docker":
        return docker(Path(folder) / "busybox.tar", {name: (layers, config)})
    return oci(Path(folder) / "busybox", layers, config, name, **options)


def cache():
    """A folder that stays, outside of the repository."""
    folder = Path(os.environ.get("DODAS_CACHE") or "/var/cache/dodas") / "udocker"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def debian_root(suite="bookworm", packages=()):
    """The tar of a Debian root with `packages`, made once."""
    key = hashlib.sha256(repr((suite, packages)).encode()).hexdigest()[:16]
    archive = cache() / f"{suite}-{key}.tar"
    with open(cache() / f"{suite}-{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            memory = Path("/dev/shm")  # dpkg's many small writes are what takes long
            with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
                made = archive.with_suffix(f".{os.getpid()}.tar")
                include = [f"--include={','.join(packages)}"] if packages else []
                command = [
                    "mmdebstrap", "--variant=minbase", "--aptopt=Acquire::Check-Valid-Until false",
                    "--dpkgopt=force-unsafe-io", *include, suite, str(made), *debian_sources(suite),
                ]  # fmt: skip
                done = subprocess.run(
                    command, env={**os.environ, "TMPDIR": scratch}, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    made.unlink(missing_ok=True)
                    raise RuntimeError(f"mmdebstrap {suite}: {done.stderr[-1000:]}")
                made.replace(archive)
    return archive


def debian(suite="bookworm", packages=()):
    """An OCI layout, "debian:SUITE", of a Debian root with `packages`; made once, to be read only."""
    root = debian_root(suite, packages)
    folder = root.with_suffix("")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
            made = oci(Path(scratch) / "image", [root.read_bytes()], {"Cmd": ["bash"]}, f"debian:{suite}")
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return folder
