// Draws /api/v1/status every two seconds, with what elements.js has.

const EVERY = 2000;
const SLOWEST = 30000;

// ---- sections

// What is optional and not there is nothing to look at.
const attachedStyle = (attached, missing, shed) => (missing > 0 && attached === 0 ? "bad" : missing + shed > 0 ? "warn" : "good");

function tiles(status) {
  const { totals, network, exporter, targets, time } = status;
  const all = [];
  const tile = (name, value, style) => all.push(h("div", {}, h("dt", {}, name), h("dd", { class: style }, value)));
  if (totals.probes > 0) {
    tile("probes attached", `${totals.attached} of ${totals.probes}`, attachedStyle(totals.attached, totals.missing, totals.shed));
    tile("hits a second", count(totals.hits_per_second));
    tile("last hit", ago(totals.last_hit, time));
    tile("hits lost", count(totals.lost), totals.lost > 0 ? "bad" : "good");
    const shares = targets.map((target) => target.overhead_ratio).filter(is);
    if (shares.length > 0) tile("of a target's CPU time in probes, at most", percent(Math.max(...shares)));
    tile("series", count(totals.series));
  }
  if (network) {
    tile("received", `${bytes(network.received_bytes_per_second)}/s`);
    tile("sent", `${bytes(network.sent_bytes_per_second)}/s`);
  }
  tile(`of a CPU, ${bytes(exporter.memory_bytes)}: the exporter`, percent(exporter.cpu_ratio));
  return h("dl", { class: "tiles" }, all);
}

function attention(all) {
  if (all.length === 0) return null;
  const word = { error: "Error: ", warning: "Warning: ", note: "Note: " };
  const items = all.map((one) =>
    h(
      "li",
      { class: one.severity },
      h("strong", {}, h("span", { class: "word" }, word[one.severity]), one.subject),
      one.reason ? h("p", { class: "reason" }, prose(one.reason)) : null,
      one.action ? h("p", {}, prose(one.action)) : null,
    ),
  );
  return section("attention", "Needs attention", "", h("ul", { class: "attention" }, items));
}

const LOOKS = {
  attached: ["\u25cf", "good"],
  partly: ["\u25d0", "warn"],
  shed: ["\u25cb", "warn"],
};

function state(word, isMissing) {
  const [sign, style] = LOOKS[word] || ["\u25cb", isMissing ? "bad" : "muted"];
  return h("span", { class: `state ${style}` }, h("span", { "aria-hidden": "true" }, `${sign} `), word.replace("_", " "));
}

const PROBE_COLUMNS = [
  ["target / probe"],
  ["state"],
  ["places", "number"],
  ["hits", "number"],
  ["a second", "number"],
  ["last minute", "wide"],
  ["last hit", "number"],
  ["lost", "number"],
  ["cost a second", "number"],
];

const lostOf = (probe) => probe.lost.reduce((sum, one) => sum + one.hits, 0);

function probeRow(target, probe, time) {
  const lost = lostOf(probe);
  const reasons = probe.lost.map((one) => `${one.reason}: ${one.hits}`).join(", ");
  const never = !["attached", "partly"].includes(probe.state) && probe.hits === 0;
  const of = (text) => (never ? DASH : text);
  const about = (cell, title) => make(cell, { title }, []);
  return h(
    "tr",
    { "data-key": `${target.name}\0${probe.name}` },
    h("th", { scope: "row", class: "name probe" }, h("span", { class: "mono" }, probe.name)),
    h("td", { title: probe.reason || null }, state(probe.state, probe.is_missing)),
    number(of(count(probe.sites))),
    about(number(of(count(probe.hits))), probe.filtered > 0 ? `of which ${probe.filtered} of other processes` : null),
    number(of(count(probe.hits_per_second))),
    wide(never ? null : sparkline(probe.recent, "hits")),
    number(of(ago(probe.last_hit, time))),
    about(number(of(count(lost)), lost > 0 ? "bad" : ""), reasons || null),
    number(of(duration(probe.cost_ratio))),
  );
}

