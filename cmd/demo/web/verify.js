// The page compares its own figures with the database's, all the time. It reads /api/check: the figures in the tables,
// at one instant; waits until the page shows as many trades of each market; and compares, market by market, to the last
// millionth. A market's version counts its trades, so the same version must mean the same figures.

const EVERY_MS = 1_500;
/** How long the page may take to get to the database's position before the line says so. */
const ARRIVE_MS = 4_000;
/** So many differing checks in a row make the page read everything again: the last net. */
const DIFFERENCES = 2;

const FIELDS = ['version', 'price', 'yes', 'no', 'volume'];

export class Verifier {
  /** checks: how many came to a result. at: the offset of each market at the last equal one. */
  state = { kind: 'starting', checks: 0, equal: 0, differences: 0, inARow: 0, behind: 0, waiting: 0, offsets: {}, total: 0, markets: 0, at: 0, detail: '' };

  constructor({ store, read, reread, onChange }) {
    Object.assign(this, { store, read, reread, onChange });
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
    if (!this.store.complete) return;
    let theirs;
    try {
      theirs = await this.read();
    } catch (err) {
      s.kind = 'unread';
      s.detail = err.status ? err.message : 'The exchange does not answer; asking again.';
      return;
    }
    s.waiting = theirs.positions.reduce((sum, p) => sum + p.pending.length, 0);

    const deadline = performance.now() + ARRIVE_MS;
    for (;;) {
      s.behind = this.#behind(theirs);
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
    this.#compare(theirs);
  }

  /** How many trades the page is short of what the database had. */
  #behind(theirs) {
    return theirs.markets.reduce((sum, m) => sum + Math.max(0, m.version - this.store.markets.get(m.id).version), 0);
  }

  #compare(theirs) {
    const s = this.state;
    const offsets = {};
    const differ = [];
    let spent = 0;
    let total = 0;
    for (const m of theirs.markets) {
      const mine = this.store.markets.get(m.id).figures.findLast((f) => f.version === m.version);
      if (!mine) return; // read anew meanwhile: the next check compares
      for (const field of FIELDS) {
        if (mine[field] !== m[field]) differ.push(`${m.id}: ${field} is ${mine[field]}, the database has ${m[field]}`);
      }
      for (const [field, name] of [['mineYes', 'yes'], ['mineNo', 'no'], ['mineSpent', 'spent']]) {
        if (mine[field] !== m.mine[name]) differ.push(`${m.id}: your ${name} is ${mine[field]}, the database has ${m.mine[name]}`);
      }
      spent += mine.mineSpent;
      offsets[m.id] = m.version;
      total += m.version;
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
