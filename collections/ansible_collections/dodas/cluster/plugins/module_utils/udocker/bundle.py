# SPDX-License-Identifier: Apache-2.0
"""Makes the one-file program: `python3 bundle.py OUTPUT`.

The file is a few lines of shell that find a Python, a few of Python that start it, modules compiled by the Python that
made the file, and a zip archive of their sources, from which other Pythons take them; so `python3 FILE` and
`unzip FILE` work too. The same sources and the same Python make the same bytes.
"""

import io
import marshal
import os
import sys

PACKAGE = "udocker"
HERE = os.path.dirname(os.path.abspath(__file__))
SHELL = 1024  # bytes, filled up with spaces
START = 2048
# What Python is given to execute: the lines that follow those of the shell.
STARTS = f'import sys;f=open(sys.argv[1],"rb");f.seek({SHELL});exec(f.read({START}))'

ALONE = ["-IS", "-X", "no_debug_ranges"]  # without columns, which tracebacks can do without: less to read at each start
# What `run` needs, in this order: read at once. A test keeps it true.
FIRST = [
    "errors", "cli.table", "cli.parser", "config", "records", "store", "containers", "runtime", "cli.run",
    "cli.progress", "spec", "options", "engines", "linux", "userns", "trees", "mounts", "users", "engines.process",
    "engines.namespaced", "engines.overlay", "engines.directory", "emulation",
]  # fmt: skip

# Python is told to take nothing from the environment, from the current folder or from site-packages (-IS).
SHELL_TEXT = """\
#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# udocker {version}, containers without root: a Python program. Its source is in the zip archive that this file is.
for python in "${{UDOCKER_PYTHON:-python3}}" python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8
do
  command -v "$python" >/dev/null 2>&1 &&
    exec "$python" -IS -X utf8 -c '{starts}' "$0" "$@"
done
echo "Error: udocker needs Python 3.8 or newer: install python3, or name one in UDOCKER_PYTHON" >&2
exit 127
"""

# Executed as it stands by the line above, and as the archive's __main__.py, where nothing has been put into sys.argv.
START_TEXT = """\
import sys
if sys.argv[0] == "-c":
    del sys.argv[0]
program = sys.argv[0]
if sys.version_info < (3, 8):
    import os
    for minor in range(14, 7, -1):
        try:
            os.execvp("python3.%d" % minor, ["python3.%d" % minor, "-IS", "-Xutf8"] + sys.argv)
        except OSError:
            pass
    sys.exit("Error: udocker needs Python 3.8 or newer, and found " + sys.version.split()[0])
from marshal import loads
from _frozen_importlib_external import MAGIC_NUMBER
facts = {facts}
native = MAGIC_NUMBER.hex() == facts["tag"]
with open(program, "rb") as source:
    offset, size = facts["boot" if native else "boot.py"]
    source.seek(offset)
    boot = source.read(size)
names = {{"__name__": "boot"}}
exec(loads(boot) if native else compile(boot, "boot.py", "exec"), names)
names["start"](program, facts)
"""


def modules():
    """The package's modules: name -> (path, is a package)."""
    found = {}
    for folder, folders, files in os.walk(HERE):
        folders[:] = sorted(name for name in folders if not name.startswith(("_", ".")))
        parts = [PACKAGE] + [part for part in os.path.relpath(folder, HERE).split(os.sep) if part != "."]
        for name in sorted(files):
            if name == "__init__.py":
                found[".".join(parts)] = (os.path.join(folder, name), True)
            elif name.endswith(".py") and name not in ("__main__.py", "boot.py"):
                found[".".join([*parts, name[:-3]])] = (os.path.join(folder, name), False)
    return found


def build():
    """The program's bytes."""
    import hashlib

    boot_source = _read(os.path.join(HERE, "boot.py"))
    boot = _load(boot_source)
    names = modules()
    sources = {name: _read(path) for name, (path, _package) in names.items()}
    pack = boot.Pack(None, {name: (0, 0, package) for name, (_path, package) in names.items()}, b"", False)
    # The start is in the archive too, and says where things are: its length does not depend on what it says.
    members = [("__main__.py", b" " * START), ("boot.py", boot_source)]
    members += [(pack.file_name(name), content) for name, content in sources.items()]
    archive, places = _archive(members)
    index = {}
    order = [PACKAGE, f"{PACKAGE}.cli", *(f"{PACKAGE}.{name}" for name in FIRST)]
    for name in [*order, *(name for name in names if name not in order)]:
        offset, size = places[pack.file_name(name)]
        index[name] = (offset, size, names[name][1])
    compiled_index, compiled = boot.compiled(index, archive)
    parts = {
        "boot": marshal.dumps(compile(boot_source, "boot.py", "exec", dont_inherit=True, optimize=2), 2),
        "compiled index": marshal.dumps(compiled_index, 2),
        "compiled": compiled,
        "index": marshal.dumps(index, 2),
        "archive": archive,
    }
    last = compiled_index[order[-1]]
    digest = hashlib.sha256(b"".join(name.encode() + b"\0" + content for name, content in members)).hexdigest()
    facts = {"tag": boot.tag(), "digest": digest[:32], "first": last[0] + last[1]}
    end = SHELL + START
    for name, content in parts.items():
        facts[name] = (end, len(content))
        end += len(content)
    begin = facts["archive"][0]
    facts["boot.py"] = (begin + places["boot.py"][0], len(boot_source))
    start = _filled(START_TEXT.format(facts=facts), START)
    members[0] = ("__main__.py", start)
    shell = _filled(SHELL_TEXT.format(version=version(), starts=STARTS), SHELL)
    parts["archive"] = _archive(members, begin)[0]
    return b"".join([shell, start, *parts.values()])


def write(path):
    """Make the program as file `path`, executable, as a whole or not at all.

    By a Python of its own: in one that has done something before, other texts are shared, and the same code is other
    bytes.
    """
    import subprocess

    subprocess.run([sys.executable, *ALONE, __file__, path], check=True)


def _write(path):
    content = build()
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as target:
            target.write(content)
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def version():
    """What __init__.py says."""
    for line in _read(os.path.join(HERE, "__init__.py")).decode().splitlines():
        if line.startswith("__version__ = "):
            return line.split('"')[1]
    raise LookupError("__version__")


def _filled(text, size):
    content = text.encode()
    if len(content) >= size:
        raise ValueError(f"{len(content)} bytes where there is room for {size}")
    return content + b" " * (size - len(content) - 1) + b"\n"


def _archive(members, offset=0):
    """(zip archive that begins at `offset` of a file, where each member's content is in it: (offset, size))."""
    import zipfile

    target = io.BytesIO()
    target.write(b"\0" * offset)
    places = {}
    with zipfile.ZipFile(target, "a", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
            places[name] = (target.tell() - len(content) - offset, len(content))
    return target.getvalue()[offset:], places


def _load(source):
    import types

    boot = types.ModuleType("boot")
    exec(compile(source, "boot.py", "exec"), boot.__dict__)
    return boot


def _read(path):
    with open(path, "rb") as source:
        return source.read()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("bundle.py OUTPUT: make the program, as this file")
    (_write if sys.flags.isolated and "no_debug_ranges" in sys._xoptions else write)(sys.argv[1])
