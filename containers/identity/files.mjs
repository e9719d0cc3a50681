// SPDX-License-Identifier: Apache-2.0
// Configuration, secrets and keys on disk.
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, statSync, writeSync } from 'node:fs';
import { calculateJwkThumbprint, exportJWK, generateKeyPair } from 'jose';

const MIN_SECRET = 16;
const DAY = 86400;
const SKEW = 300; // seconds that clocks may differ
const GRANTS = {
  authorization_code: 'authorization_code',
  client_credentials: 'client_credentials',
  device_code: 'urn:ietf:params:oauth:grant-type:device_code',
  refresh_token: 'refresh_token',
  token_exchange: 'urn:ietf:params:oauth:grant-type:token-exchange',
};

export class ConfigError extends Error {}

const need = (condition, message) => {
  if (!condition) throw new ConfigError(message);
};
const isText = (value) => typeof value === 'string' && value !== '';
const now = () => Math.floor(Date.now() / 1000);
const isList = (value) => Array.isArray(value) && value.every(isText);

function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch (err) {
    // A JSON error quotes the text around it, which may be a secret.
    throw new ConfigError(`${path}: ${err.code ?? 'not JSON'}`);
  }
}

function readPrivateJson(path) {
  const value = readJson(path);
  need((statSync(path).mode & 0o077) === 0, `${path}: must not be readable by group or others (mode 0600)`);
  return value;
}

/** Write a private file so that a crash leaves either the old or the new content. */
export function writePrivate(path, text) {
  const temporary = `${path}.new`;
  const fd = openSync(temporary, 'w', 0o600);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, path);
}

function readClient(client, secrets) {
  const where = `clients: ${client.id}`;
  need(isText(client.id), 'clients: each needs an id');
  need(isList(client.grants) && client.grants.length, `${where}: grants is a list of ${Object.keys(GRANTS)}`);
  for (const grant of client.grants) need(Object.hasOwn(GRANTS, grant), `${where}: unknown grant ${grant}`);
  need(isList(client.scopes) && client.scopes.length, `${where}: scopes is a list of names`);
  const has = (grant) => client.grants.includes(grant);
  const redirects = client.redirect_uris ?? [];
  need(isList(redirects) && (redirects.length > 0) === has('authorization_code'),
    `${where}: redirect_uris and the grant authorization_code go together`);

  const secret = Object.hasOwn(secrets, client.id) ? secrets[client.id] : undefined;
  if (client.public) {
    need(secret === undefined, `${where}: a public client has no secret`);
    need(!has('client_credentials') && !has('token_exchange'),
      `${where}: a public client cannot have client_credentials or token_exchange`);
  } else {
    need(isText(secret) && secret.length >= MIN_SECRET, `${where}: needs a secret of ${MIN_SECRET} or more characters`);
  }
  return {
    id: client.id,
    groups: client.groups ?? [],
    scopes: client.scopes,
    redirects,
    metadata: {
      client_id: client.id,
      client_name: client.name ?? client.id,
      application_type: client.public ? 'native' : 'web',
      ...(client.public ? { token_endpoint_auth_method: 'none' } : { client_secret: secret }),
      grant_types: client.grants.map((grant) => GRANTS[grant]),
      response_types: has('authorization_code') ? ['code'] : [],
      redirect_uris: redirects,
      scope: client.scopes.join(' '),
    },
  };
}

function readUser(user) {
  need(isText(user.name) && /^[\x21-\x7e]{1,64}$/.test(user.name), 'users: each needs a name of printable ASCII');
  const [salt, hash] = ['salt', 'hash'].map((key) => Buffer.from(user.scrypt?.[key] ?? '', 'base64'));
  need(salt.length >= 16 && hash.length === 32,
    `users: ${user.name}: scrypt needs a salt of 16 bytes and a hash of 32, in base64`);
  return { name: user.name, groups: user.groups ?? [], salt, hash };
}

