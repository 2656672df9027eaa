// The pipeline as it is: is it us, where is it stuck, who is affected, what to do.

import { button } from './act.js';
import { me } from './api.js';
import { age, ago, bytes, card, count, fact, h, keyed, level, plural, put, rate, svg, upTo } from './dom.js';
import * as live from './live.js';
import { nodeTable } from './nodetable.js';

const VERDICT = {
  good: ['Events flow.', 'Every hop works. Nothing waits for longer than usual.'],
  warning: ['Events flow, and something should be looked at.', ''],
  problem: ['Somebody is not served.', ''],
};

/** For how long rates are kept for the small curves, in looks. */
const KEPT = 60;
const history = { appended: [], sequenced: [], published: [], delivered: [] };

const HOPS = [
  ['writers', 'Writers', 'append in their own transactions', 'appended'],
  ['outbox', 'Outbox', 'committed, without an offset'],
  ['journal', 'Journal', 'sequenced, durable', 'sequenced'],
  ['redis', 'Redis', 'streams, a cache', 'published'],
  ['broadcasters', 'Broadcasters', 'one log a topic', 'delivered'],
  ['subscribers', 'Subscribers', 'one cursor each'],
];

const LABELS = { resume: (o) => `Resume partition ${o.partition}…`, redrive: () => 'Redrive…', undrain: () => 'Let it take clients again…' };

export function finding(f) {
  return h('li', { class: 'finding', 'data-level': f.level },
    h('div', { class: 'finding-head' }, level(f.level), h('b', {}, f.hop), h('span', {}, f.what), f.since && h('span', { class: 'muted' }, ['for ', ago(f.since, '')])),
    h('dl', { class: 'facts inline' }, f.why && fact('why', f.why), f.affects && fact('affects', f.affects), f.help && fact('do', h('code', {}, f.help))),
    f.do && h('p', { class: 'acts' }, button(LABELS[f.do.action]?.(f.do) ?? f.do.action, f.do), f.do.topic && h('a', { href: `#/topic?name=${encodeURIComponent(f.do.topic)}`, 'data-handle': 'topic' }, 'Look at the topic')));
}

