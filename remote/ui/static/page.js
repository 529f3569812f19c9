// The page: its parts are put together once the lists of names are there.

import { get } from "./api.js";
import { by, options, problem } from "./dom.js";
import { history } from "./history.js";
import { hosts } from "./hosts.js";
import { begin, follow } from "./operation.js";
import { side } from "./side.js";
import { soak } from "./soak.js";

function measure(choices) {
  const chosen = choices.hosts.find((host) => host.default) ?? choices.hosts[0];
  options(by("measure-host"), choices.hosts.map((host) => [host.name]), chosen.name);
  options(by("measure-profile"), choices.profiles.map((name) => [name]), "decode_64_256");
  options(by("compare-system"), choices.systems.map((name) => [name]));
  const both = () => ({ host: by("measure-host").value, profile: by("measure-profile").value });
  by("measure-form").addEventListener("submit", (event) => {
    event.preventDefault();
    begin({ kind: "bench", ...both() }, by("measure-said"));
  });
  by("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    begin({ kind: "compare", system: by("compare-system").value, ...both() }, by("measure-said"));
  });
}

history();
try {
  const choices = await get("/api/choices");
  hosts(choices);
  measure(choices);
  soak(choices);
  side(choices);
} catch (failure) {
  by("host-list").replaceChildren(problem(failure.message));
}
follow();
