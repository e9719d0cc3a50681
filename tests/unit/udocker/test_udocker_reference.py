# SPDX-License-Identifier: Apache-2.0
"""Names of images: what they stand for, and why some are none."""

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.reference import DEFAULT_REGISTRY as HUB
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.reference import ENDPOINT, INDEX, Reference, parse

# The machine may be busy.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DIGEST = "sha256:" + "0a" * 32
LONG = "sha512:" + "0a" * 64


@pytest.mark.parametrize(
    "text, registry, repository, tag, digest",
    [
        ("ubuntu", HUB, "library/ubuntu", "latest", None),
        ("ubuntu:22.04", HUB, "library/ubuntu", "22.04", None),
        ("user/x", HUB, "user/x", "latest", None),
        ("library/ubuntu", HUB, "library/ubuntu", "latest", None),
        (f"{HUB}/ubuntu", HUB, "library/ubuntu", "latest", None),
        (f"{INDEX}/library/ubuntu", HUB, "library/ubuntu", "latest", None),
        ("docker://ubuntu", HUB, "library/ubuntu", "latest", None),
        (f"ubuntu@{DIGEST}", HUB, "library/ubuntu", None, DIGEST),
        (f"ubuntu@{LONG}", HUB, "library/ubuntu", None, LONG),
        ("localhost/x", "localhost", "x", "latest", None),
        ("localhost:5000/x:1", "localhost:5000", "x", "1", None),
        ("[::1]:5000/x", "[::1]:5000", "x", "latest", None),
        ("[::1]/ns/x:1", "[::1]", "ns/x", "1", None),
        ("127.0.0.1/x", "127.0.0.1", "x", "latest", None),
        ("registry.test/a/b/c/d:v1.2-x_y", "registry.test", "a/b/c/d", "v1.2-x_y", None),
        ("Registry.Test:443/a", "registry.test:443", "a", "latest", None),
        ("a.b/c__d/e--f.g_h", "a.b", "c__d/e--f.g_h", "latest", None),
        (" ubuntu \n", HUB, "library/ubuntu", "latest", None),
    ],
)
def test_name(text, registry, repository, tag, digest):
    assert parse(text) == Reference(registry, repository, tag, digest)


def test_host_port_image_tag_which_udocker_took_apart_wrongly():
    """udocker 1.3.17 took the port for the tag."""
    reference = parse(f"host:5000/ns/name:tag@{DIGEST}")
    assert (reference.registry, reference.repository) == ("host:5000", "ns/name")
    assert (reference.tag, reference.digest) == ("tag", DIGEST)
    assert parse("host:5000/name:tag").name == "host:5000/name:tag"
    assert parse("host:5000/name").name == "host:5000/name:latest"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "empty"),
        ("  ", "empty"),
        ("Ubuntu", "must be lower case"),
        ("user/Image:1", "must be lower case"),
        ("User/image", "must be lower case"),
        ("registry.test/Team/x", "must be lower case"),
        ("https://registry.test/x", "is no URL"),
        ("x:", "no tag after the colon"),
        ("x:-1", "the tag '-1'"),
        ("x:a b", "the tag 'a b'"),
        (f"x:{'a' * 129}", "128 characters"),
        ("x@", "no digest"),
        ("x@sha256:12", "no digest"),
        (f"x@{DIGEST.upper()}", "no digest"),
        ("x@md5:" + "0" * 32, "no digest"),
        ("host:70000/x", "'70000' is no port"),
        ("host:/x", "'' is no port"),
        ("host:x/y", "'x' is no port"),
        ("[::1/x", "no IPv6 address"),
        ("[zz]/x", "no host"),
        ("-a.b/x", "no name of a host"),
        ("a..b/x", "no name of a host"),
        ("host.test/", "no name of a repository"),
        ("/x", "between two slashes"),
        ("a//b", "between two slashes"),
        ("a..b", "'..' in 'a..b'"),
        ("a___b", "'___' in 'a___b'"),
        ("a/-b", "does not begin and end"),
        ("../../etc/passwd", "no name of a host"),
        ("a/../b", "does not begin and end"),
        ("x\u00e9", "does not begin and end"),
        ("a" * 256, "255 characters"),
        ("0a" * 32, "are an identifier"),
    ],
)
def test_refused_with_the_reason(text, reason):
    with pytest.raises(Error, match="^(?!.*Traceback)") as error:
        parse(text)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "registry, name",
    [
        ("registry.test:5000", "registry.test:5000/team/x:1"),
        ("https://registry.test/v2", "registry.test/team/x:1"),
        (f"https://{ENDPOINT}", f"{HUB}/team/x:1"),
        (None, f"{HUB}/team/x:1"),
    ],
)
def test_registry_for_names_that_say_none(registry, name):
    assert parse("team/x:1", registry).name == name
    assert parse("other.test/team/x:1", registry).name == "other.test/team/x:1"


def test_what_people_type():
    assert parse(f"{HUB}/library/ubuntu:22.04").familiar == "ubuntu:22.04"
    assert parse(f"{HUB}/user/x").familiar == "user/x:latest"
    assert parse("localhost:5000/library/x").familiar == "localhost:5000/library/x:latest"
    assert str(parse(f"x:1@{DIGEST}")) == f"x@{DIGEST}"


def test_a_digest_decides():
    """Else an image pulled by digest would change what its tag means."""
    reference = parse(f"x:1@{DIGEST}")
    assert reference.target == DIGEST
    assert reference.name == f"{HUB}/library/x@{DIGEST}"
    assert parse("x:1").target == "1"


part = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
paths = st.lists(part, min_size=1, max_size=4).map("/".join)
hosts = st.sampled_from(["", "localhost/", "a.test/", "h:1/", "[::1]:65535/", "10.0.0.1:80/"])
tags = st.one_of(st.just(""), st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True))


@unhurried
@given(hosts, paths, tags, st.sampled_from(["", f"@{DIGEST}"]))
def test_full_and_familiar_names_stand_for_the_same(host, path, tag, digest):
    first, slash, _rest = path.partition("/")
    assume(host or not (slash and ("." in first or first == "localhost")))  # that is a host
    reference = parse(host + path + tag + digest)
    assert parse(reference.name).name == reference.name
    assert parse(reference.familiar).name == reference.name
    assert parse(reference.name).target == reference.target


@unhurried
@given(st.text(max_size=60))
@example("0 0")
@example("a\n\nb")
def test_any_text_is_a_name_or_refused(text):
    """And a name that is taken has nothing that leads elsewhere as a path or a URL."""
    try:
        name = parse(text).name
    except Error:
        return
    assert ".." not in name and "//" not in name and not set(name) & set("?#%&\\ \n\0")
