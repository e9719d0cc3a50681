# SPDX-License-Identifier: Apache-2.0
"""Keep the credential of a worker fresh: token, new key, CSR, proxy file; again at half its life.

The configuration (YAML or JSON), for a host of a deployment, which signs its own token:

    join_key_file: /path           # the host's key in base64, mode 0600
    deployment: tier3
    host: worker-1
    delegation: 0123abcd...        # whose proxy; default: one of the host's own name

or for a client of an issuer:

    issuer: https://...            # or token_url
    client_id: worker
    client_secret_file: /path
    scope: "..."

and for both:

    credentials_url: https://...
    audience: https://...          # what the service expects in aud; default: credentials_url
    cafile: /path                  # authorities of both web servers; default: the system's
    kind: proxy                    # or eec, host
    lifetime: 43200                # seconds; default: as the service's rule allows
    output: /path/proxy.pem        # certificate, key, chain; mode 0600
    ca_output: /path/ca.pem        # the online CA
    ca_directory: /path            # the online CA as grid software reads it (X509_CERT_DIR)
    owner: user                    # of output, or user:group
"""

from __future__ import annotations

import argparse
import dataclasses
import grp
import json
import logging
import pwd
import random
import signal
import sys
import time
from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.x509 import authority, client, files, join, proxies, store

RETRY_FIRST = 1.0
RETRY_MOST = 10.0  # so that a worker is back within 10 s of the service
REQUEST_SECONDS = 10.0

log = logging.getLogger("dodas.renew")


class ConfigError(ValueError):
    """A configuration that cannot be used; names the file and the key."""


