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
        session.out(f"Docker version {DOCKER_VERSION}, build udocker-{__version__}")
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
        "Version": DOCKER_VERSION, "ApiVersion": API_VERSION, "APIVersion": API_VERSION, "MinAPIVersion": "1.12",
        "Os": "linux",
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
        session.out(f"{name} = {value}")
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
        raise Error(f"{path} exists already") from None
    for name in ("containers", "images", "layers"):
        os.mkdir(os.path.join(path, name))


def install(session, options):
    session.say("nothing needs to be installed: udocker is this one file")


def completion(session, options):
    from . import completion as shells

    session.out(shells.script(options.arguments[0]))


def info(session, options):
    """Engines, and what they would need; the store; in docker's dialect with docker's names."""
    from .. import containers, engines

    found = engines.probe(session.store, options.probe)
    if session.docker or options.format:
        return _docker_info(session, options, found)
    if options.json or session.json:
        from ..records import dumps

        works = {name: why or "works" for name, why in found.items()}
        session.out(dumps({"version": __version__, "root": session.store.root, "engines": works}))
        return 0
    session.out("udocker:    " + __version__)
    session.out("store:      " + session.store.root)
    session.out(f"containers: {len(containers.listed(session.store))}")
    session.out(f"images:     {len(session.store.images())}")
    best = next((name for name, why in found.items() if why is None), None)
    session.out("engines:")
    for name, why in found.items():
        text = why if why else "works" + (", and is used unless another is asked for" if name == best else "")
        session.out(f"  {name:<10} {text}")
    return 0 if best else 1


def _docker_info(session, options, found):
    import os

    from .. import containers, reference

    listed = containers.listed(session.store)
    running = sum(container.is_running() for container in listed)
    machine, facts = os.uname(), version_facts()["Server"]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    about = {
        "ID": machine.nodename,
        "Containers": len(listed), "ContainersRunning": running, "ContainersPaused": 0,
        "ContainersStopped": len(listed) - running,
        "Images": len({image.config for image in session.store.images()}),
        "ServerVersion": facts["Version"],
        "Driver": next((name for name, why in found.items() if why is None), "none"),
        "LoggingDriver": "json-file", "CgroupDriver": "none", "CgroupVersion": "2",
        "KernelVersion": machine.release, "OperatingSystem": _system(), "OSType": "linux",
        "Architecture": machine.machine, "NCPU": os.cpu_count() or 1, "MemTotal": pages,
        "DockerRootDir": session.store.root, "Name": machine.nodename, "Debug": session.general.debug,
        "SecurityOptions": ["name=rootless"], "Runtimes": {"udocker": {"path": "udocker"}}, "DefaultRuntime": "udocker",
        "Swarm": {"LocalNodeState": "inactive"}, "IndexServerAddress": reference.CREDENTIALS_KEY,
        "Engines": {name: why or "works" for name, why in found.items()},
    }  # fmt: skip
    if options.format or session.json:
        from . import template

        session.out(template.render(options.format or "json", about))
        return 0
    session.out("Server:")
    for name, key in (
        ("Containers", "Containers"), (" Running", "ContainersRunning"), (" Paused", "ContainersPaused"),
        (" Stopped", "ContainersStopped"), ("Images", "Images"), ("Server Version", "ServerVersion"),
        ("Storage Driver", "Driver"), ("Logging Driver", "LoggingDriver"), ("Cgroup Driver", "CgroupDriver"),
        ("Kernel Version", "KernelVersion"), ("Operating System", "OperatingSystem"), ("OSType", "OSType"),
        ("Architecture", "Architecture"), ("CPUs", "NCPU"), ("Total Memory", "MemTotal"), ("Name", "Name"),
        ("Docker Root Dir", "DockerRootDir"),
    ):  # fmt: skip
        session.out(f" {name}: {about[key]}")
    return 0


def _system():
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as source:
            for line in source:
                if line.startswith("PRETTY_NAME="):
                    return line.partition("=")[2].strip().strip('"')
    except OSError:
        pass
    return "Linux"
