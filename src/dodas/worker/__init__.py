# SPDX-License-Identifier: Apache-2.0
"""What workers do for jobs that name an image: get it before the job starts, and run the job in it."""

import os

PROGRAM = "/usr/local/bin/udocker"
IMAGES = "/var/lib/dodas/worker/images"
CONFIGURATION = "/etc/dodas/worker/udocker.conf"


def store_of_user():
    """The folder of this user's images and containers, which no other user may use; raises PermissionError."""
    folder = os.path.join(os.environ.get("WORKER_IMAGES", IMAGES), str(os.geteuid()))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    about = os.lstat(folder)  # its parent is everybody's, as /tmp is
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise PermissionError(f"{folder} is another user's: remove it")
    return folder
