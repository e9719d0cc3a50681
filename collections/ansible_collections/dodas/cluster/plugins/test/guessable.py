# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re

from ansible.errors import AnsibleTemplatePluginError

# What documentation, images and people put where a password has to be.
WORDS = (
    "0123456789", "1234567890", "123456789", "12345678", "1234567", "123456", "12345", "1234",
    "administrator", "admin", "changeme", "change_me", "change-me", "changeit", "default", "dodas", "example",
    "haproxy", "keepalived", "letmein", "marathon", "mesos", "operator", "passw0rd", "password", "qwerty", "registry",
    "secret", "zookeeper",
)  # fmt: skip


def guessable(secret, shortest=16):
    """Whether a password is a default one, or shorter than `shortest` characters."""
    if not isinstance(secret, str):
        raise AnsibleTemplatePluginError("guessable: the password must be text")
    own = re.sub("|".join(WORDS), "", secret.lower())
    # Half of the least length is own, and more than two characters over and over: random ones of eight hex digits pass.
    return len(secret) < shortest or len(own) < shortest // 2 or len(set(own)) < 3


class TestModule:
    """Tests of the file."""

    def tests(self):
        """Functions by name."""
        return {"guessable": guessable}
