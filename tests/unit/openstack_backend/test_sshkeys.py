# SPDX-License-Identifier: Apache-2.0
"""Keys of a deployment and its hosts, and how ssh is told of them."""

import stat
import subprocess

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import deployment, sshkeys

FRONT = {"address": "10.88.0.5", "public_address": "203.0.113.10", "id": "a", "jump": None}
WORKER = {"address": "10.88.0.6", "public_address": None, "id": "b", "jump": "front-1"}


def test_keys_are_for_their_owner_and_stay(keys):
    paths = [keys.private, keys.folder / "hosts/front-1/host", keys.folder / "hosts/worker-1/host"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    before = [path.read_bytes() for path in paths]
    keys.make(["front-1", "worker-1"])
    assert [path.read_bytes() for path in paths] == before
    assert keys.public_key.endswith(" dodas test") and len(set(before)) == 3


def test_a_key_without_its_other_half_is_made_anew(keys):
    path = keys.folder / "hosts/front-1/host"
    before = path.read_bytes()
    path.with_name("host.pub").unlink()
    keys.make(["front-1"])
    assert path.read_bytes() != before
    printed = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    assert printed.split()[:2] == keys.host_key("front-1")[1].split()[:2]


def test_a_host_that_went_has_no_key(keys):
    keys.forget("worker-1")
    keys.forget("never-there")
    assert sorted(path.name for path in (keys.folder / "hosts").iterdir()) == ["front-1"]


def test_a_host_of_a_cloud_is_known_by_its_name(state, effective):
    found = effective(sshkeys.options(state, "front-1", {"front-1": FRONT}))
    assert found["hostkeyalias"] == "front-1" and found["stricthostkeychecking"] == "true"
    assert found["userknownhostsfile"] == str(state / "ssh/known_hosts") and "proxycommand" not in found


def test_a_host_of_this_machine_is_known_by_its_address(state, effective):
    assert "hostkeyalias" not in effective(sshkeys.options(state, "front-1", {"front-1": {"address": "10.89.0.10"}}))


def test_a_host_without_an_address_outside_is_behind_the_front(state, effective):
    found = effective(sshkeys.options(state, "worker-1", {"front-1": FRONT, "worker-1": WORKER}))
    assert found["hostkeyalias"] == "worker-1"
    for word in (f"-i {state}/ssh/id_ed25519", "HostKeyAlias=front-1", "root@203.0.113.10 -W [%h]:%p"):
        assert word in found["proxycommand"]


def test_a_folder_with_a_percent_sign_stays_what_it_is(tmp_path, effective):
    found = effective(sshkeys.options(tmp_path / "100%h", "worker-1", {"front-1": FRONT, "worker-1": WORKER}))
    # ssh -G shows a proxy command before its signs are expanded, and a file after.
    assert found["userknownhostsfile"].endswith("100%h/ssh/known_hosts")
    assert "100%%%%h/ssh/known_hosts" in found["proxycommand"] and "100%%h/ssh/id_ed25519" in found["proxycommand"]


def test_a_uuid_is_made_once(tmp_path):
    assert deployment.uuid(tmp_path, make=False) is None
    made = deployment.uuid(tmp_path)
    assert deployment.uuid(tmp_path) == made and stat.S_IMODE((tmp_path / "uuid").stat().st_mode) == 0o600


def test_a_damaged_uuid_is_an_error_and_not_another_deployment(tmp_path):
    (tmp_path / "uuid").write_text("nonsense\n")
    with pytest.raises(ValueError, match="uuid: no UUID"):
        deployment.uuid(tmp_path)
