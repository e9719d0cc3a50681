# SPDX-License-Identifier: Apache-2.0
"""The doctor: what it looks at on a host, how it judges that, and how it reaches hosts that are slow, away or late."""

import ast
import datetime as dt
import json
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, csr, files, proxies
from dodas import doctor, examine, login, places, services

DAY = 86400
# A stand-in for ssh: the host is this machine, seen by the name (the address) that it is asked for.
SSH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift 2; done
host=${1#*@}; shift
case $host in
    192.0.2.2) echo "ssh: connect to host 192.0.2.2 port 22: No route to host" >&2; exit 255;;
    192.0.2.3) exec sleep 600;;
    192.0.2.4) export PYTHONPATH=$CLOCK_AHEAD;;
    192.0.2.5) echo "python3: not found" >&2; exit 127;;
esac
exec sh -c "$*"
"""
CLOCK = "import time\nreal = time.time\ntime.time = lambda: real() + 12\n"


@pytest.fixture
def hosts(site, monkeypatch, tmp_path):
    """Makes the deployment have hosts of these addresses; returns their checks by host."""
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CLOCK_AHEAD", str(tmp_path))
    before = {name: (site.folder / name).read_text() for name in ("hosts.json", "inputs.json")}

    def look(*addresses, timeout=20):
        workers = {f"worker-{i}": {"address": address} for i, address in enumerate(addresses, 1)}
        (site.folder / "hosts.json").write_text(json.dumps({"front-1": {"address": site.address}, **workers}))
        (site.folder / "inputs.json").write_text(json.dumps({"workers": len(addresses)}))
        found = {}
        for one in doctor.look(site.deployment, timeout):
            found.setdefault(one.host, {})[one.name] = one
        return found

    yield look
    for name, text in before.items():
        (site.folder / name).write_text(text)


# reaching hosts


def test_clocks_are_compared_to_the_millisecond(hosts):
    found = hosts("192.0.2.1", "192.0.2.4")
    good, bad = found["worker-1"]["clock"], found["worker-2"]["clock"]
    assert good.ok and abs(good.value) < 0.1
    assert bad.ok is False and bad.value == pytest.approx(12, abs=0.1)
    assert bad.found == "12 s ahead" and bad.advice.startswith("./dodas ssh worker-2 timedatectl set-ntp true")


def test_hosts_that_are_away_keep_nobody_waiting(hosts):
    start = time.monotonic()
    found = hosts("192.0.2.2", "192.0.2.3", "192.0.2.5", "192.0.2.1", timeout=3)
    assert time.monotonic() - start < 15
    said = {host: checks["connection"].found for host, checks in found.items() if "connection" in checks}
    assert said == {
        "worker-1": "ssh: connect to host 192.0.2.2 port 22: No route to host",
        "worker-2": "no answer in 3 s",
        "worker-3": "python3: not found",
    }
    assert "clock" in found["worker-4"]


def test_host_that_has_no_address_yet(site):
    checks = {one.host: one for one in doctor.look(site.deployment) if one.name == "connection"}
    assert "has no host 'worker-2'" in checks["worker-2"].found


def test_script_needs_no_more_than_old_pythons_have():
    tree = ast.parse(Path(examine.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported <= sys.stdlib_module_names and not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]


# the cluster


def cluster(site):
    return {one.name: one for one in doctor.look(site.deployment) if one.host is None}


def test_nobody_logged_in_is_no_illness(site):
    found = cluster(site)
    assert found["login"].ok is None and found["login"].advice == "./dodas login"
    assert found["issuer"].ok and "key" in found["issuer"].found
    assert found["credentials"].ok and "CA 36" in found["credentials"].found


def test_login_is_verified(logged_in):
    one = cluster(logged_in)["login"]
    assert one.ok and one.found.startswith("alice, ") and "renews itself" in one.found and 500 < one.value <= 600


def test_login_that_is_for_another_service(logged_in):
    text = login.held(logged_in.deployment)["access_token"]
    head, body, signature = text.split(".")
    logged_in.edit_login(access_token=f"{head}.{body}.{signature[:-8]}AAAAAAAA")
    one = cluster(logged_in)["login"]
    assert one.ok is False and "signature" in one.found and one.advice == "./dodas login"


def test_login_that_has_ended(logged_in):
    logged_in.edit_login(expires=time.time() - 1, refresh_token=None)
    one = cluster(logged_in)["login"]
    assert (one.ok, one.found) == (False, "has ended")


def test_services_that_are_away(logged_in):
    logged_in.identity.stop()
    logged_in.credentials.stop()
    try:
        found = cluster(logged_in)
        assert found["issuer"].ok is False and found["issuer"].advice == "./dodas logs identity"
        assert found["credentials"].ok is False
        assert found["credentials"].advice == "./dodas logs credentials --host front-1"
        assert found["login"].ok is None
    finally:
        logged_in.identity.restart()
        logged_in.credentials.start()
    assert all(one.ok for one in cluster(logged_in).values())


def test_service_that_says_what_is_the_matter(site):
    rule = site.credentials.settings["rules"][0]
    rule["lifetime"] = 400 * DAY  # longer than the CA's
    site.credentials.restart()
    try:
        one = cluster(site)["credentials"]
    finally:
        rule["lifetime"] = 3600
        site.credentials.restart()
    assert one.ok is False and one.found == "front-1: the CA ends before the certificates that it would sign"


def test_one_of_two_instances_answers(site):
    dead = "127.255.255.254"
    assert services._one_that_answers([dead, site.address], services.CREDENTIALS_PORT) == site.address
    assert services._one_that_answers([dead], services.CREDENTIALS_PORT) == dead


def test_sick_cluster_ends_with_1_and_says_what_to_do(site):
    done = site.run("doctor", status=1)  # it has no worker
    assert "dodas: worker-1: connection: deployment test has no host" in done.stderr
    assert "\n  ./dodas up --name test  # mends" in done.stderr and "unreachable" in done.stdout
    found = site.json("doctor", status=1)
    assert found["ok"] is False
    assert {one["host"] for one in found["checks"] if one["ok"] is False} >= {"worker-1", "worker-2"}


# what is looked at on a host


@pytest.fixture
def certificates(tmp_path):
    ca = authority.Authority.open(tmp_path / "ca", "/DC=dodas/O=test/CN=online CA")
    (tmp_path / "ca.pem").write_bytes(ca.ca_pem)
    (fingerprint,) = examine.fingerprints(tmp_path / "ca.pem")
    return ca, tmp_path / "ca/certificates", dict.fromkeys(ca.hashes, fingerprint)


def test_directory_that_is_well(certificates):
    ca, folder, known = certificates
    found = examine.directory(str(folder), known)
    assert set(found) == set(ca.hashes)
    for one in found.values():
        assert one["problems"] == [] and one["ends"] > 364 * DAY and 6 * DAY < one["list_ends"] <= 7 * DAY
    assert set(examine.directory(str(folder))) == set(found)


@pytest.mark.parametrize("suffix", ["0", "r0", "signing_policy"])
def test_file_that_is_missing(certificates, suffix):
    ca, folder, known = certificates
    (folder / f"{ca.hashes[0]}.{suffix}").unlink()
    assert examine.directory(str(folder), known)[ca.hashes[0]]["problems"] == [f"{ca.hashes[0]}.{suffix} is missing"]


def test_all_files_missing_are_missed_too(certificates):
    _ca, folder, known = certificates
    for path in folder.iterdir():
        path.unlink()
    assert all(len(one["problems"]) == 3 for one in examine.directory(str(folder), known).values())
    assert examine.directory(str(folder)) == {}
    folder.rmdir()
    assert examine.directory(str(folder), known) is None


def test_files_of_others(certificates, tmp_path):
    ca, folder, known = certificates
    twin = authority.Authority.open(tmp_path / "twin", ca.subject)  # the same name and another key
    other = authority.Authority.open(tmp_path / "other", "/DC=dodas/O=other/CN=CA")
    one, two = ca.hashes
    (folder / f"{one}.0").write_bytes(twin.ca_pem)
    (folder / f"{two}.0").write_bytes(other.ca_pem)
    (folder / f"{two}.r0").write_bytes(b"nothing")
    found = examine.directory(str(folder), known)
    assert found[one]["problems"] == [f"{one}.0 is not the certificate that the authority has now"]
    assert found[two]["problems"] == [
        f"{two}.0 is the certificate of another authority", f"{two}.r0 is no revocation list"
    ]  # fmt: skip
    (folder / f"{two}.r0").write_bytes(other.crl_pem)
    assert f"{two}.r0 is the list of another authority" in examine.directory(str(folder), known)[two]["problems"]


def test_proxy_ends_with_the_first_of_its_chain(tmp_path):
    ca = authority.Authority.open(tmp_path / "ca", "/DC=dodas/O=test/CN=CA")
    key = csr.make_key()
    eec = ca.issue_eec(key.public_key(), "/DC=dodas/O=test/CN=x", 600)
    proxy = proxies.sign(eec, key, key.public_key(), 7200)
    path = tmp_path / "proxy.pem"
    files.write(path, files.credential_pem(proxy, key, [eec]))
    assert 590 <= examine.proxy_ends(str(path)) <= 600
    path.write_text("nothing")
    assert examine.proxy_ends(str(path)) is None and examine.proxy_ends(str(tmp_path / "no")) is None


# how that is judged

APP = {"unit": "active", "health": "passing", "output": "healthy", "said": ""}
PATH = "/var/lib/dodas/worker/certificates"


def judge(pool=("worker-1",), expected=("worker",), online=None, **changes):
    """What is not well with a worker that is well but for `changes`."""
    ca = {"problems": [], "ends": 300 * DAY, "list_ends": 6 * DAY}
    answer = {"clock": 0.002, "apps": {"worker": APP}, "tls": {}, "pool": None, "pool_trusts": None,
              "proxy": {"path": "/proxy.pem", "lifetime": 43200, "ends": 40000},
              "directories": {PATH: {"0123abcd": ca}}, **changes}  # fmt: skip

    class Named:
        name = "test"

        def command(self, words):
            return f"./dodas {words}"

        def place(self, _host):
            return places.Podman()

    checks = doctor.Host(Named(), "worker-1", answer, expected).checks(pool, online)
    assert all(bool(one.advice) == (one.ok is False) for one in checks)
    return {one.name: one.found for one in checks if one.ok is False}


def test_well_is_well():
    assert judge() == {}


def ca(**changes):
    return {PATH: {"0123abcd": {"problems": [], "ends": 300 * DAY, "list_ends": 6 * DAY, **changes}}}


@pytest.mark.parametrize(
    ("changes", "sick"),
    [
        ({"clock": -61.5}, {"clock": "1 min 2 s behind"}),
        ({"apps": {}}, {"apps": "worker is not there"}),
        ({"apps": {"worker": {**APP, "unit": "inactive"}}}, {"apps": "worker is stopped"}),
        ({"apps": {"worker": {**APP, "unit": "failed"}}}, {"apps": "worker is stopped"}),
        ({"apps": {"worker": {**APP, "unit": "activating", "said": "no"}}}, {"apps": "worker does not stay up: no"}),
        ({"apps": {"worker": {**APP, "health": "critical", "output": "squid: gone"}}}, {"apps": "worker: squid: gone"}),
        ({"tls": {"a": 80 * DAY, "b": 6 * DAY}}, {"certificates": "that of b ends in 6 d"}),
        ({"tls": {"a": 80 * DAY, "b": -60}}, {"certificates": "that of b ended 1 min ago"}),
        ({"tls": {"a": None}}, {"certificates": "that of a cannot be read"}),
        ({"proxy": {"path": "/p", "lifetime": None, "ends": None}}, {"proxy": "/p is missing or unreadable"}),
        ({"proxy": {}}, {"proxy": "its proxy is missing or unreadable"}),
        ({"proxy": {"path": "/p", "lifetime": 43200, "ends": -120}}, {"proxy": "ended 2 min ago"}),
        ({"proxy": {"path": "/p", "lifetime": 43200, "ends": 200}}, {"proxy": "ends in 3 min 20 s"}),
        ({"proxy": {"path": "/p", "lifetime": 120, "ends": 29}}, {"proxy": "ends in 29 s"}),
        ({"proxy": {"path": "/p", "lifetime": 120, "ends": 61}}, {}),
        ({"directories": {PATH: None}}, {"CA directory": f"{PATH} is missing"}),
        ({"directories": {PATH: {}}}, {"CA directory": f"{PATH} is empty"}),
        ({"directories": ca(problems=["0123abcd.r0 is missing"], list_ends=None)},
         {"CA directory": f"{PATH}: 0123abcd.r0 is missing"}),
        ({"directories": ca(list_ends=-3700)}, {"CA directory": f"{PATH}: the revocation list ended 1 h 1 min ago"}),
        ({"directories": ca(ends=3600)}, {"CA directory": f"{PATH}: the CA ends in 1 h"}),
        ({"pool": ()}, {"pool": "its startd is not in the pool"}),
        ({"pool": None}, {}),
    ],
)  # fmt: skip
def test_illness_is_named(changes, sick):
    assert judge(**changes) == sick


def test_collector_that_trusts_an_older_authority():
    front = {"expected": (), "apps": {}, "pool_trusts": ["old"]}
    assert judge(online={"0123abcd": "new"}, **front) == {"pool": "the collector does not trust the online CA"}
    assert judge(online={"0123abcd": "old"}, **front) == {} == judge(online=None, **front)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (-5, "0 s"), (59, "59 s"), (60, "1 min"), (95, "1 min 35 s"), (3599, "59 min"), (7260, "2 h 1 min"),
     (12 * 3600 + 60, "12 h"), (25 * 3600, "1 d 1 h"), (30 * DAY + 3600, "30 d")],
)  # fmt: skip
def test_span(seconds, text):
    assert doctor.span(seconds) == text


def test_times_of_openssl():
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    assert 3598 <= examine._seconds(f"notAfter={moment:%b %d %H:%M:%S %Y} GMT") <= 3600
    assert examine._seconds("") is None and examine._seconds("notAfter=never") is None
