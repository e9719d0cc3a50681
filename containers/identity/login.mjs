// SPDX-License-Identifier: Apache-2.0
// Passwords, and the pause that grows with each wrong one.
import { scrypt, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';

// OWASP's recommendation for 16 MiB; whoever writes config.json uses the same numbers.
const SCRYPT = { N: 16384, r: 8, p: 5 };
const FREE = { name: 5, address: 20 }; // wrong attempts before there is a pause
const MAX_PAUSE = 300; // seconds
const FORGET = 900; // seconds after the last attempt
const MAX_ENTRIES = 10000;

const derive = promisify(scrypt);
const nobody = { salt: Buffer.alloc(16), hash: Buffer.alloc(32) };

/** Whether the password is right; an unknown user costs the same time. */
export async function verifyPassword(user, password) {
  const { salt, hash } = user ?? nobody;
  return timingSafeEqual(await derive(password, salt, 32, SCRYPT), hash) && user !== undefined;
}

export class BackOff {
  #entries = new Map();

  /** Seconds to wait before this name may be tried, or this address may try (0: go ahead). */
  pause(name, address, now = Date.now() / 1000) {
    const until = [`name ${name}`, `address ${address}`].map((key) => this.#entries.get(key)?.until ?? 0);
    return Math.max(0, Math.ceil(Math.max(...until) - now));
  }

  /** Count an attempt, before the password is checked: parallel guesses gain nothing. */
  attempt(name, address, now = Date.now() / 1000) {
    this.#count(`name ${name}`, FREE.name, now);
    this.#count(`address ${address}`, FREE.address, now);
    for (const key of this.#entries.keys()) {
      if (this.#entries.size <= MAX_ENTRIES) break;
      this.#entries.delete(key);
    }
  }

  /** Take back the attempt of a right password; other names tried from the address stay counted. */
  success(name, address) {
    this.#entries.delete(`name ${name}`);
    const entry = this.#entries.get(`address ${address}`);
    if (entry) Object.assign(entry, { count: entry.count - 1, until: 0 });
  }

  #count(key, free, now) {
    const last = this.#entries.get(key);
    const count = last && now - last.seen < FORGET ? last.count + 1 : 1;
    const pause = count < free ? 0 : Math.min(2 ** (count - free + 1), MAX_PAUSE);
    this.#entries.delete(key); // insertion order is the order of age
    this.#entries.set(key, { count, seen: now, until: now + pause });
  }
}
