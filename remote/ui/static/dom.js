// Elements without markup: whatever came from a host or a file is text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

export const by = (id) => document.getElementById(id);

export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

export function options(select, values, chosen) {
  const before = chosen ?? select.value;
  select.replaceChildren(...values.map(([value, text]) => h("option", { value }, text ?? value)));
  if (values.some(([value]) => String(value) === String(before))) select.value = before;
}

// The message of a failure as the command line gave it; a command it ends with is set apart.
export function problem(message, { warn = false, title = null } = {}) {
  const found = /^(.*?\b(?:run|with|by):) (.+)$/s.exec(message);
  const words = found ? [found[1], " ", h("code", {}, found[2])] : [message];
  return h("p", { class: warn ? "problem warn" : "problem" }, title && h("b", {}, title), ...words);
}

// Four significant digits, as the reports write them.
export function number(value) {
  if (value == null) return "–";
  if (value === 0) return "0";
  const decimals = Math.max(0, Math.min(9, 3 - Math.floor(Math.log10(Math.abs(value)))));
  return value.toFixed(decimals);
}

export function duration(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

export function when(epoch) {
  if (epoch == null) return "–";
  const day = new Date(epoch * 1000);
  const two = (n) => String(n).padStart(2, "0");
  const date = `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())}`;
  return `${date} ${two(day.getHours())}:${two(day.getMinutes())}`;
}

export function announce(text) {
  by("announce").textContent = text;
}
