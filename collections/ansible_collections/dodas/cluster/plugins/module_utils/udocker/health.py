# SPDX-License-Identifier: Apache-2.0
"""Whether a container is well: the command of its image's health check, run in it again and again."""

import os

from .options import seconds

KEPT = 5  # results that the state holds
LENGTH = 4096  # bytes of output of each


class Health:
    """One container's check. The command runs in a child, so that a hanging one holds up nothing."""

    def __init__(self, container, options, check):
        import time

        self.container = container
        test = check["Test"]
        self.argv = ["/bin/sh", "-c", test[1]] if test[0] == "CMD-SHELL" else list(test[1:])
        self.interval = seconds(options["health_interval"] or check.get("Interval"), 30.0) or 30.0
        self.timeout = seconds(options["health_timeout"] or check.get("Timeout"), 30.0) or 30.0
        self.grace = seconds(options["health_start_period"] or check.get("StartPeriod"), 0.0)
        self.retries = int(options["health_retries"] or check.get("Retries") or 3)
        self.state = {"Status": "starting", "FailingStreak": 0, "Log": []}
        self.began = time.monotonic()
        self.due = self.began + self.interval
        self.child = None  # (pid, pipe, deadline, output, when it began)

    def next(self):
        """Seconds until there is something to do."""
        import time

        return 0.1 if self.child else max(0.05, self.due - time.monotonic())

    def turn(self, running, state):
        """Do what is due; whether the state changed."""
        import time

        now = time.monotonic()
        if self.child:
            return self._look(now)
        if now >= self.due:
            self._start(running, state)
        return False

    def _start(self, running, state):
        import time

        from .spec import Spec

        reader, writer = os.pipe()
        now = time.monotonic()
        engine = self.container.engine()
        spec = Spec(
            self.container.directory, self.container.layers, self.argv, state["env"], cwd=state["cwd"],
            user=state["user"],
        )  # fmt: skip
        state_of_engine = running.as_dict()
        pid = os.fork()
        if not pid:
            code = 125
            try:
                os.setpgid(0, 0)
                os.close(reader)
                null = os.open(os.devnull, os.O_RDONLY)
                code = engine.enter(state_of_engine, spec, (null, writer, writer)).wait()
            except BaseException as exc:
                os.write(writer, str(exc).encode()[:LENGTH])
            finally:
                os._exit(code)
        os.close(writer)
        os.set_blocking(reader, False)
        self.child = [pid, reader, now + self.timeout, b"", time.time()]

    def _look(self, now):
        """Read on; judge when it has ended or has taken too long."""
        pid, reader, deadline, _output, _when = self.child
        try:
            while True:
                data = os.read(reader, 65536)
                if not data:
                    break
                self.child[3] = (self.child[3] + data)[:LENGTH]
        except BlockingIOError:
            pass
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 137
        elif now > deadline:
            self._kill()
            code = -1
            self.child[3] = f"health check exceeded timeout ({self.timeout:g}s)".encode()
        else:
            return False
        return self._judge(now, code)

    def _judge(self, now, code):
        import time

        from .containers import timestamp

        _pid, reader, _deadline, output, when = self.child
        os.close(reader)
        self.child = None
        self.due = now + self.interval
        result = {"Start": timestamp(when), "End": timestamp(time.time()), "ExitCode": code}
        result["Output"] = output.decode("utf-8", "replace")
        self.state["Log"] = [*self.state["Log"][1 - KEPT :], result]
        if code == 0:
            self.state.update(Status="healthy", FailingStreak=0)
        elif self.state["Status"] != "starting" or now - self.began >= self.grace:
            self.state["FailingStreak"] += 1
            if self.state["FailingStreak"] >= self.retries:
                self.state["Status"] = "unhealthy"
        return True

    def _kill(self):
        pid = self.child[0]
        for target in (-pid, pid):
            try:
                os.kill(target, 9)
            except OSError:
                pass
        os.waitpid(pid, 0)

    def close(self):
        """The container has ended."""
        if self.child:
            self._kill()
            os.close(self.child[1])
            self.child = None
