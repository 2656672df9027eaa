// Workers and broadcasters, as they say they are.

import { button } from './act.js';
import { ago, count, h, level, table } from './dom.js';

function state(n) {
  const { worker: w, broadcaster: b } = n.identity ?? {};
  if (n.error) return ['problem', 'silent'];
  if (w?.ready) return ['problem', 'not ready'];
  if (b?.drained) return ['warning', 'drained'];
  if (b?.polling) return ['warning', 'polling'];
  if (b?.ready) return ['problem', 'not ready'];
  if (b?.behind > 0) return ['warning', 'behind'];
  return ['good', 'good'];
}

const name = (n) => n.identity?.broadcaster?.node ?? n.identity?.worker?.node ?? n.address;
const kind = (n) => (!n.identity ? '?' : n.identity.worker && n.identity.broadcaster ? 'all' : n.identity.worker ? 'worker' : 'broadcaster');
const counter = (n, c) => (n.counters ? count(n.counters[`commitcast_broadcaster_${c}`] ?? 0) : '');

/** acts: with buttons. */
export function nodeTable(acts = false) {
  const of = (n) => n.identity?.broadcaster;
  const t = table([
    ['Node', (n) => h('b', {}, name(n))],
    ['Kind', kind],
    ['State', (n) => [level(...state(n)), n.error || n.identity?.worker?.ready || of(n)?.ready ? h('span', { class: 'why' }, n.error || n.identity.worker?.ready || of(n)?.ready) : '']],
    ['Clients', (n) => (of(n) ? h('a', { href: `#/clients?node=${encodeURIComponent(name(n))}` }, count(of(n).connections)) : ''), 'num'],
    ['Subscriptions', (n) => (of(n) ? count(of(n).subscriptions) : ''), 'num'],
    ['Topics', (n) => (of(n) ? `${count(of(n).topics)}${of(n).behind ? `, ${count(of(n).behind)} behind` : ''}` : ''), 'num'],
    ['Slow', (n) => (of(n) ? h('a', { href: `#/clients?node=${encodeURIComponent(name(n))}&order=behind` }, count(of(n).slow)) : ''), 'num'],
    ['Stalled', (n) => (of(n) ? counter(n, 'clients_stalled_total') : ''), 'num'],
    ['Resets', (n) => (of(n) ? counter(n, 'resets_total') : ''), 'num'],
    ['Replays: memory, stream, journal', (n) => (of(n) ? ['memory', 'stream', 'journal'].map((x) => counter(n, `events_replayed_total/${x}`)).join(' · ') : ''), 'num'],
    ['Partitions', (n) => (n.identity?.worker ? count(n.identity.worker.partitions?.length ?? 0) : ''), 'num'],
    ['Up', (n) => (n.identity ? ago(n.identity.started, '') : '')],
    ['Ops listener', (n) => h('span', { class: 'muted' }, n.address, n.connected ? '' : ', not connected to the database')],
    ...(acts ? [['', (n) => (of(n) ? (of(n).drained ? button('Take clients again…', { action: 'undrain', node: n.address }) : button('Drain…', { action: 'drain', node: n.address }, { danger: true })) : '')]] : []),
  ], [], 'No process was found. Workers and broadcasters are listed that are connected to the database and have an ops listener.');
  const show = t.show;
  t.show = (s) => show(s.nodes.map((n) => ({ ...n, took_ns: 0, identity: n.identity && { ...n.identity, now: '' } })), (n) => n.address);
  return t;
}
