# SPDX-License-Identifier: Apache-2.0
"""`python -m dodas`."""

from dodas.cli import main

if __name__ == "__main__":
    main(prog_name="dodas")
