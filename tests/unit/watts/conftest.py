# SPDX-License-Identifier: Apache-2.0
"""Small programs to run: plugins, good and bad."""

import sys
import textwrap

import pytest


@pytest.fixture
def program(tmp_path):
    """(text, first line) -> path of an executable; the text is Python unless the first line says otherwise."""
    count = 0

    def make(text, shebang=f"#!{sys.executable} -I"):
        nonlocal count
        count += 1
        path = tmp_path / f"program-{count}"
        path.write_text(f"{shebang}\n{textwrap.dedent(text)}")
        path.chmod(0o755)
        return str(path)

    return make
