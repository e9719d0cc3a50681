# SPDX-License-Identifier: Apache-2.0
"""What is wanted: the deployment's hosts and the settings of its cloud, checked before the cloud is asked anything."""

from __future__ import annotations

import datetime
import ipaddress
import re
import uuid as uuids
from dataclasses import dataclass, field, fields

from ansible_collections.dodas.cluster.plugins.module_utils import deployment
from ansible_collections.dodas.cluster.plugins.module_utils.openstack.errors import OpenStackError, nearest

HOST = r"[a-z][a-z0-9-]{0,40}"
# Every setting, in the order in which it is worth reading. Ansible variables have the prefix `cloud_`.
SETTINGS = {
    "name": "entry of clouds.yaml to use",
    "region": "the cloud's region",
    "image": "image: a name, an id, tag:TAG or property:KEY=VALUE; the newest that fits",
    "flavor": "flavor: a name or id, or one for each node; default: the smallest that fits",
    "network": "existing network that hosts are put on; default: one is made",
    "cidr": "addresses of the network that is made (default 10.88.0.0/24)",
    "nameservers": "name servers of the network that is made",
    "external_network": "network that floating IPs come from; default: the only external one",
    "floating_ips": "hosts that get a floating IP: front, all or none",
    "ssh_from": "CIDRs from which hosts take ssh (default: everywhere)",
    "open_ports": "ports of the front that are open: [{port, protocol, from}]",
    "availability_zone": "availability zone of the servers",
    "anti_affinity": "whether servers of a node keep to different hypervisors: none, soft or hard",
    "boot_volume_gb": "boot from a volume of this size instead of the flavor's disk",
    "volume_type": "type of the volumes",
    "volumes": "volumes of hosts: [{node, size_gb, mount}]",
    "shared_addresses": "addresses that hosts may take over from each other: [{name, hosts}] or [{name, node}]",
    "owner": "who answers for the deployment; a label on its servers",
    "expires": "when the deployment may be removed, such as 2030-01-31T12:00:00Z or 7d; a label on its servers",
    "prices": "price of an hour of each flavor: {flavor: price}",
    "currency": "currency of the prices",
    "authorized_keys": "ssh public keys of people who may log in besides",
    "apt_mirror": "Debian mirror of the hosts",
    "proxy": "HTTP proxy by which hosts reach the world",
    "quota_check": "whether quotas are compared before anything is made (default true)",
}


@dataclass(frozen=True)
class Host:
    """One wanted host; `mem_mb` in 10^6 bytes, `disk_gb` in 10^9 bytes, None where it does not matter."""

    name: str
    node: str
    cpus: float | None = None
    mem_mb: int | None = None
    disk_gb: float | None = None
    roles: tuple = ()


@dataclass(frozen=True)
class OpenPort:
    """Ports `first` to `last` of the front, open for `cidrs`."""

    first: int
    last: int
    protocol: str
    cidrs: tuple


@dataclass(frozen=True)
class Volume:
    """A volume that each host of `node` has."""

    node: str
    size_gb: int
    mount: str | None = None


@dataclass(frozen=True)
class SharedAddress:
    """An address that each of `hosts` may use."""

    name: str
    hosts: tuple


@dataclass(frozen=True)
class Settings:
    """The settings, see SETTINGS. `expires` is a time, or a timedelta from the first server's creation."""

    name: str | None = None
    region: str | None = None
    image: str | None = None
    flavor: str | dict | None = None
    network: str | None = None
    cidr: ipaddress.IPv4Network = field(default_factory=lambda: ipaddress.ip_network("10.88.0.0/24"))
    nameservers: tuple = ()
    external_network: str | None = None
    floating_ips: str | None = None
    ssh_from: tuple = ("0.0.0.0/0", "::/0")
    open_ports: tuple = ()
    availability_zone: str | None = None
    anti_affinity: str = "none"
    boot_volume_gb: int | None = None
    volume_type: str | None = None
    volumes: tuple = ()
    shared_addresses: tuple = ()
    owner: str | None = None
    expires: datetime.datetime | datetime.timedelta | None = None
    prices: dict = field(default_factory=dict)
    currency: str = "EUR"
    authorized_keys: tuple = ()
    apt_mirror: str | None = None
    proxy: str | None = None
    quota_check: bool = True

    def flavor_of(self, node):
        """The flavor asked for by name for hosts of `node`, or None."""
        return self.flavor.get(node) if isinstance(self.flavor, dict) else self.flavor


@dataclass(frozen=True)
class Wanted:
    """A deployment as it shall be. The first host is the front."""

    name: str
    uuid: str
    hosts: tuple
    settings: Settings

    @property
    def front(self):
        """The name of the host that people log in to."""
        return self.hosts[0].name


