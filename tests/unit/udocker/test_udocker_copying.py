# SPDX-License-Identifier: Apache-2.0
"""Layers seen as one tree, and what COPY and ADD choose from one."""

import io
import os
import tarfile

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.udocker.copying import Copy, change_mode
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.dockerignore import Ignore
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error, NotFound
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.unpack import OPAQUE
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.view import View, owner


def tree(folder, files):
    """Make {path: content, None for a folder, ("link", target)} in a folder; returns its path as text."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            (folder / path).mkdir(exist_ok=True)
        elif isinstance(content, tuple):
            (folder / path).symlink_to(content[1])
        else:
            (folder / path).write_text(content)
    return str(folder)


def written(job):
    """The members of the tar that a Copy writes, and their content, by name."""
    stream, found = io.BytesIO(), {}
    job.write(stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        for member in archive:
            content = archive.extractfile(member).read().decode("utf-8", "replace") if member.isreg() else None
            found[member.name] = member, content
    return found


@pytest.fixture
def layers(tmp_path):
    low = tree(tmp_path / "low", {"a/one": "1", "a/two": "1", "b/x": "1", "c/x": "1", "gone/x": "1", "file": "1"})
    mid = tree(tmp_path / "mid", {"a/two": "2", "b/y": "2", "c": "2", ".wh.gone": "", "lib": ("link", "usr/lib")})
    top = tree(tmp_path / "top", {"a/.wh.one": "", "b/z": "3", "usr/lib/l": "3", "gone/new": "3", "file/now": "3"})
    os.setxattr(tmp_path / "top/b", OPAQUE, b"y")
    return [low, mid, top]


def test_layers_hide_what_is_below(layers):
    view = View(layers)
    assert view.names(()) == ["a", "b", "c", "file", "gone", "lib", "usr"]
    assert view.names(("a",)) == ["two"]
    assert view.read("/a/two") == "2"
    assert view.names(("b",)) == ["z"]
    assert view.entry(("c",)).is_file
    assert view.entry(("c", "x")) is None
    assert view.names(("gone",)) == ["new"]
    assert view.names(("file",)) == ["now"]
    assert [parts for parts, _entry in view.walk(())][-1] == ("usr", "lib", "l")


def test_links_stay_in_the_tree(tmp_path):
    view = View([tree(tmp_path / "l", {
        "etc/passwd": "inside", "abs": ("link", "/etc/passwd"), "up": ("link", "../../../etc/passwd"),
        "dir": ("link", "/etc"), "circle": ("link", "circle"), "broken": ("link", "no/where"),
    })])  # fmt: skip
    for path in ("/abs", "up", "dir/passwd", "../../etc/passwd", "dir/../../etc/passwd"):
        assert view.read(path) == "inside", path
    assert view.resolve("broken/x") == ("no", "where", "x")
    with pytest.raises(Error, match="too many links"):
        view.resolve("circle")
    assert view.glob("d*/pass*") == [("dir", "passwd")]
    assert view.glob("../../etc/*") == [("etc", "passwd")]


def test_owners_are_looked_up_in_the_image(tmp_path):
    view = View([tree(tmp_path / "l", {"etc/passwd": "a:x:5:6::/:\n", "etc/group": "g:x:7:\n"})])
    assert [owner(view, text) for text in ("a", "a:g", "8", "8:9", "a:9", ":g")] == [
        (5, 6), (5, 7), (8, 8), (8, 9), (5, 9), (0, 7)
    ]  # fmt: skip
    with pytest.raises(NotFound, match="user b is not in /etc/passwd"):
        owner(view, "b")


CONTEXT = {"a": "1", "b": "2", "d/x": "3", "d/s/y": "4", "d/s/z.o": "5", "l": ("link", "a"), "e": None}


@pytest.mark.parametrize(
    ("patterns", "target", "names"),
    [
        (["a"], "/x", {"x"}),
        (["a"], "/x/", {"x", "x/a"}),
        (["a"], "/have", {"have", "have/a"}),
        (["a", "b"], "/x/", {"x", "x/a", "x/b"}),
        (["?"], "/x/", {"x", "x/a", "x/b", "x/l", "x/x", "x/s", "x/s/y", "x/s/z.o"}),
        (["d"], "/x", {"x", "x/x", "x/s", "x/s/y", "x/s/z.o"}),
        (["d/*/y"], "/x/y/", {"x", "x/y", "x/y/y"}),
        (["l"], "/x", {"x"}),
        (["e"], "/x", {"x"}),
        (["d"], "/link", {"usr", "usr/lib", "usr/lib/x", "usr/lib/s", "usr/lib/s/y", "usr/lib/s/z.o"}),
    ],
)
def test_what_is_copied_where(tmp_path, patterns, target, names):
    image = [tree(tmp_path / "image", {"have/x": "", "usr/lib": None, "link": ("link", "usr/lib")})]
    context = [tree(tmp_path / "context", CONTEXT)]
    assert set(written(Copy(image, context, patterns, target))) == names


def test_parents_and_excludes(tmp_path):
    context = [tree(tmp_path / "context", CONTEXT)]
    assert set(written(Copy([], context, ["d/s/y"], "/x/", parents=True))) == {"x", "x/d", "x/d/s", "x/d/s/y"}
    assert set(written(Copy([], context, ["d/./s"], "/x/", parents=True, exclude=["**/*.o"]))) == {
        "x", "x/s", "x/s/y"
    }  # fmt: skip
    ignore = Ignore("d\n!d/s/y")
    assert set(written(Copy([], context, ["d"], "/x", ignore=ignore))) == {"x", "x/s", "x/s/y"}
    with pytest.raises(Error, match="leaves it out"):
        written(Copy([], context, ["a"], "/x", ignore=Ignore("a")))


def test_attributes(tmp_path):
    image = [tree(tmp_path / "image", {"have/x": "", "etc/passwd": "a:x:5:6::/:\n"})]
    (tmp_path / "image/have").chmod(0o2775)
    context = [tree(tmp_path / "context", CONTEXT)]
    (tmp_path / "context/a").chmod(0o4750)
    os.utime(tmp_path / "context/a", (1, 1))
    (member, content), folder = (written(Copy(image, context, ["a"], "/have/", user="a:8"))[name]
                                 for name in ("have/a", "have"))  # fmt: skip
    assert (member.mode, member.uid, member.gid, member.mtime, content) == (0o4750, 5, 8, 1, "1")
    assert (folder[0].mode, folder[0].uid) == (0o2775, 0), "a folder of the image stays as it is"
    member, _content = written(Copy(image, context, ["d"], "/n", mode="u=rwX,go=rX"))["n/x"]
    assert member.mode == 0o644


def test_the_hash_is_of_content_and_mode_and_not_of_times(tmp_path):
    context = [tree(tmp_path / "context", CONTEXT)]

    def digest():
        return Copy([], context, ["."], "/").digest()

    first = digest()
    os.utime(tmp_path / "context/a", (1, 1))
    assert digest() == first
    (tmp_path / "context/a").chmod(0o600)
    second = digest()
    assert second != first
    (tmp_path / "context/a").write_text("9")
    third = digest()
    assert third not in (first, second)
    (tmp_path / "context/a").rename(tmp_path / "context/a2")
    assert digest() not in (first, second, third)


def test_a_tar_is_unpacked_where_links_of_the_image_lead(tmp_path):
    image = [tree(tmp_path / "image", {"usr/lib": None, "lib": ("link", "usr/lib")})]
    context = tmp_path / "context"
    context.mkdir()
    with tarfile.open(context / "t.tar.gz", "w:gz") as archive:
        for name, link in (("lib/a", None), ("lib/b", "lib/a")):
            info = tarfile.TarInfo(name)
            info.uid, info.size = 7, 1 if link is None else 0
            if link:
                info.type, info.linkname = tarfile.LNKTYPE, link
            archive.addfile(info, io.BytesIO(b"x"))
    found = written(Copy(image, [str(context)], ["t.tar.gz"], "/", extract=True))
    assert {"usr", "usr/lib", "usr/lib/a", "usr/lib/b"} == set(found)
    assert (found["usr/lib/a"][0].uid, found["usr/lib/b"][0].linkname) == (7, "usr/lib/a")
    assert "t.tar.gz" in written(Copy(image, [str(context)], ["t.tar.gz"], "/"))


@pytest.mark.parametrize(
    ("text", "mode", "folder", "result"),
    [
        ("644", 0o777, False, 0o644),
        ("4755", 0, False, 0o4755),
        ("+x", 0o644, False, 0o755),
        ("go-w", 0o666, False, 0o644),
        ("u=rwX,go=rX", 0o600, False, 0o644),
        ("u=rwX,go=rX", 0o700, True, 0o755),
        ("a=", 0o755, False, 0),
        ("u+s", 0o755, False, 0o4755),
    ],
)
def test_modes(text, mode, folder, result):
    assert change_mode(text, mode, folder) == result


@pytest.mark.parametrize("text", ["888", "u=z", "x", ""])
def test_what_is_no_mode(text):
    with pytest.raises(Error, match="--chmod="):
        change_mode(text, 0o644, False)
