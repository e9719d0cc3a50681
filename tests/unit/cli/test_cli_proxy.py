# SPDX-License-Identifier: Apache-2.0
"""Proxies from the service and from a certificate of one's own; shown and destroyed as voms-proxy-* do."""

import os
import shutil
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, client, csr, files, proxies
from dodas import proxy

SUBJECT = "/DC=dodas/O=test/CN=alice"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with a CA, and alice's certificate and key in files of their own and in one."""
    folder = tmp_path_factory.mktemp("own")
    ca = authority.Authority.open(folder / "ca", "/DC=dodas/O=test/CN=CA")
    key = csr.make_key()
    certificate = ca.issue_eec(key.public_key(), SUBJECT, 86400)
    files.write(folder / "cert.pem", files.certificate_pem(certificate))
    files.write(folder / "key.pem", files.key_pem(key))
    files.write(folder / "both.pem", files.credential_pem(certificate, key))
    locked = serialization.BestAvailableEncryption(b"open sesame")
    files.write(folder / "locked.pem", key.private_bytes(serialization.Encoding.PEM,
                                                         serialization.PrivateFormat.PKCS8, locked))  # fmt: skip
    short = proxies.sign(certificate, key, key.public_key(), 1)
    files.write(folder / "short.pem", files.credential_pem(short, key, [certificate]))
    return folder


@pytest.fixture
def path(site, tmp_path):
    """Where the proxy is."""
    return tmp_path / "proxy.pem"


def openssl(path, certificates):
    command = ["openssl", "verify", "-allow_proxy_certs", "-no-CAfile", "-no-CAstore", "-CApath", certificates]
    return subprocess.run([*command, "-untrusted", path, path], capture_output=True, text=True, check=False)


@pytest.fixture
def online(site, tmp_path):
    """The CA directory of the service."""
    answer = client.fetch_authority(site.credentials.url, cafile=str(site.cafile))
    authority.install_document(str(tmp_path / "certificates"), answer)
    return tmp_path / "certificates"


def test_proxy_of_the_service(logged_in, path, online):
    done = logged_in.run("proxy", "init", "--valid", "0:05")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = proxies.inspect(path.read_bytes())
    assert found.kind == "proxy" and found.info.policy == "inherit-all" and 280 < found.remaining <= 300
    assert found.identity.startswith("/DC=dodas/O=test/OU=people/CN=alice ")
    assert f"identity : {found.identity}\n" in done.stdout and "timeleft : 0:0" in done.stdout and not done.stderr
    verified = openssl(path, online)
    assert verified.returncode == 0, verified.stderr


def test_limited_proxy(logged_in, path):
    logged_in.run("proxy", "init", "--limited", "--valid", "0:05")
    assert proxies.inspect(path.read_bytes()).info.policy == "limited"
    assert logged_in.run("proxy", "info", "--type").stdout == "RFC compliant limited proxy\n"


def test_end_entity_certificate(logged_in, path, online):
    found = logged_in.json("proxy", "init", "--kind", "eec", "--valid", "0:05")
    assert found["kind"] == "eec" and found["type"] == "end-entity certificate"
    assert found["subject"] == found["identity"]
    assert openssl(path, online).returncode == 0


def test_shorter_life_than_asked_for_is_said(logged_in, path):
    done = logged_in.run("proxy", "init", "--valid", "12:00")
    assert "not 12:00: what signed it allows no more" in done.stderr  # it ends with the token


def test_without_login(site, path):
    assert site.run("proxy", "init", status=1).stderr == "dodas: nobody is logged in to test: ./dodas login\n"
    assert not path.exists()


def test_vo_that_the_rules_do_not_give(logged_in, path):
    failed = logged_in.run("proxy", "init", "--voms", "cms", "--valid", "0:05", status=1).stderr
    assert "give you no attributes of any VO, not cms" in failed
    assert not path.exists()


def test_symbolic_link_is_refused(logged_in, path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in logged_in.run("proxy", "init", status=2).stderr
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--valid", "12"), "not of the form H:M"),
        (("--valid", "0:60"), "not of the form H:M"),
        (("--valid", "0:00"), "a minute or more"),
        (("--kind", "eec", "--limited"), "--limited is for proxies"),
        (("--key", __file__), "--key goes with --cert"),
        (("--kind", "eec", "--cert", __file__), "needs the service"),
        (("--cert", __file__), "test_cli_proxy.py"),
    ],
)
def test_wrong_options(logged_in, path, options, said):
    assert said in logged_in.run("proxy", "init", *options, status=2).stderr
    assert not path.exists()


