# SPDX-License-Identifier: Apache-2.0
"""The credentials service (token in, X.509 out) and the renewal daemon of a worker."""
