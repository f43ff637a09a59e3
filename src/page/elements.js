// What the page is made of. Labels come from traced programs: they only ever become text nodes and attributes. find.js and page.js
// follow in the same file.
"use strict";

const byId = (id) => document.getElementById(id);

// ---- elements

// What would turn the direction of the text around it is shown as its number.
const plain = (value) =>
  typeof value === "string" ? value.replace(/[\u202a-\u202e\u2066-\u2069]/g, (c) => "\\u" + c.charCodeAt(0).toString(16)) : value;

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, plain(value));
  }
  node.append(...children.flat(9).filter((child) => child !== null && child !== undefined).map(plain));
  return node;
}

const h = (tag, attributes, ...children) => make(document.createElement(tag), attributes, children);

const svg = (tag, attributes, ...children) =>
  make(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// Makes `old` like `now` and leaves alone what is the same, so that focus, selection and a screen reader's place stay.
function morph(old, now) {
  if (old.nodeName !== now.nodeName) {
    old.replaceWith(now);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== now.nodeValue) old.nodeValue = now.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!now.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of now.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const after = [...now.childNodes];
  const wanted = new Set(after.map(keyOf));
  const keyed = new Map();
  for (const child of [...old.childNodes]) {
    const key = keyOf(child);
    if (key === null) continue;
    if (wanted.has(key)) keyed.set(key, child);
    else child.remove();
  }
  let at = old.firstChild;
  for (const child of after) {
    const key = keyOf(child);
    const same = key !== null ? keyed.get(key) : at && keyOf(at) === null ? at : undefined;
    keyed.delete(key);
    if (same === undefined) {
      old.insertBefore(child, at);
      continue;
    }
    if (same === at) at = at.nextSibling;
    else old.insertBefore(same, at);
    morph(same, child);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// What is the same one in the next drawing, wherever it is then.
const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);

// Words in backticks are what one types.
const prose = (words) => words.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));

// ---- numbers

const DASH = "\u2013";
const is = (value) => typeof value === "number" && Number.isFinite(value);

function short(value) {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return Number(value.toFixed(digits)).toString();
}

function scaled(value, units, step) {
  if (!is(value)) return DASH;
  let at = 0;
  while (Math.abs(value) >= step && at < units.length - 1) {
    value /= step;
    at += 1;
  }
  return `${short(value)}${units[at]}`;
}

function count(value) {
  if (!is(value)) return DASH;
  if (Number.isInteger(value) && Math.abs(value) < 10000) return String(value);
  if (value !== 0 && Math.abs(value) < 0.01) return value.toPrecision(2);
  return scaled(value, ["", " k", " M", " G", " T"], 1000);
}

const bytes = (value) => scaled(value, [" B", " kB", " MB", " GB", " TB"], 1000);

function duration(value) {
  if (!is(value)) return DASH;
  const size = Math.abs(value);
  if (size === 0) return "0 s";
  if (size < 1) return scaled(value * 1e9, [" ns", " \u00b5s", " ms"], 1000);
  if (size < 120) return `${short(value)} s`;
  if (size < 7200) return `${Math.round(value / 60)} min`;
  if (size < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}

function ago(time, now) {
  if (!is(time)) return "never";
  const seconds = Math.max(0, now - time);
  return seconds < 3 ? "just now" : `${duration(Math.round(seconds))} ago`;
}

function percent(value) {
  if (!is(value)) return DASH;
  return value > 0 && value < 0.0005 ? "< 0.1 %" : `${(value * 100).toFixed(1)} %`;
}

// A height or a size at this moment: a rounded one would be wrong.
const exact = (value) => (Number.isSafeInteger(value) ? value.toLocaleString("en") : count(value));

function inUnit(value, unit) {
  if (unit === "seconds") return duration(value);
  if (unit === "bytes") return bytes(value);
  if (unit === "timestamp") return is(value) ? new Date(value * 1000).toISOString().replace("T", " ").slice(0, 19) : DASH;
  return count(value);
}

// ---- parts

function section(id, title, about, ...content) {
  const heading = h("h2", { id: `h-${id}` }, title, about ? h("small", { class: "muted" }, ` ${about}`) : null);
  return h("section", { "aria-labelledby": `h-${id}`, "data-key": id }, heading, content);
}

// Columns are [title, class]. On narrow screens rows are drawn as paragraphs, in which a number has its column's title before it; the
// roles keep it a table for screen readers that go by how it is drawn.
function table(name, kind, columns, rows) {
  const head = columns.map(([title, style]) => h("th", { scope: "col", role: "columnheader", class: style }, title));
  for (const row of rows) {
    row.setAttribute("role", "row");
    [...row.cells].forEach((cell, at) => {
      cell.setAttribute("role", cell.nodeName === "TH" ? "rowheader" : "cell");
      if (cell.matches(".number, .titled") && !cell.hasAttribute("data-title")) cell.setAttribute("data-title", columns[at][0]);
    });
  }
  const all = h(
    "table",
    { class: kind, role: "table", "aria-label": name },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, rows),
  );
  return h("div", { class: "table", role: "region", "aria-label": name, tabindex: "0" }, all);
}