def test_own_certificate(site, own, path):
    site.run("proxy", "init", "--cert", str(own / "cert.pem"), "--key", str(own / "key.pem"), "--valid", "1:00")
    found = proxies.inspect(path.read_bytes())
    assert found.identity == SUBJECT and 3590 < found.remaining <= 3600
    assert openssl(path, own / "ca/certificates").returncode == 0


def test_key_is_found_beside_the_certificate(site, own, path):
    assert site.json("proxy", "init", "--cert", str(own / "both.pem"))["identity"] == SUBJECT


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("cert.pem", "ca/ca.key", "is not the key of"),
        ("cert.pem", "cert.pem", "holds no private key"),
        ("key.pem", "key.pem", "key.pem"),
        ("cert.pem", "locked.pem", "there is no terminal"),
    ],
)
def test_certificate_and_key_that_do_not_serve(site, own, path, cert, key, said):
    failed = site.run("proxy", "init", "--cert", str(own / cert), "--key", str(own / key), status=2).stderr
    assert said in failed and failed.startswith("dodas: ") and len(failed.splitlines()) == 1
    assert not path.exists()


def test_certificate_that_ended(site, own, path):
    while proxies.inspect((own / "short.pem").read_bytes()).remaining > 0:
        pass
    assert "ended on" in site.run("proxy", "init", "--cert", str(own / "short.pem"), status=2).stderr


def test_passphrase(site, own, path, monkeypatch):
    made = proxy.sign(own / "cert.pem", own / "locked.pem", 600, "inherit-all", lambda: "open sesame")
    assert made.certificate.not_valid_after_utc
    with pytest.raises(proxy.InputError, match="passphrase is wrong"):
        proxy.sign(own / "cert.pem", own / "locked.pem", 600, "inherit-all", lambda: "sesame")


def test_key_that_others_can_read_is_refused(site, own, path):
    shutil.copy(own / "key.pem", path.with_name("open.pem"))
    path.with_name("open.pem").chmod(0o644)
    options = ("--cert", str(own / "cert.pem"), "--key", str(path.with_name("open.pem")))
    assert "0600" in site.run("proxy", "init", *options, status=2).stderr


# as voms-proxy-info


@pytest.fixture
def proxy_file(own, path):
    """A proxy of two hours."""
    certificate, key, _chain = files.load_credential((own / "both.pem").read_bytes())
    other = csr.make_key()
    made = proxies.sign(certificate, key, other.public_key(), 7200)
    files.write(path, files.credential_pem(made, other, [certificate]))
    return path


def test_info(site, proxy_file):
    lines = dict(line.split(" : ", 1) for line in site.run("proxy", "info").stdout.splitlines())
    assert {name.strip() for name in lines} == {
        "subject", "issuer", "identity", "type", "strength", "path", "timeleft"
    }  # fmt: skip
    values = {name.strip(): value for name, value in lines.items()}
    assert values["type"] == "RFC compliant proxy" and values["strength"] == "2048 bits"
    assert values["issuer"] == values["identity"] == SUBJECT
    assert values["path"] == str(proxy_file) and values["timeleft"].startswith("1:59:")
    assert site.json("proxy", "info")["timeleft"] > 7000


def test_info_of_one_thing(site, proxy_file):
    assert site.run("proxy", "info", "--identity").stdout == f"{SUBJECT}\n"
    assert 7000 < int(site.run("proxy", "info", "--timeleft").stdout) <= 7200
    both = site.run("proxy", "info", "--timeleft", "--subject").stdout.splitlines()
    assert both[0].startswith(f"{SUBJECT}/CN=") and both[1].isdigit()  # in the order in which they are shown


@pytest.mark.parametrize(("valid", "status"), [((), 0), (("--valid", "1:59"), 0), (("--valid", "2:01"), 1)])
def test_exists(site, proxy_file, valid, status):
    done = site.run("proxy", "info", "--exists", *valid, status=status)
    assert done.output == ""


