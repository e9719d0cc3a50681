# SPDX-License-Identifier: Apache-2.0
"""Role cvmfs: what it writes for the client and for CMS, and what it refuses before a host is touched."""

import shlex
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

import role_values
from ansible_runtime import PROJECT, Ansible

KEY = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAK\n-----END PUBLIC KEY-----\n"
GIVEN = {
    "cvmfs_repositories": ["cms.cern.ch", "sft.example.org", "own.example.net"],
    "cvmfs_proxies": ["http://squid-1:3128", "http://squid-2:3128"],
    "cvmfs_origins": {
        "example.org": {"servers": ["http://front-1:8000/cvmfs/@fqrn@", "http://front-2/@fqrn@"], "keys": [KEY, KEY]},
        "own.example.net": {"servers": ["http://front-1/cvmfs/own"], "keys": [KEY]},
    },
    "cvmfs_settings": {"CVMFS_TIMEOUT": 3, "CVMFS_STRICT_MOUNT": True},
}  # fmt: skip
SITE = {
    "cvmfs_site": "T3_IT_Dodas", "cvmfs_site_xrootd": "xrootd.example.org",
    "cvmfs_site_stageout": {"site": "T1_IT_CNAF", "protocol": "srmv2", "command": "gfal2", "node": "T1_IT_CNAF_Disk"},
    "cvmfs_site_frontier": ["http://frontier.example.org:8000/FrontierInt"],
}  # fmt: skip
# What a host is like that the role can be used on.
HOST = {
    "cvmfs_found": {"host": {"hard_limits": [], "container": False, "systemd": True, "missing_programs": []}},
    "cvmfs_device": {"stat": {"exists": True, "ischr": True, "roth": True, "woth": True, "rgrp": True, "wgrp": True}},
}


def device(**about):
    return {"cvmfs_device": {"stat": {**HOST["cvmfs_device"]["stat"], **about}}}


def found(**about):
    return {"cvmfs_found": {"host": {**HOST["cvmfs_found"]["host"], **about}}}


REFUSED = [
    ({"cvmfs_repositories": []}, "cvmfs_repositories is empty"),
    ({"cvmfs_repositories": ["cms"]}, "cvmfs_repositories: cms is no full name"),
    ({"cvmfs_repositories": ["cms.cern.ch", "cms.cern.ch"]}, "cvmfs_repositories names a repository twice"),
    ({"cvmfs_repositories": ["sft.example.com"]}, "no key for sft.example.com"),
    ({"cvmfs_known_domains": []}, "no key for cms.cern.ch"),
    ({"cvmfs_proxies": []}, "cvmfs_proxies is empty"),
    ({"cvmfs_proxies": [""]}, "cvmfs_proxies: ''"),
    ({"cvmfs_proxies": ["DIRECT"]}, "cvmfs_proxies: DIRECT"),
    ({"cvmfs_proxies": ["squid-1:3128"]}, "cvmfs_proxies: squid-1:3128"),
    ({"cvmfs_proxies": ["http://a:1|http://b:1"]}, "cvmfs_proxies: http://a:1|http://b:1"),
    ({"cvmfs_quota_mb": 999}, "cvmfs_quota_mb is 999"),
    ({"cvmfs_nfiles": 10}, "cvmfs_nfiles is 10"),
    (found(hard_limits=["nofile=20000:20000", "nproc=32000:32000"]), "can open 20000 files at most"),
    (device(woth=False), "/dev/fuse is not readable and writable for user cvmfs: set cvmfs_open_fuse"),
    ({"cvmfs_device": {"stat": {"exists": False}}}, "/dev/fuse is missing"),
    ({"cvmfs_mounts": "autofs", **found(container=True)}, "cvmfs_mounts is autofs"),
    ({"cvmfs_settings": {"CVMFS_QUOTA_LIMIT": 5}}, "cvmfs_settings: CVMFS_QUOTA_LIMIT has a variable of its own"),
    ({"cvmfs_settings": {"x; rm": 5}}, "cvmfs_settings: x; rm is no parameter"),
    ({"cvmfs_settings": {"CVMFS_A": "$(reboot)"}}, "cvmfs_settings: CVMFS_A"),
    ({"cvmfs_probe_files": {"a.b": "c"}}, "cvmfs_probe_files: a.b"),
    ({"cvmfs_source": "archive", "cvmfs_archive_checksum": "sha256:" + 64 * "0"}, "cvmfs_archive is empty"),
    ({"cvmfs_source": "archive", "cvmfs_archive": "/x.tar.gz"}, "cvmfs_archive_checksum is not like"),
    ({"cvmfs_origins": {"example.org": {"keys": [KEY]}}}, "cvmfs_origins[example.org] has no servers"),
    ({"cvmfs_origins": {"example.org": {"servers": ["http://a/@fqrn@"]}}}, "cvmfs_origins[example.org] has no keys"),
    ({"cvmfs_origins": {"example.org": {"servers": ["http://a/b"], "keys": [KEY]}}}, "must contain @fqrn@"),
    ({"cvmfs_origins": {"example.org": {"servers": ["a/@fqrn@"], "keys": [KEY]}}}, "a/@fqrn@ is no URL"),
    ({"cvmfs_origins": {"example.org": {"servers": ["http://a/@fqrn@"], "keys": ["x"]}}}, "keys[0] is no public key"),
    ({"cvmfs_site_xrootd": "a"}, "cvmfs_site_xrootd is given, and cvmfs_site is empty"),
    ({**SITE, "cvmfs_site_xrootd": ""}, "cvmfs_site_xrootd is empty"),
    ({**SITE, "cvmfs_site": "../x"}, "cvmfs_site: ../x"),
    ({**SITE, "cvmfs_repositories": ["sft.example.org"]}, "cms.cern.ch is not among cvmfs_repositories"),
    ({**SITE, "cvmfs_site_stageout": {"site": "T1_IT_CNAF"}}, "cvmfs_site_stageout has no command"),
    ({**SITE, "cvmfs_site_fallback": {"node": "a"}}, "cvmfs_site_fallback has no prefix"),
]


