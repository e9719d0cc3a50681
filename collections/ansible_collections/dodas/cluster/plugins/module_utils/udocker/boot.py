# SPDX-License-Identifier: Apache-2.0
"""Start of the one-file program: its modules come compiled out of the file itself, in one read.

The file holds code for the Python that made it. Another Python compiles the sources once, into the user's cache, or
where it may not write there, each module when it is imported. bundle.py puts this into the file, to be executed alone:
it is not imported as a module, and needs nothing that Python has not loaded already.
"""

import _frozen_importlib
import _frozen_importlib_external
import marshal
import posix
import sys

PACKAGE = "udocker"


class Pack:
    """Finds and loads modules: `index` tells by name where they are in `content`: (offset, size, is a package).

    rest: gives what comes behind `content`, which is not read before somebody asks for it
    """

    def __init__(self, program, index, content, compiled, rest=None):
        self.program = program
        self.index = index
        self.content = content
        self.compiled = compiled
        self.rest = rest
        self.further = b""

    def find_spec(self, name, path=None, target=None):
        if name not in self.index:
            return None
        return _frozen_importlib.ModuleSpec(name, self, origin=self.program, is_package=self.index[name][2])

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name):
        offset, size, _package = self.index[name]
        content = self.content[offset : offset + size]
        if offset >= len(self.content):
            self.further = self.further or self.rest()
            content = self.further[offset - len(self.content) :][:size]
        if self.compiled:
            return marshal.loads(content)
        return compile(content, self.file_name(name), "exec", dont_inherit=True, optimize=2)

    def get_source(self, name):
        """What a traceback shows."""
        import zipfile

        with zipfile.ZipFile(self.program) as archive:
            return archive.read(self.file_name(name)).decode()

    def file_name(self, name):
        return name.replace(".", "/") + ("/__init__.py" if self.index[name][2] else ".py")


def tag():
    """Tells apart what different Pythons compile."""
    return _frozen_importlib_external.MAGIC_NUMBER.hex()


def compiled(index, content):
    """An index and its content, compiled."""
    source = Pack(None, index, content, False)
    made, codes, offset = {}, [], 0
    for name in index:
        codes.append(marshal.dumps(source.get_code(name)))
        made[name] = (offset, len(codes[-1]), index[name][2])
        offset += len(codes[-1])
    return made, b"".join(codes)


def cached(index, content, digest):
    """The same from the user's cache, which is made if need be; None where there can be none."""
    import os

    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(home, PACKAGE)
    path = os.path.join(folder, digest + "." + tag())
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        about = os.stat(folder)
        if about.st_uid != os.geteuid() or about.st_mode & 0o022:
            return None  # somebody else could have written there
        try:
            with open(path, "rb") as source:
                return marshal.load(source)
        except (OSError, ValueError, EOFError, TypeError):
            pass
        found = compiled(index, content)
        temporary = path + "." + str(os.getpid())
        with open(temporary, "wb") as target:
            marshal.dump(found, target)
        os.rename(temporary, path)
        return found
    except OSError:
        return None


def start(program, facts):
    """Make the package importable from file `program`, and run its command line.

    facts: "tag" of the Python that made it and "digest" of the sources; (offset, size) of the "compiled" modules, of
    the "archive" with their sources, and of an index of each; how many bytes of the compiled ones are read "first".
    """
    import gc

    gc.set_threshold(20_000)  # a command has ended before there is anything worth collecting
    native = facts["tag"] == tag()
    if program[0] != "/":
        program = posix.getcwd() + "/" + program
    with open(program, "rb", buffering=0) as source:
        about = posix.fstat(source.fileno())
        offset, size = facts["compiled index" if native else "index"]
        source.seek(offset)
        index = marshal.loads(source.read(size))
        offset, size = facts["compiled" if native else "archive"]
        source.seek(offset)
        first = facts["first"] if native else size
        found = index, source.read(first)

    def rest():
        with open(program, "rb", buffering=0) as source:
            now = posix.fstat(source.fileno())
            if (now.st_dev, now.st_ino, now.st_mtime_ns) != (about.st_dev, about.st_ino, about.st_mtime_ns):
                raise ImportError(program + " was replaced while it ran: run the command again")
            source.seek(offset + first)
            return source.read(size - first)

    made = None if native else cached(*found, facts["digest"])
    sys.meta_path.insert(0, Pack(program, *(made or found), bool(made or native), rest))
    from udocker.cli import main

    main(sys.argv)
