# SPDX-License-Identifier: Apache-2.0
"""Resources and attributes, in the texts that flags have and in the shapes of the two APIs."""

from __future__ import annotations

import json
import os
import re

SCALARS = ("cpus", "mem", "disk", "gpus")


class Invalid(ValueError):
    """A text that cannot be read; the message says which part."""


def ranges(text):
    """[[begin, end], ...] of "[1-2,5-9]"."""
    found = re.fullmatch(r"\[\s*(\d+\s*-\s*\d+(?:\s*,\s*\d+\s*-\s*\d+)*)\s*\]", text.strip())
    if not found:
        raise Invalid(f"Invalid ranges '{text}'")
    pairs = [[int(end) for end in one.split("-")] for one in found.group(1).split(",")]
    if any(begin > end for begin, end in pairs):
        raise Invalid(f"Invalid ranges '{text}': begin is after end")
    return pairs


def resources(text):
    """{"cpus", "mem", "disk", "gpus", "ports"} of a flag's text or JSON: what it names, and nothing of the rest."""
    if text.lstrip().startswith("["):
        return _resources_json(text)
    found = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, value = part.partition(":")
        if not colon or not re.fullmatch(r"\w+(\(\*\))?", name.strip()):
            raise Invalid(f"Failed to parse resource '{part}'")
        name = name.strip().replace("(*)", "")
        if value.strip().startswith("["):
            found[name] = ranges(value)
        else:
            try:
                found[name] = float(value)
            except ValueError:
                raise Invalid(f"Failed to parse resource '{part}'") from None
    return found


def _resources_json(text):
    found = {}
    try:
        for one in json.loads(text):
            if one.get("role", "*") != "*":
                raise Invalid("the stand-in reserves no resources for roles")
            if one["type"] == "RANGES":
                found[one["name"]] = [[each["begin"], each["end"]] for each in one["ranges"]["range"]]
            else:
                found[one["name"]] = float(one["scalar"]["value"])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as exc:
        raise Invalid(f"Failed to parse resources: {exc}") from None
    return found


def of_machine():
    """What an agent has that is not told."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    disk = os.statvfs("/")
    space = disk.f_blocks * disk.f_frsize // 2**20
    return {
        "cpus": float(os.cpu_count() or 1),
        "mem": float(memory - 1024 if memory >= 2048 else memory // 2),
        "disk": float(space - 5120 if space >= 10240 else space // 2),
        "gpus": 0.0,
        "ports": [[31000, 32000]],
    }


def attributes(text):
    """{name: text, number or ranges} of a flag's text."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, value = part.partition(":")
        if not colon or not name or not value:
            raise Invalid(f"Invalid attribute key:value pair '{part}'")
        if value.startswith("["):
            found[name] = ranges(value)
            continue
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def shown_ranges(pairs):
    return "[" + ", ".join(f"{begin}-{end}" for begin, end in pairs) + "]"


def shown_attributes(values):
    return {name: shown_ranges(value) if isinstance(value, list) else value for name, value in values.items()}


def shown(values):
    """Resources as /state has them."""
    found = {name: float(values.get(name, 0)) for name in ("disk", "mem", "gpus", "cpus")}
    if values.get("ports"):
        found["ports"] = shown_ranges(values["ports"])
    return found


def full(values, role="*", allocated=None):
    """Resources as the v1 API and the `_full` fields of the other have them; role None: not said."""
    found = []
    for name in SCALARS:
        if values.get(name):
            found.append({"name": name, "type": "SCALAR", "scalar": {"value": float(values[name])}})
    if values.get("ports"):
        pairs = [{"begin": begin, "end": end} for begin, end in values["ports"]]
        found.append({"name": "ports", "type": "RANGES", "ranges": {"range": pairs}})
    for one in found:
        if role is not None:
            one["role"] = role
        if allocated is not None:
            one["allocation_info"] = {"role": allocated}
    return found


def full_attributes(values):
    found = []
    for name, value in values.items():
        if isinstance(value, list):
            pairs = [{"begin": begin, "end": end} for begin, end in value]
            found.append({"name": name, "type": "RANGES", "ranges": {"range": pairs}})
        elif isinstance(value, float):
            found.append({"name": name, "type": "SCALAR", "scalar": {"value": value}})
        else:
            found.append({"name": name, "type": "TEXT", "text": {"value": value}})
    return found


def total(parts):
    """The sum of resources; `ports` of them are lists of single ports and become ranges."""
    parts = list(parts)
    found = {name: round(sum(float(part.get(name, 0)) for part in parts), 6) for name in SCALARS}
    found["ports"] = joined(sorted(port for part in parts for port in part.get("ports", ())))
    return found


def joined(ports):
    """Ranges of sorted single ports."""
    pairs = []
    for port in ports:
        if pairs and pairs[-1][1] == port - 1:
            pairs[-1][1] = port
        else:
            pairs.append([port, port])
    return pairs


def includes(pairs, port):
    return any(begin <= port <= end for begin, end in pairs)


def covers(new, old):
    """Whether resources `new` have at least all that `old` have."""
    if any(new.get(name, 0) < value for name, value in old.items() if not isinstance(value, list)):
        return False
    for name, value in old.items():
        if isinstance(value, list):
            mine = new.get(name, [])
            if not all(any(begin <= low and high <= end for begin, end in mine) for low, high in value):
                return False
    return True