def test_info_of_what_is_no_proxy(site, path):
    failed = site.run("proxy", "info", status=1).stderr
    assert failed == f"dodas: {path}: there is no proxy; ./dodas proxy init makes one\n"
    site.run("proxy", "info", "--exists", status=1)
    path.write_text("nothing")
    assert "this is no proxy" in site.run("proxy", "info", status=1).stderr
    assert "--valid goes with --exists" in site.run("proxy", "info", "--valid", "1:00", status=2).stderr


def test_ended_proxy_does_not_exist_but_is_shown(site, own, path):
    shutil.copy(own / "short.pem", path)
    while proxies.inspect(path.read_bytes()).remaining > 0:
        pass
    assert "timeleft : 0:00:00" in site.run("proxy", "info").stdout
    site.run("proxy", "info", "--exists", status=1)


@pytest.mark.skipif(not shutil.which("voms-proxy-info"), reason="MISSING: voms-proxy-info of Debian's voms-clients")
@pytest.mark.parametrize("options", [(), ("subject",), ("issuer",), ("identity",), ("type",), ("path",), ("strength",),
                                     ("exists",), ("exists", "valid", "1:00"), ("exists", "valid", "3:00"),
                                     ("identity", "subject")])  # fmt: skip
def test_info_is_as_that_of_voms(site, proxy_file, own, options):
    def dashed(dashes):
        return [one if one[0].isdigit() else dashes + one for one in options]

    environment = {**os.environ, "X509_CERT_DIR": str(own / "ca/certificates"), "X509_VOMS_DIR": str(own)}
    theirs = subprocess.run(["voms-proxy-info", "-file", proxy_file, *dashed("-")], env=environment,
                            capture_output=True, text=True, check=False)  # fmt: skip
    ours = site.run("proxy", "info", "--file", str(proxy_file), *dashed("--"), status=theirs.returncode)
    assert words(ours.stdout) == words(theirs.stdout)


@pytest.mark.skipif(not shutil.which("voms-proxy-fake"), reason="MISSING: voms-proxy-fake of Debian's voms-clients")
def test_info_shows_what_a_vo_says(site, own, path):
    command = ["voms-proxy-fake", "-rfc", "-newformat", "-cert", own / "cert.pem", "-key", own / "key.pem", "-hostcert",
               own / "cert.pem", "-hostkey", own / "key.pem", "-certdir", own / "ca/certificates", "-voms", "cms",
               "-uri", "voms.example.org:15000", "-fqan", "/cms/Role=pilot", "-hours", "2", "-out", path]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (found,) = site.json("proxy", "info")["vo"]
    assert found["vo"] == "cms" and found["uri"] == "voms.example.org:15000"
    assert found["fqans"][0].startswith("/cms/Role=pilot") and found["timeleft"] > 6000
    assert "VO cms" in site.run("proxy", "info").stdout
    assert site.run("proxy", "info", "--vo").stdout == "cms\n"
    assert site.run("proxy", "info", "--fqan").stdout.startswith("/cms/Role=pilot")


def words(text):
    """What was printed, but for seconds that pass."""
    lines = [line.removesuffix(" bits").split() for line in text.splitlines()]
    return [line[:-1] if "timeleft" in line else line for line in lines]


def test_destroy(site, proxy_file, tmp_path):
    os.link(proxy_file, tmp_path / "other")  # what is left of it can be seen by another name
    assert site.run("proxy", "destroy").stdout == f"{proxy_file} is gone\n"
    assert not proxy_file.exists() and set((tmp_path / "other").read_bytes()) == {0}
    failed = site.run("proxy", "destroy", status=1).stderr
    assert failed == f"dodas: {proxy_file}: there is no proxy to destroy\n"


def test_destroy_touches_nothing_but_files(site, path, tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    path.symlink_to(tmp_path / "elsewhere")
    site.run("proxy", "destroy", status=1)
    assert (tmp_path / "elsewhere").read_text() == "mine" and path.is_symlink()


def test_where_a_proxy_is(monkeypatch):
    monkeypatch.delenv("X509_USER_PROXY", raising=False)
    assert str(proxy.default_path()) == f"/tmp/x509up_u{os.getuid()}"
