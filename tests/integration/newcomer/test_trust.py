# SPDX-License-Identifier: Apache-2.0
"""Who is no worker of the cluster gets neither into its pool nor a credential."""

import json
import shlex
import time

import pytest
from cryptography import x509
from joserfc import jwk, jwt

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import csr, files, names, proxies
from ansible_collections.dodas.cluster.plugins.module_utils.x509.authority import Authority
from guests import Guests

ISSUER = "https://identity.service.consul:8443"
AUDIENCE = "https://credentials.service.consul:8444"
HOST = "worker-1"


@pytest.fixture(scope="module")
def proxy(e2e):
    """The proxy with which a worker joined."""
    return e2e.run(HOST, "cat /var/lib/dodas/worker/proxy.pem")


@pytest.fixture(scope="module")
def foreign_proxy(proxy, tmp_path_factory):
    """The same names, from the authority's on, all signed by an authority of somebody else."""
    _own, *chain = x509.load_pem_x509_certificates(proxy.encode())
    robot_name = names.slash(chain[0].subject)
    authority = Authority.open(tmp_path_factory.mktemp("foreign") / "authority", names.slash(chain[0].issuer))
    robot_key, key = csr.make_key(), csr.make_key()
    robot = authority.issue_eec(robot_key.public_key(), robot_name, 3600)
    certificate = proxies.sign(robot, robot_key, key.public_key(), 3600, path_length=0)
    return files.credential_pem(certificate, key, [robot]).decode()


@pytest.fixture
def intruders(e2e):
    """Starts daemons as a worker's, but with a name and a proxy of their own."""
    guests = Guests(e2e, HOST, "/var/lib/dodas-intruders", 9700)
    yield guests
    guests.stop()


def test_pool_takes_only_workers_with_a_proxy_of_its_authority(e2e, intruders, proxy, foreign_proxy, eventually):
    intruders.start("nobody")
    intruders.start("foreigner", foreign_proxy)
    intruders.start("colleague", proxy)
    eventually(lambda: [slot for slot in e2e.slots() if "colleague" in slot], 40, "the one with a right proxy joined")
    for name in ("nobody", "foreigner"):
        look = f"grep -h AUTHENTICATE: {intruders.folder}/{name}/log/StartLog || true"
        refused = eventually(lambda look=look: e2e.run(HOST, look), 40, f"{name} tried")
        assert "SSL" in refused
    assert not [slot for slot in e2e.slots() if "nobody" in slot or "foreigner" in slot]
    assert not e2e.condor("condor_status -master -af Name | grep -E 'nobody|foreigner' || true").strip()


@pytest.fixture(scope="module")
def ask(e2e):
    """Asks the service for a proxy with a token; status and reason of the answer."""
    request = json.dumps({"csr": csr.make(csr.make_key()).decode(), "kind": "proxy"})

    def ask(token):
        options = (
            "-sS --cacert /etc/dodas/tls/ca.pem -H 'Content-Type: application/json' -w '\\n%{http_code}' --config -"
        )
        curl = f"curl {options} --data {shlex.quote(request)} {AUDIENCE}/v1/credentials"
        answer, status = e2e.run("front-1", curl, f'header = "Authorization: Bearer {token}"\n').rsplit("\n", 1)
        return int(status), json.loads(answer).get("reason")

    return ask


@pytest.fixture(scope="module")
def provider_key(e2e):
    """The key with which the provider signs."""
    return jwk.import_key(json.loads(e2e.run("front-1", "cat /var/lib/dodas/identity/jwks.json"))["keys"][0])


def token(key, **changes):
    """A token of the provider for its user, but for `changes`."""
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": "physicist", "client_id": "dodas", "aud": AUDIENCE, "iat": now, "exp": now + 300,
              "jti": "one", "scope": "openid wlcg.groups", "wlcg.groups": ["/dodas"]}  # fmt: skip
    header = {"alg": "RS256", "kid": key.kid, "typ": "at+jwt"}
    return jwt.encode(header, {**claims, **changes}, key)


def test_credentials_takes_a_good_token(ask, provider_key):
    assert ask(token(provider_key))[0] == 201


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iat": int(time.time()) - 7200, "exp": int(time.time()) - 3600}, "expired"),
        ({"aud": "https://elsewhere.example"}, "audience"),
        ({"iss": "https://elsewhere.example"}, "issuer"),
    ],
)
def test_credentials_refuses(ask, provider_key, changes, reason):
    status, found = ask(token(provider_key, **changes))
    assert status == 401 and reason in found


def test_credentials_refuses_a_foreign_key(ask, provider_key):
    foreign = jwk.RSAKey.generate_key(2048, {"kid": provider_key.kid})
    status, found = ask(token(foreign))
    assert status == 401 and "signature" in found


def test_secrets_are_in_no_journal(dodas, e2e):
    secrets = json.loads((dodas.home / "deployments/e2e/secrets.json").read_text(encoding="utf-8"))
    words = [value for value in secrets.values() if isinstance(value, str)]
    for host in ("front-1", "worker-1"):
        journal = e2e.run(host, "journalctl --no-pager")
        assert "dodas-agent" in journal and "PRIVATE KEY" not in journal
        assert not [word for word in words if word in journal]
