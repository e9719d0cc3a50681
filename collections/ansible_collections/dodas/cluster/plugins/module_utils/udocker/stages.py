# SPDX-License-Identifier: Apache-2.0
"""One stage of a build: its instructions in turn, each of which changes the configuration or makes a layer."""

import hashlib
import json
import os

from . import cache, dockerignore
from . import containerfile as syntax
from .errors import Error, NotFound

DOWNLOAD = 1 << 31  # bytes of a file that ADD gets from elsewhere, at most
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Variables that a RUN sees without an ARG, and that no key of the cache holds.
PROXIES = tuple(
    name for one in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy") for name in (one, one.upper())
)


class Stage:
    """A stage while it is built: the configuration, the layers, and the key of the files so far."""

    def __init__(self, job, stage, done):
        self.job = job
        self.store = job.store
        self.stage = stage
        self.done = done
        self.arguments = {}
        self.declared = []
        self.number = 0
        self.total = 1 + len(stage.instructions)

    def run(self):
        """Build it; returns its state, plain values."""
        triggers = self._from()
        for text in triggers:
            self._step(syntax.parse_trigger(text, self.job.file.path, self.job.file.escape))
        for instruction in self.stage.instructions:
            self._step(instruction)
        return {"config": self.config, "layers": self.layers, "key": self.key, "declared": self.declared}

    def _from(self):
        stage, job = self.stage, self.job
        kind, value = job.meaning(stage, stage.base, base=True)
        self._tell(f"FROM {stage.base}" + (f" AS {stage.name}" if stage.name else ""), stage.line)
        if kind == "context":
            job.fail(stage.line, f"FROM {stage.base}: a folder is no image: FROM scratch, and COPY --from={stage.base}")
        if kind == "scratch":
            self.config = {"config": {"Env": [PATH]}, "history": []}
            self.layers = []
        else:
            base = self.done[value] if kind == "stage" else job.images[value]
            self.config = json.loads(json.dumps(base["config"]))
            self.layers = list(base["layers"])
        # The files alone count: an image that differs in its labels only has the same key.
        self.key = base["key"] if kind == "stage" else cache.key("layers", [one["diff_id"] for one in self.layers])
        config = self.config["config"] = self.config.get("config") or {}
        self.config.pop("container_config", None)
        if kind == "image":
            return config.pop("OnBuild", None) or []
        if kind == "scratch":
            platform = job.platform
            self.config.update({"architecture": platform.architecture, "os": platform.system})
            if platform.variant:
                self.config["variant"] = platform.variant
        return []

    # Steps

    def _tell(self, text, line, cached=False):
        self.number += 1
        name = self.stage.name or str(self.stage.number)
        facts = {"number": self.number, "total": max(self.total, self.number), "line": line, "cached": cached}
        self.job.progress("step", stage=name, text=text, **facts)

    def _step(self, instruction):
        self.instruction = instruction
        method = getattr(self, "_" + instruction.name.lower())
        try:
            method(instruction)
        except NotFound as exc:
            self.fail(str(exc))
        except OSError as exc:
            self.fail(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc))

    def fail(self, message, status=1):
        line = self.instruction.line
        where = f"{self.job.file.path}:{line}" if line else f"{self.job.file.path}, ONBUILD of {self.stage.base}"
        raise Error(f"{where}: {self.instruction.name}: {message}", status)

    def _history(self, empty=True, created=None):
        entry = {"created": created or self.job.now(), "created_by": self.instruction.source}
        if empty:
            previous = self.config.get("history") or []
            entry["created"] = previous[-1].get("created") or entry["created"] if previous else entry["created"]
            entry["empty_layer"] = True
        self.config.setdefault("history", []).append(entry)
        self.config["created"] = entry["created"]

    def _setting(self, instruction):
        """An instruction that changes the configuration alone."""
        self._tell(instruction.source, instruction.line)
        self._history()

    def _layer(self, instruction, parts, make):
        """A step that makes a layer, or finds it in the cache.

        make(keep) makes it: keep(write) takes the tar that write(stream) writes, and returns what the cache has of it.
        """
        key = cache.key(self.key, instruction.name, parts)
        found = None if self.job.no_cache else cache.find(self.store, key)
        self._tell(instruction.source, instruction.line, cached=bool(found))
        if not found:
            found = make(lambda write: self._keep(key, write))
        self._take(key, found)

    def _keep(self, key, write):
        from . import layers

        with self.store.lock("prune", shared=True):
            found = dict(layers.from_tar(self.store, write), created=self.job.now())
            cache.keep(self.store, key, found)
        return found

    def _take(self, key, found):
        self.layers.append({name: found[name] for name in ("digest", "diff_id", "size")})
        self._history(False, found["created"])
        self.key = key

    def folders(self):
        """The layers so far, lowest first."""
        return [self.store.layer(layer["diff_id"]) for layer in self.layers]

    # Variables

    def env(self):
        """The variables of the image so far."""
        pairs = (entry.partition("=") for entry in self.config["config"].get("Env") or ())
        return {name: value for name, _equals, value in pairs}

    def _variables(self):
        return dict(self.arguments, **self.env())

    def _expand(self, word):
        return self.job.expand(self.instruction.line, word, self._variables())

    def _arg(self, instruction):
        job = self.job
        for name, value in instruction.words:
            self.declared.append(name)
            if name in job.build_args:
                self.arguments[name] = job.build_args[name]
            elif value is not None:
                self.arguments[name] = self._expand(value)
            elif name in job.globals:
                self.arguments[name] = job.globals[name]
            elif name in job.predefined:
                self.arguments[name] = job.predefined[name]
        self._setting(instruction)

    def _env(self, instruction):
        # What one instruction sets, it does not see itself.
        pairs = [(self._expand(name), self._expand(value)) for name, value in instruction.words]
        self.config["config"]["Env"] = [f"{name}={value}" for name, value in dict(self.env(), **dict(pairs)).items()]
        self._setting(instruction)

    # Settings

    def _label(self, instruction):
        labels = self.config["config"]["Labels"] = self.config["config"].get("Labels") or {}
        labels.update([(self._expand(name), self._expand(value)) for name, value in instruction.words])
        self._setting(instruction)

    def _maintainer(self, instruction):
        self.config["author"] = instruction.words[0]
        self._setting(instruction)

    def _user(self, instruction):
        self.config["config"]["User"] = self._expand(instruction.words[0])
        self._setting(instruction)

    def _stopsignal(self, instruction):
        self.config["config"]["StopSignal"] = self._expand(instruction.words[0])
        self._setting(instruction)

    def _shell(self, instruction):
        self.config["config"]["Shell"] = instruction.words
        self._setting(instruction)

    def _command(self, instruction):
        if instruction.json:
            return instruction.words
        return self._in_shell(instruction.words[0]) if instruction.words else None

    def _in_shell(self, text):
        return [*(self.config["config"].get("Shell") or ["/bin/sh", "-c"]), text]

    def _cmd(self, instruction):
        self.config["config"]["Cmd"] = self._command(instruction)
        self.command_set = True
        self._setting(instruction)

    def _entrypoint(self, instruction):
        self.config["config"]["Entrypoint"] = self._command(instruction)
        if not getattr(self, "command_set", False):
            self.config["config"].pop("Cmd", None)  # of the base, whose entry point it was made for
        self._setting(instruction)

    def _expose(self, instruction):
        ports = self.config["config"]["ExposedPorts"] = self.config["config"].get("ExposedPorts") or {}
        for word in self._words(instruction.words):
            port, _slash, protocol = word.partition("/")
            first, _dash, last = port.partition("-")
            protocol = protocol.lower() or "tcp"
            numbers = first.isdigit() and (last or first).isdigit() and 0 < int(first) <= int(last or first) < 65536
            if not numbers or protocol not in ("tcp", "udp", "sctp"):
                self.fail(f"{word}: is no port: 80, 80/udp, 8000-8010")
            ports.update({f"{number}/{protocol}": {} for number in range(int(first), int(last or first) + 1)})
        self._setting(instruction)

    def _words(self, words):
        found = []
        for word in words:
            try:
                found += syntax.expand_words(self._expand(word), None, self.job.file.escape)
            except ValueError as exc:
                self.fail(f"{word}: {exc}")
        return found

    def _volume(self, instruction):
        volumes = self.config["config"]["Volumes"] = self.config["config"].get("Volumes") or {}
        volumes.update({self._expand(word): {} for word in instruction.words})
        self._setting(instruction)

    def _onbuild(self, instruction):
        config = self.config["config"]
        config["OnBuild"] = [*(config.get("OnBuild") or []), instruction.words[0]]
        self._setting(instruction)

    def _healthcheck(self, instruction):
        kind, _blank, rest = instruction.words[0].partition(" ")
        if kind.upper() == "NONE":
            check = {"Test": ["NONE"]}
        else:
            words = syntax.json_list(rest.strip()) if rest.strip().startswith("[") else None
            check = {"Test": ["CMD", *words] if words else ["CMD-SHELL", rest.strip()]}
            names = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod",
                     "start-interval": "StartInterval"}  # fmt: skip
            for flag, value in instruction.flags.items():
                try:
                    if flag == "retries":
                        check["Retries"] = int(value)
                    else:
                        check[names[flag]] = nanoseconds(value)
                except ValueError:
                    self.fail(f"--{flag}={value}: is no {'number' if flag == 'retries' else 'duration (30s, 1m30s)'}")
        self.config["config"]["Healthcheck"] = check
        self._setting(instruction)

    # Folders and files

    def _workdir(self, instruction):
        from .view import View

        config = self.config["config"]
        path = os.path.normpath(os.path.join(config.get("WorkingDir") or "/", self._expand(instruction.words[0])))
        config["WorkingDir"] = path = "/" + path.strip("/")
        view = View(self.folders())
        parts = view.resolve(path)
        found = view.entry(parts)
        if found and not found.is_folder:
            self.fail(f"{path} is no folder")
        if found:
            self._setting(instruction)
        else:
            from .copying import Copy

            self._layer(instruction, path, self._copied(Copy(self.folders(), [], [], path + "/", folder=True)))

    def _copy(self, instruction):
        from .copying import Copy

        target = self._expand(instruction.words[-1])
        config = self.config["config"]
        as_folder = target.endswith(("/", "/.")) or target in (".", "..")
        target = os.path.normpath(os.path.join(config.get("WorkingDir") or "/", target))
        target = "/" + target.strip("/") + ("/" if as_folder and target != "/" else "")
        kind, value, root = self.root_of(instruction.flags.get("from"))
        adds = instruction.name == "ADD"
        documents = {heredoc.name: heredoc for heredoc in instruction.heredocs}
        patterns, files = [], []
        for word in instruction.words[:-1]:
            heredoc = syntax.heredoc(word, self.job.file.escape)
            if heredoc and heredoc.name in documents:
                heredoc = documents[heredoc.name]
                content = self._expand_text(heredoc.content) if heredoc.expand else heredoc.content
                files.append((heredoc.name, content.encode("utf-8", "surrogateescape")))
            elif adds and word.startswith(("http://", "https://", "ftp://")):
                return self._add_url(instruction, self._expand(word), target)
            elif adds and (word.startswith(("git@", "git://", "ssh://")) or word.endswith(".git")):
                self.fail(f"{word}: repositories cannot be added: clone it before, and COPY the folder")
            else:
                patterns.append(self._expand(word))
        if instruction.flags.get("checksum"):
            self.fail("--checksum is for what is downloaded")
        flags = instruction.flags
        chown = self._expand(flags["chown"]) if "chown" in flags else None
        job = Copy(
            self.folders(), root, patterns, target,
            files=files, mode=self._expand(flags["chmod"]) if "chmod" in flags else None,
            user=chown if chown is not None else ("" if kind == "context" else None),
            ignore=dockerignore.read(value, None if flags.get("from") else self.job.ignore_file)
            if kind == "context" and value else None,
            exclude=[self._expand(one) for one in flags.get("exclude", ())], parents=flags.get("parents", False),
            extract=(adds and flags.get("unpack", True)), mtime=self.job.epoch(),
            what=self._described(kind, flags.get("from")),
        )  # fmt: skip
        self._copy_layer(instruction, job, self._source_key(kind, value))

    _add = _copy

    def _expand_text(self, text):
        """Variables put in; quotes stay, as in a shell's here-document."""
        try:
            return syntax.expand_document(text, self._variables(), self.job.file.escape)
        except ValueError as exc:
            self.fail(str(exc))

    def _described(self, kind, name):
        if kind == "context":
            return f"the build context {name}" if name else "the build's context"
        return f"{kind} {name}"

    def root_of(self, name):
        """(kind, value, folders) of what --from names; the context for None."""
        job = self.job
        if name is None:
            value = job.contexts[""]
            return "context", value, [value] if value else []
        kind, value = job.meaning(self.stage, name)
        if kind == "context":
            return kind, value, [value]
        layers = (self.done[value] if kind == "stage" else job.images[value])["layers"]
        return kind, value, [self.store.layer(layer["diff_id"]) for layer in layers]

    def _source_key(self, kind, value):
        """What stands for all files of a source, or None for a context, which has to be read."""
        if kind == "context":
            return None
        layers = (self.done[value] if kind == "stage" else self.job.images[value])["layers"]
        return [layer["diff_id"] for layer in layers]

    def _copy_layer(self, instruction, job, source):
        """The layer of a COPY. Whole layers that are known spare reading what is copied from them."""
        from . import userns

        how = [job.patterns, job.target, job.user, job.mode, job.parents, job.extract]
        quick = cache.key(self.key, instruction.name, how, source, instruction.flags.get("exclude")) if source else None
        found = cache.find(self.store, quick) if quick and not self.job.no_cache else None
        if found:
            self._tell(instruction.source, instruction.line, cached=True)
            return self._take(found["key"], found)
        try:
            digest = userns.call(job.digest)
        except Error as exc:
            self.fail(str(exc))
        key = cache.key(self.key, instruction.name, [how[1:], digest])
        found = None if self.job.no_cache else cache.find(self.store, key)
        self._tell(instruction.source, instruction.line, cached=bool(found))
        if not found:
            found = self._copied(job)(lambda write: self._keep(key, write))
        if quick:
            cache.keep(self.store, quick, dict(found, key=key))
        return self._take(key, found)

    def _copied(self, job):
        """A function that makes the layer of a Copy, see _layer."""

        def make(keep):
            try:
                return keep(job.write)
            except Error as exc:
                self.fail(str(exc))

        return make

    def _add_url(self, instruction, url, target):
        """ADD of what a server has: a file of mode 600, not unpacked unless that is asked for."""
        from .copying import Copy

        flags = instruction.flags
        if len(instruction.words) != 2:
            self.fail("a download is added alone: one ADD for each")
        name = os.path.basename(url.split("?")[0].split("#")[0])
        if target.endswith("/") and not name:
            self.fail(f"{url} has no name at its end: name the file that it becomes")
        checksum = self._expand(flags["checksum"]) if "checksum" in flags else None

        def copy(content, mtime):
            job = Copy(
                self.folders(), [], [], target, files=[(name, content)], user=self._expand(flags.get("chown", "")),
                mode=self._expand(flags.get("chmod", "600")), extract=flags.get("unpack", False), mtime=mtime,
            )  # fmt: skip
            return self._copied(job)

        how = [url, target, flags.get("chown"), flags.get("chmod"), flags.get("unpack")]
        if checksum and not self.job.no_cache and cache.find(self.store, cache.key(self.key, "ADD", [*how, checksum])):
            return self._layer(instruction, [*how, checksum], None)
        content, mtime = self._download(url)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        if checksum and checksum != digest:
            self.fail(f"{url}: is {digest}, not {checksum}")
        return self._layer(instruction, [*how, digest], copy(content, mtime))

    def _download(self, url):
        from email.utils import parsedate_to_datetime

        from .registry import client

        try:
            with client(self.store).request("GET", url) as answer:
                if answer.status != 200:
                    raise Error(f"{url}: the server answers {answer.status}")
                content = answer.read(DOWNLOAD)
                modified = answer.headers.get("Last-Modified")
        except Error as exc:
            self.fail(str(exc))
        try:
            return content, parsedate_to_datetime(modified).timestamp()
        except (TypeError, ValueError):
            return content, 0.0

    # RUN

    def _run(self, instruction):
        from .running import run

        argv, script = self._argv(instruction)
        env = self._run_environment()
        config = self.config["config"]
        mounts = [self._mount_options(self._expand_mount(text)) for text in instruction.flags.get("mount", ())]
        network = instruction.flags.get("network", "default")
        if network not in ("default", "host", "none"):
            self.fail(f"--network={network}: is default, host or none")
        network = self.job.network if network == "default" else network
        keyed = [
            argv, script and script[1].decode("utf-8", "surrogateescape"), sorted(env.items()),
            config.get("User") or "", config.get("WorkingDir") or "/", mounts, network,
            [self._mounted(mount) for mount in mounts],
        ]  # fmt: skip
        self._layer(instruction, keyed, lambda keep: run(self, argv, script, env, mounts, network, keep))

    def _argv(self, instruction):
        """(argv, (path, content) of a file that it needs, or None)."""
        if instruction.json:
            return instruction.words, None
        text = instruction.words[0]
        if not instruction.heredocs:
            return self._in_shell(text), None
        if len(instruction.heredocs) == 1 and syntax.heredoc(text, self.job.file.escape):
            heredoc = instruction.heredocs[0]
            if heredoc.content.startswith("#!"):
                path = f"/dev/pipes/{heredoc.name}"
                return [path], (path, heredoc.content.encode("utf-8", "surrogateescape"))
            return self._in_shell(heredoc.content), None
        # The shell reads them: the text is put together again.
        lines = [text]
        for heredoc in instruction.heredocs:
            lines.append(heredoc.content + heredoc.name)
        return self._in_shell("\n".join(lines)), None

    def _run_environment(self):
        """The variables that count: of the image, and arguments; proxies are added when it runs."""
        found = {name: value for name, value in self.arguments.items() if name not in PROXIES}
        found.update(self.env())
        return found

    def _expand_mount(self, text):
        return ",".join(self._expand(part) for part in text.split(","))

    def _mount_options(self, text):
        """{option: value} of a --mount."""
        found = {"type": "bind"}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            name = {"destination": "target", "dst": "target", "src": "source", "ro": "readonly",
                    "rw": "readwrite"}.get(name, name)  # fmt: skip
            found[name] = value if equals else "true"
        known = {
            "bind": ("target", "source", "from", "readwrite", "readonly"),
            "cache": ("target", "id", "source", "from", "sharing", "mode", "uid", "gid", "readonly", "readwrite"),
            "tmpfs": ("target", "size"),
            "secret": ("target", "id", "required", "mode", "uid", "gid", "env"),
        }
        kind = found["type"]
        if kind not in known:
            self.fail(f"--mount=type={kind}: there are {', '.join(known)}")
        for name in found:
            if name not in known[kind] and name not in ("type", "bind-propagation", "z", "Z"):
                self.fail(f"--mount=type={kind} has no option {name}: there are {', '.join(known[kind])}")
        if "target" not in found and kind != "secret":
            self.fail(f"--mount=type={kind} needs target=...")
        if kind == "secret" and not (found.get("id") or found.get("target")):
            self.fail("--mount=type=secret needs id=...")
        if "target" in found:
            found["target"] = os.path.normpath(
                os.path.join(self.config["config"].get("WorkingDir") or "/", found["target"])
            )
        return found

    def _mounted(self, mount):
        """What stands for the files of a bind mount in the key of the cache."""
        from . import userns
        from .copying import Copy

        if mount["type"] != "bind":
            return None
        kind, value, root = self.root_of(mount.get("from"))
        if kind != "context":
            return self._source_key(kind, value)
        if not root:
            self.fail("there is no context to mount")
        ignore = dockerignore.read(value, None if mount.get("from") else self.job.ignore_file)
        try:
            return userns.call(Copy([], root, [mount.get("source", "/")], "/mounted/", ignore=ignore).digest)
        except Error as exc:
            self.fail(str(exc))


def nanoseconds(text):
    """The nanoseconds of "1m30s", "500ms"; raises ValueError."""
    import re

    units = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
    part = r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)"
    if text != "0" and not re.fullmatch(f"(?:{part})+", text):
        raise ValueError(text)
    return int(sum(float(number) * units[unit] for number, unit in re.findall(part, text)))
