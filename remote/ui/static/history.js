// The results folder: charts and a table in pages. It is asked for after the page stands.

import { get } from "./api.js";
import { by, h, number, options, problem, when } from "./dom.js";
import { chart } from "./chart.js";
import { onOperation } from "./operation.js";

export function history() {
  let page = 1;
  let asked = 0;

  async function read({ anew = false } = {}) {
    const mine = ++asked;
    const query = new URLSearchParams({ page, host: by("history-host").value, profile: by("history-profile").value });
    if (anew) query.set("anew", "1");
    by("history-table").setAttribute("aria-busy", "true");
    try {
      const found = await get(`/api/history?${query}`);
      if (mine !== asked) return;
      page = found.page;
      show(found);
    } catch (failure) {
      if (mine === asked) by("history-table").replaceChildren(problem(failure.message));
    } finally {
      if (mine === asked) by("history-table").removeAttribute("aria-busy");
    }
  }

  function show(found) {
    const all = (names) => [["", "all"], ...names.map((name) => [name])];
    options(by("history-host"), all(found.hosts));
    options(by("history-profile"), all(found.profiles));
    by("history-charts").replaceChildren(...charts(found.series));
    by("history-table").replaceChildren(...table(found, turn));
  }

  function turn(to) {
    page = to;
    read().then(() => by("history-table").querySelector("caption")?.focus());
  }

  by("history-form").addEventListener("submit", (event) => event.preventDefault());
  by("history-form").addEventListener("change", () => { page = 1; read(); });
  by("history-again").addEventListener("click", () => read({ anew: true }));
  onOperation((operation, old) => {
    if (["bench", "compare"].includes(operation.kind) && !old && !["running", "cancelling"].includes(operation.state)) {
      page = 1;
      read({ anew: true });
    }
  });
  read({ anew: true });
}

// The contract is named only where host and profile alone would not tell two charts apart.
function charts(series) {
  const same = (a, b) => a.host === b.host && a.profile === b.profile;
  return series.map((one) => chart(one, series.filter((other) => same(one, other)).length > 1));
}

function table(found, turn) {
  const parts = [];
  if (!found.total) {
    parts.push(h("p", { class: "empty" }, "No run yet. Measure one above, or on the command line: ", h("code", {}, "invoke remote.bench")));
  } else {
    const first = (found.page - 1) * 50 + 1;
    const last = first + found.rows.length - 1;
    parts.push(h("div", { class: "scroll" }, h("table", { class: "runs" },
      h("caption", { tabindex: "-1" }, `Runs ${first} to ${last} of ${found.total}, newest first`),
      h("thead", {}, h("tr", {},
        h("th", { scope: "col" }, "run"), h("th", { scope: "col" }, "profile"), h("th", { scope: "col" }, "host"),
        h("th", { scope: "col", class: "n" }, "tokens/s"), h("th", { scope: "col", class: "n" }, "TTFT ms"),
        h("th", { scope: "col", class: "n" }, "TPOT ms"), h("th", { scope: "col" }, "label"))),
      h("tbody", {}, found.rows.map(row)))));
  }
  if (found.pages > 1) {
    parts.push(h("nav", { class: "pager", "aria-label": "Pages of the history" },
      h("button", { type: "button", disabled: found.page === 1, onclick: () => turn(found.page - 1) }, "Newer"),
      h("span", {}, `page ${found.page} of ${found.pages}`),
      h("button", { type: "button", disabled: found.page === found.pages, onclick: () => turn(found.page + 1) }, "Older")));
  }
  if (found.broken_total) {
    parts.push(h("details", { class: "broken" },
      h("summary", {}, `${found.broken_total} that cannot be read`),
      h("ul", {}, found.broken.map((one) => h("li", {}, one.problem)))));
  }
  return parts;
}

function row(run) {
  const path = [run.host, run.profile, run.id].map(encodeURIComponent).join("/");
  const ms = (seconds) => number(seconds == null ? null : seconds * 1e3);
  return h("tr", {},
    h("td", { class: "when" }, h("a", { href: `/runs/${path}`, title: run.id }, when(run.epoch))),
    h("td", {}, run.profile), h("td", {}, run.host),
    h("td", { class: "n", "data-name": "tokens/s" }, number(run.tokens_per_s_median)),
    h("td", { class: "n", "data-name": "TTFT ms" }, ms(run.ttft_s_median)),
    h("td", { class: "n", "data-name": "TPOT ms" }, ms(run.tpot_s_median)),
    h("td", {}, h("span", { class: `tag ${run.status === "ok" ? run.label : run.status}`, title: run.note },
      run.status === "ok" ? run.label : run.status)));
}