// A state, and when it was hit. What has lost hits is never quiet.
function quietProbe(probe, time) {
  if (lostOf(probe) > 0) return null;
  if (probe.hits === 0) return `${probe.state}${probe.is_missing ? "!" : ""}`;
  return probe.state === "attached" && time - probe.last_hit > QUIET ? "quiet" : null;
}

function quietProbes(target, [kind, members], time) {
  const { state: word, is_missing: isMissing } = members[0];
  const when = kind === "quiet" ? "not hit for five minutes" : word === "attached" || word === "partly" ? "never hit" : "";
  const words = [state(word, isMissing), ` ${members.length} probes${when ? `, ${when}` : ""}`];
  const items = members.map((probe) => [
    h("span", { class: "mono" }, probe.name),
    h("span", { class: "muted" }, probe.hits > 0 ? ` ${count(probe.hits)} hits, the last ${ago(probe.last_hit, time)}` : probe.reason ? ` ${probe.reason}` : ""),
  ]);
  return foldedRow(`${target.name}\0\0${kind}`, PROBE_COLUMNS.length, words, items);
}

function targetRows(target, time) {
  const of = (state) => target.probes.filter((probe) => probe.state === state).length;
  const missing = target.probes.filter((probe) => probe.is_missing).length;
  const { shown, large } = fold(target.probes, (probe) => quietProbe(probe, time));
  return [
    h(
      "tr",
      { class: "group", "data-key": target.name },
      h("th", { scope: "rowgroup", class: "name" }, target.name),
      h("td", {}, h("span", { class: attachedStyle(target.attached, missing, of("shed")) }, `${target.attached} of ${target.configured} attached`)),
      number(""),
      number(count(target.hits)),
      number(count(target.hits_per_second)),
      wide(),
      number(ago(target.last_hit, time)),
      number(count(target.lost), target.lost > 0 ? "bad" : ""),
      h("td", { class: "number", "data-title": "of its CPU time" }, is(target.overhead_ratio) ? percent(target.overhead_ratio) : null),
    ),
    shown.map((probe) => probeRow(target, probe, time)),
    large.map((group) => quietProbes(target, group, time)),
  ];
}

// A target of which nothing is attached, for one reason, and that has counted nothing.
function quietTarget(target) {
  const [first, ...others] = target.probes;
  const isAlike = (probe) => probe.state === first.state && probe.is_missing === first.is_missing;
  if (target.attached > 0 || target.hits > 0 || target.lost > 0 || !first || !others.every(isAlike)) return null;
  return `${first.state}${first.is_missing ? "!" : ""}`;
}

function quietTargets([kind, members]) {
  const { state: word, is_missing: isMissing } = members[0].probes[0];
  const items = members.map((target) => [
    h("span", { class: "mono" }, target.name),
    h("span", { class: "muted" }, ` ${target.probes[0].reason}`),
  ]);
  return foldedRow(`targets\0${kind}`, PROBE_COLUMNS.length, [state(word, isMissing), ` ${members.length} targets`], items);
}

function probes(status) {
  if (status.totals.probes === 0 || status.targets.length === 0) return null;
  const { shown, large } = fold(status.targets, quietTarget);
  const rows = [...shown.flatMap((target) => targetRows(target, status.time)).flat(), ...large.map(quietTargets)];
  const costs = status.exporter.hit_cost_seconds;
  const measured = costs.length > 0 && costs[0].source === "measured" ? "measured here at start" : "assumed";
  const prices = costs.map((one) => `${duration(one.seconds)} ${one.form.replace("_", "-")}`).join(", ");
  return section(
    "probes",
    "Probes",
    "what is attached, how often it is hit, and what that takes of the traced programs",
    table("Probes", "", PROBE_COLUMNS, rows),
    more(status.left_out.probes, "probes"),
    costs.length > 0 ? h("p", { class: "muted" }, `A hit takes at least ${prices} (${measured}). A target's share is of the CPU time of its processes in the last ten seconds.`) : null,
  );
}

