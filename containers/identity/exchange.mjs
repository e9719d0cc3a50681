// SPDX-License-Identifier: Apache-2.0
// Token exchange (RFC 8693): a service trades a user's access token for one of its own, or for a refresh token.
import { createLocalJWKSet, jwtVerify } from 'jose';
import { errors } from 'oidc-provider';

export const GRANT = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const MAX_TOKEN = 16384;

const words = (text) => (text ?? '').split(' ').filter(Boolean);
const now = () => Math.floor(Date.now() / 1000);

function publicKeys({ keys }) {
  return { keys: keys.map(({ kty, n, e, crv, x, y, kid, alg, use }) => ({ kty, n, e, crv, x, y, kid, alg, use })) };
}

async function verify(params, keys, issuer) {
  for (const name of ['subject_token_type', 'requested_token_type']) {
    if ((name === 'subject_token_type' || params[name]) && params[name] !== ACCESS_TOKEN) {
      throw new errors.InvalidRequest(`${name} must be ${ACCESS_TOKEN}`);
    }
  }
  if (params.actor_token) throw new errors.InvalidRequest('actor_token is not supported');
  if (!params.subject_token || params.subject_token.length > MAX_TOKEN) throw new errors.InvalidRequest('subject_token');
  try {
    // `typ` keeps out ID tokens, which are signed with the same keys.
    const { payload } = await jwtVerify(params.subject_token, keys,
      { issuer, typ: 'at+jwt', algorithms: ['RS256', 'ES256'], requiredClaims: ['sub', 'aud', 'exp', 'scope'] });
    return payload;
  } catch {
    throw new errors.InvalidGrant('subject_token is not valid');
  }
}

/** Scopes to grant: what the subject token has, or less; offline_access on top if the client may refresh. */
function narrow(params, subject, client) {
  const allowed = new Set(words(subject.scope));
  if (client.grantTypeAllowed('refresh_token')) allowed.add('offline_access');
  const own = new Set(words(client.scope));
  const requested = params.scope ? words(params.scope) : words(subject.scope).filter((scope) => own.has(scope));
  const excess = requested.filter((scope) => !allowed.has(scope) || !own.has(scope));
  if (excess.length) throw new errors.InvalidScope('scope exceeds the subject token or the client', excess.join(' '));
  if (!requested.length) throw new errors.InvalidScope('no scope is left');
  return requested;
}

/** Add the grant to a provider; `resourceServer(audience, client)` is the provider's own rule for audiences. */
export function addTokenExchange(provider, { issuer, keys, audiences, users, resourceServer }) {
  const verifyWith = createLocalJWKSet(publicKeys(keys));

  provider.registerGrantType(GRANT, async (ctx) => {
    const { client, params } = ctx.oidc;
    const subject = await verify(params, verifyWith, issuer);
    if (!users.has(subject.sub)) throw new errors.InvalidGrant('subject_token is not a user\'s');
    const scopes = narrow(params, subject, client);
    const audience = params.audience ?? params.resource ?? audiences[0];
    const server = new provider.ResourceServer(audience, resourceServer(audience, client));
    const scope = scopes.filter((name) => server.scopes.has(name)).join(' ');

    const grant = new provider.Grant({ accountId: subject.sub, clientId: client.clientId });
    grant.addOIDCScope(scopes.join(' '));
    grant.addResourceScope(audience, scope);
    const grantId = await grant.save();
    const source = { accountId: subject.sub, client, grantId, gty: 'token_exchange' };

    // The new access token does not outlive the old one; only a refresh token does.
    const expiresIn = Math.min(server.accessTokenTTL, subject.exp - now());
    if (expiresIn < 1) throw new errors.InvalidGrant('subject_token is not valid');
    const accessToken = new provider.AccessToken({ ...source, scope, expiresIn });
    accessToken.resourceServer = server;
    ctx.oidc.entity('AccessToken', accessToken);
    const body = {
      access_token: await accessToken.save(),
      issued_token_type: ACCESS_TOKEN,
      token_type: 'Bearer',
      expires_in: accessToken.expiration,
      scope,
    };
    if (scopes.includes('offline_access')) {
      const refreshToken = new provider.RefreshToken({
        ...source, scope: scopes.join(' '), resource: audience, authTime: subject.auth_time ?? subject.iat, claims: {}, rotations: 0,
      });
      ctx.oidc.entity('RefreshToken', refreshToken);
      body.refresh_token = await refreshToken.save();
    }
    ctx.body = body;
  }, ['subject_token', 'subject_token_type', 'requested_token_type', 'audience', 'resource', 'scope', 'actor_token'], []);
}
