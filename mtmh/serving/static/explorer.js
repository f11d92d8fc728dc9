// The explorer page. Text of items reaches the page through textContent only.

import { column, factsOf, legendOf, pictureOf, topicsOf } from "./answers.js";
import { drawCurve } from "./curve.js";
import { showLearned } from "./learned.js";
import { mergeAt } from "./merge.js";
import { ask, call, capital, find, make, nameOf, say } from "./page.js";
import { searchBox } from "./search_box.js";

// cap: most answers to one item of a history; null: as many as leave room for the others.
const state = { view: "item", item: null, history: [], alpha: 50, k: 10, cap: null };
let index; // of GET /v1/index
let shown = null; // the last answer, from which the slider merges
let markAlpha = () => null;

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
  state.cap = given.has("cap") ? Math.round(number("cap", 1, 1, index.max_k)) : null;
}

function writeAddress(push) {
  const parts = new URLSearchParams({ view: state.view, alpha: state.alpha, k: state.k });
  if (state.item !== null) parts.set("item", state.item);
  for (const item of state.history) parts.append("history", item);
  if (state.cap !== null) parts.set("cap", state.cap);
  history[push ? "pushState" : "replaceState"](null, "", `#${parts}`);
}

/** Most answers to one item of the history: half as many again as an even share, so that none fills the list. */
function cap() {
  const { length } = state.history;
  return state.cap ?? Math.min(state.k, length > 1 ? Math.ceil((1.5 * state.k) / length) : state.k);
}

// ---- answers

function showItem() {
  const { answer, texts } = shown;
  const trigger = texts.get(answer.trigger);
  const wanted = new Set([trigger?.topic_l1, trigger?.topic_l2].filter(Boolean));
  find("asked").replaceChildren(
    ...pictureOf(trigger),
    make("div", {},
      make("h2", {}, nameOf(texts, answer.trigger), make("span", { class: "soft id" }, `  · ${answer.trigger}`)),
      topicsOf(trigger ?? {}, new Set())),
  );
  const merged = mergeAt(answer.heads, state.alpha, state.k);
  const taken = new Set(merged.map((one) => one.item));
  const options = { texts, wanted, heads: index.heads, open: openItem };
  // From engagement to relevance, as the slider and the chart run.
  const columns = Object.entries(answer.heads).map(([head, answers]) => column(
    head,
    `${capital(head)} head`,
    { text: "similarity", title: `Cosine of the two items' embeddings under the ${head} head` },
    answers,
    { ...options, taken },
  ));
  if (columns.length > 1) {
    const note = { text: `alpha ${state.alpha}`, title: `${state.alpha} % of the places go to the ${index.heads[0]} head` };
    columns.splice(1, 0, column("merged", "Merged", note, merged, { ...options, showHead: true }));
  }
  if (answer.together) {
    const note = { text: "co-occurrence", title: "Nothing learned: users who engaged with both items, over the geometric mean of the users of each" };
    const empty = "Nobody who engaged with it engaged with anything else, or it is newer than the table.";
    columns.push(column("together", "Bought together", note, answer.together, { ...options, empty }));
  }
  find("results").replaceChildren(...columns);
  find("facts").replaceChildren(...factsOf(merged, texts, wanted, index.heads));
}

function showUser() {
  const { answer, texts } = shown;
  const highest = Math.max(...answer.items.map((one) => one.score));
  const note = { text: `by score, at most ${cap()} because of one item`, title: "The score sorts the list; bars are parts of the highest" };
  find("results").replaceChildren(column("merged", "For this user", note, answer.items, {
    texts,
    wanted: new Set(),
    heads: index.heads,
    open: openItem,
    showHead: true,
    highest,
    because: (one) => (one.trigger === null ? null : nameOf(texts, one.trigger)),
  }));
  find("facts").replaceChildren(...factsOf(answer.items, texts, new Set(), index.heads));
}

