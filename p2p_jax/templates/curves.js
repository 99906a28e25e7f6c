// Curves of figures over steps: small charts that share the cursor, the scale and the smoothing.
const WIDE = 360, HIGH = 190, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 24;

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [], decades = Math.log10(high / low);
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const m of decades > 2.5 ? [1] : decades > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]) found.push(m * 10 ** power);
  const inside = found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  return inside.length > 1 ? inside.filter((_, i) => i % Math.ceil(inside.length / 6) === 0) : ticks(low, high, 4);
}

const short = (n) => Math.abs(n) >= 1e6 ? `${Number((n / 1e6).toPrecision(3))}M`
  : Math.abs(n) >= 1e3 ? `${Number((n / 1e3).toPrecision(3))}k` : figure(n);

// An exponential mean that does not lean on the first value.
function smoothed(points, weight) {
  let sum = 0, mass = 0;
  return points.map(([step, value]) => {
    sum = sum * weight + value * (1 - weight);
    mass = mass * weight + (1 - weight);
    return [step, sum / mass];
  });
}

function chart(spec, state, moved) {
  const svg = s("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", tabindex: 0 });
  const read = h("p", { class: "read", "aria-live": "off" });
  const node = h("figure", { class: "chart", "data-name": spec.name }, h("h3", {}, spec.name, " ", h("span", { class: "soft" }, arrow(spec.better))), read, svg);
  let series = [], x, y, cross, dots;

  function scales() {
    series = spec.series.filter((each) => !state.off.has(each.run)).map((each) => ({ ...each, points: each.points.filter((p) => p[1] !== null) }));
    const values = series.flatMap((each) => each.points.map((p) => p[1]));
    const log = state.log && values.some((v) => v > 0);
    const kept = log ? values.filter((v) => v > 0) : values;
    if (!log && spec.baseline !== null && spec.baseline !== undefined && kept.length) kept.push(spec.baseline);
    let low = kept.reduce((a, b) => Math.min(a, b), Infinity), high = kept.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!kept.length) [low, high] = [0, 1];
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
    const [f, inverse] = log ? [Math.log, Math.exp] : [(v) => v, (v) => v];
    const margin = (f(high) - f(low)) * 0.06;
    const [from, to] = [f(low) - margin, f(high) + margin];
    const steps = spec.series.flatMap((each) => each.points.map((p) => p[0]));
    const first = steps.reduce((a, b) => Math.min(a, b), Infinity), last = Math.max(first + 1, steps.reduce((a, b) => Math.max(a, b), 0));
    x = (step) => LEFT + ((step - first) / (last - first)) * (WIDE - LEFT - RIGHT);
    x.inverse = (at) => first + ((at - LEFT) / (WIDE - LEFT - RIGHT)) * (last - first);
    y = (v) => HIGH - BOTTOM - ((f(v) - from) / (to - from)) * (HIGH - BOTTOM - TOP);
    return { log, low: inverse(from), high: inverse(to), first, last };
  }

  const path = (points) => points.map(([step, v], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(v).toFixed(1)}`).join("");

  function draw() {
    const { log, low, high, first, last } = scales();
    const parts = [];
    for (const v of log ? logTicks(low, high) : ticks(low, high, 4)) {
      if (y(v) < TOP - 1 || y(v) > HIGH - BOTTOM + 1) continue;
      parts.push(s("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(v), y2: y(v) }),
        s("text", { x: LEFT - 6, y: y(v) + 3.5, "text-anchor": "end" }, short(v)));
    }
    for (const step of ticks(first, last, 4).filter(Number.isInteger))
      parts.push(s("text", { x: x(step), y: HIGH - 7, "text-anchor": x(step) > WIDE - 24 ? "end" : "middle" }, short(step)));
    if (spec.baseline !== null && spec.baseline !== undefined && (!log || (spec.baseline >= low && spec.baseline <= high)))
      parts.push(s("line", { class: "base", x1: LEFT, x2: WIDE - RIGHT, y1: y(spec.baseline), y2: y(spec.baseline) }, s("title", {}, data.baselineName)));
    if (state.mark !== undefined && state.mark >= first && state.mark <= last)
      parts.push(s("line", { class: "here", x1: x(state.mark), x2: x(state.mark), y1: TOP, y2: HIGH - BOTTOM }));
    for (const each of series) {
      each.points = log ? each.points.filter((p) => p[1] > 0) : each.points;
      const smooth = state.smooth > 0 && each.points.length > 12;
      parts.push(s("path", { class: smooth ? "raw" : "", stroke: colour(each.run), d: path(each.points) }));
      if (smooth) {
        each.points = smoothed(each.points, state.smooth);
        parts.push(s("path", { stroke: colour(each.run), d: path(each.points) }));
      } else if (each.points.length <= 12)
        parts.push(...each.points.map(([step, v]) => s("circle", { cx: x(step), cy: y(v), r: 2.4, fill: colour(each.run) })));
    }
    cross = s("line", { class: "cross", y1: TOP, y2: HIGH - BOTTOM, visibility: "hidden" });
    dots = series.map((each) => s("circle", { r: 3.5, fill: colour(each.run), visibility: "hidden" }));
    svg.replaceChildren(...parts, cross, ...dots);
    const all = spec.series.flatMap((each) => each.points), hiddenOnes = log && all.filter((p) => p[1] !== null && p[1] <= 0).length;
    node.title = hiddenOnes ? `${hiddenOnes} values of 0 or less have no place on a logarithmic scale` : "";
    svg.setAttribute("aria-label", `${spec.name} from step ${count(first)} to ${count(last)}; arrow keys read values`);
    show(null);
  }

  // The value of each curve nearest to a step; null: of the last one.
  function show(step) {
    const told = [];
    let where = null;
    series.forEach((each, i) => {
      if (!each.points.length) return;
      const point = step === null ? each.points.at(-1)
        : each.points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
      where ??= point[0];
      told.push(h("span", {}, series.length > 1 ? [swatch(colour(each.run)), " "] : null, figure(point[1])));
      dots[i].setAttribute("visibility", step === null ? "hidden" : "visible");
      dots[i].setAttribute("cx", x(point[0]));
      dots[i].setAttribute("cy", y(point[1]));
    });
    cross.setAttribute("visibility", step === null || where === null ? "hidden" : "visible");
    if (where !== null) {
      cross.setAttribute("x1", x(where));
      cross.setAttribute("x2", x(where));
    }
    read.replaceChildren(...told, where === null ? "no values" : h("span", {}, `${step === null ? "last, " : ""}step ${count(where)}`));
    node.current = where;
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    moved(x.inverse(((event.clientX - box.left) / box.width) * WIDE));
  });
  svg.addEventListener("pointerleave", () => moved(null));
  svg.addEventListener("blur", () => moved(null));
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const points = series.find((each) => each.points.length)?.points;
    if (!by || !points) return;
    const at = points.findIndex((p) => p[0] === node.current);
    moved(points[Math.max(0, Math.min(points.length - 1, at + by))][0]);
    event.preventDefault();
  });
  Object.assign(node, { draw, show });
  return node;
}

function curves() {
  const state = { log: false, smooth: 0, off: new Set(), mark: data.kind === "eval" ? data.step : undefined };
  const charts = [];
  const redraw = () => charts.forEach((each) => each.draw());
  const make = (specs) => h("div", { class: "charts" }, specs.map((spec) => {
    charts.push(chart(spec, state, (step) => charts.forEach((each) => each.show(step))));
    return charts.at(-1);
  }));
  const main = data.curves.filter((spec) => /^(loss|eval)\/[^/]+$/.test(spec.name)), more = data.curves.filter((spec) => !main.includes(spec));
  const slow = h("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: 0, "aria-label": "Smoothing of the curves",
    oninput: () => { state.smooth = Number(slow.value); redraw(); } });
  const runs = data.runs.length < 2 ? null : h("div", { class: "legend" }, data.runs.map((run, i) => h("label", {},
    h("input", { type: "checkbox", checked: true, onchange: (event) => { state.off[event.target.checked ? "delete" : "add"](i); redraw(); } }), swatch(colour(i)), run.name)));
  const body = data.curves.length
    ? [runs, make(main), more.length ? h("details", {}, h("summary", {}, `${more.length} more: ${more.some((spec) => /^eval\//.test(spec.name)) ? "single classes, " : ""}speed and bookkeeping`), make(more)) : null]
    : [h("p", { class: "empty" }, "There are no curves: metrics.jsonl holds no lines of training or evaluation.")];
  redraw();
  return h("section", { id: "curves" },
    h("div", { class: "row apart" }, h("h2", {}, "Curves"), data.curves.length ? h("div", { class: "row" },
      h("label", {}, "smooth", slow),
      choice("Scale of the vertical axis", [["linear", "linear"], ["log", "log"]], "linear", (value) => { state.log = value === "log"; redraw(); })) : null),
    data.curves.length && data.thinned > 1 ? h("p", { class: "small soft" }, `Each point is the mean of up to ${data.thinned} lines of metrics.jsonl.`) : null,
    body);
}
