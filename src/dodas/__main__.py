# SPDX-License-Identifier: Apache-2.0
"""`python -m dodas`."""

import errno
import sys

from ansible_collections.dodas.cluster.plugins.module_utils.deployment import home
from dodas.cli import main

MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # the machine's fault, not ours

if __name__ == "__main__":
    try:
        main(prog_name="dodas")
    except OSError as exc:
        if exc.errno not in MACHINE:
            raise
        sys.exit(f"dodas: {exc.filename or home()}: {exc.strerror}")
