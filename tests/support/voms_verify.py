# SPDX-License-Identifier: Apache-2.0
"""What VOMS' own library says of a proxy: the verdict that relying parties act on.

``voms-proxy-info`` shows a person what is there, and accepts attributes that have ended.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys


@dataclasses.dataclass(frozen=True)
class Verdict:
    """error: empty where the attributes are accepted."""

    error: str
    vo: str = ""
    user: str = ""
    fqans: tuple[str, ...] = ()


def verify(proxy, vomsdir, certificates) -> Verdict:
    """Of a PEM file, by libvomsapi in a process of its own."""
    command = [sys.executable, __file__, str(proxy), str(vomsdir), str(certificates)]
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=30).stdout)
    return Verdict(**{**answer, "fqans": tuple(answer.get("fqans", ()))})


_TEXT = ctypes.c_char_p


class _Voms(ctypes.Structure):
    """The start of ``struct voms``, as in voms_apic.h."""

    _fields_ = (
        [("siglen", ctypes.c_int)]
        + [(name, _TEXT) for name in ("signature", "user", "userca", "server", "serverca", "voname", "uri")]
        + [("date1", _TEXT), ("date2", _TEXT), ("type", ctypes.c_int), ("std", ctypes.c_void_p), ("custom", _TEXT)]
        + [("datalen", ctypes.c_int), ("version", ctypes.c_int), ("fqan", ctypes.POINTER(_TEXT))]
    )


class _VomsData(ctypes.Structure):
    _fields_ = (("cdir", _TEXT), ("vdir", _TEXT), ("data", ctypes.POINTER(ctypes.POINTER(_Voms))))


def _main(proxy: str, vomsdir: str, certificates: str) -> dict:
    api, libc = ctypes.CDLL("libvomsapi.so.1"), ctypes.CDLL(None)
    libc.fopen.restype, api.VOMS_ErrorMessage.restype = ctypes.c_void_p, _TEXT
    api.VOMS_Init.restype = ctypes.POINTER(_VomsData)
    data = api.VOMS_Init(vomsdir.encode(), certificates.encode())
    stream = ctypes.c_void_p(libc.fopen(proxy.encode(), b"r"))
    code = ctypes.c_int()
    recurse_chain = 0
    if not api.VOMS_RetrieveFromFile(stream, recurse_chain, data, ctypes.byref(code)):
        buffer = ctypes.create_string_buffer(4096)
        text = api.VOMS_ErrorMessage(data, code, buffer, len(buffer)) or b""
        return {"error": text.decode().strip() or f"error {code.value}"}
    attributes = data.contents.data[0].contents
    fqans = []
    while attributes.fqan[len(fqans)]:
        fqans.append(attributes.fqan[len(fqans)].decode())
    return {"error": "", "vo": attributes.voname.decode(), "user": attributes.user.decode(), "fqans": fqans}


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
