# SPDX-License-Identifier: Apache-2.0
"""Folders of images: their parents, and the hash of what goes in."""

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.images import catalogue
from ansible_collections.dodas.cluster.plugins.module_utils.images.catalogue import ImageError


@pytest.fixture
def project(tmp_path):
    write(tmp_path, "containers/base/rootfs.yaml", "suite: trixie\npackages: [python3]\n")
    write(tmp_path, "containers/a/Containerfile", "# inputs: src/code src/one.py\nFROM localhost/dodas/base\n")
    write(tmp_path, "containers/a/entry", "run\n")
    write(tmp_path, "containers/child/Containerfile", "FROM localhost/dodas/a AS build\nFROM localhost/dodas/a\n")
    write(tmp_path, "containers/other/Containerfile", "FROM localhost/dodas/base AS build\nFROM build\n")
    write(tmp_path, "src/code/x/deep.py", "1")
    write(tmp_path, "src/one.py", "1")
    write(tmp_path, "src/unused.py", "1")
    return tmp_path


def write(project, path, text):
    (project / path).parent.mkdir(parents=True, exist_ok=True)
    (project / path).write_text(text)


def digests(project):
    return {name: one.digest for name, one in catalogue.catalogue(project / "containers", project).items()}


def test_parents_come_first(project):
    images = catalogue.catalogue(project / "containers", project)
    assert list(images) == ["base", "a", "other", "child"]
    assert {name: one.parent for name, one in images.items()} == {
        "base": None, "a": "base", "other": "base", "child": "a"
    }  # fmt: skip
    assert images["child"].parent_digest == images["a"].digest
    assert images["base"].packages == ["python3"]
    assert images["a"].reference == f"localhost/dodas/a:{images['a'].digest}"


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda p: write(p, "containers/base/rootfs.yaml", "suite: trixie\npackages: [curl]\n"),
         {"base", "a", "other", "child"}),
        (lambda p: write(p, "containers/a/entry", "walk\n"), {"a", "child"}),
        (lambda p: (p / "containers/a/entry").chmod(0o755), {"a", "child"}),
        (lambda p: (p / "containers/a/entry").rename(p / "containers/a/renamed"), {"a", "child"}),
        (lambda p: write(p, "containers/a/new", ""), {"a", "child"}),
        (lambda p: write(p, "src/code/x/deep.py", "2"), {"a", "child"}),
        (lambda p: write(p, "src/one.py", "2"), {"a", "child"}),
        (lambda p: write(p, "containers/child/x", ""), {"child"}),
        (lambda p: write(p, "src/unused.py", "2"), set()),
        (lambda p: write(p, "src/code/__pycache__/deep.pyc", "2"), set()),
        (lambda p: (p / "src/one.py").touch(), set()),
        (lambda p: (p / "containers/a/entry").chmod(0o640), set()),
    ],
)  # fmt: skip
def test_the_hash_changes_with_what_goes_in_and_only_then(project, change, changed):
    before = digests(project)
    change(project)
    after = digests(project)
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_hash_does_not_depend_on_where_the_project_is(project, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "p"
    before = digests(project)
    project.rename(moved)
    assert digests(moved) == before
    moved.rename(project)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("a/Containerfile", "FROM localhost/dodas/child\n", "in a circle: a, child"),
        ("a/Containerfile", "FROM localhost/dodas/a\n", "in a circle: a"),
        ("a/Containerfile", "FROM localhost/dodas/none\n", "a/Containerfile: FROM names no image of this folder"),
        ("a/Containerfile", "FROM debian\n", "a/Containerfile: FROM names no image of this folder"),
        ("a/Containerfile", "RUN true\n", "a/Containerfile: must be FROM one image, and is from none"),
        ("a/Containerfile", "FROM localhost/dodas/base AS b\nFROM localhost/dodas/other\n",
         "a/Containerfile: must be FROM one image, and is from localhost/dodas/base, localhost/dodas/other"),
        ("a/Containerfile", "FROM localhost/dodas/base AS b\nFROM debian\n", "must be FROM one image"),
        ("a/Containerfile", "# inputs: nowhere\nFROM localhost/dodas/base\n", "nowhere does not exist"),
        ("a/Containerfile", "# inputs: /etc/hostname\nFROM localhost/dodas/base\n", "/etc/hostname: is not in the"),
        ("a/rootfs.yaml", "suite: x\npackages: []\n", "containers/a: needs either a rootfs.yaml or a Containerfile"),
        ("empty/readme", "", "containers/empty: needs either"),
        ("base/rootfs.yaml", "", "base/rootfs.yaml: needs exactly suite and packages"),
        ("base/rootfs.yaml", "suite: x\n", "needs exactly suite and packages"),
        ("base/rootfs.yaml", "- suite\n- packages\n", "needs exactly suite and packages"),
        ("base/rootfs.yaml", "suite: [\n", "base/rootfs.yaml: while parsing"),
        ("base/rootfs.yaml", "suite: x\npackages: curl\n", "packages must be a list of names"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_the_folder(project, path, text, message):
    write(project, f"containers/{path}", text)
    with pytest.raises(ImageError) as caught:
        digests(project)
    assert message in str(caught.value)


def test_no_folder(tmp_path):
    with pytest.raises(ImageError, match="nowhere: is no folder of images"):
        catalogue.catalogue(tmp_path / "nowhere", tmp_path)


def test_with_parents(project):
    images = catalogue.catalogue(project / "containers", project)
    assert [one.name for one in catalogue.with_parents(images, ["child"])] == ["base", "a", "child"]
    assert [one.name for one in catalogue.with_parents(images, [])] == []
    with pytest.raises(ImageError, match="no image 'x': there are base, a"):
        catalogue.with_parents(images, ["x"])
