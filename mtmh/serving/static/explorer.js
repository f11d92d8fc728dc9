// The explorer page. Text of items reaches the page through textContent only.

import { drawCurve } from "./curve.js";
import { parseAnswer } from "./ids.js";
import { mergeAt } from "./merge.js";

const find = (id) => document.getElementById(id);
const state = { view: "item", item: null, history: [], alpha: 50, k: 10 };
let index; // of GET /v1/index
let shown = null; // the last answer, from which the slider merges
let markAlpha = () => null;

/** An element with attributes, classes and children; strings become text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The service does not answer. Is mtmh serve still running?");
  }
  const content = parseAnswer(await answer.text());
  if (!answer.ok) throw new Error(content.detail ?? answer.statusText);
  return content;
}

const ask = (question) =>
  call("/v1/retrieve", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });

function say(text, isError = false) {
  find("status").textContent = text;
  find("status").classList.toggle("error", isError);
}

// ---- what is in the address: views can be linked to, and Back works

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = (name, fallback, low, high) => {
    const value = Number.parseFloat(given.get(name));
    return Number.isFinite(value) ? Math.min(Math.max(value, low), high) : fallback;
  };
  state.view = given.get("view") === "user" ? "user" : "item";
  state.item = given.get("item");
  state.history = given.getAll("history").slice(0, index.max_history);
  state.alpha = Math.round(number("alpha", index.alpha, 0, 100));
  state.k = Math.round(number("k", Math.min(10, index.max_k), 1, index.max_k));
}

function writeAddress(push) {
  const parts = new URLSearchParams({ view: state.view, alpha: state.alpha, k: state.k });
  if (state.item !== null) parts.set("item", state.item);
  for (const item of state.history) parts.append("history", item);
  history[push ? "pushState" : "replaceState"](null, "", `#${parts}`);
}

// ---- answers

function topicsOf(text, wanted) {
  const line = make("span", { class: "topics" });
  const topics = [text.topic_l1, text.topic_l2].filter((topic, place, all) => topic && all.indexOf(topic) === place);
  topics.forEach((topic, place) => {
    if (place) line.append(" / ");
    line.append(make("span", wanted.has(topic) ? { class: "same", title: "the trigger's own topic" } : {}, topic));
  });
  return line;
}

function answerRow(answer, place, { texts, wanted, leftOut = false, showHead = false, because = null, highest = null }) {
  const text = texts.get(answer.item) ?? { text: "", topic_l1: "", topic_l2: "" };
  const head = index.heads.indexOf(answer.head);
  // A user's list is sorted by score, which has no scale of its own: bars are parts of the highest.
  const value = highest === null ? answer.similarity ?? answer.score : answer.score;
  const part = highest === null ? value : highest > 0 ? value / highest : 0;
  const topics = topicsOf(text, wanted);
  if (showHead) topics.prepend(make("span", { class: "tag" }, answer.head), " ");
  if (because !== null) topics.append(` · because of ${because}`);
  const bar = make("i");
  bar.style.width = `${Math.max(0, Math.min(1, part)) * 100}%`;
  const button = make(
    "button",
    {
      class: `answer head-${head}${leftOut ? " left-out" : ""}`,
      title: `item ${answer.item}: similarity ${answer.similarity?.toFixed(4) ?? "unknown"} under ${answer.head}, score ${answer.score.toFixed(4)}`,
      "data-item": answer.item,
      "data-head": answer.head,
      onclick: () => openItem(answer.item),
    },
    make("span", { class: "place" }, String(place + 1)),
    make("span", { class: "text" }, text.text || `item ${answer.item}`),
    make("span", { class: "number" }, highest === null ? value.toFixed(2) : value.toPrecision(3)),
    topics,
    make("span", { class: "bar", "aria-hidden": "true" }, bar),
  );
  return make("li", {}, button);
}

function column(id, title, note, answers, options) {
  const list = answers.length
    ? make("ol", {}, ...answers.map((answer, place) => answerRow(answer, place, {
        ...options,
        leftOut: options.taken !== undefined && !options.taken.has(answer.item),
      })))
    : make("p", { class: "empty" }, "Nothing found.");
  return make("section", { class: `column ${id}`, id: `column-${id}`, "aria-label": title }, make("h2", {}, title, make("small", {}, note)), list);
}

const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);
const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");

function fillFacts(answers, texts, wanted) {
  const facts = [];
  for (const head of index.heads) {
    const count = answers.filter((answer) => answer.head === head).length;
    facts.push([`from the ${head} head`, `${count} of ${answers.length}`]);
  }
  if (wanted.size) {
    const match = (level) => answers.filter((answer) => wanted.has(texts.get(answer.item)?.[level])).length;
    facts.push(["of its coarse topic", percent(match("topic_l1"), answers.length)]);
    facts.push(["of its fine topic", percent(match("topic_l2"), answers.length)]);
  }
  find("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function showItem() {
  const { answer, texts } = shown;
  const trigger = texts.get(answer.trigger);
  const wanted = new Set([trigger?.topic_l1, trigger?.topic_l2].filter(Boolean));
  find("asked").replaceChildren(
    make("h2", {}, trigger?.text || `item ${answer.trigger}`, make("span", { class: "soft id" }, `  · ${answer.trigger}`)),
    topicsOf(trigger ?? {}, new Set()),
  );
  const merged = mergeAt(answer.heads, state.alpha, state.k);
  const taken = new Set(merged.map((one) => one.item));
  // As the slider runs: relevance on the left, engagement on the right.
  const columns = Object.entries(answer.heads).reverse().map(([head, answers]) =>
    column(head, `${capital(head)} head`, "similarity", answers, { texts, wanted, taken }));
  if (columns.length > 1) {
    columns.splice(-1, 0, column("merged", "Merged", `alpha ${state.alpha}`, merged, { texts, wanted, showHead: true }));
  }
  find("results").replaceChildren(...columns);
  fillFacts(merged, texts, wanted);
}

function showUser() {
  const { answer, texts } = shown;
  const name = (item) => texts.get(item)?.text || `item ${item}`;
  const highest = Math.max(...answer.items.map((one) => one.score));
  const options = { texts, wanted: new Set(), showHead: true, highest };
  const rows = answer.items.map((one, place) => answerRow(one, place, { ...options, because: name(one.trigger) }));
  const list = rows.length ? make("ol", {}, ...rows) : make("p", { class: "empty" }, "Nothing found.");
  find("results").replaceChildren(
    make("section", { class: "column merged", id: "column-merged", "aria-label": "Answers" }, make("h2", {}, "For this user", make("small", {}, `alpha ${state.alpha}, by score`)), list),
  );
  fillFacts(answer.items, texts, new Set());
}

function showHistory(texts) {
  const chips = state.history.map((item) => {
    const name = texts?.get(item)?.text || `item ${item}`;
    const remove = () => {
      state.history = state.history.filter((other) => other !== item);
      writeAddress(true);
      find("query").focus();
      load();
    };
    return make("li", {}, name, make("button", { "aria-label": `Remove ${name} from the history`, onclick: remove }, "×"));
  });
  const title = make("h2", {}, "A user who engaged with");
  const hint = make("p", { class: "soft" }, "Add items with the search above; the latest comes last.");
  find("asked").replaceChildren(title, chips.length ? make("ul", { class: "chips" }, ...chips) : hint);
}

let asked = 0; // so that a slow answer does not overwrite a later one

async function load() {
  const number = ++asked;
  const isUser = state.view === "user";
  const question = isUser ? { history: state.history, alpha: state.alpha } : { triggers: [state.item], side_by_side: true };
  if (isUser) showHistory(shown?.view === "user" ? shown.texts : null);
  if (isUser ? !state.history.length : state.item === null) {
    shown = null;
    find("results").replaceChildren();
    find("facts").replaceChildren();
    if (!isUser) find("asked").replaceChildren();
    say(isUser ? "" : "Search for an item to begin.");
    return;
  }
  const start = performance.now();
  try {
    const response = await ask({ ...question, k: state.k, describe: true });
    if (number !== asked) return;
    const texts = new Map(response.descriptions.map((text) => [text.item, text]));
    shown = { view: state.view, answer: response.answers[0], texts };
    if (isUser) {
      showHistory(texts);
      showUser();
    } else showItem();
    say(`Index version ${response.version} answered in ${Math.round(performance.now() - start)} ms.`);
  } catch (error) {
    if (number !== asked) return;
    shown = null;
    find("results").replaceChildren(make("p", { class: "empty" }, "Nothing to show. Search for another item, or pick an example."));
    find("facts").replaceChildren();
    if (!isUser) find("asked").replaceChildren();
    say(error.message, true);
  }
}

// ---- examples: of the most popular items, those whose heads differ and stay on topic

const EXAMPLES = 5;

/** How well an item shows the point: the share of answers that only one head has, and those of its own topic. */
function telling({ answer, texts }) {
  const lists = Object.values(answer.heads);
  const all = lists.flat();
  if (lists.length < 2 || !all.length) return 0;
  const differ = new Set(all.map((one) => one.item)).size / all.length;
  const topic = texts.get(answer.trigger)?.topic_l1;
  const onTopic = all.filter((one) => topic && texts.get(one.item)?.topic_l1 === topic).length / all.length;
  return differ + onTopic;
}

