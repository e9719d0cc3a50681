# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry, with TLS, passwords and tokens; skopeo and podman on the other side: what we push they pull
and run, what they push we pull; and real proxies on the way."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

import udocker_faults as faults
import udocker_images as images
import udocker_program
import udocker_registry as registries
from ansible_collections.dodas.cluster.plugins.module_utils.local.podman import Podman
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import auth, http, manifests, reference, transfer
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import registry as client
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error, NotFound
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store
from udocker_people import Person
from udocker_registry import USERS, Registry

ANN, BOB = ("ann", USERS["ann"]), ("bob", USERS["bob"])
KINDS = [(tls, auth) for tls in (False, True) for auth in (None, "basic", "token")]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """busybox with a few layers on top, one of them large enough to be sent in many pieces."""
    noise = images.layer(images.member("noise", os.urandom(3 << 20)))
    return images.busybox(tmp_path_factory.mktemp("image"), extra=[*images.stack(3), noise, *images.whiteouts()])


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Nobody's credentials and proxies but those of the test."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "UDOCKER_KEYSTORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """An open registry."""
    with Registry(tmp_path_factory.mktemp("open")) as registry:
        yield registry


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """One with TLS that wants tokens."""
    with Registry(tmp_path_factory.mktemp("tokens"), tls=True, auth="token") as registry:
        yield registry


@pytest.fixture(scope="module")
def podman():
    with tempfile.TemporaryDirectory(prefix="p") as short:  # podman takes no long paths
        folder = Path(short)
        made = Podman(folder / "home", run=folder / "run", images=folder / "images")
        made.configure()
        yield made
        for kind in ("containers", "images"):
            command = made.command("rmi", "-af", store=kind)
            subprocess.run(command, env=made.environment(), capture_output=True, timeout=60)
        for mount in (folder / "home" / "local" / "storage" / "overlay", folder / "images" / "overlay"):
            subprocess.run(["umount", "-R", mount], capture_output=True)


def pull(store, registry, name, user=ANN, **more):
    return transfer.pull(store, f"{registry.host}/{name}", **access(registry, user), **more)


def access(registry, user=ANN):
    found = {"certificates": [registry.certificates]}
    return {**found, "credentials": user} if registry.auth and user else found


def assert_same(store, image, digest):
    assert image.manifest == digest
    assert transfer._present(store, reference.parse(image.name)) is not None
    top = Path(store.layer(image.layers[0]["diff_id"]))
    assert (top / "bin" / "busybox").read_bytes() == Path("/bin/busybox").read_bytes()


# Pull


@pytest.mark.parametrize("tls, kind", KINDS)
def test_pull_from_each_kind_of_registry(tmp_path, store, layout, tls, kind):
    with Registry(tmp_path, tls=tls, auth=kind) as registry:
        digest = registry.put(layout, "busybox:latest", "team/busybox:1")
        assert_same(store, pull(store, registry, "team/busybox:1"), digest)
        if kind:
            with pytest.raises(auth.Denied, match="team/busybox:1"):
                pull(Store(tmp_path / "other"), registry, "team/busybox:1", None)
            with pytest.raises(auth.Denied) as error:
                pull(Store(tmp_path / "other"), registry, "team/busybox:1", ("ann", "of-secrets"))
            assert "of-secrets" not in str(error.value)


@pytest.mark.parametrize("answer", ["token", "access_token"])
def test_tokens_by_either_name_and_for_nobody(tmp_path, store, layout, answer):
    """udocker 1.3.17 takes `token` alone."""
    with Registry(tmp_path, auth="token", answer=answer) as registry:
        digest = registry.put(layout, "busybox:latest", "public/busybox:1")
        del registry.tokens.asked[:]
        assert_same(store, pull(store, registry, "public/busybox:1", None), digest)
        assert registry.tokens.asked == [(None, ["repository:public/busybox:pull"], "GET")]