/**
 * Read config.json and secrets.json of a directory; a ConfigError says which entry is wrong.
 *
 * config.json: {issuer, address, port, tls: {cert, key}, audiences: [URI], opaque_audiences: [URI], token_lifetime: seconds,
 *   key_days: days until new keys sign,
 *   users: [{name, groups, scrypt: {salt, hash}}],   base64; N=16384 r=8 p=5, 32 bytes
 *   clients: [{id, name, public, grants, scopes, groups, redirect_uris}]}
 * secrets.json, of mode 0600: {client id: secret}, for each client that is not public.
 * The first audience is the default; tokens for opaque_audiences (some of audiences) are to be introspected. Clients authenticate with client_secret_basic.
 */
export function readConfig(directory) {
  const raw = readJson(`${directory}/config.json`);
  const secrets = readPrivateJson(`${directory}/secrets.json`);
  const issuer = URL.parse(raw.issuer);
  need(issuer?.protocol === 'https:' && issuer.pathname === '/' && !issuer.search && !raw.issuer.endsWith('/'),
    'issuer: an https address without path');
  need(Number.isInteger(raw.port) && raw.port > 0 && raw.port < 65536, 'port: 1 to 65535');
  need(isText(raw.address), 'address: the address to listen on');
  need(isText(raw.tls?.cert) && isText(raw.tls?.key), 'tls: cert and key are paths');
  need(isList(raw.audiences) && raw.audiences.length && raw.audiences.every((audience) => URL.canParse(audience)),
    'audiences: a list of absolute URIs');
  const opaque = raw.opaque_audiences ?? [];
  need(isList(opaque) && opaque.every((audience) => raw.audiences.includes(audience)),
    'opaque_audiences: a list of some of audiences');
  const keyDays = raw.key_days ?? 90;
  need(Number.isInteger(keyDays) && keyDays >= 1, 'key_days: 1 or more');
  const lifetime = raw.token_lifetime ?? 3600;
  need(Number.isInteger(lifetime) && lifetime >= 60 && lifetime <= 86400, 'token_lifetime: 60 to 86400 seconds');

  const clients = new Map((raw.clients ?? []).map((client) => [client.id, readClient(client, secrets)]));
  const users = new Map((raw.users ?? []).map((user) => [user.name, readUser(user)]));
  need(clients.size === (raw.clients ?? []).length, 'clients: an id occurs twice');
  need(users.size === (raw.users ?? []).length, 'users: a name occurs twice');
  // Both become `sub`: a user who is named like a client would pass for it.
  for (const name of users.keys()) need(!clients.has(name), `users: ${name} is also the id of a client`);
  const { address, port, tls, audiences } = raw;
  return { issuer: raw.issuer, address, port, tls, audiences, opaque, lifetime, keyDays, clients, users };
}

const makeKeys = () => Promise.all(['RS256', 'ES256'].map(async (alg) => {
  const jwk = await exportJWK((await generateKeyPair(alg, { extractable: true })).privateKey);
  return { ...jwk, alg, use: 'sig', kid: await calculateJwkThumbprint(jwk), made: now() };
}));

/**
 * The signing keys, RS256 first; new ones at the first start, when they are `keyDays` old, and where `rotate` is set.
 * The first of an algorithm signs; those before stay published until what they signed has expired.
 */
export async function loadKeys(path, { lifetime, keyDays, rotate = false }) {
  const held = existsSync(path) ? readPrivateJson(path).keys : [];
  const due = rotate || !held.length || now() - (held[0].made ?? 0) > keyDays * DAY;
  const past = due ? held.map((key) => ({ ...key, retired: key.retired ?? now() })) : held;
  const kept = past.filter(({ retired }) => !retired || now() - retired <= lifetime + SKEW);
  const keys = [...(due ? await makeKeys() : []), ...kept];
  if (due || kept.length < held.length) writePrivate(path, JSON.stringify({ keys }));
  return { keys };
}
