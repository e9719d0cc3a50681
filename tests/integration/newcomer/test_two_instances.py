# SPDX-License-Identifier: Apache-2.0
"""A site's own CA, and two instances of the credentials service, of which one fails."""

import json
import re
import shlex
import subprocess

import pytest

NAMESPACE = "/DC=org/DC=example/O=site"
# Without it Consul shows nobody anything.
TOKEN = "CONSUL_HTTP_TOKEN_FILE=/etc/dodas/credentials/consul.token"
CA = """basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""


@pytest.fixture(scope="module")
def site_ca(tmp_path_factory):
    """Ansible variables with an intermediate CA below a root, both made by OpenSSL."""
    folder = tmp_path_factory.mktemp("site")

    def openssl(line):
        subprocess.run(["openssl", *shlex.split(line)], cwd=folder, check=True, capture_output=True, timeout=60)

    (folder / "ca.cnf").write_text(CA)
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.pem -days 30 -subj '/DC=org/CN=Root' "
            "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
    openssl(f"req -newkey rsa:2048 -nodes -keyout ca.key -out ca.csr -subj '{NAMESPACE}/CN=Site CA'")
    openssl("x509 -req -in ca.csr -CA root.pem -CAkey root.key -CAcreateserial -out ca.pem -days 20 -extfile ca.cnf")
    variables = {"credentials_namespace": NAMESPACE}
    for name, file in (("certificate", "ca.pem"), ("key", "ca.key"), ("chain", "root.pem")):
        variables[f"credentials_authority_{name}"] = (folder / file).read_text().strip()
    path = folder / "variables.json"
    path.touch(0o600)
    path.write_text(json.dumps(variables))
    return path


@pytest.fixture(scope="module")
def template(dodas, tmp_path_factory):
    """The template of a Tier-3, with two hosts more for the service."""
    text = (dodas.root / "templates/tier3.yaml").read_text(encoding="utf-8")
    signer = "    signer:\n      type: dodas.nodes.Compute\n      capabilities: {scalable: {properties: {count: 2}}}\n"
    text, nodes = re.subn(r"^    worker:$", f"{signer}\n    worker:", text, count=1, flags=re.M)
    text, hosts = re.subn(r"(proxy_lifetime \}\n      requirements:\n        - host:) front", r"\1 signer", text)
    assert (nodes, hosts) == (1, 1)
    path = tmp_path_factory.mktemp("template") / "two.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_instance_is_enough(dodas, before, template, site_ca, cluster_of):
    options = ("--name", "e2e2", "--vars", str(site_ca), "-p", "workers=1")
    assert dodas.json("up", str(template), "--yes", *options, timeout=600)["complete"]
    try:
        cluster = cluster_of("e2e2")
        done = dodas("up", str(template), *options)
        assert re.findall(r"changed=(\d+)", done.stdout) == ["0"]
        proxy, served = "/var/lib/dodas/worker/proxy.pem", set()
        for victim, other in (("signer-1", "signer-2"), ("signer-2", "signer-1")):
            cluster.run(victim, "systemctl stop dodas-credentials")
            cluster.run("worker-1", "podman exec dodas-worker worker-renew --once --now --deadline 30")
            issuer = cluster.run("worker-1", f"openssl x509 -noout -issuer -nameopt compat -in {proxy}")
            assert f"{NAMESPACE}/OU=workers/CN=worker-1 " in issuer
            served.add(cluster.run("worker-1", f"sed -n '/PRIVATE/,$p' {proxy} | openssl x509 -noout -serial"))
            assert "worker-1" in cluster.run(other, "tail -n 1 /var/lib/dodas/credentials/audit.log")
            cluster.run(victim, "systemctl start dodas-credentials")
        assert len(served) == 1  # one end-entity certificate behind both proxies: the state is shared
        directory = "/var/lib/dodas/worker/certificates"
        command = f"openssl verify -allow_proxy_certs -CApath {directory} -untrusted {proxy} {proxy}"
        assert cluster.run("worker-1", command).strip().endswith(": OK")
        kept = cluster.run("signer-1", f"{TOKEN} consul kv get -recurse dodas/credentials | base64")
        assert kept and "PRIVATE KEY" not in cluster.run("signer-1", f"{TOKEN} consul kv export dodas/credentials")
    finally:
        dodas("down", "--name", "e2e2")
