# SPDX-License-Identifier: Apache-2.0
"""Commands that run something: run, create, exec."""

import os

from .. import containers, runtime
from ..errors import Error
from .parser import UsageError, name_of
from .table import COMMANDS, CREATE, RUN

STATUS = 125  # of docker, where the command was not started


def _given(session, options, declared):
    """What libraries take of the options: those that the line has, under their names."""
    found = {}
    for spellings, kind, _value, _help in declared:
        name = name_of(spellings)
        if name in options.given and name in containers.OPTIONS and not kind.endswith("-"):
            found[name] = getattr(options, name)
    found["dialect"] = session.dialect
    engine = session.engine(options)
    if engine:
        found["engine"] = engine
    return found


def run(session, options):
    from .progress import of

    options.location = options.location or session.config.location
    name, argv = _target(session, options)
    given = _given(session, options, RUN)
    if options.location:
        given["location"] = options.location
    with of(session, options.quiet) as progress:
        try:
            return runtime.run(session.store, name, argv, given, progress, session.debug)
        except Error as exc:
            raise _as_docker(session, exc) from exc


def create(session, options):
    from .progress import of

    name, argv = _target(session, options)
    given = _given(session, options, CREATE)
    if options.force and given.get("name") and _taken(session, given["name"]):
        del given["name"]
    store = session.store
    if options.cidfile and os.path.lexists(options.cidfile):
        raise Error(f"--cidfile {options.cidfile} is there already: another container may be its owner", STATUS)
    with of(session, options.quiet) as progress:
        try:
            if options.location:
                container = containers.create(store, None, given, argv, rootfs=options.location)
            else:
                container = containers.create(store, runtime.image_of(store, name, given, progress), given, argv)
        except Error as exc:
            raise _as_docker(session, exc) from exc
    if options.cidfile:
        runtime._write_cidfile(options.cidfile, container.id)
    session.out(container.id)


def _taken(session, name):
    return any(name in names for names in containers.names(session.store).values())


def _target(session, options):
    """(image or container, command)."""
    if not options.arguments:
        if getattr(options, "location", None) or (options.name and options.pull == "reuse"):
            return "", []
        raise UsageError("which image or container?", "run")
    return options.arguments[0], options.arguments[1:]


def _as_docker(session, exc):
    """Docker says 125 of all that went wrong before the command."""
    if session.docker and exc.status == 1 and not isinstance(exc, runtime.NoTerminal):
        exc.status = STATUS
    return exc


def execute(session, options):
    key, argv = options.arguments[0], options.arguments[1:]
    given = _given(session, options, COMMANDS["exec"][4])
    given.pop("engine", None)
    return runtime.execute(containers.find(session.store, key), argv, given, session.debug)
