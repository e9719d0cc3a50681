# SPDX-License-Identifier: Apache-2.0
"""The command line: udocker's own, and docker's everyday one where the program is called `docker`.

table.py declares it, parser.py reads it, and the module that a command names does it: `function(session, options)`
returns an exit status, or None for 0.
"""

import os
import sys

from ..errors import Error

INTERRUPTED = 130
BROKEN_PIPE = 141

ERROR, RESULT, WARNING, INFORMATION, DEBUG = 0, 1, 2, 3, 5


class Session:
    """What commands share: `dialect` (udocker or docker), `config`, `store`, `level`, `json`."""

    def __init__(self, program, dialect, general):
        from ..config import Config

        self.program = program
        self.dialect = dialect
        self.docker = dialect == "docker"
        self.general = general
        self.config = Config(root=general.repo, file=general.config)
        self.level = DEBUG if general.debug else RESULT if general.quiet else self.config.verbose_level
        self.json = general.json
        self._store = None
        for variable, value in (
            ("UDOCKER_PROOT", self.config.use_proot_executable),
            ("UDOCKER_FUSE_OVERLAYFS", self.config.use_fuse_overlayfs_executable),
            ("UDOCKER_SCRATCH", self.config.scratch),
        ):
            if value and value != "UDOCKER":
                os.environ.setdefault(variable, value)
        for text in self.config.warnings:
            self.warn(text)

    @property
    def store(self):
        if self._store is None:
            from ..store import Store

            self._store = Store(self.config.topdir)
            self._store.access = self._access()
        return self._store

    def _access(self):
        """How registries are reached, as registry.connect takes it."""
        config = self.config
        found = {
            "proxy": config.http_proxy or None,
            "insecure": self.general.insecure or config.http_insecure or config.insecure_registries,
            "ca_file": config.ca_file or None,
            "keystore": os.path.join(self._store.root, os.path.expanduser(config.keystore)),
        }
        if config.ctimeout:
            found["connect"] = float(config.ctimeout)
        if config.timeout:
            found["stall"] = float(config.timeout)
        if config.registry_mirrors or config.dockerio_registry_url or config.docker_registries:
            from ..reference import DEFAULT_REGISTRY

            found["mirrors"] = {DEFAULT_REGISTRY: config.registry_mirrors}
            found["locations"] = dict(config.docker_registries)
            if config.dockerio_registry_url:
                found["locations"][DEFAULT_REGISTRY] = config.dockerio_registry_url
        return found

    def engine(self, options=None):
        """The engine that was asked for, or None."""
        asked = getattr(options, "engine", None) or self.general.engine or self.config.engine
        mode = self.config.override_default_execution_mode.upper()
        if not asked and mode[:1] in ("F", "S"):
            self.warn(f"mode {mode} has no like here: the engine that fits this host is used")
            return None
        return asked or mode or None

    @property
    def quiet(self):
        return self.level < INFORMATION

    def say(self, text):
        """Tell what was done, on standard error: standard output is for results."""
        if self.level >= INFORMATION:
            _write(sys.stderr, "Info: " + text + "\n")

    def warn(self, text):
        if self.level >= WARNING:
            _write(sys.stderr, "Warning: " + text + "\n")

    def debug(self, text):
        if self.level >= DEBUG:
            _write(sys.stderr, "Debug: " + text + "\n")

    def error(self, text):
        """Tell of an error that does not end the command."""
        _write(sys.stderr, "Error: " + text + "\n")

    def out(self, text):
        """A result."""
        _write(sys.stdout, text + "\n")


def main(argv):
    """Run a command line, and end the process."""
    status = 1
    debug = False
    try:
        program = os.path.basename(argv[0]) if argv else ""
        words = argv[1:]
        dialect = "docker" if program.startswith("docker") else "udocker"
        if words[:1] == ["docker"]:
            dialect, words = "docker", words[1:]
        debug = bool({"-D", "--debug"} & set(words[: _count_general(words)]))
        status = run(dialect, words)
    except Error as exc:
        if debug:
            _traceback()
        status = _report(exc, dialect)
    except BrokenPipeError:
        status = BROKEN_PIPE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as exc:
        if debug:
            _traceback()
        _write(sys.stderr, f"Error: {exc}\n")
    except Exception as exc:
        if debug:
            _traceback()
        text = "Error: {}: {}\nThis is a defect of udocker; with --debug it says where.\n"
        _write(sys.stderr, text.format(type(exc).__name__, exc))
    _end(status or 0)


def run(dialect, words):
    """Run a command line in a dialect; returns the exit status. Raises Error."""
    from . import parser
    from .table import COMMANDS, VARIANTS

    general, name, words = parser.split(words)
    if general.version or (name is None and general.help) or (name is None and not general.given):
        from . import here

        session = Session(dialect, dialect, general)
        return here.version_line(session) if general.version else here.overview(session)
    if name is None:
        raise parser.UsageError("which command?")
    name, words = parser.resolve(name, words)
    fixed = {}
    if name in VARIANTS:
        name, fixed = VARIANTS[name]
    if general.help:
        words = ["--help"]
    declared = COMMANDS[name]
    if _asks_for_help(name, words):
        from . import help as texts

        _write(sys.stdout, texts.command(name, dialect))
        return 0
    options = parser.parse(declared[4], words, name, name in parser.FIRST_ENDS_OPTIONS)
    parser.check_arguments(name, declared[1], options.arguments)
    for key, value in fixed.items():
        setattr(options, key, value)
    session = Session(dialect, dialect, general)
    if options.without_effect:
        session.debug("no effect here: " + " ".join(options.without_effect))
    module, function = declared[3].split(".")
    status = getattr(_module(module), function)(session, options)
    return 0 if status is None else status


def _module(name):
    """The module of this package with that name."""
    __import__(__name__ + "." + name)  # importlib, which would say it better, takes longer to import than the module
    return sys.modules[__name__ + "." + name]


def _asks_for_help(name, words):
    """Whether --help is among a command's own options (-h too, where it has no other meaning)."""
    from .parser import FIRST_ENDS_OPTIONS

    spellings = ("--help",) if name in ("run", "create") else ("--help", "-h")
    if name in FIRST_ENDS_OPTIONS:
        return words[:1] in (["--help"], ["-h"]) and (len(words) == 1 or words[0] == "--help")
    return any(word in spellings for word in words)


def _count_general(words):
    count = 0
    while count < len(words) and words[count].startswith("-"):
        count += 1
    return count


def _report(exc, dialect):
    from .parser import UsageError

    _write(sys.stderr, f"Error: {exc}\n")
    if isinstance(exc, UsageError):
        command = " " + exc.command if exc.command else ""
        _write(sys.stderr, f"See: {dialect}{command} --help\n")
        if dialect == "docker" and exc.status == 1:
            return 125
    return exc.status


def _traceback():
    import traceback

    traceback.print_exc()


def _write(stream, text):
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a name that is no text, and a Python that was not told of UTF-8
        stream.buffer.write(text.encode("utf-8", "surrogateescape"))


def _end(status):
    """End at once: what the interpreter tidies up on its way out takes a tenth of the whole."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = status or BROKEN_PIPE
    except OSError as exc:
        os.write(2, f"Error: cannot write: {exc}\n".encode())
        status = status or 1
    os._exit(status)
