# SPDX-License-Identifier: Apache-2.0
"""python3 -m dodas.credentials --config FILE: run the credentials service."""

from __future__ import annotations

import argparse
import logging
import sys

from ansible_collections.dodas.cluster.plugins.module_utils.x509.authority import AuthorityError
from ansible_collections.dodas.cluster.plugins.module_utils.x509.store import StoreError
from dodas.credentials import config as configuration
from dodas.credentials.server import server as make_server
from dodas.credentials.service import Service, log


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop; 1 where the configuration or the state cannot be used."""
    parser = argparse.ArgumentParser(prog="python3 -m dodas.credentials", description="X.509 for tokens")
    parser.add_argument("--config", default="/etc/dodas/credentials/config.yaml", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="check the configuration, start nothing")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = configuration.load(options.config)
        if options.check:
            return 0
        service = Service(config)
        server = make_server(config, service)
    except (configuration.ConfigError, AuthorityError, StoreError, OSError) as error:
        print(f"dodas credentials: {error}", file=sys.stderr)
        return 1
    log.info(
        "https://%s:%s, CA %s until %s, %s rules",
        config.listen.address,
        config.listen.port,
        service.authority.subject,
        service.authority.certificate.not_valid_after_utc.date(),
        len(service.rules),
    )
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
