# SPDX-License-Identifier: Apache-2.0
"""Hostile images (see udocker_hostile): each is taken by root, by a user with many ids, by one with one id, and by one
who may have no user namespace. Nothing outside of the store changes, and nothing but Error is raised."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import pytest

import ansible_collections.dodas.cluster.plugins.module_utils.udocker as library
import udocker_hostile
from udocker_people import Person

LIBRARY = pathlib.Path(library.__file__).parent
WHO = {"root": "subids", "many ids": "subids", "one id": "one", "no namespace": "none"}
DEADLINE = 60.0  # seconds for one image


def taken(who, folder):
    """{name: outcome} of all cases, and what kind of user namespace there was."""
    if who == "root":
        corpus, canary, store = folder / "corpus", folder / "canary", folder / "home" / "store"
        prepare(corpus, canary)
        store.parent.mkdir()
        argv = [sys.executable, udocker_hostile.__file__, LIBRARY.parent, corpus, store, canary]
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=900)
    else:
        with Person("eve", subids=who == "many ids") as person:
            home = person.home
            prepare(home / "corpus", home / "canary")
            (home / "own").mkdir()
            (home / "library").mkdir()
            for path in (home / "canary", home / "canary" / "kept", home / "canary" / "folder", home / "own"):
                os.chown(path, person.uid, person.gid)
            person.give(LIBRARY, "library/udocker")
            script = person.give(udocker_hostile.__file__)
            argv = [person.python, script, home / "library", home / "corpus", home / "own" / "store", home / "canary"]
            done = person.run(argv, deny=who == "no namespace", timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    first, *rest = map(json.loads, done.stdout.splitlines())
    return first["mapped"], {one["name"]: one for one in rest}


def prepare(corpus, canary):
    """Write the corpus, and a canary that everybody may write to."""
    corpus.mkdir()
    canary.mkdir(mode=0o777)
    (canary / "folder").mkdir()
    (canary / "kept").write_text("kept")
    (canary / "kept").chmod(0o666)
    udocker_hostile.write(str(corpus), str(canary))


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    """A function: who -> (mapped, {name: outcome}). All are at work from the beginning on."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = {who: pool.submit(taken, who, tmp_path_factory.mktemp("hostile")) for who in WHO}
        yield lambda who: jobs[who].result()


@pytest.mark.parametrize("who", WHO)
def test_who_takes_them(outcomes, who):
    mapped, found = outcomes(who)
    assert mapped == WHO[who]
    assert set(found) == set(udocker_hostile.CASES)
    assert len(found) >= 300


@pytest.mark.parametrize(
    "name", udocker_hostile.CASES, ids=lambda name: ascii(name).replace("/", "|").replace("::", ": ")
)
def test_hostile(outcomes, name):
    expect = None
    for who in WHO:
        one = outcomes(who)[1][name]
        assert one["problems"] == [], who
        assert one["outcome"] in ("refused", "unpacked"), (who, one)
        assert one["seconds"] < DEADLINE, who
        # All of them agree.
        expect = expect or one["outcome"]
        assert one["outcome"] == expect, (who, one)
    wanted = udocker_hostile.CASES[name]("/canary").expect
    assert wanted in (None, expect)


def test_a_canary_that_was_touched_is_noticed(tmp_path):
    """The corpus proves nothing unless what escapes is seen."""
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "kept").write_text("kept")
    before = udocker_hostile.snapshot(tmp_path / "canary")
    assert udocker_hostile.snapshot(tmp_path / "canary") == before
    for change in (
        lambda path: (path / "planted").touch(),
        lambda path: (path / "kept").write_text("kept"),
        lambda path: (path / "kept").chmod(0o600),
        lambda path: os.link(path / "kept", tmp_path / "outside"),
        lambda path: os.setxattr(path, "user.overlay.opaque", b"y"),
    ):
        change(tmp_path / "canary")
        after = udocker_hostile.snapshot(tmp_path / "canary")
        assert after != before
        before = after