const number = (text, style) => h("td", { class: `number ${style || ""} ${text === DASH ? "unknown" : ""}`.trim() }, text);
const wide = (...content) => h("td", { class: "wide" }, content);
const more = (left, what) => (left > 0 ? h("p", { class: "muted" }, `and ${left} more ${what}; /metrics has all.`) : null);

// ---- what nothing happens to

// More of a kind than this are folded.
const MANY = 8;
const QUIET = 300;

const opened = new Set();

// Names behind a line that opens them.
function folded(key, words, items) {
  const list = items.map((item) => h("li", {}, item));
  return h("details", { "data-key": key, open: opened.has(key) ? "" : null }, h("summary", {}, words), h("ul", { class: "names" }, list));
}

// The same as a row of a table.
const foldedRow = (key, span, words, items) => h("tr", { class: "folded", "data-key": key }, h("td", { colspan: span }, folded(key, words, items)));

// What stays as it is, and the kinds of which there are too many: `kindOf` tells of each what quiet kind it is, or null.
function fold(all, kindOf) {
  // What is looked for is not put away.
  if (wanted.length > 0) return { shown: all, large: [] };
  const kinds = new Map();
  for (const one of all) {
    const kind = kindOf(one);
    if (kind !== null) kinds.set(kind, [...(kinds.get(kind) || []), one]);
  }
  const large = [...kinds].filter(([, members]) => members.length > MANY);
  const away = new Set(large.flatMap(([, members]) => members));
  return { shown: all.filter((one) => !away.has(one)), large };
}

function sparkline(values, about) {
  if (values.length < 2) return null;
  const [width, height] = [90, 18];
  const top = Math.max(...values, 1e-9);
  const x = (at) => (at * width) / (values.length - 1);
  const y = (value) => height - 1.5 - ((height - 3) * value) / top;
  const points = values.map((value, at) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const label = `${about}, the last minute: at most ${about.startsWith("bytes") ? bytes(top) : count(top)} a second`;
  return svg(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("title", {}, label),
    svg("polyline", { class: "line", points }),
  );
}

function quantiles(distribution, unit) {
  const words = { 0.5: "half", 0.9: "nine of ten", 0.99: "99 %" };
  return distribution.quantiles
    .map((one) => `${words[one.quantile]} ${one.is_beyond ? "over" : "under"} ${inUnit(one.value, unit)}`)
    .join(", ");
}

function histogram(distribution, bounds, unit) {
  if (distribution.count === 0) return h("span", { class: "muted" }, "no value yet");
  const bar = Math.max(3, Math.min(9, Math.floor(260 / distribution.counts.length)));
  const [width, height] = [bar * distribution.counts.length, 30];
  const most = Math.max(...distribution.counts, 1);
  const bars = distribution.counts.map((value, at) => {
    const size = value === 0 ? 0 : Math.max(2, (value / most) * (height - 2));
    const from = at === 0 ? "up to" : `over ${inUnit(bounds[at - 1], unit)}`;
    const to = at < bounds.length ? (at === 0 ? ` ${inUnit(bounds[at], unit)}` : ` up to ${inUnit(bounds[at], unit)}`) : "";
    const place = { x: at * bar, width: bar, y: 0, height, "fill-opacity": "0" };
    const shape = { x: at * bar + 0.5, width: bar - 1, y: height - 1 - size, height: size };
    return svg("g", {}, svg("title", {}, `${from}${to}: ${value}`), svg("rect", place), svg("rect", shape));
  });
  const text = quantiles(distribution, unit);
  return h(
    "div",
    { class: "chart" },
    svg(
      "svg",
      { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Distribution: ${text}` },
      bars,
      svg("path", { class: "axis", d: `M0 ${height - 0.5}H${width}` }),
    ),
    h("span", {}, text),
  );
}

function labels(all) {
  return all.map(([name, value]) =>
    h("span", { class: "chip" }, h("span", { class: "muted" }, `${name} `), h("span", { class: "mono" }, value === "" ? "(empty)" : value)),
  );
}
