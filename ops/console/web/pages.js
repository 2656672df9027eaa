// The pages that are one list.

import { button } from './act.js';
import { get, me, post } from './api.js';
import { age, ago, card, count, h, keyed, level, plural, put, table, upTo, when } from './dom.js';
import { nodeTable } from './nodetable.js';
import { PARTITION, partitionState } from './pipeline.js';

const notice = (err) => h('p', { class: 'notice', 'data-level': 'problem', role: 'alert' }, h('span', { class: 'mark', 'aria-hidden': 'true' }), h('span', {}, err.message));

export function partitions(el) {
  const LEVEL = { paused: 'warning', stuck: 'problem', busy: 'unknown', owned: 'good', idle: 'good' };
  const t = table([
    ['Partition', (p) => h('b', {}, p.id), 'num'],
    ['State', (p) => [level(LEVEL[partitionState(p)], PARTITION[partitionState(p)][1]), p.paused_at && h('span', { class: 'why' }, `${p.paused_by}${p.paused_why ? `: ${p.paused_why}` : ''}, `, ago(p.paused_at))]],
    ['Sequenced', (p) => count(p.seq), 'num'],
    ['Published', (p) => count(p.published), 'num'],
    ['Waiting', (p) => upTo(p.waiting), 'num'],
    ['Oldest', (p) => age(Math.max(p.waiting_s, p.unpublished_s)), 'num'],
    ['Drained by', (p) => (p.owner ? p.by || 'a worker' : h('span', { class: 'muted' }, 'nobody'))],
    ['Term', (p) => count(p.term), 'num'],
    ['', (p) => (p.paused_at ? button('Resume…', { action: 'resume', partition: p.id }) : button('Pause…', { action: 'pause', partition: p.id }, { danger: true }))],
  ], null, 'Not known while the database is away.');
  el.append(h('h1', {}, 'Partitions'), h('p', { class: 'muted' }, 'Each holds a thirty-second of all topics. One that nobody drains is normal while nothing waits in it.'), card(null, t));
  return {
    status: (s) => {
      const by = {};
      for (const n of s.nodes) for (const p of n.identity?.worker?.partitions ?? []) by[p] = n.identity.worker.node;
      t.show(s.partitions.map((p) => ({ ...p, by: by[p.id], owner: !!p.owner, may: me.may.act })), (p) => p.id);
    },
  };
}

export function nodes(el) {
  const t = nodeTable(true);
  const gone = h('ul', { class: 'sources' });
  const was = card('Gone within a quarter of an hour', gone);
  el.append(h('h1', {}, 'Nodes'), h('p', { class: 'muted' }, 'Workers and broadcasters that are connected to the database, or were named with --node. Draining sends a broadcaster’s clients elsewhere, and it takes no more.'), card(null, t), was);
  return {
    status: (s) => {
      t.show(s);
      was.hidden = s.gone.length === 0;
      keyed(gone, s.gone, (g) => g.address, (g) => h('li', {}, level('unknown', 'gone'), h('b', {}, g.name), h('span', { class: 'muted' }, `${g.kind} at ${g.address}, was here `, ago(g.seen_at))));
    },
  };
}

export function clients(el, params) {
  const node = params.get('node') ?? '';
  const subject = params.get('subject') ?? '';
  const order = params.get('order') === 'behind' ? 'behind' : 'session';
  const go = (more) => { location.hash = `#/clients?${new URLSearchParams(Object.entries({ node, subject, order, ...more }).filter(([, v]) => v && v !== 'session'))}`; };
  const search = h('input', { type: 'search', value: subject, placeholder: 'Subject of the token', 'aria-label': 'Subject of the token', spellcheck: false, autocomplete: 'off' });
  const body = h('div', { class: 'col' }, h('p', { class: 'muted' }, 'Asking the nodes…'));
  el.append(h('header', { class: 'page-head' }, h('h1', {}, 'Clients'), h('div', { class: 'acts' }, subject && button(`Disconnect ${subject}…`, { action: 'disconnect', subject }, { danger: true }))),
    h('form', { class: 'tools', role: 'search', onsubmit: (e) => { e.preventDefault(); go({ subject: search.value.trim(), order: '' }); } }, search, h('button', { type: 'submit' }, 'Search'),
      h('div', { class: 'segments', role: 'group', 'aria-label': 'Which' },
        h('button', { type: 'button', 'aria-pressed': String(order === 'session'), onclick: () => go({ order: '' }) }, 'All'),
        h('button', { type: 'button', 'aria-pressed': String(order === 'behind'), onclick: () => go({ order: 'behind', subject: '' }) }, 'Furthest behind')),
      node && h('a', { href: '#/clients' }, 'All nodes')), body);
  const columns = [
    ['Session', (c) => h('code', {}, c.session)],
    ['Subject', (c) => (c.subject ? h('a', { href: `#/clients?${new URLSearchParams({ subject: c.subject })}` }, c.subject) : h('span', { class: 'muted' }, 'none'))],
    ['Address', (c) => c.address ?? h('span', { class: 'muted' }, 'this machine')],
    ['Connected for', (c) => ago(c.since, '')],
    ['Subscriptions', (c) => count(c.subscriptions), 'num'],
    ['Behind', (c) => (c.behind ? h('b', {}, plural(c.behind, 'event')) : '0'), 'num'],
    ['State', (c) => (c.behind > 0 ? level('warning', c.slow ? 'takes nothing' : c.waiting ? 'is being sent to' : 'behind') : level('good', 'up to date'))],
    ['', (c) => (c.subject ? button('Disconnect…', { action: 'disconnect', subject: c.subject }, { danger: true, handle: c.session }) : '')],
  ];
  const PAGE = 50;
  async function load() {
    try {
      const list = await get('clients', { node, subject, order });
      body.replaceChildren(...list.map((n) => {
        const t = table(columns, (n.clients ?? []).slice(0, PAGE), order === 'behind' ? 'Nobody is behind here. That is normal.' : subject ? 'No connection of this subject here.' : 'Nobody is connected here.');
        const more = h('button', { type: 'button', class: 'more', hidden: order === 'behind' || (n.clients ?? []).length <= PAGE }, 'Show more');
        let last = n.clients?.[PAGE - 1];
        more.addEventListener('click', async () => {
          more.disabled = true;
          try {
            const [next] = await get('clients', { node: n.address, subject, after: last.session });
            t.add((next.clients ?? []).slice(0, PAGE));
            more.hidden = (next.clients ?? []).length <= PAGE;
            last = next.clients?.[PAGE - 1];
          } catch (err) {
            more.replaceWith(notice(err));
          }
          more.disabled = false;
        });
        return h('section', { class: 'card' }, h('header', { class: 'card-head' }, h('h2', {}, n.node), h('span', { class: 'muted' }, plural(n.total, 'client'))), n.error ? notice({ message: n.error }) : '', n.error ? '' : t, more);
      }));
      if (list.length === 0) body.replaceChildren(card(null, h('p', { class: 'empty' }, 'No broadcaster was found.')));
    } catch (err) {
      body.replaceChildren(notice(err));
    }
  }
  load();
  return { changed: load };
}

