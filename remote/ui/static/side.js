// Two columns that stream the same prompt.

import { ask } from "./api.js";
import { announce, by, h, number, options } from "./dom.js";

const FIGURES = [["tokens/s", "tokens_per_s"], ["TTFT ms", "ttft_ms"], ["TPOT ms", "tpot_ms"], ["tokens", "tokens"]];

export function side(choices) {
  options(by("side-tokens"), choices.tokens.map((n) => [n]), 128);
  const known = (choices.hosts.find((host) => host.default) ?? choices.hosts[0]).name;
  const columns = { left: column("left", choices, known, choices.ours), right: column("right", choices, known, choices.systems[0]) };
  by("side-columns").append(columns.left.element, columns.right.element);
  let stopping = null;

  by("side-stop").addEventListener("click", () => stopping?.abort());
  by("side-prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("side-form").requestSubmit();
  });
  by("side-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (stopping) return;
    stopping = new AbortController();
    Object.values(columns).forEach((one) => one.clear());
    by("side-stop").hidden = false;
    try {
      const response = await ask("/api/side-by-side", { signal: stopping.signal, post: {
        prompt: by("side-prompt").value, tokens: Number(by("side-tokens").value),
        together: by("side-order").value === "together",
        left: columns.left.source(), right: columns.right.source(),
      } });
      for await (const document of documents(response)) columns[document.side].hear(document);
      announce("Both columns have ended.");
    } catch (failure) {
      const text = failure.name === "AbortError" ? "stopped" : failure.message;
      Object.values(columns).forEach((one) => one.ended || one.hear({ event: "error", text }));
    } finally {
      stopping = null;
      by("side-stop").hidden = true;
    }
  });
}

function column(name, choices, host, system) {
  const title = name === "left" ? "Left" : "Right";
  const hosts = h("select", { id: `${name}-host`, "aria-label": `${title}: host` });
  const systems = h("select", { id: `${name}-system`, "aria-label": `${title}: system` });
  options(hosts, choices.hosts.map((one) => [one.name]), host);
  options(systems, [[choices.ours, `${choices.ours} (ours)`], ...choices.systems.map((one) => [one])], system);
  const values = FIGURES.map(() => h("dd", {}, "–"));
  const answer = h("div", { class: "answer", id: `${name}-answer`, tabindex: "0", role: "region", "aria-label": `${title}: answer` });
  const said = h("p", { class: "said", id: `${name}-said` });
  const element = h("div", { class: "column" },
    h("div", { class: "pick" }, h("label", {}, "System", systems), h("label", {}, "Host", hosts)),
    h("dl", { class: "figures" }, FIGURES.map(([label], i) => h("div", {}, h("dt", {}, label), values[i]))),
    answer, said);
  const one = {
    element, ended: false,
    source: () => ({ host: hosts.value, system: systems.value }),
    clear() {
      one.ended = false;
      answer.replaceChildren();
      values.forEach((value) => { value.textContent = "–"; });
      tell("");
    },
    hear(document) {
      if (document.event === "state") return tell(document.text);
      if (document.event === "error") { one.ended = true; return tell(document.text, true); }
      const end = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 40;
      answer.append(document.text);
      if (end) answer.scrollTop = answer.scrollHeight;
      FIGURES.forEach(([, key], i) => {
        const value = document[key];
        values[i].textContent = key === "tokens" ? String(value) : number(value);
      });
      one.ended = document.event === "end";
      tell(one.ended ? `ended after ${document.tokens} tokens (${document.finish ?? "no reason given"})` : "streaming");
    },
  };
  function tell(text, bad = false) {
    said.textContent = text;
    said.classList.toggle("bad", bad);
  }
  return one;
}

async function* documents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (pending + value).split("\n");
    pending = lines.pop();
    for (const line of lines) if (line) yield JSON.parse(line);
  }
}
