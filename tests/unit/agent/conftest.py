# SPDX-License-Identifier: Apache-2.0
import pytest

from agent_runtime import Agent, GuardedConsul, RealConsul, Server, StandIn, consul_program


@pytest.fixture
def consul():
    server = StandIn()
    yield server
    server.stop()


@pytest.fixture(params=["stand-in", "real", "guarded"])
def any_consul(request, tmp_path):
    if request.param == "real":
        program = consul_program(tmp_path)
        if program is None:
            pytest.skip("an image with consul needs root")
        server = RealConsul(program, tmp_path)
    elif request.param == "guarded":
        server = GuardedConsul(tmp_path / "consul")
    else:
        server = StandIn()
    yield server
    server.stop()


@pytest.fixture
def make_agent(tmp_path):
    made = []

    def make(consul):
        made.append(Agent(tmp_path, consul.port, getattr(consul, "token_file", None)))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def agent(make_agent, consul):
    return make_agent(consul)


@pytest.fixture
def server():
    one = Server()
    yield one
    one.close()