def test_a_token_that_ends_in_the_middle_of_a_pull(tmp_path, store, layout):
    """The registry refuses what it took for the manifest: the token that is held then is one that has ended."""
    with Registry(tmp_path, tls=True, auth="token") as registry:
        digest = registry.put(layout, "busybox:latest", "team/busybox:1")
        registry.tokens.stale = 1
        assert_same(store, pull(store, registry, "team/busybox:1"), digest)
        name = reference.parse(f"{registry.host}/team/busybox:1")
        asked = client.connect(name, **access(registry))
        manifest = asked.manifest(name.repository, name.tag)
        held = asked.endpoint.authorizer._tokens
        registry.tokens.stale = 1
        ended = registry.tokens.token("ann", ["repository:team/busybox:pull"], "GET", False)["token"]
        held.update({scopes: (ended, until) for scopes, (_token, until) in held.items()})
        del registry.tokens.asked[:]
        with asked.blob(name.repository, manifest.layers[0]["digest"]) as response:
            assert response.status == 200
        assert len(registry.tokens.asked) == 1
        assert 401 in [status for _how, path, status in registry.requests() if "/blobs/" in path]


def test_a_certificate_of_nobody(tmp_path, store, tokens, layout):
    tokens.put(layout, "busybox:latest", "public/busybox:1")
    with pytest.raises(http.Unreachable, match=f"the certificate of {tokens.host} is not trusted"):
        transfer.pull(store, f"{tokens.host}/public/busybox:1")
    assert transfer.pull(store, f"{tokens.host}/public/busybox:1", insecure=True)
    shutil.copytree(tokens.certificates, tmp_path / ".config" / "containers" / "certs.d")
    assert transfer.pull(store, f"{tokens.host}/public/busybox:1")


@pytest.mark.parametrize("options", [
    {"format": "oci"}, {"format": "v2s2"}, {"format": "oci", "dest_compress_format": "zstd"},
    {"format": "v2s2", "dest_decompress": True}, {"format": "oci", "dest_compress_level": "9"},
])  # fmt: skip
def test_what_skopeo_pushes(store, opened, layout, options):
    name = "skopeo/" + "-".join(str(value).lower() for value in options.values())
    digest = opened.put(layout, "busybox:latest", f"{name}:1", **options)
    assert_same(store, pull(store, opened, f"{name}:1"), digest)


def test_an_index_that_skopeo_pushes(tmp_path, store, opened):
    folder = tmp_path / "many"
    for platform in ("linux/amd64", "linux/arm64", "linux/s390x"):
        images.oci(folder, [images.layer(images.member("platform", platform))], name=platform, platform=platform)
    index = json.loads((folder / "index.json").read_text())
    for entry in index["manifests"]:
        del entry["annotations"]
    content = json.dumps({**index, "mediaType": manifests.OCI_INDEX}).encode()
    (folder / "blobs" / "sha256" / registries.digest(content)[7:]).write_bytes(content)
    top = {"mediaType": manifests.OCI_INDEX, "digest": registries.digest(content), "size": len(content)}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    command = ["skopeo", "copy", "-q", "--all", "--dest-tls-verify=false", f"oci:{folder}"]
    subprocess.run([*command, f"docker://{opened.host}/many:1"], check=True, timeout=60)
    for platform in ("linux/s390x", "linux/arm64", "linux/amd64"):
        image = pull(store, opened, "many:1", platform=platform)
        assert image.platform.startswith(platform)
        assert (Path(store.layer(image.layers[0]["diff_id"])) / "platform").read_text() == platform
    assert transfer.inspect(f"{opened.host}/many:1") == json.loads(content)
    assert transfer.inspect(f"{opened.host}/many:1", "linux/arm64")["config"]
    by_digest = pull(store, opened, f"many@{top['digest']}", platform="linux/arm64")
    assert by_digest.name == f"{opened.host}/many@{top['digest']}"


def test_what_podman_pushes(store, opened, layout, podman):
    podman.run("pull", "-q", f"oci:{layout}:busybox:latest", store="images")
    identifier = podman.run("images", "-q", store="images").split()[0]
    podman.run("push", "-q", "--tls-verify=false", identifier, f"{opened.host}/podman/busybox:1", store="images")
    image = pull(store, opened, "podman/busybox:1")
    assert (Path(store.layer(image.layers[0]["diff_id"])) / "bin" / "busybox").exists()


