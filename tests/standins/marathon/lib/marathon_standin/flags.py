# SPDX-License-Identifier: Apache-2.0
"""Flags, each of which may also come as an environment variable MARATHON_NAME; the command line wins."""

from __future__ import annotations

import os
import socket
import sys

from . import BUILD, VERSION

SWITCHES = {"disable_http", "disable_ha", "disable_checkpoint", "disable_zk_compression", "disable_http_compression",
            "disable_mesos_authentication", "disable_revive_offers_for_new_apps", "disable_store_cache",
            "leader_proxy_ssl_ignore_hostname", "ha", "checkpoint", "http_compression", "mesos_authentication",
            "revive_offers_for_new_apps", "store_cache", "zk_compression", "maintenance_mode"}  # fmt: skip
NUMBERS = {
    "http_port": 8080, "https_port": 8443, "local_port_min": 10000, "local_port_max": 20000, "zk_timeout": 10000,
    "zk_connection_timeout": 10000, "zk_session_timeout": 10000, "zk_max_versions": 50,
    "leader_proxy_connection_timeout": 5000, "leader_proxy_read_timeout": 10000, "failover_timeout": 604800,
    "reconciliation_initial_delay": 15000, "reconciliation_interval": 600000, "scale_apps_initial_delay": 15000,
    "scale_apps_interval": 300000, "task_launch_timeout": 300000, "task_launch_confirm_timeout": 300000,
    "task_lost_expunge_initial_delay": 300000, "task_lost_expunge_interval": 30000, "task_reservation_timeout": 20000,
    "decline_offer_duration": 120000, "launch_token_refresh_interval": 30000, "launch_tokens": 1000,
    "max_instances_per_offer": 100, "min_revive_offers_interval": 5000, "revive_offers_repetitions": 3,
    "offer_matching_timeout": 3000, "on_elected_prepare_timeout": 180000, "kill_chunk_size": 100,
    "kill_retry_timeout": 10000, "mesos_heartbeat_interval": 15000, "mesos_heartbeat_failure_threshold": 5,
    "event_stream_max_outstanding_messages": 1000, "draining_seconds": 0, "zk_compression_threshold": 65536,
    "zk_max_node_size": 1048576, "max_running_deployments": 100,
}  # fmt: skip
TEXTS = {
    "master": None, "zk": "zk://localhost:2181/marathon", "hostname": None, "http_address": None, "https_address": None,
    "http_credentials": None, "http_realm": "Mesosphere", "ssl_keystore_path": None, "ssl_keystore_password": None,
    "framework_name": "marathon", "mesos_role": None, "mesos_user": None, "mesos_authentication_principal": "",
    "mesos_authentication_secret": None, "mesos_authentication_secret_file": None, "webui_url": None,
    "enable_features": None, "deprecated_features": None, "default_accepted_resource_roles": None,
    "access_control_allow_origin": None, "env_vars_prefix": None, "executor": "//cmd", "plugin_dir": None,
    "plugin_conf": None, "mesos_leader_ui_url": None, "default_network_name": None, "mesos_bridge_name": None,
    "logging_level": None, "gpu_scheduling_behavior": None, "max_apps": None, "new_group_enforce_role": None,
    "artifact_store": None, "standin_tls_certificate": None, "standin_tls_key": None,
}  # fmt: skip


class FlagError(Exception):
    """A flag is unknown or wrong."""


class Options:
    """The flags by name, and what follows from them."""

    def __init__(self, values):
        self.__dict__.update(TEXTS, **NUMBERS, **dict.fromkeys(SWITCHES, False))
        self.__dict__.update(values)
        if not self.master:
            raise FlagError("Required option 'master' not found")
        if self.http_credentials is not None and ":" not in self.http_credentials.strip(":"):
            raise FlagError("http_credentials: must be USER:PASSWORD")
        self.hostname = self.hostname or socket.getfqdn()
        self.port_range = (self.local_port_min, self.local_port_max - 1)
        self.tls = bool(self.ssl_keystore_path or self.standin_tls_certificate)
        if self.disable_http and not self.tls:
            raise FlagError("Invalid configuration: Neither HTTP nor HTTPS support has been configured.")
        self.scheme = "https" if self.disable_http else "http"
        self.address = f"{self.hostname}:{self.https_port if self.disable_http else self.http_port}"
        self.webui_url = self.webui_url or f"{self.scheme}://{self.address}"

    def secret(self):
        """The secret of the framework's principal; empty without one. All of its file is the secret, as in Marathon."""
        if self.mesos_authentication_secret_file:
            with open(self.mesos_authentication_secret_file, encoding="utf-8") as file:
                return file.read()
        return self.mesos_authentication_secret or ""


def parse(words, environment=os.environ):
    """The Options of a command line and an environment. Raises FlagError; ends the program for --version and --help."""
    values = {}
    for name in (*SWITCHES, *NUMBERS, *TEXTS):
        given = environment.get(f"MARATHON_{name.upper()}")
        if given is not None:
            values[name] = convert(name, given)
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=") if word.startswith("--") else ("", "", "")
        if name in ("version", "help"):
            print(f"Marathon {VERSION}: {BUILD}")
            if name == "help":
                print("\n".join(f"  --{one}" for one in sorted({*SWITCHES, *NUMBERS, *TEXTS})))
            sys.exit(0)
        if name not in SWITCHES and name not in NUMBERS and name not in TEXTS:
            raise FlagError(f"Unknown option '{name or word}'")
        if not equals and name not in SWITCHES:
            if not words:
                raise FlagError(f"Option '{name}' needs a value")
            value = words.pop(0)
        values[name] = convert(name, value)
    return Options(values)


def convert(name, text):
    """A flag's value from its text."""
    if name in SWITCHES:
        return text.lower() not in ("false", "0", "no")
    if name in NUMBERS:
        if not text.isdigit():
            raise FlagError(f"Bad arguments for option '{name}': '{text}'")
        return int(text)
    return text
