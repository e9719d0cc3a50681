# SPDX-License-Identifier: Apache-2.0
"""What a transfer does meanwhile: a line a layer on a terminal, plain lines elsewhere, nothing where quiet is asked."""

import sys
import time

INTERVAL = 0.1  # seconds between two drawings
BAR = 24
ENDED = ("done", "exists")


def of(session, quiet=False):
    """A `with` that gives what libraries take as `progress`: a callable, or None."""
    return Progress(session.level) if not quiet and not session.quiet else _Silent()


class _Silent:
    def __enter__(self):
        return None

    def __exit__(self, *_exception):
        pass


class Progress:
    """Called as progress("layer", digest=, done=, total=, state=), from any thread."""

    def __init__(self, level, stream=None, terminal=None, columns=None, lines=None):
        import _thread  # built in, where threading would take a tenth of a run's time

        self.level = level
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty() if terminal is None else terminal
        self.columns, self.lines = columns, lines
        self.layers = {}  # digest -> _Layer, in the order of their first event
        self.lock = _thread.allocate_lock()
        self.drawn = 0
        self.next = 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        with self.lock:
            if self.terminal and self.layers:
                self._draw()
            self.stream.flush()

    def __call__(self, event, **facts):
        with self.lock:
            if event != "layer":
                self._tell(event, facts)
                return
            layer = self.layers.setdefault(facts["digest"], _Layer(facts["digest"]))
            changed = layer.update(**facts)
            if not self.terminal:
                if changed and layer.state != "waiting":
                    self.stream.write(f"Info: {layer.sentence()}\n")
            elif changed or time.monotonic() >= self.next:
                self._draw()

    def _tell(self, event, facts):
        """An event that is no layer's: a line, above what is drawn."""
        text = facts.get("message") or facts.get("text") or " ".join([event, *map(str, facts.values())])
        self._clear()
        self.stream.write(("Warning: " if event == "warning" else "Info: ") + text + "\n")
        if self.terminal and self.layers:
            self._draw()

    def _clear(self):
        if self.drawn:
            self.stream.write(f"\x1b[{self.drawn}A\x1b[J")
            self.drawn = 0

    def _draw(self):
        import shutil

        size = shutil.get_terminal_size()
        columns, lines = self.columns or size.columns, self.lines or size.lines
        shown = list(self.layers.values())
        above = []
        if len(shown) > lines - 2:  # what ended is a number; of the others, as many as there is room for
            ended = [layer for layer in shown if layer.state in ENDED]
            above = [f"{len(ended)} of {len(shown)} layers done"]
            shown = [layer for layer in shown if layer.state not in ENDED][: lines - 3]
        text = above + [layer.line(columns - 1) for layer in shown]
        self._clear()
        self.stream.write("".join(line + "\n" for line in text))
        self.stream.flush()
        self.drawn = len(text)
        self.next = time.monotonic() + INTERVAL


class _Layer:
    def __init__(self, digest):
        self.name = digest.partition(":")[2][:12] or digest[:12]
        self.state = "waiting"
        self.done = self.total = 0
        self.began = self.began_at = None
        self.speed = 0.0

    def update(self, digest, state=None, done=None, total=None, **_more):
        """Take an event's facts; returns whether the state is another one."""
        changed = state is not None and state != self.state
        now = time.monotonic()
        if changed:
            self.state = state
            self.began, self.began_at = now, done or 0
        if done is not None:
            self.done = done
            if self.began is not None and now > self.began:
                self.speed = (done - self.began_at) / (now - self.began)
        if total:
            self.total = total
        return changed

    def sentence(self):
        from .output import size

        total = f" ({size(self.total)})" if self.total else ""
        return "layer {}: {}{}".format(self.name, {"exists": "already here"}.get(self.state, self.state), total)

    def line(self, columns):
        from .output import size

        text = "{}  {:<12}".format(self.name, {"exists": "already here"}.get(self.state, self.state))
        if self.state not in ("waiting", *ENDED) and self.total and (self.done or self.state != "unpacking"):
            share = min(1.0, self.done / self.total)
            drawn = "=" * int(BAR * share) + (">" if share < 1 else "")
            text += f" [{drawn[:BAR]:<{BAR}}] {size(self.done):>7}/{size(self.total):<7}"
            if self.speed > 0:
                text += f" {size(self.speed):>7}/s"
        elif self.total:
            text += " " + size(self.total)
        return text[:columns]