def test_swapped_blob_of_the_same_size_on_a_registrys_disk(tmp_path, store, layout):
    """Which udocker 1.3.17 accepts."""
    with Registry(tmp_path) as registry:
        registry.put(layout, "busybox:latest", "team/busybox:1")
        document = transfer.inspect(f"{registry.host}/team/busybox:1")
        layer = document["layers"][1]
        planted = images.compress(images.layer(images.member("planted", "!")))
        registry.blob(layer["digest"]).write_bytes(planted[: layer["size"]].ljust(layer["size"], b"\0"))
        with pytest.raises(Error, match=layer["digest"]):
            pull(store, registry, "team/busybox:1")
    assert store.images() == []
    assert not [name for _folder, _folders, names in os.walk(store.root) for name in names if name == "planted"]


# Push


@pytest.mark.parametrize("tls, kind", KINDS)
def test_push_to_each_kind_of_registry(tmp_path, store, opened, layout, tls, kind):
    opened.put(layout, "busybox:latest", "team/busybox:1")
    image = pull(store, opened, "team/busybox:1")
    with Registry(tmp_path, tls=tls, auth=kind) as registry:
        states = {}
        digest = transfer.push(
            store, image.name, f"{registry.host}/ours/app:2", **access(registry),
            progress=lambda event, **facts: states.setdefault(facts["digest"], []).append(facts["state"]),
        )  # fmt: skip
        assert digest == image.manifest
        assert len(states) == len(image.layers) + 1
        assert all(each[0] == "waiting" and each[-1] == "done" for each in states.values())
        copied = tmp_path / "copied"
        arguments = ("copy", f"docker://{registry.host}/ours/app:2", f"oci:{copied}:app")
        assert registry.skopeo(*arguments, side="src") == digest
        for path in (copied / "blobs" / "sha256").iterdir():
            assert path.read_bytes() == Path(store.blob(f"sha256:{path.name}")).read_bytes()
        # Again: nothing is sent.
        before = len(registry.requests())
        transfer.push(store, image.name, f"{registry.host}/ours/app:2", **access(registry))
        assert not [how for how, _path, _status in registry.requests()[before:] if how in ("POST", "PATCH")]


def test_who_may_not_push(tmp_path, store, opened, tokens, layout):
    opened.put(layout, "busybox:latest", "team/busybox:1")
    image = pull(store, opened, "team/busybox:1")
    for user in (BOB, None):
        with pytest.raises(auth.Denied, match="bob|login|denied"):
            transfer.push(store, image.name, f"{tokens.host}/theirs/app:1", **access(tokens, user))
    with pytest.raises(NotFound):
        pull(store, tokens, "theirs/app:1")


def test_what_is_in_another_repository_is_mounted(tmp_path, store, tokens, layout):
    tokens.put(layout, "busybox:latest", "team/first:1")
    image = pull(store, tokens, "team/first:1")
    before = len(tokens.requests())
    transfer.push(store, image.name, f"{tokens.host}/team/second:1", **access(tokens))
    asked = tokens.requests()[before:]
    assert not [path for how, path, _status in asked if how == "PATCH"]
    assert [status for how, path, status in asked if how == "POST" and "mount=" in path] == [201] * (
        len(image.layers) + 1
    )
    assert_same(store, pull(store, tokens, "team/second:1"), image.manifest)


def test_an_upload_that_breaks_is_gone_on_with(tmp_path, store, opened, layout):
    opened.put(layout, "busybox:latest", "team/busybox:1")
    image = pull(store, opened, "team/busybox:1")
    with Registry(tmp_path) as registry, faults.Relay(registry.port, count=1 << 20, breaks=2) as relay:
        digest = transfer.push(store, image.name, f"{relay.host}/team/app:1", parallel=1)
        assert relay.broken == 2
        assert [path for how, path, _status in registry.requests() if how == "GET" and "/uploads/" in path]
        assert_same(store, pull(store, registry, "team/app:1"), digest)


