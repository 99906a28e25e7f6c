// Runs side by side: the first is what the others are compared with.
function difference(item, run) {
  const found = item.differences[run];
  if (!found) return null;
  const [low, high] = found.interval ?? [null, null];
  const sure = found.interval && (low > 0 || high < 0);
  const good = (found.value > 0) === (item.better === "max");
  const tone = sure && item.better ? (good ? "good" : "bad") : "soft";
  return [h("span", { class: `small by ${tone}` }, `${signed(found.value)}${sure ? (item.better ? (good ? " better" : " worse") : "") : found.interval ? " not sure" : ""}`),
    found.interval ? h("span", { class: "small soft" }, `${signed(low)} to ${signed(high)}`) : null];
}

function table() {
  if (!data.figures.length) return h("section", { id: "figures" }, h("h2", {}, "Figures"), h("p", { class: "empty" }, "The runs have no figures in common."));
  return h("section", { id: "figures" }, h("h2", {}, "Figures"),
    h("p", { class: "small soft" }, `Below each figure its 95% interval; then the difference to ${data.runs[0].name} with its own 95% interval (paired bootstrap over the images, so it is often sure where the figures' intervals overlap). “not sure”: the interval holds 0.`),
    h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "figure"), data.runs.map((run, i) => h("th", { scope: "col" }, swatch(colour(i)), " ", run.name)))),
      h("tbody", {}, data.figures.map((item) => h("tr", { "data-name": item.name },
        h("th", { scope: "row", title: item.about ?? "" }, item.name, " ", h("span", { class: "soft", "aria-label": meaning(item.better) }, arrow(item.better))),
        item.values.map((value, run) => h("td", {}, figure(value), h("span", { class: "small soft" }, interval(item.intervals[run])), difference(item, run)))))))),
    data.notes.map((text) => h("p", { class: "small soft" }, text)));
}

function settings() {
  const rows = data.settings;
  return h("section", { id: "settings" }, h("h2", {}, "Settings that differ"),
    rows.length ? h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "key"), data.runs.map((run, i) => h("th", { scope: "col" }, swatch(colour(i)), " ", run.name)))),
      h("tbody", {}, rows.map(([key, values]) => h("tr", {}, h("th", { scope: "row", class: "code" }, key),
        values.map((value) => h("td", { class: `code${value !== values[0] ? " changed" : ""}` }, value)))))))
      : h("p", { class: "empty" }, "The configs are the same."));
}

document.body.append(head(), table(), curves(), settings(), gallery());
