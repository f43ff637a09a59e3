
// ---- finding

// The words that everything shown must have, in lower case.
let wanted = [];

// Each word may be in another one of the texts.
const isFound = (...texts) => wanted.every((word) => texts.some((text) => typeof text === "string" && text.toLowerCase().includes(word)));

// The status with only what has the words.
function found(status) {
  if (wanted.length === 0) return status;
  const hasWords = (target) => (probe) => isFound(target.name, probe.name, probe.state.replace("_", " "), probe.reason);
  const targets = status.targets.map((target) => ({ ...target, probes: target.probes.filter(hasWords(target)) }));
  const { network } = status;
  return {
    ...status,
    attention: status.attention.filter((one) => isFound(one.subject, one.reason, one.action)),
    targets: targets.filter((target) => target.probes.length > 0),
    metrics: status.metrics.filter((one) => isFound(one.name, one.help, ...one.series.flatMap((series) => series.labels.flat()))),
    slow: status.slow.filter((one) => isFound(one.metric, one.target, ...one.fields.flat())),
    network: network && { ...network, interfaces: network.interfaces.filter((one) => isFound(...one.labels.flat())) },
  };
}

// How much that is, for those who do not see it.
function foundWords({ targets, metrics, network }) {
  if (wanted.length === 0) return "";
  const number = (size, one) => (size > 0 ? `${size} ${one}${size === 1 ? "" : "s"}` : null);
  const probes = targets.reduce((sum, target) => sum + target.probes.length, 0);
  const interfaces = network ? byInterface(network.interfaces).length : 0;
  const parts = [number(probes, "probe"), number(metrics.length, "metric"), number(interfaces, "interface")];
  return parts.filter((part) => part !== null).join(", ") || "nothing found";
}