def test_an_upload_that_the_registry_gives_up_begins_again(tmp_path, store, opened, layout, monkeypatch):
    """As it does when more of what broke arrives after it told how far it was."""
    opened.put(layout, "busybox:latest", "team/busybox:1")
    image = pull(store, opened, "team/busybox:1")

    def sent(self, repository, _location, _where):
        location = self.start_upload(repository, image.manifest)
        with self.endpoint.request("DELETE", location, client.push_scope(repository)) as response:
            assert response.status == 204
        return 0, location

    monkeypatch.setattr(client.Registry, "sent", sent)
    with Registry(tmp_path) as registry, faults.Relay(registry.port, count=1 << 20, breaks=1) as relay:
        digest = transfer.push(store, image.name, f"{relay.host}/team/app:1", parallel=1)
        assert ("PATCH", 404) in [(how, status) for how, _path, status in registry.requests()]
        assert_same(store, pull(store, registry, "team/app:1"), digest)


def test_what_is_missing_cannot_be_pushed(store, opened, layout):
    opened.put(layout, "busybox:latest", "team/busybox:1")
    image = pull(store, opened, "team/busybox:1")
    os.unlink(store.blob(image.layers[0]["digest"]))
    with pytest.raises(NotFound, match="is not in the store: pull the image again"):
        transfer.push(store, image.name, f"{opened.host}/team/other:1")
    with pytest.raises(NotFound, match="no image"):
        transfer.push(store, f"{opened.host}/nothing:1")


def test_a_blob_that_is_damaged_is_refused_by_the_registry(tmp_path, store, opened, layout):
    opened.put(layout, "busybox:latest", "team/busybox:1")
    image = pull(store, opened, "team/busybox:1")
    path = Path(store.blob(image.layers[1]["digest"]))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with Registry(tmp_path) as registry:
        with pytest.raises(Error, match="digest"):
            transfer.push(store, image.name, f"{registry.host}/damaged/app:1")
        with pytest.raises(NotFound):
            pull(store, registry, "damaged/app:1")


def test_podman_runs_what_we_push(store, opened, layout, podman):
    opened.put(layout, "busybox:latest", "team/busybox:1")
    image = pull(store, opened, "team/busybox:1")
    name = f"{opened.host}/ours/for-podman:1"
    transfer.push(store, image.name, name)
    podman.run("pull", "-q", "--tls-verify=false", name, store="images")
    script = "cat /last; test -e /srv || echo gone; cat /opaque/above; ls /opaque"
    said = podman.run("run", "--rm", "--cgroups=disabled", "--network=none", "--pull=never", name, "sh", "-c", script)
    assert said == "2gone\n2above\n"


# As a user types it


@pytest.mark.parametrize("subids, deny", [(True, False), (False, False), (False, True)])
def test_a_user_logs_in_pulls_runs_and_pushes(tmp_path, layout, subids, deny):
    """With further ids, with its own alone, and where namespaces are denied."""
    with Registry(tmp_path, tls=True, auth="token") as registry, Person("puller", subids=subids) as person:
        digest = registry.put(layout, "busybox:latest", "team/busybox:1")
        program = person.give(udocker_program.program())
        program.chmod(0o755)
        certificate = person.give(registry.authority.ca)
        name = f"{registry.host}/team/busybox:1"

        def udocker(*arguments, status=0, **more):
            done = person.run([program, *arguments], deny=deny, env={"SSL_CERT_FILE": str(certificate)}, **more)
            assert done.returncode == status, done.stderr
            assert USERS["ann"] not in done.stdout + done.stderr
            return done.stdout

        login = ("login", "--username=ann", "--password-stdin", f"--registry={registry.host}")
        udocker("pull", name, status=1)
        udocker(*login, input="of-secrets\n", status=1)
        udocker(*login, input=USERS["ann"] + "\n")
        udocker("pull", name)
        assert name.rpartition(":")[0] in udocker("images")
        if not deny:
            assert udocker("run", "--rm", name, "cat", "/last") == "2"
        assert udocker("search", "--list-tags", name).split() == ["1"]
        other = f"{registry.host}/team/other:2"
        udocker("tag", name, other)
        assert digest in udocker("push", other)
        assert json.loads(udocker("manifest", "inspect", other))["layers"]
        assert registry.skopeo("copy", f"docker://{other}", f"oci:{tmp_path}/copied:x", side="src") == digest
        udocker("logout", f"--registry={registry.host}")
        udocker("pull", f"{registry.host}/team/busybox:2", status=1)
        kept = list(person.home.rglob("keystore"))
        assert kept and not [path for path in kept if path.stat().st_mode & 0o077]


