#!/usr/bin/python
# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: x509_credential
short_description: An X.509 certificate or proxy for a token
version_added: 0.1.0
description:
  - Gets an end-entity certificate, an RFC 3820 proxy or a host certificate from a credentials service of dodas, in
    exchange for a token, and keeps it in a file of the managed host.
  - The key is made on the managed host and never leaves it; only a certificate request does.
  - The file holds the certificate, its key and the chain, in this order, as grid software reads it.
  - A new one is asked for where there is none, where less than O(remaining) of its life is left, where its kind, key
    or subject is not what is asked for, where it is revoked or of another authority than the service has now, where the
    key is not its own, and where others could read the file.
author: [The dodas developers (@dodas)]
extends_documentation_fragment:
  [dodas.cluster.attributes, dodas.cluster.attributes.diff, dodas.cluster.cryptography]
attributes:
  check_mode:
    details: The service is only asked for its authority, not for a certificate.
  diff_mode:
    details: It has the kind, the subject and when it ends, and never the key.
options:
  path:
    description: The file. Its directory must be there.
    type: path
    required: true
  state:
    description:
      - Whether there shall be a credential. V(absent) removes O(path), and leaves O(ca_path) and O(ca_directory) to
        others that may need them.
    type: str
    choices: [present, absent]
    default: present
  kind:
    description: An end-entity certificate of a person or robot, a proxy, or a certificate of a host for its servers.
    type: str
    choices: [eec, proxy, host]
    default: proxy
  credentials_url:
    description: Address of the credentials service. Needed for O(state=present).
    type: str
  ca:
    description:
      - PEM file on the managed host of the authorities that the web servers of the service and of O(issuer) are checked
        against. Default is the system's.
    type: path
  resolve:
    description: Addresses of names that the managed host cannot look up, such as those of O(credentials_url).
    type: dict
    default: {}
  token:
    description:
      - An access token that the service takes, as P(dodas.cluster.oidc_token#lookup) gets it.
      - For O(state=present) this, O(client_id) or O(join_key) is needed.
    type: str
  client_id:
    description:
      - Client of O(issuer) that the managed host gets a token as, with the grant C(client_credentials), when a new
        credential is due.
    type: str
  client_secret:
    description: Secret of O(client_id).
    type: str
  issuer:
    description: URL of the provider that knows O(client_id).
    type: str
  scope:
    description: Scopes to ask O(issuer) for, with spaces between.
    type: str
  join_key:
    description:
      - Key of a host of the deployment, as P(dodas.cluster.join_key#filter) derives it. The managed host signs its own
        token with it.
    type: str
  deployment:
    description: The deployment that O(join_key) is of.
    type: str
  host:
    description: The name that O(join_key) is for.
    type: str
  audience:
    description: The service's name in tokens, with O(client_id) or O(join_key). Default is O(credentials_url).
    type: str
  subject:
    description:
      - The DN that it must be of, in slash form and for a proxy without its last C(CN). Where the service gives another
        one, nothing is written. Any when not given.
    type: str
  lifetime:
    description: How long it shall last, such as V(12h) or V(43200). The service gives at most what its rule allows.
    type: str
  remaining:
    description:
      - How much must be left of it, such as V(6h) or V(21600), or as a fraction of its life such as V(0.5). Where less
        is left, it is replaced.
    type: str
    default: "0.5"
  policy:
    description: What a proxy may do. Default is what the service's rule says.
    type: str
    choices: [inherit-all, limited, independent]
  delegation:
    description: Identifier of a delegation that the service holds, whose proxy it shall be.
    type: str
  key_type:
    description: Kind of the key. Some grid software takes RSA only.
    type: str
    choices: [rsa-2048, rsa-4096, ec-p256]
    default: rsa-2048
  owner:
    description: User of the file. Default is the user that the module runs as.
    type: str
  group:
    description: Group of the file. Default is that of O(owner).
    type: str
  mode:
    description: Mode of the file. Grid software refuses keys that others can read.
    type: str
    choices: ["0600", "0400"]
    default: "0600"
  ca_path:
    description: A file to keep the certificate of the service's authority in, with those above it.
    type: path
  ca_directory:
    description:
      - A directory to keep the service's authority in as grid software reads it (C(X509_CERT_DIR)), with its revocation
        list and signing policy. Other authorities in it are left alone.
    type: path
  timeout:
    description: Seconds for one request.
    type: float
    default: 10
notes:
  - Where a host runs for longer than its credential lasts, it needs something that renews it; the workers of dodas have
    that. This module renews when it runs.
seealso:
  - module: dodas.cluster.x509_credential_info
  - module: dodas.cluster.x509_authority
  - plugin: dodas.cluster.oidc_token
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: A proxy for the user who runs the analysis
  dodas.cluster.x509_credential:
    path: /tmp/x509up_u1000
    owner: analyst
    credentials_url: https://credentials.example.org:8444
    token: "{{ lookup('dodas.cluster.oidc_token') }}"
    lifetime: 12h
    ca_directory: /etc/grid-security/certificates

- name: A certificate for the storage server, renewed when a third of its life is left
  dodas.cluster.x509_credential:
    path: /etc/grid-security/xrd/xrootd.pem
    kind: host
    owner: xrootd
    credentials_url: https://credentials.example.org:8444
    issuer: https://iam.example.org
    client_id: xrootd
    client_secret: "{{ vault_xrootd_secret }}"
    remaining: "0.33"
  notify: Restart xrootd

- name: A proxy of the host's own name
  dodas.cluster.x509_credential:
    path: /etc/dodas/proxy.pem
    credentials_url: https://credentials.service.consul:8444
    ca: /etc/dodas/ca.pem
    deployment: tier3
    host: "{{ inventory_hostname }}"
    join_key: "{{ join_secret | dodas.cluster.join_key(inventory_hostname) }}"

- name: No proxy any more
  dodas.cluster.x509_credential:
    path: /tmp/x509up_u1000
    state: absent
"""

RETURN = r"""
path:
  description: The file.
  returned: always
  type: str
reason:
  description: Why a new credential was or would be asked for; empty where the one that was there stayed.
  returned: when O(state=present)
  type: str
credential:
  description: What the file holds, as M(dodas.cluster.x509_credential_info) returns it. In check mode, what it held.
  returned: when O(state=present) and there is one
  type: dict
  sample:
    kind: proxy
    subject: /DC=dodas/O=tier3/OU=people/CN=alice 7wq3xk2mfh5r4t6z/CN=6917529027641081857
    identity: /DC=dodas/O=tier3/OU=people/CN=alice 7wq3xk2mfh5r4t6z
    not_after: "2026-11-23T12:39:18Z"
    remaining: 43199
ca_files:
  description: Files of the authority that differed.
  returned: when O(state=present)
  type: list
  elements: str
"""

import base64
import dataclasses
import grp
import os
import platform
import pwd
import stat

from ansible_collections.dodas.cluster.plugins.module_utils.module import Module
from ansible_collections.dodas.cluster.plugins.module_utils.x509 import (
    authorities,
    cadirectory,
    client,
    files,
    held,
    join,
    oauth,
)

ADVICE = {
    None: "Is it reachable from this host, and does ca have the authority of its web server?",
    400: "The request is not one that it takes: look at kind, lifetime and policy.",
    401: "It does not take the token: is it for this service and with a scope, has it ended, are the clocks right?",
    403: "No rule of the service gives this to the bearer of the token.",
    404: "It has no such thing: look at credentials_url and delegation.",
    429: "It is busy: try again later.",
    503: "It is not ready: try again later.",
}


class Failure(RuntimeError):
    """A step that failed; the message holds no secret."""


def main():
    module = Module(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "kind": {"type": "str", "choices": ["eec", "proxy", "host"], "default": "proxy"},
            "credentials_url": {"type": "str"},
            "ca": {"type": "path"},
            "resolve": {"type": "dict", "default": {}},
            "token": {"type": "str", "no_log": True},
            "client_id": {"type": "str"},
            "client_secret": {"type": "str", "no_log": True},
            "issuer": {"type": "str"},
            "scope": {"type": "str"},
            "join_key": {"type": "str", "no_log": True},
            "deployment": {"type": "str"},
            "host": {"type": "str"},
            "audience": {"type": "str"},
            "subject": {"type": "str"},
            "lifetime": {"type": "str"},
            "remaining": {"type": "str", "default": "0.5"},
            "policy": {"type": "str", "choices": ["inherit-all", "limited", "independent"]},
            "delegation": {"type": "str"},
            "key_type": {
                "type": "str", "choices": ["rsa-2048", "rsa-4096", "ec-p256"], "default": "rsa-2048", "no_log": False,
            },
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "str", "choices": ["0600", "0400"], "default": "0600"},
            "ca_path": {"type": "path"},
            "ca_directory": {"type": "path"},
            "timeout": {"type": "float", "default": 10.0},
        },
        mutually_exclusive=[("token", "client_id", "join_key")],
        required_by={"client_id": ("client_secret", "issuer"), "join_key": ("deployment", "host")},
        required_if=[
            ("state", "present", ("credentials_url",)),
            ("state", "present", ("token", "client_id", "join_key"), True),
        ],
        supports_check_mode=True,
    )  # fmt: skip
    try:
        if module.params["state"] == "absent":
            _absent(module)
        module.need_cryptography()
        _present(module)
    except (Failure, OSError, ValueError) as error:
        module.fail_json(msg=f"{platform.node()}: {error}")


def _absent(module):
    path = module.params["path"]
    there = os.path.lexists(path)
    if there and not stat.S_ISREG(os.lstat(path).st_mode):
        raise Failure(f"{path} is not a regular file: not removed")
    if there and not module.check_mode:
        os.unlink(path)
    module.exit_json(changed=there, path=path, diff=_diff(path, "present\n" if there else "", ""))


def _present(module):
    parameters = module.params
    path, wanted = parameters["path"], _wanted(parameters)
    if not os.path.isabs(path):
        raise Failure(f"path: {path} must be absolute")
    if not os.path.isdir(os.path.dirname(path)):
        raise Failure(f"{os.path.dirname(path)} is no directory: make it first")
    file = held.File(path, int(parameters["mode"], 8), _owner(parameters))
    before, reason = file.look(wanted)
    online = _authority(module, needed=bool(reason))
    if online and not reason:
        entry = authorities.Entry.parse(online["ca"], online["crl"], online["signing_policy"])
        reason = held.of_authority(before, entry.certificate, entry.crl)
    ca_changes = _ca_changes(parameters, online)
    adjust = not reason and file.differs()
    after, text = before, before.summary() if before else ""
    if reason:
        text = _plan(parameters)
        if not module.check_mode:
            data = _order(module, wanted, reason)
            after = held.parse(data)
            text = after.summary()
            file.write(data)
    if not module.check_mode:
        cadirectory.write(ca_changes)
        if adjust:
            file.adjust()
    diff = _diff(path, before.summary() if before else "", text) if reason else []
    if adjust:
        diff = _diff(path, "mode, owner or group: another\n", "mode, owner or group: as asked for\n")
    for name, pair in sorted(ca_changes.items()):
        diff += _diff(name, *map(authorities.summary, pair))
    module.exit_json(
        changed=bool(reason or adjust or ca_changes),
        path=path,
        reason=reason or "",
        credential=after and after.describe(),
        ca_files=sorted(ca_changes),
        diff=diff,
    )


def _diff(path, before, after):
    return [{"before_header": path, "after_header": path, "before": before, "after": after}] if before != after else []


def _plan(parameters):
    """As Held.summary, of what is not known yet."""
    lines = {"kind": parameters["kind"], "subject": parameters["subject"] or "(as the service's rule says)",
             "key": parameters["key_type"], "policy": parameters["policy"],
             "not_after": f"({parameters['lifetime'] or 'as long'} as the service's rule allows)"}  # fmt: skip
    return "".join(f"{name}: {value}\n" for name, value in lines.items() if value is not None)


def _wanted(parameters):
    if parameters["kind"] != "proxy" and parameters["policy"]:
        raise Failure(f"policy is for proxies, not for kind {parameters['kind']}")
    if parameters["lifetime"] and _seconds(parameters, "lifetime") < 1:
        raise Failure(f"lifetime: {parameters['lifetime']} is no time, such as 43200 or 12h")
    remaining = _seconds(parameters, "remaining")
    return held.Wanted(*(parameters[name] for name in ("kind", "subject", "policy", "key_type")), remaining)


def _seconds(parameters, name):
    try:
        return held.seconds(parameters[name])
    except ValueError as error:
        raise Failure(f"{name}: {error}") from None


def _owner(parameters):
    """(uid, gid) of the file."""
    name, group = parameters["owner"], parameters["group"]
    try:
        user = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise Failure(f"there is no user {name}") from None
    try:
        return user.pw_uid, grp.getgrnam(group).gr_gid if group else user.pw_gid
    except KeyError:
        raise Failure(f"there is no group {group}") from None


def _web(parameters):
    return {"cafile": parameters["ca"], "timeout": parameters["timeout"], "resolve": parameters["resolve"]}


def _authority(module, needed):
    """What the service says of its authority. None with a warning where that is neither known nor needed."""
    parameters = module.params
    try:
        return client.fetch_authority(parameters["credentials_url"], **_web(parameters))
    except client.ClientError as error:
        if needed or parameters["ca_path"] or parameters["ca_directory"]:
            raise Failure(_advised(error)) from None
        module.warn(f"{platform.node()}: the credential is kept, but its authority was not compared: {error}")
        return None


def _ca_changes(parameters, online):
    """What of the authority is not kept yet, as cadirectory.changes."""
    path, directory = parameters["ca_path"], parameters["ca_directory"]
    found = cadirectory.document_changes(directory, online) if directory else {}
    if path:
        data = "".join(one["ca"] for one in (online, *online["chain"])).encode()
        before = files.read(path) if os.path.lexists(path) else None
        found.update({} if before == data else {path: (before, data)})
    return found


def _order(module, wanted, reason):
    """A new credential, PEM bytes."""
    parameters = module.params
    try:
        token, make_token = _token(parameters)
        credential = client.request_credential(
            parameters["credentials_url"],
            token,
            parameters["kind"],
            parameters["lifetime"] and _seconds(parameters, "lifetime"),
            parameters["policy"],
            parameters["delegation"],
            held.KEY_TYPES[parameters["key_type"]](),
            make_token,
            **_web(parameters),
        )
    except client.ClientError as error:
        raise Failure(f"{parameters['path']} needs a new credential ({reason}). {_advised(error)}") from None
    data = credential.pem()
    made = held.parse(data)
    if dataclasses.replace(wanted, remaining=0).differs(made):
        problem = dataclasses.replace(wanted, remaining=0).differs(made)
        raise Failure(f"{parameters['credentials_url']} gives something else, which is not kept: {problem}")
    if wanted.differs(made):
        module.warn(
            f"{parameters['path']} lasts {made.remaining:.0f} s, less than remaining asks for "
            f"({parameters['remaining']}): every run will replace it"
        )
    return data


def _token(parameters):
    """(an access token, None), or (None, what makes one for a request)."""
    audience = parameters["audience"] or parameters["credentials_url"]
    if parameters["join_key"]:
        try:
            key = base64.b64decode(parameters["join_key"], validate=True)
        except ValueError:
            raise Failure("join_key is not base64, as filter dodas.cluster.join_key gives it") from None
        return None, lambda request: join.make(key, parameters["deployment"], parameters["host"], audience, request)
    if parameters["client_id"]:
        url = client.token_endpoint(parameters["issuer"], **_web(parameters))
        scope, secret = parameters["scope"], parameters["client_secret"]
        name = parameters["client_id"]
        return client.fetch_token(url, name, None, audience, scope, secret, **_web(parameters)), None
    token = parameters["token"].strip()
    if not oauth.is_token(token):
        raise Failure("token is empty or no token")
    return token, None


def _advised(error):
    advice = ADVICE.get(error.status)
    return f"{error}. {advice}" if advice else str(error)


if __name__ == "__main__":
    main()
