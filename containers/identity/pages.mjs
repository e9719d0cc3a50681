// SPDX-License-Identifier: Apache-2.0
// The few pages people see. Nothing is loaded from elsewhere; everything variable is escaped.
import { createHash } from 'node:crypto';

const STYLE = `
:root{color-scheme:light dark;--ink:#1d2530;--soft:#5b6675;--line:#d5dae1;--card:#fff;--page:#eef1f5;--key:#1f5fa8;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa5b4;--line:#3a4452;--card:#1c232d;--page:#12171e;--key:#5b9be6;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1rem;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{width:100%;max-width:24rem;padding:2rem;background:var(--card);border:1px solid var(--line);border-radius:12px}
h1{margin:0 0 1rem;font-size:1.35rem}
header{margin:0 0 1.5rem;color:var(--soft);font-size:.85rem;overflow-wrap:anywhere}
label{display:block;margin:0 0 1rem;font-size:.9rem;color:var(--soft)}
input:not([type=hidden]){display:block;width:100%;margin-top:.25rem;padding:.6rem .7rem;font:inherit;color:inherit;background:transparent;border:1px solid var(--line);border-radius:8px}
button{width:100%;margin-top:.75rem;padding:.65rem;font:inherit;font-weight:600;border:1px solid var(--key);border-radius:8px;color:var(--card);background:var(--key);cursor:pointer}
button.plain{color:var(--soft);background:transparent;border-color:var(--line)}
:focus-visible{outline:3px solid var(--key);outline-offset:2px}
.bad{color:var(--bad)}
ul{padding-left:1.2rem}
code{font-family:ui-monospace,monospace;overflow-wrap:anywhere}
code.big{display:block;margin:1rem 0;font-size:1.8rem;letter-spacing:.08em;text-align:center}
`;
const STYLE_HASH = `'sha256-${createHash('sha256').update(STYLE).digest('base64')}'`;
const ENTITIES = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };

export const escape = (value) => String(value).replace(/[&<>"']/g, (character) => ENTITIES[character]);

/**
 * Headers of every answer. Browsers apply form-action to the redirect after a form too,
 * so the clients' addresses are part of it. script-src is there for the library to add its hash.
 */
export function securityHeaders(formTargets) {
  return {
    'content-security-policy': `default-src 'none'; style-src ${STYLE_HASH}; script-src 'self'; base-uri 'none'; `
      + `frame-ancestors 'none'; form-action ${["'self'", ...formTargets].join(' ')}`,
    'referrer-policy': 'no-referrer',
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
  };
}

function page(title, body) {
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<main>
<header>dodas identity</header>
<h1>${escape(title)}</h1>
${body}
</main>
</body>
</html>
`;
}

const warning = (text) => (text ? `<p class="bad" role="alert">${escape(text)}</p>` : '');
const cancel = (action) => `<form method="post" action="${escape(action)}"><button class="plain">Cancel</button></form>`;

export const login = ({ client, base, name = '', error }) => page('Sign in', `
<p>to continue to <strong>${escape(client)}</strong></p>
${warning(error)}
<form method="post" action="${escape(base)}/login">
<label>User name<input name="name" value="${escape(name)}" autocomplete="username" autocapitalize="none" required ${name ? '' : 'autofocus'}></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required ${name ? 'autofocus' : ''}></label>
<button>Sign in</button>
</form>
${cancel(`${base}/cancel`)}`);

export const consent = ({ client, base, account, scopes, audiences }) => page('Allow access?', `
<p><strong>${escape(client)}</strong> asks to act for <strong>${escape(account)}</strong>:</p>
<ul>${scopes.map((scope) => `<li><code>${escape(scope)}</code></li>`).join('')}</ul>
${audiences.length ? `<p>at ${audiences.map((audience) => `<code>${escape(audience)}</code>`).join(', ')}</p>` : ''}
<form method="post" action="${escape(base)}/consent"><button autofocus>Allow</button></form>
${cancel(`${base}/cancel`)}`);

// The form comes from oidc-provider, with its token against cross-site requests in it.
export const deviceCode = ({ form, error }) => page('Connect a device', `
${warning(error)}
<p>Enter the code that your terminal shows.</p>
${form}
<button type="submit" form="op.deviceInputForm">Continue</button>`);

export const deviceConfirm = ({ form, client, code }) => page('Is this your device?', `
<p><strong>${escape(client)}</strong> should show this code:</p>
<code class="big">${escape(code)}</code>
<p>If you did not start this, or the code differs, cancel.</p>
${form}
<button type="submit" form="op.deviceConfirmForm" autofocus>Continue</button>
<button type="submit" form="op.deviceConfirmForm" class="plain" name="abort" value="yes">Cancel</button>`);

export const deviceDone = () => page('Signed in', '<p>You can close this page and return to your terminal.</p>');

export const failure = ({ error, description }) => page('This did not work', `
${warning(description ?? error)}
<p><code>${escape(error)}</code></p>`);