def parse(name, uuid, hosts, settings):
    """Wanted from plain values; text is taken for numbers, booleans and lists of words. Raises OpenStackError."""
    if not deployment.valid_name(name):
        raise OpenStackError(f"name: {name!r} must match {deployment.NAME}")
    parsed = [_host(f"hosts[{i}]", one) for i, one in enumerate(hosts or [])]
    if not parsed:
        raise OpenStackError("hosts: there must be at least one")
    names = [one.name for one in parsed]
    for i, one in enumerate(names):
        if one in names[:i]:
            raise OpenStackError(f"hosts[{i}].name: {one} is there twice")
    return Wanted(name, valid_uuid(uuid), tuple(parsed), _settings(settings or {}, parsed))


def valid_uuid(text):
    """The UUID in its usual form. Raises OpenStackError."""
    try:
        return str(uuids.UUID(str(text)))
    except ValueError as exc:
        raise OpenStackError(f"uuid: {text!r} is not a UUID") from exc


def _host(where, given):
    if not isinstance(given, dict):
        raise OpenStackError(f"{where}: must be a mapping with name and node")
    known = [one.name for one in fields(Host)]
    _known(where, given, known)
    name = given.get("name")
    if not isinstance(name, str) or not re.fullmatch(HOST, name):
        raise OpenStackError(f"{where}.name: {name!r} is not lower-case letters, digits and dashes")
    return Host(
        name=name,
        node=_text(f"{where}.node", given.get("node")) or re.sub(r"-\d+$", "", name),
        cpus=_number(f"{where}.cpus", given.get("cpus"), float),
        mem_mb=_number(f"{where}.mem_mb", given.get("mem_mb"), int),
        disk_gb=_number(f"{where}.disk_gb", given.get("disk_gb"), float),
        roles=tuple(given.get("roles") or ()),
    )


def _settings(given, hosts):
    if not isinstance(given, dict):
        raise OpenStackError("settings: must be a mapping")
    _known("settings", given, SETTINGS)
    nodes = {one.node for one in hosts}
    values = {}
    for key, value in given.items():
        if value is None or value == "":
            continue
        where = f"settings.{key}"
        reader = _READERS.get(key, _text)
        values[key] = reader(where, value, hosts) if reader in _NEED_HOSTS else reader(where, value)
    settings = Settings(**values)
    if isinstance(settings.flavor, dict):
        _known("settings.flavor", settings.flavor, nodes)
    if settings.network and settings.floating_ips is None and settings.external_network:
        settings = Settings(**values, floating_ips="front")
    # three addresses are the network's, its gateway's and its broadcast, and a DHCP server has one or two
    if not settings.network and settings.cidr.num_addresses < len(hosts) + 5 + len(settings.shared_addresses):
        raise OpenStackError(f"settings.cidr: {settings.cidr} has too few addresses for {len(hosts)} hosts")
    if settings.volume_type and not (settings.boot_volume_gb or settings.volumes):
        raise OpenStackError("settings.volume_type: there is no volume; set boot_volume_gb or volumes")
    return settings


def _known(where, given, known):
    for key in given:
        if key not in known:
            raise OpenStackError(f"{where}.{key}: unknown{nearest(key, known)}")


def _text(where, value):
    if value is None:
        return None
    if isinstance(value, (dict, list)) or not str(value).isprintable() or len(str(value)) > 255:
        raise OpenStackError(f"{where}: must be text of one line, up to 255 characters")
    return str(value).strip()


def _number(where, value, kind, least=0):
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError) as exc:
        raise OpenStackError(f"{where}: {value!r} is not a number") from exc
    if not least < number < 1e9 or (kind is int and number != int(number)):
        raise OpenStackError(f"{where}: {value!r} must be a{' whole' if kind is int else ''} number above {least}")
    return kind(number)


def _size(where, value):
    return _number(where, value, int)


def _bool(where, value):
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in known:
        raise OpenStackError(f"{where}: {value!r} is neither true nor false")
    return known[str(value).lower()]


