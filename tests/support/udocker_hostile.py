# SPDX-License-Identifier: Apache-2.0
"""Images that want out of their folder, or to take all there is: generated, each by a way, a place and a kind.

CASES: {name: function(canary) -> Case}. The canary is a folder of the machine that none of them may touch.

As a program it takes them all, as whoever runs it, and prints what became of each as JSON lines:
    python3 udocker_hostile.py LIBRARY CORPUS STORE CANARY
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import time

WHEN = 1_600_000_000
CASES = {}


class Case:
    """content: bytes of a layer (kind "layer") or of an archive of images ("archive"), or {path: bytes} ("layout").

    expect: "refused", "unpacked", or None where both are well; limits: of unpack; links: {path: target} of a layout
    """

    def __init__(self, kind, content, expect=None, diff_id=None, limits=None, links=None):
        self.kind = kind
        self.content = content
        self.expect = expect
        self.diff_id = diff_id
        self.limits = limits or {}
        self.links = links or {}


def case(name, function):
    if name in CASES:
        raise ValueError(f"two cases are called {name}")
    CASES[name] = function


# Entries of tars, also those that no library writes


def entry(name, kind="0", content=b"", **attributes):
    """Bytes of one entry; names are taken as they are."""
    info = tarfile.TarInfo("x")
    info.type = kind.encode()
    info.size = len(content)
    info.mode = attributes.pop("mode", 0o755 if kind == "5" else 0o644)
    info.mtime = WHEN
    info.linkname = attributes.pop("linkname", "")
    info.devmajor, info.devminor = attributes.pop("device", (0, 0))
    pax = dict(attributes.pop("pax", {}))
    long = attributes.pop("long", False)
    for key, value in attributes.items():
        setattr(info, key, value)
    head = b""
    raw = os.fsencode(name)
    if len(raw) > 100 and not long:
        pax["path"] = name
    if long:
        head = entry("././@LongLink", "L", raw + b"\0")
    if len(os.fsencode(info.linkname)) > 100:
        pax["linkpath"] = info.linkname
        info.linkname = info.linkname[:100]
    if pax:
        records = b"".join(record(key, value) for key, value in pax.items())
        head += entry("PaxHeaders/x", "x", records)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")[:512])
    block[:100] = raw[:100].ljust(100, b"\0")
    return head + checked(block) + content + bytes(-len(content) % 512)


def record(key, value):
    value = value if isinstance(value, bytes) else os.fsencode(value)
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    length = len(body) + len(str(length))
    return str(length).encode() + body


def checked(block):
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar(*entries):
    return b"".join(entries) + bytes(1024)


def layered(*entries, **more):
    return Case("layer", tar(*entries), **more)


# Ways to write a name that leads elsewhere; {c} is the canary, {r} its way from the root

UP = "../" * 24
SPELLINGS = {
    "parent": "../planted", "parents": UP + "{r}/planted", "absolute": "{c}/planted", "absolute twice": "//{c}/planted",
    "absolute dot": "/./{c}/planted", "dot parent": "./../planted", "inner": "a/../../planted",
    "inner dots": "a/./../b/../../planted", "root parent": "/../planted", "root parents": "/" + UP + "{r}/planted",
    "only parent": "..", "parent slash": "../", "middle": "a/b/../../../planted", "deep": "a/" * 20 + UP * 2 + "{r}/x",
    "trailing": "a/..", "doubled": "..//..//planted", "dotted": "./././../planted", "newline": "a\n/../../planted",
    "high bytes": "\udcff\udcfe/../../planted", "backslash": "..\\..\\planted", "dots": ".../planted", "space": ".. /x",
}  # fmt: skip
REFUSED = set(SPELLINGS) - {"absolute", "absolute twice", "absolute dot", "backslash", "dots", "space"}
KINDS = {
    "file": lambda name: entry(name, "0", b"planted"),
    "folder": lambda name: entry(name + "/", "5", mode=0o777),
    "link": lambda name: entry(name, "2", linkname="/etc"),
    "fifo": lambda name: entry(name, "6"),
    "device": lambda name: entry(name, "3", device=(1, 3)),
    "zero device": lambda name: entry(name, "3"),
    "whiteout": lambda name: entry(os.path.join(os.path.dirname(name), ".wh." + os.path.basename(name)), "0"),
    "opaque": lambda name: entry(name + "/.wh..wh..opq", "0"),
    "old file": lambda name: entry(name, "\0", b"planted"),
}


def spelled(canary, spelling):
    return SPELLINGS[spelling].format(c=canary, r=canary.strip("/"))


def add_spellings():
    for spelling in SPELLINGS:
        for kind, make in KINDS.items():
            refused = "refused" if spelling in REFUSED else None
            if (spelling in ("trailing", "only parent", "parent slash") and kind == "whiteout") or (
                spelling == "only parent" and kind == "folder"
            ):
                refused = None  # the name of the whiteout is another one

            def build(canary, spelling=spelling, make=make, refused=refused):
                return layered(make(spelled(canary, spelling)), expect=refused)

            case(f"name {spelling}, {kind}", build)
        for how in ("pax", "long"):

            def build_long(canary, spelling=spelling, how=how):
                name = spelled(canary, spelling)
                if how == "pax":
                    return layered(entry("innocent", "0", b"1", pax={"path": name}))
                return layered(entry(name, "0", b"1", long=True))

            case(f"name {spelling}, in {how} header", build_long)

        def build_hard(canary, spelling=spelling):
            target = spelled(canary, spelling)
            return layered(
                entry("hard", "1", linkname=target), entry("hard", "0", b"overwritten"), expect="refused",
            )  # fmt: skip

        case(f"hard link to {spelling}", build_hard)


# Links that later entries go through

LINKS = {
    "absolute": "{c}", "relative": UP + "{r}", "parent": "..", "root": "/", "itself": "link", "dot": ".",
    "proc": "/proc/self/root{c}", "cwd": "/proc/self/cwd",
}  # fmt: skip
THROUGH = {
    "file": lambda link: [entry(f"{link}/planted", "0", b"planted")],
    "canary itself": lambda link: [entry(f"{link}/kept", "0", b"planted")],
    "folder": lambda link: [entry(f"{link}/planted/", "5", mode=0o777)],
    "mode of what it leads to": lambda link: [entry(f"{link}/", "5", mode=0o777)],
    "link": lambda link: [entry(f"{link}/planted", "2", linkname="x")],
    "whiteout": lambda link: [entry(f"{link}/.wh.kept", "0")],
    "opaque": lambda link: [entry(f"{link}/.wh..wh..opq", "0")],
    "hard link to it": lambda link: [entry("hard", "1", linkname=f"{link}/kept"), entry("hard", "0", b"planted")],
    "hard link to the link": lambda link: [
        entry("hard", "1", linkname=link), entry("hard/planted", "0", b"planted"), entry("hard", "0", b"x"),
    ],
    "hard link in it": lambda link: [entry("own", "0", b"1"), entry(f"{link}/planted", "1", linkname="own")],
    "file in its place": lambda link: [entry(link, "0", b"planted")],
    "link in its place": lambda link: [entry(link, "2", linkname="/etc"), entry(f"{link}/passwd", "0", b"planted")],
    "folder, then link again": lambda link: [
        entry(f"{link}/in", "0", b"1"), entry(link, "2", linkname="/etc"), entry(f"{link}/planted", "0", b"planted"),
    ],
}  # fmt: skip


def add_links():
    for how, target in LINKS.items():
        for what, make in THROUGH.items():

            def build(canary, target=target, make=make):
                leads = target.format(c=canary, r=canary.strip("/"))
                return layered(entry("link", "2", linkname=leads), *make("link"))

            case(f"through a link ({how}): {what}", build)

        def build_deep(canary, target=target):
            leads = target.format(c=canary, r=canary.strip("/"))
            return layered(
                entry("a/b/", "5"), entry("a/b/c", "2", linkname=leads), entry("first", "2", linkname="a/b"),
                entry("first/c/planted", "0", b"planted"), entry("a/b/c/planted", "0", b"planted"), expect="unpacked",
            )  # fmt: skip

        case(f"through a chain of links ({how})", build_deep)


# Whiteouts, devices, attributes, numbers, headers


def add_oddities():
    for name in (".wh.", ".wh..", ".wh...", "a/.wh..", "a/.wh...", ".wh..wh..opq/x", ".wh.a/b", "a/.wh.b/.wh.c"):
        case(f"whiteout {name!r}", lambda canary, name=name: layered(entry(name), expect="refused"))
    for name in (".wh..wh.", ".wh..wh.x", ".wh..wh..wh.x", ".wh..wh..opq", "a/.wh..wh..opq", ".wh.\n", ".wh.\udcff"):
        case(f"whiteout {name!r}", lambda canary, name=name: layered(entry(name), expect="unpacked"))
    for kind in "346":
        for device in ((0, 0), (1, 1), (8, 0), (255, 255)):
            case(
                f"device of type {kind} {device}",
                lambda canary, kind=kind, device=device: layered(
                    entry("device", kind, device=device, mode=0o666), entry("hard", "1", linkname="device"),
                    expect="unpacked" if kind == "6" else "refused",
                ),
            )  # fmt: skip
            case(
                f"file over a device of type {kind} {device}",
                lambda canary, kind=kind, device=device: layered(
                    entry("device", kind, device=device), entry("device", "0", b"1"), expect="unpacked"
                ),
            )
    attributes = (
        "user.overlay.opaque", "user.overlay.redirect", "user.overlay.metacopy", "trusted.overlay.opaque",
        "user.containers.override_stat", "security.selinux", "system.posix_acl_access", "user.fuseoverlayfs.opaque",
        "security.ima", "bad", "user.", "user." + "x" * 300,
    )  # fmt: skip
    for name in attributes:
        for kind in "05":
            case(
                f"attribute {name[:40]} of type {kind}",
                lambda canary, name=name, kind=kind: layered(
                    entry("entry", kind, pax={f"SCHILY.xattr.{name}": "y"}), expect="unpacked"
                ),
            )
    numbers = {
        "negative": b"-0000000001\0", "base 256 negative": b"\xff" * 12, "base 256 huge": b"\x80" + b"\x7f" * 11,
        "letters": b"abcdefghijk\0", "underscore": b"7_7________\0", "octal prefix": b"0o777777777\0",
        "hex": b"0x1ff\0\0\0\0\0\0\0",
        "nine": b"99999999999\0", "eight exbibytes": b"\x80\0\0\0" + b"\x7f" + b"\xff" * 7,
    }  # fmt: skip
    for field, at in (("size", 124), ("mtime", 136)):
        for what, value in numbers.items():

            def build(canary, at=at, value=value):
                block = bytearray(entry("a", "0"))
                block[at : at + 12] = value
                return Case("layer", checked(block) + bytes(1024))

            case(f"{field} {what}", build)
    for what, value in (("negative", b"\xff" * 8), ("huge", b"\x80" + b"\x7f" * 7), ("letters", b"rootroot")):
        for field, at in (("uid", 108), ("gid", 116)):

            def build_owner(canary, at=at, value=value):
                block = bytearray(entry("a", "0"))
                block[at : at + 8] = value
                return Case("layer", checked(block) + bytes(1024), expect="refused")

            case(f"{field} {what}", build_owner)
    pax = {
        "no length": b" path=x\n", "length 0": b"0 path=x\n", "short": b"3 a\n", "past the end": b"999 path=x\n",
        "no end": b"9 path=xx", "no value": b"7 path\n", "not a number": b"xx path=x\n", "rest": b"9 path=x\nrest",
        "negative": b"-9 path=x\n", "huge": b"9" * 30 + b" path=x\n", "zero byte": record("path", "a\0b"),
        "size": record("size", "-1"), "huge size": record("size", "9" * 30), "uid": record("uid", "-1"),
        "mtime": record("mtime", "nan"), "huge mtime": record("mtime", "9" * 20), "link": record("linkpath", UP),
        "sparse map": record("GNU.sparse.map", "0,1,2"), "sparse 1.0": record("GNU.sparse.major", "1"),
        "sparse name": record("GNU.sparse.name", "../../planted") + record("GNU.sparse.map", "")
        + record("GNU.sparse.size", "0"),
    }  # fmt: skip
    for what, content in pax.items():
        case(
            f"pax {what}",
            lambda canary, content=content: layered(entry("PaxHeaders/x", "x", content), entry("a", "0", b"1")),
        )
    for kind in "DMNVAZ89":
        case(f"type {kind}", lambda canary, kind=kind: layered(entry("../planted", kind, b"1"), entry("a", "0", b"1")))
    case("checksum", lambda canary: Case("layer", entry("a")[:148] + b"0000000\0" + entry("a")[156:], expect="refused"))
    case("top is a file", lambda canary: layered(entry("/", "0", b"1")))
    for kind in ("1", "2", "3", "6"):
        case(
            f"top is of type {kind}",
            lambda canary, kind=kind: layered(entry("./", kind, linkname="x"), expect="refused"),
        )
    case("no tar", lambda canary: Case("layer", b"#!/bin/sh\n" * 200, expect="refused"))
    case("nothing", lambda canary: Case("layer", b"", expect="refused"))
    case("link without a target", lambda canary: layered(entry("a", "2"), expect="refused"))


# What would take all there is


def sparse_0_1(size, numbers="0,1"):
    return {"GNU.sparse.map": numbers, "GNU.sparse.size": str(size), "GNU.sparse.name": "sparse"}


def add_bombs():
    small = {"bytes": 1 << 22}
    zeros = gzip.compress(bytes(1 << 24), 9)
    header = entry("zeros")[:124] + b"%011o\0" % (1 << 31) + entry("zeros")[136:]
    case("bomb: gzip", lambda canary: Case(
        "layer", gzip.compress(checked(bytearray(header))) + zeros * 128, "refused",
        limits={"small": 1 << 25}))  # fmt: skip
    case("bomb: gzip of gzip", lambda canary: Case("layer", gzip.compress(gzip.compress(zeros * 8)), "refused"))
    many = {"entries": 2000}
    for what, kind in (("files", "0"), ("folders", "5"), ("links", "2"), ("whiteouts", "w")):
        case(
            f"bomb: many {what}",
            lambda canary, kind=kind: layered(
                *(
                    entry(f".wh.{n}" if kind == "w" else f"{n}", "0" if kind == "w" else kind, linkname="x")
                    for n in range(2001)
                ),
                expect="refused", limits=many,
            ),
        )  # fmt: skip
    case("bomb: deep", lambda canary: layered(entry("d/" * 1500 + "x", "0", b"1"), expect="refused"))
    case("bomb: deep, step by step", lambda canary: layered(
        *(entry("/".join(["d"] * depth) + "/", "5") for depth in range(1, 300)), expect="refused"))  # fmt: skip
    case("bomb: long name", lambda canary: layered(entry("n" * 5000, "0"), expect="refused"))
    case("bomb: long component", lambda canary: layered(entry("n" * 300, "0"), expect="refused"))
    case("bomb: long link", lambda canary: layered(entry("l", "2", linkname="t" * 5000), expect="refused"))
    case("bomb: header", lambda canary: layered(entry("a", pax={"comment": "x" * (2 << 20)}), expect="refused"))
    case("bomb: headers", lambda canary: layered(
        *(entry("PaxHeaders/x", "x", record("comment", "x" * 60000)) for _n in range(40)), entry("a"),
        expect="refused"))  # fmt: skip
    case("bomb: long names", lambda canary: layered(
        *(entry("././@LongLink", "L", b"x" * 60000) for _n in range(40)), entry("a"), expect="refused"))  # fmt: skip
    for what, size in (("terabytes", 1 << 50), ("exabytes", (1 << 63) - 1), ("more", 10**19)):
        case(f"bomb: sparse, {what}", lambda canary, size=size: layered(
            entry("s", "0", b"x", pax=sparse_0_1(size)), expect="refused"))  # fmt: skip
    case("bomb: sparse, together", lambda canary: layered(
        *(entry(f"s{n}", "0", b"x", pax={**sparse_0_1(1 << 21), "GNU.sparse.name": f"s{n}"}) for n in range(5)),
        expect="refused", limits=small))  # fmt: skip
    for what, numbers in (("overlaps", "0,1,0,1"), ("backwards", "5,1,0,1"), ("past the end", "100,1"), ("odd", "1"),
                          ("negative", "-1,1"), ("other size", "0,5"), ("letters", "a,b")):  # fmt: skip
        case(f"sparse map: {what}", lambda canary, numbers=numbers: layered(
            entry("s", "0", b"xx", pax=sparse_0_1(10, numbers)), expect="refused"))  # fmt: skip
    sparse_1_0 = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    case("sparse 1.0: map without end", lambda canary: layered(
        entry("s", "0", b"1" * 4096, pax=sparse_1_0),
        expect="refused"))  # fmt: skip
    case("sparse 1.0: map of billions", lambda canary: layered(
        entry("s", "0", b"999999999\n".ljust(512, b"0"),
              pax=sparse_1_0),
        expect="refused"))  # fmt: skip

    def old_sparse(canary):
        block = bytearray(entry("s", "S"))
        block[386:410] = b"00000000000\0" * 2
        block[482] = 1
        block[483:495] = b"77777777777\0"
        more = bytearray(512)
        more[504] = 1
        return Case("layer", checked(block) + bytes(more) * 5000 + bytes(1024), "refused")

    case("sparse, old: map without end", old_sparse)

    def flips(canary):
        return layered(
            *(part for _n in range(1100) for part in (entry("x/y", "0"), entry("x", "0"))), expect="refused"
        )  # fmt: skip

    case("bomb: folders and files in turn", flips)
    case("bomb: hard links", lambda canary: layered(
        entry("a"), *(entry(f"l{n}", "1", linkname="a") for n in range(2000)),
        expect="refused", limits=many))  # fmt: skip


# Archives of images


def sha(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


LAYER = tar(entry("etc/", "5"), entry("etc/motd", "0", b"hello"))


def config(**changes):
    whole = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [sha(LAYER)]},
    }
    return json.dumps({**whole, **changes}).encode()


def archive(manifest=None, extra=(), configuration=None, **changes):
    """A Docker archive; manifest: bytes instead of what would be right."""
    right = {"Config": "config.json", "RepoTags": ["hostile:1"], "Layers": ["layer.tar"]}
    content = manifest if isinstance(manifest, bytes) else json.dumps([{**right, **changes}]).encode()
    return tar(
        entry("config.json", "0", configuration or config()), entry("layer.tar", "0", LAYER), *extra,
        entry("manifest.json", "0", content),
    )  # fmt: skip


JSONS = {
    "deep list": b"[" * 100_000 + b"]" * 100_000, "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "number": b"5", "text": b'"x"', "nothing": b"", "zero bytes": bytes(1000), "no UTF-8": b'["\xff"]',
    "empty list": b"[]", "empty object": b"{}", "null": b"null", "cut off": b'[{"Config": "con', "nan": b"[NaN]",
    "huge number": b"[" + b"9" * 100_000 + b"]", "list of lists": b"[[[]]]", "long": b'["' + b"x" * (17 << 20) + b'"]',
}  # fmt: skip
WRONG = {"number": 5, "null": None, "list": [], "object": {}, "nested": [[["x"]]], "true": True, "float": 1e300}


def add_archives():
    for what, content in JSONS.items():
        case(
            f"archive: manifest.json is {what}",
            lambda canary, content=content: Case("archive", archive(content), "refused"),
        )
        case(f"archive: configuration is {what}", lambda canary, content=content: Case(
            "archive", archive(configuration=content or b" "), "refused"))  # fmt: skip
    for key in ("Config", "RepoTags", "Layers"):
        for what, value in WRONG.items():
            case(f"archive: {key} is {what}", lambda canary, key=key, value=value: Case(
                "archive", archive(**{key: value}),
                None if key == "RepoTags" and value in ([], {}, None) else "refused"))  # fmt: skip
    for spelling in SPELLINGS:
        for key in ("Config", "Layers"):

            def build(canary, spelling=spelling, key=key):
                name = spelled(canary, spelling)
                return Case("archive", archive(**{key: name if key == "Config" else [name]}), "refused")

            case(f"archive: {key} at {spelling}", build)

        def build_name(canary, spelling=spelling):
            return Case("archive", archive(RepoTags=[spelled(canary, spelling) + ":1"]), "refused")

        case(f"archive: an image called {spelling}", build_name)
    names = (
        "", ":", "a:", ":1", "a:../../x", "a:/etc", "A:1", "a@sha256:1", "a\0:1", "a:" + "1" * 200, "a" * 300 + ":1",
        "-a:1", "a:1\n", "a/../b:1", "..:1", "%2e%2e/x:1", "http://x/y:1",
    )  # fmt: skip
    for name in names:
        case(f"archive: an image called {name[:30]!r}", lambda canary, name=name: Case(
            "archive", archive(RepoTags=[name]), "refused" if name != "a:1\n" else None))  # fmt: skip
    links = {
        "to the machine": "{c}/kept", "up": UP + "{r}/kept", "to itself": "layer.tar", "to a folder": ".",
        "to proc": "/proc/self/environ",
    }  # fmt: skip
    for kind in "12":
        for what, target in links.items():

            def build_link(canary, kind=kind, target=target):
                leads = target.format(c=canary, r=canary.strip("/"))
                return Case("archive", archive(extra=[entry("layer.tar", kind, linkname=leads)]), "refused")

            case(f"archive: a layer is a link ({kind}) {what}", build_link)
    case("archive: links in a circle", lambda canary: Case("archive", archive(
        extra=[entry("a", "2", linkname="b"), entry("b", "2", linkname="a")], Layers=["a"]), "refused"))  # fmt: skip
    diff_ids = {
        "traversal": ["sha256:" + "../" * 20 + "x"], "short": ["sha256:abc"], "upper case": [sha(LAYER).upper()],
        "number": [5], "another": [sha(b"another")], "none": [], "two": [sha(LAYER)] * 2, "text": sha(LAYER),
        "null": None, "md5": ["md5:" + "0" * 32], "slashes": ["sha256:" + "/" * 64], "list": [[sha(LAYER)]],
    }  # fmt: skip
    for what, value in diff_ids.items():
        rootfs = {"type": "layers", "diff_ids": value}
        case(f"archive: diff-ids: {what}", lambda canary, rootfs=rootfs: Case(
            "archive", archive(configuration=config(rootfs=rootfs)), "refused"))  # fmt: skip
    case("archive: no rootfs", lambda canary: Case("archive", archive(configuration=config(rootfs=7)), "refused"))
    case("archive: neither manifest nor index", lambda canary: Case("archive", tar(entry("x")), "refused"))
    case("archive: cut off", lambda canary: Case("archive", archive()[:2000], "refused"))
    case("archive: gzip, cut off", lambda canary: Case("archive", gzip.compress(archive())[:-200], "refused"))
    case("archive: sparse", lambda canary: Case(
        "archive", tar(entry("x", "0", b"x", pax=sparse_0_1(1 << 60))), "refused"))  # fmt: skip
    case("archive: size past the end", lambda canary: Case(
        "archive", checked(bytearray(entry("x")[:124] + b"77777777777\0" + entry("x")[136:])), "refused"))  # fmt: skip


def layout(**changes):
    """{path: content} of an OCI layout; changes: of the manifest, of `layer` and `config` descriptors, of the index."""
    configuration = changes.get("configuration", config())
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": sha(configuration),
        "size": len(configuration),
    }
    packed = gzip.compress(LAYER, mtime=0)
    blob = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha(packed), "size": len(packed)}
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {**described, **changes.get("config", {})}, "layers": [{**blob, **changes.get("layer", {})}],
        **changes.get("manifest", {}),
    }  # fmt: skip
    content = json.dumps(manifest).encode()
    top = {"mediaType": manifest["mediaType"], "digest": sha(content), "size": len(content), **changes.get("top", {})}
    index = changes.get("index") or json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index,
        f"blobs/sha256/{sha(configuration)[7:]}": configuration, f"blobs/sha256/{sha(packed)[7:]}": packed,
        f"blobs/sha256/{sha(content)[7:]}": content,
    }  # fmt: skip


def add_layouts():
    for what, content in JSONS.items():
        case(f"layout: index.json is {what}", lambda canary, content=content: Case(
            "layout", layout(index=content or b" "), "refused"))  # fmt: skip
    digests = {
        "traversal": "sha256:" + "../" * 10 + "etc/passwd", "absolute": "/etc/passwd", "short": "sha256:00",
        "number": 7, "another": sha(b"another"), "empty": "", "upper case": "sha256:" + "A" * 64,
        "algorithm": "../x:" + "0" * 64,
    }  # fmt: skip
    for place in ("top", "config", "layer"):
        for what, value in digests.items():
            case(f"layout: digest of {place}: {what}", lambda canary, place=place, value=value: Case(
                "layout", layout(**{place: {"digest": value}}), "refused"))  # fmt: skip
        for value in (-1, 1, 1 << 60, "12", None, True, 1.5):
            case(f"layout: size of {place}: {value!r}", lambda canary, place=place, value=value: Case(
                "layout", layout(**{place: {"size": value}}), "refused"))  # fmt: skip
        for value in (
            "text/html",
            "",
            None,
            5,
            "application/vnd.oci.empty.v1+json",
            "application/vnd.docker.image.rootfs.foreign",
        ):
            case(f"layout: type of {place}: {value!r}", lambda canary, place=place, value=value: Case(
                "layout", layout(**{place: {"mediaType": value}}),
                None if place == "top" and value in ("", None) else "refused"))  # fmt: skip
    case("layout: layers from elsewhere", lambda canary: Case(
        "layout", layout(layer={"urls": ["file:///etc/passwd"]}), "refused"))  # fmt: skip
    case("layout: schema 1", lambda canary: Case("layout", layout(manifest={"schemaVersion": 1}), "refused"))
    case("layout: manifest and index in one", lambda canary: Case(
        "layout", layout(manifest={"manifests": []}), "refused"))  # fmt: skip
    case("layout: thousands of layers", lambda canary: Case(
        "layout", layout(manifest={"layers": [{"digest": sha(LAYER), "size": 1}] * 5000}), "refused"))  # fmt: skip

    def nested(depth):
        files = layout()
        top = json.loads(files["index.json"])["manifests"][0]
        for _level in range(depth):
            content = json.dumps({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [top],
            }).encode()  # fmt: skip
            files[f"blobs/sha256/{sha(content)[7:]}"] = content
            top = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": sha(content), "size": len(content)}
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
        return files

    case("layout: lists in lists, 50 deep", lambda canary: Case("layout", nested(50), "refused"))
    index = "application/vnd.oci.image.index.v1+json"

    def circle(canary):
        """A list that names itself, whose digest cannot be right."""
        files = layout()
        inner = {"mediaType": index, "digest": sha(b"circle"), "size": 10}
        files[f"blobs/sha256/{sha(b'circle')[7:]}"] = json.dumps(
            {"schemaVersion": 2, "mediaType": index, "manifests": [inner]}
        ).encode()
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
        return Case("layout", files, "refused")

    case("layout: lists in a circle", circle)
    for part in ("config", "layer", "manifest", "index.json", "blobs", "sha256"):
        for way in ("machine", "same"):

            def build(canary, part=part, way=way):
                files = layout()
                document = json.loads(files["index.json"])["manifests"][0]
                manifest = json.loads(files["blobs/sha256/" + document["digest"][7:]])
                paths = {
                    "config": "blobs/sha256/" + manifest["config"]["digest"][7:],
                    "manifest": "blobs/sha256/" + document["digest"][7:],
                    "layer": "blobs/sha256/" + manifest["layers"][0]["digest"][7:], "index.json": "index.json",
                }  # fmt: skip
                links = {}
                if part in ("blobs", "sha256"):
                    # A folder elsewhere with the right names: still a link.
                    old = "blobs" if part == "blobs" else "blobs/sha256"
                    files = {("elsewhere" + path[len(old) :] if path.startswith(old) else path): content
                             for path, content in files.items()}  # fmt: skip
                    links[old] = canary if way == "machine" else ("elsewhere" if part == "blobs" else "../elsewhere")
                else:
                    files["elsewhere"] = files.pop(paths[part])
                    up = "../" * paths[part].count("/")
                    links[paths[part]] = f"{canary}/kept" if way == "machine" else f"{up}elsewhere"
                return Case("layout", files, "refused", links=links)

            case(f"layout: {part} is a link, {way}", build)


# Digests and cut-off streams


def add_digests():
    case("digest: another layer", lambda canary: Case("layer", LAYER, "refused", diff_id=sha(b"another")))
    case("digest: the compressed one", lambda canary: Case(
        "layer", gzip.compress(LAYER, mtime=0), "refused", diff_id=sha(gzip.compress(LAYER, mtime=0))))  # fmt: skip
    packed = gzip.compress(LAYER)
    for share in (1, 3, 5, 7, 9):
        case(f"gzip cut off after {share}0 %", lambda canary, share=share: Case(
            "layer", packed[: len(packed) * share // 10], "refused", diff_id=sha(LAYER)))  # fmt: skip
        case(f"tar cut off after {share}0 %", lambda canary, share=share: Case(
            "layer", LAYER[: len(LAYER) * share // 10], "refused", diff_id=sha(LAYER)))  # fmt: skip
    case("something after the gzip stream", lambda canary: Case("layer", gzip.compress(LAYER) + b"more", "refused"))
    case("another tar after the end", lambda canary: Case("layer", LAYER + tar(entry("../planted")), None))
    for head in (b"BZh9", b"\xfd7zXZ\0", b"(\xb5/\xfd", b"\x1f\x8b", b"PK\3\4", b"BZh91AY&SY"):
        case(f"only looks like {head!r}", lambda canary, head=head: Case("layer", head + b"x" * 2000, "refused"))


for _add in (add_spellings, add_links, add_oddities, add_bombs, add_archives, add_layouts, add_digests):
    _add()


def write(folder, canary):
    """Write all cases below a folder; returns the path of their list."""
    listed = []
    for number, (name, function) in enumerate(CASES.items()):
        made = function(canary)
        path = os.path.join(folder, f"{number:04}")
        if isinstance(made.content, dict):
            for inside, content in made.content.items():
                os.makedirs(os.path.dirname(os.path.join(path, inside)), exist_ok=True)
                with open(os.path.join(path, inside), "wb") as target:
                    target.write(content)
            for inside, target in made.links.items():
                os.makedirs(os.path.dirname(os.path.join(path, inside)), exist_ok=True)
                os.symlink(target, os.path.join(path, inside))
        else:
            with open(path, "wb") as target:
                target.write(made.content)
        facts = {"name": name, "path": os.path.basename(path), "kind": made.kind}
        listed.append({**facts, "diff_id": made.diff_id, "limits": made.limits, "expect": made.expect})
    with open(os.path.join(folder, "cases.json"), "w") as target:
        json.dump(listed, target)


# Taking them


def snapshot(*tops):
    """All that can be seen of folders: names, kinds, modes, owners, sizes, times, contents, attributes."""
    found = []
    for top in tops:
        for folder, folders, files in os.walk(top):
            folders.sort()
            for name in [".", *sorted(folders + files)]:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                facts = [path, status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns]
                if stat.S_ISREG(status.st_mode):
                    with open(path, "rb") as source:
                        facts.append(source.read())
                if not stat.S_ISLNK(status.st_mode):
                    facts.append(sorted((one, os.getxattr(path, one)) for one in os.listxattr(path)))
                found.append(facts)
    return found


def main(library, corpus, folder, canary):
    sys.path.insert(0, library)
    from udocker import archives, engines, errors, pack, trees, unpack, userns
    from udocker import store as stores
    from udocker import tar as tars

    store = stores.Store(folder)
    with open(os.path.join(corpus, "cases.json")) as source:
        cases = json.load(source)
    before = snapshot(canary)
    print(json.dumps({"mapped": userns.mapped()}), flush=True)
    engine = next((name for name, reason in engines.probe(store).items() if name == "overlay" and reason is None), None)
    below = unpack.layer(store, io.BytesIO(LAYER))
    around = sorted(os.listdir(os.path.dirname(folder)))
    null = os.open(os.devnull, os.O_WRONLY)
    for one in cases:
        began, layers, said = time.monotonic(), [], ""
        path = os.path.join(corpus, one["path"])
        try:
            if one["kind"] == "layer":
                layers.append(unpack.layer(store, path, one["diff_id"], tars.Limits(**one["limits"])))
            else:
                loaded = archives.load(store, path)
                layers += [layer["diff_id"] for image in loaded for layer in image.layers]
            outcome = "unpacked"
        except errors.Error as exc:
            outcome, said = "refused", str(exc)
        except Exception as exc:
            outcome, said = "failed", f"{type(exc).__name__}: {exc}"
        problems = []
        if layers:
            # Whoever makes a container's root of it, and a tar of that, follows nothing, either.
            folders = [store.layer(below), *map(store.layer, layers)]
            tree = os.path.join(folder, "tree")
            try:
                trees.merge(folders, tree)
                userns.call(_pack, pack, null, tree, folders)
                userns.call(_look, unpack, folders[1:], problems)
                if engine and one["name"].startswith("through"):
                    made = os.path.join(folder, "container")
                    chosen = engines.choose(store, engine)
                    os.mkdir(made)
                    chosen.prepare(made, folders)
                    chosen.inside(made, folders, os.listdir)
                    chosen.remove(made)
            except Exception as exc:
                problems.append(f"afterwards: {type(exc).__name__}: {exc}")
            finally:
                trees.remove(tree)
        after = snapshot(canary)
        if after != before:
            problems.append(
                "ESCAPED: the canary has changed: " + repr([new for new in after if new not in before])[:300]
            )
            before = after
        if sorted(os.listdir(os.path.dirname(folder))) != around:
            problems.append("ESCAPED: something is beside the store")
        if os.listdir(store.path("tmp")):
            problems.append(f"left: {os.listdir(store.path('tmp'))}")
        seconds = time.monotonic() - began
        print(json.dumps({"name": one["name"], "outcome": outcome, "said": said[:300], "problems": problems,
                          "seconds": seconds}), flush=True)  # fmt: skip


def _pack(pack, null, tree, folders):
    with open(null, "wb", buffering=0, closefd=False) as stream:
        pack.write_changes(stream, folders, tree, True)
        pack.write_tree(stream, folders)


def _look(unpack, folders, problems):
    """An unpacked layer holds nothing that an image may not bring."""
    for top in folders:
        for folder, names, files in os.walk(top):
            for name in names + files:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev):
                    raise AssertionError(f"{path} is a device")
                if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                    for attribute in os.listxattr(path):
                        if attribute.startswith(unpack.RESERVED) and attribute not in (unpack.OPAQUE, unpack.OWNER):
                            raise AssertionError(f"{path} has {attribute}")


if __name__ == "__main__":
    main(*sys.argv[1:])
