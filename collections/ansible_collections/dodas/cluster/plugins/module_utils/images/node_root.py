# SPDX-License-Identifier: Apache-2.0
"""Gets the root file system out of a disk image.

By a read-only mount where this machine allows one, which keeps all there is to a file; else by fuse2fs, which keeps as
much, or by debugfs, without extended attributes, devices and hard links. Standard library only; needs root, qemu-img.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

SECTOR = 512
# Types of GPT partitions that hold a root file system: that of x86-64, and Linux data as many disks say.
ROOT_TYPES = ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "0fc63daf-8483-4772-8e79-3d69d8477de4")
TIMEOUT = 900  # seconds for one step


class UnpackError(Exception):
    """The disk has no root file system, or it could not be read; the message names the disk and the step."""


def unpack(disk, folder):
    """Copy what the root partition of `disk` (qcow2 or raw) holds into `folder`, which must be empty or not there.

    Returns how: "mount", "fuse2fs" or "debugfs". Raises UnpackError.
    """
    disk, folder = Path(disk), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UnpackError(f"{folder}: is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        raw, file_system = Path(scratch, "disk"), Path(scratch, "root")
        _run("qemu-img", "convert", "-O", "raw", disk, raw)
        start, length = partition(raw)
        # A file system of its own needs no offset, which fuse2fs and debugfs do not know alike. Holes stay holes.
        _run("dd", f"if={raw}", f"of={file_system}", "bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse",
             f"skip={start}", f"count={length}", "status=none")  # fmt: skip
        with file_system.open("r+b") as stream:
            stream.truncate(length)
        raw.unlink()
        return _copy(file_system, folder, Path(scratch))


def partition(path):
    """Where the root partition of the raw disk `path` is: its first byte, and its length. Raises UnpackError."""
    with Path(path).open("rb") as stream:
        stream.seek(SECTOR)
        header = stream.read(SECTOR)
        if header[:8] != b"EFI PART":
            raise UnpackError(f"{path}: has no GPT")
        table, entries, size = struct.unpack_from("<QII", header, 72)
        stream.seek(table * SECTOR)
        data = stream.read(entries * size)
    found = {}
    for entry in (data[at : at + size] for at in range(0, len(data), size)):
        first, last = struct.unpack_from("<QQ", entry, 32)
        found.setdefault(guid(entry[:16]), (first * SECTOR, (last - first + 1) * SECTOR))
    for kind in ROOT_TYPES:
        if kind in found:
            return found[kind]
    raise UnpackError(f"{path}: no partition is a root of Linux")


def guid(data):
    """The text of a GUID as it is on disk."""
    one, two, three = struct.unpack_from("<IHH", data)
    return f"{one:08x}-{two:04x}-{three:04x}-{data[8:10].hex()}-{data[10:].hex()}"


def _copy(file_system, folder, scratch):
    mounted = scratch / "mounted"
    mounted.mkdir()
    ways = {
        # In a mount namespace of its own the mount goes with the process, and the loop device with the mount.
        "mount": 'mount -o ro,loop,noload "$1" "$2" && cp -a "$2"/. "$3"',
        "fuse2fs": 'fuse2fs -o ro,fakeroot "$1" "$2" && cp -a "$2"/. "$3"; s=$?; umount "$2"; exit $s',
        "debugfs": 'debugfs -R "rdump / $3" "$1" && [ -e "$3/etc" ]',
    }
    reasons = []
    for way, script in ways.items():
        if not shutil.which(way):
            reasons.append(f"{way}: is not installed")
            continue
        try:
            apart = ("unshare", "--mount", "--propagation", "private")
            _run(*apart, "sh", "-c", script, way, file_system, mounted, folder)
            return way
        except UnpackError as exc:
            reasons.append(f"{way}: {exc}")
    raise UnpackError(f"{file_system.name}: the file system cannot be read: {'; '.join(reasons)}")


def _run(*command):
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except FileNotFoundError as exc:
        raise UnpackError(f"{command[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise UnpackError(f"{command[0]}: not finished in {TIMEOUT} s") from exc
    if done.returncode:
        raise UnpackError(f"{command[0]}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
