# SPDX-License-Identifier: Apache-2.0
"""mount.cvmfs, cvmfs_config and cvmfs_talk."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

from cvmfs_standin import NOTE, VERSION, options

MOUNTED = "/proc/self/mountinfo"
TITLES = ("VERSION PID UPTIME(M) MEM(K) REVISION EXPIRES(M) NOCATALOGS CACHEUSE(K) CACHEMAX(K) NOFDUSE NOFDMAX NOIOERR "
          "NOOPEN HITRATE(%) RX(K) SPEED(K/S) HOST PROXY ONLINE")  # fmt: skip


def mount():
    """mount.cvmfs: 1 where the client cannot be started, 32 where it cannot mount."""
    words = sys.argv[1:]
    given = words[words.index("-o") + 1] if "-o" in words else ""
    rest = [word for word in words if word not in ("-o", given) and not word.startswith("-")]
    if len(rest) != 2:
        print("Mount helper for CernVM-FS.  Used by mount(8)", file=sys.stderr)
        return 1
    name = options.full_name(rest[0].rpartition("/")[2], options.read())
    parameters = options.read(name)
    folder = options.cache(name, parameters)
    user = parameters.get("CVMFS_USER", "cvmfs")
    if not os.path.exists("/dev/fuse") or not stat.S_ISCHR(os.stat("/dev/fuse").st_mode):
        return refuse("Fuse not loaded")
    listed = [options.full_name(one, parameters) for one in parameters.get("CVMFS_REPOSITORIES", "").split(",")]
    if options.is_on(parameters.get("CVMFS_STRICT_MOUNT")) and name not in listed:
        return refuse(f"Not allowed to mount {name}, add it to CVMFS_REPOSITORIES")
    if not parameters.get("CVMFS_HTTP_PROXY"):
        return refuse("CVMFS_HTTP_PROXY required")
    try:
        about = pwd.getpwnam(user)
    except KeyError:
        return refuse(f"Failed to find user {user} in passwd database")
    if ask(folder / f"cvmfs_io.{name}", "pid"):
        where = ask(folder / f"cvmfs_io.{name}", "mountpoint")
        return refuse(f"Repository {name} is already mounted on {where}")
    for place in (folder, Path("/var/run/cvmfs")):
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.chown(place, about.pw_uid, about.pw_gid)
    command = ["/usr/bin/cvmfs2", "-o", f"{given},system_mount,fsname=cvmfs2", name, rest[1]]
    return 32 if subprocess.run(command, check=False).returncode else 0


def refuse(text):
    print(text, file=sys.stderr)
    return 1


def ask(path, command):
    """What the client that listens at `path` answers; "" where none does."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(command.encode() + bytes(1))
            data = b""
            while more := connection.recv(4096):
                data += more
            return data.decode().rstrip("\n")
    except OSError:
        return ""


def mounts():
    """Where repositories are mounted."""
    lines = [line.split() for line in Path(MOUNTED).read_text(encoding="utf-8").splitlines()]
    return [words[4] for words in lines if words[words.index("-") + 1 :][:2] == ["fuse", "cvmfs2"]]


def talk():
    words = sys.argv[1:]
    if words[:1] != ["-i"] or len(words) < 3:
        print("Usage: cvmfs_talk [-i instance | -p pipe] <command>")
        return 1
    folder = options.cache(words[1], options.read(words[1]))
    path = folder / f"cvmfs_io.{words[1]}"
    answer = ask(path, " ".join(words[2:]))
    if not answer:
        print(f"Seems like CernVM-FS is not running in {folder} (not found: {path})")
        return 1
    print(answer)
    return 0


def config():
    actions = {"chksetup": check, "showconfig": show, "stat": statistics, "status": status, "probe": probe,
               "reload": reload, "umount": unmount, "setup": setup}  # fmt: skip
    words = sys.argv[1:]
    if not words or words[0] not in actions:
        print(f"Common configuration tasks for CernVM-FS {VERSION} ({NOTE})\nUsage: cvmfs_config <command>")
        return 1
    return actions[words[0]](words[1:])


def setup(words):
    folder = Path("/etc/auto.master.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cvmfs.autofs").write_text("/cvmfs /etc/auto.cvmfs\n", encoding="ascii")
    Path("/cvmfs").mkdir(exist_ok=True)
    return 0


