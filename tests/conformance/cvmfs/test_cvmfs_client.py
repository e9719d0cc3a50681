# SPDX-License-Identifier: Apache-2.0
"""The CVMFS client as role cvmfs relies on it: what it says and does in each condition.

The stand-in is held to this, and so is the real client where DODAS_CVMFS_ARCHIVE names an archive of it.
"""

import json
import re

import pytest

from cvmfs_runtime import REAL, ROOT, Origin, Place, can_mount, client_archive, eventually

pytestmark = pytest.mark.skipif(bool(can_mount()), reason=can_mount() or "it can be mounted")
NFILES = 16384  # fits most hard limits
POINT = "/cvmfs/sft.example.org"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return client_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def origin(tmp_path):
    made = Origin(tmp_path / "origin")
    yield made
    made.close()


@pytest.fixture
def place(tmp_path, archive):
    made = Place(tmp_path / "place", archive)
    yield made
    made.close()


@pytest.fixture
def client(place, origin):
    return Client(place, origin)


class Client:
    """The client in a place, configured for an origin through its first proxy."""

    def __init__(self, place, origin):
        self.place, self.origin, self.name = place, origin, origin.name
        self.configure(CVMFS_HTTP_PROXY=origin.proxies[0].url)

    def configure(self, **more):
        values = {"CVMFS_REPOSITORIES": self.name, "CVMFS_QUOTA_LIMIT": 2000, "CVMFS_NFILES": NFILES, **more}
        self.place.write("/etc/cvmfs/default.local", "".join(f'{key}="{value}"\n' for key, value in values.items()))
        self.key(self.origin.key.read_text())

    def key(self, text):
        domain = self.name.partition(".")[2]
        self.place.write(f"/etc/cvmfs/keys/{domain}/1.pub", text)
        self.place.write(
            f"/etc/cvmfs/domain.d/{domain}.conf",
            f'CVMFS_SERVER_URL="{self.origin.url}"\nCVMFS_KEYS_DIR=/etc/cvmfs/keys/{domain}\n',
        )

    def mount(self, before=()):
        command = f"mkdir -p {POINT} && mount -t cvmfs -o nodev {self.name} {POINT}"
        return self.place.run("sh", "-c", command, before=before)

    def mounted(self):
        done = self.mount()
        assert done.returncode == 0, done.stderr + self.place.log()
        return self

    def cat(self, file):
        return self.place.run("cat", f"{POINT}/{file}")

    def online(self):
        return self.place.run("cvmfs_config", "stat", self.name).stdout.split()[-1]


def test_it_mounts_and_reads_through_the_proxy(client, origin):
    client.mounted()
    assert client.cat("dir/other").stdout == "other\n"
    assert origin.proxies[0].asked and client.online() == "1"
    assert client.place.run("cvmfs_config", "probe").stdout.split() == ["Probing", f"{POINT}...", "OK"]
    shown = client.place.run("cvmfs_config", "stat", client.name).stdout
    titles, values = (line.split() for line in shown.splitlines())
    assert titles[-1] == "ONLINE" and titles[-3:-1] == ["HOST", "PROXY"] and len(titles) == len(values)
    assert values[titles.index("REVISION")] == "1"
    assert client.place.run("touch", f"{POINT}/new").returncode != 0


def test_a_table_of_file_systems_serves(client):
    client.place.write("/etc/fstab", f"{client.name} {POINT} cvmfs defaults,_netdev,nodev 0 0\n")
    done = client.place.run("sh", "-c", f"mkdir -p {POINT} && mount {POINT} && cat {POINT}/hello")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "hello"), done.stderr


@pytest.mark.parametrize("proxy", ["", None])
def test_without_a_proxy_it_refuses(client, proxy):
    client.configure(**({} if proxy is None else {"CVMFS_HTTP_PROXY": proxy}))
    done = client.mount()
    assert done.returncode == 1 and "CVMFS_HTTP_PROXY required" in done.stderr


def test_with_a_proxy_that_is_down_it_does_not_mount(client, origin):
    origin.proxies[0].stop()
    assert client.mount().returncode == 32


def test_it_fails_over_to_another_proxy_and_to_none(client, origin):
    origin.proxies[0].stop()
    client.configure(CVMFS_HTTP_PROXY="|".join(proxy.url for proxy in origin.proxies))
    assert client.mounted().cat("hello").stdout == "hello\n" and origin.proxies[1].asked
    client.place.run("umount", POINT)
    origin.proxies[1].stop()
    client.configure(CVMFS_HTTP_PROXY=f"{origin.proxies[0].url};DIRECT")
    assert client.mounted().cat("dir/other").stdout == "other\n"


def test_a_wrong_key_is_said_in_the_log_only(client, tmp_path):
    other = Origin(tmp_path / "other", "other.example.org")
    other.close()
    client.key(other.key.read_text())
    done = client.mount()
    assert done.returncode == 32 and "whitelist" not in done.stderr
    assert "invalid whitelist signature" in client.place.log()


def test_with_no_key_it_does_not_mount(client):
    client.place.run("rm", "/etc/cvmfs/keys/example.org/1.pub")
    assert client.mount().returncode == 32


def test_strict_mounts(client):
    client.configure(
        CVMFS_HTTP_PROXY=client.origin.proxies[0].url, CVMFS_STRICT_MOUNT="yes", CVMFS_REPOSITORIES="a.example.org"
    )
    assert client.mount().returncode == 1


def test_a_proxy_that_refuses_the_server(client, origin):
    origin.proxies[0].status = 403
    assert client.mount().returncode == 32
    assert "proxy returned HTTP error" in client.place.log()


