// All examples as cards, which are made once and put in order.
function ordered(rows, key, worst) {
  const by = data.orders.find((order) => order.key === key);
  const compare = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
  if (!by) return [...rows].sort((a, b) => (worst ? -1 : 1) * compare(a, b));
  const value = (row) => by.values[row.index];
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null || x === y) return (x === null) - (y === null) || compare(a, b);
    return (x < y) === ((by.better === "max") === worst) ? -1 : 1;
  });
}

// Values of a row: of one run in a line, of several as a table.
function told(row, key) {
  const mark = (i) => data.metrics[i].name === key;
  if (!data.metrics.length) return h("div", { class: "values" });
  if (data.runs.length < 2)
    return h("div", { class: "values" }, data.metrics.map((metric, i) => h(mark(i) ? "b" : "span", {}, `${metric.name} ${figure(row.values[0][i])}`)));
  const best = data.metrics.map((metric, i) => {
    const all = row.values.map((each) => each[i]).filter((v) => v !== null);
    return all.length ? Math[metric.better === "max" ? "max" : "min"](...all) : null;
  });
  return h("div", { class: "values" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", {}), data.metrics.map((metric) => h("th", {}, `${metric.name} ${arrow(metric.better)}`)))),
    h("tbody", {}, row.values.map((each, run) => h("tr", {}, h("td", {}, swatch(colour(run)), " ", data.runs[run].name),
      each.map((v, i) => h("td", {}, h(v !== null && v === best[i] ? "b" : "span", {}, figure(v)))))))));
}

function card(row, state, open) {
  const [high, wide] = row.size ?? [1, 1], enlarge = () => open(row);
  const button = (i) => h("button", { type: "button", class: "pane", onclick: enlarge, "aria-label": `${data.heads[i]} of ${row.name}: enlarge` },
    picture(row.pictures[i], "", false), h("span", { class: "tag left" }, data.heads[i]));
  const slide = state.view === "slide" && data.left !== data.right;
  const shown = row.pictures.map((_, i) => i);
  const panes = slide
    ? [...shown.filter((i) => i !== data.left && i !== data.right).map(button),
      pair(row.pictures[data.left], row.pictures[data.right], [data.heads[data.left], data.heads[data.right]], row.name, false, enlarge)]
    : shown.map(button);
  const node = h("li", { class: `card${Math.max(high, wide) <= 128 ? " tiny" : ""}` }, h("div", { class: `panes${panes.length > 2 ? " many" : ""}` }, panes), h("p", { class: "name" }, row.name), told(row, state.key));
  node.style.setProperty("--shape", Math.min(4, Math.max(0.25, wide / high)));
  return node;
}

function gallery() {
  const rows = data.rows.map((row, index) => ({ ...row, index }));
  if (!rows.length) return h("section", { id: "gallery" }, h("h2", {}, "Gallery"), h("p", { class: "empty" }, data.empty ?? "There are no examples."));
  const two = data.left !== data.right;
  const state = { key: data.orders[0]?.key ?? "name", worst: data.kind === "compare", words: "", view: data.kind === "eval" ? "slide" : "side", shown: [] };
  const list = h("ul", { class: "cards" }), tally = h("span", { class: "small soft number", role: "status" });
  let cards = new Map();
  const open = viewer(() => state.shown, (row) => told(row, state.key));
  const sort = select("Sort by", [...data.orders.map((order) => [order.key, order.label]), ["name", "name"]], (value) => {
    state.key = value;
    if (value === "name") state.worst = false;
    cards = new Map();
    turn.choose(state.worst ? "worst" : "best");
  });
  const turn = choice("Direction", [["worst", data.kind === "eval" ? "worst first" : "most first"], ["best", data.kind === "eval" ? "best first" : "least first"]], state.worst ? "worst" : "best", (value) => { state.worst = value === "worst"; arrange(); });
  const search = h("input", { type: "search", placeholder: "part of a name", "aria-label": "Show only names with", oninput: () => { state.words = search.value.toLowerCase(); arrange(); } });

  function fit() {
    const slide = state.view === "slide" && two;
    const columns = data.heads.length - (slide ? 1 : 0);
    const shapes = rows.map((row) => (row.size ? row.size[1] / row.size[0] : 1)).sort((a, b) => a - b), shape = shapes[shapes.length >> 1];
    list.style.setProperty("--columns", columns);
    const pane = { small: 8, medium: 13, large: 22 }[state.size ?? "medium"] * Math.min(1.5, Math.max(0.8, shape));
    list.style.setProperty("--pane", `${pane}rem`);
  }
  function renew() {
    cards = new Map();
    arrange();
  }
  function arrange() {
    fit();
    const byName = state.key === "name";
    turn.querySelectorAll("button").forEach((button) => { const plain = turnText(button.dataset.value, byName); if (button.textContent !== plain) button.textContent = plain; });
    state.shown = ordered(rows.filter((row) => row.name.toLowerCase().includes(state.words)), state.key, state.worst);
    list.replaceChildren(...state.shown.map((row) => {
      if (!cards.has(row.index)) cards.set(row.index, card(row, state, open));
      return cards.get(row.index);
    }));
    guess(list);
    tally.textContent = state.shown.length === rows.length ? `${count(rows.length)} images` : `${count(state.shown.length)} of ${count(rows.length)} images`;
    empty.classList.toggle("hidden", state.shown.length > 0);
  }
  function turnText(value, byName) {
    if (byName) return value === "worst" ? "Z to A" : "A to Z";
    return data.kind === "eval" ? `${value} first` : value === "worst" ? "most first" : "least first";
  }
  const empty = h("p", { class: "empty hidden" }, "No name has this in it.");
  const views = two ? choice("Pictures", [["slide", "slider"], ["side", "side by side"]], state.view, (value) => { state.view = value; renew(); }) : null;
  const sizes = choice("Size of the pictures", [["small", "S"], ["medium", "M"], ["large", "L"]], "medium", (value) => { state.size = value; fit(); guess(list); });
  sort.value = state.key;
  arrange();
  return h("section", { id: "gallery" },
    h("div", { class: "row apart" }, h("h2", {}, "Gallery"), tally),
    h("div", { class: "tools row" }, h("label", {}, "Sort by", sort), turn, views, sizes, search,
      h("span", { class: "small soft keys" }, two ? "drag the line, or use arrow keys; click to enlarge" : "click to enlarge")),
    data.legend.length ? h("div", { class: "legend", "aria-label": "Classes" }, data.legend.map(([name, value]) => h("span", {}, swatch(value), name))) : null,
    list, empty);
}

// How high cards out of sight are thought to be, so that the scroll bar is right from the start.
function guess(list) {
  requestAnimationFrame(() => {
    const first = list.firstElementChild;
    if (first) for (const node of list.children) node.style.containIntrinsicSize = `auto ${first.offsetWidth}px auto ${Math.round(first.offsetHeight)}px`;
  });
}
