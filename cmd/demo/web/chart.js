// The price chart and the sparklines: canvas, no library.

import { cents, clock, colour, reducedMotion } from './format.js';

const AXIS_RIGHT = 52;
const AXIS_BOTTOM = 22;
const TOP = 12;
/** A line is drawn about so often: smooth to the eye, cheap for a phone. */
const FRAME_MS = 33;
const FRAME_REDUCED_MS = 1000;
/** The least that the price axis shows, in millionths: a quiet market must not look wild. */
const LEAST_SPAN = 30_000;

/** Fits a canvas to its box and the screen's pixels; returns the context, in CSS pixels. */
function fit(canvas) {
  const ratio = Math.min(3, devicePixelRatio || 1);
  const { clientWidth: w, clientHeight: h } = canvas;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
  }
  const g = canvas.getContext('2d');
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, w, h);
  return { g, w, h };
}

/** The place of the first point that is not before t. */
function firstAfter(points, t) {
  let lo = 0;
  let hi = points.length;
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (points[mid].t < t) lo = mid + 1;
    else hi = mid;
  }
  return lo;
}

/** The price at an instant: that of the last trade before it. */
export function priceAt(points, t) {
  const i = firstAfter(points, t + 0.001);
  return i > 0 ? points[i - 1].p : points.length > 0 ? points[0].p : null;
}

const PRICE_STEPS = [2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000];
const TIME_STEPS = [5, 10, 15, 30, 60, 120, 300, 600].map((s) => s * 1000);

export class Chart {
  #canvas;
  #source;
  #span = null; // what the axes show now, on the way to what they should
  #seen = null;
  #last = 0;
  #cursor = null; // x of the crosshair, in CSS pixels
  #colours = null;
  rangeMS = 300_000;

