// Lists of answers as columns: text, picture, topics, score, and where each answer comes from.

import { capital, make, nameOf } from "./page.js";

const NO_TEXT = { text: "", topic_l1: "", topic_l2: "", image: "" };

/** The topics of an item; those of the trigger marked. */
export function topicsOf(text, wanted) {
  const line = make("span", { class: "topics" });
  const topics = [text.topic_l1, text.topic_l2].filter((topic, place, all) => topic && all.indexOf(topic) === place);
  topics.forEach((topic, place) => {
    if (place) line.append(" / ");
    line.append(make("span", wanted.has(topic) ? { class: "same", title: "the topic of the item that was asked for" } : {}, topic));
  });
  return line;
}

/** The picture of an item, or nothing; one that cannot be loaded leaves no hole. */
export function pictureOf(text) {
  if (!text?.image) return [];
  return [make("img", { class: "picture", src: text.image, alt: "", loading: "lazy", onerror: (event) => event.target.remove() })];
}

function number(answer, highest) {
  // A list is shown with what sorts it: a head's and a table's own by similarity, a user's by score.
  if (highest === null) return (answer.similarity ?? answer.score).toFixed(2);
  return answer.score.toPrecision(3);
}

function tooltip(answer, byHead) {
  const similarity = answer.similarity === null ? "" : `, similarity ${answer.similarity.toFixed(4)}${byHead ? ` under the ${answer.head} head` : ""}`;
  return `Item ${answer.item}${similarity}, score ${answer.score.toFixed(4)}. Click to ask for what goes with it.`;
}

/**
 * One answer.
 * options: texts by item; wanted topics; heads by name; open, called with an item; leftOut: not in the merge;
 * showHead: a badge; because: the name of the item it answers; highest: the best score of a list by score, or null.
 */
function answerRow(answer, place, { texts, wanted, heads, open, leftOut = false, showHead = false, because = null, highest = null }) {
  const text = texts.get(answer.item) ?? NO_TEXT;
  const head = heads.indexOf(answer.head);
  const value = highest === null ? answer.similarity ?? answer.score : answer.score;
  const part = highest === null ? value : highest > 0 ? value / highest : 0;
  const topics = topicsOf(text, wanted);
  if (showHead) topics.prepend(make("span", { class: "tag", title: `brought by: ${answer.head}` }, answer.head), " ");
  const bar = make("i");
  bar.style.width = `${Math.max(0, Math.min(1, part)) * 100}%`;
  const row = make(
    "button",
    {
      class: `answer head-${head}${leftOut ? " left-out" : ""}`,
      title: leftOut ? `Not in the merge at this alpha. ${tooltip(answer, true)}` : tooltip(answer, head >= 0),
      "data-item": answer.item,
      "data-head": answer.head,
      onclick: () => open(answer.item),
    },
    make("span", { class: "place" }, String(place + 1)),
    make("span", { class: "text" }, ...pictureOf(text), nameOf(texts, answer.item)),
    make("span", { class: "number" }, number(answer, highest)),
    topics,
  );
  if (because !== null) row.append(make("span", { class: "because" }, "because of ", make("b", {}, because)));
  row.append(make("span", { class: "bar", "aria-hidden": "true" }, bar));
  return make("li", {}, row);
}

/** A column of answers. options: as `answerRow`, `because` a function, `taken` the items of the merge, `empty` words. */
export function column(id, title, note, answers, options) {
  const { taken, because, empty = "Nothing found.", ...common } = options;
  const rows = answers.map((answer, place) => answerRow(answer, place, {
    ...common,
    leftOut: taken !== undefined && !taken.has(answer.item),
    because: because ? because(answer) : null,
  }));
  const heading = make("h2", {}, title, make("small", {}, note.text ?? note));
  if (note.title) heading.title = note.title;
  return make(
    "section",
    { class: `column ${id}`, id: `column-${id}`, "aria-label": title },
    heading,
    rows.length ? make("ol", {}, ...rows) : make("p", { class: "empty" }, empty),
  );
}

/** Name and value pairs about the answers that are shown. */
export function factsOf(answers, texts, wanted, heads) {
  const percent = (count) => (answers.length ? `${Math.round((100 * count) / answers.length)} %` : "–");
  const facts = heads.map((head) => {
    const count = answers.filter((answer) => answer.head === head).length;
    return [`from the ${head} head`, `${count} of ${answers.length}`];
  });
  if (wanted.size) {
    for (const [level, word] of [["topic_l1", "coarse"], ["topic_l2", "fine"]]) {
      facts.push([`of its ${word} topic`, percent(answers.filter((answer) => wanted.has(texts.get(answer.item)?.[level])).length)]);
    }
  }
  return facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
}

/** What colours, fading and badges mean. */
export function legendOf(heads) {
  const entries = heads.map((head, place) => [make("span", { class: `swatch head-${place}` }), `${capital(head)} head: the stripe and the bar`]);
  entries.push([make("b", { class: "same" }, "Green"), "a topic of the item that was asked for"]);
  entries.push([make("span", { class: "faded" }, "Grey, dashed"), "found by this head, not in the merge at this alpha"]);
  entries.push([make("span", { class: "tag head-0" }, heads[0]), "the head that brought it into the merge"]);
  return entries.flatMap(([sign, meaning]) => [make("dt", {}, sign), make("dd", {}, meaning)]);
}
