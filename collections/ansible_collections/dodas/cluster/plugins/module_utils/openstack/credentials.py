# SPDX-License-Identifier: Apache-2.0
"""Restricted application credentials, for programs in a cluster that ask the cloud themselves."""

from __future__ import annotations

import datetime

from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import ApiError, OpenStackError

# What may be asked with a credential, by purpose: (service type, method, path).
RULES = {
    "read": [
        ("compute", "GET", "/v2.1/servers"),
        ("compute", "GET", "/v2.1/servers/**"),
        ("network", "GET", "/v2.0/ports"),
        ("network", "GET", "/v2.0/floatingips"),
    ],
    "scale": [
        ("compute", "GET", "/v2.1/**"),
        ("compute", "POST", "/v2.1/servers"),
        ("compute", "DELETE", "/v2.1/servers/*"),
        ("compute", "POST", "/v2.1/os-keypairs"),
        ("compute", "DELETE", "/v2.1/os-keypairs/*"),
        ("network", "GET", "/v2.0/**"),
        ("network", "POST", "/v2.0/ports"),
        ("network", "DELETE", "/v2.0/ports/*"),
        ("image", "GET", "/v2/images"),
    ],
}


def make(cloud, name, uuid, purpose="read", rules=None, roles=None, expires=None, label="cluster"):
    """Make a credential with which only `rules` [(service type, method, path)] can be asked.

    Without rules they are those of `purpose`; without `roles` it has the login's. `expires` is a datetime. Returns
    {"id", "secret", "auth_url", "region"}; the secret is never shown again. Raises OpenStackError.
    """
    rules = rules if rules is not None else RULES[purpose]
    if not rules:
        raise OpenStackError("an application credential without access rules could do everything: give rules")
    body = {
        "name": f"{_name(name, uuid)}-{label}",
        "description": f"dodas:deployment={uuid}",
        "unrestricted": False,
        "access_rules": [{"service": service, "method": method, "path": path} for service, method, path in rules],
    }
    body |= {"roles": [{"name": one} for one in roles]} if roles else {}
    body |= {"expires_at": expires.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")} if expires else {}
    path = f"/users/{cloud.user_id}/application_credentials"
    try:
        made = cloud.post("identity", path, {"application_credential": body})["application_credential"]
    except ApiError as exc:
        if exc.status == 409:
            raise OpenStackError(f"application credential {body['name']} is there already: revoke it first") from exc
        if exc.status == 403:
            raise OpenStackError(
                f"this login may not make application credentials (a restricted credential itself?): {exc}"
            ) from exc
        raise
    return {"id": made["id"], "secret": made["secret"], "auth_url": cloud.auth_url, "region": cloud.region}


def revoke(cloud, uuid, label=None):
    """Revoke the deployment's credentials, or the one with `label`, and return their names."""
    path = f"/users/{cloud.user_id}/application_credentials"
    try:
        listed = cloud.list("identity", path, "application_credentials")
    except ApiError as exc:
        if exc.status in (403, 404):  # a login that cannot have made any
            return []
        raise
    ours = [one for one in listed if one["name"].startswith("dodas-") and f"-{uuid}-" in one["name"]]
    if label:
        ours = [one for one in ours if one["name"].endswith(f"-{uuid}-{label}")]
    cloud.each(lambda one: cloud.delete("identity", f"{path}/{one['id']}"), ours)
    return [one["name"] for one in ours]


def _name(name, uuid):
    return f"dodas-{name}-{uuid}"
