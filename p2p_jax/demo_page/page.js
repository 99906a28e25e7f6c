// The page: what the buttons do, and one translation at a time of what is drawn.

import {Board} from "./board.js";

const $ = (id) => document.getElementById(id);
const PAUSE = 40; // milliseconds from a change to its translation, so that a few go together
const TOOLS = [
  ["brush", "Brush", "b"], ["line", "Line", "l"], ["box", "Rectangle", "r"], ["frame", "Frame", "m"],
  ["fill", "Fill", "f"], ["erase", "Eraser", "e"], ["pick", "Pick a colour", "i"],
];
let about, board;

// --- asking the server ---------------------------------------------------------------------------

class Told extends Error {
  constructor(text, status, seconds) {
    super(text);
    Object.assign(this, {status, seconds});
  }
}

/** An answer of the server, as a blob; what it refuses is thrown in its own words. */
async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, body ? {method: "POST", body} : {});
  } catch {
    throw new Told("The demo does not answer. Is it still running in its terminal?", 0);
  }
  if (response.ok) return response.blob();
  const found = await response.json().catch(() => ({}));
  throw new Told(
    found.error ?? `The demo answered ${response.status}.`,
    response.status, Number(response.headers.get("retry-after")),
  );
}

function tell(text, again) {
  $("notice").hidden = !text;
  $("notice").querySelector("p").textContent = text;
  $("retry").hidden = !again;
  $("retry").onclick = again ?? null;
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

// --- translating ---------------------------------------------------------------------------------

const state = {timer: 0, busy: false, again: false, noise: 0, result: null, file: null, failed: false};

/** Soon translates what is drawn, unless that is about to happen. */
function soon() {
  if ($("live").checked && !state.timer) state.timer = setTimeout(translate, PAUSE);
}

/** Translates what is drawn; what changes meanwhile is translated after, only as it is then. */
async function translate() {
  clearTimeout(state.timer);
  state.timer = 0;
  state.again = true;
  if (state.busy) return;
  state.busy = true;
  $("stage").classList.add("busy");
  try {
    for (let tries = 0; state.again;) {
      state.again = false;
      try {
        await once();
        tries = 0;
      } catch (error) {
        if (error.status !== 429 || ++tries > 20) throw error;
        tell(error.message);
        state.failed = state.again = true;
        await pause(error.seconds || 1);
      }
    }
  } catch (error) {
    state.failed = true;
    tell(error.message, translate);
  } finally {
    state.busy = false;
    $("stage").classList.remove("busy");
  }
}

async function once() {
  const start = performance.now();
  const blob = await ask(`translate?noise=${state.noise}`, await board.png());
  const bitmap = await createImageBitmap(blob);
  const canvas = $("result");
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  }
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  state.result = blob;
  $("save").disabled = false;
  const took = performance.now() - start;
  $("timing").textContent = took < 1000 ? `${Math.round(took)} ms` : `${(took / 1000).toFixed(1)} s`;
  if (state.failed) tell("");
  state.failed = false;
}

// --- pictures from elsewhere ---------------------------------------------------------------------

/** Puts a picture of any size on the canvas. */
async function open(file) {
  if (file.size > about.max_bytes) {
    const [has, most] = [file.size, about.max_bytes].map((bytes) => Math.ceil(bytes / 2 ** 20));
    tell(`This file has ${has} MB; up to ${most} MB can be taken. Make the picture smaller first.`);
    return;
  }
  const path = `fit?way=${$("way").value}`;
  try {
    const blob = await ask(path, file).catch(async (error) => {
      const other = error.status === 415 && (await converted(file));
      if (!other) throw error;
      return ask(path, other);
    });
    await board.load(blob);
    example(null);
    state.file = file;
    tell("");
  } catch (error) {
    tell(error.message);
  }
}

/** A picture that only the browser can read, as a PNG; null where it cannot either. */
async function converted(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, 2048 / Math.max(bitmap.width, bitmap.height));
    const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
    return await canvas.convertToBlob();
  } catch {
    return null;
  }
}

