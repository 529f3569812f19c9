// A soak: start it, go on with it, where it is, and what came of the newest one.

import { get, post } from "./api.js";
import { announce, by, h, options, problem, when } from "./dom.js";
import { begin, live, onOperation, onProgress } from "./operation.js";
import { record, standing, progressTable } from "./soak_tables.js";

export function soak(choices) {
  const chosen = choices.hosts.find((host) => host.default) ?? choices.hosts[0];
  options(by("soak-host"), choices.hosts.map((host) => [host.name]), chosen.name);
  options(by("soak-plan"), choices.plans.map((plan) => [plan.name]), "quick");
  const both = () => ({ host: by("soak-host").value, plan: by("soak-plan").value });
  let asked = 0;
  let table = null; // the progress that is shown, drawn anew only where it changed

  const plan = () => choices.plans.find((one) => one.name === by("soak-plan").value);

  function about() {
    const one = plan();
    by("soak-about").replaceChildren(...(!one ? [h("p", { class: "empty" }, "There is no plan in profiles/soak.")]
      : one.problem ? [problem(one.problem, { title: "This plan cannot be read." })]
      : [h("p", { class: "about" }, one.about), h("p", { class: "about" }, outline(one))]));
  }

  // What came of the newest soak of this host and plan, or of the one that is picked.
  async function read(wanted = null) {
    const mine = ++asked;
    const place = by("soak-verdicts");
    const path = ["soak-host", "soak-plan"].map((id) => encodeURIComponent(by(id).value)).join("/");
    place.setAttribute("aria-busy", "true");
    try {
      const found = await get(`/api/soak/${path}${wanted ? `?record=${encodeURIComponent(wanted)}` : ""}`);
      if (mine === asked) place.replaceChildren(...shown(found));
    } catch (failure) {
      if (mine === asked) place.replaceChildren(problem(failure.message));
    } finally {
      if (mine === asked) place.removeAttribute("aria-busy");
    }
  }

  function shown(found) {
    const newest = found.records[0]?.id;
    const parts = [h("h3", {}, "Verdicts")];
    if (!found.total) {
      return [...parts, h("p", { class: "empty" }, `No record of ${found.plan} on ${found.host} yet.`)];
    }
    if (found.total > 1) {
      const pick = h("select", { id: "soak-record", onchange: (event) => {
        read(event.target.value).then(() => by("soak-record")?.focus());
      } });
      options(pick, found.records.map(({ id, epoch }, i) => [id, `${when(epoch)}${i ? "" : ", the newest"}`]),
        found.record?.id ?? found.broken[0]?.id);
      const more = found.total - found.records.length;
      parts.push(h("div", { class: "fields" }, h("label", {}, "Record", pick),
        more > 0 && h("p", { class: "hint" }, `${more} older ones are in the results folder.`)));
    }
    parts.push(...found.broken.map((one) => problem(one.problem, { title: "A record that cannot be shown" })));
    if (found.record) {
      if (found.record.id !== newest && found.broken.length) parts.push(h("p", { class: "about" }, "Shown is the newest one that can be read."));
      parts.push(...record(found.record, found.host));
    }
    return parts;
  }

  function show(...parts) {
    table = null;
    by("soak-progress").replaceChildren(...parts);
  }

  // Whoever comes while a soak runs sees that one.
  function choose(operation) {
    by("soak-host").value = operation.host;
    by("soak-plan").value = operation.plan;
    about();
  }

  by("soak-form").addEventListener("submit", (event) => {
    event.preventDefault();
    begin({ kind: "soak", ...both(), resume: false }, by("soak-said"));
  });
  by("soak-resume").addEventListener("click", () => begin({ kind: "soak", ...both(), resume: true }, by("soak-said")));
  by("soak-where").addEventListener("click", async () => {
    const said = by("soak-said");
    said.replaceChildren();
    const busy = live();
    if (!busy) show(h("p", { class: "empty" }, "Asking the host…"));
    try {
      const found = await post("/api/soak/standing", both());
      show(...standing(found));
      announce(`Where the soak is: ${found.progress.finished ? "over" : "not finished"}.`);
    } catch (failure) {
      if (!busy) show();
      said.replaceChildren(problem(failure.message));
      announce(failure.message);
    }
  });
  by("soak-form").addEventListener("change", () => { about(); if (!live()) show(); read(); });
  by("soak-again").addEventListener("click", () => read());
  onOperation((operation, old) => {
    if (operation.kind !== "soak") return;
    const over = !["running", "cancelling"].includes(operation.state);
    if (!over && operation.state === "running") { by("soak-said").replaceChildren(); choose(operation); read(); }
    if (over && old) return;
    table?.over(operation);
    if (over && by("soak-host").value === operation.host && by("soak-plan").value === operation.plan) read();
  });
  onProgress((progress, operation) => {
    if (operation.kind !== "soak") return;
    const running = ["running", "cancelling"].includes(operation.state);
    if (!table && !running) return; // one that ended before this page came
    if (!table || table.operation !== operation.number) {
      const fresh = progressTable(operation);
      show(...fresh.parts);
      table = fresh;
    }
    table.show(progress);
  });
  about();
  if (plan()) read();
  else by("soak-verdicts").replaceChildren();
}

function outline(plan) {
  const phases = plan.phases.map(([name, replays]) => replays > 1 ? `${name.replaceAll("_", " ")} ×${replays}` : name.replaceAll("_", " "));
  const after = plan.passes.length ? `; after all of them ${plan.passes.join(", ")}` : "";
  return `${plan.arms.length} arms against ${plan.baseline}: ${phases.join(", ")}${after}.`;
}
