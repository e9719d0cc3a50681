# SPDX-License-Identifier: Apache-2.0
"""Pulls from a registry that misbehaves: what is wrong is refused and nothing of it stays, what is broken is gone on
with, and what is shared is done once."""

import copy
import fcntl
import gc
import gzip
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import udocker_faults as faults
import udocker_images as images
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import http, manifests, transfer, userns
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error, NotFound
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store
from udocker_registry import DEADLINE, digest

NOISE = os.urandom(3 << 20)  # what does not compress
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """An image of two small layers and a large one."""
    layers = [
        images.layer(images.member("etc/", mode=0o755), images.member("etc/motd", "hello")),
        images.layer(images.member("noise", NOISE)),
        images.layer(images.member("top", "1")),
    ]
    return images.oci(tmp_path_factory.mktemp("image") / "layout", layers)


@pytest.fixture
def registry(layout):
    with faults.Faulty(layout) as faulty:
        yield faulty


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(http, "PAUSE", 0.001)
    monkeypatch.setattr(http.Client, "__init__", _impatient(http.Client.__init__))


def _impatient(original):
    return lambda self, *args, **more: original(self, *args, **{"pause": 0.001, **more})


def pull(store, registry, name="team/app:1", **more):
    return transfer.pull(store, f"{registry.host}/{name}", **more)


def largest(registry, tag="1"):
    return max(registry.document(tag)["layers"], key=lambda layer: layer["size"])


