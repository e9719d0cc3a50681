# SPDX-License-Identifier: Apache-2.0
"""Engines, used as a library by a real user: what a test wants done is a few lines of Python that this user runs."""

import json
import pathlib
import subprocess
import textwrap

from udocker_people import Person

COLLECTION = pathlib.Path(__file__).parents[2] / "collections/ansible_collections/dodas/cluster"
LIBRARY = COLLECTION / "plugins/module_utils/udocker"
# What scripts begin with. `run` gives [exit code, output] of a container, or [status, message] of an Error.
PRELUDE = """
import json, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from udocker import engines, errors, linux, mounts, store, trees, userns
from udocker.engines import process
from udocker.spec import Mount, Spec
home = sys.argv[1]
layer = home + "/layer"
layers = [layer]
STORE = store.Store(os.environ.get("STORE", home + "/store"))

def container(engine, name="c", layers=layers):
    directory = STORE.container(name)
    os.makedirs(directory)
    engine.prepare(directory, layers)
    return directory

def spec(directory, *argv, **more):
    more.setdefault("env", {"PATH": "/bin"})
    return Spec(directory, more.pop("layers", layers), list(argv), **more)

def said(start, *arguments):
    # [exit code, output] of what start(*arguments, stdio) starts, or [status, message] of why it does not
    source, target = os.pipe()
    try:
        running = start(*arguments, (0, target, target))
    except errors.Error as exc:
        os.close(source)
        return [exc.status, str(exc)]
    finally:
        os.close(target)
    with open(source, "rb") as stream:
        output = stream.read().decode()
    return [running.wait(), output.strip()]

def run(engine, directory, *argv, **more):
    return said(engine.start, spec(directory, *argv, **more))

def enter(engine, running, directory, *argv, **more):
    return said(engine.enter, running.as_dict(), spec(directory, *argv, **more))

def tell(value):
    print(json.dumps(value), flush=True)
"""


class Player:
    """A Person with the library and a layer of busybox in its home."""

    def __init__(self, subids=True):
        self.person = Person("ann", subids)
        try:
            self.home = self.person.home
            self.person.give(LIBRARY, "udocker")
            compiled = [self.person.python, "-m", "compileall", "-q", self.home / "udocker"]
            self.person.run(compiled, env={"PYTHONDONTWRITEBYTECODE": ""}, check=True)
            self._number = 0
            made = self.run_as_person(_LAYER)
            assert made.returncode == 0, made.stderr
        except BaseException:
            self.person.remove()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.person.remove()

    def run_as_person(self, script, **more):
        return self.person.run([self.person.python, "-IS", "-c", script, self.home], **more)

    def __call__(self, script, **more):
        """Run a script in a store of its own; what it told, the last first of all if there is only one."""
        self._number += 1
        more["env"] = {"STORE": str(self.home / f"store-{self._number}"), **more.pop("env", {})}
        done = self.run_as_person(PRELUDE + textwrap.dedent(script), **more)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines()]
        return told[0] if len(told) == 1 else told


def play_as_root(script, home):
    """The same as root, whose rights are limited to a user namespace by the engines themselves."""
    if not (home / "udocker").exists():
        (home / "udocker").symlink_to(LIBRARY)
        subprocess.run(["/usr/bin/python3", "-IS", "-c", _LAYER, home], check=True)
    command = ["/usr/bin/python3", "-IS", "-c", PRELUDE + textwrap.dedent(script), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return told[0] if len(told) == 1 else told


_LAYER = r"""
import os, shutil, subprocess, sys
layer = sys.argv[1] + "/layer"
os.makedirs(layer + "/bin")
shutil.copy("/bin/busybox", layer + "/bin/busybox")
for name in subprocess.run(["/bin/busybox", "--list"], stdout=-1).stdout.decode().split():
    if not os.path.exists(layer + "/bin/" + name):
        os.link(layer + "/bin/busybox", layer + "/bin/" + name)
for folder in ("etc", "tmp", "root", "lower/inner"):
    os.makedirs(f"{layer}/{folder}")
os.chmod(layer + "/tmp", 0o1777)
files = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\nfar:x:4000000:0::/:/bin/sh\n",
    "etc/group": "root:x:0:\ntty:x:5:\nweb:x:33:\nmore:x:77:web,other\n",
    "lower/file": "lower", "lower/inner/file": "x",
    "bin/script": "#!/bin/sh\necho script $1\n", "bin/orphan": "#!/bin/nothing\n", "bin/garbage": "\1\2\3",
    "bin/plain": "no program",
}
for name, content in files.items():
    with open(f"{layer}/{name}", "w") as target:
        target.write(content)
for name in ("script", "orphan", "garbage"):
    os.chmod(f"{layer}/bin/{name}", 0o755)
os.symlink("/../../../../../../etc", layer + "/up")
os.symlink("/proc/self/cwd", layer + "/magic")
os.symlink("loop", layer + "/loop")
"""
