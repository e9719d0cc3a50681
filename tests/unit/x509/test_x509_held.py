# SPDX-License-Identifier: Apache-2.0
"""What a file of a credential holds, when it is due, and what is wrong with it."""

import dataclasses
import datetime as dt
import os

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authorities, csr, files, held, proxies
from ansible_collections.dodas.cluster.plugins.module_utils.x509.authority import Authority

SUBJECT = "/DC=dodas/O=held/OU=people/CN=alice"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return Authority.open(tmp_path_factory.mktemp("held") / "ca", "/DC=dodas/O=held/CN=CA")


@pytest.fixture(scope="module")
def eec(own):
    """(certificate, key) of a person, for an hour."""
    key = csr.make_key()
    return own.issue_eec(key.public_key(), SUBJECT, 3600), key


@pytest.fixture(scope="module")
def proxy(eec):
    """PEM of a limited proxy below it, for half an hour."""
    certificate, key = eec
    mine = csr.make_key()
    made = proxies.sign(certificate, key, mine.public_key(), 1800, "limited", 3)
    return files.credential_pem(made, mine, [certificate])


def test_what_is_in_a_file(own, eec, proxy):
    found = held.parse(proxy)
    said = found.describe()
    assert (said["kind"], said["identity"], said["issuer"], said["authority"]) == (
        "proxy", SUBJECT, SUBJECT, "/DC=dodas/O=held/CN=CA",
    )  # fmt: skip
    assert (said["policy"], said["path_length"], said["key_type"], said["key_fits"]) == ("limited", 3, "rsa-2048", True)
    assert 1790 < said["remaining"] <= 1800
    assert said["subject"].startswith(f"{SUBJECT}/CN=")
    assert found.life() == 1800
    assert "PRIVATE" not in str(said) + found.summary()
    assert held.parse(files.credential_pem(*eec)).kind == "eec"
    key = held.KEY_TYPES["ec-p256"]()
    host = own.issue_host(key.public_key(), "a", ["a"])
    assert (held.parse(files.credential_pem(host, key)).kind, held.key_type(host.public_key())) == ("host", "ec-p256")


def test_when_a_credential_is_not_what_is_wanted(own, eec, proxy):
    found = held.parse(proxy)
    wanted = held.Wanted("proxy", SUBJECT, "limited", "rsa-2048")
    assert wanted.differs(found) is None
    for change, said in [
        ({"kind": "eec"}, "its kind is proxy, not eec"),
        ({"subject": SUBJECT + "x"}, f"its subject is {SUBJECT}, not {SUBJECT}x"),
        ({"policy": "inherit-all"}, "its policy is limited, not inherit-all"),
        ({"key_type": "ec-p256"}, "its key_type is rsa-2048, not ec-p256"),
        ({"remaining": 7200}, "it ends in 1"),
        ({"remaining": 0.9999}, None),
    ]:
        assert (dataclasses.replace(wanted, **change).differs(found) or "").startswith(said or ""), change
    assert dataclasses.replace(wanted, remaining=1700).differs(found) is None
    aged = dataclasses.replace(found, remaining=899.0)
    assert wanted.differs(aged) == "it ends in 899 s"
    assert wanted.differs(dataclasses.replace(found, remaining=901.0)) is None
    assert dataclasses.replace(wanted, remaining=0.1).differs(aged) is None
    assert wanted.differs(dataclasses.replace(found, remaining=-1.0)) == "it has ended"
    other = files.credential_pem(eec[0], csr.make_key())
    assert held.Wanted("eec").differs(held.parse(other)) == "its key is missing or another's"
    assert held.Wanted("eec").differs(held.parse(files.certificate_pem(eec[0]))) == "its key is missing or another's"


def test_half_of_a_short_life():
    """The minutes before it was made, for clocks that are behind, are not of its life."""
    now = dt.datetime.now(dt.UTC)
    short = dict.fromkeys((field.name for field in dataclasses.fields(held.Held)), "x")
    made = held.Held(**{**short, "not_before": now - proxies.BACKDATE, "not_after": now + dt.timedelta(minutes=2)})
    assert made.life() == 120
    plain = held.Held(**{**short, "not_before": now, "not_after": now + dt.timedelta(minutes=2)})
    assert plain.life() == 120


def test_of_which_authority_and_revoked(own, eec, proxy, tmp_path):
    found = held.parse(proxy)
    assert held.of_authority(found, own.certificate, own.crl) is None
    other = Authority.open(tmp_path / "ca", "/DC=dodas/O=held/CN=CA")
    assert held.of_authority(found, other.certificate) == (
        "it is not of the authority /DC=dodas/O=held/CN=CA that is there now"
    )
    key = csr.make_key()
    revoked = other.issue_eec(key.public_key(), SUBJECT, 60)
    other.revoke(revoked.serial_number)
    assert held.of_authority(held.parse(files.credential_pem(revoked, key)), other.certificate, other.crl) == (
        "it is revoked"
    )


def test_openssl_decides(own, proxy, tmp_path):
    directory = tmp_path / "trusted"
    own.install(directory)
    found = held.parse(proxy)
    assert held.verify(found, directory) == (True, None, True)
    for list_of_revoked in directory.glob("*.r0"):
        list_of_revoked.unlink()
    assert held.verify(found, directory) == (True, None, False)
    good, reason, _checked = held.verify(found, tmp_path)
    assert not good and "unable to get" in reason


def test_a_directory_without_openssl(proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(held.programs, "PATH", str(tmp_path))
    assert held.verify(held.parse(proxy), tmp_path) == (None, "openssl is not there", False)


def test_files(proxy, tmp_path):
    path = tmp_path / "proxy"
    owner = os.geteuid(), os.getegid()
    file = held.File(str(path), 0o600, owner)
    wanted = held.Wanted("proxy")
    assert file.look(wanted) == (None, "there is none")
    file.write(proxy)
    assert file.look(wanted)[1] is None and not file.differs()
    path.chmod(0o400)
    assert file.look(wanted)[1] is None and file.differs()
    file.adjust()
    assert not file.differs() and path.read_bytes() == proxy
    path.chmod(0o640)
    assert file.look(wanted)[1] == "its mode is 0640: others can use the key"
    path.write_text("nonsense")
    assert file.look(wanted) == (None, "what is there is no credential")
    for make in (path.mkdir, lambda: path.symlink_to(tmp_path / "x"), lambda: os.mkfifo(path)):
        path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()
        make()
        with pytest.raises(FileExistsError, match="not a regular file"):
            file.look(wanted)


@pytest.mark.parametrize(
    ("text", "value"), [("43200", 43200), ("90s", 90), ("15m", 900), ("12h", 43200), ("7d", 604800), ("0.5", 0.5),
                        (".25", 0.25), (" 1 ", 1)]
)  # fmt: skip
def test_times(text, value):
    assert held.seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "0h", "0.0", "1.5", "12 h", "h", "-1", "1w", "٣", "1e3", "9" * 20])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="neither seconds"):
        held.seconds(text)


def test_a_diff_shows_no_key(eec):
    _certificate, key = eec
    assert authorities.summary(files.key_pem(key)) == "(something else)\n"
    assert authorities.summary(b"-----BEGIN CERTIFICATE-----\nbroken") == "-----BEGIN CERTIFICATE-----\nbroken"
    assert authorities.summary(None) == ""