async function findExamples() {
  const popular = (await call("/v1/items?limit=12")).items;
  const answers = await Promise.all(popular.map(async ({ item }) => {
    const found = await ask({ triggers: [item], side_by_side: true, k: Math.min(10, index.max_k), describe: true });
    return { item, answer: found.answers[0], texts: new Map(found.descriptions.map((text) => [text.item, text])) };
  }));
  const best = answers.map((found) => ({ ...found, points: telling(found) })).sort((a, b) => b.points - a.points).slice(0, EXAMPLES);
  const buttons = best.map(({ item, texts }) => make("button", { onclick: () => openItem(item) }, texts.get(item)?.text || `item ${item}`));
  find("examples").replaceChildren("Examples: ", ...buttons);
  find("examples").hidden = !buttons.length;
  return best.map(({ item }) => item);
}

function openItem(item) {
  state.view = "item";
  state.item = item;
  selectTab();
  writeAddress(true);
  find("results").focus({ preventScroll: true });
  scrollTo({ top: 0 });
  load();
}

// ---- controls

let waiting;
function later(action, milliseconds) {
  clearTimeout(waiting);
  waiting = setTimeout(action, milliseconds);
}

function showAlpha() {
  find("alpha").value = state.alpha;
  find("alpha-value").textContent = `${state.alpha} %`;
  find("alpha").setAttribute("aria-valuetext", `${state.alpha} percent from the engagement head`);
  markAlpha(state.alpha);
}

