// Quota merge of one trigger's lists, item for item as mtmh/retrieval/merge.py does it.

/** Shares of the heads: alpha percent for the first, the rest in equal parts. */
export function headShares(alpha, numHeads) {
  if (numHeads === 1) return [1];
  return [alpha / 100, ...Array(numHeads - 1).fill((1 - alpha / 100) / (numHeads - 1))];
}

/** Divides k slots by largest remainder; a tie goes to the earlier head. */
export function headQuotas(shares, k) {
  const exact = shares.map((share) => Math.round(share * k * 1e6) / 1e6);
  const quotas = exact.map(Math.floor);
  const left = k - quotas.reduce((sum, slots) => sum + slots, 0);
  const byRemainder = quotas.map((_, head) => head).sort((a, b) => quotas[a] - exact[a] - (quotas[b] - exact[b]) || a - b);
  for (const head of byRemainder.slice(0, left)) quotas[head] += 1;
  return quotas;
}

/**
 * Merges the lists of all heads: each head in turn takes items that no earlier one took until its quota is full, then
 * heads go on in the same order until there are k. Grouped by head, each head's in its own order.
 */
export function quotaMerge(lists, quotas) {
  const k = quotas.reduce((sum, slots) => sum + slots, 0);
  const seen = new Set();
  const taken = lists.map(() => new Set());
  const take = (head, count) => {
    for (const [rank, answer] of lists[head].entries()) {
      if (count <= 0) return;
      if (seen.has(answer.item)) continue;
      seen.add(answer.item);
      taken[head].add(rank);
      count -= 1;
    }
  };
  lists.forEach((_, head) => take(head, quotas[head]));
  lists.forEach((_, head) => take(head, k - seen.size));
  return lists.flatMap((list, head) => list.filter((_, rank) => taken[head].has(rank)));
}

/** The merge at alpha of lists by head name, the engagement head first. */
export function mergeAt(heads, alpha, k) {
  const lists = Object.values(heads);
  return quotaMerge(lists, headQuotas(headShares(alpha, lists.length), k));
}
