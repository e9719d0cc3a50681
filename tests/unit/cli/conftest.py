# SPDX-License-Identifier: Apache-2.0
"""A deployment whose provider and credentials service are the real ones, on a loopback address of their own."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import identity_flows as flows
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files
from browser import browser
from dodas import deployments, login
from dodas.cli import main
from identity_runtime import Identity
from service_runtime import Credentials

ROOT = Path(__file__).parents[3]
ISSUER, URL = "https://identity.service.consul:8443", "https://credentials.service.consul:8444"
NAMES = ("identity.service.consul", "credentials.service.consul")


DNS = """import socket
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **options: real({hosts!r}.get(host, host), *more, **options)
"""


class Service(Credentials):
    """The credentials service in a process that knows some names; hosts: {name: address}."""

    def __init__(self, directory, issuer, hosts):
        super().__init__(directory, issuer)
        (self.directory / "names").mkdir()
        (self.directory / "names/sitecustomize.py").write_text(DNS.format(hosts=hosts))

    def command(self):
        arguments, environment = super().command()
        return arguments, {**environment, "PYTHONPATH": f"{environment['PYTHONPATH']}:{self.directory / 'names'}"}


class Site:
    """address: of both services. What is asked of the command line goes through `run` or, in a process, `start`."""

    def __init__(self, folder):
        self.home, self.name = folder / "home", "test"
        self.address = ".".join(["127", *(str(random.randint(2, 250)) for _ in range(3))])
        self.folder = self.home / "deployments" / self.name
        (self.folder / "pki").mkdir(parents=True)
        self.cafile = self.folder / "pki/ca.pem"
        self._record()
        ca = authority.Authority.open(folder / "hosts", "/DC=dodas/O=test/CN=Hosts CA")
        files.write(self.cafile, ca.ca_pem)
        key = csr.make_key()
        certificate = ca.issue_host(key.public_key(), "services", NAMES, [self.address])
        (folder / "identity").mkdir()
        self.identity = Identity(folder / "identity")
        self.credentials = Service(folder / "credentials", self.identity, dict.fromkeys(NAMES, self.address))
        for config in (self.identity.config, self.credentials.config):
            files.write(config / "cert.pem", files.certificate_pem(certificate))
            files.write(config / "key.pem", files.key_pem(key))
        self._configure()

    def _record(self):
        records = {"deployment.json": {"source": str(ROOT / "templates/tier3.yaml"), "backend": "local",
                                       "engine": "podman"},
                   "inputs.json": {}, "hosts.json": {"front-1": {"address": self.address}}}  # fmt: skip
        for name, value in records.items():
            (self.folder / name).write_text(json.dumps(value))

    def _configure(self):
        settings = self.identity.settings
        settings |= {"issuer": ISSUER, "address": self.address, "port": 8443, "audiences": [URL]}
        settings |= {"opaque_audiences": []}
        for client in settings["clients"]:
            client["scopes"] = ["openid", "offline_access", "wlcg", "wlcg.groups"][0 if client.get("public") else 1 :]
        settings = self.credentials.settings
        settings["listen"] |= {"address": self.address, "port": 8444}
        settings["issuers"][0] |= {"issuer": ISSUER, "audience": URL, "cafile": str(self.cafile)}
        settings["issuers"][0] |= {"scope": "wlcg wlcg.groups offline_access"}
        for rule in settings["rules"]:
            if rule["name"] in ("workers", "people"):
                rule["issuer"] = ISSUER
            if rule["name"] == "people":
                rule["delegate"] = True
        self.credentials.url, self.credentials.cafile = f"https://{self.address}:8444", str(self.cafile)

    def start_services(self):
        self.identity.start()
        self.credentials.start()

    def stop_services(self):
        self.credentials.stop()
        self.identity.stop()

    @property
    def deployment(self):
        return deployments.Deployment.load(self.name)

    def browser(self):
        return browser(ISSUER, dict.fromkeys(NAMES, self.address), self.cafile)

    def approve(self, device):
        """Sign in with the code that was shown."""
        with self.browser() as http:
            done = flows.approve(http, flows.sign_in(http, flows.open_login(http, device)))
        assert "Signed in" in done.text

    def cancel(self, device):
        with self.browser() as http:
            page = flows.open_login(http, device)
            action = page.text.split('class="plain"')[0].rsplit('action="', 1)[1].split('"')[0]
            flows.follow(http, http.post(action))

    def run(self, *arguments, status=0, **options):
        """The command line, in this process; how it ended."""
        done = CliRunner().invoke(main, arguments, prog_name="dodas", **options)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert status in (None, done.exit_code), f"{arguments}: {done.exit_code}\n{done.output}"
        return done

    def json(self, *arguments, **options):
        return json.loads(self.run(*arguments, "--json", **options).stdout)

    def start(self, *arguments):
        """The command line, as a process."""
        environment = {**os.environ, "DODAS_HOME": str(self.home), "PYTHONPATH": f"{ROOT}/collections:{ROOT}/src"}
        return subprocess.Popen(
            [sys.executable, "-m", "dodas", *arguments], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def log_in(self):
        """Hold a login of alice."""
        document, device = login.start(self.deployment)
        self.approve(device)
        return login.finish(self.deployment, document, device)

    def edit_login(self, **changes):
        path = self.folder / "login.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    site.start_services()
    yield site
    site.stop_services()


@pytest.fixture
def site(services, monkeypatch, tmp_path):
    """The deployment, without a login; proxies are below tmp_path."""
    monkeypatch.setenv("DODAS_HOME", str(services.home))
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "proxy.pem"))
    (services.folder / "login.json").unlink(missing_ok=True)
    return services


@pytest.fixture
def logged_in(site):
    site.log_in()
    return site