function alphaMoved() {
  state.alpha = Number(find("alpha").value);
  showAlpha();
  writeAddress(false);
  if (state.view === "user") later(load, 80);
  else if (shown?.view === "item") showItem(); // both heads' lists are here: merged on this side, at once
}

function countChanged() {
  const k = Number.parseInt(find("k").value, 10);
  if (!(k >= 1 && k <= index.max_k)) {
    say(`Answers: expected 1 to ${index.max_k}.`, true);
    return;
  }
  state.k = k;
  writeAddress(false);
  later(load, 150);
}

function selectTab() {
  for (const view of ["item", "user"]) {
    const tab = find(`tab-${view}`);
    tab.setAttribute("aria-selected", String(view === state.view));
    tab.tabIndex = view === state.view ? 0 : -1;
  }
  find("view").setAttribute("aria-labelledby", `tab-${state.view}`);
  find("query-label").textContent = state.view === "user" ? "Add an item to the history" : "Find an item";
}

function openTab(view) {
  state.view = view;
  if (view === "user" && !state.history.length && state.item !== null) state.history = [state.item];
  shown = null;
  selectTab();
  writeAddress(true);
  load();
}

// ---- search box: a combobox with a list, by mouse or keys

let suggestions = [];
let chosen = -1;
let searched = 0;