# Login


def test_login_and_logout(tmp_path, store, tokens, layout):
    digest = tokens.put(layout, "busybox:latest", "team/private:1")
    credentials = auth.Credentials(store.path("keystore"))

    def http_client():
        return http.Client(certificates=[tokens.certificates])

    with pytest.raises(auth.Denied) as error:
        client.login(tokens.host, "ann", "of-secrets", credentials, http_client())
    assert "of-secrets" not in str(error.value)
    assert not os.path.exists(store.path("keystore"))
    kept, asked = client.login(tokens.host, *ANN, credentials, http_client())
    assert (kept, asked) == (store.path("keystore"), True)
    # The registry gave an identity token: the password is nowhere.
    assert "identitytoken" in Path(kept).read_text()
    assert credentials.find(tokens.host).password == ""
    del tokens.tokens.asked[:]
    image = transfer.pull(store, f"{tokens.host}/team/private:1", certificates=[tokens.certificates])
    assert_same(store, image, digest)
    assert tokens.tokens.asked == [("ann", ["repository:team/private:pull"], "POST")]
    assert credentials.forget(tokens.host) == 1
    with pytest.raises(auth.Denied):
        transfer.pull(Store(tmp_path / "other"), f"{tokens.host}/team/private:1", certificates=[tokens.certificates])


def test_login_where_passwords_are_what_there_is(tmp_path, store):
    credentials = auth.Credentials(store.path("keystore"))
    with Registry(tmp_path, auth="basic") as registry:
        with pytest.raises(auth.Denied):
            client.login(registry.host, "bob", "wrong", credentials)
        assert client.login(registry.host, *BOB, credentials) == (store.path("keystore"), True)
        assert credentials.find(registry.host).password == USERS["bob"]
    with Registry(tmp_path) as registry:
        assert client.login(registry.host, *BOB, credentials)[1] is False


def test_dockers_and_podmans_files_of_credentials(tmp_path, store, layout, monkeypatch):
    """As skopeo writes them."""
    with Registry(tmp_path, auth="basic") as registry:
        digest = registry.put(layout, "busybox:latest", "team/private:1")
        for path in (tmp_path / ".docker" / "config.json", tmp_path / "run" / "containers" / "auth.json"):
            path.parent.mkdir(parents=True)
            command = ["skopeo", "login", "--tls-verify=false", "-u", "bob", "--password-stdin", f"--authfile={path}"]
            subprocess.run([*command, registry.host], input=USERS["bob"], text=True, check=True, capture_output=True)
            if path.name == "auth.json":
                monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
            assert_same(store, transfer.pull(store, f"{registry.host}/team/private:1"), digest)
            path.unlink()
        with pytest.raises(auth.Denied):
            transfer.pull(Store(tmp_path / "other"), f"{registry.host}/team/private:1")


# Lists


def test_tags_and_catalogue_page_by_page(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "PAGE", 7)
    config = b"{}"
    document = {
        "schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST,
        "config": {"mediaType": manifests.OCI_CONFIG, "digest": registries.digest(config), "size": len(config)},
        "layers": [],
    }  # fmt: skip
    with Registry(tmp_path) as registry:
        wanted = sorted(f"v{number}" for number in range(20))
        for tag in wanted:
            registries.put_raw(registry, "team/app", [config], document, manifests.OCI_MANIFEST, tag)
        for number in range(15):
            registries.put_raw(registry, f"many/app-{number}", [config], document, manifests.OCI_MANIFEST)
        assert sorted(transfer.tags(f"{registry.host}/team/app")) == wanted
        found = [each["name"] for each in transfer.search(f"{registry.host}/many/")]
        assert sorted(found) == sorted(f"{registry.host}/many/app-{number}" for number in range(15))
        assert len([path for _how, path, _status in registry.requests() if "_catalog" in path]) > 2
        with pytest.raises(NotFound, match="team/none"):
            list(transfer.tags(f"{registry.host}/team/none"))


