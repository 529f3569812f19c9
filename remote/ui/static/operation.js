// The dock: the one operation that runs, its progress, how it ended. Everything that starts one asks here.

import { post } from "./api.js";
import { announce, by, duration, h, problem } from "./dom.js";

const WORDS = {
  running: "running", cancelling: "ending", done: "done", invalid: "does not count",
  failed: "failed", cancelled: "cancelled",
};
// A soak is a job of its host: to cancel it here is to stop watching.
const DETACHED = /^detached; /;
const QUIET_KINDS = ["side-by-side", "standing"]; // their words are where they were asked for
const LINES = 2000;
const QUIET_MS = 5000; // between two lines read aloud

let now = null;
let lines = [];
let arrived = 0;
let read = 0;
let drawing = false;
let refused = null; // where it says that something else runs
const listeners = [];
const told = [];

export const live = () => now !== null && (now.state === "running" || now.state === "cancelling");

// `listener(operation)` hears of every change of state.
export const onOperation = (listener) => listeners.push(listener);

// `listener(progress)` hears what the lines of an operation told so far.
export const onProgress = (listener) => told.push(listener);

export async function begin(order, place) {
  place?.replaceChildren();
  try {
    take(await post("/api/operation", order));
  } catch (failure) {
    if (!place) throw failure;
    place.replaceChildren(problem(failure.message));
    if (failure.status === 409) refused = place;
    announce(failure.message);
  }
}

export function follow() {
  const source = new EventSource("/api/events");
  source.addEventListener("open", () => { by("gone").hidden = true; });
  source.addEventListener("error", () => { by("gone").hidden = false; });
  source.addEventListener("operation", (event) => take(JSON.parse(event.data)));
  source.addEventListener("line", (event) => line(JSON.parse(event.data)));
  source.addEventListener("progress", (event) => {
    const data = JSON.parse(event.data);
    if (now?.number === data.operation) for (const listener of told) listener(data, now);
  });
  by("dock-cancel").addEventListener("click", () => post("/api/operation/cancel").then(take, () => {}));
  by("dock-close").addEventListener("click", () => { by("dock").hidden = true; });
  by("dock-toggle").addEventListener("click", () => {
    const open = by("dock-more").hidden;
    by("dock-more").hidden = !open;
    by("dock-toggle").setAttribute("aria-expanded", String(open));
    draw();
  });
  setInterval(() => { if (live()) clock(); }, 500);
}

function take(operation) {
  if (now && operation.number < now.number) return;
  const fresh = !now || operation.number !== now.number;
  const ended = fresh ? !["running", "cancelling"].includes(operation.state) : false;
  if (!fresh && !live() && operation.state !== now.state) return; // an answer that a later event overtook
  const changed = fresh || operation.state !== now.state;
  if (fresh) lines = [];
  now = operation;
  arrived = performance.now() - operation.seconds * 1000;
  if (!changed) return;
  show(fresh && ended);
  for (const listener of listeners) listener(operation, fresh && ended);
}

function show(old) {
  const over = !live();
  by("dock").hidden = old;
  by("dock").dataset.state = now.state;
  by("dock-dot").className = `dot ${now.state}`;
  by("dock-title").textContent = now.title;
  by("dock-command").textContent = now.command;
  if (over && document.activeElement === by("dock-cancel")) {
    by("dock-close").hidden = false;
    by("dock-close").focus();
  }
  by("dock-cancel").hidden = over;
  by("dock-cancel").disabled = now.state === "cancelling";
  const cancel = now.kind === "soak" ? ["Detach", "Detaching…"] : ["Cancel", "Ending…"];
  by("dock-cancel").textContent = cancel[Number(now.state === "cancelling")];
  by("dock-close").hidden = !over;
  by("dock-toggle").hidden = QUIET_KINDS.includes(now.kind);
  by("dock-more").hidden ||= QUIET_KINDS.includes(now.kind);
  by("dock-toggle").setAttribute("aria-expanded", String(!by("dock-more").hidden));
  by("dock-end").replaceChildren(...(over ? ending() : []));
  // Not `disabled`: the button keeps the focus, and who presses it all the same is told what runs.
  for (const button of document.querySelectorAll("[data-operation]")) button.setAttribute("aria-disabled", String(!over));
  if (over) refused?.replaceChildren();
  clock();
  draw();
  if (!old) announce(`${now.title}: ${state()}`);
}

const detached = () => now.kind === "soak" && now.state === "cancelled" && DETACHED.test(now.message);
const state = () => detached() ? "detached" : now.kind === "soak" && now.state === "cancelling" ? "detaching" : WORDS[now.state];

function ending() {
  const parts = [];
  if (now.message && now.state !== "done") {
    const title = { invalid: "It ran, and its numbers do not count.", cancelled: detached() ? "Detached. The soak goes on." : "Cancelled." }[now.state];
    parts.push(problem(now.message, { warn: now.state !== "failed", title }));
  }
  if (now.run) {
    const path = now.run.map(encodeURIComponent).join("/");
    const link = now.kind === "soak" ? ["#soak-verdicts", "See the verdicts"] : [`/runs/${path}`, "Open the run"];
    parts.push(h("p", { class: "dock-command" }, h("a", { href: link[0], id: "dock-run" }, link[1]),
      ` ${now.run.join("/")}`));
  }
  return parts;
}

function clock() {
  const seconds = live() ? (performance.now() - arrived) / 1000 : now.seconds;
  const exit = now.exit_code ? `, exit code ${now.exit_code}` : "";
  by("dock-state").textContent = `${state()}, ${duration(seconds)}${exit}`;
}

function line({ operation, number, text }) {
  if (!now || operation !== now.number || (lines.length && number <= lines[lines.length - 1].number)) return;
  lines.push({ number, text });
  if (lines.length > LINES) lines.shift();
  if (!drawing) {
    drawing = true;
    requestAnimationFrame(() => { drawing = false; draw(); });
  }
  if (performance.now() - read > QUIET_MS) {
    read = performance.now();
    announce(text.trim());
  }
}

function draw() {
  const last = lines.length ? lines[lines.length - 1].text.trim() : "";
  by("dock-line").textContent = live() ? last : "";
  by("dock-line").hidden = !live();
  if (by("dock-more").hidden) return;
  const log = by("dock-log");
  const end = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  log.textContent = lines.length ? lines.map((l) => l.text.trim()).join("\n") : "No word yet.";
  if (end) log.scrollTop = log.scrollHeight;
}
