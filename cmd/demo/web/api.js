// The exchange's HTTP face, as functions. An answer that is not 2xx becomes an ApiError with the problem it carries.

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

async function call(method, path, { body, signal } = {}) {
  const response = await fetch(path, {
    method, signal, credentials: 'same-origin',
    ...(body === undefined ? {} : { headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }),
  });
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  throw new ApiError(response.status, problem);
}

export const session = () => call('POST', '/api/session');
export const markets = () => call('GET', '/api/markets', { signal: AbortSignal.timeout(8000) });
export const check = () => call('GET', '/api/check', { signal: AbortSignal.timeout(8000) });
export const status = () => call('GET', '/api/status', { signal: AbortSignal.timeout(8000) });
export const setRate = (rate) => call('POST', '/api/bots', { body: { rate } });
export const cut = (tab) => call('POST', '/api/chaos/cut', { body: { tab } });
export const flush = () => call('POST', '/api/chaos/flush', { body: {} });
export const setWorker = (running) => call('POST', '/api/chaos/worker', { body: { running } });

/** A random name. (crypto.randomUUID is missing on pages that came over plain HTTP from another machine.) */
export function randomID() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('');
}