function showSuggestions(items) {
  suggestions = items;
  chosen = -1;
  const list = find("suggestions");
  list.replaceChildren(...items.map((item, place) => make(
    "li",
    { role: "option", id: `suggestion-${place}`, "aria-selected": "false", onmousedown: (event) => { event.preventDefault(); choose(place); } },
    make("div", { class: "text" }, item.text || `item ${item.item}`),
    topicsOf(item, new Set()),
  )));
  list.hidden = items.length === 0;
  find("query").setAttribute("aria-expanded", String(items.length > 0));
  find("query").removeAttribute("aria-activedescendant");
}

function highlight(place) {
  chosen = place;
  find("suggestions").childNodes.forEach((option, at) => option.setAttribute("aria-selected", String(at === place)));
  if (place < 0) return;
  find("query").setAttribute("aria-activedescendant", `suggestion-${place}`);
  find(`suggestion-${place}`).scrollIntoView({ block: "nearest" });
}

function choose(place) {
  const item = suggestions[place].item;
  find("query").value = "";
  showSuggestions([]);
  if (state.view === "item") return openItem(item);
  if (!state.history.includes(item)) state.history = [...state.history, item].slice(-index.max_history);
  writeAddress(true);
  return load();
}

async function search() {
  const number = ++searched;
  try {
    const found = await call(`/v1/items?${new URLSearchParams({ query: find("query").value.slice(0, 200), limit: 12 })}`);
    if (number !== searched || document.activeElement !== find("query")) return;
    showSuggestions(found.items);
    if (!found.items.length) say("No item has all these words.");
  } catch (error) {
    say(error.message, true);
  }
}

function searchKey(event) {
  const open = suggestions.length > 0;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (!open) search();
    else highlight((chosen + (event.key === "ArrowDown" ? 1 : -1) + suggestions.length + (chosen < 0 && event.key === "ArrowUp" ? 1 : 0)) % suggestions.length);
  } else if (event.key === "Enter" && open) {
    event.preventDefault();
    choose(Math.max(chosen, 0));
  } else if (event.key === "Escape" && open) {
    event.preventDefault(); // the browser would empty the field
    showSuggestions([]);
  }
}

let typing;
function typed() {
  clearTimeout(typing);
  typing = setTimeout(search, 90);
}

function listen() {
  find("alpha").addEventListener("input", alphaMoved);
  find("k").addEventListener("input", countChanged);
  find("query").addEventListener("input", typed);
  find("query").addEventListener("keydown", searchKey);
  find("query").addEventListener("blur", () => showSuggestions([]));
  for (const view of ["item", "user"]) find(`tab-${view}`).addEventListener("click", () => openTab(view));
  document.querySelector(".tabs").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    openTab(state.view === "item" ? "user" : "item");
    find(`tab-${state.view}`).focus();
  });
  addEventListener("popstate", () => {
    readAddress();
    render();
  });
}

function render() {
  shown = null;
  selectTab();
  find("k").value = state.k;
  showAlpha();
  load();
}

async function begin() {
  try {
    index = await call("/v1/index");
  } catch (error) {
    say(error.message, true);
    return;
  }
  find("about").textContent = `${index.model} · index version ${index.version} · ${index.num_items.toLocaleString("en")} items`;
  find("k").max = index.max_k;
  if (index.curve !== null && index.curve.points.some((point) => point.match !== null)) {
    find("curve-panel").hidden = false;
    markAlpha = drawCurve(find("curve"), index.curve);
    find("curve-note").textContent = index.curve.same_index
      ? "Means over the evaluation's users; between two points, a straight line."
      : "Measured on another version of the index than the one that answers now.";
  }
  listen();
  readAddress();
  const opens = state.view === "item" && state.item === null; // on the first example; else the answer goes first
  if (!opens) render();
  const examples = await findExamples().catch(() => []);
  if (!opens) return;
  state.item = examples[0] ?? null;
  render();
}

begin();
