# SPDX-License-Identifier: Apache-2.0
"""What the modules of the container runtime share: it is looked at in its store, and changed by its program."""

from __future__ import annotations

import json
import os
import platform

from ansible_collections.dodas.cluster.plugins.module_utils.module import Module
from ansible_collections.dodas.cluster.plugins.module_utils.udocker import reference
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.errors import Error, NotFound
from ansible_collections.dodas.cluster.plugins.module_utils.udocker.store import Store

# Fragment `udocker` documents them.
ROOT = {"root": {"type": "path"}}
PROGRAM = {**ROOT, "program": {"type": "path"}}


class UdockerModule(Module):
    """A module whose parameters have ROOT or PROGRAM; what goes wrong ends it with the host's name and the reason."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.store = Store(self.params["root"])

    def image(self, name):
        """The Image of a name as people write it, or None."""
        try:
            return self.store.image(reference.parse(name).name)
        except NotFound:
            return None

    def udocker(self, *words, timeout=None, environment=None, config=None, check=True):
        """Run the program; (status, output, errors). Fails with its last line of errors where `check` says so.

        config: a file of settings; timeout: seconds, None for as long as it takes
        """
        program = self.params["program"]
        if not program or not os.access(program, os.X_OK):
            # The action plugin puts it there, and runs the module again.
            self.exit_json(program_missing=True, changed=False)
        command = [program, "--repo=" + self.store.root]
        command += ["--config=" + config] if config else []
        if timeout:
            command = ["timeout", "--kill-after=10", str(timeout), *command]
        status, output, errors = self.run_command(
            [*command, *words], environ_update=environment or {}, errors="replace"
        )
        if timeout and status in (124, 137):
            self.fail(f"udocker {words[0]}: not done after {timeout} s")
        if check and status:
            lines = errors.splitlines() or output.splitlines() or ["failed"]
            reason = next((line for line in lines if line.startswith("Error: ")), lines[-1])
            self.fail(f"udocker {words[0]}: {reason[7:] if reason.startswith('Error: ') else reason}", rc=status)
        return status, output, errors

    def fail(self, reason, **more):
        self.fail_json(msg=f"{platform.node()}: {reason}", **more)


def run(module, function):
    """Run a module's function; errors of the runtime and of the system are what it fails with."""
    try:
        function(module)
    except (Error, OSError, ValueError) as exc:
        module.fail(str(exc))


def describe(image):
    """An Image as modules return it."""
    return {
        "name": image.name, "digest": image.manifest, "id": image.config, "platform": image.platform,
        "size": image.size, "layers": [layer["digest"] for layer in image.layers], "created": image.created,
    }  # fmt: skip


def settings(folder, **values):
    """A configuration file in `folder` with what is given; its path, or None where nothing is."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items() if value]
    if not lines:
        return None
    path = os.path.join(folder, "udocker.conf")
    with open(path, "w", encoding="utf-8") as target:
        target.write("[DEFAULT]\n" + "".join(lines))
    return path
