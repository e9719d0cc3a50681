# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # How the cloud is found and who asks it.
    DOCUMENTATION = r"""
requirements: [openstacksdk]
options: {}
notes:
  - The login is that of C(clouds.yaml) or of C(OS_*) variables. A cloud that takes access tokens of an identity
    provider (C(v3oidcaccesstoken)) gets the one of E(DODAS_ACCESS_TOKEN), or of the file E(DODAS_ACCESS_TOKEN_FILE),
    which is read again when the login ends.
"""
