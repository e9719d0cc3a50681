// SPDX-License-Identifier: Apache-2.0
// Start: node server.mjs. Configuration in /etc/dodas/identity, state in /var/lib/dodas/identity.
// SIGHUP: take a new certificate. SIGUSR2: sign with new keys from now on; the old ones stay published for a while.
import { readFileSync, watchFile } from 'node:fs';
import { createServer } from 'node:https';
import process, { env, exit, umask } from 'node:process';
import { ConfigError, loadKeys, readConfig } from './files.mjs';
import { log } from './log.mjs';
import { buildProvider } from './provider.mjs';
import { Store } from './store.mjs';

const CONFIG = env.DODAS_IDENTITY_CONFIG ?? '/etc/dodas/identity';
const STATE = env.DODAS_IDENTITY_STATE ?? '/var/lib/dodas/identity';
const WATCH_MS = 10_000;
const KEYS_MS = 3_600_000;

const certificate = ({ cert, key }) => ({ cert: readFileSync(cert), key: readFileSync(key), minVersion: 'TLSv1.2' });

/** Take a new certificate on SIGHUP or when its file changes; a bad one leaves the old one in place. */
function reloadCertificate(server, tls) {
  const reload = () => {
    try {
      server.setSecureContext(certificate(tls));
      log('certificate_reloaded');
    } catch (err) {
      log('certificate_refused', { error: err.message });
    }
  };
  process.on('SIGHUP', reload);
  for (const path of [tls.cert, tls.key]) watchFile(path, { interval: WATCH_MS }, reload);
}

/** A handler of requests that always signs with the keys that are due. */
async function signing(config, store) {
  const current = (rotate) => loadKeys(`${STATE}/jwks.json`, { ...config, rotate });
  let keys = await current();
  let handle = buildProvider({ config, keys, store }).callback();
  const names = ({ keys: list }) => list.map(({ kid }) => kid).join(' ');
  let last = Promise.resolve();
  const renew = (rotate) => {
    last = last.then(async () => {
      const next = await current(rotate);
      if (names(next) === names(keys)) return;
      keys = next;
      handle = buildProvider({ config, keys, store }).callback();
      log('keys_changed', { kids: names(keys) });
    }).catch((err) => log('keys_failed', { error: err.message }));
  };
  process.on('SIGUSR2', () => renew(true));
  setInterval(() => renew(false), KEYS_MS).unref();
  return (req, res) => handle(req, res);
}

async function main() {
  umask(0o077);
  const config = readConfig(CONFIG);
  const store = new Store(`${STATE}/state.db`);

  const server = createServer(certificate(config.tls), await signing(config, store));
  Object.assign(server, { requestTimeout: 15_000, headersTimeout: 10_000, keepAliveTimeout: 5_000, maxConnections: 1000 });
  reloadCertificate(server, config.tls);
  for (const signal of ['SIGTERM', 'SIGINT']) {
    process.on(signal, () => {
      server.close(() => {
        store.close();
        exit(0);
      });
      server.closeIdleConnections();
    });
  }
  server.on('error', (err) => {
    log('failed', { error: err.message });
    exit(1);
  });
  server.listen(config.port, config.address, () => log('ready', { issuer: config.issuer, address: config.address, port: config.port }));
}

main().catch((err) => {
  log('failed', { error: err instanceof ConfigError || err.code ? err.message : err.stack });
  exit(1);
});