def check(_words):
    """chksetup: the number of errors."""
    general = options.read()
    errors, warnings = [], []
    for name in [one for one in general.get("CVMFS_REPOSITORIES", "").split(",") if one]:
        parameters = options.read(options.full_name(name, general))
        for one in ("CVMFS_SERVER_URL", "CVMFS_HTTP_PROXY"):
            if not parameters.get(one):
                errors.append(f"Error: required parameter {one} undefined for {name}")
        keys = parameters.get("CVMFS_KEYS_DIR")
        if keys and not list(Path(keys).glob("*.pub")):
            errors.append(f"Error: no public keys in {keys}")
        if int(parameters.get("CVMFS_QUOTA_LIMIT", 0)) < 1000:
            warnings.append(f"Warning: cache limit for {name} is very low (below 1GB)")
    for access, word in ((os.R_OK, "readable"), (os.W_OK, "writable")):
        if not user_can("/dev/fuse", access, general.get("CVMFS_USER", "cvmfs")):
            errors.append(f"Error: /dev/fuse is not {word} by cvmfs user")
    print("\n".join(errors + warnings) or "OK")
    return len(errors)


def user_can(path, access, user):
    word = "-r" if access == os.R_OK else "-w"
    return subprocess.run(["test", word, path], user=user, extra_groups=[], check=False).returncode == 0


def show(words):
    name = next(word for word in words if not word.startswith("-"))
    print(f"CVMFS_REPOSITORY_NAME={name}")
    for key, value in sorted(options.read(name).items()):
        if key.startswith("CVMFS_"):
            print(f"{key}={value}")
    return 0


def statistics(words):
    name = next(word for word in words if word != "-v")
    point = f"/cvmfs/{name}"
    if point not in mounts():
        print(f"{name} not mounted")
        return 1
    try:
        found = {one: os.getxattr(point, one).decode() for one in os.listxattr(point)}
    except OSError as exc:
        print(exc.strerror)
        return 32
    about = os.statvfs(point)
    used, total = ((about.f_blocks - about.f_bavail) * 4, about.f_blocks * 4)
    memory = Path(f"/proc/{found['user.pid']}/statm").read_text(encoding="ascii").split()[1]
    proxy = found["user.proxy"]
    environment = {**os.environ, "http_proxy": "" if proxy == "DIRECT" else proxy}
    curl = ["curl", "-s", "-o", os.devnull, "-f", "--max-time", found["user.timeout"]]
    asked = subprocess.run([*curl, f"{found['user.host']}/.cvmfspublished"], env=environment, check=False)
    online = int(asked.returncode == 0)
    names = ("revision", "expires", "nclg", None, "usedfd", "maxfd", "nioerr", "nopen", "hitrate", "rx", "speed",
             "host")  # fmt: skip
    shown = [found["user.version"], found["user.pid"], found["user.uptime"], str(int(memory) * 4)]
    for one in names:
        shown += [found[f"user.{one}"]] if one else [str(used), str(total)]
    print(f"{TITLES}\n{' '.join([*shown, proxy, str(online)])}")
    return 0


def status(_words):
    for point in mounts():
        print(f"{Path(point).name} mounted on {point} with pid {os.getxattr(point, 'user.pid').decode()}")
    return 0


def probe(words):
    general = options.read()
    failed = 0
    for name in words or general.get("CVMFS_REPOSITORIES", "").split(","):
        point = f"/cvmfs/{options.full_name(name, general)}"
        subprocess.run(["ls", point], capture_output=True, check=False)
        good = point in mounts()
        failed += not good
        print(f"Probing {point}... {'OK' if good else 'Failed!'}")
    return int(failed > 0)


def reload(_words):
    failed = 0
    for point in mounts():
        name = Path(point).name
        failed += ask(options.cache(name, options.read(name)) / f"cvmfs_io.{name}", "reload") != "OK"
    return int(failed > 0)


def unmount(_words):
    failed = 0
    for point in mounts():
        done = subprocess.run(["umount", point], capture_output=True, check=False).returncode == 0
        print(f"Unmounting {point}: {'OK' if done else 'Failed!'}")
        failed += not done
    return int(failed > 0)
