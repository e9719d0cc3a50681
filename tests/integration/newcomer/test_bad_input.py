# SPDX-License-Identifier: Apache-2.0
"""What a user, or the machine, can do wrong: one or two lines that say what, and nothing made."""

import os
import subprocess

import pytest

NAME = "nope"


@pytest.fixture
def refused(dodas, before):
    """Runs `up`, which must refuse; what it said on standard error. `prefix`: a command that spoils the machine."""

    def refused(*arguments, prefix=(), name=NAME, **environment):
        command = [*prefix, dodas.root / "dodas", "up", "--yes", *(["--name", name] if name else []), *arguments]
        done = subprocess.run(
            command, env=dodas.environment(**environment), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        assert len([line for line in done.stderr.splitlines() if line]) <= 3, done.stderr
        return done.stderr

    yield refused
    assert dodas.json("list") == [] and not (dodas.home / "deployments" / NAME).exists()
    assert not (dodas.home / "local/storage").exists()  # no container, no volume


def hidden(*programs):
    """A prefix: run without these programs, whatever the path says."""
    hide = "; ".join(f"for p in $(type -ap {program}); do mount --bind /dev/null $p; done" for program in programs)
    return ["unshare", "--mount", "bash", "-c", f'{hide}; exec "$@"', "bash"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [("workers=0", '"0"'), ("workers=-1", '"-1"'), ("workers=three", '"three"'), ("wrkers=3", 'did you mean "workers"'),
     ("workers", "NAME=VALUE")],
)  # fmt: skip
def test_input(refused, value, reason):
    error = refused("-p", value)
    assert reason in error and value.partition("=")[0] in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        ("    worker:\n", "   worker:\n", "indentation"),
        ("dodas.nodes.Squid", "dodas.nodes.Sqid", 'did you mean "dodas.nodes.Squid"'),
        ("cache_mb: {", "cach_mb: {", 'did you mean "cache_mb"'),
        ("count: 1\n", "count: 0\n", "got 0"),
        ("count: 1\n", "count: -1\n", "got -1"),
        ("count: 1\n", "count: three\n", 'got "three"'),
    ],
)
def test_template(dodas, refused, tmp_path, right, wrong, reason):
    text = (dodas.root / "templates/tier3.yaml").read_text(encoding="utf-8")
    template = tmp_path / "site.yaml"
    assert right in text
    template.write_text(text.replace(right, wrong), encoding="utf-8")
    error = refused(str(template))
    assert f"{template}:" in error and reason in error and len(error.splitlines()) == 1


def test_no_such_template(refused, tmp_path):
    assert "there is no such file" in refused(str(tmp_path / "site.yaml"))


@pytest.mark.parametrize("name", ["Bad", "a_b", "-a", "x" * 32, "../a"])
def test_name(refused, name):
    assert "lower-case letters, digits and dashes" in refused(name=name)


def test_no_podman(refused):
    assert "podman is not installed" in refused(prefix=hidden("podman"))


def test_no_root(refused):
    user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    cache = os.environ.get("DODAS_CACHE", "/var/cache/dodas")  # root's
    error = refused("--engine=podman", prefix=[*hidden("sudo"), *user], DODAS_CACHE=cache)
    assert "made by root: become root, or install sudo" in error


def test_no_place_for_its_environment(refused):
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    error = refused(prefix=nobody, HOME="/nonexistent", PATH="/usr/bin:/bin", DODAS_CACHE="")
    assert "set DODAS_CACHE" in error and "/nonexistent" in error


@pytest.mark.parametrize(("size", "reason"), [("64m", "MB free, hosts need"), ("4k", "No space left")])
def test_no_space(refused, tmp_path, size, reason):
    mount = f'mount -t tmpfs -o size={size} none {tmp_path} && exec "$@"'
    assert reason in refused(prefix=["unshare", "--mount", "bash", "-c", mount, "bash"], DODAS_HOME=tmp_path)


def test_no_mirror(refused, tmp_path):
    home, images = tmp_path / "home", tmp_path / "images"
    error = refused(prefix=["unshare", "--mount", "--net"], DODAS_IMAGES=images, DODAS_HOME=home)
    assert "image b" in error and "E: " in error and ".log)" in error
    assert not (home / "deployments" / NAME).exists()
