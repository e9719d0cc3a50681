# SPDX-License-Identifier: Apache-2.0
"""nova's compute driver for real guests: each server is a container that runs systemd (guests_machine).

Guests belong to the machine, not to nova: they go on while nova is restarted, and are found again.
"""

import base64
import json
import subprocess
import sys

from nova import exception
from nova.compute import power_state
from nova.virt import hardware

from testbed_openstack.fake import Driver as FakeDriver
from testbed_openstack.guests_machine import Guests
from testbed_openstack.guests_root import BUILD_TIMEOUT, RootError
from testbed_openstack.place import Place

STATES = {"running": power_state.RUNNING, "paused": power_state.PAUSED}


class Driver(FakeDriver):
    """All hosts of nova are this machine."""

    capabilities = FakeDriver.capabilities | {"supports_image_type_qcow2": True}

    def init_host(self, host):
        super().init_host(host)
        self._place = Place.load()
        self._guests = Guests(self._place)

    def spawn(self, context, instance, image_meta, injected_files, admin_password, allocations,
              network_info=None, block_device_info=None, power_on=True, accel_info=None):  # fmt: skip
        self._guests.create(
            instance.uuid,
            instance.hostname,
            self._root(instance),
            _seed(instance),
            [_interface(vif) for vif in network_info or []],
            cpus=instance.flavor.vcpus,
            mem_mb=instance.flavor.memory_mb,
        )
        super().spawn(context, instance, image_meta, injected_files, admin_password, allocations, network_info,
                      block_device_info, power_on, accel_info)  # fmt: skip

    def destroy(self, context, instance, network_info, block_device_info=None, destroy_disks=True,
                destroy_secrets=True):  # fmt: skip
        self._guests.destroy(instance.uuid)
        if instance.uuid in self.instances:  # unless it was made before nova was restarted
            super().destroy(context, instance, network_info, block_device_info, destroy_disks, destroy_secrets)

    def power_on(self, context, instance, network_info, block_device_info=None, accel_info=None, share_info=None):
        self._guests.start(instance.uuid)

    def power_off(self, instance, timeout=0, retry_interval=0):
        self._guests.stop(instance.uuid, timeout)

    def reboot(self, context, instance, network_info, reboot_type, block_device_info=None,
               bad_volumes_callback=None, accel_info=None, share_info=None):  # fmt: skip
        self._guests.reboot(instance.uuid, hard=reboot_type == "HARD")

    def resume_state_on_host_boot(self, context, instance, network_info, share_info, block_device_info=None):
        self._guests.start(instance.uuid)

    def pause(self, instance):
        self._guests.pause(instance.uuid, True)

    def unpause(self, instance):
        self._guests.pause(instance.uuid, False)

    def attach_interface(self, context, instance, image_meta, vif):
        self._guests.plug(instance.uuid, _interface(vif))

    def detach_interface(self, context, instance, vif):
        self._guests.unplug(instance.uuid, vif["id"])

    def migrate_disk_and_power_off(self, context, instance, dest, flavor, network_info, block_device_info=None,
                                   timeout=0, retry_interval=0):  # fmt: skip
        raise exception.ResizeError(reason="the testbed's guests cannot be resized")

    def get_info(self, instance, use_cache=True):
        if instance.uuid not in self._guests.known():
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        state = STATES.get(self._guests.state(instance.uuid), power_state.SHUTDOWN)
        return hardware.InstanceInfo(state=state)

    def get_console_output(self, context, instance):
        return self._guests.console(instance.uuid)

    def _root(self, instance):
        """The root file system for an image: the plain one, or what the uploaded disk holds."""
        if instance.system_metadata.get("image_testbed_root") == "guest":
            return (self._place.state / "guests" / "root").resolve()
        image = self._place.state / "glance" / "images" / instance.image_ref
        # A process of its own: it waits for locks, and reads gigabytes, where nova's threads share one.
        command = [sys.executable, "-m", "testbed_openstack.guests_root", str(self._place.cache), str(image)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False)
        if done.returncode:
            raise RootError(f"image {instance.image_ref}: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout.strip()


def _seed(instance):
    """NoCloud's files of a server."""
    data = {"instance-id": instance.uuid, "local-hostname": instance.hostname}
    if instance.key_data:
        data["public-keys"] = [instance.key_data.strip()]
    user_data = base64.b64decode(instance.user_data) if instance.user_data else b"#cloud-config\n{}\n"
    return {"meta-data": json.dumps(data).encode(), "user-data": user_data}


def _interface(vif):
    """What guests_machine needs to know of a port."""
    network = vif["network"]
    subnets = [subnet for subnet in network["subnets"] if subnet["version"] == 4 and subnet["ips"]]
    return {
        "port": vif["id"],
        "network": network["id"],
        "mac": vif["address"],
        "mtu": network["meta"].get("mtu") or 1500,
        "addresses": [
            f"{one['address']}/{str(subnet['cidr']).split('/')[1]}" for subnet in subnets for one in subnet["ips"]
        ],
        "gateway": next((s["gateway"]["address"] for s in subnets if (s["gateway"] or {}).get("address")), None),
        "nameservers": [one["address"] for subnet in subnets for one in subnet["dns"]],
    }
