// SPDX-License-Identifier: Apache-2.0
// What has to survive a restart (grants, refresh tokens, device codes, sessions), in one SQLite file.
import { DatabaseSync } from 'node:sqlite';
import { errors } from 'oidc-provider';

const LIMIT = 5000; // records of one kind; the oldest go first
const SWEEP_SECONDS = 60;
const SWEEP_WRITES = 500;

const now = () => Math.floor(Date.now() / 1000);
const decode = (row) => row && JSON.parse(row.payload);

export class Store {
  #writes = 0;

  constructor(path, limit = LIMIT) {
    this.limit = limit;
    this.db = new DatabaseSync(path);
    this.db.exec(`
      PRAGMA synchronous = FULL;
      CREATE TABLE IF NOT EXISTS record (
        kind TEXT, id TEXT, payload TEXT NOT NULL, expires INTEGER NOT NULL,
        grant_id TEXT, uid TEXT, user_code TEXT, PRIMARY KEY (kind, id));
      CREATE INDEX IF NOT EXISTS by_grant ON record (kind, grant_id);
      CREATE INDEX IF NOT EXISTS by_uid ON record (kind, uid);
      CREATE INDEX IF NOT EXISTS by_user_code ON record (kind, user_code);`);
    const prepare = (sql) => this.db.prepare(sql);
    this.sql = {
      find: prepare('SELECT payload FROM record WHERE kind = ? AND id = ? AND expires > ?'),
      uid: prepare('SELECT payload FROM record WHERE kind = ? AND uid = ? AND expires > ?'),
      userCode: prepare('SELECT payload FROM record WHERE kind = ? AND user_code = ? AND expires > ?'),
      upsert: prepare('INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?)'),
      consume: prepare(`UPDATE record SET payload = json_set(payload, '$.consumed', ?)
        WHERE kind = ? AND id = ? AND payload ->> '$.consumed' IS NULL`),
      destroy: prepare('DELETE FROM record WHERE kind = ? AND id = ?'),
      revoke: prepare('DELETE FROM record WHERE kind = ? AND grant_id = ?'),
      expire: prepare('DELETE FROM record WHERE expires <= ?'),
      kinds: prepare('SELECT kind FROM record GROUP BY kind HAVING count(*) > ?'),
      trim: prepare(`DELETE FROM record WHERE rowid IN
        (SELECT rowid FROM record WHERE kind = ? ORDER BY rowid DESC LIMIT -1 OFFSET ?)`),
    };
    this.sweep();
    this.timer = setInterval(() => this.sweep(), SWEEP_SECONDS * 1000).unref();
  }

  /** Drop what has expired and what is over the limit. */
  sweep() {
    this.sql.expire.run(now());
    for (const { kind } of this.sql.kinds.all(this.limit)) this.sql.trim.run(kind, this.limit);
  }

  put(...values) {
    this.sql.upsert.run(...values);
    this.#writes += 1;
    if (this.#writes % SWEEP_WRITES === 0) this.sweep();
  }

  close() {
    clearInterval(this.timer);
    this.db.close();
  }

  /** The adapter oidc-provider wants for one kind of record. */
  adapter(kind) {
    const { sql } = this;
    return {
      find: async (id) => decode(sql.find.get(kind, id, now())),
      findByUid: async (uid) => decode(sql.uid.get(kind, uid, now())),
      findByUserCode: async (code) => decode(sql.userCode.get(kind, code, now())),
      upsert: async (id, payload, ttl) => this.put(kind, id, JSON.stringify(payload), now() + ttl,
        payload.grantId ?? null, payload.uid ?? null, payload.userCode ?? null),
      consume: async (id) => {
        // Of two requests at once with the same token one loses here.
        if (sql.consume.run(now(), kind, id).changes !== 1) throw new errors.InvalidGrant('already used');
      },
      destroy: async (id) => { sql.destroy.run(kind, id); },
      revokeByGrantId: async (grantId) => { sql.revoke.run(kind, grantId); },
    };
  }
}
