# SPDX-License-Identifier: Apache-2.0
"""The stand-in for the CVMFS client, but for mounting: what it fetches, through whom, and what it takes for genuine."""

import re
import shutil
import sys
import tarfile

import pytest

from cvmfs_runtime import STANDIN, Origin, build

sys.path.insert(0, str(STANDIN / "client"))
from cvmfs_standin import options, store


@pytest.fixture
def origin(tmp_path):
    made = Origin(tmp_path / "origin")
    yield made
    made.close()


@pytest.fixture
def make(origin, tmp_path):
    def parameters(**more):
        return {
            "CVMFS_SERVER_URL": origin.url.replace("@fqrn@", origin.name), "CVMFS_PUBLIC_KEY": str(origin.key),
            "CVMFS_HTTP_PROXY": origin.proxies[0].url, "CVMFS_CACHE_BASE": str(tmp_path / "cache"),
            "CVMFS_SHARED_CACHE": "yes", "CVMFS_TIMEOUT": "2", "CVMFS_TIMEOUT_DIRECT": "2", **more,
        }  # fmt: skip

    def one(**more):
        given = parameters(**more)
        (tmp_path / "cache/shared").mkdir(parents=True, exist_ok=True)
        return store.Store(origin.name, given)

    one.parameters = parameters
    return one


def test_a_tree_is_read_through_the_proxy(make, origin):
    client = make()
    assert client.load()
    assert sorted(name for name, _entry in client.children("")) == ["dir", "hello"]
    digest, size, mode, _time, link = client.entry("/dir/other")
    assert (size, oct(mode), link) == (6, "0o100644", "")
    assert client.read(digest) == b"other\n"
    assert client.entry("/nothing") is None
    assert origin.proxies[0].asked and all(url.startswith("http://127.0.0.1:") for url in origin.proxies[0].asked)


def test_what_is_cached_is_not_fetched_again(make, origin):
    client = make()
    client.load()
    digest = client.entry("/hello")[0]
    client.read(digest)
    asked = len(origin.web.asked)
    assert client.read(digest) == b"hello\n" and len(origin.web.asked) == asked


@pytest.mark.parametrize("separator", ["|", ";"])
def test_a_proxy_that_is_down_is_passed_over(make, origin, separator):
    origin.proxies[0].stop()
    client = make(CVMFS_HTTP_PROXY=separator.join(proxy.url for proxy in origin.proxies))
    assert client.load() and client.network.proxy == origin.proxies[1].url


def test_without_a_proxy_only_where_that_is_said(make, origin):
    origin.proxies[0].stop()
    with pytest.raises(store.Unreachable):
        make().load()
    assert make(CVMFS_HTTP_PROXY=f"{origin.proxies[0].url};DIRECT").load()


def test_a_proxy_that_refuses(make, origin):
    origin.proxies[0].status = 403
    with pytest.raises(store.Unreachable, match="proxy returned HTTP error 403"):
        make().load()


def test_the_key_must_be_the_one_that_signed(make, origin, tmp_path):
    other = Origin(tmp_path / "other", "other.example.org")
    other.close()
    with pytest.raises(store.Failure, match="invalid whitelist signature"):
        make(CVMFS_PUBLIC_KEY=str(other.key)).load()
    with pytest.raises(store.Failure, match="invalid whitelist signature"):
        make(CVMFS_PUBLIC_KEY="").load()
    (tmp_path / "keys").mkdir()
    for one in (origin, other):
        shutil.copy(one.key, tmp_path / "keys")
    assert make(CVMFS_KEYS_DIR=str(tmp_path / "keys"), CVMFS_PUBLIC_KEY="").load()


@pytest.mark.parametrize(
    ("name", "edit", "reason"),
    [
        (".cvmfspublished", lambda data: re.sub(rb"\nS\d", b"\nS9", data), "malformed letter"),
        (".cvmfspublished", lambda data: data[:-9] + b"tampered!", "invalid manifest signature"),
        (".cvmfswhitelist", lambda data: data[:-9] + b"tampered!", "invalid whitelist signature"),
    ],
)
def test_what_was_tampered_with_is_refused(make, origin, name, edit, reason):
    path = origin.repository.folder / name
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(store.Failure, match=reason):
        make().load()


def test_a_whitelist_ends(make, origin):
    origin.repository.whitelist(days=-1)
    with pytest.raises(store.Failure, match="expired whitelist"):
        make().load()


def test_a_damaged_object_is_refused(make, origin):
    client = make()
    client.load()
    digest = client.entry("/hello")[0]
    (origin.repository.folder / f"data/{digest[:2]}/{digest[2:]}").write_bytes(b"something else")
    with pytest.raises(store.Failure, match="damaged"):
        client.read(digest)


def test_a_new_revision_replaces_the_old_one(make, origin):
    client = make()
    client.load()
    assert not client.load()
    assert origin.publish({"hello": "hello again\n"}) == 2
    assert client.load() and client.fields["S"] == "2"
    assert client.read(client.entry("/hello")[0]) == b"hello again\n"


def test_with_a_warm_cache_it_starts_offline_and_lacks_only_what_was_not_read(make, origin):
    client = make()
    client.load()
    client.read(client.entry("/hello")[0])
    origin.proxies[0].stop()
    again = make()
    assert again.load()
    assert again.read(again.entry("/hello")[0]) == b"hello\n"
    with pytest.raises(store.Unreachable):
        again.read(again.entry("/dir/other")[0])
    with pytest.raises(store.Unreachable):
        again.load()


def test_parameters_come_from_files_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "ETC", tmp_path)
    for name, text in {
        "default.conf": "readonly CVMFS_USER=cvmfs\nCVMFS_QUOTA_LIMIT=4000\nCVMFS_TIMEOUT=5\n",
        "default.local": 'CVMFS_QUOTA_LIMIT="2000"\n',
        "domain.d/example.org.conf": 'CVMFS_SERVER_URL="http://s/cvmfs/@fqrn@;http://t/@org@"\nCVMFS_TIMEOUT=1\n',
        "domain.d/example.org.local": "CVMFS_TIMEOUT=2\n",
        "config.d/sft.example.org.conf": "CVMFS_TIMEOUT=3\n",
        "config.d/sft.example.org.local": "CVMFS_TIMEOUT=4\nexport CMS_LOCAL_SITE=/etc/cvmfs/SITECONF\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert options.read("sft.example.org") == {
        "CVMFS_USER": "cvmfs", "CVMFS_QUOTA_LIMIT": "2000", "CVMFS_TIMEOUT": "4",
        "CMS_LOCAL_SITE": "/etc/cvmfs/SITECONF",
        "CVMFS_SERVER_URL": "http://s/cvmfs/sft.example.org;http://t/sft",
    }  # fmt: skip
    assert options.read("a.example.org")["CVMFS_TIMEOUT"] == "2"
    assert options.read()["CVMFS_TIMEOUT"] == "5"


def test_the_archive_is_reproducible_and_has_the_clients_tree(tmp_path):
    for name in ("one.tar.gz", "two.tar.gz"):
        build.build(tmp_path / name)
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        found = {one.name: one for one in archive}
    programs = {"usr/bin/cvmfs2", "usr/bin/cvmfs_config", "usr/bin/cvmfs_talk", "usr/sbin/mount.cvmfs"}
    assert programs | {"etc/cvmfs/default.conf"} <= set(found)
    assert all(found[name].mode == 0o755 and found[name].uid == 0 for name in programs)
