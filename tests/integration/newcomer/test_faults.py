# SPDX-License-Identifier: Apache-2.0
"""Services that were killed, stopped or spoilt."""

import re


def test_killed_squid_comes_back(dodas, e2e, eventually):
    process = "podman inspect --format '{{.State.Pid}}' dodas-squid 2>/dev/null || true"
    before = e2e.run("front-1", process).strip()
    e2e.run("front-1", f"kill -9 {before}")
    eventually(lambda: e2e.run("front-1", process).strip() not in ("", "0", before), 30, "squid runs again")
    dodas("check", "--name", "e2e", "--timeout", "60")


def test_stopped_service_is_named_and_up_repairs_it(dodas, e2e):
    e2e.run("front-1", "systemctl stop dodas-squid")
    failed = dodas("check", "--name", "e2e", "--timeout", "5", status=1).stderr
    assert re.search(r"^dodas: front-1: .*squid: cannot reach http://squid", failed, re.M)
    assert dodas.json("up", "--name", "e2e")["complete"]


def test_spoilt_service_is_named_and_up_repairs_it(dodas, e2e):
    e2e.run("front-1", "echo nonsense off >> /etc/dodas/squid/squid.conf && echo 'http_port nowhere' "
            ">> /etc/dodas/squid/squid.conf && systemctl restart --no-block dodas-squid && sleep 3")  # fmt: skip
    failed = dodas("check", "--name", "e2e", "--timeout", "5", status=1).stderr
    assert re.search(r"^dodas: front-1: .*squid: cannot reach http://squid", failed, re.M)
    assert dodas.json("up", "--name", "e2e")["complete"]


def test_port_in_use_is_named(dodas, e2e):
    e2e.run("front-1", "systemctl stop dodas-squid && systemd-run --quiet --unit=thief python3 -m http.server 3128")
    try:
        failed = dodas("up", "--name", "e2e", status=1).stderr
        assert "front-1" in failed and "port 3128 (proxy) is in use by python3" in failed
    finally:
        e2e.run("front-1", "systemctl stop thief")
    assert dodas.json("up", "--name", "e2e")["complete"]


def test_name_that_exists_is_refused(dodas, e2e, tmp_path):
    template = tmp_path / "other.yaml"
    template.write_bytes((dodas.root / "templates/tier3.yaml").read_bytes())
    failed = dodas("up", str(template), "--name", "e2e", status=2).stderr
    assert "deployment e2e exists, made from" in failed and len(failed.splitlines()) == 1


def test_job_that_fits_nowhere_is_told_why(dodas, e2e, tmp_path):
    (tmp_path / "job.yaml").write_text("submit: large.sub\n", encoding="utf-8")
    text = "executable = /bin/true\ntransfer_executable = False\nrequest_memory = 900GB\nqueue\n"
    (tmp_path / "large.sub").write_text(text, encoding="utf-8")
    try:
        done = dodas("submit", str(tmp_path), "--wait", "--timeout", "5", "--name", e2e.name, status=1)
        assert "1 idle after 5 s (no slot fulfils TARGET.Memory >= RequestMemory)" in done.stderr
    finally:
        e2e.condor("condor_rm -all")
