# SPDX-License-Identifier: Apache-2.0
"""Why a job waits, from what `condor_q -better-analyze` prints (here HTCondor 23.9)."""

import pytest

from dodas import jobs

STEPS = """\
Step    Matched  Condition
-----  --------  ---------
[0]           2  TARGET.Arch == "X86_64"
[3]           {disk}  TARGET.Disk >= RequestDisk
[5]           {memory}  TARGET.Memory >= RequestMemory

008.000:  Run analysis summary ignoring user priority.  Of {slots} machines,
      {refused} are rejected by your job's requirements
      {refuse} reject your job because of their own requirements
      {ours} match and are already running your jobs
      {others} match but are serving other users
      {free} are able to run your job
"""
NONE = dict.fromkeys(("refused", "refuse", "ours", "others", "free"), 0) | {"slots": 2, "disk": 2, "memory": 2}


@pytest.mark.parametrize(
    "counts, starts, reason",
    [
        ({"slots": 0, "disk": 0, "memory": 0}, 0, "the pool has no slots"),
        ({"refused": 2, "memory": 0}, 0, "no slot fulfils TARGET.Memory >= RequestMemory"),
        ({"refused": 2, "memory": 0, "disk": 0}, 0,
         "no slot fulfils TARGET.Disk >= RequestDisk and TARGET.Memory >= RequestMemory"),
        ({"refused": 2, "memory": 1, "disk": 1}, 0,  # each condition holds on a slot, but not all of them on one
         "no slot fits: its requirements refuse 2, the START of their startd 0"),
        ({"refused": 1, "refuse": 1}, 0, "no slot fits: its requirements refuse 1, the START of their startd 1"),
        ({"ours": 1, "others": 1}, 0, "every slot that fits is busy"),
        ({"free": 2}, 0,
         "slots that fit and are free: 2; /var/lib/dodas/htcondor/log/SchedLog says why none took it"),
        ({"free": 2}, 7, "its first idle job was started before and came back, starts: 7; its log says why"),
    ],
)  # fmt: skip
def test_why_a_job_waits(counts, starts, reason):
    assert jobs.why_idle(STEPS.format(**NONE | counts), starts) == reason


def test_an_analysis_that_does_not_come():
    assert jobs.why_idle("-- Failed to fetch ads", 0) == ""
