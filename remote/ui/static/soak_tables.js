// The tables of a soak: arms side by side, how far each is, and what is said of it.

import { h, number, problem, when } from "./dom.js";

const STATES = {
  waiting: "waits", starting: "its engine starts", running: "runs", begun: "not finished", done: "done", "given up": "given up",
};
const DAMAGE = { weights: "weights perturbed", slower: "every token 6 % slower", cut: "every tenth answer cut" };
const TONES = {
  "default candidate": "good", investigate: "bad", "no score": "bad", insufficient: "warn", "not judged": "warn",
};
const plain = (name) => name.replaceAll("_", " ");

// The progress of a running operation. Made once, then filled: a table that is made anew loses who reads it.
export function progressTable(operation) {
  const now = h("p", { class: "soak-now" });
  const place = h("div");
  const after = h("p", { class: "about" }, "Detach, at the bottom, ends the watching and not the soak: its job goes on. To end that, run: ",
    h("code", {}, `invoke remote.jobs --host ${operation.host} --stop soak`));
  let fill = null;
  return {
    operation: operation.number,
    parts: [h("h3", {}, "Progress"), now, place, after],
    show(progress) {
      now.textContent = [progress.now || "Nothing said yet", progress.eta && `${progress.eta} left`].filter(Boolean).join(" · ");
      if (!fill) {
        const made = grid(progress.arms, `The soak ${operation.plan} on ${operation.host}`);
        fill = made.fill;
        place.replaceChildren(made.element);
      }
      fill(progress.arms);
    },
    over(ended) {
      if (["running", "cancelling"].includes(ended.state)) return;
      const detached = ended.state === "cancelled" && ended.message.startsWith("detached; ");
      now.textContent = detached ? "Detached: it goes on there, and this is how far it was."
        : { done: "Ended.", invalid: "Ended, not whole.", cancelled: "Cancelled; this is how far it was." }[ended.state] ?? "Failed; this is how far it was.";
      after.replaceChildren(...(detached ? ["“Where is it?” asks how far it is. Once it has ended, “Resume” does what is missing, if anything, and brings its record home; until then it is refused."] : []));
    },
  };
}

// How far a soak is that nothing here watches.
export function standing({ progress, arms, host, plan }) {
  const made = grid(progress.arms, `The soak ${progress.soak || plan} on ${host}`);
  made.fill(progress.arms);
  const judged = arms.some((arm) => arm.verdict);
  return [
    h("h3", {}, "Progress"),
    h("p", { class: "soak-now" }, `${progress.soak || plan}: ${progress.finished ? "over" : "not finished"}`),
    made.element,
    progress.cut > 0 && h("p", { class: "about" }, `${replays(progress.cut)} kept aside on the host and not counted.`),
    progress.last.length > 0 && h("details", { class: "about" }, h("summary", {}, "What happened last"),
      h("ul", {}, progress.last.map((event) => h("li", {}, event)))),
    judged && !progress.finished && h("details", {}, h("summary", {}, "What would be said of it now"), verdicts(arms)),
  ].filter(Boolean);
}

// One record: its verdicts, and what lies beside them.
export function record(found, host) {
  const path = `/api/runs/${[host, "soak", found.id].map(encodeURIComponent).join("/")}`;
  const facts = [when(found.epoch), found.release && `release ${found.release}`, found.pack && `pack ${found.pack}`];
  const lacks = [...found.why_not, found.cut && `${replays(found.cut)} not counted`].filter(Boolean).join("; ");
  return [
    !found.complete && problem(lacks || "It does not say what lacks.", { warn: true, title: "This soak is incomplete." }),
    h("p", { class: "about" }, facts.filter(Boolean).join(" · "), found.report && [" · ", h("a", { href: `${path}/report.md` }, "Read its report")]),
    verdicts(found.arms),
    found.pictures.map((name) => h("a", { class: "picture", href: `${path}/${name}` },
      h("img", { class: "plot", src: `${path}/${name}`, loading: "lazy", alt: `${plain(name.replace(".png", ""))}, a figure of this record; the table above has its numbers` }))),
  ].flat().filter(Boolean);
}

const replays = (cut) => cut === 1 ? "1 cut replay is" : `${cut} cut replays are`;