export function audit(el) {
  const t = table([
    ['Record', (r) => count(r.id), 'num'],
    ['When', (r) => when(r.at)],
    ['Who', (r) => h('b', {}, r.who)],
    ['Role', (r) => h('span', { class: 'muted' }, r.role)],
    ['Action', (r) => r.action],
    ['Target', (r) => h('span', { class: 'name' }, r.target)],
    ['Why', (r) => r.detail?.why ?? ''],
    ['Result', (r) => (!r.result ? level('busy', 'under way, or not known') : r.result.startsWith('done') ? level('good', r.result) : level('problem', r.result))],
  ], null, 'Nobody has done anything yet.');
  const more = h('button', { type: 'button', class: 'more', hidden: true, onclick: () => load(rows.at(-1)) }, 'Show more');
  const problem = h('div');
  const epochs = table([['Epoch', (e) => h('code', {}, e.name)], ['Began', (e) => when(e.began_at)], ['Ago', (e) => ago(e.began_at, '')], ['Why', (e) => e.reason]], null, '');
  el.append(h('h1', {}, 'Audit'), card('What operators did', problem, t, more),
    h('section', { class: 'card' }, h('header', { class: 'card-head' }, h('h2', {}, 'Histories of this database'), button('Begin a new epoch…', { action: 'epoch bump' }, { danger: true })), epochs));
  let rows = [];
  async function load(after) {
    try {
      const page = await get('audit', { before: after?.id });
      rows = [...(after ? rows : []), ...page.rows];
      t.show(rows, (r) => r.id);
      more.hidden = !page.more;
      problem.replaceChildren();
      if (!after) epochs.show(await get('epochs'), (e) => e.name);
    } catch (err) {
      problem.replaceChildren(notice(err));
    }
  }
  load();
  return { changed: () => load() };
}

export function doctor(el) {
  const body = h('div', { class: 'col' }, h('p', { class: 'muted' }, 'Looking…'));
  const sum = h('p', { class: 'row' });
  const again = h('button', { type: 'button', onclick: () => run(false) }, 'Look again');
  const event = h('button', { type: 'button', class: 'primary', disabled: !me.may.act, onclick: () => run(true) }, 'Look, and send a canary');
  el.append(h('header', { class: 'page-head' }, h('div', {}, h('h1', {}, 'Doctor'), sum), h('div', { class: 'acts' }, again, event)),
    h('p', { class: 'muted' }, 'A canary is an event of Commitcast’s own topic, commitcast/canary, which is watched arriving through a socket of each broadcaster.'), body);
  async function run(canary) {
    again.disabled = event.disabled = true;
    put(sum, canary ? 'Sending a canary all the way…' : 'Looking…');
    try {
      const d = canary ? await post('api/doctor', {}) : await get('doctor');
      const areas = [...new Set(d.checks.map((c) => c.area))];
      const n = { good: 0, warning: 0, problem: 0 };
      d.checks.forEach((c) => n[c.level]++);
      sum.replaceChildren(...['good', 'warning', 'problem'].filter((l) => n[l]).map((l) => level(l, l === 'good' ? `${n.good} good` : plural(n[l], l))));
      body.replaceChildren(...areas.map((a) => card(a, h('ul', { class: 'checks' }, d.checks.filter((c) => c.area === a).map((c) => h('li', { 'data-level': c.level }, level(c.level), h('b', {}, c.name), h('span', {}, c.says), c.fix && h('p', { class: 'why' }, `→ ${c.fix}`)))))));
    } catch (err) {
      put(sum, '');
      body.replaceChildren(notice(err));
    }
    again.disabled = false;
    event.disabled = !me.may.act;
  }
  run(false);
  return {};
}
