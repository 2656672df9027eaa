// Elements, and figures as people read them. Whatever comes from data becomes text, never markup.

export const $ = (id) => document.getElementById(id);

/** An element. Strings and numbers among the children become text; null, undefined and false nothing. */
export function h(tag, props = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) e.addEventListener(name.slice(2), value);
    else if (name in e && typeof value !== 'string') e[name] = value;
    else e.setAttribute(name, value === true ? '' : value);
  }
  e.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false).map((c) => (c instanceof Node ? c : visible(String(c)))));
  return e;
}

const SVG = 'http://www.w3.org/2000/svg';

export function svg(tag, props = {}, ...children) {
  const e = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

/** Writes out what would not be seen, or would turn the direction of what stands around it. */
export function visible(s) {
  return s.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Cn}\u2028\u2029]/gu, (c) => {
    if (c === '\n') return c;
    const n = c.codePointAt(0);
    return n < 0x100 ? `\\x${n.toString(16).padStart(2, '0')}` : `\\u${n.toString(16).padStart(4, '0')}`;
  });
}

export const put = (e, text) => {
  text = visible(String(text));
  if (e.textContent !== text) e.textContent = text;
};

/**
 * Children of a parent, one for each item: kept while the item stays the same, so that focus and selection stay. One that is
 * replaced hands its focus on.
 */
export function keyed(parent, items, key, render) {
  const old = new Map([...parent.children].map((e) => [e.dataset.key, e]));
  const list = items.map((item, i) => {
    const k = String(key(item, i));
    const is = JSON.stringify(item);
    const before = old.get(k);
    if (before && before.is === is) return before;
    const e = render(item);
    e.dataset.key = k;
    e.is = is;
    return e;
  });
  const at = document.activeElement;
  const holder = at && parent.contains(at) ? at.closest('[data-key]') : null;
  const handle = holder && at.dataset.handle;
  if (list.length !== parent.children.length || list.some((e, i) => parent.children[i] !== e)) {
    parent.replaceChildren(...list);
    if (holder && !holder.isConnected) {
      const next = list.find((e) => e.dataset.key === holder.dataset.key);
      (handle ? next?.querySelector(`[data-handle="${CSS.escape(handle)}"]`) : next?.querySelector('a, button'))?.focus();
    } else if (at?.isConnected) at.focus();
  }
}

export const count = (n) => Math.round(n).toLocaleString('en-US');
export const upTo = (n, most = 1000) => (n >= most ? `${count(most)}+` : count(n));
export const plural = (n, thing) => `${count(n)} ${thing}${n === 1 ? '' : 's'}`;
export const rate = (v) => (v === 0 ? '0' : v < 10 ? v.toFixed(1) : count(v));

/** A duration in seconds. */
export function age(s) {
  if (!(s > 0)) return '–';
  if (s < 0.001) return '<1 ms';
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.floor(s)} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return i === 0 ? `${n} B` : `${n.toFixed(1)} ${units[i]}`;
}

let skew = 0; // of the server's clock, ahead of this one

/** Learns the server's clock. */
export const clockIs = (now) => { skew = Date.parse(now) - Date.now(); };
export const serverNow = () => Date.now() + skew;
export const since = (t) => (serverNow() - Date.parse(t)) / 1000;

/** How long ago a time was; it goes on counting. */
export function ago(t, after = ' ago') {
  if (!t) return h('span', { class: 'muted' }, '–');
  const e = h('time', { datetime: t, title: new Date(t).toLocaleString() }, '');
  e.dataset.ago = after;
  tell(e);
  return e;
}

function tell(e) {
  const s = since(e.getAttribute('datetime'));
  put(e, s < 1 ? (e.dataset.ago ? 'now' : 'a moment') : age(s) + e.dataset.ago);
}
setInterval(() => document.querySelectorAll('time[data-ago]').forEach(tell), 1000);

export const clock = (t) => {
  const d = new Date(t);
  return isNaN(d) ? String(t) : `${d.toLocaleTimeString('en-GB')}.${String(d.getMilliseconds()).padStart(3, '0')}`;
};
export const when = (t) => (t ? h('time', { datetime: t, title: t }, new Date(t).toLocaleString('en-GB', { dateStyle: 'short', timeStyle: 'medium' })) : '–');

const WORDS = { good: 'good', warning: 'warning', problem: 'problem', unknown: 'unknown', busy: 'under way' };

/** How bad something is, by shape, colour and word. */
export const level = (l, word = WORDS[l] ?? l) => h('span', { class: word.length > 24 ? 'level long' : 'level', 'data-level': l }, h('span', { class: 'mark', 'aria-hidden': 'true' }), word);

export const topicLink = (name) => h('a', { href: `#/topic?name=${encodeURIComponent(name)}`, class: 'name' }, name);

/** A table: columns are [title, cell of row, class]. On a phone each row is a block, and cells have their titles. */
export function table(columns, rows, empty) {
  const body = h('tbody');
  const t = h('table', {}, h('thead', {}, h('tr', {}, columns.map(([title, , c]) => h('th', { scope: 'col', class: c }, title)))), body);
  const row = (r) => h('tr', {}, columns.map(([title, cell, c]) => {
    const v = cell(r);
    return h('td', { class: c, 'data-label': title }, v === '' || v === undefined || v === null ? '' : v);
  }));
  const none = h('p', { class: 'empty' }, empty);
  const el = h('div', { class: 'table' }, t, none);
  el.show = (list, key) => {
    t.hidden = list.length === 0;
    none.hidden = list.length > 0;
    keyed(body, list, key ?? ((_, i) => i), row);
  };
  el.add = (list) => body.append(...list.map(row));
  el.show(rows ?? []);
  if (!rows) none.hidden = true;
  return el;
}

export const card = (title, ...children) => h('section', { class: 'card' }, title && h('h2', {}, title), children);

export const fact = (name, ...value) => h('div', {}, h('dt', {}, name), h('dd', {}, value));
