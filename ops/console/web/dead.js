// Dead letters, and topics that are set aside.

import { button } from './act.js';
import { get } from './api.js';
import { ago, bytes, card, clock, count, fact, h, level, plural, table, topicLink, when } from './dom.js';

const problemOf = () => h('p', { class: 'notice', 'data-level': 'problem', role: 'alert', hidden: true });
function tell(problem, err) {
  problem.hidden = false;
  problem.replaceChildren(h('span', { class: 'mark', 'aria-hidden': 'true' }), h('span', {}, err.message));
}

const letterLink = (d, text) => h('a', { href: `#/letter?${new URLSearchParams({ topic: d.topic, offset: d.offset })}` }, text);

/** A list that comes by pages: load(after) returns {rows, more}. */
function paged(t, key, load) {
  const more = h('button', { type: 'button', class: 'more', hidden: true, onclick: () => next(rows.at(-1)) }, 'Show more');
  const problem = problemOf();
  let rows = [];
  async function next(after) {
    more.disabled = true;
    try {
      const page = await load(after);
      rows = [...(after ? rows : []), ...page.rows];
      t.show(rows, key);
      more.hidden = !page.more;
      problem.hidden = true;
    } catch (err) {
      tell(problem, err);
    }
    more.disabled = false;
  }
  return { el: [problem, t, more], load: () => next() };
}

export function dead(el, params) {
  const topic = params.get('topic') ?? '';
  const search = h('input', { type: 'search', value: topic, placeholder: 'Topic', 'aria-label': 'Of the topic', maxlength: '128', spellcheck: false, autocomplete: 'off' });
  el.append(h('header', { class: 'page-head' }, h('h1', {}, 'Dead letters'), h('div', { class: 'acts' },
    topic ? button('Redrive the topic…', { action: 'redrive', topic }) : button('Retry all…', { action: 'redrive all' }),
    topic && button('Discard those redriven…', { action: 'discard', topic }, { danger: true }),
    topic && button('Discard all…', { action: 'discard', topic, lose: true }, { danger: true }))),
  h('form', { class: 'tools', role: 'search', onsubmit: (e) => { e.preventDefault(); location.hash = `#/dead${search.value.trim() ? `?${new URLSearchParams({ topic: search.value.trim() })}` : ''}`; } }, search, h('button', { type: 'submit' }, 'Search'),
    topic && h('a', { href: '#/dead' }, 'All topics')));
  const letters = paged(table([
    ['Topic', (d) => topicLink(d.topic)],
    ['Offset', (d) => letterLink(d, count(d.offset)), 'num'],
    ['Type', (d) => d.type],
    ['Size', (d) => bytes(d.bytes), 'num'],
    ['Dead for', (d) => ago(d.died_at, '')],
    ['Attempts', (d) => count(d.attempts), 'num'],
    ['State', (d) => (d.redriven_at ? level('good', 'redriven') : level('problem', 'waits'))],
    ['Error', (d) => h('span', { class: 'error' }, d.error)],
  ], null, topic ? 'This topic has no dead letters.' : 'No dead letters. That is normal: an event becomes one only after its topic was refused 16 times.'),
  (d) => `${d.topic}@${d.offset}`, (after) => get('dead', { topic, after: after?.offset, after_topic: after?.topic, died: after?.died_at }));
  const aside = paged(table([
    ['Topic', (p) => topicLink(p.topic)],
    ['From offset', (p) => count(p.from), 'num'],
    ['Events', (p) => (p.head ? count(Math.max(0, p.head - p.from + 1)) : ''), 'num'],
    ['For', (p) => ago(p.at, '')],
    ['Attempts', (p) => count(p.attempts), 'num'],
    ['State', (p) => (p.attempts === 0 && p.error.startsWith('parked by ') ? level('warning', 'parked') : p.died_at ? level('problem', 'given up') : level('warning', 'is being tried'))],
    ['Error', (p) => h('span', { class: 'error' }, p.error)],
    ['', (p) => button('Redrive…', { action: 'redrive', topic: p.topic })],
  ], null, 'No topic is set aside. That is normal.'), (p) => p.topic, (after) => get('parked', { after: after?.topic }));
  el.append(h('section', { class: 'card' }, topic && h('h2', {}, `Of ${topic}, redriven or not`), letters.el));
  if (!topic) el.append(card('Topics that are set aside', aside.el));
  const load = () => {
    letters.load();
    if (!topic) aside.load();
  };
  load();
  return { changed: load };
}


export function letter(el, params) {
  const topic = params.get('topic') ?? '';
  const offset = Number(params.get('offset'));
  const problem = problemOf();
  const body = h('div', { class: 'two' });
  const acts = h('div', { class: 'acts' });
  el.append(h('header', { class: 'page-head' }, h('div', {}, h('p', { class: 'muted small' }, h('a', { href: `#/dead?${new URLSearchParams({ topic })}` }, 'Dead letters')), h('h1', {}, topicLink(topic), ` at ${count(offset)}`)), acts), problem, body);
  async function load() {
    try {
      const d = await get('dead/letter', { topic, offset });
      problem.hidden = true;
      acts.replaceChildren(d.redriven_at ? '' : button('Redrive the topic…', { action: 'redrive', topic }), button('Discard…', { action: 'discard', topic, offsets: [offset], lose: !d.redriven_at }, { danger: true }));
      const attempts = table([
        ['Attempt', (a) => count(a.attempt), 'num'], ['When', (a) => when(a.at)], ['Error', (a) => h('span', { class: 'error' }, a.error)],
      ], d.attempted, d.job ? 'River no longer has the job.' : 'No job is known.');
      body.replaceChildren(card('The event', h('dl', { class: 'facts wide' },
        fact('state', d.redriven_at ? level('good', 'redriven') : level('problem', 'waits for somebody')), d.redriven_at && fact('redriven', ago(d.redriven_at)),
        fact('dead for', ago(d.died_at, ''), `, after ${plural(d.attempts, 'attempt')}`), fact('error', h('span', { class: 'error' }, d.error)),
        fact('event', `${d.id}, ${d.type}`), fact('epoch', d.epoch), d.key && fact('key', d.key), fact('appended', clock(d.created_at)), fact('size', bytes(d.bytes)),
        d.job && fact('job', h('a', { href: `river/jobs/${d.job}` }, count(d.job))), d.headers && fact('headers', h('code', {}, d.headers))),
      h('h3', {}, 'Data'), h('pre', {}, d.data ?? '')), card('What was tried', attempts));
    } catch (err) {
      tell(problem, err);
    }
  }
  load();
  return { changed: load };
}
