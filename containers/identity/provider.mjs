// SPDX-License-Identifier: Apache-2.0
// The OpenID provider: which flows, which tokens, which pages.
import { Provider, errors } from 'oidc-provider';
import { addTokenExchange } from './exchange.mjs';
import { interactions } from './interactions.mjs';
import { log } from './log.mjs';
import * as pages from './pages.mjs';

const MINUTE = 60;
const DAY = 86400;
// About the login, not about a service: these stay out of access tokens.
const LOGIN_SCOPES = new Set(['openid', 'offline_access']);

const now = () => Math.floor(Date.now() / 1000);

/** Where a form may lead, for Content-Security-Policy: loopback clients choose their port. */
function formTargets(clients) {
  const origins = [...clients.values()].flatMap(({ redirects }) => redirects.map((uri) => new URL(uri)))
    .map(({ protocol, hostname, host }) => `${protocol}//${protocol === 'http:' ? `${hostname}:*` : host}`);
  return [...new Set(origins)];
}

function logGrants(provider) {
  const grant = (ctx) => String(ctx.oidc?.params?.grant_type ?? '').split(':').pop();
  provider.on('grant.success', (ctx) => {
    const token = ctx.oidc.entities.AccessToken ?? ctx.oidc.entities.ClientCredentials;
    log('grant', {
      grant: grant(ctx), client: token.clientId, sub: token.accountId ?? token.clientId, audience: token.aud, scope: token.scope,
    });
  });
  provider.on('grant.error', (ctx, err) => {
    if (err.error === 'authorization_pending' || err.error === 'slow_down') return;
    log('grant_refused', { grant: grant(ctx), client: ctx.oidc?.client?.clientId, error: err.error, reason: err.error_detail ?? err.error_description });
  });
  provider.on('server_error', (ctx, err) => log('server_error', { path: ctx.path, error: err.message }));
}

/** Build the provider. `config` is from readConfig, `keys` from loadKeys, `store` is a Store. */
export function buildProvider({ config, keys, store }) {
  const { issuer, audiences, opaque, users, clients, lifetime } = config;

  function resourceServer(audience, client) {
    if (!audiences.includes(audience)) throw new errors.InvalidTarget('unknown audience');
    return {
      audience,
      accessTokenFormat: opaque.includes(audience) ? 'opaque' : 'jwt',
      accessTokenTTL: lifetime,
      jwt: { sign: { alg: 'RS256' } },
      scope: clients.get(client.clientId).scopes.filter((scope) => !LOGIN_SCOPES.has(scope)).join(' '),
    };
  }

  const html = (ctx, body) => {
    ctx.type = 'html';
    ctx.body = body;
  };

  const provider = new Provider(issuer, {
    jwks: keys,
    adapter: (kind) => store.adapter(kind),
    clients: [...clients.values()].map(({ metadata }) => metadata),
    scopes: [...new Set([...LOGIN_SCOPES, ...[...clients.values()].flatMap(({ scopes }) => scopes)])],
    claims: { openid: ['sub'], profile: ['name', 'preferred_username'], 'wlcg.groups': ['wlcg.groups'] },
    // Access tokens are for services, so there is no userinfo endpoint: the ID token says it all.
    conformIdTokenClaims: false,
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      deviceFlow: {
        enabled: true,
        userCodeInputSource: (ctx, form, out, err) => {
          const texts = { AbortedError: 'You cancelled.', NoCodeError: 'Enter a code.' };
          const error = err && (texts[err.name] ?? (err.userCode ? 'This code is wrong or no longer valid.' : 'This did not work. Start again.'));
          html(ctx, pages.deviceCode({ form, error }));
        },
        userCodeConfirmSource: (ctx, form, client, info, code) => html(ctx, pages.deviceConfirm({ form, client: client.clientName, code })),
        successSource: (ctx) => html(ctx, pages.deviceDone()),
      },
      dPoP: { enabled: false },
      introspection: {
        enabled: true,
        allowedPolicy: (ctx, client, token) => client.clientAuthMethod !== 'none' || token.clientId === client.clientId,
      },
      pushedAuthorizationRequests: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: (ctx, client, oneOf) => oneOf ?? audiences[0],
        getResourceServerInfo: (ctx, audience, client) => resourceServer(audience, client),
        useGrantedResource: () => true,
      },
      revocation: { enabled: true },
      rpInitiatedLogout: { enabled: false },
      userinfo: { enabled: false },
    },
    // WLCG Common JWT Profile 1.x
    extraTokenClaims: (ctx, token) => {
      const source = token.accountId ? users.get(token.accountId) : clients.get(token.clientId);
      const groups = token.scopes.has('wlcg.groups') ? { 'wlcg.groups': source?.groups ?? [] } : {};
      // JWTs have `sub` by themselves; the answer of introspection has none where a client stands for itself.
      return { 'wlcg.ver': '1.0', nbf: now(), sub: token.accountId ?? token.clientId, ...groups };
    },
    findAccount: (ctx, name) => {
      const user = users.get(name);
      return user && {
        accountId: name,
        claims: () => ({ sub: name, name, preferred_username: name, 'wlcg.groups': user.groups }),
      };
    },
    interactions: { url: (ctx, { uid }) => `/interaction/${uid}` },
    issueRefreshToken: (ctx, client, source) => client.grantTypeAllowed('refresh_token') && source.scopes.has('offline_access'),
    pkce: { required: (ctx, client) => client.clientAuthMethod === 'none' },
    renderError: (ctx, { error, error_description: description }) => html(ctx, pages.failure({ error, description })),
    rotateRefreshToken: true,
    ttl: {
      AccessToken: lifetime,
      AuthorizationCode: MINUTE,
      ClientCredentials: lifetime,
      DeviceCode: 10 * MINUTE,
      Grant: 90 * DAY,
      IdToken: lifetime,
      Interaction: 10 * MINUTE,
      RefreshToken: 30 * DAY,
      Session: 60 * MINUTE,
    },
  });

  const { host } = new URL(issuer);
  const headers = pages.securityHeaders(formTargets(clients));
  provider.use(async (ctx, next) => {
    ctx.set(headers);
    if (ctx.path === '/health') {
      ctx.body = { status: 'ok' };
      return;
    }
    // The addresses in answers are the issuer's, whatever name a request came by.
    ctx.req.headers.host = host;
    await next();
  });
  provider.use(interactions(provider, config));
  addTokenExchange(provider, { issuer, keys, audiences, users, resourceServer });
  logGrants(provider);
  return provider;
}
