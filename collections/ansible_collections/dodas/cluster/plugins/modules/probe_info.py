#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: probe_info
short_description: Wait until probes hold
version_added: 0.1.0
description:
  - Runs probes again and again until each has held once, or the deadline passes.
  - A probe is a command that exits with status 0 and whose output matches, or a URL that answers with what matches.
    Both are tried from the host.
author: [The dodas developers (@dodas)]
extends_documentation_fragment: [dodas.cluster.attributes.info]
options:
  probes:
    description: What must hold.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the probe proves, in a few words.
        type: str
        required: true
      command:
        description: The command as a list of words. Its first may begin with C(~), the user's home.
        type: list
        elements: str
      url:
        description: The URL, instead of a command. What is matched are the answer's headers and its body.
        type: str
      authorities:
        description: File with the authorities that the certificate of O(probes[].url) is checked against; the host's
          when it is empty.
        type: str
        default: ""
      proxy:
        description: URL of the proxy that is asked for O(probes[].url).
        type: str
        default: ""
      requests:
        description: How often O(probes[].url) is asked in one try, of which the last answer counts. A cache may answer
          from what it keeps only the second time.
        type: int
        default: 1
      resolve:
        description: Addresses of names that the host cannot look up.
        type: dict
        default: {}
      expect:
        description: A regular expression that the output must contain. Its first group, if any, is shown as the result.
        type: str
        default: ""
      detail:
        description: Shown beside the result.
        type: str
        default: ""
  timeout:
    description: Seconds until all must have held. V(0) looks once.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Wait for the collector
  dodas.cluster.probe_info:
    probes:
      - name: collector
        command: [condor_status, -collector, -af, Name]
        expect: "(.+)"
"""

RETURN = r"""
probes:
  description: One entry a probe, in the order given.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The probe's name.
      returned: always
      type: str
    ok:
      description: Whether it held.
      returned: always
      type: bool
    output:
      description: What it found, or why it did not hold.
      returned: always
      type: str
    seconds:
      description: When it held, counted from the start.
      returned: always
      type: float
failed:
  description: Whether a probe did not hold in time. RV(ignore:msg) then names the host, the probe and its last error.
  returned: always
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dodas.cluster.plugins.module_utils import probes


def main():
    probe = {
        "name": {"type": "str", "required": True},
        "command": {"type": "list", "elements": "str"},
        "url": {"type": "str"},
        "authorities": {"type": "str", "default": ""},
        "proxy": {"type": "str", "default": ""},
        "requests": {"type": "int", "default": 1},
        "resolve": {"type": "dict", "default": {}},
        "expect": {"type": "str", "default": ""},
        "detail": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "probes": {
                "type": "list",
                "elements": "dict",
                "options": probe,
                "required": True,
                "required_one_of": [("command", "url")],
                "mutually_exclusive": [("command", "url")],
            },
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    results = probes.run(module.params["probes"], module.params["timeout"])
    bad = [f"{one['name']}: {one['output']}" for one in results if not one["ok"]]
    module.exit_json(
        changed=False,
        probes=results,
        failed=bool(bad),
        msg="; ".join(bad) if bad else "every probe holds",
    )


if __name__ == "__main__":
    main()
