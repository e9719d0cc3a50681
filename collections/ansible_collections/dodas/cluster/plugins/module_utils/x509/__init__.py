# SPDX-License-Identifier: Apache-2.0
"""From identity tokens to X.509 credentials. Needs ``cryptography``, and ``tokens`` also ``joserfc``."""