function metricRows(metric) {
  const name = (first) => h(first ? "th" : "td", { scope: first ? "row" : null, class: "name" }, first ? [h("span", { class: "mono" }, metric.name), metric.help ? h("div", { class: "muted help" }, metric.help) : null] : null);
  const isHistogram = metric.kind === "histogram";
  const show = (value) => (metric.kind === "gauge" && metric.unit === "" ? exact(value) : inUnit(value, metric.unit));
  const speed = metric.unit === "bytes" && !isHistogram ? bytes(metric.per_second) : count(metric.per_second);
  const rate = is(metric.per_second) ? h("span", { class: "muted" }, `${isHistogram ? "," : ""} ${speed}/s`) : null;
  const rest = metric.series_total - metric.series.length;
  if (!isHistogram) {
    const only = metric.series_total === 1;
    const named = metric.series.filter((series) => series.labels.length > 0);
    const value = metric.series_total === 0 ? "none yet" : only ? show(metric.series[0].value) : metric.kind === "counter" ? show(metric.total) : `${metric.series_total} series`;
    const list = named.map((series) =>
      h("div", {}, labels(series.labels), only ? null : h("b", {}, show(series.value))),
    );
    if (rest > 0) list.push(h("div", { class: "muted" }, `and ${rest} more`));
    return [h("tr", {}, name(true), number([value, rate]), h("td", { class: "labels" }, list))];
  }
  if (metric.series.length === 0) return [h("tr", {}, name(true), number("none yet"), h("td", {}))];
  const rows = metric.series.map((series, at) => {
    const one = series.distribution;
    const value = [count(one.count), is(one.mean) ? [h("span", { class: "muted" }, " \u00d7 mean "), inUnit(one.mean, metric.unit)] : null];
    const chart = h("td", {}, series.labels.length > 0 ? h("div", {}, labels(series.labels)) : null, histogram(one, metric.bounds, metric.unit));
    return h("tr", {}, name(at === 0), number([value, at === 0 && metric.series_total === 1 ? rate : null]), chart);
  });
  if (rest > 0) rows.push(h("tr", {}, name(false), number(""), h("td", { class: "muted" }, `and ${rest} more`)));
  return rows;
}

const hasValue = (metric) => metric.series_total > 0 && (metric.kind === "gauge" || metric.total > 0);

function metrics(status) {
  if (status.metrics.length === 0) return null;
  const columns = [["metric"], ["now", "number"], ["distribution, or the largest values"]];
  const { shown, large } = fold(status.metrics, (metric) => (hasValue(metric) ? null : "empty"));
  const empty = large.map(([kind, members]) => {
    const items = members.map((metric) => [h("span", { class: "mono" }, metric.name), h("span", { class: "muted" }, ` ${metric.help}`)]);
    return folded(`metrics\0${kind}`, `${members.length} metrics without a value yet`, items);
  });
  return section(
    "metrics",
    "What was measured",
    "",
    shown.length > 0 ? table("Metrics", "metrics", columns, shown.flatMap(metricRows)) : null,
    empty,
    more(status.left_out.metrics, "metrics"),
  );
}

// Both directions of each interface, in the order of the first.
function byInterface(directions) {
  const all = new Map();
  for (const one of directions) {
    const name = one.labels.map(([label, value]) => (label === "interface" ? value : `${label} ${value}`)).join(", ");
    all.set(name, { ...all.get(name), name, [one.direction]: one });
  }
  return [...all.values()];
}

const ofBoth = ({ ingress, egress }) => [ingress, egress].filter((one) => one !== undefined);
const trafficOf = (one) => ofBoth(one).reduce((sum, way) => sum + (way.bytes || 0), 0);

