# SPDX-License-Identifier: Apache-2.0
"""An instance: it takes part in the election, and schedules while it leads.

As Marathon it ends when it loses the leadership, so that whoever supervises it starts it again; see the exit codes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

from kazoo.client import KazooState
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError

from . import BUILD, VERSION, flags, tls
from .api import Api
from .events import Events
from .mesos import Mesos
from .scheduler import TICK, Scheduler
from .server import Server
from .store import Election, Store, Versions, connect

LOG = logging.getLogger("marathon")
NO_ZOOKEEPER, ZOOKEEPER_LOST, LEADERSHIP_LOST, ABDICATED, UNCAUGHT = 100, 101, 103, 105, 107


class Member:
    """This instance: who leads, and the API while it is us."""

    def __init__(self, options):
        self.options = options
        self.leader = None
        self.api = None
        self.elected = 0.0
        self.abdicated = threading.Event()
        self.stopped = threading.Event()
        self.session = options.zk_session_timeout / 1000
        self.watchdog = None
        self.secret = options.secret()
        server_tls, self.client_tls = tls.contexts(options)
        self.servers = []
        if not options.disable_http:
            self.servers.append(Server((options.http_address or "", options.http_port), self, None))
        if server_tls:
            self.servers.append(Server((options.https_address or "", options.https_port), self, server_tls))
        self.client = connect(options.zk, self.session, options.zk_connection_timeout / 1000)
        self.client.add_listener(self.connection)
        self.election = Election(self.client, options.address)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()

    def connection(self, state):
        """ZooKeeper's connection has changed: after a session without it somebody else may lead."""
        if self.watchdog:
            self.watchdog.cancel()
            self.watchdog = None
        if state == KazooState.LOST and not self.stopped.is_set():
            self.die(LEADERSHIP_LOST if self.api else ZOOKEEPER_LOST, "the session with ZooKeeper has expired")
        elif state == KazooState.SUSPENDED:
            text = "there is no connection to ZooKeeper"
            self.watchdog = threading.Timer(self.session, self.die, (ZOOKEEPER_LOST, text))
            self.watchdog.daemon = True
            self.watchdog.start()

    @staticmethod
    def die(code, why):
        """End at once."""
        LOG.error("%s: exit %d", why, code)
        logging.shutdown()
        os._exit(code)

    def abdicate(self):
        """Give up the leadership once the current request is answered."""
        self.abdicated.set()

    def lead(self):
        """Become the leader: read the state, then answer."""
        LOG.info("elected: this instance leads")
        store = Store(self.client)
        options = self.options
        mesos = Mesos(
            options.master, options.mesos_authentication_principal, self.secret, self.session,
            options.zk_connection_timeout / 1000,
        )  # fmt: skip
        versions = Versions(store, options.zk_max_versions)
        scheduler = Scheduler(store, versions, mesos, Events(), options)
        self.elected = time.monotonic()
        self.api = Api(self, scheduler)
        return scheduler

    def run(self):
        """Take part until told to stop."""
        while not self.stopped.is_set():
            try:
                self.step()
            except KazooException as exc:
                LOG.warning("ZooKeeper: %r", exc)
                self.stopped.wait(TICK)
            except Exception:  # as Marathon does: whoever supervises it starts it again
                LOG.exception("an error that nobody expected")
                self.die(UNCAUGHT, "an internal error")
        self.client.stop()

    def step(self):
        """Look who leads, and do a leader's work while it is us."""
        self.leader, ours = self.election.look()
        if self.abdicated.is_set():
            time.sleep(0.2)  # the answer to who asked for it
            self.election.leave()
            self.die(ABDICATED, "the leadership was given up")
        if ours:
            scheduler = self.api.scheduler if self.api else self.lead()
            scheduler.tick()
            scheduler.wake.wait(TICK)
            scheduler.wake.clear()
        elif self.api:
            self.die(LEADERSHIP_LOST, "another instance leads")
        else:
            self.stopped.wait(TICK)


def main():
    """Run until a signal."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    logging.getLogger("kazoo").setLevel(logging.WARNING)
    try:
        options = flags.parse(sys.argv[1:])
        LOG.info("Marathon %s: %s", VERSION, BUILD)
        member = Member(options)
    except (KazooTimeoutError, KazooException) as exc:
        LOG.error("ZooKeeper does not answer: %s", exc)
        return NO_ZOOKEEPER
    except (flags.FlagError, OSError, ValueError) as exc:
        print(f"[scallop] Error: {exc}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: member.stopped.set())
    member.run()
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
