# SPDX-License-Identifier: Apache-2.0
"""Commands about this installation: help, version, info, configuration."""

from .. import __version__
from ..errors import Error

# The version of docker's command line that the dialect follows: tools look at it before they use options.
DOCKER_VERSION = "24.0.7"
API_VERSION = "1.43"


def overview(session):
    from . import help as texts

    session.out(texts.overview(session.dialect).rstrip("\n"))


def help_(session, options):
    from . import help as texts
    from .parser import resolve

    if not options.arguments:
        return overview(session)
    name, _words = resolve(options.arguments[0], [])
    session.out(texts.command(name, session.dialect).rstrip("\n"))
    return 0


def version_line(session):
    """-V, --version."""
    if session.docker:
        session.out("Docker version {}, build udocker-{}".format(DOCKER_VERSION, __version__))
        return 0
    return version(session, None)


def version(session, options):
    template = getattr(options, "format", None)
    if not session.docker and not template:
        session.out("version: " + __version__)
        return 0
    from . import template as templates

    facts = version_facts()
    if template:
        session.out(templates.render(template, facts))
        return 0
    for part in ("Client", "Server"):
        session.out(part + ": udocker")
        for key in ("Version", "ApiVersion", "Os", "Arch"):
            session.out(" {:<18}{}".format(key + ":", facts[part][key]))
    return 0


def version_facts():
    """What `docker version` says."""
    import os
    import sys

    machine = os.uname()
    facts = {
        "Version": DOCKER_VERSION, "ApiVersion": API_VERSION, "MinAPIVersion": "1.12", "Os": "linux",
        "Arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(machine.machine, machine.machine),
        "KernelVersion": machine.release, "GitCommit": "udocker-" + __version__, "Experimental": False,
        "BuildTime": "", "GoVersion": "", "Udocker": __version__, "Python": sys.version.split()[0],
    }  # fmt: skip
    platform = {"Name": "udocker " + __version__}
    components = [{"Name": "udocker", "Version": __version__, "Details": {}}]
    client = dict(facts, DefaultAPIVersion=API_VERSION, Context="default")
    return {"Client": client, "Server": dict(facts, Platform=platform, Components=components)}


def showconf(session, options):
    if session.json:
        from ..records import dumps

        session.out(dumps(dict(session.config.items())))
        return
    session.out("-" * 80)
    session.out("\t\tConfiguration options")
    for name, value in session.config.items():
        session.out("{} = {}".format(name, value))
    session.out("-" * 80)
    for path in session.config.files:
        session.debug("read " + path)


def mkrepo(session, options):
    import os

    path = options.arguments[0]
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        raise Error("{} exists already".format(path)) from None
    for name in ("containers", "images", "layers"):
        os.mkdir(os.path.join(path, name))


def install(session, options):
    session.say("nothing needs to be installed: udocker is this one file")


def completion(session, options):
    from . import completion as shells

    session.out(shells.script(options.arguments[0]))