@dataclasses.dataclass(frozen=True)
class Config:
    """See the module."""

    credentials_url: str
    output: str
    join_key_file: str | None = None
    deployment: str | None = None
    host: str | None = None
    delegation: str | None = None
    client_id: str | None = None
    client_secret_file: str | None = None
    issuer: str | None = None
    token_url: str | None = None
    audience: str | None = None
    scope: str | None = None
    cafile: str | None = None
    kind: str = "proxy"
    lifetime: int | None = None
    ca_output: str | None = None
    ca_directory: str | None = None
    owner: str | None = None

    @classmethod
    def load(cls, path: str) -> Config:
        """Read and check the file. Raises ConfigError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            if path.endswith(".json"):
                document = json.loads(text)
            else:
                import yaml  # where the file is JSON, the standard library does

                document = yaml.safe_load(text)
            config = cls(**document)
        except OSError as error:
            raise ConfigError(str(error)) from error
        except TypeError as error:
            raise ConfigError(f"{path}: {str(error).replace('Config.__init__() ', '')}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
        for field in dataclasses.fields(cls):
            value = getattr(config, field.name)
            expected = int if field.name == "lifetime" else str
            if value is not None and type(value) is not expected:
                raise ConfigError(f"{path}: {field.name} must be of type {expected.__name__}")
        if config.join_key_file:
            needed, others = ("deployment", "host"), ("issuer", "token_url", "client_id", "client_secret_file", "scope")
        else:
            needed, others = ("client_id", "client_secret_file"), ("deployment", "host", "delegation")
            if bool(config.issuer) == bool(config.token_url):
                raise ConfigError(f"{path}: give one of join_key_file, issuer and token_url")
        for name in needed:
            if not getattr(config, name):
                raise ConfigError(f"{path}: {name} is missing")
        for name in others:
            if getattr(config, name):
                how = "with" if config.join_key_file else "without"
                raise ConfigError(f"{path}: {name} has no meaning {how} join_key_file")
        return config

    def owner_ids(self) -> tuple[int, int] | None:
        """(uid, gid) of owner. Raises ConfigError."""
        if not self.owner:
            return None
        user, _, group = self.owner.partition(":")
        try:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
            return entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid
        except KeyError as error:
            raise ConfigError(f"owner {self.owner}: {error}") from error


def renew(config: Config) -> None:
    """Get one credential and write it over the one before. Raises ClientError, StoreError, OSError."""
    web = {"cafile": config.cafile, "timeout": REQUEST_SECONDS}
    audience = config.audience or config.credentials_url
    token = make_token = None
    if config.join_key_file:
        key = store.read_keys(config.join_key_file)[0]

        def make_token(request):
            return join.make(key, config.deployment, config.host, audience, request)

    else:
        token_url = config.token_url or client.token_endpoint(config.issuer, **web)
        token = client.fetch_token(
            token_url, config.client_id, config.client_secret_file, audience, config.scope, **web
        )
    credential = client.request_credential(
        config.credentials_url, token, config.kind, config.lifetime, delegation=config.delegation,
        make_token=make_token, **web,
    )  # fmt: skip
    if config.ca_output or config.ca_directory:
        online = client.fetch_authority(config.credentials_url, **web)
        if config.ca_output:
            _write_if_new(config.ca_output, "".join(one["ca"] for one in (online, *online["chain"])).encode())
        if config.ca_directory:
            authority.install_document(config.ca_directory, online)
    files.write(config.output, credential.pem(), owner=config.owner_ids())


def _lacks_authority(config: Config) -> bool:
    return any(path and not Path(path).exists() for path in (config.ca_output, config.ca_directory))


def _write_if_new(path: str, data: bytes) -> None:
    try:
        if Path(path).read_bytes() == data:
            return
    except FileNotFoundError:
        pass
    files.write(path, data, files.PUBLIC)


def inspect(config: Config) -> proxies.Inspection | None:
    """What output holds now, or None where that is nothing usable."""
    try:
        return proxies.inspect(files.read(config.output))
    except (OSError, ValueError):
        return None


def due_in(held: proxies.Inspection | None, part: float = 0.5) -> float:
    """Seconds until a credential is to be renewed: when less than this part of its life is left. 0: now."""
    if held is None:
        return 0.0
    life = held.not_after - held.not_before - proxies.BACKDATE
    return max(0.0, held.remaining - part * life.total_seconds())


def keep(config: Config, once: bool = False, deadline: float = float("inf"), now: bool = False) -> None:
    """Renew for ever, or once: until output holds a credential with half its life left.

    deadline: seconds for all tries of once. now: renew first of all, due or not. Raises ClientError, OSError when the
    deadline passes.
    """
    end = time.monotonic() + deadline
    retry = RETRY_FIRST
    while True:
        pause = 0.0 if now or _lacks_authority(config) else due_in(inspect(config), random.uniform(0.45, 0.55))
        if pause == 0:
            try:
                renew(config)
                retry, now = RETRY_FIRST, False
                held = inspect(config)
                log.info("%s holds %s for %d s", config.output, held.subject, held.remaining)
            except (client.ClientError, store.StoreError, OSError, ValueError) as error:
                pause = retry * random.uniform(0.5, 1.0)
                retry = min(2 * retry, RETRY_MOST)
                if time.monotonic() + pause > end:
                    raise
                log.warning("no credential yet, next try in %.0f s: %s", pause, error)
                time.sleep(pause)
                continue
        if once:
            return
        # Not in one sleep: the clock may be set, and the machine suspended.
        time.sleep(min(max(pause, 1.0), 60.0))


def check(config: Config, least: float) -> int:
    """Say in one line how long the credential lasts; 0 where that is at least so many seconds."""
    held = inspect(config)
    if held is None:
        print(f"{config.output}: no credential")
        return 1
    enough = held.remaining >= least
    lacking = "" if enough else f", less than {least:.0f}"
    print(f"{config.output}: {held.subject}: {held.remaining:.0f} s left{lacking}")
    return 0 if enough else 1


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    summary = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python3 -m dodas.credentials.renew", description=summary)
    parser.add_argument("--config", required=True, help="YAML or JSON file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--once", action="store_true", help="return as soon as there is a credential")
    what.add_argument("--check", action="store_true", help="only say whether the credential lasts")
    parser.add_argument("--now", action="store_true", help="with --once: renew what is not due yet, too")
    parser.add_argument("--deadline", type=float, default=300, help="seconds for --once (%(default)s)")
    parser.add_argument("--min-seconds", type=float, default=600, help="for --check (%(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        config = Config.load(options.config)
        config.owner_ids()
        if options.check:
            return check(config, options.min_seconds)
        keep(config, options.once, options.deadline if options.once else float("inf"), options.now)
    except (ConfigError, client.ClientError, store.StoreError, OSError, ValueError) as error:
        print(f"dodas renew: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
