# Copyright: the dodas developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: oidc_token
short_description: An access token of an OpenID provider
version_added: 0.1.0
author: [The dodas developers (@dodas)]
description:
  - Gets an access token on the controller, in one of the ways in which people and machines have tokens.
  - The token is in no message and no log of this plugin. Give it to parameters that are not logged, such as those of
    M(dodas.cluster.x509_credential), or set C(no_log) on the task.
options:
  _terms:
    description: Nothing; the options say all.
    type: list
    elements: str
  method:
    description:
      - V(auto) takes the token that the machine has, by the bearer token discovery of WLCG. It is the first of these -
        E(BEARER_TOKEN); the file that E(BEARER_TOKEN_FILE) names; C($XDG_RUNTIME_DIR/bt_uUID); C(/tmp/bt_uUID).
      - V(environment) takes it from E(BEARER_TOKEN) only, V(file) from these files only, or from O(token_file).
      - V(client_credentials) asks O(issuer) for one with the secret of a client.
      - V(refresh_token) asks O(issuer) for one with the refresh token in O(refresh_token_file). Where the provider
        replaces the refresh token, the new one is written there.
      - V(device_code) shows an address and a code for somebody to sign in with a browser, and waits for that.
      - V(oidc_agent) asks a running oidc-agent.
    type: str
    choices: [auto, environment, file, client_credentials, refresh_token, device_code, oidc_agent]
    default: auto
  issuer:
    description:
      - URL of the provider, for O(method=client_credentials), O(method=refresh_token) and O(method=device_code).
      - For O(method=oidc_agent) this or O(account) is needed.
    type: str
  client_id:
    description: The client, for O(method=client_credentials), O(method=refresh_token) and O(method=device_code).
    type: str
  client_secret:
    description: Secret of O(client_id). A client without one is public.
    type: str
  client_secret_file:
    description: A file on the controller that holds the secret of O(client_id).
    type: path
  refresh_token_file:
    description:
      - A file of mode 0600 on the controller that holds a refresh token.
      - With O(method=device_code), where the refresh token is written if the provider gives one. It usually does with
        C(offline_access) in O(scope).
    type: path
  token_file:
    description: For O(method=file), the file on the controller that holds the token, instead of those of WLCG.
    type: path
  account:
    description: Short name of an account of oidc-agent.
    type: str
  socket:
    description: The socket of oidc-agent.
    type: path
    env:
      - name: OIDC_SOCK
  scope:
    description: Scopes to ask for, with spaces between.
    type: str
  audience:
    description: The service that the token is to be for.
    type: str
  cafile:
    description: PEM file on the controller of the authorities to trust for O(issuer). Default is the system's.
    type: path
  resolve:
    description: Addresses of names that the controller cannot look up, such as that of O(issuer).
    type: dict
    default: {}
  min_lifetime:
    description: Seconds that the token must last, as far as it tells.
    type: int
    default: 60
  timeout:
    description: Seconds for one request.
    type: float
    default: 10
  deadline:
    description: Seconds within which somebody must have signed in, for O(method=device_code).
    type: int
    default: 300
notes:
  - Ansible evaluates a lookup anew wherever it is used, once for each host. Where that costs a login, keep the token in
    a fact of one task with C(run_once) and C(no_log).
seealso:
  - module: dodas.cluster.x509_credential
"""

EXAMPLES = r"""
- name: A proxy of whoever runs the playbook
  dodas.cluster.x509_credential:
    path: /tmp/x509up_u1000
    owner: analyst
    credentials_url: https://credentials.example.org:8444
    token: "{{ lookup('dodas.cluster.oidc_token') }}"

- name: A host certificate by the client of the site
  dodas.cluster.x509_credential:
    path: /etc/grid-security/host.pem
    kind: host
    credentials_url: https://credentials.example.org:8444
    token: >-
      {{ lookup('dodas.cluster.oidc_token', method='client_credentials', issuer='https://iam.example.org',
                client_id='site', client_secret=vault_site_secret, audience='https://credentials.example.org:8444') }}

- name: Sign in once for the whole play
  ansible.builtin.set_fact:
    token: >-
      {{ lookup('dodas.cluster.oidc_token', method='device_code', issuer='https://iam.example.org',
                client_id='dodas', scope='openid x509') }}
  run_once: true
  no_log: true
"""

RETURN = r"""
_raw:
  description: The token, as a list of one.
  type: list
  elements: str
"""

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import bearer, client

display = Display()


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        method = self.get_option("method")
        try:
            if terms:
                raise client.ClientError("it takes no terms, only options")
            token = getattr(self, f"_{method}")()
            left = bearer.remaining(token)
            if left is not None and left < self.get_option("min_lifetime"):
                said = f"ends in {left:.0f} s" if left > 0 else f"ended {-left:.0f} s ago"
                raise client.ClientError(f"the token {said}: get a new one")
        except (client.ClientError, OSError) as error:
            raise AnsibleLookupError(f"oidc_token, method {method}: {error}") from None
        return [token]

    def _auto(self):
        token, where = bearer.find()
        display.vvv(f"oidc_token: from {where}")
        return token

    def _environment(self):
        token = bearer.from_environment()
        if token is None:
            raise client.ClientError("BEARER_TOKEN is not set")
        return token

    def _file(self):
        path = self.get_option("token_file")
        return bearer.read(path) if path else bearer.from_files()[0]

    def _client_credentials(self):
        provider, secret = self._provider(), self._secret()
        if secret is None:
            raise client.ClientError("client_secret or client_secret_file is needed")
        url = client.endpoint(provider, "token_endpoint")
        return client.fetch_token(url, self._needed("client_id"), client_secret=secret, **self._target(), **self._web())

    def _refresh_token(self):
        path, name = self._needed("refresh_token_file"), self._needed("client_id")
        url = client.endpoint(self._provider(), "token_endpoint")
        return bearer.refresh(path, url, name, self._secret(), **self._target(), **self._web())

    def _device_code(self):
        name, secret, provider = self._needed("client_id"), self._secret(), self._provider()
        begin = client.endpoint(provider, "device_authorization_endpoint")
        device = client.start_device(begin, name, **self._target(), client_secret=secret, **self._web())
        address, code = device["verification_uri"], device["user_code"]
        if not (address + code).isprintable():
            raise client.ClientError(f"{begin}: the answer cannot be shown")
        display.display(f"To sign in, open {address} in a browser and enter the code {code}", screen_only=True)
        life = device.get("expires_in") or self.get_option("deadline")
        device = {**device, "expires_in": min(life, self.get_option("deadline"))}
        url = client.endpoint(provider, "token_endpoint")
        answer = client.poll_device(url, name, device, client_secret=secret, **self._web())
        path = self.get_option("refresh_token_file")
        if path and "refresh_token" in answer:
            bearer.keep(path, answer["refresh_token"])
        return answer["access_token"]

    def _oidc_agent(self):
        name = self.get_option("account") or self._needed("issuer")
        return client.agent_token(
            name,
            self.get_option("socket"),
            lifetime=self.get_option("min_lifetime"),
            timeout=self.get_option("timeout"),
            **self._target(),
        )

    def _provider(self):
        return client.discover(self._needed("issuer"), **self._web())

    def _secret(self):
        path = self.get_option("client_secret_file")
        return client.read_secret(path) if path else self.get_option("client_secret")

    def _needed(self, option):
        value = self.get_option(option)
        if not value:
            raise client.ClientError(f"{option} is needed")
        return value

    def _target(self):
        return {name: self.get_option(name) for name in ("scope", "audience")}

    def _web(self):
        return {name: self.get_option(name) for name in ("cafile", "timeout", "resolve")}
