# SPDX-License-Identifier: Apache-2.0
"""What a new server is told at its first boot (cloud-init), up to the point where Ansible can log in as root.

The host's SSH key is among it: whoever connects knows it before the server exists. JSON is YAML: no library is needed.
"""

from __future__ import annotations

import json

from ansible_collections.dodas.cluster.plugins.module_utils.sshkeys import SshKeys

SSHD = """\
# Written by dodas: keys only, and room for all forks of an Ansible at once, also on their way to hosts behind this one.
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100:30:300
UseDNS no
"""
VOLUMES = "/usr/local/sbin/dodas-volumes"
# The volumes of a server that is replaced come with what is on them.
MOUNTING = """\
#!/bin/sh
# Written by dodas: gives volumes that are empty a file system, and mounts them by their labels: dodas-volumes FOLDER...
set -eu
number=0
for folder; do
  number=$((number + 1))
  label=dodas-volume-$number
  if ! blkid --label "$label" >/dev/null; then
    empty=
    for disk in $(lsblk --nodeps --noheadings --paths --exclude 1,7,11 --output NAME); do
      parts=$(lsblk --noheadings "$disk" | wc -l)
      if [ "$parts" -eq 1 ] && ! blkid --probe "$disk" >/dev/null; then
        empty=$disk
        break
      fi
    done
    if [ -z "$empty" ]; then
      echo "no empty disk is there for $folder" >&2
      exit 1
    fi
    mkfs.ext4 -q -L "$label" "$empty"
  fi
  mkdir -p "$folder"
  echo "LABEL=$label $folder ext4 defaults,nofail 0 2" >>/etc/fstab
  mount "$folder"
done
"""


class Seed:
    """User data of the hosts of deployment `name`, by host: `seed("worker-1")`.

    settings: those of the backend that matter here: authorized_keys (further keys that may log in as root), apt_mirror,
    proxy (HTTP proxy for packages), volumes ([{node, mount}], in the order in which they are attached).
    """

    def __init__(self, state_dir, name, settings=None):
        self.keys = SshKeys(state_dir, name)
        self.settings = settings or {}

    def __call__(self, host):
        """The user data of a host, whose key is made where it is missing."""
        self.keys.make([host])
        return render(host, self.keys.host_key(host), [self.keys.public_key], self.settings)


def render(host, host_key, public_keys, settings):
    """User data: host_key is the (private, public) text of the host's key, public_keys let in as root."""
    node = host.rpartition("-")[0]
    folders = [one["mount"] for one in settings.get("volumes") or () if one["node"] == node and one.get("mount")]
    private, public = host_key
    content = {
        "hostname": host,
        "preserve_hostname": False,
        # without an entry there, each sudo and each daemon that asks for its own name would wait
        "manage_etc_hosts": "localhost",
        # nobody but root: tasks are root's, and nothing else has to get in
        "users": [],
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_authorized_keys": [*public_keys, *_lines(settings.get("authorized_keys"))],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": private, "ed25519_public": public},
        "write_files": [
            {"path": "/etc/ssh/sshd_config.d/00-dodas.conf", "permissions": "0644", "content": SSHD},
            *([{"path": VOLUMES, "permissions": "0755", "content": MOUNTING}] if folders else []),
        ],
        **({"runcmd": [[VOLUMES, *folders]]} if folders else {}),
        **_apt(settings),
    }
    return "#cloud-config\n" + json.dumps(content, indent=1) + "\n"


def _lines(value):
    return value.splitlines() if isinstance(value, str) else list(value or ())


def _apt(settings):
    mirror, proxy = settings.get("apt_mirror"), settings.get("proxy")
    found = {}
    if mirror:
        mirror = mirror.rstrip("/")
        found["primary"] = [{"arches": ["default"], "uri": mirror}]
        if mirror.endswith("/debian"):  # Ubuntu's updates are in the same place
            found["security"] = [{"arches": ["default"], "uri": f"{mirror}-security"}]
    if proxy:
        found |= {"http_proxy": proxy, "https_proxy": proxy}
    return {"apt": found} if found else {}
