# SPDX-License-Identifier: Apache-2.0
"""The backend `openstack`: a deployment's hosts are servers of an OpenStack cloud."""