FITS = [
    {"cvmfs_open_fuse": True, **device(woth=False)},
    device(woth=False, roth=False, gr_name="fuse"),
    {"cvmfs_nfiles": 16384, **found(hard_limits=["nofile=20000:20000"])},
    {"cvmfs_mounts": "autofs"},
    SITE,
]


ORIGIN = GIVEN["cvmfs_origins"]["example.org"]
FALLBACK = {"node": "T2_XX_Other", "prefix": "root://other.example.org//cms?a=1&b=2", "command": "gfal2"}
CASES = {
    "plain": {},
    "known": {**SITE, "cvmfs_repositories": ["cms.cern.ch"],
              "cvmfs_origins": {"cern.ch": ORIGIN, "cms.cern.ch": ORIGIN}},
    "direct": {"cvmfs_direct": True},
    "only direct": {"cvmfs_direct": True, "cvmfs_proxies": []},
    "site": SITE,
    "fallback": {**SITE, "cvmfs_site_fallback": FALLBACK},
}  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the role makes of each case, by its name or its place in the list."""
    ansible = Ansible(tmp_path_factory.mktemp("ansible"), ANSIBLE_ROLES_PATH="roles")
    more = {("refused", i): case for i, (case, _words) in enumerate(REFUSED)}
    more |= {("fits", i): case for i, case in enumerate(FITS)}
    made = {}
    names = ("_cvmfs_wrong", "_cvmfs_table", "_cvmfs_files", "_cvmfs_own_files", "_cvmfs_absent")
    for every, wanted in ((CASES, names), (more, names[:1])):
        given = [{**HOST, **GIVEN, **case} for case in every.values()]
        made.update(zip(every, role_values.evaluate(ansible, "cvmfs", given, *wanted), strict=True))
    return made


def files(shown):
    return {one["path"]: one["content"] for one in shown["_cvmfs_files"] + shown["_cvmfs_own_files"]}


def sourced(text):
    """The variables that a shell has from a file."""
    script = "set -a; . /dev/stdin; env -0"
    command = ["env", "-i", "/bin/sh", "-c", script]
    shown = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(line.partition("=")[::2] for line in shown.split("\0") if line)


def test_what_is_written_for_the_client(shown):
    found = files(shown["plain"])
    general = sourced(found["/etc/cvmfs/default.local"])
    assert general["CVMFS_REPOSITORIES"] == "cms.cern.ch,sft.example.org,own.example.net"
    assert general["CVMFS_HTTP_PROXY"] == "http://squid-1:3128|http://squid-2:3128"
    assert (general["CVMFS_QUOTA_LIMIT"], general["CVMFS_NFILES"]) == ("4000", "131072")
    assert (general["CVMFS_TIMEOUT"], general["CVMFS_STRICT_MOUNT"]) == ("3", "yes")
    domain = sourced(found["/etc/cvmfs/domain.d/example.org.conf"])
    assert domain["CVMFS_SERVER_URL"] == "http://front-1:8000/cvmfs/@fqrn@;http://front-2/@fqrn@"
    assert [found[f"{domain['CVMFS_KEYS_DIR']}/{number}.pub"] for number in (1, 2)] == [KEY, KEY]
    own = sourced(found["/etc/cvmfs/config.d/own.example.net.conf"])
    assert own["CVMFS_SERVER_URL"] == "http://front-1/cvmfs/own"
    assert f"{own['CVMFS_KEYS_DIR']}/1.pub" in found and f"{own['CVMFS_KEYS_DIR']}/2.pub" not in found
    assert not any("cms.cern.ch" in path or "SITECONF" in path for path in found)
    table = shown["plain"]["_cvmfs_table"].splitlines()
    assert table[0] == "cms.cern.ch /cvmfs/cms.cern.ch cvmfs defaults,_netdev,nodev 0 0" and len(table) == 3


def test_what_packages_bring_too_is_a_local_file(shown):
    found = files(shown["known"])
    assert {"/etc/cvmfs/domain.d/cern.ch.local", "/etc/cvmfs/config.d/cms.cern.ch.local"} <= set(found)
    one = sourced(found["/etc/cvmfs/config.d/cms.cern.ch.local"])
    assert one["CMS_LOCAL_SITE"] == "/etc/cvmfs/SITECONF" and one["CVMFS_SERVER_URL"]
    assert "export CMS_LOCAL_SITE=" in found["/etc/cvmfs/config.d/cms.cern.ch.local"]


def test_direct_is_the_last_way_and_only_when_asked_for(shown):
    found = [files(shown[one])["/etc/cvmfs/default.local"] for one in ("direct", "only direct")]
    proxies = [sourced(one)["CVMFS_HTTP_PROXY"] for one in found]
    assert proxies == ["http://squid-1:3128|http://squid-2:3128;DIRECT", "DIRECT"]


def test_the_site_configuration_of_cms(shown):
    one, other = (files(shown[name]) for name in ("site", "fallback"))
    local = sourced(one["/etc/cvmfs/config.d/cms.cern.ch.local"])
    assert local["CMS_LOCAL_SITE"] == "/etc/cvmfs/SITECONF" and "CVMFS_SERVER_URL" not in local
    site = ElementTree.fromstring(one["/etc/cvmfs/SITECONF/JobConfig/site-local-config.xml"].encode()).find("site")
    assert site.get("name") == "T3_IT_Dodas"
    stageout = {child.tag: child.get("value") or child.get("url") for child in site.find("local-stage-out")}
    assert stageout == {
        "command": "gfal2", "phedex-node": "T1_IT_CNAF_Disk",
        "catalog": "trivialcatalog_file:/cvmfs/cms.cern.ch/SITECONF/T1_IT_CNAF/PhEDEx/storage.xml?protocol=srmv2",
    }  # fmt: skip
    assert site.find("fallback-stage-out") is None
    frontier = site.find("calib-data/frontier-connect")
    assert [child.get("url") for child in frontier.findall("proxy")] == GIVEN["cvmfs_proxies"]
    assert [child.get("url") for child in frontier.findall("server")] == SITE["cvmfs_site_frontier"]
    storage = ElementTree.fromstring(one["/etc/cvmfs/SITECONF/PhEDEx/storage.xml"].encode())
    assert storage.find("lfn-to-pfn").get("result") == "root://xrootd.example.org//store/$1"
    site = ElementTree.fromstring(other["/etc/cvmfs/SITECONF/JobConfig/site-local-config.xml"].encode()).find("site")
    assert site.find("fallback-stage-out/lfn-prefix").get("value") == FALLBACK["prefix"]


@pytest.mark.parametrize(("place", "words"), [(i, words) for i, (_case, words) in enumerate(REFUSED)])
def test_what_is_wrong_is_named(shown, place, words):
    assert words in (shown["refused", place]["_cvmfs_wrong"] or "")


def test_what_fits_is_not_refused(shown):
    wrong = {name: one["_cvmfs_wrong"] for name, one in shown.items() if "refused" not in name}
    assert len(wrong) == len(CASES) + len(FITS) and not any(wrong.values()), wrong


def test_what_is_removed_is_the_roles(shown):
    found = shown["plain"]["_cvmfs_absent"]
    assert {"/var/lib/cvmfs/shared", "/var/lib/cvmfs/cms.cern.ch", "/etc/cvmfs/default.local"} <= set(found)
    assert all(path.count("/") > 2 for path in found), "no folder of others"


def test_the_programs_can_be_run(shown):
    programs = {one["path"]: one for one in shown["plain"]["_cvmfs_own_files"] if one.get("mode") == "0755"}
    assert set(programs) == {"/usr/local/bin/dodas-cvmfs", "/usr/local/bin/dodas-cvmfs-probe"}
    source = (PROJECT / "roles/cvmfs/files/dodas_cvmfs.py").read_text()
    assert programs["/usr/local/bin/dodas-cvmfs"]["content"] == source
    assert shlex.split(programs["/usr/local/bin/dodas-cvmfs-probe"]["content"].splitlines()[-1]) == [
        "exec", "/usr/local/bin/dodas-cvmfs", "probe",
    ]  # fmt: skip
