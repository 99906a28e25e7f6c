// The distribution of a metric over images, with its mean, the mean's interval and the baseline.
function spread(values, mean, band, baseline) {
  const shown = values.filter((x) => x !== null && x !== undefined);
  if (shown.length < 5) return null;
  const width = 240, height = 44, floor = 40;
  const marks = [mean, baseline, ...(band ?? [])].filter((x) => x !== null && x !== undefined);
  let low = Math.min(...shown, ...marks), high = Math.max(...shown, ...marks);
  if (!(high > low)) { low -= 0.5; high += 0.5; }
  const x = (v) => 2 + ((v - low) / (high - low)) * (width - 4);
  const bins = new Array(30).fill(0);
  for (const v of shown) bins[Math.min(29, Math.floor(((v - low) / (high - low)) * 30))]++;
  const most = Math.max(...bins), step = (width - 4) / 30;
  const line = (kind, v) => s("line", { class: kind, x1: x(v), x2: x(v), y1: 2, y2: floor });
  return s("svg", { class: "spread", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${shown.length} images from ${figure(Math.min(...shown))} to ${figure(Math.max(...shown))}` },
    bins.map((n, i) => n ? s("rect", { class: "bin", x: 2 + i * step + 0.5, width: step - 1, y: floor - Math.max(2, (n / most) * 36), height: Math.max(2, (n / most) * 36), rx: 1 }) : null),
    band ? s("rect", { class: "band", x: x(band[0]), width: Math.max(1.5, x(band[1]) - x(band[0])), y: 2, height: floor - 2 }) : null,
    baseline !== null && baseline !== undefined ? line("base", baseline) : null,
    line("mean", mean));
}

function beside(item) {
  if (item.baseline === null || item.baseline === undefined) return null;
  const gain = (item.values[0] - item.baseline) * (item.better === "max" ? 1 : -1);
  const band = item.intervals[0], unsure = band && band[0] <= item.baseline && item.baseline <= band[1];
  const verdict = !item.better || !gain ? null : unsure ? h("span", {}, " – within the interval")
    : h("span", { class: gain > 0 ? "good" : "bad" }, gain > 0 ? " – beaten" : " – not reached");
  return h("p", { class: "small soft number" }, `${data.baselineName} ${figure(item.baseline)}`, verdict);
}

function tile(item) {
  const at = data.metrics.findIndex((metric) => metric.name === item.name);
  const values = at < 0 ? [] : data.rows.map((row) => row.values[0][at]);
  const band = item.intervals[0];
  return h("div", { class: "tile", "data-name": item.name },
    h("h3", { title: meaning(item.better) }, item.name, " ", h("span", { class: "soft", "aria-label": meaning(item.better) }, arrow(item.better))),
    h("div", { class: "value" }, figure(item.values[0])),
    spread(values, item.values[0], band, item.baseline),
    band ? h("p", { class: "small soft number" }, `95% interval ${interval(band)}`) : null,
    beside(item),
    item.about ? h("p", { class: "small soft about" }, item.about) : null);
}

// Figures of classes, named GROUP/CLASS, as bars.
function bars(group, items) {
  const most = Math.max(1, ...items.map((item) => item.values[0] ?? 0));
  const colours = new Map(data.legend);
  return h("details", { open: items.length <= 24 },
    h("summary", {}, `${group} of ${items.length} classes`),
    h("div", { class: "bars" }, items.flatMap((item) => {
      const name = item.name.slice(group.length + 1), value = item.values[0];
      const bar = h("i", {});
      bar.style.width = `${Math.max(0, ((value ?? 0) / most) * 100)}%`;
      return [h("span", {}, swatch(colours.get(name)), " ", name), h("div", { class: "track" }, bar),
        h("span", { class: "number", title: interval(item.intervals[0]) }, figure(value))];
    })));
}

function swatch(value) {
  if (!value) return null;
  const node = h("span", { class: "swatch" });
  node.style.background = value;
  return node;
}

function figures() {
  const plain = data.figures.filter((item) => !item.name.includes("/"));
  const groups = new Map();
  for (const item of data.figures) {
    const [group, ...rest] = item.name.split("/");
    if (rest.length) groups.set(group, [...(groups.get(group) ?? []), item]);
  }
  const body = data.figures.length
    ? [h("div", { class: "tiles" }, plain.map(tile)), ...[...groups].map(([group, items]) => bars(group, items))]
    : [h("p", { class: "empty" }, "There are no figures: without targets nothing can be compared.")];
  return h("section", { id: "figures" }, h("h2", {}, "Figures"),
    data.rows.length && data.figures.length ? h("p", { class: "small soft" },
      `Over ${count(data.rows.length)} images. Grey bars: how many images have which value; blue line and band: the figure and its 95% interval; dashed: ${data.baselineName}.`) : null,
    body);
}