// Those without traffic, and those with the least of it: a host of containers has hundreds.
function quietInterfaces(all) {
  const ranked = [...all].sort((a, b) => trafficOf(b) - trafficOf(a));
  const busiest = new Set(ranked.slice(0, MANY));
  return (one) => {
    const is = (condition) => ofBoth(one).every(condition);
    if (!is((way) => way.is_counted && way.malformed === 0)) return null;
    return is((way) => way.packets_per_second === 0) ? "without packets lately" : busiest.has(one) ? null : "with less traffic";
  };
}

function hooks(one) {
  const direction = (way) => (way === one.ingress ? "in" : "out");
  const counted = ofBoth(one).filter((way) => way.is_counted).map((way) => `${direction(way)} ${way.hook}`);
  const failed = ofBoth(one).filter((way) => !way.is_counted);
  return [counted.join(", "), failed.map((way) => h("div", { class: "bad" }, `${direction(way)} not counted: ${way.hook}`))];
}

function interfaceRow(one, hasSpeed) {
  const used = ofBoth(one).map((way) => way.bytes_per_second / way.speed_bytes_per_second).filter(is);
  const malformed = ofBoth(one).reduce((sum, way) => sum + way.malformed, 0);
  const rate = (way) => number(way && way.is_counted ? `${bytes(way.bytes_per_second)}/s` : DASH);
  const packets = (way) => number(way && way.is_counted ? count(way.packets_per_second) : DASH);
  return h(
    "tr",
    { "data-key": one.name },
    h("th", { scope: "row", class: "name" }, h("span", { class: "mono" }, one.name)),
    h("td", { class: "labels" }, hooks(one)),
    rate(one.ingress),
    rate(one.egress),
    hasSpeed ? number(used.length > 0 ? percent(Math.max(...used)) : DASH) : null,
    packets(one.ingress),
    packets(one.egress),
    wide(one.ingress ? sparkline(one.ingress.recent, "bytes received") : null, one.egress ? sparkline(one.egress.recent, "bytes sent") : null),
    number(count(malformed), malformed > 0 ? "warn" : ""),
  );
}

function network(status) {
  const { network } = status;
  if (!network) return null;
  const interfaces = byInterface(network.interfaces);
  if (wanted.length > 0 && interfaces.length === 0) return null;
  const { shown, large } = fold(interfaces, quietInterfaces(interfaces));
  const hasSpeed = network.interfaces.some((one) => is(one.speed_bytes_per_second));
  const columns = [["interface"], ["hook"], ["received", "number"], ["sent", "number"], hasSpeed ? ["of the link", "number"] : null, ["packets/s in", "number"], ["packets/s out", "number"], ["last minute", "wide"], ["malformed", "number"]].filter((column) => column !== null);
  const rates = (one) => h("span", { class: "muted" }, ` ${bytes(one.ingress?.bytes_per_second)}/s in, ${bytes(one.egress?.bytes_per_second)}/s out`);
  const quiet = large.map(([kind, members]) => folded(`network\0${kind}`, `${members.length} interfaces ${kind}`, members.map((one) => [h("span", { class: "mono" }, one.name), rates(one)])));
  const talkers = network.talkers.map((one) =>
    h("tr", {}, h("th", { scope: "row", class: "name" }, h("span", { class: "mono" }, one.address)), h("td", { class: "titled" }, one.interface), number(bytes(one.received_bytes)), number(bytes(one.sent_bytes)), number(count(one.packets)), number(ago(one.last_seen, status.time))),
  );
  return section(
    "network",
    "Packets",
    "",
    interfaces.length === 0 ? h("p", { class: "muted" }, "There is no such interface yet.") : null,
    shown.length > 0 ? table("Interfaces", "", columns, shown.map((one) => interfaceRow(one, hasSpeed))) : null,
    quiet,
    more(network.left_out, "directions of interfaces"),
    talkers.length > 0 ? table("Talkers", "", [["remote host"], ["interface"], ["received", "number"], ["sent", "number"], ["packets", "number"], ["last seen", "number"]], talkers) : null,
  );
}

