# SPDX-License-Identifier: Apache-2.0
"""What is sent for volumes and existing networks, which the testbed has none of, and in which order."""

from __future__ import annotations

import base64

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils.openstack import found as finding
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.apply import Applier
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError
from openstack_paper import Paper, plan, standing, wanted


class Active(Paper):
    """Every server is active at once, every volume available."""

    services = None

    def __init__(self):
        super().__init__()
        self.services = {"compute", "network", "image", "identity", "volume"}

    def list(self, service, path, key, **query):
        made = [body["server"] for method, where, body in self.sent if (method, where) == ("POST", "/servers")]
        if path in ("/servers", "/servers/detail"):
            number = sum(1 for method, where, _ in self.sent if (method, where) == ("POST", "/servers"))
            return [{"id": f"new-{i}", "status": "ACTIVE"} for i in range(1, 100)] if number or not made else []
        if path == "/volumes/detail":
            return [{"id": f"new-{i}", "name": "v", "status": "available"} for i in range(1, 100)]
        return super().list(service, path, key, **query)


def run(settings, found=None, cloud=None, user_data=None, hosts=("front-1", "worker-1")):
    cloud = cloud or Active()
    made = plan(cloud, wanted(settings, hosts), found or finding.Found())
    applier = Applier(cloud, made, user_data)
    return applier.run(), cloud.sent


def servers(sent):
    return {body["server"]["name"]: body for method, path, body in sent if (method, path) == ("POST", "/servers")}


def test_a_volume_is_made_before_the_server_that_it_is_attached_to():
    settings = {"network": "shared", "volumes": [{"node": "worker", "size_gb": 7}], "volume_type": "fast"}
    _, sent = run(settings)
    paths = [path for method, path, _ in sent if method == "POST"]
    assert paths.index("/volumes") < paths.index("/servers")
    (volume,) = [body["volume"] for method, path, body in sent if path == "/volumes"]
    assert volume["size"] == 7 and volume["volume_type"] == "fast" and volume["name"] == "dodas-tier3-worker-1-0"
    assert volume["metadata"]["dodas_host"] == "worker-1"
    disks = servers(sent)["tier3-worker-1"]["server"]["block_device_mapping_v2"]
    assert [(one["source_type"], one["delete_on_termination"]) for one in disks] == [("image", True), ("volume", False)]
    assert "block_device_mapping_v2" not in servers(sent)["tier3-front-1"]["server"]


def test_a_volume_that_is_there_is_attached_again():
    found = standing(settings={"volumes": []})
    found.volumes = [{"id": "old", "name": "dodas-tier3-worker-1-0", "metadata": {"dodas_host": "worker-1"}}]
    found.servers[1]["status"] = "ERROR"
    found.servers[1]["fault"] = {"message": "x"}
    _, sent = run({"volumes": [{"node": "worker", "size_gb": 7}]}, found, _without_waiting())
    assert not [1 for _, path, _ in sent if path == "/volumes"]
    assert servers(sent)["tier3-worker-1"]["server"]["block_device_mapping_v2"][1]["uuid"] == "old"


def _without_waiting():
    cloud = Active()
    listed = cloud.list

    def listing(service, path, key, **query):
        if path == "/volumes/detail":
            return [{"id": "old", "name": "v", "status": "available"}]
        return listed(service, path, key, **query)

    cloud.list = listing
    return cloud


def test_booting_from_a_volume():
    _, sent = run({"network": "shared", "boot_volume_gb": 20, "volume_type": "fast", "availability_zone": "nova"})
    server = servers(sent)["tier3-front-1"]["server"]
    assert "imageRef" not in server and server["availability_zone"] == "nova"
    assert server["block_device_mapping_v2"] == [
        {
            "boot_index": 0,
            "source_type": "image",
            "destination_type": "volume",
            "uuid": "image-2",
            "volume_size": 20,
            "volume_type": "fast",
            "delete_on_termination": True,
        }
    ]


def test_many_ports_are_made_by_a_request_with_their_tags():
    _, sent = run({}, hosts=tuple(f"worker-{i}" for i in range(30)))
    requests = [body["ports"] for method, path, body in sent if path == "/ports" and "ports" in body]
    ports = [port for ports in requests for port in ports]
    assert len(requests) <= 3 and len(ports) == 30
    assert all(f"dodas:host=worker-{i}" in one["tags"] for i, one in enumerate(ports))
    assert all(len(one["security_groups"]) == 1 and "allowed_address_pairs" not in one for one in ports)


def test_a_network_without_port_security_gets_no_groups():
    cloud = Active()
    cloud.listings["/networks"] = [
        {"id": "n", "name": "flat", "subnets": ["s"], "project_id": "p", "port_security_enabled": False}
    ]
    _, sent = run({"network": "flat"}, cloud=cloud)
    (ports,) = [body["ports"] for method, path, body in sent if path == "/ports"]
    assert all("security_groups" not in one for one in ports)


def test_user_data_is_asked_for_new_servers_only():
    asked = []

    def user_data(host):
        asked.append(host)
        return "#cloud-config\n"

    _, sent = run({}, standing(("front-1",)), user_data=user_data)
    assert asked == ["worker-1"]
    assert base64.b64decode(servers(sent)["tier3-worker-1"]["server"]["user_data"]) == b"#cloud-config\n"


def test_too_much_user_data_is_refused_before_anything_is_made():
    cloud = Active()
    with pytest.raises(OpenStackError, match="host front-1: its user data has 60000 bytes; nova takes 49000"):
        run({}, cloud=cloud, user_data=lambda host: "x" * 60000)
    assert cloud.sent == []


def test_what_leaves_loses_its_port_before_its_server():
    _, sent = run({}, standing(("front-1", "worker-1", "worker-2")), cloud=_gone())
    deleted = [path for method, path, _ in sent if method == "DELETE"]
    assert deleted == ["/ports/port-worker-2", "/servers/server-worker-2"]


def _gone():
    cloud = Active()
    listed = cloud.list
    cloud.list = lambda service, path, key, **query: [] if path == "/servers" else listed(service, path, key, **query)
    return cloud