def files(store):
    """All that a store holds, but its locks."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), store.root)
        for folder, _folders, names in os.walk(store.root)
        for name in names
        if not folder.endswith("/locks")
    )


def assert_whole(store, image):
    assert transfer._present(store, transfer.parse(image.name)) is not None
    assert (Path(store.layer(image.layers[1]["diff_id"])) / "noise").read_bytes() == NOISE
    for layer in image.layers:
        assert digest(Path(store.blob(layer["digest"])).read_bytes()) == layer["digest"]
    assert os.listdir(store.path("tmp")) == []


def refused(store, registry, match, **more):
    """The pull fails, and neither image nor anything half made is left, and no blob but what its name says."""
    with pytest.raises(Error, match=match) as error:
        pull(store, registry, **more)
    assert store.images() == []
    for path in files(store):
        if path.startswith("tmp/"):  # layers as far as they had come, and right as far as that
            value = os.path.basename(path)[len("sha256-") : -len(".partial")]
            assert registry.blobs[f"sha256:{value}"].startswith(Path(store.path(path)).read_bytes())
    for path in files(store):
        if path.startswith("blobs/"):
            assert digest(Path(store.path(path)).read_bytes()) == "sha256:" + os.path.basename(path)
    return str(error.value)


# What is right


def test_pull(store, registry):
    events = []
    image = pull(store, registry, progress=lambda event, **facts: events.append((event, facts)))
    assert_whole(store, image)
    assert image.name == f"{registry.host}/team/app:1" and image.platform == "linux/amd64"
    assert store.image(image.name).as_dict() == image.as_dict()
    for layer in image.layers:
        states = [facts["state"] for _event, facts in events if facts["digest"] == layer["digest"]]
        order = [state for number, state in enumerate(states) if states[:number].count(state) == 0]
        assert order == [s for s in ("waiting", "downloading", "unpacking", "done") if s in order]
        assert states[0] == "waiting" and states[-1] == "done"
        assert all(0 <= facts["done"] <= facts["total"] == layer["size"] for _event, facts in events
                   if facts["digest"] == layer["digest"])  # fmt: skip


def test_an_image_that_is_there_costs_one_question(store, registry):
    first = pull(store, registry)
    del registry.requests[:]
    events = []
    assert (
        pull(store, registry, progress=lambda event, **facts: events.append(facts["state"])).as_dict()
        == first.as_dict()
    )
    assert [(how, path) for how, path, *_rest in registry.requests if path != "/v2/"] == [
        ("HEAD", "/v2/team/app/manifests/1")
    ]
    assert events == ["exists"] * 3


@pytest.mark.parametrize("action", [faults.status(405), faults.status(404), faults.status(200)])
def test_a_registry_that_does_not_say_digests_is_asked_for_the_manifest(store, registry, action):
    first = pull(store, registry)
    del registry.requests[:]
    registry.fault("/manifests/1", action, method="HEAD")
    assert pull(store, registry).manifest == first.manifest
    assert len(registry.asked("/manifests/1")) == 1 and not registry.asked("/blobs/")


def test_by_digest_an_image_that_is_there_costs_nothing(store, registry):
    name = f"team/app@{registry.manifest(registry.manifests['1'][0], registry.manifests['1'][1])['digest']}"
    pull(store, registry, name)
    del registry.requests[:]
    pull(store, registry, name)
    assert registry.requests == []


def test_a_layer_of_another_image_is_not_asked_for(store, registry):
    pull(store, registry)
    del registry.requests[:]
    pull(store, registry, "other/app:1")
    assert registry.asked("/blobs/") == []


def test_what_was_lost_is_pulled_again(store, registry):
    image = pull(store, registry)
    os.unlink(store.blob(image.layers[0]["digest"]))
    assert_whole(store, pull(store, registry))


def test_one_layer_twice(store, registry, tmp_path):
    layer = images.layer(images.member("twice", "1"))
    registry.add(images.oci(tmp_path / "twice", [layer, layer]), "twice")
    image = pull(store, registry, "team/app:twice")
    assert len(image.layers) == 2
    assert len(registry.asked(image.layers[0]["digest"])) == 1


@pytest.mark.parametrize("media_type", [manifests.DOCKER_MANIFEST, manifests.OCI_MANIFEST])
def test_manifests_of_docker_and_of_oci(store, registry, media_type):
    document = registry.document()
    docker = media_type == manifests.DOCKER_MANIFEST
    document["mediaType"] = media_type
    document["config"]["mediaType"] = manifests.DOCKER_CONFIG if docker else manifests.OCI_CONFIG
    for layer in document["layers"]:
        layer["mediaType"] = manifests.DOCKER_LAYER if docker else manifests.OCI_LAYER + "+gzip"
    entry = registry.manifest(document, media_type)
    assert pull(store, registry).manifest == entry["digest"]


# What is wrong


def test_swapped_blob_of_the_same_size_which_udocker_accepted(store, registry):
    """udocker 1.3.17 does not verify digests: the planted file appeared."""
    layer = registry.document()["layers"][0]
    planted = gzip.compress(
        images.layer(images.member("etc/", mode=0o755), images.member("etc/planted", "!")), 1, mtime=0
    )
    size = layer["size"]
    registry.blobs[layer["digest"]] = planted[:size] + bytes(max(0, size - len(planted)))
    refused(store, registry, "is not what its digest says|is not what the image says|damaged")
    assert not [path for path in files(store) if "planted" in path]


def test_wrong_bits_in_the_last_block(store, registry):
    """The tar is what the configuration says, and the blob is not what the manifest says."""
    layer = largest(registry)
    content = registry.blobs[layer["digest"]]
    registry.blobs[layer["digest"]] = content[:4] + bytes([content[4] ^ 1]) + content[5:]  # gzip's time
    refused(store, registry, f"{layer['digest']} is not what its digest says: refused")


@pytest.mark.parametrize("change, match", [(-100, "has [0-9]+ bytes, the manifest says"), (100, "has [0-9]+ bytes")])
def test_a_blob_of_another_size(store, registry, change, match):
    layer = largest(registry)
    content = registry.blobs[layer["digest"]]
    registry.blobs[layer["digest"]] = content[:change] if change < 0 else content + bytes(change)
    refused(store, registry, match)


def test_a_blob_without_a_length_that_is_longer(store, registry):
    layer = largest(registry)
    content = registry.blobs[layer["digest"]] + bytes(100)

    def act(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(content)

    registry.fault(layer["digest"], act, times=99)
    refused(store, registry, "has more bytes than the")


def test_the_tar_is_not_what_the_configuration_says(store, registry):
    document = registry.document()
    config = json.loads(registry.blobs[document["config"]["digest"]])
    config["rootfs"]["diff_ids"][0] = digest(b"else")
    content = json.dumps(config).encode()
    document["config"].update(digest=digest(content), size=len(content))
    registry.blobs[digest(content)] = content
    registry.manifest(document, manifests.OCI_MANIFEST)
    refused(store, registry, "the layer is not what the image says")


def test_a_configuration_that_is_another(store, registry):
    config = registry.document()["config"]
    registry.blobs[config["digest"]] = registry.blobs[config["digest"]].replace(b"amd64", b"arm64")
    refused(store, registry, f"blob {config['digest']} is not what its digest says")


def test_a_manifest_that_is_another(store, registry):
    content, media_type = registry.manifests["1"]
    registry.fault("/manifests/1", faults.instead(content + b" ", {
        "Content-Type": media_type, "Docker-Content-Digest": digest(content)}))  # fmt: skip
    refused(store, registry, "the manifest is not what its digest says")
    asked = digest(content)
    registry.fault(f"/manifests/{asked}", faults.instead(content + b" ", {"Content-Type": media_type}))
    refused(store, registry, "the manifest is not what its digest says", name=f"team/app@{asked}")


def changed(registry, change):
    """Let the registry have the image with its manifest changed by a function."""
    document = copy.deepcopy(registry.document())
    document = change(document) or document
    registry.manifest(document, registry.manifests["1"][1])


def layer_with(**fields):
    return lambda document: document["layers"][0].update(fields)


@pytest.mark.parametrize(
    "change, match",
    [
        (layer_with(digest="sha256:12"), "is no digest"),
        (layer_with(digest="../../../etc/passwd"), "is no digest"),
        (layer_with(digest=5), "without a digest"),
        (layer_with(size=-1), "has the size -1"),
        (layer_with(size="10"), "has the size '10'"),
        (layer_with(size=1 << 62), "has the size"),
        (layer_with(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), "from elsewhere"),
        (layer_with(urls=["https://elsewhere.test/layer"]), "from elsewhere"),
        (layer_with(mediaType="application/x-unknown"), "unknown type 'application/x-unknown'"),
        (lambda document: document.update(config=None), "without a digest"),
        (lambda document: document["config"].update(size=1 << 40), "has the size"),
        (
            lambda document: document["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"),
            "no image of",
        ),
        (lambda document: {**document, "layers": document["layers"][1:]}, "2 layers, the configuration 3"),
        (lambda document: document.update(layers={}), "list is none"),
        (lambda document: document.update(layers=document["layers"] * 1000), "longer than 1024"),
        (lambda document: document.update(manifests=[]), "holds other than its type"),
        (lambda document: document.update(mediaType=manifests.OCI_INDEX), "the registry 'application"),
        (lambda document: {"schemaVersion": 1, "fsLayers": []}, "schema 1"),
        (lambda document: [document], "no JSON object"),
    ],
)
def test_manifests_that_are_refused(store, registry, change, match):
    changed(registry, change)
    refused(store, registry, match)


@pytest.mark.parametrize(
    "content, media_type, match",
    [
        (b"{", manifests.OCI_MANIFEST, "no JSON"),
        (b"\xff", manifests.OCI_MANIFEST, "no JSON"),
        (b"[" * 100000, manifests.OCI_MANIFEST, "no JSON"),
        (b"<html>", "text/html", "no JSON"),
        (b"{}", "text/html", "'text/html' is no manifest"),
        (b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (b" " * (manifests.MANIFEST_BYTES + 1), manifests.OCI_MANIFEST, "longer than"),
    ],
)
def test_what_is_no_manifest(store, registry, content, media_type, match):
    registry.manifest(content, media_type)
    refused(store, registry, match)


@pytest.mark.parametrize("content", [b"{}", b"5", b'{"rootfs": {"diff_ids": [5]}}', b'{"rootfs": 5}', b"\xff"])
def test_what_is_no_configuration(store, registry, content):
    registry.blobs[digest(content)] = content
    changed(registry, lambda document: document["config"].update(digest=digest(content), size=len(content)))
    refused(store, registry, "the configuration of the image|is no digest|configuration")


def test_an_image_that_is_not_there(store, registry):
    with pytest.raises(NotFound, match="team/app:2: not found .no such thing."):
        pull(store, registry, "team/app:2")
    assert store.images() == []


# Lists of manifests


def entry_for(registry, platform, tag="1"):
    """An image for a platform, told from others by its configuration; its descriptor in a list."""
    system, architecture, *variant = platform.split("/")
    stated = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
    document = copy.deepcopy(registry.document())
    config = {**json.loads(registry.blobs[document["config"]["digest"]]), **stated}
    content = json.dumps(config).encode()
    registry.blobs[digest(content)] = content
    document["config"].update(digest=digest(content), size=len(content))
    return {**registry.manifest(document, manifests.OCI_MANIFEST, f"for-{platform}"), "platform": stated}


def listed(registry, *entries, media_type=manifests.OCI_INDEX, tag="1"):
    return registry.manifest({"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)}, media_type, tag)


PLATFORMS = [
    "linux/amd64",
    "linux/arm/v6",
    "linux/arm/v7",
    "linux/arm64/v8",
    "linux/amd64/v3",
    "windows/amd64",
    "linux/s390x",
]


@pytest.mark.parametrize("media_type", manifests.LISTS)
@pytest.mark.parametrize(
    "asked, got",
    [
        ("linux/amd64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/amd64/v2", "linux/amd64"),
        ("linux/arm64", "linux/arm64/v8"),
        ("aarch64", "linux/arm64/v8"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("armhf", "linux/arm/v7"),
        ("linux/s390x", "linux/s390x"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_the_best_of_a_list(store, registry, asked, got, media_type):
    entries = {platform: entry_for(registry, platform) for platform in PLATFORMS}
    listed(registry, *entries.values(), media_type=media_type)
    image = pull(store, registry, platform=asked)
    assert image.manifest == entries[got]["digest"]
    assert image.platform == got


def test_this_machines_platform(store, registry):
    machine = {"x86_64": "linux/amd64", "aarch64": "linux/arm64/v8"}[os.uname().machine]
    entries = {platform: entry_for(registry, platform) for platform in PLATFORMS}
    listed(registry, *entries.values())
    assert pull(store, registry).manifest == entries[machine]["digest"]


def test_a_list_that_is_there_costs_one_question(store, registry):
    listed(registry, *(entry_for(registry, platform) for platform in PLATFORMS))
    pull(store, registry, platform="linux/amd64")
    del registry.requests[:]
    pull(store, registry, platform="linux/amd64")
    assert [how for how, path, *_rest in registry.requests if path != "/v2/"] == ["HEAD"]
    assert pull(store, registry, platform="linux/s390x").platform == "linux/s390x"


def test_a_platform_that_is_not_there(store, registry):
    listed(registry, *(entry_for(registry, platform) for platform in PLATFORMS[:3]))
    said = refused(store, registry, "has no image for linux/ppc64le", platform="linux/ppc64le")
    assert "linux/amd64, linux/arm/v6, linux/arm/v7" in said
    refused(store, registry, "has no image for linux/arm/v5", platform="linux/arm/v5")
    refused(store, registry, "is no platform", platform="linux/../x")


def test_an_image_for_one_other_platform(store, registry):
    entry = entry_for(registry, "linux/s390x")
    registry.manifest(*registry.manifests[entry["digest"]])
    events = []
    assert (
        pull(store, registry, progress=lambda event, **facts: events.append((event, facts))).platform == "linux/s390x"
    )
    assert "is for linux/s390x, this machine is" in dict(events)["warning"]["text"]
    with pytest.raises(NotFound, match="is for linux/s390x, not for linux/amd64"):
        pull(Store(store.root + "2"), registry, platform="linux/amd64")


def test_attestations_are_no_images(store, registry):
    entry = entry_for(registry, "linux/amd64")
    listed(
        registry,
        {**entry_for(registry, "unknown/unknown"), "platform": {"os": "unknown", "architecture": "unknown"}},
        entry,
    )
    assert pull(store, registry, platform="linux/amd64").manifest == entry["digest"]


def test_a_list_within_a_list(store, registry):
    entry = entry_for(registry, "linux/amd64")
    inner = listed(registry, entry, tag="inner")
    listed(registry, entry_for(registry, "linux/s390x"), inner)
    assert pull(store, registry, platform="linux/amd64").manifest == entry["digest"]


def test_lists_within_lists_too_deep(store, registry):
    entry = entry_for(registry, "linux/amd64")
    for depth in range(6):
        entry = listed(registry, entry, tag="1" if depth == 5 else f"depth-{depth}")
    refused(store, registry, "more than 4 deep")


def test_a_list_that_contains_itself(store, registry):
    """By digest that cannot be, but for a registry that lies; here its lie is believed."""
    first = listed(registry, entry_for(registry, "linux/s390x"))
    second = manifests.Manifest(b"", first["digest"], manifests.OCI_INDEX, {"manifests": [first]})
    with pytest.raises(Error, match="contains itself"):
        manifests.choose(second, manifests.parse_platform("amd64"), lambda _descriptor: second, "x")


def test_a_list_that_is_wrong_about_what_it_lists(store, registry):
    entry = entry_for(registry, "linux/amd64")
    listed(registry, {**entry, "mediaType": manifests.DOCKER_MANIFEST})
    refused(store, registry, "the list says it is")


# What is broken


def test_a_connection_that_breaks_is_gone_on_with_where_it_ended(store, registry):
    layer = largest(registry)
    registry.fault(layer["digest"], faults.cut(1_000_000), times=2)
    assert_whole(store, pull(store, registry))
    ranges = [headers.get("Range") for headers in registry.asked(layer["digest"])]
    assert ranges == [None, "bytes=1000000-", "bytes=2000000-"]


def test_a_registry_without_ranges_is_asked_for_all_of_it(store, registry):
    layer = largest(registry)
    registry.ranges = False
    registry.fault(layer["digest"], faults.cut(1_000_000))
    assert_whole(store, pull(store, registry))


def test_a_registry_that_sends_another_range(store, registry):
    layer = largest(registry)
    content = registry.blobs[layer["digest"]]

    def act(handler):
        handler.reply(206, content[5:], {"Content-Range": f"bytes 5-{len(content) - 1}/{len(content)}"})

    registry.fault(layer["digest"], act)
    registry.fault(layer["digest"], faults.cut(1_000_000))
    assert_whole(store, pull(store, registry))


def test_a_blob_that_always_ends_early(store, registry):
    layer = largest(registry)
    registry.fault(layer["digest"], faults.cut(0), times=99)
    refused(store, registry, f"{layer['digest']}: the connection ended")
    assert len(registry.asked(layer["digest"])) == transfer.ATTEMPTS


def test_what_was_downloaded_before_the_registry_failed_is_gone_on_with(store, registry):
    layer = largest(registry)
    registry.fault(layer["digest"], faults.status(404), times=99)
    registry.fault(layer["digest"], faults.cut(1_500_000))
    with pytest.raises(Error):
        pull(store, registry)
    registry.faults.clear()
    del registry.requests[:]
    assert_whole(store, pull(store, registry))
    assert [headers.get("Range") for headers in registry.asked(layer["digest"])] == ["bytes=1500000-"]


def test_a_partial_download_that_is_damaged(store, registry):
    layer = largest(registry)
    content = registry.blobs[layer["digest"]]
    os.makedirs(store.path("tmp"))
    partial = Path(store.path("tmp", layer["digest"].replace(":", "-") + ".partial"))
    partial.write_bytes(content[:1000] + b"\0" * 1000)
    assert_whole(store, pull(store, registry))
    partial.write_bytes(content + b"more")
    other = Store(store.root + "2")
    os.makedirs(other.path("tmp"))
    os.rename(partial, other.path("tmp", partial.name))
    assert_whole(other, pull(other, registry))


def test_a_partial_download_that_is_complete(store, registry):
    layer = largest(registry)
    os.makedirs(store.path("tmp"))
    Path(store.path("tmp", layer["digest"].replace(":", "-") + ".partial")).write_bytes(registry.blobs[layer["digest"]])
    assert_whole(store, pull(store, registry))
    assert registry.asked(layer["digest"]) == []


PULL = """
import sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import store, transfer
transfer.pull(store.Store(sys.argv[2]), sys.argv[3])
"""


def puller(store, registry):
    command = [sys.executable, "-c", PULL, str(ROOT / "collections"), store.root, f"{registry.host}/team/app:1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle(store, registry, number):
    """What has come is gone on with, nothing half unpacked is left, and no process stays behind."""
    layer, go_on = largest(registry), threading.Event()
    registry.fault(layer["digest"], faults.held(2_000_000, go_on))
    process = puller(store, registry)
    partial = store.path("tmp", layer["digest"].replace(":", "-") + ".partial")
    wait_for(lambda: os.path.exists(partial) and os.path.getsize(partial) > 1_500_000)
    process.send_signal(number)
    assert process.wait(DEADLINE) != 0
    go_on.set()
    wait_for(lambda: all(name.endswith(".partial") for name in os.listdir(store.path("tmp"))))
    size = os.path.getsize(partial)
    assert store.images() == []
    assert_whole(store, pull(store, registry))
    assert registry.asked(layer["digest"])[-1]["Range"] == f"bytes={size}-"


def test_two_pulls_at_once_share_each_layer(store, registry):
    layer, go_on = largest(registry), threading.Event()
    registry.fault(layer["digest"], faults.held(1_000_000, go_on))
    first = puller(store, registry)
    wait_for(lambda: registry.asked(layer["digest"]))
    second = puller(store, registry)
    wait_for(lambda: len(registry.asked("/manifests/1")) == 2 or len(registry.asked("/manifests/1", "HEAD")) >= 1)
    go_on.set()
    for process in (first, second):
        assert process.wait(DEADLINE) == 0, process.stdout.read()
    for each in registry.document()["layers"]:
        assert len(registry.asked(each["digest"])) == 1
    assert_whole(store, pull(store, registry))


def test_a_second_pull_takes_over_from_one_that_is_killed(store, registry):
    layer, go_on = largest(registry), threading.Event()
    registry.fault(layer["digest"], faults.held(1_000_000, go_on))
    first = puller(store, registry)
    wait_for(lambda: registry.asked(layer["digest"]))
    states = []
    thread = threading.Thread(target=pull, args=(store, registry), kwargs={
        "progress": lambda event, **facts: states.append((facts["digest"], facts["state"]))})  # fmt: skip
    thread.start()
    wait_for(lambda: (layer["digest"], "downloading") in states)
    assert len(registry.asked(layer["digest"])) == 1
    first.kill()
    first.wait(DEADLINE)
    thread.join(DEADLINE)
    go_on.set()
    assert not thread.is_alive()
    assert_whole(store, pull(store, registry))


def test_waiting_for_another_pull_ends_and_names_it(store, registry, monkeypatch):
    monkeypatch.setattr(transfer, "LONGEST_WAIT", 0.2)
    os.makedirs(store.path("tmp"))
    path = store.path("tmp", largest(registry)["digest"].replace(":", "-") + ".partial")
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Error, match=rf"another pull \(process {os.getpid()}\) has held it"):
            pull(store, registry)


def test_no_room(store, registry, monkeypatch):
    def full(descriptor, _piece, write=os.write):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".partial"):
            raise OSError(28, "No space left on device")
        return write(descriptor, _piece)

    monkeypatch.setattr(os, "write", full)
    refused(store, registry, "No space left on device")


def test_the_process_that_unpacks_is_killed(store, registry, monkeypatch):
    monkeypatch.setattr(transfer, "_unpack_all", lambda _store, other: (other.recv(1), os.kill(os.getpid(), 9)))
    refused(store, registry, "the process that unpacked it was killed")


def _keeps_its_files(folder):
    mine = [os.open(folder, os.O_RDONLY) for _number in range(40)]
    gc.collect()
    return [stat.S_ISDIR(os.fstat(descriptor).st_mode) for descriptor in mine]


def test_what_the_caller_has_left_lying_about_closes_none_of_our_files(tmp_path):
    """In a child whose descriptors were closed by number, theirs are other files by then."""
    gc.disable()
    try:
        for _number in range(40):
            cycle = [open(os.devnull)]  # noqa: SIM115
            cycle.append(cycle)
        del cycle
        assert userns.call(_keeps_its_files, tmp_path, keep=[]) == [True] * 40
    finally:
        gc.enable()


# Mirrors


def access(mirrors, registry):
    return {"mirrors": {registry.host: [mirror.url for mirror in mirrors]}}


def test_mirrors_are_asked_first(store, registry, layout):
    with faults.Faulty(layout) as mirror:
        assert_whole(store, pull(store, registry, **access([mirror], registry)))
        assert mirror.asked("/blobs/") and not registry.requests


def test_a_mirror_below_a_path(store, registry, layout):
    with faults.Faulty(layout) as mirror:
        pull(store, registry, mirrors={registry.host: [f"{mirror.url}/proxy"]})
        assert mirror.asked("^/v2/proxy/team/app/manifests/1$")
        assert not registry.requests


@pytest.mark.parametrize("action", [faults.status(404), faults.status(500), faults.status(403), faults.reset])
def test_mirrors_that_have_it_not(store, registry, layout, action):
    with faults.Faulty() as broken, faults.Faulty(layout) as mirror:
        broken.fault("/", action, times=999)
        assert_whole(store, pull(store, registry, **access([broken, mirror], registry)))
        assert mirror.asked("/blobs/") and not registry.requests


def test_a_mirror_that_goes_away_in_the_middle(store, registry, layout):
    with faults.Faulty(layout) as mirror:
        layer = largest(mirror)
        mirror.fault(layer["digest"], faults.reset, times=99)
        mirror.fault(layer["digest"], faults.cut(1_000_000))
        assert_whole(store, pull(store, registry, **access([mirror], registry)))
        assert registry.asked(layer["digest"])[0]["Range"] == "bytes=1000000-"


def test_a_mirror_that_lies(store, registry, layout):
    """Its blob is refused; what the registry itself would say is not asked, so that nobody overlooks it."""
    with faults.Faulty(layout) as mirror:
        layer = largest(mirror)
        content = mirror.blobs[layer["digest"]]
        mirror.blobs[layer["digest"]] = content[:-1] + bytes([content[-1] ^ 1])
        with pytest.raises(Error, match="is not what its digest says|damaged"):
            pull(store, registry, **access([mirror], registry))
    assert store.images() == []


# Tokens, blobs elsewhere


def test_blobs_on_another_host_are_asked_for_without_our_password(store, registry, layout):
    with faults.Faulty(layout) as elsewhere:
        registry.fault("/v2/", faults.status(401, {"WWW-Authenticate": 'Basic realm="x"'}), times=1)

        def blob(handler):
            faults.redirect(f"{elsewhere.url}{handler.path}?X-Signature=1")(handler)

        registry.fault("/blobs/", blob, times=99)

        def guarded(handler):
            if handler.headers.get("Authorization") is None:
                return handler.reply(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
            return registry.serve(handler)

        registry.fault("/manifests/", guarded, times=99)
        assert_whole(store, pull(store, registry, credentials=("ann", "secret")))
        assert elsewhere.asked("/blobs/")
        assert not [headers for headers in elsewhere.asked("/blobs/") if "Authorization" in headers]
        assert [headers for headers in registry.asked("/blobs/") if "Authorization" in headers]


# Lists of tags and repositories, search


def test_tags_page_by_page(registry):
    pages = {"/v2/x/tags/list?n=100": (["a", "b"], '</v2/x/tags/list?last=b&n=100>; rel="next"'),
             "/v2/x/tags/list?last=b&n=100": (["c"], None)}  # fmt: skip

    def act(handler):
        names, link = pages[handler.path]
        handler.reply(200, json.dumps({"name": "x", "tags": names}).encode(), {"Link": link} if link else {})

    registry.fault("/tags/list", act, times=9)
    assert list(transfer.tags(f"{registry.host}/x")) == ["a", "b", "c"]


def test_tags_of_nothing(registry):
    registry.fault("/tags/list", faults.instead(b'{"name": "x", "tags": null}'))
    assert list(transfer.tags(f"{registry.host}/x")) == []
    with pytest.raises(NotFound):
        list(transfer.tags(f"{registry.host}/y"))


def test_a_next_page_elsewhere_is_refused(registry):
    registry.fault("/tags/list", faults.instead(b'{"tags": ["a"]}', {"Link": '<https://else.test/>; rel="next"'}))
    with pytest.raises(Error, match="its next page is said to be at https://else.test/: refused"):
        list(transfer.tags(f"{registry.host}/x"))


HUB = {
    "^/v2/search/repositories": {"count": 1, "next": "", "results": [
        {"repo_name": "team/app", "short_description": "An app", "is_official": False, "star_count": 5}]},
    "^/v1/search": {"page": 1, "num_pages": 1, "results": [
        {"name": "app", "description": None, "is_official": True, "star_count": None}]},
}  # fmt: skip


def test_search_as_docker_hub_answers_it(registry):
    second, first = ({"name": "team/app", "description": "An app", "official": False, "stars": 5},
                     {"name": "app", "description": "", "official": True, "stars": 0})  # fmt: skip
    registry.fault("^/v1/search", faults.instead(json.dumps(HUB["^/v1/search"]).encode()))
    assert list(transfer.search(f"{registry.host}/app")) == [first]
    registry.fault("^/v2/search", faults.instead(json.dumps(HUB["^/v2/search/repositories"]).encode()))
    assert list(transfer.search("app", index=f"{registry.url}/v1")) == [second]
    assert re.search("query=app", registry.requests[-1][1])


def test_search_by_the_catalogue(registry):
    registry.fault("/v2/_catalog", faults.instead(b'{"repositories": ["team/app", "team/other", "application"]}'))
    names = [found["name"] for found in transfer.search(f"{registry.host}/app")]
    assert names == [f"{registry.host}/team/app", f"{registry.host}/application"]


def test_what_errors_say_is_short_and_plain(store, registry):
    said = json.dumps({"errors": [{"code": "X", "message": "\x1b[31m" + "long " * 500}]}).encode()
    registry.fault("/manifests/", faults.status(403, content=said), times=9)
    said = refused(store, registry, "not allowed")
    assert len(said) < 400 and "\x1b" not in said
