// Item ids are 64-bit integers, and JavaScript's numbers hold 53 bits: here ids are strings.

/** A JSON answer of the service, its item ids as strings. */
export function parseAnswer(text) {
  // Within a string of JSON every quote has a backslash before it, so this finds keys alone.
  const single = text.replace(/("(?:item|trigger)"\s*:\s*)(-?\d+)/g, '$1"$2"');
  return JSON.parse(single.replace(/("ignored"\s*:\s*\[)([-\d,\s]+)\]/g, (all, key, ids) => `${key}${ids.replace(/-?\d+/g, '"$&"')}]`));
}
