# SPDX-License-Identifier: Apache-2.0
"""`python3 -m ...udocker`: the command line."""

import sys

from .cli import main

if __name__ == "__main__":
    main(sys.argv)