  /** source() gives {points, marks, price, openedAt, now}, or null while nothing is known. onReadout(text) tells what
   * the crosshair shows. */
  constructor(canvas, source, onReadout) {
    this.#canvas = canvas;
    this.#source = source;
    this.onReadout = onReadout;
    canvas.addEventListener('pointermove', (e) => this.#point(e.offsetX));
    canvas.addEventListener('pointerdown', (e) => this.#point(e.offsetX));
    canvas.addEventListener('pointerleave', () => this.#point(null));
    canvas.addEventListener('blur', () => this.#point(null));
    canvas.addEventListener('keydown', (e) => this.#key(e));
    const frame = (now) => {
      if (now - this.#last >= (reducedMotion.matches ? FRAME_REDUCED_MS : FRAME_MS)) {
        this.#last = now;
        this.draw();
      }
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  recolour() {
    this.#colours = null;
  }

  /** Another market, or another range: jump there. */
  jump() {
    this.#span = null;
    this.#cursor = null;
    this.onReadout(null);
    this.draw();
  }

  #point(x) {
    this.#cursor = x;
    this.draw();
  }

  #key(e) {
    const width = this.#canvas.clientWidth - AXIS_RIGHT;
    const step = e.shiftKey ? 40 : 8;
    if (e.key === 'ArrowLeft') this.#point(Math.max(0, (this.#cursor ?? width) - step));
    else if (e.key === 'ArrowRight') this.#point(Math.min(width, (this.#cursor ?? width) + step));
    else if (e.key === 'Escape') this.#point(null);
    else return;
    e.preventDefault();
  }

  draw() {
    if (!this.#canvas.clientWidth) return;
    const { g, w, h } = fit(this.#canvas);
    const data = this.#source();
    if (!data) return;
    this.#colours ??= {
      line: colour('yes'), grid: colour('line'), text: colour('muted'), ink: colour('ink'), card: colour('card'),
      no: colour('no'), strong: colour('line-strong'),
    };
    const c = this.#colours;
    const right = w - AXIS_RIGHT;
    const bottom = h - AXIS_BOTTOM;

    // Time: up to now; a market that has just opened fills the width with what there is.
    const to = data.now;
    const first = data.points.length > 0 ? data.points[0].t : to;
    const from = Math.max(to - this.rangeMS, Math.min(first, to - 30_000));
    const x = (t) => ((t - from) / (to - from)) * right;

    // Price: what is in sight, with air; eased, so that the axis glides.
    const start = Math.max(0, firstAfter(data.points, from) - 1);
    let lo = data.price;
    let hi = data.price;
    for (let i = start; i < data.points.length; i++) {
      const p = data.points[i].p;
      if (p < lo) lo = p;
      if (p > hi) hi = p;
    }
    const air = Math.max((hi - lo) * 0.14, (LEAST_SPAN - (hi - lo)) / 2, 2_000);
    const want = { lo: Math.max(0, lo - air), hi: Math.min(1_000_000, hi + air) };
    if (!this.#span || reducedMotion.matches) this.#span = want;
    else {
      this.#span = { lo: this.#span.lo + (want.lo - this.#span.lo) * 0.12, hi: this.#span.hi + (want.hi - this.#span.hi) * 0.12 };
    }
    const { lo: y0, hi: y1 } = this.#span;
    const y = (p) => bottom - ((p - y0) / (y1 - y0)) * (bottom - TOP);

    g.font = `11px ${getComputedStyle(document.documentElement).fontFamily}`;
    g.textBaseline = 'middle';
    this.#grid(g, { c, right, bottom, x, y, y0, y1, from, to, now: y(data.price) });

    // The line: a point a pixel column is enough.
    const path = [];
    let column = -1;
    for (let i = start; i < data.points.length; i++) {
      const px = Math.max(0, x(data.points[i].t));
      const py = y(data.points[i].p);
      if (px > right) break;
      if (Math.floor(px) === column) path[path.length - 1] = [px, py];
      else path.push([px, py]);
      column = Math.floor(px);
    }
    const tip = [right, y(data.price)];
    path.push(tip);
    if (path.length === 1) path.unshift([0, tip[1]]);

    g.save();
    g.beginPath();
    g.rect(0, 0, w, bottom + 1);
    g.clip();
    const fill = g.createLinearGradient(0, TOP, 0, bottom);
    fill.addColorStop(0, alpha(c.line, 0.2));
    fill.addColorStop(1, alpha(c.line, 0));
    g.beginPath();
    g.moveTo(path[0][0], bottom);
    for (const [px, py] of path) g.lineTo(px, py);
    g.lineTo(right, bottom);
    g.closePath();
    g.fillStyle = fill;
    g.fill();
    g.beginPath();
    path.forEach(([px, py], i) => (i ? g.lineTo(px, py) : g.moveTo(px, py)));
    g.strokeStyle = c.line;
    g.lineWidth = 1.8;
    g.lineJoin = g.lineCap = 'round';
    g.stroke();

    // Own trades.
    for (const mark of data.marks) {
      if (mark.t < from) continue;
      g.beginPath();
      g.arc(x(mark.t), y(mark.p), 4.5, 0, 7);
      g.fillStyle = mark.side === 'yes' ? c.line : c.no;
      g.strokeStyle = c.card;
      g.lineWidth = 2;
      g.fill();
      g.stroke();
    }
    g.restore();

    // The price now.
    g.beginPath();
    g.setLineDash([2, 4]);
    g.moveTo(0, tip[1]);
    g.lineTo(right, tip[1]);
    g.strokeStyle = alpha(c.line, 0.5);
    g.lineWidth = 1;
    g.stroke();
    g.setLineDash([]);
    g.beginPath();
    g.arc(right, tip[1], 3.6, 0, 7);
    g.fillStyle = c.line;
    g.fill();
    tag(g, cents(data.price), right + 7, tip[1], c.line, c.card);

    this.#crosshair(g, data, { c, right, bottom, x, y, from, to });
  }

  #grid(g, { c, right, bottom, x, y, y0, y1, from, to, now }) {
    g.strokeStyle = c.grid;
    g.fillStyle = c.text;
    g.lineWidth = 1;
    const step = PRICE_STEPS.find((s) => (y1 - y0) / s <= 7) ?? 200_000;
    g.textAlign = 'left';
    for (let p = Math.ceil(y0 / step) * step; p < y1; p += step) {
      const py = Math.round(y(p)) + 0.5;
      if (py < TOP - 4) continue;
      g.beginPath();
      g.moveTo(0, py);
      g.lineTo(right, py);
      g.stroke();
      if (Math.abs(py - now) > 16) g.fillText(cents(p, step < 10_000 ? 1 : 0), right + 9, py);
    }
    const wide = right / 92;
    const span = TIME_STEPS.find((s) => (to - from) / s <= wide) ?? 600_000;
    g.textAlign = 'center';
    for (let t = Math.ceil(from / span) * span; t <= to; t += span) {
      const px = x(t);
      if (px < 26 || px > right - 20) continue;
      g.fillText(clock(t).slice(0, span < 60_000 ? 8 : 5), px, bottom + 13);
      g.beginPath();
      g.moveTo(Math.round(px) + 0.5, bottom);
      g.lineTo(Math.round(px) + 0.5, bottom + 4);
      g.stroke();
    }
    g.beginPath();
    g.moveTo(0, bottom + 0.5);
    g.lineTo(right, bottom + 0.5);
    g.stroke();
  }

  #crosshair(g, data, { c, right, bottom, x, y, from, to }) {
    if (this.#cursor == null || data.points.length === 0) {
      if (this.#seen) this.onReadout(null);
      this.#seen = null;
      return;
    }
    const px = Math.min(this.#cursor, right);
    const t = from + (px / right) * (to - from);
    const p = px >= right - 1 ? data.price : priceAt(data.points, t);
    const py = y(p);
    g.strokeStyle = c.strong;
    g.lineWidth = 1;
    g.setLineDash([3, 3]);
    g.beginPath();
    g.moveTo(Math.round(px) + 0.5, TOP);
    g.lineTo(Math.round(px) + 0.5, bottom);
    g.moveTo(0, Math.round(py) + 0.5);
    g.lineTo(right, Math.round(py) + 0.5);
    g.stroke();
    g.setLineDash([]);
    g.beginPath();
    g.arc(px, py, 4, 0, 7);
    g.fillStyle = c.card;
    g.strokeStyle = c.ink;
    g.lineWidth = 2;
    g.fill();
    g.stroke();
    tag(g, cents(p), right + 7, py, c.ink, c.card);
    g.textAlign = 'center';
    const label = clock(t);
    const half = g.measureText(label).width / 2 + 6;
    const lx = Math.max(half, Math.min(right - half, px));
    g.fillStyle = c.ink;
    round(g, lx - half, bottom + 3, half * 2, 18, 5);
    g.fillStyle = c.card;
    g.fillText(label, lx, bottom + 12.5);
    this.#seen = { t, p };
    this.onReadout(this.#seen);
  }
}

function tag(g, text, x, y, ground, ink) {
  g.textAlign = 'left';
  const width = g.measureText(text).width + 10;
  g.fillStyle = ground;
  round(g, x - 3, y - 9, width, 18, 5);
  g.fillStyle = ink;
  g.fillText(text, x + 2, y + 0.5);
}

function round(g, x, y, w, h, r) {
  g.beginPath();
  g.roundRect(x, y, w, h, r);
  g.fill();
}

/** "rgb(1, 2, 3)" with an alpha. */
function alpha(rgb, a) {
  const [r, gr, b] = rgb.match(/[\d.]+/g);
  return `rgba(${r}, ${gr}, ${b}, ${a})`;
}

/** Draws the last minutes of a market, small. */
export function sparkline(canvas, points, price, now, strokes) {
  const { g, w, h } = fit(canvas);
  if (w === 0) return;
  const from = Math.max(now - 240_000, points.length > 0 ? Math.min(points[0].t, now - 20_000) : now - 20_000);
  const start = Math.max(0, firstAfter(points, from) - 1);
  let lo = price;
  let hi = price;
  for (let i = start; i < points.length; i++) {
    lo = Math.min(lo, points[i].p);
    hi = Math.max(hi, points[i].p);
  }
  const span = Math.max(hi - lo, 10_000);
  const middle = (hi + lo) / 2;
  const y = (p) => h / 2 - ((p - middle) / span) * (h - 5);
  const first = start < points.length ? points[start].p : price;
  g.beginPath();
  g.moveTo(0, y(first));
  let column = -1;
  for (let i = start; i < points.length; i++) {
    const x = Math.max(0, ((points[i].t - from) / (now - from)) * (w - 3));
    if (Math.floor(x) === column) continue;
    column = Math.floor(x);
    g.lineTo(x, y(points[i].p));
  }
  g.lineTo(w - 3, y(price));
  g.strokeStyle = price >= first ? strokes.yes : strokes.no;
  g.lineWidth = 1.5;
  g.lineJoin = g.lineCap = 'round';
  g.stroke();
  g.beginPath();
  g.arc(w - 3, y(price), 2.2, 0, 7);
  g.fillStyle = g.strokeStyle;
  g.fill();
}
