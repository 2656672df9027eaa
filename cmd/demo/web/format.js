// Numbers, times and elements: how everything on the page is written.

/** Money, shares and prices come as integers, in millionths. */
export const UNIT = 1_000_000;

const money2 = new Intl.NumberFormat('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const whole = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat('en-US', { notation: 'compact', maximumFractionDigits: 1 });

/** "53.1¢" */
export const cents = (price, digits = 1) => `${(price / 10_000).toFixed(digits)}¢`;
/** "+0.8¢" */
export const centsChange = (price, digits = 1) => signed(price / 10_000, digits) + '¢';
/** "$1,204.50" */
export const money = (v) => `${v < 0 ? '−' : ''}$${money2.format(Math.abs(v) / UNIT)}`;
/** "+$4.20" */
export const moneyChange = (v) => `${v > 4_999 ? '+' : v < -4_999 ? '−' : ''}$${money2.format(Math.abs(v) / UNIT)}`;
/** "$48.2K" */
export const moneyShort = (v) => `$${compact.format(v / UNIT)}`;
export const shares = (v) => money2.format(Math.abs(v) / UNIT);
export const count = (n) => whole.format(n);

export function signed(x, digits) {
  const text = Math.abs(x).toFixed(digits);
  if (Number(text) === 0) return text;
  return (x < 0 ? '−' : '+') + text;
}

/** "3.4 ms", "1.2 s" */
export function duration(ms) {
  if (!Number.isFinite(ms)) return '–';
  if (ms < 9.95) return `${Math.max(0, ms).toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.round(ms / 60_000)} min`;
}

const pad = (n) => String(n).padStart(2, '0');
/** "14:05:09", in the reader's time zone */
export function clock(ms) {
  const d = new Date(ms);
  return `${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
}

/** Reads an event's "2026-01-02T03:04:05.123456Z" as milliseconds, with their fraction. */
export const instant = (at) => Date.parse(`${at.slice(0, 23)}Z`) + Number(at.slice(23, 26)) / 1000;

/** Makes an element; children are text or elements. Text only: nothing is ever parsed as HTML. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === 'class') element.className = value;
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Changes text only when it differs, so that nothing is laid out again for nothing. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const $ = (id) => document.getElementById(id);

/** A colour of the style sheet, for the canvas. */
export function colour(name) {
  const probe = $('probe');
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

export const reducedMotion = matchMedia('(prefers-reduced-motion: reduce)');
