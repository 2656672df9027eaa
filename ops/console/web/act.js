// An action: what it would do, why, whether it worked.

import { get, me, post } from './api.js';
import { $, count, h, put } from './dom.js';

const TITLES = {
  pause: (o) => `Pause partition ${o.partition}`,
  resume: (o) => `Resume partition ${o.partition}`,
  park: (o) => `Set ${o.topic} aside`,
  redrive: (o) => `Redrive ${o.topic}`,
  'redrive first': (o) => `Redrive ${o.topic} for ${o.subject} first`,
  'redrive all': () => 'Retry every topic that is given up',
  discard: (o) => `Discard dead letters of ${o.topic}`,
  drain: () => 'Drain a broadcaster',
  undrain: () => 'Let a broadcaster take clients again',
  disconnect: (o) => `Disconnect ${o.subject}`,
  'epoch bump': () => 'Begin a new epoch',
};

export const changed = new EventTarget();

const say = (level, ...text) => h('p', { class: 'notice', 'data-level': level, role: level === 'problem' ? 'alert' : 'status' }, h('span', { class: 'mark', 'aria-hidden': 'true' }), h('span', {}, text));

/** A button that orders something. danger: it takes something from somebody. */
export function button(label, order, { danger = false, handle = '' } = {}) {
  return h('button', {
    type: 'button', class: danger ? 'danger' : '', disabled: !me.may.act, 'data-handle': handle || label,
    title: me.may.act ? null : 'This console’s database role may look, and not act',
    onclick: () => act(typeof order === 'function' ? order() : order),
  }, label);
}

let turn = 0;

/** Looks, asks, does, and says what came of it. */
export async function act(order) {
  const mine = ++turn;
  const d = $('dialog');
  const back = document.activeElement;
  const body = h('div', { class: 'd-body' });
  const foot = h('div', { class: 'd-foot' });
  const close = h('button', { type: 'button', onclick: () => d.close() }, 'Cancel');
  d.replaceChildren(h('h2', { id: 'd-title' }, TITLES[order.action](order)), body, foot);
  d.onclose = () => {
    turn++;
    if (back?.isConnected) back.focus();
    changed.dispatchEvent(new Event('changed'));
  };
  body.append(h('p', { class: 'muted' }, 'Looking at how things are…'));
  foot.append(close);
  if (!d.open) d.showModal(); // it is, when one action leads to the next
  const gone = () => mine !== turn;

  let p;
  try {
    p = await post('api/propose', order);
  } catch (err) {
    if (gone()) return;
    body.replaceChildren(say('problem', err.message), h('p', { class: 'muted' }, 'Nothing was changed.'));
    put(close, 'Close');
    close.focus();
    return;
  }
  if (gone()) return;
  const why = h('input', { id: 'd-why', type: 'text', maxlength: '1000', autocomplete: 'off', required: p.want_why });
  // What a topic that is set aside holds can be given to the clients of one subject before it is redriven for all.
  const first = order.action === 'redrive' && !order.from ? h('input', { id: 'd-first', type: 'text', autocomplete: 'off', spellcheck: false, placeholder: 'Subject of a token' }) : null;
  const form = h('form', { method: 'dialog', class: 'd-form' },
    h('p', { class: 'would' }, 'This would ', h('b', {}, p.what), '.'),
    first && h('label', { for: 'd-first' }, 'To one client first (optional)'), first,
    h('label', { for: 'd-why' }, p.want_why ? 'Why' : 'Why (optional)'), why,
    h('p', { class: 'hint' }, 'It is recorded with your name, ', h('b', {}, me.who), ', in the audit log.'));
  const go = h('button', { type: 'submit', class: order.action === 'discard' || order.action === 'disconnect' ? 'primary danger' : 'primary', id: 'd-go' }, 'Do it');
  go.setAttribute('form', 'd-form');
  form.id = 'd-form';
  body.replaceChildren(form);
  foot.replaceChildren(close, go);
  why.focus();
  form.addEventListener('submit', async (e) => {
    e.preventDefault();
    go.disabled = true;
    why.disabled = true;
    if (first) first.disabled = true;
    close.disabled = true; // it is carried through
    d.oncancel = (c) => c.preventDefault();
    put(go, 'Under way…');
    const subject = first?.value.trim();
    let out;
    try {
      const id = subject ? (await post('api/propose', { action: 'redrive first', topic: order.topic, subject })).id : p.id;
      out = await post('api/carry', { id, why: why.value });
    } catch (err) {
      body.replaceChildren(say('problem', err.message), h('p', { class: 'muted' }, err.status === 0 ? 'Whether it was done is not known: see the audit log.' : err.status === 409 || err.status === 403 || err.status === 400 ? 'Nothing was changed.' : 'See the audit log for what was done.'));
      out = null;
    }
    d.oncancel = null;
    close.disabled = false;
    put(close, 'Close');
    foot.replaceChildren(close);
    close.focus();
    changed.dispatchEvent(new Event('changed'));
    if (!out) return;
    body.replaceChildren(say('good', out.says || 'Done.'));
    if (subject) foot.append(h('button', { type: 'button', class: 'primary', id: 'd-all', onclick: () => act(order) }, 'Redrive for all…'));
    if (out.redriving) await follow(body, out.redriving, gone);
  });
}

/** How far workers are. Closing the dialog ends the watching only. */
async function follow(body, r, gone) {
  const bar = h('progress', { max: '1', value: '0', 'aria-label': 'Events published' });
  const text = h('p', { class: 'muted', role: 'status' }, 'Workers begin…');
  body.replaceChildren(bar, text);
  while (!gone()) {
    try {
      const now = await get('progress', { topic: r.topic, record: r.record, first: r.first, last: r.last });
      bar.max = Math.max(1, now.all);
      bar.value = now.done;
      if (now.ended) {
        const result = now.redriving.result;
        body.replaceChildren(bar, say(result === 'done' ? 'good' : 'problem', `${count(now.done)} of ${count(now.all)} events published: ${result || 'its end was not recorded'}`));
        changed.dispatchEvent(new Event('changed'));
        return;
      }
      put(text, `${count(now.done)} of ${count(now.all)} events published. You may close this: workers go on.`);
    } catch (err) {
      put(text, `It cannot be seen how far it is: ${err.message}`);
    }
    await new Promise((done) => setTimeout(done, 400));
  }
}
