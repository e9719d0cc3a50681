# SPDX-License-Identifier: Apache-2.0
"""Where one testbed has its things. Standard library only: the program and all services read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

SERVICES = ("keystone", "placement", "glance", "neutron", "nova", "metadata")
# Of the range for benchmarks. Those for documentation are no safer: machines may have real things there.
PUBLIC, SHARED = "198.18.0.0/24", "198.18.1.0/24"


class TestbedError(Exception):
    """What went wrong and what to do about it, for a person."""

    __test__ = False


@dataclasses.dataclass(frozen=True)
class Place:
    """One testbed: its folders, ports and size."""

    state: Path  # of this testbed; goes with it
    cache: Path  # for all testbeds of the machine
    key: str  # four hexadecimal digits, other ones for each testbed: for names of interfaces and the like
    compute: str  # module of this package that has nova's driver
    hosts: int  # of nova
    ports: dict[str, int]  # on 127.0.0.1, by service
    public_cidr: str = PUBLIC
    shared_cidr: str = SHARED
    token_seconds: int = 86400  # lifetime of keystone's tokens

    FILE = "testbed.json"

    @staticmethod
    def key_of(state: Path) -> str:
        """The key of the testbed in this folder."""
        return hashlib.sha256(str(state).encode()).hexdigest()[:4]

    @classmethod
    def load(cls, state: str | os.PathLike | None = None) -> Place:
        """The testbed in the folder, or that of the environment (TESTBED_STATE)."""
        path = Path(state or os.environ["TESTBED_STATE"])
        try:
            data = json.loads((path / cls.FILE).read_text())
        except FileNotFoundError:
            raise TestbedError(f"no testbed in {path}: `testbed up --state {path}` makes one") from None
        return cls(**{**data, "state": Path(data["state"]), "cache": Path(data["cache"])})

    def save(self) -> None:
        text = json.dumps(dataclasses.asdict(self), default=str, indent=1)
        (self.state / self.FILE).write_text(text + "\n")

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    @property
    def auth_url(self) -> str:
        return self.url("keystone") + "/v3"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def etc(self) -> Path:
        return self.state / "etc"

    @property
    def socket(self) -> Path:
        return self.state / "mysql.sock"

    def secrets(self) -> dict[str, str]:
        """Passwords of users and services by name, and the secret of the metadata service."""
        return json.loads((self.state / "secrets.json").read_text())
