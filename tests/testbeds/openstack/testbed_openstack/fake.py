# SPDX-License-Identifier: Apache-2.0
"""nova's own fake driver, on hosts with room for hundreds of servers."""

from nova.virt import fake


class Driver(fake.PredictableNodeUUIDDriver):
    """Servers are entries of a table."""

    vcpus = 256
    memory_mb = 1024 * 1024
    local_gb = 16 * 1024
