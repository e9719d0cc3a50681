# SPDX-License-Identifier: Apache-2.0
"""Flags as Mesos reads them: --name=value, --name and --no-name, MESOS_NAME in the environment.

An unknown flag ends the program, an unknown variable does not. A value that begins with file:// is the file's content.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from pathlib import Path

from . import VERSION

UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "secs": 1, "mins": 60, "hrs": 3600, "days": 86400, "weeks": 604800}

# Defaults decide what a flag's value may be: a truth value, a number, a duration, or any text. None: not set.
COMMON = {
    "advertise_ip": None, "advertise_port": None, "domain": None, "external_log_file": None, "firewall_rules": None,
    "help": False, "hooks": None, "hostname": None, "hostname_lookup": True, "http_authenticators": None,
    "initialize_driver_logging": True, "ip": None, "ip_discovery_command": None, "log_dir": None, "logbufsecs": 0,
    "logging_level": "INFO", "memory_profiling": False, "modules": None, "modules_dir": None, "port": 0, "quiet": False,
    "version": False, "work_dir": None, "zk_session_timeout": "10secs", "acls": None,
}  # fmt: skip

MASTER = {
    **COMMON,
    "agent_ping_timeout": "15secs", "agent_removal_rate_limit": None, "agent_reregister_timeout": "10mins",
    "allocation_interval": "1secs", "allocator": "hierarchical", "allocator_agent_recovery_factor": "0.8",
    "allocator_recovery_timeout": "10mins", "authenticate_agents": False, "authenticate_frameworks": False,
    "authenticate_http_frameworks": False, "authenticate_http_readonly": False, "authenticate_http_readwrite": False,
    "authentication_v0_timeout": "15secs", "authenticators": "crammd5", "authorizers": "local", "cluster": None,
    "credentials": None, "fair_sharing_excluded_resource_names": None, "filter_gpu_resources": True,
    "framework_sorter": "drf", "http_authenticators": "basic", "http_framework_authenticators": None,
    "log_auto_initialize": True, "max_agent_ping_timeouts": 5, "max_completed_frameworks": 50,
    "max_completed_tasks_per_framework": 1000, "max_executors_per_agent": None,
    "max_operator_event_stream_subscribers": 1000, "max_unreachable_tasks_per_framework": 1000,
    "min_allocatable_resources": "cpus:0.01|mem:32", "offer_constraints_re2_max_mem": "4KB",
    "offer_constraints_re2_max_program_size": 100, "offer_timeout": None, "port": 5050,
    "publish_per_framework_metrics": True, "quorum": None, "rate_limits": None, "recovery_agent_removal_limit": "100%",
    "registry": "replicated_log", "registry_fetch_timeout": "1mins", "registry_gc_interval": "15mins",
    "registry_max_agent_age": "2weeks", "registry_max_agent_count": 102400, "registry_store_timeout": "20secs",
    "registry_strict": False, "require_agent_domain": False, "role_sorter": "drf", "roles": None,
    "root_submissions": True, "webui_dir": "/usr/local/share/mesos/webui", "weights": None, "whitelist": None,
    "zk": None,
}  # fmt: skip

AGENT = {
    **COMMON,
    "agent_features": None, "allowed_devices": None, "appc_simple_discovery_uri_prefix": "http://",
    "appc_store_dir": "/tmp/mesos/store/appc", "attributes": None, "authenticate_http_executors": None,
    "authenticate_http_readonly": False, "authenticate_http_readwrite": False, "authenticatee": "crammd5",
    "authentication_backoff_factor": "1secs", "authentication_timeout_max": "1mins",
    "authentication_timeout_min": "5secs", "authorizer": "local", "bounding_capabilities": None,
    "cgroups_cpu_enable_pids_and_tids_count": False, "cgroups_destroy_timeout": "1mins", "cgroups_enable_cfs": False,
    "cgroups_hierarchy": "/sys/fs/cgroup", "cgroups_limit_swap": False, "cgroups_net_cls_primary_handle": None,
    "cgroups_net_cls_secondary_handles": None, "cgroups_root": "mesos", "container_disk_watch_interval": "15secs",
    "container_logger": None, "container_ports_isolated_range": None, "container_ports_watch_interval": None,
    "containerizers": "mesos", "credential": None, "csi_plugin_config_dir": None, "default_container_dns": None,
    "default_container_info": None, "default_role": "*", "default_shm_size": None,
    "disallow_sharing_agent_ipc_namespace": False, "disallow_sharing_agent_pid_namespace": False,
    "disk_profile_adaptor": None, "disk_watch_interval": "1mins", "docker": "docker", "docker_config": None,
    "docker_ignore_runtime": False, "docker_kill_orphans": True, "docker_mesos_image": None, "docker_registry": "",
    "docker_remove_delay": "6hrs", "docker_socket": "/var/run/docker.sock", "docker_stop_timeout": "0ns",
    "docker_store_dir": "/tmp/mesos/store/docker",
    "docker_volume_checkpoint_dir": "/var/run/mesos/isolators/docker/volume", "docker_volume_chown": False,
    "domain_socket_location": None, "effective_capabilities": None, "enforce_container_disk_quota": False,
    "enforce_container_ports": None, "executor_environment_variables": None, "executor_registration_timeout": "1mins",
    "executor_reregistration_retry_interval": None, "executor_reregistration_timeout": "2secs",
    "executor_secret_key": None, "executor_shutdown_grace_period": "5secs", "fetcher_cache_dir": "/tmp/mesos/fetch",
    "fetcher_cache_size": "2GB", "fetcher_stall_timeout": "1mins", "frameworks_home": "", "gc_delay": "1weeks",
    "gc_disk_headroom": "0.1", "gc_non_executor_container_sandboxes": False,
    "host_path_volume_force_creation": None, "http_command_executor": False, "http_credentials": None,
    "http_executor_domain_sockets": False, "http_heartbeat_interval": "30secs", "image_gc_config": None,
    "image_providers": None, "image_provisioner_backend": None,
    "isolation": "posix/cpu,posix/mem,filesystem/posix", "jwt_secret_key": None, "launcher": None,
    "launcher_dir": "/usr/local/libexec/mesos", "master": None, "master_detector": None,
    "max_completed_executors_per_framework": 150, "network_cni_config_dir": None, "network_cni_metrics": True,
    "network_cni_plugins_dir": None, "network_cni_root_dir_persist": False, "nvidia_gpu_devices": None,
    "oversubscribed_resources_interval": "15secs", "perf_duration": "10secs", "perf_events": None,
    "perf_interval": "1mins", "port": 5051, "qos_controller": None, "qos_correction_interval_min": "0ns",
    "reconfiguration_policy": "equal", "recover": "reconnect", "recovery_timeout": "15mins",
    "registration_backoff_factor": "1secs", "resource_estimator": None, "resource_provider_config_dir": None,
    "resources": None, "revocable_cpu_low_priority": True, "runtime_dir": "/var/run/mesos",
    "sandbox_directory": "/mnt/mesos/sandbox", "seccomp_config_dir": None, "seccomp_profile_name": None,
    "secret_resolver": None, "strict": True, "switch_user": True, "systemd_enable_support": True,
    "systemd_runtime_directory": "/run/systemd/system", "volume_gid_range": None, "xfs_kill_containers": None,
    "xfs_project_range": None,
}  # fmt: skip

EXECUTE = {
    "checkpoint": False, "command": None, "containerizer": "mesos", "content_type": "protobuf", "docker_image": None,
    "env": None, "framework_capabilities": None, "framework_name": "mesos-execute instance", "gpus": None,
    "help": False, "kill_after": None, "master": None, "name": None, "networks": None, "partition_aware": False,
    "principal": None,
    "resources": "cpus:1;mem:128", "role": "*", "secret": None, "shell": True, "task": None, "task_group": None,
    "task_exec_info": None, "tty_info": None, "version": False, "volumes": None,
}  # fmt: skip


class Flags(dict):
    """Values by name; what is not set is None."""

    def __getattr__(self, name):
        return self[name]

    def seconds(self, name):
        return seconds(self[name])

    def shown(self):
        """As /flags answers: texts of those that are set."""
        values = {name: value for name, value in sorted(self.items()) if value is not None}
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def die(message):
    """End with status 1, as for all that is wrong with the configuration."""
    print(message, file=sys.stderr, flush=True)
    sys.exit(1)


def abort(message):
    """End as a failed assertion does: by signal 6."""
    print(message, file=sys.stderr, flush=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def read(program, known, arguments, environment):
    """The Flags of a program. Ends it for --help, --version and what is wrong."""
    values = Flags(known)
    for name in known:
        if f"MESOS_{name.upper()}" in environment:
            values[name] = _value(known, name, environment[f"MESOS_{name.upper()}"])
    given = set()
    for word in arguments:
        name, value = _split(word, known)
        if name not in known:
            die(f"Failed to load unknown flag '{name}'\n\n{_usage(program, known)}")
        if name in given:
            die(f"Flag '{name}' is already loaded")
        given.add(name)
        if value is None:
            die(f"Failed to load non-boolean flag '{name}': it has no value")
        values[name] = _value(known, name, value)
    if values.help:
        print(_usage(program, known))
        sys.exit(0)
    if values.version:
        print(f"mesos {VERSION} (stand-in)")
        sys.exit(0)
    return values


def _usage(program, known):
    return f"Usage: {program} [options]\n\n" + "\n".join(f"  --{name}" for name in sorted(known))


def _split(word, known):
    if not word.startswith("--"):
        die(f"Failed to load: unexpected argument '{word}'")
    name, equals, value = word[2:].partition("=")
    name = name.replace("-", "_") if name.replace("-", "_") in known else name
    if equals:
        return name, value
    if name.startswith(("no-", "no_")) and isinstance(known.get(name[3:].replace("-", "_")), bool):
        return name[3:].replace("-", "_"), "false"
    return name, "true" if isinstance(known.get(name), bool) else None


def _value(known, name, text):
    if text.startswith("file://"):
        path = text[len("file://") :]
        if name.endswith(("credential", "credentials")):
            return path
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as exc:
            die(f"Failed to load flag '{name}': Error reading file '{path}': {exc.strerror}")
    default = known[name]
    if isinstance(default, bool):
        if text not in ("true", "false", "1", "0"):
            die(f"Failed to load flag '{name}': Expecting a boolean, got '{text}'")
        return text in ("true", "1")
    if isinstance(default, int) or name == "quorum":
        if not re.fullmatch(r"\d+", text):
            die(f"Failed to load flag '{name}': Failed to load value '{text}': Failed to convert into required type")
        return int(text)
    if name.endswith(("_timeout", "_interval", "_delay", "_period")) or _is_duration(default):
        try:
            seconds(text)
        except ValueError:
            die(f"Failed to load flag '{name}': Failed to load value '{text}': Invalid duration '{text}'")
    return text


def _is_duration(value):
    return isinstance(value, str) and re.fullmatch(rf"\d+({'|'.join(UNITS)})", value)


def seconds(text):
    """Seconds of a duration such as 1.5mins; raises ValueError."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(UNITS)})", text)
    if not found:
        raise ValueError(f"invalid duration {text!r}")
    return float(found.group(1)) * UNITS[found.group(2)]


