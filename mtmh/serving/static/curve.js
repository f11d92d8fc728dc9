// The recall/relevance curve of the evaluation, with the alpha of the slider marked, as inline SVG.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 330, HEIGHT = 260;
const PAD = { left: 34, right: 16, top: 34, bottom: 42 };

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Recall and match at alpha, between the measured points on either side. */
export function interpolate(points, alpha) {
  const after = points.findIndex((point) => point.alpha >= alpha);
  if (after === 0) return points[0];
  if (after < 0) return points[points.length - 1];
  const [a, b] = [points[after - 1], points[after]];
  const part = (alpha - a.alpha) / (b.alpha - a.alpha);
  const between = (x, y) => x + part * (y - x);
  return { alpha, recall: between(a.recall, b.recall), match: between(a.match, b.match) };
}

/** A scale whose ends are round numbers around all values; it begins at 0 where that costs little room. */
function scale(values, from, to) {
  const low = Math.min(...values), high = Math.max(...values);
  const start = low < 0.35 * high ? 0 : low;
  const rough = (high - start || Math.abs(high) || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((size) => size >= rough * 0.999);
  const first = Math.floor(start / step + 1e-9), last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
  const ticks = Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
  const digits = Number.isInteger(Math.round(step * 1e6) / 1e4) ? 0 : 1;
  return { ticks, digits, at: (value) => from + ((value - ticks[0]) / (ticks[ticks.length - 1] - ticks[0])) * (to - from) };
}

const percent = (value) => (100 * value).toFixed(2);
const inWords = (name, value, interval) =>
  `${name} ${percent(value)} %${interval ? ` (95 % interval ${percent(interval[0])} to ${percent(interval[1])})` : ""}`;

/** Draws the curve into `figure`; returns a function that moves the mark to an alpha. */
export function drawCurve(figure, curve) {
  const points = curve.points.filter((point) => point.match !== null);
  const level = curve.topic === "topic_l2" ? "fine" : "coarse";
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": "curve-title" });
  const ends = points.filter((point) => point.alpha === 0 || point.alpha === 100);
  const told = ends.map((point) => `alpha ${point.alpha}: ${inWords("recall", point.recall)}, ${inWords("match", point.match)}`).join("; ");
  drawing.append(svg("title", { id: "curve-title" }, `Recall at ${curve.recall_at} against ${level} topic match, by alpha. ${told}`));
  const x = scale(points.flatMap((point) => [point.match, ...(point.match_interval ?? [])]), PAD.left, WIDTH - PAD.right);
  const y = scale(points.flatMap((point) => [point.recall, ...(point.recall_interval ?? [])]), HEIGHT - PAD.bottom, PAD.top);
  for (const value of x.ticks) {
    drawing.append(
      svg("line", { class: "grid", x1: x.at(value), x2: x.at(value), y1: PAD.top, y2: HEIGHT - PAD.bottom }),
      svg("text", { class: "tick", x: x.at(value), y: HEIGHT - PAD.bottom + 15, "text-anchor": "middle" }, (100 * value).toFixed(x.digits)),
    );
  }
  for (const value of y.ticks) {
    drawing.append(
      svg("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: y.at(value), y2: y.at(value) }),
      svg("text", { class: "tick", x: PAD.left - 6, y: y.at(value) + 4, "text-anchor": "end" }, (100 * value).toFixed(y.digits)),
    );
  }
  drawing.append(
    svg("text", { class: "axis", x: (PAD.left + WIDTH - PAD.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, `more relevant: ${level} topic match, % →`),
    svg("text", { class: "axis", x: 4, y: PAD.top - 12, "text-anchor": "start" }, `more engagement: recall@${curve.recall_at}, % ↑`),
  );
  for (const { match, recall, match_interval: across, recall_interval: up } of points) {
    if (across) drawing.append(svg("line", { class: "interval", x1: x.at(across[0]), x2: x.at(across[1]), y1: y.at(recall), y2: y.at(recall) }));
    if (up) drawing.append(svg("line", { class: "interval", x1: x.at(match), x2: x.at(match), y1: y.at(up[0]), y2: y.at(up[1]) }));
  }
  drawing.append(svg("polyline", { class: "curve", points: points.map((point) => `${x.at(point.match)},${y.at(point.recall)}`).join(" ") }));
  for (const point of points) {
    const head = point.alpha === 100 ? " head-0" : point.alpha === 0 ? " head-1" : "";
    const dot = svg("circle", { class: `dot${head}`, cx: x.at(point.match), cy: y.at(point.recall), r: head ? 5 : 3.5 });
    const words = [inWords("recall", point.recall, point.recall_interval), inWords("match", point.match, point.match_interval)];
    dot.append(svg("title", {}, `alpha ${point.alpha}: ${words.join(", ")}`));
    drawing.append(dot);
  }
  const middle = (PAD.left + WIDTH - PAD.right) / 2;
  for (const point of ends) {
    const left = x.at(point.match) < middle;
    const other = ends.find((end) => end !== point);
    // Below its point; the engagement end above it where the two labels would meet.
    const meets = other && Math.abs(x.at(point.match) - x.at(other.match)) < 200 && Math.abs(y.at(point.recall) - y.at(other.recall)) < 16;
    const above = y.at(point.recall) > HEIGHT - PAD.bottom - 24 || (meets && point.alpha === 100);
    drawing.append(svg(
      "text",
      { class: `end head-${point.alpha === 100 ? 0 : 1}`, x: x.at(point.match) + (left ? -6 : 6), y: y.at(point.recall) + (above ? -10 : 20), "text-anchor": left ? "start" : "end" },
      point.alpha === 100 ? "engagement only" : "relevance only",
    ));
  }
  const ring = svg("circle", { class: "mark", r: 7 });
  const label = svg("text", { class: "mark-label", "text-anchor": "middle" });
  drawing.append(ring, label);
  figure.replaceChildren(drawing);
  return (alpha) => {
    const at = interpolate(points, alpha);
    const [left, top] = [x.at(at.match), y.at(at.recall)];
    ring.setAttribute("cx", left);
    ring.setAttribute("cy", top);
    label.setAttribute("x", Math.min(Math.max(left, PAD.left + 30), WIDTH - PAD.right - 30));
    label.setAttribute("y", top > PAD.top + 24 ? top - 13 : top + 36);
    label.textContent = `alpha ${alpha}`;
    return at;
  };
}
