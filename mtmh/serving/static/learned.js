// The panel of what feedback has taught about alpha: an off-policy estimate for each.

import { call, find, make } from "./page.js";

const percent = (share) => (100 * share).toFixed(2);

/** Fills the panel, if the service learns; says nothing if it cannot be asked just now. */
export async function showLearned(index) {
  if (!index.adaptive_alpha) return;
  const found = await call("/v1/feedback").catch(() => null);
  if (found === null) return;
  find("learned-panel").hidden = false;
  const [note, table] = [find("learned-note"), find("learned")];
  if (!found.num_feedback) {
    note.textContent = "No feedback yet: alphas are drawn evenly.";
    return;
  }
  note.textContent = `${found.num_feedback.toLocaleString("en")} answers with feedback; of the items shown ${percent(found.reward)} % `
    + "were engaged with. Below, what each alpha would have earned alone (doubly robust, ± standard error).";
  const rows = found.alphas.map(({ alpha, chosen, reward }) => make("tr", {},
    make("th", { scope: "row" }, String(alpha)),
    make("td", {}, `${percent(reward.dr.value)} ± ${percent(reward.dr.standard_error)} %`),
    make("td", {}, chosen.toLocaleString("en"))));
  table.replaceChildren(
    make("thead", {}, make("tr", {}, ...["alpha", "engaged", "chosen"].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...rows));
}
