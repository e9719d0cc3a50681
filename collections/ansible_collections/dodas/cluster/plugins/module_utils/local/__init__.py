# SPDX-License-Identifier: Apache-2.0
"""The backend `local`: a deployment's hosts are containers on this machine."""