def _choice(*choices):
    def read(where, value):
        text = "none" if value is False else str(value)
        if text not in choices:
            raise OpenStackError(f"{where}: {value!r} must be {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    return read


def _list(where, value):
    if isinstance(value, str):
        value = [one.strip() for one in value.split(",") if one.strip()]
    if not isinstance(value, (list, tuple)):
        raise OpenStackError(f"{where}: must be a list")
    return value


def _mappings(where, value, *keys):
    """The mappings of a list, each with the place where it stands."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, dict) for one in value):
        raise OpenStackError(f"{where}: must be a list of mappings with {', '.join(keys)}")
    found = []
    for i, one in enumerate(value):
        _known(f"{where}[{i}]", one, keys)
        found.append((f"{where}[{i}]", one))
    return found


def _cidr(where, value):
    try:
        network = ipaddress.ip_network(str(value).strip())
    except ValueError as exc:
        raise OpenStackError(f"{where}: {value!r} is not a network such as 192.0.2.0/24: {exc}") from exc
    return network


def _own_network(where, value):
    network = _cidr(where, value)
    if network.version != 4 or network.prefixlen > 29:
        raise OpenStackError(f"{where}: {value!r} must be an IPv4 network of 8 addresses or more")
    return network


def _cidrs(where, value):
    return tuple(str(_cidr(f"{where}[{i}]", one)) for i, one in enumerate(_list(where, value)))


def _addresses(where, value):
    found = []
    for i, one in enumerate(_list(where, value)):
        try:
            found.append(str(ipaddress.ip_address(str(one).strip())))
        except ValueError as exc:
            raise OpenStackError(f"{where}[{i}]: {one!r} is not an address") from exc
    return tuple(found)


def _flavor(where, value):
    if isinstance(value, dict):
        return {str(node): _text(f"{where}.{node}", one) for node, one in value.items() if one}
    return _text(where, value)


def _open_ports(where, value):
    found = []
    if not isinstance(value, (list, tuple)):
        value = _list(where, str(value))
    value = [one if isinstance(one, dict) else {"port": one} for one in value]
    for here, one in _mappings(where, value, "port", "protocol", "from"):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(one.get("port")))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last < 65536:
            raise OpenStackError(f"{here}.port: {one.get('port')!r} is no port and no range such as 9000-9010")
        protocol = _choice("tcp", "udp")(f"{here}.protocol", one.get("protocol") or "tcp")
        cidrs = _cidrs(f"{here}.from", one.get("from") or ["0.0.0.0/0", "::/0"])
        found.append(OpenPort(first, last, protocol, cidrs))
    return tuple(found)


def _volumes(where, value, hosts):
    nodes = {one.node for one in hosts}
    found = []
    for here, one in _mappings(where, value, "node", "size_gb", "mount"):
        node = str(one.get("node"))
        if node not in nodes:
            raise OpenStackError(f"{here}.node: {node} is no node of the template{nearest(node, nodes)}")
        size = _number(f"{here}.size_gb", one.get("size_gb"), int)
        if size is None:
            raise OpenStackError(f"{here}.size_gb: is needed")
        mount = _text(f"{here}.mount", one.get("mount"))
        if mount and not re.fullmatch(r"(/[\w.-]+)+", mount):
            raise OpenStackError(f"{here}.mount: {mount!r} is not an absolute path")
        found.append(Volume(node, size, mount))
    return tuple(found)


def _shared(where, value, hosts):
    names = [one.name for one in hosts]
    found = []
    for here, one in _mappings(where, value, "name", "hosts", "node"):
        name = str(one.get("name"))
        if not re.fullmatch(HOST, name) or name in [other.name for other in found]:
            raise OpenStackError(f"{here}.name: {name!r} is not lower-case letters, digits and dashes, or there twice")
        if one.get("node"):
            members = [other.name for other in hosts if other.node == one["node"]]
        else:
            members = list(_list(f"{here}.hosts", one.get("hosts") or []))
        for member in members:
            if member not in names:
                raise OpenStackError(f"{here}.hosts: {member} is no host{nearest(member, names)}")
        if not members:
            raise OpenStackError(f"{here}: name its hosts, or a node that has hosts")
        found.append(SharedAddress(name, tuple(members)))
    return tuple(found)


def _expires(where, value):
    if isinstance(value, datetime.datetime):
        value = value.isoformat()
    match = re.fullmatch(r"(\d{1,4})\s*([hdw])", str(value).strip())
    if match and int(match[1]):
        hours = {"h": 1, "d": 24, "w": 168}[match[2]]
        return datetime.timedelta(hours=int(match[1]) * hours)
    try:
        time = datetime.datetime.fromisoformat(str(value).strip())
    except ValueError as exc:
        raise OpenStackError(f"{where}: {value!r} is no time such as 2030-01-31T12:00:00Z or 7d") from exc
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _prices(where, value):
    if not isinstance(value, dict):
        raise OpenStackError(f"{where}: must be a mapping of flavors to prices of an hour")
    return {str(flavor): _number(f"{where}.{flavor}", price, float, least=-1) for flavor, price in value.items()}


def _keys(where, value):
    keys = value.splitlines() if isinstance(value, str) else _list(where, value)
    for i, key in enumerate(keys):
        if not re.fullmatch(r"(ssh|ecdsa|sk)-[\w@.-]+ [A-Za-z0-9+/=]{40,}( .*)?", str(key).strip()):
            raise OpenStackError(f"{where}[{i}]: is no ssh public key, such as ssh-ed25519 AAAA... name")
    return tuple(str(key).strip() for key in keys)


_READERS = {
    "flavor": _flavor,
    "cidr": _own_network,
    "nameservers": _addresses,
    "floating_ips": _choice("front", "all", "none"),
    "ssh_from": _cidrs,
    "open_ports": _open_ports,
    "anti_affinity": _choice("none", "soft", "hard"),
    "boot_volume_gb": _size,
    "volumes": _volumes,
    "shared_addresses": _shared,
    "expires": _expires,
    "prices": _prices,
    "authorized_keys": _keys,
    "quota_check": _bool,
}
_NEED_HOSTS = (_volumes, _shared)
