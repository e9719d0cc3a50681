#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The runtime beside udocker 1.3.17 (PyPI, with Debian's proot), rootless podman and no container at all: one table.

Everything runs as one unprivileged user, on a file system of its own that is made anew for each round (ext4 in a file,
so root is needed to mount it), with images pulled from a registry on loopback. Figures are medians of the rounds, in
seconds of wall clock as who typed the command sees them, start-up included; `cpu` rows are user and system seconds.
Targets are ratios of medians within the run. Use a quiet machine. Run it with: tests/setup tests/bench/udocker/run.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from udocker_images import debian_root, layer, many_files, member, oci
from udocker_people import Person
from udocker_registry import Registry

ROOT = Path(__file__).resolve().parents[3]
FILES = 50_000
MODULES = 1_500
CONTAINERS = 20
LOOPS = 3

FIND = ["/usr/bin/find", "/opt/many", "-size", "+1M"]
STAT = ["/usr/bin/python3", "/opt/bench/stat.py"]
IMPORTS = ["/usr/bin/python3", "/opt/bench/imports.py"]
LOOP = ["/usr/bin/python3", "-c", "sum(i * i for i in range(12_000_000))"]
DELETE = ["/bin/rm", "-rf", "/opt/many"]
TRUE = ["/bin/true"]

# what is measured, which peer it is held against, and how many times better (or at most how much worse) it has to be
TARGETS = [
    ("create", "udocker 1.3.17", 50, None),
    ("pull + create", "udocker 1.3.17", 2, None),
    ("run /bin/true", "udocker 1.3.17", 2.5, None),
    ("run /bin/true", "podman", 2, None),
    ("find over 50,000 files", "udocker 1.3.17", 8, None),
    ("stat of 50,000 files", "udocker 1.3.17", 5, None),
    ("1,500 imports", "udocker 1.3.17", 4, None),
    ("rm", "udocker 1.3.17", 20, None),
    ("python loop, cpu", "native", None, 1.05),
]
DIRECTORY_TARGETS = [("find over 50,000 files", 1.3), ("stat of 50,000 files", 1.3)]


# udocker has proot emulate the kernel's release that the host has anyway; Debian's proot then fails each fstat of
# programs that were built since 2021. Leaving that out costs a shell, about a millisecond.
PROOT = """#!/bin/sh
left=$#
while [ "$left" -gt 0 ]; do
  if [ "$1" = -k ]; then shift 2; left=$((left - 2)); else set -- "$@" "$1"; shift; left=$((left - 1)); fi
done
exec %s "$@"
"""
PODMAN_CONFIGURATION = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
SCRIPTS = {
    "stat.py": """
import os
for folder, _folders, files in os.walk("/opt/many"):
    for name in files:
        os.stat(os.path.join(folder, name))
""",
    "imports.py": f"""
import sys
sys.path.insert(0, "/opt/modules"); sys.dont_write_bytecode = True
for number in range({MODULES}):
    __import__(f"module_{{number}}")
""",
}


def base_layers():
    """A Debian root with Python, in five layers, as images come that were built in steps."""
    parts = {"usr/share": [], "usr/lib": [], "usr/bin": [], "var": [], "": []}
    with tarfile.open(debian_root(packages=("python3-minimal",))) as archive:
        for info in archive:
            name = info.name[2:] if info.name.startswith("./") else info.name
            content = archive.extractfile(info).read() if info.isreg() else b""
            # A hard link has to be in the layer of what it links to.
            place = info.linkname[2:] if info.islnk() else name
            parts[next(part for part in parts if place.startswith(part))].append((info, content))
    return [layer(*parts[name]) for name in ("", "usr/lib", "usr/bin", "usr/share", "var")]


def many_layer(root):
    """50,000 small files, 1,500 modules and the scripts that go through them."""
    modules = layer(
        member("opt/modules/"),
        *(member(f"opt/modules/module_{n}.py", f"value = {n}\n") for n in range(MODULES)),
        member("opt/bench/"),
        *(member(f"opt/bench/{name}", text.replace("/opt/", f"{root}/opt/")) for name, text in SCRIPTS.items()),
    )
    return [many_files(FILES, "opt/many"), modules]


class User(Person):
    """Who runs the tools. A process that is this user already starts them: no figure has a change of user in it."""

    def __enter__(self):
        self._starter = ProcessPoolExecutor(1, multiprocessing.get_context("fork"), _become, (self.uid, self.gid))
        return self

    def __exit__(self, *exception):
        self._starter.shutdown()
        super().__exit__(*exception)

    def measure(self, command, environment, folder):
        """Run it; returns (subprocess.CompletedProcess, wall seconds, CPU seconds)."""
        return self._starter.submit(_measure, command, environment, folder).result()


