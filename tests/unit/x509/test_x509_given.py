# SPDX-License-Identifier: Apache-2.0
"""Authorities that a site brings, as OpenSSL makes them, and what OpenSSL makes of what they sign."""

import datetime as dt
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, client, files, names, proxies
from openssl_verify import verify

ROOT = "/DC=site/O=Site/CN=Root CA"
ISSUING = "/DC=site/O=Site/CN=Issuing CA"
CA = "basicConstraints=critical,CA:TRUE{}\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
REASONS = {
    "other key": "key is not that of /DC=site/O=Site/CN=Root CA",
    "encrypted key": "the authority's key is encrypted: a service needs it without a passphrase",
    "no key": "not a private key in PEM",
    "weak key": "RSA keys must have 2048 to 4096 bits",
    "no certificate": "cannot be read",
    "end entity": "is no CA",
    "no constraints": "is no CA",
    "no keyCertSign": "may not sign certificates",
    "no cRLSign": "may not sign revocation lists",
    "no usage": "does not say its keyUsage",
    "expired": "ended on",
    "not yet valid": "begins on",
}


def openssl(*command):
    return subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True, timeout=30).stdout


class Site:
    """Certificates and keys in a directory, made by OpenSSL."""

    def __init__(self, folder):
        self.folder = folder

    def key(self, name):
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.folder / f"{name}.key")

    def certificate(self, name, subject, issuer=None, extensions=None, days=30, digest="sha256"):
        """name.pem: self-signed, or signed by issuer."""
        (self.folder / "ext").write_text("[ca]\n" + (CA.format("") if extensions is None else extensions))
        key, request, made = (self.folder / one for one in (f"{name}.key", "csr", f"{name}.pem"))
        openssl("req", "-new", "-key", key, "-subj", subject, "-utf8", "-out", request)
        sign = ["-signkey", key]
        if issuer:
            sign = ["-CA", self.folder / f"{issuer}.pem", "-CAkey", self.folder / f"{issuer}.key", "-CAcreateserial"]
        openssl("x509", "-req", "-in", request, "-days", days, f"-{digest}", "-extfile", self.folder / "ext",
                "-extensions", "ca", *sign, "-out", made)  # fmt: skip

    def read(self, name):
        return (self.folder / name).read_bytes()


@pytest.fixture(scope="module")
def keys_at_hand(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("keys"))
    for name in ("root", "middle", "issuing"):
        site.key(name)
    return site.folder


@pytest.fixture
def site(keys_at_hand, tmp_path):
    """A root, a CA below it, and one below that, by which we sign."""
    site = Site(tmp_path / "site")
    shutil.copytree(keys_at_hand, site.folder)
    site.certificate("root", ROOT)
    site.certificate("middle", "/DC=site/O=Site/CN=Middle CA", "root", CA.format(",pathlen:1"))
    site.certificate("issuing", ISSUING, "middle", CA.format(",pathlen:0"))
    return site


@pytest.fixture
def intermediate(site, tmp_path):
    chain = site.read("root.pem") + site.read("middle.pem")  # in any order
    return authority.Authority.given(tmp_path / "state", site.read("issuing.pem"), site.read("issuing.key"), chain)


def crl_of(site, name, subject, *revoked):
    """An empty list of a CA of the site's, or one with serial numbers."""
    key = serialization.load_pem_private_key(site.read(f"{name}.key"), None)
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateRevocationListBuilder(
        names.parse(subject), now - dt.timedelta(hours=1), now + dt.timedelta(days=1)
    )
    for serial in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder(serial, now - dt.timedelta(hours=2)).build()
        )
    return files.certificate_pem(builder.sign(key, hashes.SHA256()))


