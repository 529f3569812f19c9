// One run in full: what ran, whether it counts, its figures, its plot.

import { get } from "./api.js";
import { by, h, number, problem } from "./dom.js";

const BIG = [["generated tokens/s, all streams", "tokens/s"], ["TTFT", "ms to the first token"], ["TPOT", "ms per token"]];
const COLUMNS = ["median", "mean", "std", "p95", "p99"];

const parts = location.pathname.split("/").slice(2);
const path = parts.join("/");
const main = by("main");

function show(run) {
  document.title = `${run.profile} on ${run.host} – leanstack`;
  const metric = (name) => run.metrics.find((one) => one.name === name);
  const big = BIG.filter(([name]) => metric(name)).map(([name, unit]) =>
    h("div", {}, h("dd", {}, number(metric(name).values.median), " ", h("span", {}, unit))));
  main.replaceChildren(h("article", { class: "run" },
    h("h1", {}, `${run.profile} on ${run.host}`),
    h("p", {}, run.id),
    run.reasons.map((reason) => problem(reason, { warn: true, title: "Does not count" })),
    big.length ? h("dl", { class: "big" }, big) : null,
    h("h2", {}, "Figures"),
    run.metrics.length ? h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "metric"), h("th", { scope: "col" }, "unit"),
        [...COLUMNS, "n"].map((name) => h("th", { scope: "col", class: "n" }, name)))),
      h("tbody", {}, run.metrics.map((one) => h("tr", {},
        h("th", { scope: "row" }, one.name), h("td", {}, one.unit),
        COLUMNS.map((name) => h("td", { class: "n" }, number(one.values[name]))),
        h("td", { class: "n" }, String(one.values.count))))))) : h("p", { class: "empty" }, "Nothing was measured."),
    run.plot ? [h("h2", {}, "Plot"), h("img", { class: "plot", src: `/api/runs/${path}/plot.png`,
      alt: `The run's own plot; its figures are in the table above.` })] : null,
    h("h2", {}, "Facts"),
    h("dl", { class: "facts" }, run.facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("h2", {}, "Files"),
    h("p", {}, run.files.join(", "))));
}

try {
  show(await get(`/api/runs/${path}`));
} catch (failure) {
  main.replaceChildren(h("div", { class: "run" }, h("h1", {}, "This run cannot be shown"),
    problem(failure.message), h("p", {}, h("a", { href: "/#history" }, "Back to the history"))));
}
