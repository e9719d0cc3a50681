# SPDX-License-Identifier: Apache-2.0
"""Makes the one-file program: `python3 bundle.py OUTPUT`.

The file is a shell script that finds a Python, then modules compiled by the Python that made the file, then their
sources for other Pythons, then a zip archive of the sources, so that `python3 FILE` and `unzip FILE` work too. The same
sources and the same Python make the same bytes.
"""

import io
import marshal
import os
import sys

PACKAGE = "udocker"
HERE = os.path.dirname(os.path.abspath(__file__))

# Python is told to take nothing from the environment, from the current folder or from site-packages (-IS).
PRELUDE = """\
#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# udocker {version}, containers without root: a Python program, whose source is in the zip archive that this file is.
for python in "${{UDOCKER_PYTHON:-python3}}" python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8
do
  command -v "$python" >/dev/null 2>&1 && exec "$python" -IS -X utf8 -c '
import sys
if sys.version_info < (3, 8):
    import os
    for minor in range(14, 7, -1):
        try:
            os.execvp("python3.%d" % minor, ["python3.%d" % minor, "-IS", "-Xutf8"] + sys.argv[1:])
        except OSError:
            pass
    sys.exit("Error: udocker needs Python 3.8 or newer, and found " + sys.version.split()[0])
{start}' "$0" "$@"
done
echo "Error: udocker needs Python 3.8 or newer: install python3, or name one in UDOCKER_PYTHON" >&2
exit 127
"""

# Starts what the file holds; `program` is the file. Executed by the shell's Python, and as the archive's __main__.
START = """\
from marshal import loads
from _frozen_importlib_external import MAGIC_NUMBER
{program}
facts = {facts}
with open(program, "rb") as source:
    if MAGIC_NUMBER.hex() == facts["tag"]:
        source.seek({compiled[0]:10})
        boot = loads(source.read({compiled[1]:10}))
    else:
        source.seek({source[0]:10})
        boot = compile(source.read({source[1]:10}), "boot.py", "exec")
names = {{"__name__": "boot"}}
exec(boot, names)
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
                found[".".join(parts + [name[:-3]])] = (os.path.join(folder, name), False)
    return found


def build():
    """The program's bytes."""
    import hashlib

    boot = _load_boot()
    names = modules()
    sources = {name: _read(path) for name, (path, _package) in names.items()}
    index, offset = {}, 0
    for name, content in sources.items():
        index[name] = (offset, len(content), names[name][1])
        offset += len(content)
    content = b"".join(sources.values())
    digest = hashlib.sha256(content + repr(sorted(index.items())).encode()).hexdigest()
    boot_source = _read(os.path.join(HERE, "boot.py"))
    parts = [
        marshal.dumps(compile(boot_source, "boot.py", "exec", dont_inherit=True, optimize=2)),
        marshal.dumps(boot.compiled(index, content)),
        boot_source,
        marshal.dumps((index, content)),
    ]
    places, start = [(0, 0)] * len(parts), 0
    for _round in range(2):  # the length of the text in front is known once it has been written
        facts = {"tag": boot.tag(), "digest": digest[:32], "compiled": places[1], "sources": places[3]}
        start = _start("program = sys.argv.pop(1)\nsys.argv[0] = program", facts, places)
        text = PRELUDE.format(version=version(), start=start).encode()
        text += b" " * (4096 - len(text) - 1) + b"\n"
        offset = len(text)
        for position, part in enumerate(parts):
            places[position] = (offset, len(part))
            offset += len(part)
    main = _start("import sys\nprogram = sys.argv[0]", facts, places)
    return b"".join([text, *parts, _archive(names, sources, boot, boot_source, main, offset)])


def write(path):
    """Make the program as file `path`, executable, as a whole or not at all."""
    content = build()
    temporary = "{}.{}".format(path, os.getpid())
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


def _start(program, facts, places):
    assert "'" not in repr(sorted(facts)).replace("'", ""), "the shell quotes with '"
    text = START.format(program=program, facts=repr(facts).replace("'", '"'), compiled=places[0], source=places[2])
    return text


def _archive(names, sources, boot, boot_source, main, offset):
    """A zip archive that begins at `offset` in the file."""
    import zipfile

    pack = boot.Pack(None, {name: (0, 0, package) for name, (_path, package) in names.items()}, b"", False)
    members = [("__main__.py", main.encode()), ("boot.py", boot_source)]
    members += [(pack.file_name(name), content) for name, content in sources.items()]
    target = io.BytesIO()
    target.write(b"\0" * offset)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return target.getvalue()[offset:]


def _load_boot():
    import types

    boot = types.ModuleType("boot")
    exec(compile(_read(os.path.join(HERE, "boot.py")), "boot.py", "exec"), boot.__dict__)
    return boot


def _read(path):
    with open(path, "rb") as source:
        return source.read()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("bundle.py OUTPUT: make the program, as this file")
    write(sys.argv[1])