function showHistory(texts) {
  const chips = state.history.map((item) => {
    const name = nameOf(texts, item);
    const remove = () => {
      state.history = state.history.filter((other) => other !== item);
      writeAddress(true);
      find("query").focus();
      load();
    };
    return make("li", {}, make("span", {}, name), make("button", { "aria-label": `Remove ${name} from the history`, title: "Remove", onclick: remove }, "×"));
  });
  const hint = make("p", { class: "soft" }, "Nothing yet. Add items with the search above; the latest comes last.");
  find("asked").replaceChildren(
    make("div", {}, make("h2", {}, "A user who engaged with"), chips.length ? make("ul", { class: "chips" }, ...chips) : hint),
  );
}

/** Clears the columns and says in words what there is instead, with a way on. */
function showNothing(title, words, ...more) {
  shown = null;
  find("results").replaceChildren(make("div", { class: "nothing" }, make("h2", {}, title), make("p", {}, words), ...more));
  find("facts").replaceChildren();
  if (state.view === "item") find("asked").replaceChildren();
}

function showError(error, again) {
  say(error.message, true);
  const retry = make("button", { class: "plain", onclick: again }, "Try again");
  if (error.status === 404) {
    showNothing("Not found", `${error.message}. Search for another item by its text or its id, or pick an example above.`);
  } else if (error.status === 0 || error.status >= 500) {
    showNothing("No answer", `${error.message} What was shown before is gone; nothing is lost.`, retry);
  } else if (error.status === 429) {
    showNothing("Busy", "The service has more questions than it can answer in time.", retry);
  } else showNothing("That did not work", error.message, retry);
}

let asked = 0; // so that a slow answer does not overwrite a later one

async function load() {
  const number = ++asked;
  const isUser = state.view === "user";
  if (isUser) showHistory(shown?.view === "user" ? shown.texts : null);
  if (isUser ? !state.history.length : state.item === null) {
    showNothing(
      isUser ? "No history yet" : "Nothing asked yet",
      isUser ? "Add the items that a user engaged with: one list comes back, best first." : "Search for an item to begin.",
    );
    say("");
    return;
  }
  const question = isUser
    ? { history: state.history, alpha: state.alpha, max_per: { trigger: cap() } }
    : { triggers: [state.item], side_by_side: true };
  const start = performance.now();
  try {
    const response = await ask({ ...question, k: state.k, describe: true });
    if (number !== asked) return;
    const texts = new Map(response.descriptions.map((text) => [text.item, text]));
    const [answer] = response.answers;
    shown = { view: state.view, answer, texts };
    if (isUser) {
      showHistory(texts);
      showUser();
    } else showItem();
    const ignored = answer.ignored?.length ? ` Not in the index, and passed over: ${answer.ignored.join(", ")}.` : "";
    say(`Index version ${response.version} answered in ${Math.round(performance.now() - start)} ms.${ignored}`);
  } catch (error) {
    if (number === asked) showError(error, load);
  }
}

// ---- examples: of the most popular items, those whose heads differ and stay on topic

const EXAMPLES = 5;

/**
 * How well an item shows the point: heads differ, and both are good. Good is for the engagement head what people engage
 * with together, where the index can tell, and for the others what is on topic.
 */
function telling({ answer, texts }) {
  const lists = Object.values(answer.heads);
  const all = lists.flat();
  if (lists.length < 2 || !all.length) return 0;
  const share = (list, isGood) => list.filter(({ item }) => isGood(item)).length / Math.max(1, list.length);
  const topic = texts.get(answer.trigger)?.topic_l1;
  const onTopic = (item) => topic && texts.get(item)?.topic_l1 === topic;
  const together = answer.together && new Set(answer.together.map(({ item }) => item));
  const [engaged, ...others] = lists;
  const differ = new Set(all.map((one) => one.item)).size / all.length;
  return differ * (share(engaged, together ? (item) => together.has(item) : onTopic) + share(others.flat(), onTopic));
}

