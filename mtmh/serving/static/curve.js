// The recall/relevance curve of the evaluation, with the alpha of the slider marked, as inline SVG.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 420, HEIGHT = 250;
const PAD = { left: 50, right: 22, top: 18, bottom: 42 };

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

function scale(values, from, to) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * 0.12;
  const start = low - room, span = high - low + 2 * room;
  return { at: (value) => from + ((value - start) / span) * (to - from), low: start, high: start + span };
}

function ticks({ low, high }) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
  return { values: found, digits: Number.isInteger(Math.round(step * 1e6) / 1e4) ? 0 : Math.max(1, -Math.floor(Math.log10(step * 100))) };
}

/** Draws the curve into `figure`; returns a function that moves the mark to an alpha. */
export function drawCurve(figure, curve) {
  const points = curve.points.filter((point) => point.match !== null);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": "curve-title" });
  drawing.append(svg("title", { id: "curve-title" }, `Recall at ${curve.recall_at} against topic match, by alpha`));
  const x = scale(points.map((point) => point.match), PAD.left, WIDTH - PAD.right);
  const y = scale(points.map((point) => point.recall), HEIGHT - PAD.bottom, PAD.top);
  const across = ticks(x), up = ticks(y);
  for (const value of across.values) {
    drawing.append(
      svg("line", { class: "grid", x1: x.at(value), x2: x.at(value), y1: PAD.top, y2: HEIGHT - PAD.bottom }),
      svg("text", { class: "tick", x: x.at(value), y: HEIGHT - PAD.bottom + 15, "text-anchor": "middle" }, (100 * value).toFixed(across.digits)),
    );
  }
  for (const value of up.values) {
    drawing.append(
      svg("line", { class: "grid", x1: PAD.left, x2: WIDTH - PAD.right, y1: y.at(value), y2: y.at(value) }),
      svg("text", { class: "tick", x: PAD.left - 6, y: y.at(value) + 4, "text-anchor": "end" }, (100 * value).toFixed(up.digits)),
    );
  }
  const level = curve.topic === "topic_l2" ? "fine" : "coarse";
  drawing.append(
    svg("text", { class: "axis", x: (PAD.left + WIDTH - PAD.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, `${level} topic match, %`),
    svg("text", { class: "axis", x: PAD.left - 6, y: PAD.top - 6, "text-anchor": "start" }, `recall@${curve.recall_at}, %`),
    svg("polyline", { class: "curve", points: points.map((point) => `${x.at(point.match)},${y.at(point.recall)}`).join(" ") }),
  );
  for (const point of points) {
    const dot = svg("circle", { class: "dot", cx: x.at(point.match), cy: y.at(point.recall), r: 3.5 });
    dot.append(svg("title", {}, `alpha ${point.alpha}: recall ${(100 * point.recall).toFixed(2)} %, match ${(100 * point.match).toFixed(2)} %`));
    drawing.append(dot);
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
    label.setAttribute("x", Math.min(Math.max(left, PAD.left + 34), WIDTH - PAD.right - 34));
    label.setAttribute("y", top > PAD.top + 24 ? top - 13 : top + 24);
    label.textContent = `alpha ${alpha}`;
    return at;
  };
}
