// Topics, by name or those that are behind.

import { get } from './api.js';
import { ago, age, card, count, h, level, table, topicLink, upTo } from './dom.js';

export function topics(el, params) {
  const order = params.get('order') === 'lag' ? 'lag' : 'name';
  const prefix = params.get('prefix') ?? '';
  const go = (o, p) => { location.hash = `#/topics?${new URLSearchParams({ order: o, ...(p && o === 'name' ? { prefix: p } : {}) })}`; };
  const search = h('input', { type: 'search', id: 'prefix', value: prefix, placeholder: 'Begins with…', 'aria-label': 'Topics whose names begin with', maxlength: '128', spellcheck: false, autocomplete: 'off' });
  const form = h('form', { class: 'tools', role: 'search', onsubmit: (e) => { e.preventDefault(); go('name', search.value.trim()); } },
    search, h('button', { type: 'submit' }, 'Search'),
    h('div', { class: 'segments', role: 'group', 'aria-label': 'Order' },
      h('button', { type: 'button', 'aria-pressed': String(order === 'name'), onclick: () => go('name', search.value.trim()) }, 'By name'),
      h('button', { type: 'button', 'aria-pressed': String(order === 'lag'), onclick: () => go('lag') }, 'Furthest behind')));
  const t = table([
    ['Topic', (l) => topicLink(l.topic)],
    ['Partition', (l) => l.partition, 'num'],
    ['Head', (l) => count(l.head), 'num'],
    ...(order === 'lag' ? [['Waiting', (l) => (l.waiting ? count(l.waiting) : '0'), 'num']] : []),
    ['Not published', (l) => upTo(l.unpublished, order === 'lag' ? Infinity : 1000), 'num'],
    order === 'lag' ? ['Oldest', (l) => age(l.for_s), 'num'] : ['Last event', (l) => ago(l.last_at)],
    ['State', (l) => (l.died_at ? level('problem', 'given up, or parked') : l.parked_from ? level('warning', 'set aside') : l.unpublished || l.waiting ? level('unknown', 'events wait') : level('good'))],
  ], null, order === 'lag' ? 'No topic is behind. That is normal.' : prefix ? 'No topic begins so.' : 'No topic yet: one begins with its first event.');
  const more = h('button', { type: 'button', class: 'more', hidden: true }, 'Show more');
  const problem = h('p', { class: 'notice', 'data-level': 'problem', hidden: true, role: 'alert' });
  el.append(h('h1', {}, 'Topics'), form, card(null, problem, t, more));
  let rows = [];
  const stop = new AbortController();
  async function load(after) {
    more.disabled = true;
    try {
      const page = await get('topics', { order, prefix: order === 'name' ? prefix : '', after: after?.topic, lag: after && order === 'lag' ? after.waiting + after.unpublished : '' }, stop.signal);
      rows = [...(after ? rows : []), ...page.rows];
      t.show(rows, (l) => l.topic);
      more.hidden = !page.more;
      problem.hidden = true;
    } catch (err) {
      if (err.name === 'AbortError') return;
      problem.hidden = false;
      problem.replaceChildren(h('span', { class: 'mark' }), h('span', {}, err.message));
    }
    more.disabled = false;
  }
  more.addEventListener('click', () => load(rows.at(-1)));
  load();
  return { close: () => stop.abort(), changed: () => load() };
}
