# SPDX-License-Identifier: Apache-2.0
"""Counts the attacks: each case in a folder of that name is one, but for those that prove that honest requests pass;
and the hostile images."""


def pytest_terminal_summary(terminalreporter):
    reports = [report for group in ("passed", "failed", "error") for report in terminalreporter.stats.get(group, [])]
    attacks = [report for report in reports if "/attacks/" in report.nodeid and "honest" not in report.nodeid]
    done = {report.nodeid for report in attacks}
    accepted = {report.nodeid for report in attacks if not report.passed}
    if done:
        terminalreporter.write_line(f"{len(done)} attacks, {len(accepted)} accepted", bold=True)
    images = [report for report in reports if "test_udocker_hostile.py::test_hostile[" in report.nodeid]
    if images:
        done = {report.nodeid for report in images}
        escaped = {report.nodeid for report in images if not report.passed}
        terminalreporter.write_line(f"{len(done)} hostile images, {len(escaped)} escaped", bold=True)
