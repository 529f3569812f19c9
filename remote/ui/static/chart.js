// One small chart: tokens/s of a host's runs of one profile and contract, over time. Hollow points are runs that do not count.

import { h, number, s, when } from "./dom.js";

const W = 280, H = 96, LEFT = 34, RIGHT = 6, TOP = 6, BOTTOM = 18;

export function chart({ host, profile, contract, points }, named) {
  const values = points.map(([, value]) => value);
  const counted = points.filter(([, , ok]) => ok);
  const last = (counted.length ? counted : points).at(-1);
  const low = 0, high = ceiling(Math.max(...values));
  const first = points[0][0], end = points.at(-1)[0];
  const x = (at) => LEFT + (end === first ? 0.5 : (at - first) / (end - first)) * (W - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (H - TOP - BOTTOM);
  const best = Math.max(...(counted.length ? counted : points).map(([, value]) => value));
  const label = `${profile} on ${host}, ${contract}: ${points.length} runs, last ${number(last[1])}, best ${number(best)} tokens/s`;
  const svg = s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  for (const value of [low, high / 2, high]) {
    svg.append(s("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }));
    svg.append(s("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, short(value)));
  }
  const oneDay = when(first).slice(0, 10) === when(end).slice(0, 10);
  svg.append(s("text", { x: LEFT, y: H - 2 }, oneDay && end !== first ? when(first) : when(first).slice(0, 10)));
  if (end !== first) {
    svg.append(s("text", { x: W - RIGHT, y: H - 2, "text-anchor": "end" }, oneDay ? when(end).slice(11) : when(end).slice(0, 10)));
  }
  if (counted.length > 1) {
    svg.append(s("polyline", { class: "path", points: counted.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
  }
  const small = points.length > 40;
  for (const [at, value, ok, id] of points) {
    const point = s("circle", { class: `point${ok ? "" : " not"}${small ? " small" : ""}`, cx: x(at).toFixed(1), cy: y(value).toFixed(1), r: small ? 2 : 3.25 },
      s("title", {}, `${when(at)}: ${number(value)} tokens/s${ok ? "" : ", does not count"}`));
    // The table holds the same links; a hundred more stops of the Tab key would help nobody.
    svg.append(s("a", { href: `/runs/${[host, profile, id].map(encodeURIComponent).join("/")}`, tabindex: "-1", "aria-hidden": "true" }, point));
  }
  return h("figure", { class: "chart" },
    h("figcaption", {},
      h("span", { class: "what" }, profile, h("span", {}, named ? `${host}, ${contract}` : host)),
      h("span", { class: "last" }, number(last[1]), h("span", {}, "tokens/s"))),
    svg);
}

// The next round number above: 1, 2, 2.5 or 5 times a power of ten, with a little room.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * ([1, 2, 2.5, 4, 5, 8, 10].find((step) => step * power >= value * 1.02) ?? 10);
}

const short = (value) => value >= 10000 ? `${value / 1000}k` : String(Number(value.toPrecision(3)));
