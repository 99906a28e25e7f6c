// A picture with another one over it, from a line on that is dragged or moved by keys.
function picture(entry, label, large) {
  const [small, full] = typeof entry === "string" ? [entry, entry] : entry ?? [null, null];
  const img = h("img", { src: large ? full : small, alt: label, loading: large ? "eager" : "lazy", decoding: "async", draggable: "false" });
  const fail = () => img.parentElement?.classList.add("missing");
  img.addEventListener("error", fail);
  if (small === null) { img.removeAttribute("src"); queueMicrotask(fail); }
  return img;
}

function pair(left, right, names, label, large, open) {
  const over = picture(right, `${names[1]} of ${label}`, large);
  over.classList.add("over");
  const node = h("div", { class: "pane pair", role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-label": `${label}: ${names[0]} to the left of the line, ${names[1]} to the right` },
    picture(left, `${names[0]} of ${label}`, large), over, h("span", { class: "bar" }),
    h("span", { class: "tag left" }, names[0]), h("span", { class: "tag right" }, names[1]));
  let at = 50, from = null, moved = false;
  function set(value) {
    at = Math.max(0, Math.min(100, value));
    node.style.setProperty("--at", `${at}%`);
    node.setAttribute("aria-valuenow", Math.round(at));
    node.setAttribute("aria-valuetext", `${Math.round(at)}% ${names[0]}`);
  }
  const follow = (event) => {
    const box = node.getBoundingClientRect();
    set(((event.clientX - box.left) / box.width) * 100);
  };
  node.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    [from, moved] = [event.clientX, false];
    node.setPointerCapture(event.pointerId);
  });
  node.addEventListener("pointermove", (event) => {
    if (from === null) return;
    moved ||= Math.abs(event.clientX - from) > 3;
    if (moved) follow(event);
  });
  node.addEventListener("pointerup", (event) => {
    if (from !== null && !moved) open ? open() : follow(event);
    from = null;
  });
  node.addEventListener("pointercancel", () => { from = null; });
  node.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 }[event.key];
    if (by) set(at + by);
    else if (event.key === "Enter" && open) open();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  set(50);
  return node;
}

// One example in full size, above the page.
function viewer(order, values) {
  const state = { at: 0, mode: "slide", left: data.left, right: data.right, zoom: "fit" };
  const title = h("span", { class: "title" }), place = h("span", { class: "small soft number" });
  const stage = h("div", { class: "stage", style: "--bright: 3" }), foot = h("div", { class: "foot" });
  const options = data.heads.map((name, i) => [i, name]);
  const two = data.left !== data.right;
  const left = select("Picture to the left", options, (value) => { state.left = Number(value); draw(); });
  const right = select("Picture to the right", options, (value) => { state.right = Number(value); draw(); });
  const bright = h("input", { type: "range", min: 1, max: 10, step: 0.5, value: 3, "aria-label": "Brightness of the difference",
    oninput: () => { stage.style.setProperty("--bright", bright.value); } });
  const brightness = h("label", {}, "brighter", bright);
  const modes = choice("How to compare", two ? [["slide", "slider"], ["side", "side by side"], ["mixed", "difference"]] : [["side", "side by side"]], two ? "slide" : "side",
    (value) => { state.mode = value; draw(); });
  if (!two) state.mode = "side";
  const zoom = choice("Size", [["fit", "fit"], ["1", "1:1"], ["2", "2:1"], ["4", "4:1"]], "fit", (value) => { state.zoom = value; draw(); });
  const pick = h("div", { class: "row" }, left, h("span", { class: "soft" }, "|"), right);
  const turn = (by) => { state.at = (state.at + by + order().length) % order().length; draw(); };
  const dialog = h("dialog", { class: "view", "aria-label": "One example, large" },
    h("div", { class: "top row apart" },
      h("div", { class: "row" }, h("button", { type: "button", class: "close", onclick: () => dialog.close(), "aria-label": "Close" }, "✕"),
        h("button", { type: "button", onclick: () => turn(-1), "aria-label": "Previous example" }, "←"),
        h("button", { type: "button", onclick: () => turn(1), "aria-label": "Next example" }, "→"), title, place),
      h("div", { class: "row" }, modes, pick, brightness, zoom)),
    stage, foot);

  function draw() {
    const row = order()[state.at], [high, wide] = row.size ?? [256, 256];
    title.textContent = row.name;
    place.textContent = `${count(state.at + 1)} of ${count(order().length)} · ${wide}×${high}`;
    foot.replaceChildren(values(row));
    [left.value, right.value] = [state.left, state.right];
    pick.classList.toggle("hidden", state.mode === "side");
    brightness.classList.toggle("hidden", state.mode !== "mixed");
    const names = [data.heads[state.left], data.heads[state.right]], chosen = [row.pictures[state.left], row.pictures[state.right]];
    let panes;
    if (state.mode === "side") panes = row.pictures.map((entry, i) => h("div", { class: "pane" }, picture(entry, `${data.heads[i]} of ${row.name}`, true), h("span", { class: "tag left" }, data.heads[i])));
    else if (state.mode === "slide") panes = [pair(...chosen, names, row.name, true)];
    else {
      const over = picture(chosen[1], names[1], true);
      over.classList.add("over");
      panes = [h("div", { class: "pane mixed" }, picture(chosen[0], names[0], true), over)];
    }
    const box = h("div", {}, panes);
    if (Number(state.zoom) > 1 || Math.max(high, wide) <= 128) box.classList.add("tiny");  // pixels as squares
    stage.replaceChildren(box);
    const room = [stage.clientWidth - 32, stage.clientHeight - 32], gaps = (panes.length - 1) * 14;
    const down = panes.length > 1 && room[0] < 640;  // one above the other
    box.style.flexDirection = down ? "column" : "row";
    const fit = down ? room[0] / wide : Math.min((room[0] - gaps) / panes.length / wide, room[1] / high);
    const scale = state.zoom === "fit" ? Math.max(fit, 0.02) : Number(state.zoom);
    box.style.setProperty("--wide", `${Math.max(1, Math.round(wide * scale))}px`);
    box.style.setProperty("--high", `${Math.max(1, Math.round(high * scale))}px`);
  }
  dialog.addEventListener("keydown", (event) => {
    if (event.target.closest("select, input")) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { turn(by); event.preventDefault(); }
  });
  window.addEventListener("resize", () => dialog.open && draw());
  document.body.append(dialog);
  return (row) => {
    state.at = Math.max(0, order().indexOf(row));
    if (!dialog.open) dialog.showModal();
    draw();
    dialog.focus();
  };
}
