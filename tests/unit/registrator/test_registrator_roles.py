# SPDX-License-Identifier: Apache-2.0
"""What the roles marathon, registry and registrator refuse before they touch the host."""

from role_runtime import refusals

LONG = "a-secret-of-20-chars"
MARATHON = {
    "marathon_source": "archive", "marathon_archive": "/nowhere.tar.gz", "marathon_tls_certificate": "c",
    "marathon_archive_checksum": "sha256:" + "0" * 64, "marathon_tls_key": "k", "marathon_keystore_password": LONG,
    "marathon_http_password": LONG, "marathon_zookeeper_servers": ["master-1"],
    "marathon_addresses": {"master-1": "192.0.2.1"},
}  # fmt: skip
ARCHIVE = "marathon_archive and marathon_archive_checksum (sha256:HEX) are needed for marathon_source=archive"
REGISTRY = {"registry_tls_certificate": "c", "registry_tls_key": "k", "registry_password": LONG}
WEAK = "must be no default one, and have 16 characters or more"
LENGTH = "registry_password: must be no default one, have 16 characters or more, and 72 at most"


def check(folder, role, good, *wrong):
    """The role says of `good` with each of `wrong` (name, value, the end of what it says), and nothing else."""
    said = refusals(folder, role, {f"case-{i}": {**good, name: value} for i, (name, value, _says) in enumerate(wrong)})
    for i, (name, value, says) in enumerate(wrong):
        text = (said[f"case-{i}"] or "").removeprefix(f"case-{i}: ")
        assert text == says or (says.startswith(" ") and text.endswith(says)), (name, value, text)


def test_marathon(tmp_path):
    check(
        tmp_path, "marathon", MARATHON,
        ("marathon_source", "image", "marathon_image must name an image for marathon_source=image"),
        ("marathon_archive", "", ARCHIVE),
        ("marathon_archive_checksum", "md5:0", ARCHIVE),
        ("marathon_package_key", "k", "marathon_package_repository and marathon_package_key go together"),
        ("marathon_zookeeper_servers", [], "marathon_zookeeper_servers names no host"),
        ("marathon_zookeeper_servers", ["nobody"],
         "marathon_addresses has none for nobody of marathon_zookeeper_servers"),
        ("marathon_http_user", "a:b", "marathon_http_user must be a name without colon"),
        ("marathon_http_password", "changeme", f"marathon_http_password: {WEAK}"),
        ("marathon_keystore_password", "changeit", f"marathon_keystore_password: {WEAK}"),
        ("marathon_mesos_principal", "ann", "marathon_mesos_principal and marathon_mesos_secret go together"),
        ("marathon_settings", {"zk": "x"}, "marathon_settings has zk, which the role sets itself"),
        ("marathon_settings", {"Max Apps": 1}, "marathon_settings has Max Apps, which is no flag of Marathon"),
    )  # fmt: skip


def test_registry(tmp_path):
    check(
        tmp_path, "registry", REGISTRY,
        ("registry_password", "changeme", LENGTH),
        ("registry_password", "x" * 73, LENGTH),
        ("registry_password", f"{LONG}\nroot:x", "registry_user and registry_password must be one line each"),
        ("registry_user", "a:b", "registry_user must be a name without colon"),
        ("registry_min_free_disk_mb", 10**9,
         " MB are free below /var/lib, registry_min_free_disk_mb asks for 1000000000"),
    )  # fmt: skip


def test_registrator(tmp_path):
    url = "https://ann:pw@master-1:8443"
    check(
        tmp_path, "registrator", {"registrator_marathon_urls": ["https://master-1.node.consul:8443"]},
        ("registrator_marathon_urls", [], "registrator_marathon_urls names no Marathon"),
        ("registrator_marathon_urls", [url],
         f"registrator_marathon_urls has {url}, which is not as https://master-1.node.consul:8443"),
        ("registrator_marathon_user", "ann",
         "registrator_marathon_user and registrator_marathon_password go together"),
        ("registrator_interval", 1, "registrator_interval must be 5 seconds or more"),
    )  # fmt: skip
