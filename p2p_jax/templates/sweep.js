// A sweep: its trials, which keys matter, where good values lie, and curves.
const name = (trial) => `trial ${trial.number}`;
const shown = (value) => (typeof value === "number" ? figure(value) : value ?? "–");

function trials() {
  const state = { complete: "good", failed: "bad" };
  return h("section", { id: "trials" }, h("h2", {}, "Trials"),
    data.trials.length ? h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ["trial", "state", `${data.metric} ${arrow(data.better)}`, "steps", ...data.keys].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, data.trials.map((trial) => h("tr", { "data-trial": trial.number },
        h("th", { scope: "row" }, trial.report ? h("a", { href: trial.report }, name(trial)) : name(trial)),
        h("td", {}, h("span", { class: state[trial.state] ?? "soft" }, trial.state), trial.reason ? h("span", { class: "small soft" }, trial.reason) : null),
        h("td", {}, figure(trial.value)), h("td", {}, trial.steps ? count(trial.steps) : "–"),
        data.keys.map((key) => h("td", {}, shown(trial.params[key]))))))))
      : h("p", { class: "empty" }, "No trial has begun."));
}

function importance() {
  return h("section", { id: "importance" }, h("h2", {}, "What matters"),
    data.importance.length ? [h("p", { class: "small soft" }, "The share of each key in what sets the best of the completed trials apart: a tenth, or up to a third where they are few (PED-ANOVA). With few trials it says little."),
      h("div", { class: "bars" }, data.importance.flatMap(([key, share]) => [h("span", {}, key),
        h("span", { class: "track" }, h("i", { style: `width: ${(100 * share).toFixed(1)}%` })), h("span", { class: "number" }, figure(share))]))]
      : h("p", { class: "empty" }, "It takes four completed trials that differ to tell."));
}

// One vertical axis a key, the metric last; a line a trial, the better the stronger.
function coordinates() {
  const kept = data.trials.filter((trial) => trial.value !== null && trial.state !== "failed");
  if (kept.length < 2) return null;
  const keys = [...data.keys, data.metric], wide = Math.max(900, keys.length * 190), high = 300, top = 34, bottom = 262;
  const value = (trial, key, i) => (i === keys.length - 1 ? trial.value : trial.params[key]);
  const axes = keys.map((key, i) => {
    const values = kept.map((trial) => value(trial, key, i)), at = 80 + (i * (wide - 160)) / Math.max(1, keys.length - 1);
    if (values.some((v) => typeof v !== "number")) {
      const names = [...new Set(values.map(String))];
      return { key, at, y: (v) => bottom - ((names.indexOf(String(v)) + 0.5) / names.length) * (bottom - top), labels: names };
    }
    const low = Math.min(...values), most = Math.max(...values), log = low > 0 && most / low > 20, f = log ? Math.log : (v) => v;
    return { key, at, y: (v) => (low === most ? (top + bottom) / 2 : bottom - ((f(v) - f(low)) / (f(most) - f(low))) * (bottom - top)), labels: [...new Set([low, most])] };
  });
  const order = [...kept].sort((a, b) => (data.better === "min" ? a.value - b.value : b.value - a.value));
  const lines = order.map((trial, rank) => {
    const strength = 1 - rank / order.length;
    return s("path", { "data-trial": trial.number, stroke: trial.state === "complete" ? COLOURS[0] : "#8a8a94", opacity: 0.15 + 0.85 * strength ** 2, fill: "none", "stroke-width": 1 + 1.5 * strength,
      d: axes.map((axis, i) => `${i ? "L" : "M"}${axis.at.toFixed(1)} ${axis.y(value(trial, axis.key, i)).toFixed(1)}`).join("") },
    s("title", {}, `${name(trial)}: ${data.metric} ${figure(trial.value)}`));
  }).reverse();
  return h("section", { id: "coordinates" }, h("h2", {}, "Where good values lie"),
    h("p", { class: "small soft" }, "A line is a trial, from its values to its figure; the better, the stronger. Pruned ones are grey."),
    h("div", { class: "scroll" }, h("figure", { class: "chart" }, s("svg", { viewBox: `0 0 ${wide} ${high}`, style: "min-width: 640px", role: "img", "aria-label": "Values of the trials, as parallel coordinates" },
      lines, axes.flatMap((axis) => [s("line", { class: "base", x1: axis.at, x2: axis.at, y1: top, y2: bottom }),
        s("text", { x: axis.at, y: 18, "text-anchor": "middle" }, axis.key),
        ...axis.labels.map((label) => s("text", { x: axis.at + 5, y: axis.y(label) + (typeof label === "number" && axis.labels.length > 1 ? (axis.y(label) < top + 1 ? 10 : 14) : 4) }, shown(label)))])))));
}

document.body.append(head(), trials(), importance(), coordinates() ?? "", curves());
