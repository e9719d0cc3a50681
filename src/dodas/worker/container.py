# SPDX-License-Identifier: Apache-2.0
"""Runs a job in its image. HTCondor's starter calls it as it calls Singularity, whose command line it has.

    exec|run [OPTIONS] IMAGE [COMMAND ...]

`IMAGE` is a name in the store, as the prepare hook (image.py) gave it, or the folder of a root file system. The job
runs as itself, in the scratch folder that it knows, with its own environment and with the image's. It becomes the
runtime: its exit status, and the signals it gets, are the job's.
"""

from __future__ import annotations

import os
import sys

from ansible_collections.dodas.cluster.plugins.module_utils.udocker import desired
from dodas.worker import CONFIGURATION, PROGRAM, store_of_user

PREFIXES = ("SINGULARITYENV_", "APPTAINERENV_")
# Options with a value, and those that say what is so anyway.
VALUES = ("-B", "-S", "-W", "--home", "--pwd")
FLAGS = ("-s", "-q", "-C", "--contain", "--ipc", "--cleanenv", "--no-home", "--rocm")


class UsageError(Exception):
    """The starter asks for something that is not known here."""


def command(arguments, environment):
    """(the runtime's command line, its environment) for what the starter asks; raises UsageError."""
    given = {"-B": [], "-S": []}
    words = list(arguments)
    verb, entrypoint = None, False
    while words and (words[0].startswith("-") or verb is None):
        word = words.pop(0)
        if word in VALUES:
            if not words:
                raise UsageError(f"{word} needs a value")
            given.setdefault(word, []).append(words.pop(0))
        elif word in ("exec", "run") and verb is None:
            verb = word
        elif word == "--nv":
            given["nvidia"] = ["--nvidia"]
        elif word.startswith("--network="):
            given["network"] = [word]
        elif word == "--entrypoint":
            entrypoint = True
        elif word not in FLAGS:
            raise UsageError(f"{word} is not known")
    if not words:
        raise UsageError("an image is needed")
    image, *argv = words
    job = {
        name[len(prefix):]: value for prefix in PREFIXES for name, value in environment.items()
        if name.startswith(prefix)
    }  # fmt: skip
    if "--home" in given:
        job["HOME"] = given["--home"][0].partition(":")[0]
    configuration = [f"--config={CONFIGURATION}"] if os.path.exists(CONFIGURATION) else []
    made = [PROGRAM, f"--repo={store_of_user()}", *configuration, "run", "--rm", "--interactive",
            "--pull=never", f"--user={os.geteuid()}:{os.getegid()}"]  # fmt: skip
    made += given.get("nvidia", []) + given.get("network", [])
    made += [f"--volume={one if ':' in one else f'{one}:{one}'}" for one in given["-B"]]
    made += [f"--volume={_scratch(given, one)}:{one}" for one in given["-S"]]
    made += [f"--workdir={given['--pwd'][0]}"] if "--pwd" in given else []
    # The starter's own variables, which the job has too, are not the runtime's.
    ours = {name: environment[name] for name in ("PATH", "TMPDIR") if name in environment}
    options, by_name = desired.variables(job)
    made += options
    if verb == "exec" and not entrypoint:
        made.append("--entrypoint=")
    made += [f"--location={image}", ""] if image.startswith("/") else [image]
    return made + argv, {**ours, **by_name}


def _scratch(given, target):
    """A folder of the job's scratch that is shown as `target` (/tmp)."""
    if "-W" not in given:
        raise UsageError("-S needs -W")
    folder = os.path.join(given["-W"][0], target.lstrip("/"))
    os.makedirs(folder, exist_ok=True)
    os.chmod(folder, 0o1777)
    return folder


def main():
    try:
        argv, environment = command(sys.argv[1:], os.environ)
        os.execve(argv[0], argv, environment)
    except (UsageError, OSError) as exc:
        sys.exit(f"worker-container: {exc}")


if __name__ == "__main__":
    main()
