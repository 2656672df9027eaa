// Questions to the server, and orders.

let csrf = '';
export const me = { who: '', may: { act: false, jobs: false }, may_error: '', version: '', live: false };

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function answer(response) {
  if (response.status === 401) {
    location.assign('login');
    throw new Refused(401, 'the session is over');
  }
  let body;
  try {
    body = await response.json();
  } catch {
    throw new Refused(response.status, `the console answers ${response.status}`);
  }
  if (!response.ok) throw new Refused(response.status, body.error ?? `the console answers ${response.status}`);
  return body;
}

async function ask(path, options) {
  try {
    return await answer(await fetch(path, { cache: 'no-store', redirect: 'error', ...options }));
  } catch (err) {
    if (err instanceof Refused || err.name === 'AbortError') throw err;
    throw new Refused(0, err.name === 'TimeoutError' ? 'the console does not answer in time' : 'the console cannot be reached');
  }
}

export function get(path, params = {}, signal) {
  const q = new URLSearchParams(Object.entries(params).filter(([, v]) => v !== undefined && v !== '' && v !== null));
  const timeout = AbortSignal.timeout(25_000);
  return ask(`api/${path}${q.size ? `?${q}` : ''}`, { signal: signal ? AbortSignal.any([signal, timeout]) : timeout });
}

export function post(path, body) {
  return ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json', 'Commitcast-Csrf': csrf }, body: JSON.stringify(body) });
}

export async function session() {
  const s = await get('session');
  csrf = s.csrf;
  delete s.csrf;
  Object.assign(me, s);
}
