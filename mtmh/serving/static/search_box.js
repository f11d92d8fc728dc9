// The search box: a combobox with a list of items, by mouse or keys.

import { topicsOf } from "./answers.js";
import { call, find, make, say } from "./page.js";

const NO_TOPICS = new Set();

/** Makes the box work; `choose` is called with the id of an item. */
export function searchBox(choose) {
  let suggestions = [];
  let chosen = -1;
  let searched = 0; // so that a slow answer does not overwrite a later one
  let typing;

  function show(items) {
    suggestions = items;
    chosen = -1;
    const list = find("suggestions");
    list.replaceChildren(...items.map((item, place) => make(
      "li",
      { role: "option", id: `suggestion-${place}`, "aria-selected": "false", onmousedown: (event) => { event.preventDefault(); take(place); } },
      make("div", { class: "text" }, item.text || `item ${item.item}`),
      make("span", { class: "topics" }, `${item.item} · `, topicsOf(item, NO_TOPICS)),
    )));
    list.hidden = items.length === 0;
    find("query").setAttribute("aria-expanded", String(items.length > 0));
    find("query").removeAttribute("aria-activedescendant");
  }

  function highlight(place) {
    chosen = place;
    find("suggestions").childNodes.forEach((option, at) => option.setAttribute("aria-selected", String(at === place)));
    find("query").setAttribute("aria-activedescendant", `suggestion-${place}`);
    find(`suggestion-${place}`).scrollIntoView({ block: "nearest" });
  }

  function take(place) {
    const { item } = suggestions[place];
    find("query").value = "";
    show([]);
    choose(item);
  }

  async function search() {
    const number = ++searched;
    const query = find("query").value.slice(0, 200);
    try {
      const found = await call(`/v1/items?${new URLSearchParams({ query, limit: 12 })}`);
      if (number !== searched || document.activeElement !== find("query")) return;
      show(found.items);
      say(found.items.length ? "" : `No item has all the words of “${query.trim()}”, and no id begins so.`);
    } catch (error) {
      show([]);
      say(error.message, true);
    }
  }

  function pressed(event) {
    const open = suggestions.length > 0;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const down = event.key === "ArrowDown";
      if (!open) search();
      else if (chosen < 0) highlight(down ? 0 : suggestions.length - 1);
      else highlight((chosen + (down ? 1 : suggestions.length - 1)) % suggestions.length);
    } else if (event.key === "Enter" && open) {
      event.preventDefault();
      take(Math.max(chosen, 0));
    } else if (event.key === "Escape" && open) {
      event.preventDefault(); // the browser would empty the field
      show([]);
    }
  }

  find("query").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(search, 90);
  });
  find("query").addEventListener("keydown", pressed);
  find("query").addEventListener("blur", () => show([]));
}
