// The interface of the server, from its openapi.json.
"use strict";

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function schemaOf(content, schemas) {
  const schema = content?.["application/json"]?.schema;
  const name = schema?.$ref?.split("/").pop();
  return name ? [name, schemas[name]] : null;
}

async function show() {
  const told = await (await fetch("/openapi.json")).json();
  const schemas = told.components.schemas;
  document.getElementById("title").textContent = `${told.info.title} ${told.info.version}`;
  document.getElementById("about").textContent = told.info.description;
  const found = Object.entries(told.paths).flatMap(([path, verbs]) => Object.entries(verbs).map((v) => [path, ...v]));
  for (const [path, verb, operation] of found) {
    const part = element("section");
    part.append(element("h2", `${verb.toUpperCase()} ${path}`), element("p", operation.description || ""));
    const both = { takes: operation.requestBody?.content, replies: operation.responses["200"].content };
    for (const [what, content] of Object.entries(both)) {
      const schema = schemaOf(content, schemas);
      if (schema === null) continue;
      const more = element("details");
      more.append(element("summary", `${what} ${schema[0]}`), element("pre", JSON.stringify(schema[1], null, 2)));
      part.append(more);
    }
    document.getElementById("paths").append(part);
  }
}

show();
