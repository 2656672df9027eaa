// The shell: which page is shown, how fresh its figures are, who looks.

import * as api from './api.js';
import { changed } from './act.js';
import { $, age, clockIs, h, put, serverNow } from './dom.js';
import * as live from './live.js';
import { pipeline } from './pipeline.js';
import { topics } from './topics.js';
import { topic } from './topic.js';
import { dead, letter } from './dead.js';
import { audit, clients, doctor, nodes, partitions } from './pages.js';

const PAGES = {
  '/': ['Pipeline', pipeline],
  '/topics': ['Topics', topics],
  '/dead': ['Dead letters', dead],
  '/partitions': ['Partitions', partitions],
  '/nodes': ['Nodes', nodes],
  '/clients': ['Clients', clients],
  '/audit': ['Audit', audit],
  '/doctor': ['Doctor', doctor],
};
const MORE = { '/topic': ['Topic', topic, '/topics'], '/letter': ['Dead letter', letter, '/dead'] };

/** How often figures are asked for, and after how long they are old. */
const EVERY = 2000;
const OLD = 8;

export const store = { status: null, error: '', heard: 0 };
let page = null;

function show() {
  const [path, search] = (location.hash.slice(1) || '/').split('?');
  const [title, make, tab] = PAGES[path] ?? MORE[path] ?? PAGES['/'];
  for (const a of $('nav').children) {
    if (a.getAttribute('href') === `#${tab ?? (PAGES[path] ? path : '/')}`) {
      a.setAttribute('aria-current', 'page');
      const n = $('nav');
      n.scrollLeft = a.offsetLeft - n.clientWidth / 2 + a.clientWidth / 2;
    } else a.removeAttribute('aria-current');
  }
  page?.close?.();
  const params = new URLSearchParams(search);
  document.title = `${params.get('name') ?? title} · Commitcast console`;
  const el = h('div', { class: 'page' });
  $('page').replaceChildren(el);
  page = make(el, params);
  if (store.status) page?.status?.(store.status);
  scrollTo(0, 0);
}

async function poll() {
  for (;;) {
    if (!document.hidden) {
      try {
        const s = await api.get('status');
        clockIs(s.now);
        Object.assign(store, { status: s, error: '', heard: Date.now() });
        page?.status?.(s);
      } catch (err) {
        store.error = err.message;
      }
      fresh();
    }
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

/** How old what is shown is. */
function fresh() {
  const s = store.status;
  const chip = $('fresh');
  if (!s) {
    chip.dataset.state = store.error ? 'old' : 'wait';
    put($('fresh-text'), store.error || 'Looking');
    return;
  }
  const old = (serverNow() - Date.parse(s.at)) / 1000;
  const silent = s.sources.filter((x) => !x.up);
  chip.dataset.state = old > OLD || store.error ? 'old' : silent.length ? 'part' : 'now';
  const took = old < 1.5 ? 'now' : `${age(old)} ago`;
  put($('fresh-text'), store.error ? `${store.error}; figures ${took}` : old > OLD ? `Figures are ${age(old)} old` : `Looked ${took}${silent.length ? `, ${silent.length} silent` : ''}`);
  chip.title = silent.map((x) => `${x.name}: ${x.error}`).join('\n');
  document.body.toggleAttribute('data-old', old > OLD || store.error !== '');
}

async function begin() {
  $('nav').append(...Object.entries(PAGES).map(([path, [title]]) => h('a', { href: `#${path}` }, title)), h('a', { href: 'river/', class: 'out' }, 'Jobs'));
  $('logout').addEventListener('click', async () => {
    try {
      await api.post('logout', {});
    } finally {
      location.assign('login');
    }
  });
  for (;;) {
    try {
      await api.session();
      break;
    } catch (err) {
      put($('fresh-text'), err.message);
      await new Promise((done) => setTimeout(done, EVERY));
    }
  }
  put($('who'), api.me.who);
  rights();
  addEventListener('hashchange', show);
  changed.addEventListener('changed', () => page?.changed?.());
  show();
  setInterval(fresh, 1000);
  document.addEventListener('visibilitychange', () => document.hidden || fresh());
  poll();
}

/** Says that nothing can be done here, if so; asked again until the database has answered. */
async function rights() {
  const n = $('notice');
  n.hidden = api.me.may.act;
  n.dataset.level = 'warning';
  n.replaceChildren(h('span', { class: 'mark', 'aria-hidden': 'true' }), h('span', {}, api.me.may_error
    ? `What you may do is not known: ${api.me.may_error}`
    : 'You may look here, and not act: this console’s database role is not an operator’s (commitcast_operator).'));
  if (!api.me.may_error) return;
  await new Promise((done) => setTimeout(done, 3 * EVERY));
  await api.session().catch(() => {});
  if (api.me.may.act) show();
  rights();
}

window.__console = { store, connection: live.connection };
begin();
