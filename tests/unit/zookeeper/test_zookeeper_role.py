# SPDX-License-Identifier: Apache-2.0
"""What role zookeeper refuses before it touches the host."""

from role_runtime import refusals


def test_what_is_refused_is_named(tmp_path):
    names = ["master-1", "master-2", "master-3"]
    addresses = dict.fromkeys(names, "192.0.2.1")
    cases = {
        "master-1": {"zookeeper_servers": names[:2], "zookeeper_addresses": addresses},
        "master-2": {"zookeeper_servers": names, "zookeeper_addresses": {"master-2": "192.0.2.1"}},
        "master-3": {"zookeeper_servers": ["master-1", "master-1", "master-3"], "zookeeper_addresses": addresses},
        "worker-1": {"zookeeper_servers": names, "zookeeper_addresses": addresses},
    }
    assert refusals(tmp_path, "zookeeper", cases) == {
        "master-1": "zookeeper_servers: has 2 servers, and must have 1, 3 or 5 of different names",
        "master-2": "zookeeper_addresses: has no address of master-1, master-3",
        "master-3": "zookeeper_servers: has 3 servers, and must have 1, 3 or 5 of different names",
        "worker-1": "zookeeper_servers: does not name worker-1",
    }