/** Opens the first picture that was dropped or pasted. */
function take(transfer) {
  const file = transfer.files[0];
  if (file) open(file);
  else if (transfer.types.includes("text/uri-list")) {
    tell("That is a link to a picture. Save the picture, then drop its file here.");
  }
}

/** Marks an example as the one on the canvas, and has its real picture at hand. */
function example(chosen, number) {
  for (const button of $("examples").children) button.ariaPressed = String(button === chosen);
  const real = chosen !== null && about.examples[number].target;
  $("real").hidden = !real;
  compare(false);
  if (real) $("target").src = `examples/${number}/target`;
}

function compare(shown) {
  $("real").ariaPressed = String(shown);
  $("target").hidden = !shown;
}

async function start(number, button) {
  try {
    await board.load(await ask(`examples/${number}/source`));
    state.file = null;
    example(button, number);
  } catch (error) {
    tell(error.message);
  }
}

function save() {
  if (!state.result) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(state.result);
  link.download = `${about.run}-${about.step}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// --- tools and colours ---------------------------------------------------------------------------

function choose(tool) {
  board.tool = tool;
  for (const button of $("tools").children) button.ariaChecked = String(button.value === tool);
}

function resize(size) {
  board.size = Math.max(1, Math.min(Number($("size").max), size));
  $("size").value = board.size;
  $("pixels").textContent = board.size;
}

function colour(hex) {
  board.colour = hex;
  if (["erase", "pick"].includes(board.tool)) choose("brush");
  const swatches = [...$("swatches").children];
  if (!swatches.some((swatch) => swatch.value === hex) && about.free) swatches.push(swatch(hex, ""));
  for (const each of swatches) each.ariaChecked = String(each.value === hex);
  $("picker").value = hex;
}

function background(hex) {
  board.background = hex;
  for (const each of $("swatches").children) each.classList.toggle("background", each.value === hex);
}

function swatch(hex, name) {
  const made = document.createElement("button"), spot = document.createElement("i");
  made.className = name && about.kind !== "photo" && about.kind !== "grey" ? "swatch" : "swatch bare";
  Object.assign(made, {value: hex, role: "radio", ariaChecked: "false", ariaLabel: name || hex});
  const place = $("swatches").children.length + 1;
  made.title = [name || hex, place < 10 ? `(${place})` : ""].join(" ").trim();
  spot.style.background = hex;
  made.append(spot);
  if (!made.classList.contains("bare")) made.append(name);
  made.onclick = () => colour(hex);
  made.oncontextmenu = (event) => {
    event.preventDefault();
    background(hex);
  };
  $("swatches").append(made);
  return made;
}

function toolbar() {
  for (const [value, name, key] of TOOLS) {
    const button = document.createElement("button");
    button.className = "tool";
    Object.assign(button, {value, role: "radio", ariaLabel: name, title: `${name} (${key.toUpperCase()})`});
    button.innerHTML = `<svg><use href="#i-${value}"/></svg>`;
    button.onclick = () => choose(value);
    $("tools").append(button);
  }
  choose("brush");
}

// --- keys ----------------------------------------------------------------------------------------

const KEYS = {
  ...Object.fromEntries(TOOLS.map(([value, name, key]) => [key, [name, () => choose(value)]])),
  "[": ["Smaller", () => resize(board.size - (board.size > 8 ? 4 : 1))],
  "]": ["Larger", () => resize(board.size + (board.size >= 8 ? 4 : 1))],
  o: ["Open a picture", () => $("file").click()],
  s: ["Save the result", save],
  t: ["Show the real picture", () => $("real").hidden || $("real").click()],
  n: ["Vary", () => $("noise").hidden || $("noise").click()],
  Enter: ["Translate", translate],
  Delete: ["Clear", () => board.clear()],
  "?": ["Shortcuts", () => $("shortcuts").showModal()],
};

function key(event) {
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    const act = {z: event.shiftKey ? "redo" : "undo", y: "redo"}[name];
    if (act) board[act]();
    else if (name === "s") save();
    if (act || name === "s") event.preventDefault();
    return;
  }
  if (event.altKey || $("shortcuts").open || event.target.matches("select, input:not([type=range], [type=checkbox])")) return;
  if (name === "Enter" && event.target.matches("button")) return; // which presses it
  const place = "1234567890".indexOf(name);
  if (place >= 0 && name) $("swatches").children[place]?.click();
  KEYS[name]?.[1]();
}

function shortcuts() {
  const rows = [...Object.entries(KEYS).map(([name, [text]]) => [name, text]),
    ["1 … 0", "Colour"], ["Ctrl Z", "Undo"], ["Ctrl Shift Z", "Redo"]];
  for (const [name, text] of rows) {
    const [term, meaning, shown] = ["dt", "dd", "kbd"].map((tag) => document.createElement(tag));
    shown.textContent = name.length === 1 ? name.toUpperCase() : name;
    term.append(shown);
    meaning.textContent = text;
    $("keys").append(term, meaning);
  }
}

// --- the beginning -------------------------------------------------------------------------------

function changed() {
  $("undo").disabled = !board.done.length;
  $("redo").disabled = !board.undone.length;
  soon();
}

function wire() {
  $("undo").onclick = () => board.undo();
  $("redo").onclick = () => board.redo();
  $("clear").onclick = () => board.clear();
  $("size").oninput = () => resize(Number($("size").value));
  $("picker").oninput = () => colour($("picker").value);
  $("open").onclick = () => $("file").click();
  $("file").onchange = () => {
    if ($("file").files[0]) open($("file").files[0]);
    $("file").value = "";
  };
  $("way").onchange = () => state.file && open(state.file);
  $("save").onclick = save;
  $("live").onchange = soon;
  $("real").onclick = () => compare($("target").hidden);
  $("noise").onclick = () => {
    state.noise++;
    translate();
  };
  $("dismiss").onclick = () => tell("");
  $("help").onclick = () => $("shortcuts").showModal();
  document.addEventListener("keydown", key);
  document.addEventListener("paste", (event) => take(event.clipboardData));
  let depth = 0;
  const over = (change) => (event) => {
    event.preventDefault();
    depth = change === null ? 0 : depth + change;
    $("drop").hidden = depth <= 0;
    if (change === null) take(event.dataTransfer);
  };
  document.addEventListener("dragenter", over(1));
  document.addEventListener("dragleave", over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", over(null));
}

function gallery() {
  for (const [number, {name}] of about.examples.entries()) {
    const button = document.createElement("button"), picture = new Image();
    Object.assign(picture, {src: `examples/${number}/thumb`, alt: name, loading: "lazy"});
    [picture.width, picture.height] = [about.width, about.height];
    button.title = name;
    button.ariaPressed = "false";
    button.append(picture);
    button.onclick = () => start(number, button);
    $("examples").append(button);
  }
  document.querySelector(".examples").hidden = !about.examples.length;
}

async function begin() {
  about = JSON.parse(await (await ask("about")).text());
  document.title = `${about.run} · p2p_jax`;
  $("run").textContent = about.run;
  $("facts").textContent = `${about.data} · step ${about.step.toLocaleString("en")} · ${about.width}×${about.height}`;
  document.documentElement.style.setProperty("--aspect", about.width / about.height);
  $("noise").hidden = !about.noise;
  $("other").hidden = !about.free;
  $("save").disabled = true;
  $("size").max = Math.max(16, Math.round(Math.min(about.width, about.height) / 4));
  [$("result").width, $("result").height] = [about.width, about.height];
  $("drawing").classList.toggle("smooth", about.kind === "photo" && about.width >= 128);
  board = new Board($("drawing"), $("cursor"), about, {changed, picked: colour});
  toolbar();
  for (const {hex, name} of about.colours) swatch(hex, name);
  background(about.background);
  const first = about.colours.find(({hex}) => hex !== about.background) ?? about.colours[0];
  colour(first.hex);
  resize(about.brush);
  shortcuts();
  gallery();
  wire();
  changed();
  if (about.examples.length) await start(0, $("examples").children[0]);
}

begin().catch((error) => tell(error.message, () => location.reload()));
