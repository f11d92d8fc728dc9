// The API as /openapi.json describes it, without a script from elsewhere.

const about = document.getElementById("about");

/** An element with text and children; text is never read as HTML. */
function element(name, text = "", ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

function typeOf(schema, schemas) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((choice) => typeOf(choice, schemas)).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {}, schemas)}`;
  if (typeof schema.additionalProperties === "object") return `map to ${typeOf(schema.additionalProperties, schemas)}`;
  return schema.type ?? "any";
}

function limitsOf(schema) {
  const choices = [schema, ...(schema.anyOf ?? [])];
  const limit = (key) => choices.map((choice) => choice[key]).find((value) => value !== undefined && Math.abs(value) < 2 ** 62);
  const range = (low, high, unit) => {
    if (low === undefined && high === undefined) return "";
    if (high === undefined) return `At least ${low}${unit}.`;
    return low === undefined ? `At most ${high}${unit}.` : `From ${low} to ${high}${unit}.`;
  };
  return [range(limit("minimum"), limit("maximum"), ""), range(limit("minItems"), limit("maxItems"), " items")].filter(Boolean).join(" ");
}

function table(rows) {
  const head = element("tr");
  head.append(...["field", "type", "default", "meaning"].map((name) => element("th", name)));
  const made = element("table", "", head);
  for (const cells of rows) {
    const row = element("tr");
    row.append(...cells.map((cell) => element("td", cell)));
    made.append(row);
  }
  return made;
}

function fieldRow(name, schema, required, schemas) {
  const fallback = required ? "required" : schema.default === undefined ? "" : JSON.stringify(schema.default);
  const words = [schema.description ?? "", limitsOf(schema)].filter(Boolean).join(" ");
  return [name, typeOf(schema, schemas), fallback, words];
}

/** Rows of a message's fields, those of messages within it under a dotted name. */
function rowsOf(message, schemas, above = "") {
  return Object.entries(message.properties ?? {}).flatMap(([name, schema]) => {
    const below = schema.$ref ? schemas[schema.$ref.split("/").pop()] : undefined;
    if (below?.properties) return rowsOf(below, schemas, `${above}${name}.`);
    return [fieldRow(above + name, schema, message.required?.includes(name), schemas)];
  });
}

function section(path, method, route, schemas) {
  const made = element("section", "", element("h2", `${method.toUpperCase()} ${path}`), element("p", (route.description ?? "").replaceAll("`", "")));
  if (route.parameters?.length) {
    made.append(table(route.parameters.map((parameter) =>
      fieldRow(parameter.name, { description: parameter.description, ...parameter.schema }, parameter.required, schemas))));
  }
  const body = route.requestBody?.content["application/json"]?.schema;
  const message = body?.$ref ? schemas[body.$ref.split("/").pop()] : undefined;
  if (message) {
    made.append(element("h3", "Body"), table(rowsOf(message, schemas)));
    for (const example of message.examples ?? []) {
      const command = `curl -s ${location.origin}${path} -H 'Content-Type: application/json' -d '${JSON.stringify(example)}'`;
      const shown = element("pre", method === "post" ? command : JSON.stringify(example, null, 1));
      shown.tabIndex = 0; // it scrolls, by keys too
      made.append(shown);
    }
  }
  const statuses = Object.entries(route.responses).map(([status, answer]) => `${status} ${answer.description}`);
  made.append(element("p", `Answers: ${statuses.join(", ")}`));
  return made;
}

try {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const api = await answer.json();
  const schemas = api.components?.schemas ?? {};
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, route] of Object.entries(methods)) {
      document.getElementById("routes").append(section(path, method, route, schemas));
    }
  }
  about.textContent = `${api.info.summary} Version ${api.info.version}; for programs: /openapi.json`;
} catch (error) {
  about.textContent = `The service does not answer (${error.message}). Is it running?`;
}
