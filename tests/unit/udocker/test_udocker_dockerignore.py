# SPDX-License-Identifier: Apache-2.0
""".dockerignore: what is left out of a build's context."""

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import dockerignore
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.dockerignore import Ignore
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error


@pytest.mark.parametrize(
    ("text", "path", "excluded"),
    [
        ("*.md", "a.md", True),
        ("*.md", "b/a.md", False),
        ("*/*.md", "b/a.md", True),
        ("**/*.md", "a.md", True),
        ("**/*.md", "b/c/a.md", True),
        ("b/**", "b/c/a.md", True),
        ("b/**", "b", False),
        ("b/**/d", "b/d", True),
        ("b/**/d", "b/c/c/d", True),
        ("b/**/d", "b/cd", False),
        ("/b", "b", True),
        ("b/", "b/c", True),
        ("./b/../c", "c", True),
        ("  b  ", "b", True),
        ("b", "bc", False),
        ("?", "b", True),
        ("?", "bc", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        ("\\*", "*", True),
        ("\\*", "b", False),
        ("a.c", "abc", False),
        ("*", "b/c", True),
        (".", "b", False),
        ("# b", "# b", False),
        ("*\n!b", "b", False),
        ("*\n!b", "b/c", False),
        ("*\n!b\nb/c", "b/c", True),
        ("*\n!b\nb/c", "b/d", False),
        ("!b\nb", "b", True),
        ("**\n!**/*.py", "x/y.py", False),
        ("**\n!**/*.py", "x/y.pyc", True),
        ("! b\n", "b", False),
        ("b/*\n!b/keep", "b/keep", False),
        ("b/*\n!b/keep", "b/keep/x", False),
        ("b\n!b/keep", "b/other", True),
        ("b\n!b/keep", "b/keep", False),
        ("\ufeffb\r\n", "b", True),
        ("..", "b", False),
        ("b\\ c", "b c", True),
    ],
)
def test_patterns(text, path, excluded):
    assert Ignore(text).excludes(path) is excluded


@pytest.mark.parametrize(
    ("text", "folder", "pruned"),
    [
        ("b", "b", True),
        ("b\n!b/c", "b", False),
        ("*\n!b/c/d", "b", False),
        ("*\n!b/c/d", "b/c", False),
        ("*\n!b/c/d", "e", True),
        ("*\n!**/d", "e", False),
        ("*\n!b*/d", "bc", False),
    ],
)
def test_folders_that_nothing_comes_back_from_are_not_read(text, folder, pruned):
    assert Ignore(text).prunes(folder) is pruned


@pytest.mark.parametrize("text", ["a\n!", "a\n[b", "a\n[]", "a\nb\\"])
def test_errors_name_the_line(text):
    with pytest.raises(Error, match="here:2: "):
        Ignore(text, "here")


def test_the_file_beside_the_containerfile_goes_first(tmp_path):
    (tmp_path / ".dockerignore").write_text("a")
    assert dockerignore.read(str(tmp_path)).excludes("a")
    (tmp_path / ".containerignore").write_text("b")
    assert dockerignore.read(str(tmp_path), str(tmp_path / "Other")).excludes("b")
    (tmp_path / "Other.dockerignore").write_text("c")
    rules = dockerignore.read(str(tmp_path), str(tmp_path / "Other"))
    assert [rules.excludes(name) for name in "abc"] == [False, False, True]
    assert not dockerignore.read(str(tmp_path / "nothing")).excludes("a")
