# SPDX-License-Identifier: Apache-2.0
"""The balancers' own backends before Mesos masters and Marathon (stand-ins) that lose their leader."""

import contextlib
import json
import subprocess

import pytest

from mesos_runtime import Marathon, Masters, Zookeeper, call, wait_for
from ports import free_port


@pytest.fixture
def publish(start, base):
    """Publishes programs on a port, as `what` (mesos or marathon), which it returns."""

    def publish(what, programs, **variables):
        port = free_port()
        names = [f"master-{i}" for i in range(1, len(programs) + 1)]
        text = base(
            **variables,
            load_balancer_addresses=dict.fromkeys(["localhost", "front-2", *names], "127.0.0.1"),
            load_balancer_address="127.0.0.1",
            load_balancer_port=free_port(),
            load_balancer_health_port=free_port(),
            **{f"load_balancer_{what}_hosts": names, f"load_balancer_{what}_port": port},
        )
        for name, program in zip(names, programs, strict=True):
            text = text.replace(f"server {name} 127.0.0.1:{port}", f"server {name} 127.0.0.1:{program.port}")
        start(text)
        return port

    return publish


@pytest.fixture
def zookeeper():
    with Zookeeper() as found:
        yield found


def test_the_master_that_leads_is_reached(zookeeper, publish, tmp_path):
    credentials = tmp_path / "credentials.json"
    credentials.write_text(json.dumps({"credentials": [{"principal": "ann", "secret": "secret:1"}]}))
    ann = ("ann", "secret:1")
    flags = {"authenticate_http_readonly": True, "authenticate_http_readwrite": True, "credentials": credentials}
    with Masters(zookeeper, 3, asks=ann, **flags) as masters:
        port = publish("mesos", masters.programs, load_balancer_mesos_user=ann[0], load_balancer_mesos_password=ann[1])

        def leads(program):
            """Whether it is the one that is reached; only the leader answers this itself."""
            found = call(f"http://127.0.0.1:{port}/state", credentials=ann)
            return found.status == 200 and found.json["pid"].endswith(f":{program.port}")

        first = masters.leader()
        wait_for(lambda: leads(first), "the leader is reached")
        first.kill()
        second = masters.leader()
        wait_for(lambda: leads(second), "the next leader is reached")
        assert call(f"http://127.0.0.1:{port}/state").status == 401


def test_marathon_is_reached_while_an_instance_is_left(zookeeper, publish, certificate, tmp_path):
    tls = (tmp_path / "crt.pem", tmp_path / "key.pem", certificate)
    with Masters(zookeeper) as masters, Marathon(zookeeper, masters, 2, tls=tls, credentials="ann:secret") as marathon:
        port = publish("marathon", marathon.programs)
        url = f"https://marathon.service.consul:{port}/v2/info"
        curl = ["curl", "--silent", "--max-time", "10", "--noproxy", "*", "--cacert", certificate, "--resolve",
                f"marathon.service.consul:{port}:127.0.0.1", "--config", "-", url]  # fmt: skip

        def leader():
            """Who leads, as Marathon says at the balancer; None when it does not answer."""
            done = subprocess.run(
                curl, input='user = "ann:secret"', capture_output=True, text=True, timeout=20, check=False
            )
            with contextlib.suppress(ValueError):
                return json.loads(done.stdout).get("leader")

        first = marathon.leader()
        wait_for(lambda: leader() == f"127.0.0.1:{first.port}", "the leader is reached")
        first.kill()
        wait_for(lambda: leader() not in (None, f"127.0.0.1:{first.port}"), "the other is reached")
