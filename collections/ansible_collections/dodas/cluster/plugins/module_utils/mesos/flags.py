# SPDX-License-Identifier: Apache-2.0
"""Flags of Mesos as an environment file, and what an agent may say of itself when it is started again.

An agent that comes back with other attributes or resources ends at once, unless they are more than they were and its
policy is `additive`. Otherwise it has to forget who it was, and its tasks with it. Standard library only.
"""

from __future__ import annotations

import json
import re

FLAG = re.compile(r"[a-z][a-z0-9_]*")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
TEXT = re.compile(r"[A-Za-z0-9_./+@-]+")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
RANGE = re.compile(r"(\d+)-(\d+)")
ESCAPED = re.compile(r'(["\\$`])')
LINE = re.compile(r'MESOS_([A-Z0-9_]+)="(.*)"')
# What an agent is known by besides attributes and resources: no policy lets it change.
FIXED = ("hostname", "port", "domain", "default_role")


def write(flags):
    """The environment file of {flag: text, number, truth value, list of texts, or a mapping, which is written as JSON};
    what is None is left out. systemd reads it, and a person. Raises ValueError that names the flag."""
    lines = []
    for name, value in flags.items():
        if not FLAG.fullmatch(str(name)):
            raise ValueError(f"{name!r} is no name of a flag: lower-case letters, digits and _")
        if value is None:
            continue
        shown = _shown(value)
        if not shown.isprintable():
            raise ValueError(f"flag {name}: its value must be one line")
        escaped = ESCAPED.sub(r"\\\1", shown)
        lines.append(f'MESOS_{name.upper()}="{escaped}"\n')
    return "".join(lines)


def read(content):
    """{flag: text} of what `write` made."""
    found = [LINE.fullmatch(line) for line in content.splitlines()]
    return {one.group(1).lower(): re.sub(r'\\(["\\$`])', r"\1", one.group(2)) for one in found if one}


def text(values, numbers=False):
    """{name: number, text, or list of ranges such as "31000-32000"} in Mesos' words: "cpus:2;ports:[31000-32000]".

    numbers: texts are refused, as for resources. Raises ValueError that names what Mesos would end for.
    """
    return ";".join(f"{_name(name)}:{_value(name, value, numbers)}" for name, value in values.items())


def change(before, after):
    """What it means for an agent to be started with the flags `after` instead of `before` ({flag: text}).

    kind: "same", "additive" (it may come back as the one it was) or "incompatible"; reason: what changed, in words.
    """
    other = [f"{one} was {before.get(one, 'not set')} and is {after.get(one, 'not set')}"
             for one in FIXED if before.get(one) != after.get(one)]  # fmt: skip
    more = []
    for flag, measured in (("attributes", False), ("resources", True)):
        _compare(_parsed(before.get(flag, "")), _parsed(after.get(flag, "")), measured, other, more)
    kind = "incompatible" if other else "additive" if more else "same"
    return {"kind": kind, "reason": ", ".join(other + more)}


def _compare(before, after, measured, other, more):
    """Tell apart what is another and what is only more. measured: what is not said the agent measures, so that it may
    have been anything."""
    other += [f"{name} is gone" for name in before if name not in after]
    (other if measured else more).extend(f"{name} is new" for name in after if name not in before)
    for name in before:
        if name in after and after[name] != before[name]:
            included = _includes(after[name], before[name], measured)
            (more if included else other).append(f"{name} is {'more' if included else 'another'}")


def _includes(after, before, measured):
    if isinstance(before, list) and isinstance(after, list):
        return all(any(low <= begin and end <= high for low, high in after) for begin, end in before)
    return measured and isinstance(before, float) and isinstance(after, float) and before <= after


def _parsed(words):
    """{name: number, text, or list of (begin, end)}."""
    pairs = [one.partition(":") for one in words.split(";") if one]
    return {name: _parsed_value(value) for name, _colon, value in pairs}


def _parsed_value(value):
    if value.startswith("["):
        joined = []
        for begin, end in sorted((int(low), int(high)) for low, high in RANGE.findall(value)):
            if joined and begin <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((begin, end))
        return joined
    return float(value) if NUMBER.fullmatch(value) else value


def _shown(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _name(name):
    if not NAME.fullmatch(str(name)):
        raise ValueError(f"{name!r} is no name: letters, digits and _.-")
    return name


def _value(name, value, numbers):
    if isinstance(value, list):
        for one in value:
            found = RANGE.fullmatch(str(one))
            if not found or int(found.group(1)) > int(found.group(2)):
                raise ValueError(f"{name}: {one!r} is no range such as 31000-32000")
        if not value:
            raise ValueError(f"{name}: there is no range")
        return f"[{','.join(value)}]"
    shown = "" if isinstance(value, bool) else str(value)
    if numbers and not NUMBER.fullmatch(shown):
        raise ValueError(f"{name}: {value!r} must be a number or a list of ranges")
    if not TEXT.fullmatch(shown):
        raise ValueError(f"{name}: {value!r} must be a number, a list of ranges, or letters, digits and _./+@-")
    return shown