function blocklist(status) {
  const list = status.blocklist;
  if (!list) return null;
  const by = list.sources.map(([source, number]) => `${source} ${exact(number)}`).join(", ");
  const packets = list.is_enforced ? list.dropped : list.would_drop;
  const rate = is(list.packets_per_second) ? `, ${count(list.packets_per_second)} a second` : "";
  const rows = list.busiest.map((one) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", class: "name" }, h("span", { class: "mono" }, one.prefix)),
      h("td", { class: "titled" }, one.source),
      h("td", { class: "labels" }, one.reason, one.is_unconfirmed ? h("span", { class: "warn" }, " not confirmed yet") : null),
      number(one.expires_in === null ? "never" : `in ${duration(one.expires_in)}`),
      number(count(one.packets)),
      number(bytes(one.bytes)),
      number(ago(one.last_seen, status.time)),
    ),
  );
  const columns = [["source"], ["listed by"], ["reason"], ["ends", "number"], ["packets", "number"], ["bytes", "number"], ["last seen", "number"]];
  return section(
    "blocklist",
    "Blocked sources",
    list.is_enforced ? "their packets are dropped" : "mode observe: nothing is dropped",
    h("p", {}, `${exact(list.entries)} ${list.entries === 1 ? "entry" : "entries"}${by ? ` (${by})` : ""}, ${exact(list.allowed)} that are never dropped. ${exact(packets)} packets ${list.is_enforced ? "were dropped" : "would have been dropped"}${rate}.`),
    rows.length > 0 ? table("Blocked sources", "", columns, rows) : null,
  );
}

function slow(status) {
  if (status.slow.length === 0) return null;
  const reason = (one) =>
    [one.over === null ? null : `over ${inUnit(one.over, one.unit)}`, one.worst === null ? null : `of the worst ${one.worst} of its hour`]
      .filter((part) => part !== null)
      .join(", ");
  const signed = (after) => `${after < 0 ? "\u2212" : "+"}${duration(Math.abs(after))}`;
  const rows = status.slow.map((one) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", class: "name" }, h("span", { class: "mono" }, one.metric), h("div", { class: "muted help" }, one.target)),
      h("td", { class: "number" }, h("b", {}, inUnit(one.value, one.unit)), h("div", { class: "muted help" }, reason(one))),
      number(ago(one.time, status.time)),
      h(
        "td",
        { class: "labels" },
        h("div", {}, labels(one.fields)),
        one.related.map((other) => h("div", {}, h("span", { class: "chip muted" }, signed(other.after)), h("span", { class: "chip mono" }, other.probe), labels(other.fields))),
      ),
    ),
  );
  return section(
    "slow",
    "Slow events",
    "the latest that were kept; exporter events shows all",
    table("Slow events", "slow", [["metric"], ["value", "number"], ["when", "number"], ["the event, and what belongs to it"]], rows),
  );
}

function scrapes(status) {
  const { total, failed, recent } = status.scrapes;
  const hasUsers = recent.some((one) => one.user);
  const rows = recent.map((one) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", class: "name" }, h("span", { class: "mono" }, one.peer)),
      hasUsers ? h("td", { class: "titled" }, one.user) : null,
      h("td", { class: "labels" }, one.agent),
      number(ago(one.time, status.time)),
      number(duration(one.seconds)),
      number(bytes(one.bytes)),
      number(String(one.status), one.status === 200 ? "" : "bad"),
      number(count(one.scrapes)),
    ),
  );
  const columns = [["who"], hasUsers ? ["user"] : null, ["client"], ["last", "number"], ["took", "number"], ["size", "number"], ["status", "number"], ["times", "number"]].filter((column) => column !== null);
  return section(
    "scrapes",
    "Who scrapes",
    "",
    h("p", {}, total === 0 ? "Nobody has asked for /metrics yet." : `/metrics was asked for ${total === 1 ? "once" : `${count(total)} times`}${failed > 0 ? `, ${count(failed)} of them without success` : ""}.`),
    rows.length > 0 ? table("Scrapes", "", columns, rows) : null,
  );
}