def test_a_hard_limit_below_the_number_of_files(client):
    drop = ["prlimit", "--nofile=8192:8192", "setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    done = client.mount(before=drop)
    assert done.returncode == 32 and "Failed to set maximum number of open files" in done.stderr


def test_a_device_that_is_not_its_users(client):
    client.place.run("chmod", "600", "/dev/fuse")
    assert client.mount().returncode == 32


def test_with_a_warm_cache_it_goes_on_without_the_proxy(client, origin):
    client.mounted().cat("hello")
    client.place.run("umount", POINT)
    origin.proxies[0].stop()
    client.mounted()
    assert client.cat("hello").stdout == "hello\n"
    assert "OK" in client.place.run("cvmfs_config", "probe").stdout
    assert client.online() == "0"
    assert "Input/output error" in client.cat("dir/other").stderr


def test_a_new_revision_is_picked_up(client, origin):
    client.mounted()
    origin.publish({"hello": "hello again\n"})
    asked = client.place.run("cvmfs_talk", "-i", client.name, "remount", "sync", timeout=150)
    assert asked.returncode == 0, asked.stdout
    assert client.place.run("cvmfs_talk", "-i", client.name, "revision").stdout.strip() == "2"
    assert eventually(lambda: client.cat("hello").stdout == "hello again\n", 70)


def test_a_new_quota_is_applied_live(client, origin):
    def size():
        return int(client.place.run("df", "--output=size", "--block-size=1M", POINT).stdout.split()[-1])

    client.mounted()
    assert 1900 <= size() <= 2000
    client.configure(CVMFS_HTTP_PROXY=origin.proxies[0].url, CVMFS_QUOTA_LIMIT=3000)
    done = client.place.run("cvmfs_config", "reload", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 2900 <= size() <= 3000 and client.cat("hello").stdout == "hello\n"


def test_a_variant_link_follows_the_site(client, origin):
    (origin.source / "SITECONF").mkdir()
    (origin.source / "SITECONF/local").symlink_to("$(CMS_LOCAL_SITE)")
    origin.publish({})
    client.place.write("/etc/cvmfs/config.d/sft.example.org.conf", "export CMS_LOCAL_SITE=/etc/cvmfs/SITECONF\n")
    client.mounted()
    assert client.place.run("readlink", f"{POINT}/SITECONF/local").stdout.strip() == "/etc/cvmfs/SITECONF"


def test_errors_are_counted(client):
    done = client.place.run("cvmfs_config", "chksetup", timeout=120)
    assert done.returncode == len(re.findall("^(Error|Warning: failed to locate)", done.stdout, re.M)), done.stdout
    client.place.run("rm", "/etc/cvmfs/keys/example.org/1.pub")
    assert client.place.run("cvmfs_config", "chksetup", timeout=120).returncode == done.returncode + 1


@pytest.fixture
def dodas(client):
    """The place with dodas-cvmfs in it."""
    place = client.place
    place.write("/usr/local/bin/dodas-cvmfs", (ROOT / "roles/cvmfs/files/dodas_cvmfs.py").read_text())
    place.run("chmod", "755", "/usr/local/bin/dodas-cvmfs")
    place.write("/etc/fstab", f"{client.name} {POINT} cvmfs defaults,_netdev,nodev 0 0\n")
    config = {"repositories": [client.name], "mounts": "static", "files": {client.name: "hello"}, "timeout": 20}
    place.write("/etc/dodas/cvmfs/cvmfs.json", json.dumps(config))
    return place


def test_dodas_makes_it_look_for_another_proxy(client, dodas, origin):
    client.configure(CVMFS_HTTP_PROXY="|".join(proxy.url for proxy in origin.proxies))
    assert dodas.run("dodas-cvmfs", "mount").returncode == 0
    used = dodas.run("dodas-cvmfs", "probe").stdout.rstrip()
    next(proxy for proxy in origin.proxies if used.endswith(proxy.url)).stop()
    shown = dodas.run("dodas-cvmfs", "probe")
    assert shown.returncode == 0 and shown.stdout.rstrip() != used, shown.stderr


def test_dodas_keeps_it_mounted(client, dodas, origin):
    place = dodas
    done = place.run("dodas-cvmfs", "mount")
    assert (done.returncode, done.stdout) == (0, f"{client.name}: mounted\n"), done.stderr
    assert place.run("dodas-cvmfs", "mount").stdout == ""
    shown = place.run("dodas-cvmfs", "probe")
    assert shown.stdout.startswith(f"{client.name}: revision 1 from http://"), shown.stderr
    origin.publish({"hello": "hello again\n"})
    assert place.run("dodas-cvmfs", "remount", timeout=150).stdout == f"{client.name}: revision 1 -> 2\n"
    assert "revision 2 from" in place.run("dodas-cvmfs", "probe").stdout  # and the file is cached
    origin.proxies[0].stop()
    assert "offline" in place.run("dodas-cvmfs", "probe").stderr
    origin.proxies[0].start()
    assert eventually(lambda: place.run("dodas-cvmfs", "probe").returncode == 0, 30)
    place.run("kill", "-KILL", place.run("cvmfs_talk", "-i", client.name, "pid").stdout.strip())
    eventually(lambda: place.run("ls", POINT).returncode != 0, 30)
    done = place.run("dodas-cvmfs", "mount")
    assert (done.returncode, done.stdout) == (0, f"{client.name}: mounted\n"), done.stderr
    assert place.run("dodas-cvmfs", "unmount", "--all").stdout == f"{client.name}: unmounted\n"


@pytest.mark.skipif(bool(REAL), reason="this is the real client")
def test_the_stand_in_says_what_it_is(place):
    assert "stand-in" in place.run("cvmfs2", "--version").stdout
