// What all parts use. Text always enters as text nodes: a file's name cannot become markup.
const data = JSON.parse(document.getElementById("data").textContent);
data.orders ??= data.metrics.map((metric, i) => ({
  key: metric.name, label: metric.name, better: metric.better, values: data.rows.map((row) => row.values[0][i]),
}));
const COLOURS = ["#3b6ef5", "#e5652b", "#1f9d6b", "#b04be0", "#d6336c", "#1aa0b8", "#a07d10", "#7a7a86"];
const colour = (i) => COLOURS[i % COLOURS.length];

function put(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  put(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// A figure as people read it: four digits that count.
function figure(x) {
  if (x === null || x === undefined) return "–";
  const text = Math.abs(x) >= 1e6 || (x && Math.abs(x) < 1e-4)
    ? x.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e")
    : String(Number(x.toPrecision(4)));
  return text.replace("-", "\u2212");
}
const signed = (x) => (x > 0 ? "+" : "") + figure(x);
const count = (n) => n.toLocaleString("en");
const arrow = (better) => (better === "max" ? "↑" : better === "min" ? "↓" : "");
const meaning = (better) => ({ max: "higher is better", min: "lower is better" })[better] ?? "";
const interval = (pair) => (pair ? `${figure(pair[0])} to ${figure(pair[1])}` : "");

// A row of buttons of which one is pressed.
function choice(label, options, chosen, act) {
  const buttons = options.map(([value, text]) =>
    h("button", { type: "button", "data-value": value, "aria-pressed": String(value === chosen), onclick: () => set(value) }, text));
  function set(value) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    act(value);
  }
  const node = h("div", { class: "switch", role: "group", "aria-label": label }, buttons);
  node.choose = set;
  return node;
}

function select(label, options, act) {
  const node = h("select", { "aria-label": label, onchange: () => act(node.value) },
    options.map(([value, text]) => h("option", { value }, text)));
  return node;
}

function head() {
  const themes = { auto: "light dark", light: "light", dark: "dark" };
  const theme = choice("Colours of the page", [["auto", "auto"], ["light", "light"], ["dark", "dark"]], "auto",
    (value) => { document.documentElement.style.colorScheme = themes[value]; });
  theme.classList.add("theme");
  return h("header", {},
    h("div", { class: "row apart" }, h("h1", {}, data.title), theme),
    h("dl", { class: "facts" }, data.facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    (data.notices ?? []).map((text) => h("p", { class: "notice", role: "note" }, text)));
}
