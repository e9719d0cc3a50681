// SPDX-License-Identifier: Apache-2.0
// One line of JSON an event on standard output. Tokens, codes and passwords never come here.
const short = (value) => (typeof value === 'string' ? value.slice(0, 200) : value);

export function log(event, fields = {}) {
  const entries = Object.entries(fields).map(([key, value]) => [key, short(value)]);
  process.stdout.write(`${JSON.stringify({ time: new Date().toISOString(), event, ...Object.fromEntries(entries) })}\n`);
}
