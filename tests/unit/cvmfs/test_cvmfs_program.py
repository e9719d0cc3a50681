# SPDX-License-Identifier: Apache-2.0
"""dodas-cvmfs: what it mounts, what it says of repositories that cannot be read, and why."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "roles/cvmfs/files/dodas_cvmfs.py"
# Stand-ins for commands. A repository is mounted when it is in the file `mountinfo`, dead with a file `dead.NAME`; what
# a file `fail.NAME` has ("STATUS message") is how mounting it fails, and `later.NAME` lets that be so once only.
COMMANDS = {
    "mount": """
name=$(basename "$1")
if [ -e "fail.$name" ]; then
  read -r status words < "fail.$name"
  [ ! -e "later.$name" ] || rm "fail.$name"
  echo "CernVM-FS: loading Fuse module..." >&2
  echo "$words" >&2
  exit "$status"
fi
echo "1 1 0:1 / $1 ro shared:1 - fuse cvmfs2 ro" >> mountinfo
""",
    "umount": """
name=$(basename "$(eval "echo \\${$#}")")
echo "$*" >> umounted
[ ! -e "busy.$name" ] || [ "$1" = --lazy ] || { echo "umount: target is busy" >&2; exit 32; }
grep -v "/$name ro" mountinfo > new || true
mv new mountinfo
rm -f "dead.$name"
""",
    "ls": """
[ ! -e slow ] || { echo "ls: $1: Input/output error" >&2; exit 2; }
[ ! -e "dead.$(basename "$1")" ] || { echo "ls: $1: Transport endpoint is not connected" >&2; exit 2; }
""",
    "cat": """
[ ! -e unreadable ] || { echo "cat: $1: Input/output error" >&2; exit 1; }
""",
    "journalctl": """
[ ! -e log ] || exec /bin/cat log
""",
    "cvmfs_talk": """
case "$3" in
  revision) /bin/cat revision ;;
  remount) [ ! -e new.revision ] || mv new.revision revision; [ ! -e other.proxy ] || mv other.proxy online
    /bin/cat answer ;;
esac
""",
    "cvmfs_config": """