async function findExamples() {
  const popular = (await call("/v1/items?limit=12")).items;
  const answers = await Promise.allSettled(popular.map(async ({ item }) => {
    const found = await ask({ triggers: [item], side_by_side: true, k: Math.min(10, index.max_k), describe: true });
    return { item, answer: found.answers[0], texts: new Map(found.descriptions.map((text) => [text.item, text])) };
  }));
  const answered = answers.filter(({ status }) => status === "fulfilled").map(({ value }) => value); // a busy service refuses some
  const best = answered.map((found) => ({ ...found, points: telling(found) })).sort((a, b) => b.points - a.points).slice(0, EXAMPLES);
  const buttons = best.map(({ item, texts }) => make("button", { title: `item ${item}`, onclick: () => openItem(item) }, nameOf(texts, item)));
  find("examples").replaceChildren("Examples: ", ...buttons);
  find("examples").hidden = !buttons.length;
  return (best.length ? best : popular).map(({ item }) => item);
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
  find("alpha").setAttribute("aria-valuetext", `${state.alpha} percent engagement, ${100 - state.alpha} percent relevance`);
  markAlpha(state.alpha);
}

function alphaMoved() {
  state.alpha = Number(find("alpha").value);
  showAlpha();
  writeAddress(false);
  if (state.view === "user") later(load, 80);
  else if (shown?.view === "item") showItem(); // both heads' lists are here: merged on this side, at once
}

/** Takes a whole number from a field into the state; an empty field means `empty`, if that is given. */
function countChanged(id, label, empty) {
  const text = find(id).value.trim();
  const count = Number(text);
  const isEmpty = text === "" && empty !== undefined;
  if (!isEmpty && !(Number.isInteger(count) && count >= 1 && count <= index.max_k)) {
    find(id).setAttribute("aria-invalid", "true");
    say(`${label}: expected a whole number from 1 to ${index.max_k}.`, true);
    return;
  }
  find(id).removeAttribute("aria-invalid");
  state[id] = isEmpty ? empty : count;
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
  find("cap-control").hidden = state.view !== "user";
}

function openTab(view) {
  state.view = view;
  if (view === "user" && !state.history.length && state.item !== null) state.history = [state.item];
  shown = null;
  selectTab();
  writeAddress(true);
  load();
}

function chosen(item) {
  if (state.view === "item") return openItem(item);
  if (!state.history.includes(item)) state.history = [...state.history, item].slice(-index.max_history);
  writeAddress(true);
  return load();
}

function listen() {
  searchBox(chosen);
  find("alpha").addEventListener("input", alphaMoved);
  find("k").addEventListener("input", () => countChanged("k", "Answers"));
  find("cap").addEventListener("input", () => countChanged("cap", "Because of one item", null));
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
  find("cap").value = state.cap ?? "";
  showAlpha();
  load();
}

async function begin() {
  try {
    index = await call("/v1/index");
  } catch (error) {
    showError(error, () => location.reload());
    return;
  }
  find("about").textContent = `${index.model} · index version ${index.version} · ${index.num_items.toLocaleString("en")} items`;
  for (const id of ["k", "cap"]) find(id).max = index.max_k;
  find("alpha-control").hidden = index.heads.length < 2;
  find("legend").replaceChildren(...legendOf(index.heads));
  if (index.curve !== null && index.curve.points.some((point) => point.match !== null)) {
    find("curve-panel").hidden = false;
    markAlpha = drawCurve(find("curve"), index.curve);
    const measured = index.curve.same_index ? "" : "Measured on another version of the index than the one that answers now. ";
    const bars = index.curve.points.some((point) => point.recall_interval) ? "Bars: 95 % intervals over users. " : "";
    find("curve-note").textContent = `${measured}Means over the evaluation's users; between two points, a straight line. ${bars}Axes need not begin at 0.`;
  }
  showLearned(index);
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
