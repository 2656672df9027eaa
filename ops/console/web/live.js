// What comes through Commitcast itself: this tab is a subscriber like any other.

import { connect } from './commitcast.js';
import { get, me } from './api.js';
import { serverNow } from './dom.js';

export const CANARY = 'commitcast/canary';
const KEPT = 200;

let feed;
const listeners = new Set();

function live() {
  feed ??= connect({
    url: 'live/v1/ws',
    onerror: () => {}, // the view's error says it
    onconnection: () => listeners.forEach((f) => f()),
  });
  return feed;
}

/** Of the connection: idle, connecting, open, waiting, failed, closed. */
export const connection = () => feed?.connection.state ?? 'idle';

export function onconnection(f) {
  listeners.add(f);
  return () => listeners.delete(f);
}

/**
 * Follows a topic from a few events before its head. each is called with the view; events are {event, late}: late is the time from
 * append to here in milliseconds, and undefined for those that were there before.
 */
export function follow(name, before, each) {
  if (!me.live) return () => {};
  let head = -1;
  const topic = live().topic(name, {
    snapshot: async (signal) => {
      const t = await get('start', { name }, signal);
      head = t.head;
      const from = Math.max(t.first > 0 ? t.first - 1 : t.head, t.head - before, 0);
      return { state: [], cursor: `${t.epoch}:${from}`, pending: [], epoch: t.epoch };
    },
    apply: (list, event) => [...list.slice(1 - KEPT), { event, late: event.offset > head ? Math.max(0, serverNow() - Date.parse(event.at)) : undefined }],
    skipped: 'advance',
  });
  const stop = topic.subscribe(each);
  return () => {
    stop?.();
    topic.close();
  };
}
