# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: progress
type: stdout
short_description: One line a phase
version_added: 0.1.0
description:
  - Shows each play as one line with the time it took and what changed, and while it runs the task at hand.
  - Failures name the host and what to do; the whole of Ansible's output is what C(-v) of C(dodas) is for.
  - Writes phases, probes and counts to the file that E(DODAS_REPORT) names.
author: The dodas developers (@dodas)
requirements:
  - set as stdout callback
options:
  report:
    description: A JSON file to write at the end.
    type: path
    env:
      - name: DODAS_REPORT
"""

import json
import os
import shutil
import sys
import time

from ansible.plugins.callback import CallbackBase

PARTS = {"dodas.cluster.mesos_info": "mesos", "dodas.cluster.marathon_app_info": "marathon"}
CLUSTERS = ("dodas.cluster.openstack_cluster", "dodas.cluster.local_cluster")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "dodas.cluster.progress"

    def __init__(self):
        super().__init__()
        self.phases = []
        self.probes = {}
        self.apps = {}
        self.parts = {}  # what Mesos and Marathon say of themselves
        self.unkept = []  # hosts whose apps nothing starts with the machine
        self.failures = []
        self.tasks = 0
        self._phase = None
        self._live = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    # phases

    def v2_playbook_on_play_start(self, play):
        self._end_phase()
        start = time.monotonic()
        self._phase = {"name": play.get_name(), "start": start, "changed": 0, "hosts": set(), "failed": False}

    def v2_playbook_on_no_hosts_matched(self):
        self._phase = None

    def v2_playbook_on_task_start(self, task, is_conditional=False):
        self.tasks += 1
        name = task.get_name().strip()
        if self._live and self._phase and not name.startswith(("Gathering", "meta")):
            self._show(f"  … {self._phase['name']}: {name}")

    v2_playbook_on_handler_task_start = v2_playbook_on_task_start

    def _end_phase(self):
        phase, self._phase = self._phase, None
        if phase is None:
            return
        seconds = round(time.monotonic() - phase.pop("start"), 1)
        hosts = len(phase.pop("hosts"))
        self.phases.append({**phase, "seconds": seconds, "hosts": hosts})
        if not hosts:
            return
        mark = "✗" if phase["failed"] else "✓"
        what = f"{phase['changed']} changed" if phase["changed"] else "unchanged"
        self._show("")
        unit = "hosts" if hosts > 1 else "host "
        self._display.display(f"{mark} {phase['name']:<30}{hosts:>4} {unit}  {what:<12}{seconds:>7.1f} s")

    def _show(self, text):
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write(f"\r\x1b[K{text[:width]}")
            sys.stdout.flush()

    # results

    def _note(self, result):
        if self._phase:
            self._phase["hosts"].add(result._host.get_name())
            self._phase["changed"] += bool(result._result.get("changed"))
        if result._task.action == "dodas.cluster.probe_info":
            self.probes[result._host.get_name()] = result._result.get("probes", [])
        part = PARTS.get(result._task.action)
        if part:
            self.parts[part] = {key: value for key, value in result._result.items() if not key.startswith("_")}
        if result._task.action in CLUSTERS:
            self._note_plan(result._task.check_mode, result._result)
        if result._task.action == "dodas.cluster.app_info":
            self.apps[result._host.get_name()] = result._result.get("apps", {})
            if result._result.get("boot") == "":
                self.unkept.append(result._host.get_name())

    def _note_plan(self, planned, found):
        """What is to be made in a cloud is shown before it is; what was, is counted."""
        if planned and "plan" in found:
            self.parts["planned"] = {key: found[key] for key in ("plan", "summary", "calls") if key in found}
            if found.get("summary"):
                self._show("")
                self._display.display("\n".join(f"  {line}" for line in found["summary"].rstrip().splitlines()))
        elif "calls" in found:
            self.parts["calls"] = found["calls"]

    def v2_runner_on_ok(self, result):
        self._note(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._note(result)
        if ignore_errors:
            return
        self._fail(result, self._reason(result._result))

    def v2_runner_on_unreachable(self, result):
        self._note(result)
        if result._task.ignore_unreachable:
            return
        self._fail(result, f"cannot be reached: {result._result.get('msg', '')}")

    def v2_on_file_diff(self, result):
        diffs = [one for one in _items(result._result) if one.get("diff") and one.get("changed")]
        for one in diffs:
            text = self._get_diff(one["diff"])
            if text.strip():
                self._show("")
                title = f"{result._host.get_name()}: {result._task.get_name().strip()}"
                self._display.display(f"  {title}\n{text.rstrip()}")

    def _fail(self, result, reason):
        if self._phase:
            self._phase["failed"] = True
        host, task = result._host.get_name(), result._task.get_name().strip()
        self.failures.append({"host": host, "task": task, "reason": reason})
        self._show("")
        self._display.display(f"✗ {host}: {task}: {reason}", stderr=True)

    @staticmethod
    def _reason(result):
        failed = [one for one in _items(result) if one.get("failed")] or [result]
        one = failed[0]
        return str(one.get("msg") or one.get("stderr") or one.get("exception") or "failed").strip()

    # the end

    def v2_playbook_on_stats(self, stats):
        self._end_phase()
        hosts = sorted(stats.processed)
        kinds = ("ok", "changed", "unreachable", "failures")
        totals = {kind: sum(stats.summarize(host)[kind] for host in hosts) for kind in kinds}
        self._display.display(
            f"  {self.tasks} tasks on {len(hosts)} hosts: ok={totals['ok']} changed={totals['changed']} "
            f"unreachable={totals['unreachable']} failed={totals['failures']}"
        )
        report = self.get_option("report")
        if report:
            content = {
                "phases": self.phases,
                "probes": self.probes,
                "apps": self.apps,
                "unkept": self.unkept,
                **self.parts,
                "errors": self.failures,
                "tasks": self.tasks,
                **totals,
            }
            with open(report, "w", encoding="utf-8") as stream:
                json.dump(content, stream)


def _items(result):
    """A result, or those of its loop."""
    return result.get("results") or [result]
