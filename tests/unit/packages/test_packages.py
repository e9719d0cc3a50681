# SPDX-License-Identifier: Apache-2.0
"""Packages, with programs that stand in for apt-get and dpkg-query and write down how they were called."""

from __future__ import annotations

import os
import time

import pytest

from ansible_collections.dodas.cluster.plugins.module_utils import packages

APT = """#!/bin/sh
echo "$@ policy=$(test -e {policy} && echo yes || echo no) frontend=$DEBIAN_FRONTEND" >> {log}
case "$*" in
  *install*broken*) echo 'E: Unable to locate package broken' >&2; exit 100 ;;
esac
"""
DPKG = """#!/bin/sh
echo 'curl ii '
echo 'gone rc '
"""


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """The lines that apt-get was called with."""
    log, lists, policy = tmp_path / "log", tmp_path / "lists", tmp_path / "policy-rc.d"
    programs = {"apt-get": APT.format(log=log, policy=policy), "dpkg-query": DPKG}
    for name, text in programs.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    lists.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(packages, "LISTS", lists)
    monkeypatch.setattr(packages, "POLICY", policy)

    def calls():
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    calls.lists, calls.policy = lists, policy
    return calls


def fresh(apt, age=0):
    (apt.lists / "Packages").write_text("")
    os.utime(apt.lists, (time.time() - age,) * 2)


def test_what_is_installed_is_left_alone(apt):
    assert packages.install(["curl"], 3600) == []
    assert apt() == []


def test_missing_and_removed_packages_are_installed_without_questions(apt):
    assert packages.install(["curl", "gone", "new"], 3600) == ["gone", "new"]
    update, install = apt()
    assert " update " in update
    assert "install --yes --no-install-recommends gone new" in install and "frontend=noninteractive" in install


@pytest.mark.parametrize(("age", "max_age", "updates"), [(10, 3600, 0), (7200, 3600, 1), (10, 0, 1)])
def test_lists_are_fetched_when_they_are_old(apt, age, max_age, updates):
    fresh(apt, age)
    packages.install(["new"], max_age)
    assert sum(" update " in line for line in apt()) == updates


def test_services_stay_down_only_while_it_installs(apt):
    fresh(apt)
    packages.install(["new"], 3600, services=False)
    assert "policy=yes" in apt()[0]
    assert not apt.policy.exists()


def test_a_policy_of_the_host_is_left_alone(apt):
    fresh(apt)
    apt.policy.write_text("theirs")
    packages.install(["new"], 3600, services=False)
    assert apt.policy.read_text() == "theirs"


def test_the_policy_goes_although_the_installation_failed(apt):
    with pytest.raises(packages.PackageError, match="apt-get install: E: Unable to locate package broken"):
        packages.install(["broken"], 3600, services=False)
    assert not apt.policy.exists()