function grid(arms, title) {
  const phases = (arms[0]?.phases ?? []).map((phase) => phase.name);
  const passes = [...new Set(arms.flatMap((arm) => arm.passes.map(([name]) => name)))];
  const rows = arms.map((arm) => row(arm, phases, passes));
  const element = h("div", { class: "scroll" }, h("table", { class: "soak-grid" },
    h("caption", { class: "hidden" }, `${title}: replays that are done, by arm and phase`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "arm"), phases.map((name) => h("th", { scope: "col" }, plain(name))),
      passes.map((name) => h("th", { scope: "col" }, `pass: ${name}`)), h("th", { scope: "col" }, "state"))),
    h("tbody", {}, rows.map((one) => one.element))));
  return { element, fill: (now) => now.forEach((arm, i) => rows[i]?.fill(arm)) };
}

function row(arm, phases, passes) {
  const cells = new Map(phases.map((name) => {
    const bar = h("progress", { "aria-hidden": "true", max: 1, value: 0 });
    const text = h("span");
    return [name, { bar, text, element: h("td", { "data-name": plain(name) }, text, bar) }];
  }));
  const outcomes = new Map(passes.map((name) => [name, h("td", { "data-name": `pass: ${name}` })]));
  const state = h("td", { "data-name": "state" });
  const element = h("tr", {}, h("th", { scope: "row" }, named(arm)),
    [...cells.values()].map((cell) => cell.element), [...outcomes.values()], state);
  return {
    element,
    fill(one) {
      element.dataset.state = one.state;
      for (const { name, done, of, running } of one.phases) {
        const cell = cells.get(name);
        if (!cell) continue;
        cell.text.textContent = `${done} of ${of}`;
        cell.bar.max = Math.max(1, of);
        cell.bar.value = done;
        cell.element.classList.toggle("now", running);
        cell.element.classList.toggle("cut", one.state === "given up" && done < of);
      }
      for (const [name, outcome] of one.passes) if (outcomes.has(name)) outcomes.get(name).textContent = outcome;
      state.replaceChildren(STATES[one.state] ?? one.state, one.reason ? h("span", { class: "why" }, one.reason) : "");
    },
  };
}

function verdicts(arms) {
  const column = (name, numeric) => h("th", { scope: "col", class: numeric ? "n" : null }, name);
  return h("div", { class: "scroll" }, h("table", { class: "verdicts" },
    h("caption", { class: "hidden" }, "The arms, what is said of each, and by which rule"),
    h("thead", {}, h("tr", {}, column("arm"), column("verdict, by the first rule that applies"), column("score", true),
      column("wall s", true), column("change, 95 %", true), column("TPOT p95 ms", true))),
    h("tbody", {}, arms.map(judged))));
}

function judged(arm) {
  const { wall, change, tpot } = arm;
  const figure = (name, ...parts) => h("td", { class: "n", "data-name": name }, parts);
  return h("tr", {},
    h("th", { scope: "row" }, named(arm)),
    h("td", { class: "says" },
      h("strong", { class: TONES[arm.verdict] ?? null }, arm.verdict || "no verdict"),
      arm.rule && arm.verdict !== "baseline" && h("span", { class: "rule" }, `rule: ${arm.rule}`),
      (arm.why || arm.not_run) && h("span", { class: "why" }, arm.why || arm.not_run),
      arm.also.length > 0 && h("details", {}, h("summary", {}, "Later rules would say"), h("ul", {}, arm.also.map((one) => h("li", {}, one))))),
    figure("score", arm.score == null ? "–" : arm.tasks ? `${arm.score} of ${arm.tasks}` : String(arm.score)),
    figure("wall s", number(wall?.mean), wall && h("span", {}, [wall.sd != null && `± ${Number(wall.sd.toPrecision(2))}`, wall.n != null && `n ${wall.n}`].filter(Boolean).join(", "))),
    figure("change, 95 %", arm.baseline ? "–" : percent(change?.relative),
      !arm.baseline && change?.low != null && change.high != null && h("span", {}, `${percent(change.low)} to ${percent(change.high)}`)),
    figure("TPOT p95 ms", number(tpot?.p95 == null ? null : tpot.p95 * 1e3)));
}

function named(arm) {
  return [h("b", {}, arm.name), arm.baseline && arm.verdict !== "baseline" && h("span", { class: "tag" }, "baseline"),
    arm.control && h("span", { class: "tag invalid" }, `damaged on purpose: ${DAMAGE[arm.control] ?? arm.control}`)].filter(Boolean);
}

function percent(share) {
  if (share == null) return "–";
  const text = Math.abs(100 * share).toFixed(2);
  return `${Number(text) === 0 ? "" : share < 0 ? "−" : "+"}${text} %`;
}
