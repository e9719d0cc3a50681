# SPDX-License-Identifier: Apache-2.0
"""A Debian root made as a plain user: mmdebstrap's where it works, else made with apt, dpkg-deb and our own runtime."""

import os
import shutil
import subprocess

from .errors import Error

TIMEOUT = 1800  # seconds for one program
# What a package manager in a container need not care for.
APT_OPTIONS = {"Acquire::Check-Valid-Until": "false", "APT::Install-Recommends": "false"}
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # folders that are links to those below /usr


def bootstrap(store, names, suite, packages=(), sources=None, exclude=(), progress=None, engine=None):
    """Make an image of Debian `suite`: what is essential, apt, and `packages`; returns the Image of the first name.

    names: references; sources: lines of sources.list, by default for the mirror that this machine's apt uses
    exclude: patterns of paths that packages' files are not installed to, as dpkg's path-exclude
    progress: as build.build's. Raises Error.
    """
    from . import images, reference, userns

    progress = progress or (lambda _event, **_facts: None)
    sources = debian_sources(suite) if sources is None else sources
    if shutil.which("mmdebstrap") and userns.mapped() == "subids":
        progress("step", stage=suite, number=1, total=1, line=0, text=f"mmdebstrap {suite}", cached=False)
        layer = _mmdebstrap(store, suite, packages, sources, exclude, progress)
    elif sources and shutil.which("dpkg-deb"):
        layer = _apt(store, suite, packages, sources, exclude, progress, engine)
    else:
        return _from_image(store, names, suite, packages, progress, engine)
    import json
    import time

    from .manifests import parse_platform
    from .stages import PATH

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    platform = parse_platform(None)
    config = {
        "created": now, "architecture": platform.architecture, "os": platform.system,
        "config": {"Env": [PATH], "Cmd": ["/bin/bash"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"]]},
        "history": [{"created": now, "created_by": f"debian {suite}"}],
    }  # fmt: skip
    content = json.dumps(config, separators=(",", ":")).encode()
    first, *_others = [images.keep(store, reference.parse(name).name, content, [layer]) for name in names]
    return first


def debian_sources(suite):
    """Source lines for `suite` from the mirror that this machine's apt uses for Debian.

    Empty on machines that are not Debian.
    """
    if not shutil.which("apt-get"):
        return []
    found = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(SUITE) $(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60, check=False,
    ).stdout  # fmt: skip
    for line in found.splitlines():
        origin, *rest = line.split()
        if origin == "Debian" and "-" not in rest[1]:
            return [f"deb {rest[-1]} {suite} main"]
    return []


def _run(command, progress, suite, **options):
    """Run a program, pass on what it prints; raises Error with the line that tells why it failed."""
    lines = []
    environment = dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive", **options.pop("env", {}))
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, **options
    ) as process:
        try:
            for line in process.stdout:
                lines = [*lines[-50:], line.decode("utf-8", "replace").strip()]
                progress("output", stage=suite, data=line)
            status = process.wait(TIMEOUT)
        except BaseException:
            process.terminate()
            raise
    if status:
        said = [line for line in lines if line]
        errors = [line for line in said if line.startswith(("E: ", "dpkg: error"))] or said[-1:]
        raise Error(f"{command[0]} failed with exit status {status}: {' '.join(errors[:1])}")
    return lines


def _mmdebstrap(store, suite, packages, sources, exclude, progress):
    """The root as mmdebstrap makes it."""
    import tempfile

    from . import layers

    # dpkg's many small writes are what takes long: in memory where there is enough of it.
    roomy = os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 1 << 31
    with tempfile.TemporaryDirectory(dir="/dev/shm" if roomy else None) as scratch:
        os.chmod(scratch, 0o755)  # mmdebstrap goes there under other ids
        path = os.path.join(scratch, "root.tar")
        command = ["mmdebstrap", "--variant=minbase", "--dpkgopt=force-unsafe-io"]
        command += [f"--aptopt={name} {value}" for name, value in APT_OPTIONS.items()]
        command += [f"--dpkgopt=path-exclude={one}" for one in exclude]
        command += [f"--include={','.join(packages)}"] if packages else []
        _run([*command, suite, path, *sources], progress, suite, env={"TMPDIR": scratch})

        def copy(stream):
            with open(path, "rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)

        return layers.from_tar(store, copy)


def _from_image(store, names, suite, packages, progress, engine):
    """Where there is no apt: the root that Debian publishes, and packages on top."""
    from .build import build

    lines = [f"FROM debian:{suite}"]
    if packages:
        wanted = " ".join(packages)
        lines.append(
            "RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "
            f"{wanted} && rm -rf /var/lib/apt/lists/*"
        )
    return build(store, None, text="\n".join(lines), tags=names, progress=progress, engine=engine)


# With apt and dpkg-deb


def _apt(store, suite, packages, sources, exclude, progress, engine):
    """The root as dpkg makes it in a container: its own files were unpacked before, and are installed over then."""
    from . import engines, layers, pack, trees, userns
    from .store import Store

    with store.temporary() as folder:
        try:
            progress("step", stage=suite, number=1, total=3, line=0, text=f"download {suite}", cached=False)
            apt = _Apt(os.path.join(folder, "apt"), sources, progress, suite)
            essential = apt.essential()
            first = apt.download(essential)
            further = apt.download([*essential, *packages]) - first
            progress("step", stage=suite, number=2, total=3, line=0, text="unpack", cached=False)
            scratch = Store(os.path.join(folder, "store"))
            settings = _settings(sources, exclude)
            unpacked = layers.from_tar(scratch, _Unpacked(apt.archives, sorted(first), settings, exclude).write)
            progress("step", stage=suite, number=3, total=3, line=0, text="install", cached=False)
            below = [scratch.layer(unpacked["diff_id"])]
            container = os.path.join(folder, "container")
            os.mkdir(container)
            chosen = engines.choose(store, engine)
            try:
                _install(chosen, container, below, apt, sorted(first), sorted(further), progress, suite)
                from .running import clear

                top, whole = pack.top(container)
                userns.call(clear, top, [], ["/debs", "/etc/hosts", "/etc/resolv.conf", "/script"])
                folders = [top] if whole else [*below, top]
                return layers.from_tar(store, lambda stream: pack.write_tree(stream, folders))
            finally:
                chosen.remove(container)
        finally:
            trees.remove(os.path.join(folder, "store"))


def _settings(sources, exclude):
    """{path: text} of what the root is to have from the beginning."""
    return {
        "etc/apt/sources.list": "".join(line + "\n" for line in sources),
        "etc/apt/apt.conf.d/99options": "".join(f'{name} "{value}";\n' for name, value in APT_OPTIONS.items()),
        "etc/dpkg/dpkg.cfg.d/99options": "force-unsafe-io\n" + "".join(f"path-exclude={one}\n" for one in exclude),
        "var/lib/dpkg/status": "",
        "var/lib/dpkg/available": "",
        "etc/hostname": "localhost\n",
        "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
    }


def _install(engine, container, below, apt, first, further, progress, suite):
    """dpkg in a container: what is essential, then all else."""
    from .running import pump, started
    from .spec import Mount, Spec

    script = os.path.join(os.path.dirname(container), "script")
    lines = ["#!/bin/sh", "set -e", "cd /debs", "dpkg --force-depends --install " + " ".join(first)]
    if further:
        # Each after what it depends on before it can be unpacked: apt finds out.
        lines.append("apt-get -y --no-download --allow-downgrades --no-install-recommends"
                     " -o Dir::Cache::archives=/debs install " + " ".join(f"./{name}" for name in further))  # fmt: skip
    lines += ["rm -f /usr/sbin/policy-rc.d /var/lib/dpkg/*-old /var/cache/debconf/*-old /var/log/dpkg.log"
              " /var/log/apt/* /var/cache/apt/*.bin", ": > /etc/machine-id"]  # fmt: skip
    with open(script, "w", encoding="utf-8") as target:
        target.write("\n".join(lines) + "\n")
    os.chmod(script, 0o755)
    engine.prepare(container, below)
    mounts = [Mount("bind", "/debs", apt.archives), Mount("bind", "/script", script)]
    mounts += [Mount("bind", path, path) for path in ("/etc/hosts", "/etc/resolv.conf") if os.path.exists(path)]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C",
           "DEBCONF_NONINTERACTIVE_SEEN": "true"}  # fmt: skip
    spec = Spec(container, below, ["/bin/sh", "/script"], env, mounts=mounts)
    code, tail = pump(started(engine, spec), lambda data: progress("output", stage=suite, data=data))
    if code:
        said = [line for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
        raise Error(f"debian {suite}: installing packages failed with exit status {code}: {' '.join(said[-1:])}")


class _Apt:
    """apt with a state of its own and what the machine says of how to reach its mirror."""

    def __init__(self, folder, sources, progress, suite):
        self.progress = progress
        self.suite = suite
        self.archives = os.path.join(folder, "archives")
        for name in ("lists/partial", "archives/partial", "etc"):
            os.makedirs(os.path.join(folder, name))
        status = os.path.join(folder, "status")
        listed = os.path.join(folder, "etc", "sources.list")
        self._write(status, "")
        self._write(listed, "".join(_signed(line) + "\n" for line in sources))
        settings = [line for line in _lines(["apt-config", "dump", "Acquire"]) if "::" in line]
        settings += [f'{name} "{value}";' for name, value in APT_OPTIONS.items()]
        settings += [
            f'Dir::State "{folder}";', f'Dir::State::Lists "{folder}/lists";', f'Dir::State::status "{status}";',
            f'Dir::Cache "{folder}";', f'Dir::Cache::archives "{self.archives}";', f'Dir::Etc::sourcelist "{listed}";',
            'Dir::Etc::sourceparts "/dev/null";', 'Dir::Etc::parts "/dev/null";', 'Dir::Etc::main "/dev/null";',
            'Dir::Etc::preferences "/dev/null";', 'Dir::Etc::preferencesparts "/dev/null";', 'Debug::NoLocking "true";',
            'APT::Sandbox::User "";', 'Dir::Log "/dev/null";',
        ]  # fmt: skip
        path = os.path.join(folder, "apt.conf")
        self._write(path, "\n".join(settings) + "\n")
        self.environment = {"APT_CONFIG": path}
        self._run("update", "--error-on=any")

    @staticmethod
    def _write(path, text):
        with open(path, "w", encoding="utf-8") as target:
            target.write(text)

    def _run(self, *arguments):
        return _run(["apt-get", "-q", *arguments], self.progress, self.suite, env=self.environment)

    def essential(self):
        """Names of the packages without which there is no Debian, and apt."""
        found = ["apt"]
        for paragraph in "\n".join(_lines(["apt-cache", "dumpavail"], self.environment)).split("\n\n"):
            fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
            if fields.get("Essential") == "yes" or fields.get("Priority") == "required":
                found.append(fields["Package"])
        return sorted(set(found))

    def download(self, packages):
        """Get packages and what they need; returns the names of all archives."""
        self._run("install", "--download-only", "-y", "--no-install-recommends", *packages)
        return {name for name in os.listdir(self.archives) if name.endswith(".deb")}


def _lines(command, environment=None):
    environment = dict(os.environ, LC_ALL="C", **(environment or {}))
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)
    if done.returncode:
        raise Error(f"{' '.join(command)}: {done.stderr.decode('utf-8', 'replace').strip()[-300:]}")
    return done.stdout.decode("utf-8", "replace").splitlines()


def _signed(line):
    """A source line with Debian's keys, where it names none and the machine does not trust them anyway."""
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    kind, _blank, rest = line.partition(" ")
    if rest.startswith("[") or not os.path.exists(keys):
        return line
    return f"{kind} [signed-by={keys}] {rest}"


class _Unpacked:
    """Files of .deb archives as one tar, with those folders of the root as links that are links in Debian."""

    def __init__(self, folder, names, settings, exclude):
        self.folder = folder
        self.names = names
        self.settings = settings
        self.exclude = exclude

    def write(self, stream):
        import tarfile

        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18) as archive:
            for name in _MERGED:
                if name in ("lib32", "libx32"):
                    continue
                folder = tarfile.TarInfo(f"usr/{name}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                archive.addfile(link)
            for name in self.names:
                self._deb(name, archive)
            for path, text in self.settings.items():
                import io

                content = text.encode()
                info = tarfile.TarInfo(path)
                info.size, info.mode = len(content), 0o755 if content.startswith(b"#!") else 0o644
                archive.addfile(info, io.BytesIO(content))

    def _deb(self, name, archive):
        import tarfile

        command = ["dpkg-deb", "--fsys-tarfile", os.path.join(self.folder, name)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=1 << 18) as source:
                for member in source:
                    path = _merged(member.name)
                    if path in ("", *_MERGED) or (not member.isdir() and self._left_out(path)):
                        continue
                    info = tarfile.TarInfo(path)
                    info.type, info.mode, info.mtime = member.type, member.mode, member.mtime
                    info.uid, info.gid, info.linkname = member.uid, member.gid, member.linkname
                    if member.islnk():
                        info.linkname = _merged(member.linkname)
                    if member.isreg():
                        info.size = member.size
                    archive.addfile(info, source.extractfile(member) if member.isreg() else None)
            process.stdout.read()
        if process.returncode:
            raise Error(f"dpkg-deb --fsys-tarfile {name} failed with exit status {process.returncode}")

    def _left_out(self, path):
        import fnmatch

        return any(fnmatch.fnmatchcase("/" + path, pattern) for pattern in self.exclude)


def _merged(path):
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > 1 and parts[0] in _MERGED:
        parts.insert(0, "usr")
    return "/".join(parts)
