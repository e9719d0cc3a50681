# SPDX-License-Identifier: Apache-2.0
"""Engines: ways to give a process the root file system of a container, without root."""

from ..errors import Error

# In the order in which they are tried: where they live, and as what.
_ENGINES = {"overlay": "Overlay", "directory": "Directory"}


def get(name):
    """The engine of that name; raises Error."""
    if name not in _ENGINES:
        raise Error(f"there is no engine {name}: {', '.join(_ENGINES)} are", 125)
    return getattr(__import__(f"{__name__}.{name}", fromlist=["*"]), _ENGINES[name])()


def probe(store):
    """{engine: None, or why it does not work here}."""
    return dict.fromkeys(_ENGINES)


def choose(store, wanted=None):
    """The best engine that works here, or the wanted one; raises Error that says what the host would need."""
    return get(wanted or "overlay")
