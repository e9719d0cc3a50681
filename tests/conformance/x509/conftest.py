# SPDX-License-Identifier: Apache-2.0
"""The matrix of credentials and verifiers, measured cell by cell, and printed at the end."""

import functools
import os

import pytest

import verifiers
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import files
from verifiers_shapes import SHAPES, World

SHAPE = {shape.name: shape for shape in SHAPES}
MATRIX = pytest.StashKey()


class Matrix:
    """Verdicts, each asked for once; servers start when the first is."""

    def __init__(self, box, world):
        self.box, self.world = box, world
        self.verdicts, self.broken = {}, {}
        self.running, self.path = functools.cache(self._start), functools.cache(self._write)
        world.voms_attributes = functools.cache(functools.partial(verifiers.voms_attributes, box, world))

    def verdict(self, verifier, shape):
        """What the verifier (a class) says of the shape (a name)."""
        if verifier in self.broken:
            raise self.broken[verifier]
        if (verifier, shape) not in self.verdicts:
            running = self.running(verifier)
            self.verdicts[verifier, shape] = running.judge(self.path(shape), self.path(verifier.good))
        return self.verdicts[verifier, shape]

    def _start(self, verifier):
        """The verifier, which took a good credential."""
        if verifier.beside:
            self.running(verifier.beside)
        made = verifier(self.box)
        try:
            made.start()
            made.await_ready(self.path(verifier.good))
        except Exception as error:
            self.broken[verifier] = error
            raise
        return made

    def _write(self, shape):
        """Where the container sees a credential of that shape."""
        name = f"{list(SHAPE).index(shape)}.pem"
        files.write(self.box.folder / name, SHAPE[shape].make(self.world).pem)
        return f"{verifiers.HERE}/{name}"

    def versions(self):
        """Of the verifiers that were asked."""
        asked = dict.fromkeys(verifier for verifier, _shape in self.verdicts)
        return [f"{one.name} {self.box.version(one.package)}" for one in asked]

    def table(self):
        """What was measured, as lines of Markdown."""
        asked = [one for one in verifiers.VERIFIERS if any(verifier is one for verifier, _shape in self.verdicts)]
        width = max(map(len, SHAPE))
        rows = [["Credential", *(one.name for one in asked)], ["-" * width, *("-" * len(one.name) for one in asked)]]
        for shape in SHAPE:
            cells = [self.verdicts.get((one, shape), verifiers.Verdict("")).letter for one in asked]
            rows += [[shape, *cells]] if any(cells) else []
        widths = [width, *(len(one.name) for one in asked)]
        return [f"| {' | '.join(cell.ljust(n) for cell, n in zip(row, widths, strict=True))} |" for row in rows]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Authorities and people. Its folder is what the verifiers see."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def matrix(world, request):
    """The verifiers, in a container that ends with the session."""
    if os.geteuid() != 0:
        pytest.skip("containers need root")
    box = verifiers.Box(world.folder)
    try:
        matrix = Matrix(box, world)
        yield matrix
        # The container is gone by the time the summary is printed.
        request.config.stash[MATRIX] = [*matrix.table(), "", ", ".join(matrix.versions())] if matrix.verdicts else []
    finally:
        box.stop()


def pytest_terminal_summary(terminalreporter, config):
    """Print the matrix."""
    if lines := config.stash.get(MATRIX, None):
        terminalreporter.section("credentials and verifiers")
        terminalreporter.write_line(f"{verifiers.ACCEPTED} accepted, {verifiers.REFUSED} refused, "
                                    f"{verifiers.UNSENT} refused by its own client already")  # fmt: skip
        for line in lines:
            terminalreporter.write_line(line)
