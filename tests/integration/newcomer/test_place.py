# SPDX-License-Identifier: Apache-2.0
"""The worker of test_lifetimes.py, some lifetimes of its proxy later."""

import time


def test_it_never_lost_its_place(short_lived, eventually):
    end = short_lived.began + 3.2 * short_lived.LIFETIME
    eventually(lambda: time.monotonic() > end, 4 * short_lived.LIFETIME, "three lifetimes are over")
    short_lived.watch.stop()
    # Its collector hears from it every 10 seconds.
    assert len(short_lived.watch.ages) > 20 and max(short_lived.watch.ages) < 30, short_lived.watch.ages
    assert len(short_lived.watch.starts) == 1
    serials = {one["serial"] for one in short_lived.issued()}
    assert len(serials) >= 6 and 0 < short_lived.proxy_life() <= short_lived.LIFETIME


def test_and_it_still_runs_jobs(dodas, short_lived, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "job.yaml").write_text("submit: here.sub\n", encoding="utf-8")
    (folder / "here.sub").write_text(
        "executable = /bin/true\ntransfer_executable = False\nlog = here.log\nrequest_memory = 64\n+ShortLived = True\n"
        "requirements = ShortLivedHost =?= True\nqueue\n",
        encoding="utf-8",
    )
    done = dodas.json("submit", str(folder), "--wait", "--timeout", "90", "--name", "e2e")
    assert (done["done"], done["failed"]) == (1, 0)
