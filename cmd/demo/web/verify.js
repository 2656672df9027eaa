// The page compares its own figures with the database's, all the time. It reads /api/check: a snapshot of the figures
// with the position of each topic; waits until the page has applied as many events; and compares, market by market,
// to the last millionth. A position is the offset, plus the events that the snapshot held before they had one.

const EVERY_MS = 1_500;
/** How long the page may take to get to the database's position before the line says so. */
const ARRIVE_MS = 4_000;
/** So many differing checks in a row make the page read everything again: the last net. */
const DIFFERENCES = 2;

const FIELDS = ['version', 'price', 'yes', 'no', 'volume'];

export class Verifier {
  /** checks: how many came to a result. at: the offset of each market at the last equal one. */
  state = { kind: 'starting', checks: 0, equal: 0, differences: 0, inARow: 0, behind: 0, waiting: 0, offsets: {}, total: 0, markets: 0, at: 0, detail: '' };

  constructor({ store, read, position, reread, onChange }) {
    Object.assign(this, { store, read, position, reread, onChange });
  }

  async run() {
    for (;;) {
      const began = performance.now();
      await this.check();
      this.onChange(this.state);
      await new Promise((done) => setTimeout(done, Math.max(200, EVERY_MS - (performance.now() - began))));
    }
  }

  async check() {
    const s = this.state;
    if (this.store.markets.size === 0) return;
    let theirs;
    try {
      theirs = await this.read();
    } catch (err) {
      s.kind = 'unread';
      s.detail = err.status ? err.message : 'The exchange does not answer; asking again.';
      return;
    }
    const cursors = new Map(theirs.positions.map((p) => {
      const offset = Number(p.cursor.slice(p.cursor.lastIndexOf(':') + 1));
      return [p.topic, { offset, included: offset + p.pending.length, waiting: p.pending.length, epoch: p.epoch }];
    }));
    s.waiting = [...cursors.values()].reduce((sum, c) => sum + c.waiting, 0);

    const deadline = performance.now() + ARRIVE_MS;
    for (;;) {
      s.behind = this.#behind(cursors);
      if (s.behind === 0 || performance.now() > deadline) break;
      if (performance.now() > deadline - ARRIVE_MS + 400) {
        s.kind = 'behind';
        this.onChange(s);
      }
      await new Promise((done) => setTimeout(done, 40));
    }
    if (s.behind > 0) {
      s.kind = 'behind';
      return;
    }
    this.#compare(theirs, cursors);
  }

  /** How many events the page is short of the database's position. */
  #behind(cursors) {
    let behind = 0;
    for (const m of this.store.markets.values()) {
      const p = this.position(m.id);
      behind += Math.max(0, cursors.get(`market:${m.id}`).included - (p.offset + p.pending));
    }
    return behind;
  }

  #compare(theirs, cursors) {
    const s = this.state;
    const offsets = {};
    const differ = [];
    let spent = 0;
    let total = 0;
    for (const m of theirs.markets) {
      const cursor = cursors.get(`market:${m.id}`);
      const mine = this.store.markets.get(m.id).figures.findLast((f) => f.included === cursor.included);
      if (!mine) return; // read anew meanwhile: the next check compares
      for (const field of FIELDS) {
        if (mine[field] !== m[field]) differ.push(`${m.id}: ${field} is ${mine[field]}, the database has ${m[field]}`);
      }
      for (const [field, name] of [['mineYes', 'yes'], ['mineNo', 'no'], ['mineSpent', 'spent']]) {
        if (mine[field] !== m.mine[name]) differ.push(`${m.id}: your ${name} is ${mine[field]}, the database has ${m.mine[name]}`);
      }
      spent += mine.mineSpent;
      offsets[m.id] = cursor.included;
      total += cursor.included;
    }
    if (theirs.balance != null && this.store.trader && this.store.trader.deposit - spent !== theirs.balance) {
      differ.push(`balance is ${this.store.trader.deposit - spent}, the database has ${theirs.balance}`);
    }
    s.checks++;
    s.offsets = offsets;
    s.total = total;
    s.markets = theirs.markets.length;
    s.at = Date.now();
    if (differ.length === 0) {
      s.kind = 'equal';
      s.equal++;
      s.inARow = 0;
      s.detail = '';
      return;
    }
    s.kind = 'different';
    s.differences++;
    s.detail = differ[0];
    if (++s.inARow >= DIFFERENCES) {
      s.inARow = 0;
      this.reread('the figures differ from the database');
    }
  }
}