echo "VERSION PID REVISION HOST PROXY ONLINE"
echo "2.12.0 17 4 http://s/cvmfs/$2 http://p:3128 $(/bin/cat online)"
""",
}


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


class Host:
    def __init__(self, folder):
        self.folder = folder
        for name, text in COMMANDS.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/sh\ncd "{folder}"\nPATH=/usr/bin:/bin\n{text}')
            path.chmod(0o755)
        for name, text in {"mountinfo": "", "online": "1", "revision": "4", "answer": "Catalog up to date"}.items():
            (folder / name).write_text(text)
        (folder / "cvmfs").mkdir()
        self.configure()

    def configure(self, *names, **more):
        config = {"repositories": list(names), "mounts": "static", "files": {}, "timeout": 5, **more}
        (self.folder / "config.json").write_text(json.dumps(config))

    def put(self, name, text=""):
        (self.folder / name).write_text(text)

    def mounted(self):
        return [os.path.basename(line.split()[4]) for line in (self.folder / "mountinfo").read_text().splitlines()]

    def run(self, *words):
        """(exit status, lines on standard output, lines on standard error)"""
        script = (
            f"import sys; sys.dont_write_bytecode = True; sys.path.insert(0, {str(PROGRAM.parent)!r})\n"
            f"import dodas_cvmfs as one; one.ROOT = {str(self.folder / 'cvmfs')!r}; one.PAUSE = 0.05\n"
            f"one.LOCK = {str(self.folder / 'lock')!r}; one.LOCK_WAIT = 0.5\n"
            f"one.MOUNTS = {str(self.folder / 'mountinfo')!r}; sys.exit(one.main())"
        )
        environment = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        command = [sys.executable, "-c", script, "--config", self.folder / "config.json", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_what_is_missing_is_mounted_and_a_second_time_nothing(host):
    host.configure("a.example.org", "b.example.org")
    assert host.run("mount", "--dry-run")[1] == ["a.example.org: is to be mounted", "b.example.org: is to be mounted"]
    assert host.mounted() == []
    assert host.run("mount") == (0, ["a.example.org: mounted", "b.example.org: mounted"], [])
    assert host.mounted() == ["a.example.org", "b.example.org"]
    assert host.run("mount") == (0, [], [])


def test_what_died_is_mounted_again(host):
    host.configure("a.example.org")
    host.run("mount")
    host.put("dead.a.example.org")
    assert host.run("mount") == (0, ["a.example.org: mounted"], [])
    assert host.mounted() == ["a.example.org"]


def test_what_only_cannot_be_read_stays_mounted(host):
    host.configure("a.example.org")
    host.run("mount")
    host.put("slow")
    assert host.run("mount") == (0, [], []) and not (host.folder / "umounted").exists()


def test_a_client_that_may_succeed_later_is_tried_again(host):
    host.configure("a.example.org")
    host.put("fail.a.example.org", "32 Failed to initialize root file catalog\n")
    host.put("later.a.example.org")
    assert host.run("mount") == (0, ["a.example.org: mounted"], [])


def test_the_reason_is_the_clients_word_and_that_of_its_log(host):
    host.configure("a.example.org", "b.example.org", timeout=2)
    host.put("fail.a.example.org", "32 Failed to initialize root file catalog\n")
    host.put("log", "(b.example.org) something else\n(a.example.org) invalid whitelist signature\n")
    status, said, errors = host.run("mount")
    assert (status, said) == (1, ["b.example.org: mounted"]), "one that fails keeps no other from being mounted"
    assert errors == [
        "a.example.org: not mounted: Failed to initialize root file catalog; invalid whitelist signature"
    ]


def test_what_is_refused_is_not_tried_again(host):
    host.configure("a.example.org", timeout=600)
    host.put("fail.a.example.org", "1 CVMFS_HTTP_PROXY required\n")
    assert host.run("mount")[2] == ["a.example.org: not mounted: CVMFS_HTTP_PROXY required"]


def test_what_is_not_named_is_unmounted_and_what_is_used_goes_later(host):
    host.configure("a.example.org", "b.example.org")
    host.run("mount")
    host.configure("a.example.org")
    host.put("busy.b.example.org")
    assert host.run("unmount") == (0, ["b.example.org: unmounted"], [])
    assert "--lazy" in (host.folder / "umounted").read_text()
    assert host.run("unmount") == (0, [], [])
    assert host.run("unmount", "--all") == (0, ["a.example.org: unmounted"], [])
    assert host.mounted() == []


def test_only_repositories_are_unmounted(host):
    host.put("mountinfo", f"1 1 0:1 / {host.folder}/cvmfs/data rw - ext4 /dev/sda1 rw\n")
    assert host.run("unmount", "--all") == (0, [], [])
    assert host.mounted() == ["data"]


def test_a_new_revision(host):
    host.configure("a.example.org")
    host.run("mount")
    assert host.run("remount") == (0, [], [])
    host.put("new.revision", "5")
    assert host.run("remount") == (0, ["a.example.org: revision 4 -> 5"], [])
    host.put("answer", "Failed")
    assert host.run("remount")[2] == ["a.example.org: remount sync: Failed"]


def test_the_probe_reads_more_than_the_cache(host):
    host.configure("a.example.org", files={"a.example.org": "some/file"})
    assert host.run("probe") == (1, [], ["a.example.org: not mounted"])
    host.run("mount")
    line = "a.example.org: revision 4 from http://s/cvmfs/a.example.org through http://p:3128"
    assert host.run("probe") == (0, [line], [])
    host.put("online", "0")
    status, said, errors = host.run("probe")
    assert (status, said) == (1, []) and "offline, only what is cached" in errors[0] and "http://p:3128" in errors[0]
    host.put("online", "1")
    host.put("unreadable")
    assert "Input/output error" in host.run("probe")[2][0]
    host.put("dead.a.example.org")
    assert "not connected" in host.run("probe")[2][0]


@pytest.mark.parametrize("word", ["mount", "probe"])
def test_a_client_whose_proxy_is_gone_is_made_to_look_for_another(host, word):
    host.configure("a.example.org")
    host.run("mount")
    host.put("online", "0")
    host.put("other.proxy", "1")
    assert host.run(word)[0] == 0 and (host.folder / "online").read_text() == "1"


def test_one_mounts_at_a_time(host):
    host.configure("a.example.org")
    with (host.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another dodas-cvmfs" in host.run("mount")[2][0] and host.mounted() == []
    assert host.run("mount")[0] == 0


@pytest.mark.parametrize("text", ["", "{", '{"repositories": ["a"]}'])
def test_a_configuration_that_cannot_be_used(host, text):
    host.put("config.json", text)
    status, said, errors = host.run("probe")
    assert (status, said) == (1, []) and errors