def test_self_signed(site, tmp_path, keys):
    ca = authority.Authority.given(tmp_path / "state", site.read("root.pem"), site.read("root.key"))
    assert (ca.subject, ca.namespace, ca.chain, ca.chain_pem, ca.between) == (ROOT, "/DC=site/O=Site", (), b"", ())
    eec = ca.issue_eec(keys[0].public_key(), "/DC=site/O=Site/OU=people/CN=alice", 600)
    directory = tmp_path / "state" / "certificates"
    assert verify(directory, tmp_path, eec) == ""
    ca.revoke(eec.serial_number)
    assert "revoked" in verify(directory, tmp_path, eec)
    # Neither its key nor its certificate is in the store.
    held = sorted(path.name for path in (tmp_path / "state").glob("[a-z]*"))
    assert held == ["certificates", "crl.pem", "revoked.json"]


def test_chain(site, intermediate, tmp_path, keys):
    ca = intermediate
    assert [names.slash(one.subject) for one in ca.chain] == ["/DC=site/O=Site/CN=Middle CA", ROOT]
    assert [names.slash(one.subject) for one in ca.between] == [ISSUING, "/DC=site/O=Site/CN=Middle CA"]
    eec = ca.issue_eec(keys[0].public_key(), "/DC=site/O=Site/OU=people/CN=alice", 600)
    proxy = proxies.sign(eec, keys[0], keys[1].public_key(), 300)
    directory = tmp_path / "state" / "certificates"
    assert {path.suffix for path in directory.iterdir()} == {".0", ".r0", ".signing_policy"}
    assert len(list(directory.glob("*.0"))) == 6
    assert len(list(directory.glob("*.r0"))) == 2
    assert verify(directory, tmp_path, proxy, eec, crl=False) == ""
    # With the root alone the certificates between must come along.
    root = tmp_path / "root"
    authority.install(root, site.read("root.pem"), None, None, names.openssl_hashes(ca.chain[-1].subject))
    assert "unable to get local issuer" in verify(root, tmp_path, proxy, eec, crl=False)
    assert verify(root, tmp_path, proxy, eec, *ca.between, crl=False) == ""
    policy = (directory / f"{names.openssl_hashes(ca.chain[0].subject)[0]}.signing_policy").read_text()
    assert f"""cond_subjects  globus  '"{ISSUING}"'""" in policy


def test_lists_of_those_above_and_entries_of_its_own(site, tmp_path, keys):
    above = [crl_of(site, "root", ROOT), crl_of(site, "middle", "/DC=site/O=Site/CN=Middle CA")]
    own = crl_of(site, "issuing", ISSUING, 7, 8)
    chain = b"".join([site.read("root.pem"), site.read("middle.pem"), *above, own])
    ca = authority.Authority.given(tmp_path / "state", site.read("issuing.pem"), site.read("issuing.key"), chain)
    assert ca.is_revoked(7) and ca.is_revoked(8) and not ca.is_revoked(9)
    eec = ca.issue_eec(keys[0].public_key(), "/DC=site/O=Site/OU=people/CN=alice", 600)
    directory = tmp_path / "state" / "certificates"
    assert verify(directory, tmp_path, eec) == ""
    ca.revoke(eec.serial_number)
    assert "revoked" in verify(directory, tmp_path, eec)
    assert ca.is_revoked(7)


def test_document_makes_the_same_directory(intermediate, tmp_path, monkeypatch):
    document = intermediate.document()
    monkeypatch.setattr(client, "call", lambda _url, **_options: document)
    told = client.fetch_authority("https://credentials.test")
    assert told == document and len(told["chain"]) == 2
    assert authority.install_document(tmp_path / "copy", told)
    assert not authority.install_document(tmp_path / "copy", told)
    for path in (tmp_path / "state" / "certificates").iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    for wrong in ({"ca": 7}, {"hashes": ["../../x"]}, {"chain": "x"}, {"chain": [{}]}, {"crl": None},
                  {"chain": [{**document, "crl": 7}]},
                  {"chain": [{**document, "hashes": ["/etc/passwd"]}]}):  # fmt: skip
        monkeypatch.setattr(client, "call", lambda _url, wrong=wrong, **_options: {**document, **wrong})
        with pytest.raises(client.ClientError):
            client.fetch_authority("https://credentials.test")


