# SPDX-License-Identifier: Apache-2.0
import os
import stat
import threading
import uuid

import pytest

from agent_runtime import RealConsul, consul_program
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import store

KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def directory(tmp_path):
    return store.Directory(tmp_path / "state")


@pytest.fixture(scope="module")
def consul(tmp_path_factory):
    """Address of a Consul, or None."""
    program = consul_program(tmp_path_factory.mktemp("program"))
    if program is None:
        yield None
        return
    server = RealConsul(program, tmp_path_factory.mktemp("consul"))
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture(params=["directory", "consul"])
def plain(request, tmp_path, consul):
    if request.param == "directory":
        return store.Directory(tmp_path / "state")
    if consul is None:
        pytest.skip("an image with consul needs root")
    return store.Consul(consul, f"dodas/{uuid.uuid4()}")


@pytest.fixture
def sealed(plain):
    return store.Sealed(plain, [KEY])


def test_a_value_comes_back_until_it_is_removed(sealed):
    assert sealed.read("robots/a") == (None, None)
    sealed.write("robots/a", b"one", None)
    value, version = sealed.read("robots/a")
    assert value == b"one"
    sealed.write("robots/a", b"two", version)
    assert sealed.read("robots/a")[0] == b"two"
    sealed.write("robots/b", b"", None)
    assert sealed.read("robots/b")[0] == b""
    assert sealed.names("robots") == ["robots/a", "robots/b"]
    assert sealed.names("nothing") == []
    sealed.remove("robots/a")
    sealed.remove("robots/a")
    assert sealed.names("robots") == ["robots/b"]


def test_of_two_writers_one_succeeds(sealed):
    sealed.write("a", b"one", None)
    _value, version = sealed.read("a")
    sealed.write("a", b"two", version)
    for stale in (version, None):
        with pytest.raises(store.Conflict):
            sealed.write("a", b"three", stale)
    assert sealed.read("a")[0] == b"two"


def test_updates_of_many_threads_are_all_there(sealed):
    def add():
        for _ in range(10):
            store.update(sealed, "count", lambda value: str(int(value or b"0") + 1).encode(), tries=1000)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sealed.read("count")[0] == b"40"


def test_what_is_kept_is_private_and_unreadable(directory, tmp_path):
    before = os.umask(0)
    try:
        store.Sealed(directory, [KEY]).write("delegations/a", b"a refresh token", None)
    finally:
        os.umask(before)
    for folder, _folders, names in os.walk(tmp_path / "state"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for name in names:
            path = os.path.join(folder, name)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            with open(path, "rb") as stream:
                assert b"refresh" not in stream.read()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: b"dodas1",
        lambda data: b"plain text",
        lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    ],
)
def test_damage_is_noticed(directory, damage):
    sealed = store.Sealed(directory, [KEY])
    sealed.write("a", b"secret", None)
    data, version = directory.read("a")
    directory.write("a", damage(data), version)
    with pytest.raises(store.StoreError, match="a was not sealed"):
        sealed.read("a")


def test_a_value_cannot_be_put_in_place_of_another(directory):
    sealed = store.Sealed(directory, [KEY])
    sealed.write("delegations/mine", b"mine", None)
    directory.write("delegations/yours", directory.read("delegations/mine")[0], None)
    with pytest.raises(store.StoreError, match="yours"):
        sealed.read("delegations/yours")


def test_keys_change_one_after_the_other(directory):
    store.Sealed(directory, [OTHER]).write("a", b"old", None)
    both = store.Sealed(directory, [KEY, OTHER])
    value, version = both.read("a")
    assert value == b"old"
    both.write("a", b"new", version)
    assert store.Sealed(directory, [KEY]).read("a")[0] == b"new"
    with pytest.raises(store.StoreError):
        store.Sealed(directory, [OTHER]).read("a")


@pytest.mark.parametrize("name", ["", "/a", "a/", "../a", "a/../b", "a//b", "a b", "a\0", ".lock-1", "a/" * 9 + "a"])
def test_names_stay_inside(plain, name):
    with pytest.raises(store.StoreError, match="no name"):
        plain.read(name)


def test_a_link_is_not_followed(directory, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    os.symlink(victim, tmp_path / "state" / "a")
    with pytest.raises(store.StoreError):
        directory.write("a", b"x", directory.read("a")[1] if os.stat(victim).st_mode & 0o077 == 0 else None)
    assert victim.read_text() == "untouched"


def test_a_consul_that_is_away_is_named():
    with pytest.raises(store.StoreError, match="http://127.0.0.1:1/"):
        store.Consul("http://127.0.0.1:1", "x").read("a")


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [("c2hvcnQ=", 0o600, "32 bytes"), ("not base64!", 0o600, "base64"), ("", 0o600, "32 bytes"), ("x", 0o644, "0600")],
)
def test_a_key_file_that_is_none(tmp_path, content, mode, problem):
    path = tmp_path / "state.key"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(store.StoreError, match=problem) as caught:
        store.read_keys(path)
    assert content in ("", "x") or content not in str(caught.value)