# Proxies


@pytest.fixture(scope="module")
def socks():
    with registries.ssh_socks() as port:
        yield port


@pytest.fixture(scope="module")
def named(tokens):
    """The registry by names that only a proxy may know."""
    for name in ("localhost", "registry.test"):
        tokens.authority.trust(tokens.certificates, f"{name}:{tokens.port}")
    return tokens


def fetch(named, name, **more):
    made = http.Client(certificates=[named.certificates], pause=0.01, **more)
    with made.request("GET", f"https://{name}:{named.port}/v2/") as response:
        status = response.status
    made.close()
    return status


@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
def test_socks_of_openssh(named, socks, scheme):
    proxy = f"{scheme}://127.0.0.1:{socks}"
    assert fetch(named, "127.0.0.1", proxy=proxy) == 401
    assert fetch(named, "localhost", proxy=proxy) == 401
    with pytest.raises(Error, match="the SOCKS proxy|Name or service|not known|name resolution"):
        fetch(named, "registry.test", proxy=proxy)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_socks_with_a_password(named, scheme):
    with registries.microsocks("joe", "p:w @1") as port:
        assert fetch(named, "localhost", proxy=f"{scheme}://joe:p%3Aw%20%401@127.0.0.1:{port}") == 401
        with pytest.raises(Error, match="wants another user and password"):
            fetch(named, "localhost", proxy=f"{scheme}://joe:of-secrets@127.0.0.1:{port}")
        with pytest.raises(Error, match="wants a user and a password"):
            fetch(named, "localhost", proxy=f"{scheme}://127.0.0.1:{port}")


def test_an_http_proxy_of_the_environment_with_a_password(store, named, layout, monkeypatch):
    """The registry's name is known to the proxy alone: all goes through it, also what asks for tokens."""
    digest = named.put(layout, "busybox:latest", "public/busybox:1")
    with registries.squid("joe", "p:w @1", hosts=("registry.test",)) as port:
        monkeypatch.setenv("https_proxy", f"http://joe:p%3Aw%20%401@127.0.0.1:{port}")
        name = f"registry.test:{named.port}/public/busybox:1"
        image = transfer.pull(store, name, certificates=[named.certificates])
        assert_same(store, image, digest)
        monkeypatch.setenv("no_proxy", "registry.test")
        with pytest.raises(http.Unreachable, match="cannot connect to registry.test"):
            fetch(named, "registry.test", attempts=1)
        monkeypatch.delenv("no_proxy")
        monkeypatch.setenv("https_proxy", f"http://joe:of-secrets@127.0.0.1:{port}")
        with pytest.raises(http.Unreachable, match=f"http://127.0.0.1:{port} wants another user and password"):
            fetch(named, "registry.test", attempts=1)


def test_plain_http_through_an_http_proxy(store, opened, layout):
    opened.put(layout, "busybox:latest", "team/busybox:1")
    with registries.squid("joe", "pw") as port:
        assert pull(store, opened, "team/busybox:1", proxy=f"http://joe:pw@127.0.0.1:{port}")
        with pytest.raises(Error):
            pull(store, opened, "team/busybox:2", proxy=f"http://joe:wrong@127.0.0.1:{port}")


def test_no_proxy_answers():
    port = registries.free_port()
    with pytest.raises(http.Unreachable, match=f"through the proxy socks5://127.0.0.1:{port}: connection refused"):
        http.Client(proxy=f"socks5://joe:of-secrets@127.0.0.1:{port}").request("GET", "https://registry.test/")
