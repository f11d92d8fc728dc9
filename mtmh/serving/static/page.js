// What all parts of the page use: elements, words and requests.

import { parseAnswer } from "./ids.js";

export const find = (id) => document.getElementById(id);
export const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);

/** An element with attributes, listeners (on...) and children; strings become text, never HTML. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** A request that the service did not answer as hoped; status 0: it did not answer at all. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function call(path, options) {
  let answer, text;
  try {
    answer = await fetch(path, options);
    text = await answer.text();
  } catch {
    throw new Refusal(0, "The service does not answer. Is mtmh serve still running?");
  }
  let content;
  try {
    content = parseAnswer(text);
  } catch {
    throw new Refusal(answer.status, `The answer is not from mtmh serve (status ${answer.status}).`);
  }
  if (!answer.ok) throw new Refusal(answer.status, content.detail ?? answer.statusText);
  return content;
}

export const ask = (question) =>
  call("/v1/retrieve", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });

export function say(text, isError = false) {
  find("status").textContent = text;
  find("status").classList.toggle("error", isError);
}

export const nameOf = (texts, item) => texts?.get(item)?.text || `item ${item}`;