/** A small curve of what a rate was. */
function curve(points) {
  const most = Math.max(1, ...points);
  const w = 100;
  const line = points.map((v, i) => `${((i + KEPT - points.length) / (KEPT - 1)) * w},${22 - (v / most) * 20}`).join(' ');
  return svg('svg', { viewBox: `0 0 ${w} 24`, class: 'curve', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, svg('polyline', { points: line }));
}

const sum = (s, name) => s.nodes.reduce((n, x) => n + (x.counters?.[name] ?? 0), 0);

function figures(id, s) {
  const d = s.database;
  const unknown = !d.up;
  const b = s.nodes.filter((n) => n.identity?.broadcaster);
  const add = (f) => b.reduce((n, x) => n + f(x.identity.broadcaster), 0);
  const per = (v) => (s.rates.over_ns > 0 && !unknown ? [rate(v), 'per s'] : ['–', unknown ? 'unknown' : 'measuring']);
  switch (id) {
    case 'writers':
      return { big: per(s.rates.appended), facts: [['open transaction', unknown ? '–' : age(d.oldest_appender_s)], ['connections', unknown ? '–' : `${d.connections} of ${d.max_connections}`]] };
    case 'outbox': {
      const paused = s.partitions.filter((p) => p.paused_at).length;
      const failed = s.partitions.filter((p) => p.waiting_s > 5).length;
      return { big: unknown ? ['–', 'unknown'] : [upTo(s.waiting), 'waiting'], facts: [['oldest', unknown ? '–' : age(s.waiting_s)], ['paused', unknown ? '–' : plural(paused, 'partition')], ['stuck', unknown ? '–' : plural(failed, 'partition')]] };
    }
    case 'journal':
      return { big: per(s.rates.sequenced), facts: [['not published', unknown ? '–' : count(s.unpublished)], ['oldest', unknown ? '–' : age(s.unpublished_s)], ['answers in', unknown ? 'down' : age(d.took_ns / 1e9)]] };
    case 'redis': {
      const r = s.redis;
      if (!r.configured) return { big: per(s.rates.published), facts: [['stream', 'in the process'], ['set aside', unknown ? '–' : plural(s.set_aside, 'topic')]] };
      return { big: per(s.rates.published), facts: [['answers in', r.up ? `${age(r.server.took_ns / 1e9)}, up ${age(r.server.uptime_s)}` : 'down'], ['memory', r.up ? bytes(r.server.used_memory) : '–'],
        ['set aside', unknown ? '–' : `${upTo(s.set_aside)}, ${upTo(s.given_up)} given up`],
        ['refused, refilled', `${count(sum(s, 'commitcast_worker_refused_attempts_total'))}, ${count(sum(s, 'commitcast_stream_answers_total/gap'))}`]] };
    }
    case 'broadcasters': {
      const silent = s.sources.filter((x) => !x.up && x.kind !== 'database' && x.kind !== 'redis').length;
      const polling = b.filter((n) => n.identity.broadcaster.polling).length;
      const delivered = s.rates.over_ns > 0 && b.length > 0 ? [rate(s.rates.delivered), 'per s'] : ['–', b.length ? 'measuring' : 'none found'];
      return { big: delivered, facts: [['nodes', `${b.length}${silent ? `, ${silent} silent` : ''}`], ['push', polling ? `${polling} polling` : b.length ? 'all' : '–'],
        ['behind', plural(add((x) => x.behind), 'topic')], ['gaps, resets', `${count(sum(s, 'commitcast_broadcaster_gaps_total'))}, ${count(sum(s, 'commitcast_broadcaster_resets_total'))}`]] };
    }
    default: {
      const canaries = b.filter((n) => n.identity.canary).map((n) => n.identity.canary.age_s);
      const by = (source) => count(sum(s, `commitcast_broadcaster_events_replayed_total/${source}`));
      return { big: b.length ? [count(add((x) => x.connections)), add((x) => x.connections) === 1 ? 'client' : 'clients'] : ['–', 'unknown'], facts: [['subscriptions', count(add((x) => x.subscriptions))],
        ['stalled, closed', count(sum(s, 'commitcast_broadcaster_clients_stalled_total'))], ['canary', canaries.length ? `${age(Math.max(...canaries))} old` : 'none'], ['replayed', `memory ${by('memory')}, stream ${by('stream')}, journal ${by('journal')}`]] };
    }
  }
}

export const PARTITION = {
  paused: ['‖', 'paused'], stuck: ['!', 'stuck'], busy: ['▸', 'events wait'], owned: ['•', 'drained'], idle: ['', 'idle'],
};

export function partitionState(p) {
  if (p.paused_at) return 'paused';
  if (p.waiting_s > 5 || p.unpublished_s > 5) return 'stuck';
  if (p.waiting > 0 || p.seq > p.published) return 'busy';
  return p.owner ? 'owned' : 'idle';
}

export function pipeline(el) {
  const verdict = h('section', { class: 'verdict', 'data-level': 'wait', 'aria-live': 'polite' });
  const findings = h('ol', { class: 'findings', 'aria-label': 'What is not as it should be' });
  const boxes = HOPS.map(([id, title, says]) => {
    const box = { id, el: h('li', { class: 'hop', 'data-level': 'unknown', id: `hop-${id}` }), state: h('span'), big: h('b'), unit: h('small'), curve: h('div', { class: 'curve-box' }), facts: h('dl', { class: 'facts' }) };
    box.el.append(h('header', {}, h('h3', {}, title), box.state), h('p', { class: 'says' }, says), h('p', { class: 'big' }, box.big, box.unit), box.curve, box.facts);
    return box;
  });
  const map = h('ol', { class: 'map' });
  const mapText = h('p', { class: 'muted small' });
  const sources = h('ul', { class: 'sources' });
  const gone = h('ul', { class: 'sources' });
  const nodes = nodeTable();
  const aside = h('div');

  const canary = { state: level('unknown', 'connecting'), view: null };
  const canaryText = h('p', { class: 'muted small' });
  const canaryHead = h('div', { class: 'row' });
  const liveCard = card('This screen, as a subscriber', canaryHead, canaryText);

  el.append(verdict, findings,
    h('section', { class: 'pipe', 'aria-label': 'Pipeline' }, h('ol', { class: 'hops' }, boxes.map((b) => b.el))),
    h('div', { class: 'three' },
      card('Partitions', map, mapText),
      card('Who answers', sources, gone),
      h('div', { class: 'col' }, liveCard, h('section', { class: 'card' }, h('h2', {}, 'Set aside, and dead letters'), aside))),
    h('section', { class: 'card' }, h('h2', {}, 'Nodes'), nodes));
  verdict.append(h('span', { class: 'mark', 'aria-hidden': 'true' }), h('div', {}, h('h1', {}, 'Looking…'), h('p', {}, 'The first look is under way.')));

  function tellLive() {
    const c = live.connection();
    const v = canary.view;
    const l = !me.live ? 'unknown' : v?.status === 'live' ? 'good' : c === 'open' ? 'warning' : 'problem';
    canaryHead.replaceChildren(level(l, !me.live ? 'not here' : v?.status === 'live' ? 'live' : v?.status ?? c), h('span', { class: 'name' }, live.CANARY));
    const last = v?.state?.at?.(-1);
    const parts = [];
    if (!me.live) parts.push('This console has no broadcaster.');
    else if (!last) parts.push('No canary has been sent yet: broadcasters with --canary send one every second, and so does the doctor, once. Heartbeats are heard every 2 s.');
    else {
      parts.push('Last canary ', ago(last.event.at), last.late === undefined ? ', before this page came' : `, here ${age(last.late / 1000)} after its append`, '. Heartbeats are heard every 2 s.');
    }
    canaryText.replaceChildren(...parts);
  }
  const stop = live.follow(live.CANARY, 1, (v) => { canary.view = v; tellLive(); });
  const deaf = live.onconnection(tellLive);
  tellLive();

  function status(s) {
    for (const name of Object.keys(history)) {
      if (s.rates.over_ns > 0 && (history.at !== s.at)) {
        history[name].push(s.rates[name]);
        if (history[name].length > KEPT) history[name].shift();
      }
    }
    Object.defineProperty(history, 'at', { value: s.at, writable: true, enumerable: false, configurable: true });

    const [head, calm] = VERDICT[s.level];
    const n = { problem: 0, warning: 0 };
    s.findings.forEach((f) => n[f.level]++);
    verdict.dataset.level = s.level;
    put(verdict.querySelector('h1'), head);
    put(verdict.querySelector('p'), calm || [n.problem && plural(n.problem, 'problem'), n.warning && plural(n.warning, 'warning')].filter(Boolean).join(', ') + (n.problem + n.warning > 1 ? ', the worst first. Each says what helps.' : '. It says what helps.'));
    keyed(findings, s.findings, (f, i) => `${f.hop}/${f.do ? JSON.stringify(f.do) : f.what.replace(/\d+/g, '')}/${s.findings.slice(0, i).filter((g) => g.hop === f.hop && g.what === f.what).length}`, finding);

    HOPS.forEach(([id, , , rateOf], i) => {
      const b = boxes[i];
      const l = s.hops[id];
      b.el.dataset.level = l;
      const f = figures(id, s);
      b.state.replaceChildren(level(l));
      put(b.big, f.big[0]);
      put(b.unit, f.big[1]);
      keyed(b.facts, f.facts, ([k]) => k, ([k, v]) => fact(k, v));
      if (rateOf) b.curve.replaceChildren(curve(history[rateOf]));
    });

    keyed(map, s.partitions.map((p) => ({ id: p.id, state: partitionState(p), waits: p.waiting + p.seq - p.published })), (p) => p.id, (p) => h('li', { 'data-state': p.state },
      h('a', { href: '#/partitions', title: `partition ${p.id}: ${PARTITION[p.state][1]}${p.waits ? `, ${plural(p.waits, 'event')}` : ''}`, 'aria-label': `partition ${p.id}: ${PARTITION[p.state][1]}` }, h('small', {}, p.id), h('b', {}, PARTITION[p.state][0]))));
    const states = s.partitions.map(partitionState);
    put(mapText, s.database.up ? Object.entries(PARTITION).map(([k, [g, w]]) => [states.filter((x) => x === k).length, g, w]).filter(([c]) => c).map(([c, g, w]) => `${g ? `${g} ` : ''}${c} ${w}`).join(' · ') + '. Idle is normal: a drain ends a second after its last event.' : 'Not known while the database is away.');

    keyed(sources, s.sources, (x) => `${x.kind}/${x.name}`, (x) => h('li', {}, level(x.up ? 'good' : 'problem', x.up ? 'answers' : 'silent'), h('b', {}, x.name), x.kind !== x.name && h('span', { class: 'muted' }, x.kind),
      x.up ? null : h('p', { class: 'why' }, x.error, x.answered_at ? h('span', { class: 'muted' }, [' Last answer ', ago(x.answered_at), '.']) : '')));
    keyed(gone, s.gone, (g) => g.address, (g) => h('li', {}, level('unknown', 'gone'), h('b', {}, g.name), h('span', { class: 'muted' }, `${g.kind}, was here `, ago(g.seen_at))));
    nodes.show(s);

    keyed(aside, [{ up: s.database.up, set_aside: s.set_aside, given_up: s.given_up, dead: s.dead_letters, redrives: s.redrives }], () => 'aside', (a) => (!a.up ? h('p', { class: 'muted' }, 'Not known while the database is away.')
      : a.set_aside + a.dead + a.redrives === 0 ? h('p', { class: 'empty' }, 'None. That is normal: a topic is set aside only when Redis refuses it.')
        : h('dl', { class: 'facts' }, fact('topics set aside', h('a', { href: '#/dead' }, upTo(a.set_aside))), fact('of these given up', upTo(a.given_up)), fact('dead letters', h('a', { href: '#/dead' }, upTo(a.dead))), fact('redrives under way', count(a.redrives)))));
  }
  return { status, close: () => { stop(); deaf(); } };
}
