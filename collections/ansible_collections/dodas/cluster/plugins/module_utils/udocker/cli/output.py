# SPDX-License-Identifier: Apache-2.0
"""How sizes, times and tables look."""

import time


def columns(rows):
    """Lines of cells, each column as wide as its widest cell; the last is not padded."""
    widths = []
    for row in rows:
        for position, cell in enumerate(row):
            if position == len(widths):
                widths.append(0)
            widths[position] = max(widths[position], len(cell))
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, [*widths[:len(row) - 1], 0])).rstrip() for row in rows
    ]


def size(count):
    """Bytes as docker says them: 1.23GB, in thousands, three digits."""
    count = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g}{unit}"


def span(seconds):
    """How long, in words: 5 minutes."""
    seconds = max(0, int(seconds))
    if seconds < 1:
        return "Less than a second"
    for count, unit in ((86400 * 365, "year"), (86400 * 30, "month"), (86400 * 7, "week"), (86400, "day"),
                        (3600, "hour"), (60, "minute"), (1, "second")):  # fmt: skip
        number = seconds // count
        if number >= (2 if unit in ("year", "month", "week", "day", "hour") else 1):
            return "{} {}{}".format(number, unit, "" if number == 1 else "s")
    return f"{seconds} seconds"


def ago(moment, now=None):
    """When, in words, of seconds since the epoch."""
    if not moment:
        return "N/A"
    return span((time.time() if now is None else now) - moment) + " ago"


def stamp(moment):
    """When, as `docker ps --format {{.CreatedAt}}` says it."""
    return time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(moment or 0))


def pretty(value):
    """JSON for people."""
    import json

    return json.dumps(value, sort_keys=True, indent=4, separators=(",", ": "))


def width():
    """Columns of the terminal."""
    import os

    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