def json_or_file(text, name):
    """The JSON of a flag that takes either it or the absolute path of a file that has it."""
    try:
        if text.startswith("/"):
            text = Path(text).read_text(encoding="utf-8")
        return json.loads(text)
    except (OSError, ValueError) as exc:
        die(f"Failed to load flag '{name}': {exc}")
        raise


def credentials(path, name="credentials"):
    """{principal: secret} of a file of several; ends the program when it is not that."""
    content = _credential_file(path, name)
    found = content.get("credentials") if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(_is_credential(one) for one in found):
        die(f"Failed to parse {name} file '{path}': 'credentials' must list principals and secrets")
    return {one["principal"]: one.get("secret", "") for one in found}


def credential(path):
    """(principal, secret) of a file of one."""
    content = _credential_file(path, "credential")
    if not _is_credential(content):
        die(f"Failed to parse credential file '{path}': it has no principal")
    return content["principal"], content.get("secret", "")


def _is_credential(value):
    return isinstance(value, dict) and isinstance(value.get("principal"), str)


def _credential_file(path, name):
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        die(f"Failed to read {name} file '{path}': {exc.strerror}")
    try:
        return json.loads(text)
    except ValueError:
        die(f"Failed to parse {name} file '{path}': it is not JSON")  # and is not shown: it holds secrets