def _become(uid, gid):
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _measure(command, environment, folder):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Tool:
    """One program with a store below `home`; `options` go to run and create."""

    def __init__(self, name, person, home, command, options=(), environment=None):
        self.name, self.person, self.home = name, person, home
        self.command, self.options = list(command), list(options)
        self.environment = environment or {}

    def __call__(self, *arguments, ok=True):
        """Run it; returns (output, wall seconds, CPU seconds)."""
        command = [*map(str, self.command), *map(str, arguments)]
        done, wall, cpu = self.person.measure(command, {**self.person.environment, **self.environment}, self.home)
        if ok and done.returncode != 0:
            sys.exit(f"{self.name} {' '.join(arguments)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout, wall, cpu

    def create(self, image):
        printed, wall, _cpu = self("create", *self.options, image)
        return printed.split()[-1], wall

    def pull(self, image):
        return self("pull", image)[1]

    def run(self, container, command):
        """Run a command in a container that is there; returns (wall, CPU)."""
        return self("run", container, *command)[1:]

    def remove(self, container):
        return self("rm", container)[1]


class Native(Tool):
    """No container at all."""

    def __init__(self, person, home):
        super().__init__("native", person, home, [])


class Ours(Tool):
    def __init__(self, person, home, program, engine):
        super().__init__(f"udocker, {engine}", person, home, [program, "-q", f"--engine={engine}"],
                         environment={"UDOCKER_DIR": f"{home}/ours-{engine}"})  # fmt: skip


class Peer(Tool):
    """udocker 1.3.17: mode P1 with the proot of Debian."""

    def __init__(self, person, home, library):
        command = [person.python, "-m", "udocker.maincmd", "-q", "--insecure"]
        super().__init__("udocker 1.3.17", person, home, command, environment={
            "PYTHONPATH": str(library),
            "UDOCKER_DIR": f"{home}/peer", "UDOCKER_USE_PROOT_EXECUTABLE": f"{home}/peer/proot",
            "UDOCKER_DEFAULT_EXECUTION_MODE": "P1",
        })  # fmt: skip
        # It takes this for its tools, of which it needs proot alone, and that is Debian's.
        version = Path(home) / "peer/lib/VERSION"
        version.parent.mkdir(parents=True)
        version.write_text("1.2.11", encoding="utf-8")
        proot = Path(home) / "peer/proot"
        proot.write_text(PROOT % shutil.which("proot"), encoding="utf-8")
        proot.chmod(0o755)
        subprocess.run(["chown", "-R", f"{person.uid}:{person.gid}", Path(home) / "peer"], check=True)

    @staticmethod
    def _name(image):
        """The name without the registry: it takes the port for a tag."""
        return image.partition("/")[2]

    def pull(self, image):
        host, _slash, name = image.partition("/")
        return self("pull", f"--registry=http://{host}", name)[1]

    def create(self, image):
        return super().create(self._name(image))

    def run(self, container, command):
        return self("run", "--nobanner", container, *command)[1:]


class Podman(Tool):
    def __init__(self, person, home):
        # This machine may lack what podman's defaults ask for; none of it makes podman slower.
        configuration = Path(home) / "containers.conf"
        configuration.write_text(PODMAN_CONFIGURATION, encoding="utf-8")
        super().__init__(
            "podman", person, home, ["podman", f"--root={home}/podman", f"--runroot={home}/podman-run"],
            ["--network=host"], {"CONTAINERS_CONF": str(configuration)},
        )  # fmt: skip

    def pull(self, image):
        return self("pull", "--quiet", "--tls-verify=false", image)[1]

    def run(self, image, command):
        """podman runs an image each time: it cannot run a command of our choice in a container that is there."""
        return self("run", "--rm", *self.options, image, *command)[1:]


@contextlib.contextmanager
def file_system(folder, owner, gigabytes=6):
    """A new ext4 file system mounted at folder/fs."""
    image, point = folder / "fs.img", folder / "fs"
    point.mkdir(exist_ok=True)
    with image.open("wb") as target:
        target.truncate(gigabytes << 30)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        os.chown(point, owner.uid, owner.gid)
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)
        image.unlink()


def one_round(figures, make_tools, registry, folder, person):
    """Add one sample of everything to figures[measure][tool]."""

    def note(measure, tool, seconds):
        figures.setdefault(measure, {}).setdefault(tool, []).append(seconds)

    base, many = (f"{registry.host}/library/{name}:latest" for name in ("base", "many"))
    for make in make_tools:
        with file_system(folder, person) as home:
            tool, native = make(home), Native(person, home)
            pulled = tool.pull(base)
            _settle()
            container, created = tool.create(base)
            note("pull + create", tool.name, pulled + created)
            note("create", tool.name, statistics.median([created, *(tool.create(base)[1] for _ in range(2))]))
            place = base if isinstance(tool, Podman) else container
            tool.run(place, TRUE)
            note("run /bin/true", tool.name, statistics.median(tool.run(place, TRUE)[0] for _ in range(5)))
            if not isinstance(tool, Podman):
                # In turns: how fast a processor is changes from minute to minute on a machine that others share.
                for _ in range(LOOPS):
                    note("python loop, cpu", tool.name, tool.run(container, LOOP)[1])
                    note("python loop, cpu", native.name, native(*LOOP)[2])
            _settle()
            note("rm", tool.name, tool.remove(container))
            if isinstance(tool, Podman):
                continue
            if tool.name == "udocker, overlay":
                before = _used(home)
                for _ in range(CONTAINERS):
                    tool.run(tool.create(base)[0], TRUE)
                note("MB a further container", tool.name, (_used(home) - before) / CONTAINERS / 1e6)
            tool.pull(many)
            container, _ = tool.create(many)
            _settle()
            for measure, command in (("find over 50,000 files", FIND), ("stat of 50,000 files", STAT),
                                     ("1,500 imports", IMPORTS)):  # fmt: skip
                tool.run(container, command)  # who reads the disk first is not what is measured
                note(measure, tool.name, statistics.median(tool.run(container, command)[0] for _ in range(3)))
            note("rm -rf of 50,000 files", tool.name, tool.run(container, DELETE)[0])
            note("rm of a container of 50,000 files", tool.name, tool.remove(tool.create(many)[0]))


