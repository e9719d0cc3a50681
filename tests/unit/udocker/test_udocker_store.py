# SPDX-License-Identifier: Apache-2.0
"""The store: everything appears whole or not at all, under names that cannot lead elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import records
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import store as library
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error, NotFound
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Image, Store

DIGEST = "sha256:" + hashlib.sha256(b"x").hexdigest()
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def image(name):
    return Image(name, DIGEST, DIGEST, [{"digest": DIGEST, "diff_id": DIGEST, "size": 1}], 1.5, "linux/amd64", 1)


@given(VALUES)
def test_records_are_json_both_ways(value):
    assert json.loads(records.dumps(value)) == value
    assert records.loads(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["", "{", "[1,]", "1 2", "{'a': 1}", "nul", '{"a": 1}}', '"\n"'])
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError):
        records.loads(text)


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = str(tmp_path / "a.json")
    records.write(path, {"a": 1})
    with pytest.raises(TypeError):
        records.write(path, {"a": object()})
    assert records.read(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_blob_is_found_by_its_content(store):
    digest = store.write_blob(b"x")
    assert digest == DIGEST
    assert store.has_blob(digest) and store.read_blob(digest) == b"x"
    assert os.listdir(store.path("tmp")) == []


def test_a_damaged_blob_is_refused(store):
    with open(store.blob(store.write_blob(b"x")), "wb") as target:
        target.write(b"y")
    with pytest.raises(Error, match="damaged"):
        store.read_blob(DIGEST)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../x", "md5:" + 32 * "0", DIGEST.upper(), DIGEST + "/"])
def test_no_digest_leads_out_of_the_store(store, digest):
    with pytest.raises(Error, match="no digest"):
        store.blob(digest)


@pytest.mark.parametrize("name", ["a/b:1", "localhost:5000/a/b-c_d:latest", "[::1]:80/x:y", "h/%2e%2e/é:1"])
def test_images_are_found_by_their_names(store, name):
    store.write_image(image(name))
    assert store.image(name).as_dict() == image(name).as_dict()
    assert [one.name for one in store.images()] == [name]
    store.remove_image(name)
    assert store.images() == []
    with pytest.raises(NotFound, match="no image"):
        store.image(name)


@given(NAMES, NAMES)
@example("€", " ac")
def test_names_of_images_stay_inside_and_apart(first, second):
    store = Store("/nowhere")
    paths = [store._image_path(f"{name}:latest") for name in (first, second)]
    assert all(os.path.dirname(os.path.dirname(path)) == "/nowhere/images" for path in paths)
    assert (paths[0] == paths[1]) == (first == second)


def test_a_temporary_folder_goes_and_what_was_renamed_stays(store):
    with pytest.raises(RuntimeError), store.temporary() as folder:
        os.mkdir(os.path.join(folder, "layer"))
        store.keep_layer(os.path.join(folder, "layer"), DIGEST)
        raise RuntimeError
    assert store.has_layer(DIGEST)
    assert os.listdir(store.path("tmp")) == []


def test_a_folder_that_went_before_it_was_held_is_made_again(tmp_path):
    made = []

    def make():
        made.append(tmp_path / str(len(made)))
        if len(made) > 2:
            made[-1].mkdir()
        return str(made[-1])

    path, holder = library.held(make)
    assert path == str(made[2])
    os.close(holder)


def test_the_first_of_two_that_unpack_the_same_layer_wins(store):
    for content in ("first", "second"):
        with store.temporary() as folder:
            os.mkdir(os.path.join(folder, "layer"))
            with open(os.path.join(folder, "layer", "file"), "w") as target:
                target.write(content)
            store.keep_layer(os.path.join(folder, "layer"), DIGEST)
    with open(os.path.join(store.layer(DIGEST), "file")) as source:
        assert source.read() == "first"


def test_a_lock_is_waited_for(store):
    code = (
        "import sys; from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store\n"
        "with Store(sys.argv[1]).lock('image a'): print('mine', flush=True)"
    )
    with store.lock("image a"):
        other = subprocess.Popen([sys.executable, "-c", code, store.root], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
    assert other.communicate(timeout=30)[0] == "mine\n"


def test_who_holds_a_lock_for_too_long_is_told(store, monkeypatch):
    monkeypatch.setattr(library, "PATIENCE", 0.1)
    with store.lock("image a"):
        with pytest.raises(Error, match=r"held the lock .*image%20a for 0 s: .* try again"), store.lock("image a"):
            pass
        with pytest.raises(Error, match="held the lock"), store.lock("image a", shared=True):
            pass
    with store.lock("image a"):
        pass


def test_start_up_imports_nothing_that_is_slow():
    code = (
        "import sys; before = set(sys.modules)\n"
        "from ansible_collections.dodas.cluster.plugins.module_utils.udocker import records, spec, store\n"
        "store.Store('/nowhere').images(); records.loads('{}'); print(*(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"json", "re", "enum", "contextlib", "hashlib", "subprocess", "tempfile"} & set(loaded)
