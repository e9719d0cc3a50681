# SPDX-License-Identifier: Apache-2.0
"""Configuration files of all services: the release's defaults, but for what a small machine is better without."""

from __future__ import annotations

import os

from testbed_openstack.place import Place

DATABASES = ("keystone", "glance", "placement", "nova", "nova_api", "nova_cell0", "neutron")
REGION = "RegionOne"
NEVER = -1


def database(place: Place, name: str) -> str:
    return f"mysql+pymysql://root@localhost/{name}?unix_socket={place.socket}&charset=utf8mb4"


def write(place: Place, venv) -> None:
    """All files in place.etc, for the owner's eyes only: there are passwords in them."""
    place.etc.mkdir(mode=0o700, exist_ok=True)
    for name, sections in _files(place, venv).items():
        lines = []
        for section, values in sections.items():
            lines += [f"[{section}]", *(f"{key} = {value}" for key, value in values.items()), ""]
        with open(os.open(place.etc / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write("\n".join(lines))


def _files(place: Place, venv) -> dict[str, dict[str, dict[str, object]]]:
    secrets = place.secrets()
    state = place.state

    def login(user):
        return {
            "auth_url": place.auth_url,
            "auth_type": "password",
            "username": user,
            "password": secrets[user],
            "project_name": "service",
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        }

    def client(user, service):
        return {**login(user), "region_name": REGION, "valid_interfaces": "public", "service_type": service}

    def tokens(user, service):
        return {
            **login(user),
            "www_authenticate_uri": place.auth_url,
            "service_type": service,  # tokens with access rules are refused without it
            "service_token_roles_required": True,
            "service_token_roles": "service",
            "token_cache_time": 3600,  # without memcached each process keeps what it has seen
        }

    def default(name, **more):
        # neutron and nova speak to nobody but themselves: messages stay in the process.
        return {"DEFAULT": {"log_file": place.logs / f"{name}.log", "debug": False, **more}}

    quiet = {"oslo_messaging_notifications": {"driver": "noop"}}
    messages = {"transport_url": "fake://"}
    return {
        "keystone.conf": {
            **default("keystone"),
            "database": {"connection": database(place, "keystone")},
            "token": {"provider": "fernet", "expiration": place.token_seconds, "allow_expired_window": 86400},
            "fernet_tokens": {"key_repository": state / "keystone" / "fernet"},
            "credential": {"key_repository": state / "keystone" / "credential"},
            "identity": {"password_hash_rounds": 4},
            "cache": {"enabled": True, "backend": "oslo_cache.dict"},
            "auth": {"methods": "password,token,mapped,openid,application_credential"},
            "openid": {"remote_id_attribute": "OIDC-iss"},
            "federation": {"assertion_prefix": "OIDC-", "default_authorization_ttl": 1440},
            **quiet,
        },
        "placement.conf": {
            **default("placement"),
            "api": {"auth_strategy": "keystone"},
            "placement_database": {"connection": database(place, "placement")},
            "keystone_authtoken": tokens("placement", "placement"),
        },
        "glance-api.conf": {
            **default(
                "glance",
                bind_host="127.0.0.1",
                bind_port=place.ports["glance"],
                workers=0,
                enabled_backends="fs:file",
            ),
            "glance_store": {"default_backend": "fs"},
            "fs": {"filesystem_store_datadir": state / "glance" / "images"},
            "os_glance_staging_store": {"filesystem_store_datadir": state / "glance" / "staging"},
            "os_glance_tasks_store": {"filesystem_store_datadir": state / "glance" / "tasks"},
            "database": {"connection": database(place, "glance")},
            "paste_deploy": {
                "flavor": "keystone",
                "config_file": f"{venv}/etc/glance/glance-api-paste.ini",
            },
            "keystone_authtoken": tokens("glance", "image"),
            **quiet,
        },
        "neutron.conf": {
            **default(
                "neutron",
                **messages,
                state_path=state / "neutron",
                bind_host="127.0.0.1",
                bind_port=place.ports["neutron"],
                core_plugin="ml2",
                service_plugins="router",
                api_workers=1,
                rpc_workers=0,
                rpc_state_report_workers=0,
                # There are no agents to tell; nova hears of addresses, and does not wait for ports.
                dhcp_agent_notification=False,
                network_auto_schedule=False,
                router_auto_schedule=False,
                notify_nova_on_port_status_changes=False,
                notify_nova_on_port_data_changes=True,
                send_events_interval=1,
                api_paste_config=f"{venv}/etc/neutron/api-paste.ini",
            ),
            "database": {"connection": database(place, "neutron"), "max_pool_size": 20, "max_overflow": 60},
            "oslo_concurrency": {"lock_path": state / "neutron" / "lock"},
            "ml2": {
                "type_drivers": "flat,local",
                "tenant_network_types": "local",
                "mechanism_drivers": "testbed",
                "extension_drivers": "port_security,tag_ports_during_bulk_creation",
            },
            "ml2_type_flat": {"flat_networks": "public,shared"},
            "quotas": {
                "quota_driver": "neutron.db.quota.driver_nolock.DbQuotaNoLockDriver",
                "quota_network": 100,
                "quota_subnet": 100,
                "quota_port": 2000,
                "quota_router": 50,
                "quota_floatingip": 200,
                "quota_security_group": 200,
                "quota_security_group_rule": 2000,
            },
            "nova": client("nova", "compute"),
            "placement": client("placement", "placement"),
            "keystone_authtoken": tokens("neutron", "network"),
            **quiet,
        },
        "nova.conf": {
            **default(
                "nova",
                **messages,
                state_path=state / "nova",
                compute_driver="testbed.Driver",
                osapi_compute_listen="127.0.0.1",
                osapi_compute_listen_port=place.ports["nova"],
                osapi_compute_workers=1,
                metadata_listen="127.0.0.1",
                metadata_listen_port=place.ports["metadata"],
                metadata_workers=1,
                my_ip="127.0.0.1",
                host="nova",
                vif_plugging_is_fatal=False,
                vif_plugging_timeout=0,
                # Nothing changes behind nova's back, so it need not look.
                heal_instance_info_cache_interval=NEVER,
                sync_power_state_interval=NEVER,
                scheduler_instance_sync_interval=NEVER,
                image_cache_manager_interval=NEVER,
                shelved_poll_interval=NEVER,
                volume_usage_poll_interval=0,
                instance_usage_audit=False,
                bandwidth_poll_interval=NEVER,
                running_deleted_instance_action="noop",
                update_resources_interval=600,
                # A busy machine reports late, and no host is down for that.
                report_interval=30,
                service_down_time=3600,
                rpc_response_timeout=600,
                max_concurrent_builds=20,
            ),
            "api_database": {"connection": database(place, "nova_api"), "max_pool_size": 20, "max_overflow": 60},
            "database": {"connection": database(place, "nova"), "max_pool_size": 20, "max_overflow": 60},
            "wsgi": {"api_paste_config": f"{venv}/etc/nova/api-paste.ini"},
            "oslo_concurrency": {"lock_path": state / "nova" / "lock"},
            "scheduler": {"discover_hosts_in_cells_interval": NEVER},
            "filter_scheduler": {
                "enabled_filters": "ComputeFilter,ComputeCapabilitiesFilter,ImagePropertiesFilter,"
                "ServerGroupAntiAffinityFilter,ServerGroupAffinityFilter",
                "track_instance_changes": False,
                # Spread over the hosts, also those that two requests see at the same moment.
                "host_subset_size": max(1, place.hosts),
            },
            "workarounds": {"disable_group_policy_check_upcall": False},
            "quota": {
                "instances": 1000,
                "cores": 4000,
                "ram": 8 * 1024 * 1024,
                "key_pairs": 1000,
                "server_groups": 200,
                "server_group_members": 1000,
            },
            "glance": {"api_servers": place.url("glance"), **client("glance", "image")},
            "service_user": {"send_service_user_token": True, **login("nova")},
            "cinder": {"catalog_info": "volumev3::publicURL"},
            "neutron": {
                **client("neutron", "network"),
                "service_metadata_proxy": True,
                "metadata_proxy_shared_secret": secrets["metadata"],
                "extension_sync_interval": 86400,
            },
            "placement": client("placement", "placement"),
            "keystone_authtoken": tokens("nova", "compute"),
            "notifications": {"notification_format": "unversioned"},
            **quiet,
        },
    }
