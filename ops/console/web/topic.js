// One topic at every hop, live.

import { act, button } from './act.js';
import { get, me } from './api.js';
import { age, ago, bytes, card, clock, count, fact, h, keyed, level, plural, put, table, upTo } from './dom.js';
import * as live from './live.js';

/** How often the figures of a topic are asked for. */
const EVERY = 3000;
const SHOWN = 100;

export function topic(el, params) {
  const name = params.get('name') ?? '';
  const head = h('h1', { class: 'name' }, name);
  const states = h('div', { class: 'row' });
  const acts = h('div', { class: 'acts' });
  const facts = h('dl', { class: 'facts wide' });
  const problem = h('p', { class: 'notice', 'data-level': 'problem', role: 'alert', hidden: true });
  const asOf = h('p', { class: 'muted small' });
  const nodes = table([
    ['Node', (n) => h('b', {}, n.node)],
    ['Subscribers', (n) => (n.state ? h('a', { href: `#/clients?node=${encodeURIComponent(n.node)}&order=behind` }, count(n.state.subscribers)) : n.error ? '' : '0'), 'num'],
    ['Joining', (n) => (n.state ? count(n.state.joining) : ''), 'num'],
    ['Behind', (n) => (n.state ? count(n.state.behind) : ''), 'num'],
    ['Slowest at', (n) => (n.state ? count(n.state.slowest) : ''), 'num'],
    ['Knows head', (n) => (n.state ? count(n.state.head) : ''), 'num'],
    ['Log', (n) => (n.state ? (n.state.last >= n.state.first ? `${count(n.state.first)} to ${count(n.state.last)}` : 'empty') : '')],
    ['Push', (n) => (n.error ? [level('problem', 'silent'), h('span', { class: 'why' }, n.error)] : n.state ? (n.state.confirmed ? level('good', 'yes') : level('warning', 'no')) : h('span', { class: 'muted' }, 'nobody follows it there'))],
  ], null, 'No broadcaster was found.');
  const laggards = table([
    ['Furthest behind', (f) => (f.subject ? h('a', { href: `#/clients?${new URLSearchParams({ subject: f.subject })}` }, f.subject) : h('span', { class: 'muted' }, 'no subject'))],
    ['Node', (f) => f.node],
    ['Session', (f) => h('span', { class: 'muted' }, f.session)],
    ['At', (f) => count(f.cursor), 'num'],
    ['', (f) => (f.waiting ? 'being written to' : '')],
  ], null, 'Nobody is behind. That is normal.');
  const list = h('ol', { class: 'tail', tabindex: '0', 'aria-label': 'Newest events, the newest first' });
  const tailState = h('span');
  const tailText = h('p', { class: 'muted small' });
  const pause = h('button', { type: 'button', 'aria-pressed': 'false' }, 'Hold');
  let holding = false;
  let view = null;
  pause.addEventListener('click', () => {
    holding = !holding;
    pause.setAttribute('aria-pressed', String(holding));
    put(pause, holding ? 'Go on' : 'Hold');
    tail();
  });

  const from = h('input', { id: 't-from', type: 'number', min: '1', inputmode: 'numeric', required: true });
  const to = h('input', { id: 't-to', type: 'number', min: '1', inputmode: 'numeric', placeholder: 'head' });
  const range = h('details', {}, h('summary', {}, 'Publish retained events again'),
    h('form', { class: 'tools', onsubmit: (e) => { e.preventDefault(); act({ action: 'redrive', topic: name, from: Number(from.value), to: Number(to.value) }); } },
      h('label', { for: 't-from' }, 'From offset'), from, h('label', { for: 't-to' }, 'to'), to, h('button', { type: 'submit', disabled: !me.may.act }, 'Redrive…')),
    h('p', { class: 'hint' }, 'What Redis has is announced again, and subscribers who had it drop it.'));
  const traced = h('div');
  const offset = h('input', { id: 't-trace', type: 'number', min: '1', inputmode: 'numeric', required: true });
  const tracing = h('details', {}, h('summary', {}, 'Trace an event'),
    h('form', { class: 'tools', onsubmit: (e) => { e.preventDefault(); trace(Number(offset.value)); } }, h('label', { for: 't-trace' }, 'Offset'), offset, h('button', { type: 'submit' }, 'Trace')), traced);

  el.append(h('header', { class: 'page-head' }, h('div', {}, h('p', { class: 'muted small' }, h('a', { href: '#/topics' }, 'Topics')), head, states), acts), problem,
    h('div', { class: 'two' },
      h('div', { class: 'col' }, card('Where it stands', facts, asOf), card('Subscribers', nodes, laggards), card('More', range, tracing)),
      h('section', { class: 'card' }, h('header', { class: 'card-head' }, h('h2', {}, 'Live'), tailState, pause), tailText, list)));

  function tail() {
    const c = live.connection();
    tailState.replaceChildren(!me.live ? level('unknown', 'not live here') : view?.status === 'live' ? level('good', 'live') : level(view?.status === 'failed' ? 'problem' : 'warning', view?.status ?? c));
    if (holding) return;
    const all = view?.state ?? [];
    const late = all.filter((x) => x.late !== undefined).map((x) => x.late).sort((a, b) => a - b);
    put(tailText, late.length ? `${plural(late.length, 'event')} came live, ${late.length > 1 ? 'half of them within ' : ''}${age(Math.max(1, late[late.length >> 1]) / 1000)} ${late.length > 1 ? 'of their' : 'after its'} append.`
      : view?.error ? view.error.message : 'Through Commitcast itself: this page is a subscriber. New events appear by themselves.');
    keyed(list, all.slice(-SHOWN).reverse(), (x) => x.event.offset, ({ event: e, late: l }) => h('li', {},
      h('span', { class: 'off' }, count(e.offset)), h('time', { datetime: e.at, title: e.at }, clock(e.at)), h('b', {}, e.type), e.key && h('span', { class: 'muted' }, e.key),
      l !== undefined && h('span', { class: 'late' }, age(Math.max(l, 1) / 1000)), h('code', {}, JSON.stringify(e.data ?? null))));
    if (!list.children.length) list.append(h('li', { class: 'empty', 'data-key': 'none' }, view?.status === 'live' ? 'Nothing retained to show. Waiting for the next event.' : 'Connecting…'));
  }

  async function trace(n) {
    try {
      const t = await get('trace', { name, offset: n });
      const yes = (v) => (v === undefined ? level('unknown', 'not known') : v ? level('good', 'yes') : level('warning', 'no'));
      traced.replaceChildren(h('dl', { class: 'facts' },
        fact('event', `${t.id}, ${t.type}, ${bytes(t.bytes)}`), t.trace_id && fact('trace', t.sampled ? t.trace_id : `${t.trace_id}, not sampled`), fact('appended', clock(t.appended_at)), fact('sequenced', t.sequenced_at ? clock(t.sequenced_at) : 'not known'),
        fact('published', yes(t.published)), fact('Redis holds it', yes(t.in_redis)),
        t.nodes.map((x) => fact(x.node, x.error || (!x.follows ? 'has no subscriber of it now' : x.heard ? `heard; ${x.sent} of ${x.subscribers} subscribers are at or past it` : 'not heard'))),
        t.unknown.map((u, i) => fact(i ? '' : 'nobody knows', u))));
    } catch (err) {
      traced.replaceChildren(h('p', { class: 'notice', 'data-level': 'problem', role: 'alert' }, h('span', { class: 'mark' }), h('span', {}, err.message)));
    }
  }

  const stop = new AbortController();
  let timer;
  let asked = 0;
  let known = Infinity; // head of the figures
  async function load() {
    clearTimeout(timer);
    asked = Date.now();
    try {
      const t = await get('topic', { name }, stop.signal);
      problem.hidden = true;
      known = t.head;
      const k = t.parked;
      const byHand = k && k.attempts === 0 && k.error.startsWith('parked by ');
      const tags = [];
      if (k) tags.push(level(k.died_at && !byHand ? 'problem' : 'warning', byHand ? 'parked' : k.died_at ? 'given up' : 'set aside'));
      if (t.paused_at) tags.push(level('warning', 'its partition is paused'));
      if (t.redrive) tags.push(level('busy', 'redrive under way'));
      if (!tags.length) tags.push(t.unpublished || t.waiting ? level('unknown', 'events wait') : level('good'));
      states.replaceChildren(...tags);
      keyed(acts, [{ parked: !!k, byHand, may: me.may.act, dead: t.dead_letters > 0 }], () => 'acts', (s) => h('span', { class: 'acts' },
        s.parked ? button(s.byHand ? 'Release…' : 'Redrive…', { action: 'redrive', topic: name }) : button('Set aside…', { action: 'park', topic: name }, { danger: true })));
      keyed(facts, [
        ['head', `${count(t.head)}, in epoch ${t.head_epoch}`, t.last_at],
        ['journal', t.first > 0 ? `${count(t.first)} to ${count(t.head)}` : 'nothing is retained', t.first_at, ', the oldest '],
        ['Redis', t.held_error || (!t.held ? 'not looked at' : t.held.first === 0 ? `nothing: it forgets a topic an hour after its last event; ${plural(t.held.hears, 'node')} listen` : `${count(t.held.first)} to ${count(t.held.last)}, ${bytes(t.held.bytes)}; ${plural(t.held.hears, 'node')} listen`)],
        ['partition', String(t.partition), t.paused_at, ', paused '],
        ['waiting', `${upTo(t.waiting)} not sequenced, ${upTo(t.unpublished)} not published`],
        ['subscribers', `${count(t.subscribers)}, ${count(t.behind)} of them behind`],
        ...(k ? [[byHand ? 'parked' : k.died_at ? 'given up' : 'set aside', `from offset ${count(k.from)} on, ${plural(k.attempts, 'attempt')}: ${k.error}`, k.at, ', ']] : []),
        ...(t.redrive ? [['redrive', `${count(t.redrive.first)} to ${count(t.redrive.last)}, at ${count(t.redrive.next)}, by ${t.redrive.who}`]] : []),
        ...(t.dead_letters ? [['dead letters', upTo(t.dead_letters)]] : []),
      ], ([n]) => n, ([n, v, at, lead]) => fact(n, n === 'dead letters' ? h('a', { href: `#/dead?topic=${encodeURIComponent(name)}` }, v) : v, at ? [lead ?? ', ', ago(at)] : ''));
      nodes.show(t.nodes, (n) => n.address);
      const late = t.nodes.flatMap((n) => (n.state?.laggards ?? []).map((f) => ({ ...f, node: n.node })));
      laggards.show(late.sort((x, y) => x.cursor - y.cursor).slice(0, 10), (f) => f.session);
      asOf.replaceChildren('Looked ', ago(new Date().toISOString()), '.');
    } catch (err) {
      if (err.name === 'AbortError') return;
      problem.hidden = false;
      problem.replaceChildren(h('span', { class: 'mark', 'aria-hidden': 'true' }), h('span', {}, err.message));
    }
    if (!stop.signal.aborted) timer = setTimeout(load, EVERY);
  }
  load();
  const unfollow = live.follow(name, 20, (v) => {
    view = v;
    tail();
    // The figures follow what is seen here, once a second at most.
    if ((v.state?.at?.(-1)?.event.offset ?? 0) > known && Date.now() - asked > 1000) load();
  });
  const deaf = live.onconnection(tail);
  tail();
  return { changed: load, close: () => { stop.abort(); clearTimeout(timer); unfollow(); deaf(); } };
}
