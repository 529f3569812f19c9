// The hosts: a card each, its state, and what can be started or stopped there.

import { get } from "./api.js";
import { by, h, options, problem } from "./dom.js";
import { begin, live, onOperation } from "./operation.js";

const WORDS = {
  unknown: "not looked at yet", looking: "looking…", down: "not started", unreachable: "not reached",
  problem: "something is wrong", idle: "reached, serves nothing", loading: "the service starts or ends", serving: "serving",
};

export function hosts(choices) {
  const cards = choices.hosts.map((host) => card(host, choices));
  by("host-list").replaceChildren(...cards.map((one) => one.element));
  const look = () => cards.forEach((one) => one.look());
  by("hosts-again").addEventListener("click", look);
  onOperation((operation, old) => {
    const over = !["running", "cancelling"].includes(operation.state);
    const goesOn = operation.kind === "soak" && operation.state === "cancelled"; // a look would be in what it measures
    if (over && !old && !goesOn && !["side-by-side", "standing"].includes(operation.kind)) {
      cards.filter((one) => operation.host === null || one.name === operation.host).forEach((one) => one.look());
    }
  });
  look();
}

function card(host, choices) {
  const dot = h("span", { class: "dot", "aria-hidden": "true" });
  const words = h("span");
  const facts = h("div");
  const said = h("div");
  const slots = h("select", { id: `slots-${host.name}` });
  const system = h("select", { id: `system-${host.name}` });
  options(slots, choices.slots.map((n) => [n]));
  options(system, choices.systems.map((name) => [name]));
  const act = (text, order, attributes = {}) => h("button", {
    type: "button", "data-operation": true, "aria-disabled": String(live()), ...attributes,
    onclick: () => begin(order(), said),
  }, text);
  const on = (kind, more = () => ({})) => () => ({ kind, host: host.name, ...more() });
  const start = act("Start the service", on("serve", () => ({ slots: Number(slots.value) })), { id: `serve-${host.name}` });
  const stop = act("Stop the service", on("stop"), { id: `stop-${host.name}` });
  const slot = h("label", {}, "Streams", slots);
  const up = act("Start the embedded host", () => ({ kind: "up" }), { id: `up-${host.name}`, class: "main" });
  const down = act("Stop the embedded host", () => ({ kind: "down" }), { id: `down-${host.name}`, class: "quiet" });
  const baseline = h("div", { class: "acts" },
    h("label", {}, "Baseline", system),
    act("Start", on("baseline-up", () => ({ system: system.value })), { id: `baseline-${host.name}`, "aria-label": `Start the baseline on ${host.name}` }),
    act("Stop", on("baseline-down"), { "aria-label": `Stop the baseline on ${host.name}` }),
    host.embedded && h("span", { class: "apart" }, down));
  const service = h("div", { class: "acts" }, slot, start, stop, up);
  const element = h("li", { class: "host", id: `host-${host.name}` },
    h("div", { class: "host-top" },
      h("h3", {}, host.name), h("span", { class: "contract" }, host.contract),
      h("span", { class: "state" }, dot, words)),
    facts, service, baseline, said);

  function show(state) {
    element.dataset.state = state.state;
    dot.className = `dot ${state.state}`;
    words.textContent = WORDS[state.state] ?? state.state;
    facts.replaceChildren();
    const served = state.served;
    const pairs = served ? [
      ["model", served.model], ["contract", served.contract], ["pack", served.lock],
      ["runner", served.runner], ["streams", served.slots ?? "–"],
    ] : [];
    const jobs = (state.jobs ?? []).filter((name) => name !== "serve");
    if (jobs.length) pairs.push(["also runs", jobs.join(", ")]);
    if (pairs.length) facts.append(h("dl", {}, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))));
    if (state.message) facts.append(problem(state.message));
    const serving = state.state === "serving" || state.state === "loading";
    const away = ["down", "unreachable"].includes(state.state);
    up.hidden = state.state !== "down";
    start.hidden = slot.hidden = serving || away;
    stop.hidden = !serving;
    service.hidden = away && up.hidden;
    baseline.hidden = away;
  }

  async function look() {
    if (!element.dataset.state) show({ state: "unknown" });
    dot.className = "dot looking";
    words.textContent = WORDS.looking;
    try {
      show(await get(`/api/hosts/${encodeURIComponent(host.name)}`));
    } catch (failure) {
      show({ state: "problem", message: failure.message });
    }
  }

  return { name: host.name, element, look };
}
