# SPDX-License-Identifier: Apache-2.0
"""A task on an agent: a container or a process, its health checks, and its record, which outlives the agent.

What runs is the child of a shell that outlives the agent as well, and leaves the exit status in a file: so a restarted
agent finds its tasks again, and how they ended meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

KEPT = 600.0  # how long an ended task is told of (seconds)
# $0 is the file for the status. The shell stays when its group is asked to end, and says how that went.
KEEPER = 'trap : TERM INT HUP; "$@"; echo $? >"$0.new"; mv "$0.new" "$0"'
NOT_RUN = 125  # the exit status of podman and docker when they could not start the container
SINGLE_LINE = re.compile(r"[^\n\r\0]*")


class Refused(Exception):
    """The task cannot be started here; the message says why."""


class Task:
    """One task. `record` is what is kept of it in a file, `changed` is called when what can be told of it changes."""

    def __init__(self, agent, record):
        self.agent, self.record = agent, record
        self.lock = threading.RLock()
        self.ending = threading.Event()
        self.process = None
        self.checks = {}

    # What can be told

    @property
    def id(self):
        return self.record["id"]

    @property
    def definition(self):
        return self.record["definition"]

    @property
    def ended(self):
        return self.record["ended"] is not None

    @property
    def used(self):
        """What it takes of the agent's resources; nothing once it has ended."""
        if self.ended:
            return {}
        return {**self.wants, "ports": self.record["ports"]}

    @property
    def wants(self):
        return {name: float(self.definition.get(name) or 0) for name in ("cpus", "mem", "disk", "gpus")}

    @property
    def healthy(self):
        """Whether all checks pass; None without checks, or while nothing is known."""
        known = [check.healthy for check in self.checks.values()]
        if not known or (None in known and False not in known):
            return None
        return all(known)

    def told(self):
        """For schedulers."""
        record = self.record
        output = "; ".join(check.output for check in self.checks.values() if check.output)
        return {
            **{name: record[name] for name in ("id", "framework_id", "app_id", "message", "started", "ended", "ports")},
            "state": "TASK_STAGING" if record["state"] == "TASK_STARTING" else record["state"],
            "healthy": self.healthy, "health_output": output, "host": self.agent.flags.hostname,
            "container": self.container if self.image else "",
        }  # fmt: skip

    def told_master(self):
        """For the master, which shows it as show.task says."""
        record = self.record
        found = {name: record[name] for name in ("id", "framework_id", "state", "message", "ports", "statuses")}
        found["statuses"] = [dict(status) for status in record["statuses"] if status["state"] != "TASK_STAGING"]
        if self.healthy is not None and found["statuses"] and not self.ended:
            found["statuses"][-1]["healthy"] = self.healthy
        return {
            **found, **self.wants, "name": self.name, "container": record["run"], "pid": record["pid"],
            "address": self.agent.address,
        }  # fmt: skip

    @property
    def name(self):
        return ".".join(reversed(self.record["app_id"].strip("/").split("/"))) or self.id

    @property
    def image(self):
        if self.agent.as_process:
            return ""
        return ((self.definition.get("container") or {}).get("docker") or {}).get("image", "")

    @property
    def container(self):
        """The container's name."""
        return f"mesos-{self.record['run']}"

    @property
    def sandbox(self):
        return Path(self.record["sandbox"])

    @property
    def status_file(self):
        return self.sandbox.parent / f"{self.sandbox.name}.status"

    # Its life

    def start(self):
        """Start it, in a thread of its own."""
        self._set("TASK_STAGING")
        threading.Thread(target=self._run, daemon=True).start()

    def resume(self):
        """Watch on after the agent was away."""
        if not self.ended:
            threading.Thread(target=self._watch, daemon=True).start()

    def _run(self):
        try:
            self._prepare()
            words, environment = self._container() if self.image else self._process()
            with self.lock:
                self._launch(words, environment)
        except (OSError, Refused, KeyError, TypeError, ValueError) as exc:
            self._end("TASK_FAILED", f"Failed to launch container: {exc}")
            return
        self._watch()

    def _prepare(self):
        self.sandbox.mkdir(parents=True, exist_ok=True)
        latest = self.sandbox.parent / "latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(self.sandbox.name)

    def _launch(self, words, environment):
        with open(self.sandbox / "stdout", "ab") as out, open(self.sandbox / "stderr", "ab") as errors:
            self.process = subprocess.Popen(
                [*self.agent.outside(), "/bin/sh", "-c", KEEPER, str(self.status_file), *words], cwd=self.sandbox,
                env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self.record["pid"], self.record["born"] = self.process.pid, _born(self.process.pid)
        self._set("TASK_STARTING")

    def _watch(self):
        if self.record["state"] != "TASK_RUNNING":
            late = time.monotonic() + self.agent.flags.seconds("executor_registration_timeout")
            while self._lives() and not self._is_up():
                if time.monotonic() > late and not self.ending.is_set():
                    self.stop(0, "Container did not start within executor_registration_timeout", "TASK_FAILED")
                time.sleep(0.3)
            if self._lives() or self._left() not in (None, NOT_RUN):
                self._set("TASK_RUNNING")
        if self.record["stopping"]:
            self.stop(self.record["stopping"]["grace"], self.record["stopping"]["message"])
        self._check()
        while self._lives():
            time.sleep(0.1)
        self._end(*self._outcome())

    def _is_up(self):
        """Whether the container runs; a process does from the start."""
        if not self.image:
            return True
        found = self.agent.docker("inspect", "--type", "container", "--format", "{{.State.Status}}", self.container)
        return found.stdout.strip() == "running"

    def _lives(self):
        if self.process is not None:
            return self.process.poll() is None
        pid = self.record["pid"]
        return pid is not None and _born(pid) == self.record["born"]

    def _left(self):
        """The exit status that the shell has left, or None."""
        try:
            return int(self.status_file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _outcome(self):
        """(state, message) by what the shell has left."""
        status, stopping = self._left(), self.record["stopping"]
        if status is None and self.image:
            self.agent.docker("rm", "--force", self.container)
        if self.process is not None and not self.image:  # what it has left behind
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if stopping:
            return stopping["state"], stopping["message"]
        if status is None:
            return "TASK_FAILED", "Executor terminated"
        what = "Container exited" if self.image else "Command exited"
        if status == 0:
            return "TASK_FINISHED", f"{what} with status 0"
        if self.image and status == NOT_RUN:
            return "TASK_FAILED", f"Failed to run docker container: {_last_line(self.sandbox / 'stderr')}"
        if status > 128 and not self.image:
            return "TASK_FAILED", f"Command terminated with signal {_signal_name(status - 128)}"
        return "TASK_FAILED", f"{what} with status {status}"

    def stop(self, grace=None, message="", state="TASK_KILLED"):
        """End it: ask, and after `grace` seconds (the app's, else the agent's) end it at once."""
        if grace is None:
            grace = self.definition.get("taskKillGracePeriodSeconds")
        if grace is None:
            grace = self.agent.flags.seconds("executor_shutdown_grace_period")
        with self.lock:
            if self.ended or self.ending.is_set():
                return
            self.ending.set()
            self.record["stopping"] = {"grace": grace, "message": message, "state": state}
            self._keep()
        threading.Thread(target=self._stop, args=(grace,), daemon=True).start()

    def _stop(self, grace):
        while self.record["pid"] is None and not self.ended:  # it is being started
            time.sleep(0.05)
        if self.image:
            stopped = self.agent.docker("stop", "--time", str(int(grace)), self.container, timeout=grace + 60)
        if not self.image or stopped.returncode:
            self._signal(signal.SIGTERM)
        end = time.monotonic() + grace
        while self._lives() and time.monotonic() < end:
            time.sleep(0.05)
        self._signal(signal.SIGKILL)

    def _signal(self, number):
        if self._lives():
            with contextlib.suppress(OSError):
                os.killpg(self.record["pid"], number)

    def _set(self, state, message=""):
        with self.lock:
            record = self.record
            record["state"], record["message"] = state, message
            record["statuses"].append({"state": state, "timestamp": time.time(), "message": message})
            if state == "TASK_RUNNING":
                record["started"] = time.time()
            self._keep()
        self.agent.changed()

    def _end(self, state, message):
        self.ending.set()
        self.record["ended"] = time.time()
        self._set(state, message)
        for name in ("environment", "status"):
            (self.sandbox.parent / f"{self.sandbox.name}.{name}").unlink(missing_ok=True)

    def _keep(self):
        """Write the record, for the next agent. It holds the task's environment: nobody else may read it."""
        path = self.agent.records / f"{self.record['run']}.json"
        temporary = path.with_suffix(".new")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(self.record, file)
        os.replace(temporary, path)

    def forget(self):
        (self.agent.records / f"{self.record['run']}.json").unlink(missing_ok=True)

    # What is run

    def environment(self):
        """What the task finds in its environment."""
        record, definition = self.record, self.definition
        ports = record["ports"]
        inside = str(self.sandbox) if not self.image else self.agent.flags.sandbox_directory
        version = definition.get("version") or ""
        found = {
            "HOST": self.agent.flags.hostname, "MESOS_TASK_ID": record["id"], "MESOS_SANDBOX": inside,
            "MARATHON_APP_ID": record["app_id"], "MARATHON_APP_VERSION": version,
            "MARATHON_APP_RESOURCE_CPUS": str(self.wants["cpus"]), "MARATHON_APP_RESOURCE_MEM": str(self.wants["mem"]),
            "MARATHON_APP_RESOURCE_DISK": str(self.wants["disk"]), "MARATHON_APP_RESOURCE_GPUS": "0",
        }  # fmt: skip
        if self.image:
            found["MARATHON_APP_DOCKER_IMAGE"] = self.image
            found["MESOS_CONTAINER_NAME"] = self.container
        found.update({f"PORT{index}": str(port) for index, port in enumerate(ports)})
        if ports:
            found.update({"PORT": str(ports[0]), "PORTS": ",".join(str(port) for port in ports)})
        found.update({name: str(value) for name, value in (definition.get("env") or {}).items()})
        found.update({name: str(value) for name, value in record["env"].items()})
        return found

    def command(self):
        """(command line for a shell, arguments): one of the two."""
        return self.definition.get("cmd") or "", [str(word) for word in self.definition.get("args") or []]

    def _process(self):
        line, words = self.command()
        if not line and not words:
            raise Refused("it has neither cmd nor args")
        path = os.environ.get("PATH", os.defpath)
        return ["/bin/sh", "-c", line] if line else words, {"PATH": path, **self.environment()}

    def _container(self):
        container = self.definition["container"]
        docker = container["docker"]
        if self.definition.get("fetch"):
            raise Refused("the stand-in fetches no files")
        if docker.get("forcePullImage"):
            pulled = self.agent.docker("pull", *self.agent.authfile(), self.image, timeout=600)
            if pulled.returncode:
                raise Refused(pulled.stderr.strip().splitlines()[-1] if pulled.stderr.strip() else "pull failed")
        values = self.environment()
        single = {name: value for name, value in values.items() if SINGLE_LINE.fullmatch(value)}
        file = self.sandbox.parent / f"{self.sandbox.name}.environment"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.writelines(f"{name}={value}\n" for name, value in single.items())
        several = {name: value for name, value in values.items() if name not in single}
        words = [
            self.agent.docker_program, "run", "--rm", "--name", self.container, "--env-file", str(file),
            "--label", f"MESOS_TASK_ID={self.id}", "--label", f"mesos_work_dir={self.agent.flags.work_dir}",
            "--volume", f"{self.sandbox}:{self.agent.flags.sandbox_directory}", *self.agent.authfile(),
            *self.agent.limits(self.wants),
        ]  # fmt: skip
        for name in several:  # a file of variables has one on each line; these come from our own environment
            words += ["--env", name]
        words += ["--privileged"] if docker.get("privileged") else []
        words += ["--user", self.definition["user"]] if self.definition.get("user") else []
        words += self._network(docker, container)
        for parameter in docker.get("parameters") or []:
            words.append(f"--{parameter['key']}={parameter['value']}")
        for volume in container.get("volumes") or []:
            words += ["--volume", self._volume(volume)]
        line, arguments = self.command()
        words += ["--entrypoint", "/bin/sh", self.image, "-c", line] if line else [self.image, *arguments]
        return words, {**os.environ, **several}

    def _network(self, docker, container):
        modes = [network.get("mode") for network in self.definition.get("networks") or []]
        mode = (modes[0] if modes else docker.get("network", "host")).lower()
        if mode == "host":
            return ["--network", "host"]
        found = []
        mappings = container.get("portMappings") or docker.get("portMappings") or []
        for index, mapping in enumerate(mappings):
            if index < len(self.record["ports"]):
                port = self.record["ports"][index]
                inside = mapping.get("containerPort") or port
                found += ["--publish", f"{port}:{inside}/{mapping.get('protocol') or 'tcp'}"]
        return found

    def _volume(self, volume):
        if "external" in volume:
            raise Refused("the stand-in has no external volumes")
        if "persistent" in volume:
            name = re.sub(r"[^\w.-]", "_", f"{self.record['app_id'].strip('/')}#{volume['containerPath']}")
            source = Path(self.agent.flags.work_dir, "volumes", name)
            source.mkdir(parents=True, exist_ok=True)
        else:
            source = self.sandbox / volume["hostPath"]  # an absolute path stays as it is
        target = volume["containerPath"]
        if not target.startswith("/"):
            target = f"{self.agent.flags.sandbox_directory}/{target}"
        return f"{source}:{target}:{(volume.get('mode') or 'RW').lower()}"

    # Health

    def _check(self):
        for index, given in enumerate(self.definition.get("healthChecks") or []):
            check = Check(self, given)
            self.checks[index] = check
            threading.Thread(target=check.run, daemon=True).start()

    def run_inside(self, line, timeout):
        """Run a command line where the task runs; (status, last line)."""
        if self.image:
            words, environment = [self.agent.docker_program, "exec", self.container, "/bin/sh", "-c", line], None
        else:
            words = ["/bin/sh", "-c", line]
            environment = {"PATH": os.environ.get("PATH", os.defpath), **self.environment()}
        with open(os.devnull, "rb") as nothing, contextlib.closing(_Output()) as output:
            process = subprocess.Popen(
                words, cwd=self.sandbox, env=environment, stdin=nothing, stdout=output.file, stderr=output.file,
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return None, f"Command has not returned after {timeout:g}secs"
            return status, output.last_line()


class _Output:
    def __init__(self):
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self.close = self.file.close

    def last_line(self):
        self.file.seek(0)
        lines = self.file.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


class Check:
    """One health check, with Marathon's meaning: `healthy` is None until it has passed, or counts as failed.

    A failure does not count in the grace period, which ends with the first success; after maxConsecutiveFailures (0:
    never) the task is ended.
    """

    def __init__(self, task, given):
        self.task, self.given = task, given
        self.protocol = str(given.get("protocol", "HTTP"))
        self.healthy, self.output, self.failures = None, "", 0
        self.passed = False
        self.timeout = float(given.get("timeoutSeconds", 20))

    def run(self):
        given = self.given
        began = self.task.record["started"] or time.time()
        inside = self.protocol.startswith("MESOS_") or self.protocol == "COMMAND"
        self.task.ending.wait(max(0.0, began + float(given.get("delaySeconds", 0)) - time.time()) if inside else 0)
        while not self.task.ending.is_set():
            try:
                reason = self.probe()
            except Exception as exc:  # the task must stay watched, whatever happened this time
                reason = f"{type(exc).__name__}: {exc}"
            if self.task.ending.is_set():
                return
            grace = not self.passed and time.time() - began < float(given.get("gracePeriodSeconds", 300))
            self.note(reason, counts=not grace)
            self.task.ending.wait(float(given.get("intervalSeconds", 60)))

    def note(self, reason, counts):
        """Take in how a probe went: None, or why it failed."""
        before = (self.task.healthy, self.output)
        self.output = reason or ""
        if reason is None:
            self.healthy, self.failures, self.passed = True, 0, True
        elif counts:
            self.healthy, self.failures = False, self.failures + 1
        if (self.task.healthy, self.output) != before:
            self.task.agent.changed()
        limit = int(self.given.get("maxConsecutiveFailures", 3))
        if reason and limit and self.failures >= limit:
            self.task.stop(message=f"Killed after {self.failures} consecutive failures of a health check: {reason}")

    def probe(self):
        """None, or why it does not pass."""
        if self.protocol == "COMMAND":
            status, line = self.task.run_inside(self.given["command"]["value"], self.timeout)
            if status == 0:
                return None
            return line if status is None else f"Command returned: exited with status {status}" + (line and f": {line}")
        kind = self.protocol[len("MESOS_") :] if self.protocol.startswith("MESOS_") else self.protocol
        address, port = self.place()
        try:
            if kind == "TCP":
                socket.create_connection((address, port), self.timeout).close()
                return None
            return self._http(kind, address, port)
        except (OSError, http.client.HTTPException) as exc:
            return f"{kind} {address}:{port}: {exc}"

    def place(self):
        """(address, port) to look at: Mesos looks from inside the task, Marathon from outside."""
        address = "127.0.0.1" if self.protocol.startswith("MESOS_") else self.task.agent.address
        if self.given.get("port"):
            return address, int(self.given["port"])
        return address, self.task.record["ports"][int(self.given.get("portIndex") or 0)]

    def _http(self, kind, address, port):
        if kind == "HTTPS":
            context = ssl._create_unverified_context()  # as Mesos does: it asks whether it answers, not who it is
            connection = http.client.HTTPSConnection(address, port, timeout=self.timeout, context=context)
        else:
            connection = http.client.HTTPConnection(address, port, timeout=self.timeout)
        try:
            connection.request("GET", self.given.get("path") or "/")
            status = connection.getresponse().status
            return None if 200 <= status < 400 else f"HTTP status {status}"
        finally:
            connection.close()


def _born(pid):
    """When a process was started, in the kernel's ticks; None when there is none (any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _last_line(path):
    try:
        lines = path.read_bytes()[-2000:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def _signal_name(number):
    try:
        return signal.strsignal(number) or str(number)
    except ValueError:
        return str(number)