def test_what_others_keep_of_the_cas_above_stays(intermediate, tmp_path):
    root = names.openssl_hashes(intermediate.chain[-1].subject)[0]
    directory = tmp_path / "shared"
    directory.mkdir()
    for suffix in ("signing_policy", "r0"):
        (directory / f"{root}.{suffix}").write_text("the site's own")
    intermediate.install(directory)
    for suffix in ("signing_policy", "r0"):
        assert (directory / f"{root}.{suffix}").read_text() == "the site's own"


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_used(site, tmp_path, name):
    folder = site.folder
    change = {"end entity": "basicConstraints=CA:FALSE\n", "no constraints": "keyUsage=keyCertSign,cRLSign\n",
              "no keyCertSign": "basicConstraints=CA:TRUE\nkeyUsage=cRLSign\n",
              "no cRLSign": "basicConstraints=CA:TRUE\nkeyUsage=keyCertSign\n",
              "no usage": "basicConstraints=CA:TRUE\n"}  # fmt: skip
    certificate, key = "root.pem", site.read("root.key")
    if name in change:
        site.certificate("root", ROOT, extensions=change[name])
    elif name == "other key":
        key = site.read("issuing.key")
    elif name == "encrypted key":
        key = openssl("pkcs8", "-topk8", "-in", folder / "root.key", "-passout", "pass:secret")
        assert b"ENCRYPTED" in key
    elif name == "no key":
        key = site.read("root.pem")
    elif name == "weak key":
        key = openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024")
    elif name == "no certificate":
        certificate = "root.key"
    else:
        then = dt.timedelta(days=-3 if name == "expired" else 1)
        start = dt.datetime.now(dt.UTC) + then
        own = serialization.load_pem_private_key(key, None)
        end, root = start + dt.timedelta(1), names.parse(ROOT)
        made = x509.CertificateBuilder(root, root, own.public_key(), 1, start, end)
        for value in (x509.BasicConstraints(True, None), proxies.key_usage(authority=True)):
            made = made.add_extension(value, True)
        files.write(folder / "root.pem", files.certificate_pem(made.sign(own, hashes.SHA256())))
    with pytest.raises(authority.AuthorityError, match=REASONS[name]) as caught:
        authority.Authority.given(tmp_path / "state", site.read(certificate), key)
    assert "PRIVATE KEY" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no root", f"certificate of {ROOT}, which signed that of /DC=site/O=Site/CN=Middle CA, is missing"),
        ("nothing above", "certificate of /DC=site/O=Site/CN=Middle CA, which signed that of"),
        ("path length", "Middle CA allows 0 CAs below it, and here are 1"),
        ("another root of that name", "is missing"),
        ("sha1", "Issuing CA is not signed with one of sha256"),
        ("an end entity above", "Middle CA is no CA"),
        ("list of a stranger", "revocation list of /DC=elsewhere/CN=x is not signed by a CA of the chain"),
        ("list signed by another", "revocation list of .*Root CA is not signed"),
    ],
)
def test_chains_that_cannot_be_used(site, tmp_path, name, reason):
    above = ["root.pem", "middle.pem"]
    extra = b""
    if name == "no root":
        above = ["middle.pem"]
    elif name == "nothing above":
        above = []
    elif name == "path length":
        site.certificate("middle", "/DC=site/O=Site/CN=Middle CA", "root", CA.format(",pathlen:0"))
    elif name == "another root of that name":
        site.key("root")
        site.certificate("root", ROOT)
    elif name == "sha1":
        site.certificate("issuing", ISSUING, "middle", digest="sha1")
    elif name == "an end entity above":
        site.certificate("middle", "/DC=site/O=Site/CN=Middle CA", "root", "basicConstraints=CA:FALSE\n")
    elif name == "list of a stranger":
        extra = crl_of(site, "root", "/DC=elsewhere/CN=x")
    else:
        extra = crl_of(site, "issuing", ROOT)
    chain = b"".join(map(site.read, above)) + extra
    with pytest.raises(authority.AuthorityError, match=reason):
        authority.Authority.given(tmp_path / "state", site.read("issuing.pem"), site.read("issuing.key"), chain)