function text(id, value) {
  if (byId(id).textContent !== value) byId(id).textContent = value;
}

let latest = null;

function draw(status) {
  latest = status;
  const words = { working: "working", degraded: "needs attention", not_ready: "not ready" };
  const { node, exporter_version, kernel, started } = status.exporter;
  const word = words[status.state] || status.state;
  byId("badge").className = `badge ${status.state}`;
  text("badge", word);
  text("about", `node ${node} \u00b7 version ${exporter_version} \u00b7 Linux ${kernel} \u00b7 up ${duration(status.time - started)}`);
  text("summary", status.summary);
  text("config", configFor(status.connect));
  document.title = `exporter on ${node}: ${word}`;
  const shown = found(status);
  text("found", foundWords(shown));
  const parts = [tiles(status), attention(shown.attention), probes(shown), metrics(shown), slow(shown), network(shown), blocklist(status), scrapes(status)];
  morph(byId("live"), h("div", { id: "live" }, parts.filter((part) => part !== null)));
}

// By the address that this browser came by.
function configFor(connect) {
  return connect.scrape_config.replace(JSON.stringify(connect.address), JSON.stringify(location.host || connect.address));
}

// ---- asking

let wait = EVERY;
let timer = null;
let paused = false;
let asking = false;

function trouble(message) {
  byId("trouble").hidden = message === "";
  text("trouble", message);
  document.body.classList.toggle("stale", message !== "");
  if (message !== "") {
    byId("badge").className = "badge stale";
    text("badge", "no answer");
    document.title = "exporter: no answer";
  }
}

function schedule() {
  clearTimeout(timer);
  timer = null;
  if (!paused && !document.hidden) timer = setTimeout(ask, wait);
}

async function ask() {
  if (asking) return;
  asking = true;
  try {
    // The page's own address may have the password in it, which fetch refuses.
    const answer = await fetch(new URL("/api/v1/status", location.origin), { signal: AbortSignal.timeout(20000) });
    if (!answer.ok) throw new Error(answer.status === 401 ? "the password is not accepted any more; load the page again" : `status ${answer.status}`);
    const status = await answer.json();
    trouble("");
    draw(status);
    wait = EVERY;
  } catch (error) {
    wait = Math.min(SLOWEST, wait * 2);
    const reason = error.name === "TimeoutError" ? "nothing in 20 seconds" : error.message;
    trouble(`The exporter does not answer (${reason}). What is below is old; it is asked again.`);
  } finally {
    asking = false;
    schedule();
  }
}

byId("pause").hidden = false;
byId("pause").addEventListener("click", () => {
  paused = !paused;
  text("pause", paused ? "Go on" : "Pause");
  if (paused) schedule();
  else ask();
});

byId("search").hidden = false;
byId("find").addEventListener("input", () => {
  wanted = byId("find").value.toLowerCase().split(/\s+/).filter((word) => word !== "");
  if (latest) draw(latest);
});
byId("find").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  byId("find").value = "";
  byId("find").dispatchEvent(new Event("input"));
});

byId("copy").hidden = !navigator.clipboard;
byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("config").textContent);
    text("copied", "Copied.");
  } catch {
    text("copied", "The browser does not allow it: select and copy it by hand.");
  }
});

// Does not bubble.
byId("live").addEventListener(
  "toggle",
  ({ target }) => (target.open ? opened.add(keyOf(target)) : opened.delete(keyOf(target))),
  true,
);

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !paused) ask();
  else schedule();
});

ask();
