# SPDX-License-Identifier: Apache-2.0
import os
import stat

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_mode_does_not_depend_on_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write(tmp_path / "key", b"secret")
        files.write(tmp_path / "cert", b"public", files.PUBLIC)
    finally:
        os.umask(before)
    assert (mode(tmp_path / "key"), mode(tmp_path / "cert")) == (0o600, 0o644)


def test_symlink_at_the_output_is_refused(tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "out").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError, match="not a regular file"):
        files.write(tmp_path / "out", b"x")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "target"]


def test_crash_before_rename_keeps_the_old_file(tmp_path, monkeypatch):
    files.write(tmp_path / "out", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("crash")))
    with pytest.raises(OSError, match="crash"):
        files.write(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_a_killed_process_do_not_hinder(tmp_path):
    (tmp_path / ".out.0123.tmp").write_bytes(b"half")
    files.write(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_private_files_that_others_read_are_refused(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"x")
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="0640"):
        files.read_private(path)


def test_credential_order_and_pkcs8(ca, keys):
    from ansible_collections.dodas.cluster.plugins.module_utils.x509 import proxies

    eec = ca.issue_eec(keys[0].public_key(), "/DC=dodas/O=tier3/CN=x", 600)
    proxy = proxies.sign(eec, keys[0], keys[1].public_key(), 60)
    pem = files.credential_pem(proxy, keys[1], [eec])
    heads = [line for line in pem.decode().splitlines() if line.startswith("-----BEGIN")]
    assert heads == [f"-----BEGIN {what}-----" for what in ("CERTIFICATE", "PRIVATE KEY", "CERTIFICATE")]
    certificate, key, chain = files.load_credential(pem)
    assert (certificate, chain) == (proxy, [eec])
    assert key.private_numbers() == keys[1].private_numbers()