def test_path_lengths_that_suffice(site, tmp_path):
    site.certificate("root", ROOT, extensions=CA.format(",pathlen:2"))
    chain = site.read("root.pem") + site.read("middle.pem")
    ca = authority.Authority.given(tmp_path / "state", site.read("issuing.pem"), site.read("issuing.key"), chain)
    assert len(ca.chain) == 2


def test_ends_with_what_is_above(site, tmp_path, keys):
    site.certificate("root", ROOT, days=2)
    chain = site.read("root.pem") + site.read("middle.pem")
    ca = authority.Authority.given(tmp_path / "state", site.read("issuing.pem"), site.read("issuing.key"), chain)
    eec = ca.issue_eec(keys[0].public_key(), "/DC=site/O=Site/CN=alice", 7 * 86400)
    assert eec.not_valid_after_utc == ca.not_after == ca.chain[-1].not_valid_after_utc
    assert ca.remaining() < 2 * 86400 + 1


def test_namespaces(site, tmp_path, keys):
    arguments = (site.read("root.pem"), site.read("root.key"))
    ca = authority.Authority.given(tmp_path / "state", *arguments, namespace="/DC=dodas/O=tier3")
    key = keys[0].public_key()
    assert ca.issue_eec(key, "/DC=dodas/O=tier3/CN=alice", 60)
    assert """'"/DC=dodas/O=tier3/*"'""" in ca.signing_policy
    for outside in ("/DC=site/O=Site/CN=alice", "/DC=dodas/CN=alice", "/DC=dodas/O=tier3", "/DC=dodas/O=tier33/CN=x"):
        with pytest.raises(authority.AuthorityError, match="not below"):
            ca.issue_eec(key, outside, 60)
    with pytest.raises(authority.AuthorityError, match="give .* a namespace"):
        authority.Authority.given(tmp_path / "other", *arguments, namespace="/DC=dodas/O=a'b")


@pytest.mark.parametrize("name", [ISSUING, ROOT, "/DC=site/O=Site/CN=ROOT  ca", "/DC=site/O=Site/CN=middle CA"])
def test_nobody_gets_the_name_of_an_authority(intermediate, keys, name):
    with pytest.raises(authority.AuthorityError, match="name of the authority"):
        intermediate.issue_eec(keys[0].public_key(), name, 60)


@pytest.mark.parametrize(
    ("subject", "good"),
    [
        ("/C=IT/ST=Lazio/L=Frascati/O=INFN/CN=CA", "/C=IT/ST=Lazio/L=Frascati/O=INFN"),
        ("/C=IT/O=Istituto d'Arte/CN=CA", None),
        ("/O=Universit\N{LATIN SMALL LETTER A WITH GRAVE}/CN=CA", None),
        ("/O=x/emailAddress=ca@x.org/CN=CA", None),
        ("/CN=CA", None),
        ("/O=a\\/CN=b/CN=CA", None),
    ],
)
def test_subjects_of_sites(site, tmp_path, keys, subject, good):
    """Below some names nothing can be signed, and a namespace must be given; hash links are right for all."""
    site.certificate("root", subject)
    arguments = (site.read("root.pem"), site.read("root.key"))
    if good:
        ca = authority.Authority.given(tmp_path / "state", *arguments)
        assert ca.namespace == good
        eec = ca.issue_eec(keys[0].public_key(), f"{good}/CN=x", 60)
        assert verify(tmp_path / "state" / "certificates", tmp_path, eec) == ""
        return
    with pytest.raises(authority.AuthorityError, match="a namespace to sign in"):
        authority.Authority.given(tmp_path / "state", *arguments)
    if "'" in subject:
        return
    ca = authority.Authority.given(tmp_path / "state", *arguments, namespace="/DC=dodas/O=tier3")
    eec = ca.issue_eec(keys[0].public_key(), "/DC=dodas/O=tier3/CN=x", 60)
    assert verify(tmp_path / "state" / "certificates", tmp_path, eec) == ""
