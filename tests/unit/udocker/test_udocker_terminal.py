# SPDX-License-Identifier: Apache-2.0
"""Who is attached to a container: what they hand on to it."""

import os
import signal
import socket
import threading

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import terminal


def test_a_signal_that_came_before_the_container_was_there_is_handed_on():
    ours, theirs = socket.socketpair()

    def monitor():
        frames = terminal.Frames()
        told = next(content for kind, content in frames.feed(theirs.recv(100)) if kind == terminal.SIGNAL)
        theirs.sendall(terminal.frame(terminal.EXIT, b"%d" % (128 + int(told))))

    with ours, theirs, terminal.handed_on(tty=False) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        other = threading.Thread(target=monitor, daemon=True)
        other.start()
        assert terminal.attach(ours.fileno(), signals, tty=False, stdin=False) == 143
        other.join(30)
