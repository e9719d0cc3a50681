// SPDX-License-Identifier: Apache-2.0
// Sign-in and consent: what oidc-provider hands over when it needs a person.
import { errors } from 'oidc-provider';
import { log } from './log.mjs';
import { BackOff, verifyPassword } from './login.mjs';
import * as pages from './pages.mjs';

const MAX_BODY = 4096;
const MAX_FIELD = 256;
const PATH = /^\/interaction\/([\w-]{1,64})(?:\/(login|consent|cancel))?$/;

async function readForm(ctx) {
  if (!ctx.is('application/x-www-form-urlencoded')) throw new errors.InvalidRequest('not a form');
  const chunks = [];
  let size = 0;
  for await (const chunk of ctx.req) {
    size += chunk.length;
    if (size > MAX_BODY) throw new errors.InvalidRequest('form too large');
    chunks.push(chunk);
  }
  const form = new URLSearchParams(Buffer.concat(chunks).toString());
  return (name) => (form.get(name) ?? '').slice(0, MAX_FIELD);
}

/** The Koa middleware for /interaction/<uid>. */
export function interactions(provider, { issuer, users }) {
  const backOff = new BackOff();
  const base = (uid) => `/interaction/${uid}`;

  function show(ctx, status, body) {
    ctx.status = status;
    ctx.type = 'html';
    ctx.body = body;
  }

  async function clientName(details) {
    return (await provider.Client.find(details.params.client_id)).clientName;
  }

  async function render(ctx, details) {
    const { prompt, uid, session } = details;
    const client = await clientName(details);
    if (prompt.name === 'login') return show(ctx, 200, pages.login({ client, base: base(uid) }));
    const resources = prompt.details.missingResourceScopes ?? {};
    const scopes = [...(prompt.details.missingOIDCScope ?? []), ...Object.values(resources).flat()];
    // A native client asks each time, also when all was granted before.
    const asked = scopes.length ? scopes : (details.params.scope ?? '').split(' ').filter(Boolean);
    return show(ctx, 200, pages.consent({
      client, base: base(uid), account: session.accountId, scopes: asked, audiences: Object.keys(resources),
    }));
  }

  async function login(ctx, details) {
    const field = await readForm(ctx);
    const name = field('name');
    const address = ctx.req.socket.remoteAddress;
    const again = async (status, error) => show(ctx, status,
      pages.login({ client: await clientName(details), base: base(details.uid), name, error }));

    const pause = backOff.pause(name, address);
    if (pause > 0) {
      log('login_paused', { address, seconds: pause });
      ctx.set('retry-after', String(pause));
      return again(429, `Too many attempts. Try again in ${pause} seconds.`);
    }
    backOff.attempt(name, address);
    const user = users.get(name);
    if (!await verifyPassword(user, field('password'))) {
      // A name that does not exist may be a password in the wrong field.
      log('login_failed', { sub: user?.name, address });
      return again(401, 'User name or password is wrong.');
    }
    backOff.success(name, address);
    if (details.session?.accountId && details.session.accountId !== name) {
      return again(409, `This browser is signed in as ${details.session.accountId}. Close it first.`);
    }
    log('login', { sub: name, address });
    const result = { login: { accountId: name, remember: false } };
    return provider.interactionFinished(ctx.req, ctx.res, result, { mergeWithLastSubmission: false });
  }

  async function consent(ctx, { prompt, grantId, session, params }) {
    const grant = (grantId && await provider.Grant.find(grantId))
      || new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    const { missingOIDCScope, missingOIDCClaims, missingResourceScopes } = prompt.details;
    if (missingOIDCScope) grant.addOIDCScope(missingOIDCScope.join(' '));
    if (missingOIDCClaims) grant.addOIDCClaims(missingOIDCClaims);
    for (const [resource, scopes] of Object.entries(missingResourceScopes ?? {})) {
      grant.addResourceScope(resource, scopes.join(' '));
    }
    const result = { consent: { grantId: await grant.save() } };
    return provider.interactionFinished(ctx.req, ctx.res, result);
  }

  function cancel(ctx) {
    const result = { error: 'access_denied', error_description: 'the user cancelled' };
    return provider.interactionFinished(ctx.req, ctx.res, result, { mergeWithLastSubmission: false });
  }

  async function dispatch(ctx, uid, action) {
    // Finds the interaction by its cookie, which other sites' forms do not carry (SameSite=Lax).
    const details = await provider.interactionDetails(ctx.req, ctx.res);
    if (details.uid !== uid) throw new errors.SessionNotFound('another sign-in is open in this browser');
    if (ctx.method === 'GET' && !action) return render(ctx, details);
    if (ctx.method !== 'POST' || !action) throw new errors.InvalidRequest('unexpected method');
    if (ctx.get('origin') && ctx.get('origin') !== issuer) throw new errors.InvalidRequest('the form is from another site');
    if (action === 'cancel') return cancel(ctx);
    if (action !== details.prompt.name) throw new errors.InvalidRequest('this step is not asked for');
    if (action === 'login') return login(ctx, details);
    return consent(ctx, details);
  }

  return async (ctx, next) => {
    const match = PATH.exec(ctx.path);
    if (!match) return next();
    ctx.set('cache-control', 'no-store');
    try {
      await dispatch(ctx, match[1], match[2]);
      // interactionFinished answers on the raw response.
      if (ctx.res.writableEnded) ctx.respond = false;
    } catch (err) {
      if (!err.expose) throw err;
      show(ctx, err.statusCode, pages.failure({ error: err.error, description: err.error_description }));
    }
    return undefined;
  };
}