def native_round(figures, folder, person):
    """The same commands on the same files without any container."""
    with file_system(folder, person) as home:
        (home / "tree").mkdir()
        for content in many_layer(f"{home}/tree"):
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(home / "tree", filter="data")
        subprocess.run(["chown", "-R", f"{person.uid}:{person.gid}", home / "tree"], check=True)
        _settle()
        tool = Native(person, home)
        for measure, command in (("run /bin/true", TRUE), ("find over 50,000 files", FIND),
                                 ("stat of 50,000 files", STAT), ("1,500 imports", IMPORTS)):  # fmt: skip
            here = [word.replace("/opt/", f"{home}/tree/opt/") for word in command]
            tool(*here)
            seconds = statistics.median(tool(*here)[1] for _ in range(3))
            figures.setdefault(measure, {}).setdefault(tool.name, []).append(seconds)
        figures.setdefault("rm -rf of 50,000 files", {}).setdefault(tool.name, []).append(
            tool("/bin/rm", "-rf", f"{home}/tree/opt/many")[1]
        )


def _settle():
    """Let the disk finish what came before: it is not part of the next figure."""
    os.sync()


def _used(path):
    os.sync()
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def show(figures, console):
    """The tables of medians and targets; returns how many targets were missed."""
    medians = {measure: {tool: statistics.median(values) for tool, values in row.items()}
               for measure, row in figures.items()}  # fmt: skip
    names = ["udocker, overlay", "udocker, directory", "udocker 1.3.17", "podman", "native"]
    table = Table("median of the rounds", *names)
    for measure, row in medians.items():
        table.add_row(measure, *(f"{row[name]:.3f}" if name in row else "" for name in names))
    console.print(table)
    missed = 0
    verdicts = Table("target", "wanted", "found", "")
    for measure, peer, better, worse in TARGETS:
        row = medians[measure]
        if peer not in row:
            continue  # left out
        ours = row["udocker, overlay"]
        found = row[peer] / ours if better else ours / row[peer]
        good = found >= better if better else found <= worse
        missed += not good
        wanted = f"{better} x faster" if better else f"at most {worse} of"
        verdicts.add_row(measure, f"{wanted} {peer}", f"{found:.2f}", "ok" if good else "MISSED")
    for measure, worse in DIRECTORY_TARGETS:
        found = medians[measure]["udocker, directory"] / medians[measure]["native"]
        missed += found > worse
        verdicts.add_row(measure, f"directory: at most {worse} of native", f"{found:.2f}",
                         "ok" if found <= worse else "MISSED")  # fmt: skip
    disk = medians["MB a further container"]["udocker, overlay"]
    missed += disk >= 1
    verdicts.add_row("disk of a further container", "less than 1 MB", f"{disk:.3f}", "ok" if disk < 1 else "MISSED")
    console.print(verdicts)
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="samples of each figure (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
    parser.add_argument("--without", action="append", default=[], metavar="TOOL", help="leave a peer out")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it mounts a new file system for each sample, and makes the user that runs the tools")
    console = Console(width=150)
    figures = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, User("bench", subids=True) as person:
        folder = Path(scratch)
        folder.chmod(0o755)
        program = folder / "udocker"
        subprocess.run([sys.executable, "-m", "ansible_collections.dodas.cluster.plugins.module_utils.udocker.bundle",
                        program], check=True)  # fmt: skip
        with Registry(folder / "registry") as registry:
            base = base_layers()
            registry.put(oci(folder / "base", base, name="base"), "base", "library/base:latest")
            registry.put(oci(folder / "many", [*base, *many_layer("")], name="many"), "many", "library/many:latest")
            makers = [
                lambda home: Ours(person, home, program, "overlay"),
                lambda home: Ours(person, home, program, "directory"),
            ]
            if "udocker" not in options.without:
                library = folder / "peer"  # where the user may read it
                shutil.copytree(Path(find_spec("udocker").origin).parent, library / "udocker")
                makers.append(lambda home: Peer(person, home, library))
            if "podman" not in options.without:
                makers.append(lambda home: Podman(person, home))
            for number in range(options.rounds):
                console.print(f"round {number + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}")
                one_round(figures, makers, registry, folder, person)
                native_round(figures, folder, person)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 1 if show(figures, console) else 0


if __name__ == "__main__":
    sys.exit(main())
