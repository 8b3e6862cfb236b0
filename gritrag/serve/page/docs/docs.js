// Lists the routes of the server with what they take and answer. Everything comes from this server: it works offline.

const routes = document.querySelector("#routes");

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

const nameOf = (schema) => schema.$ref?.split("/").pop();

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return nameOf(schema);
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items) || "anything"}`;
  return schema.const === undefined ? (schema.type ?? "anything") : JSON.stringify(schema.const);
}

function fieldsOf(schema, schemas) {
  const { properties = {}, required = [] } = schema.$ref ? schemas[nameOf(schema)] : schema;
  const list = element("ul");
  for (const [name, field] of Object.entries(properties)) {
    const needed = required.includes(name) ? ", required" : "";
    const told = field.description ? `: ${field.description}` : "";
    list.append(element("li", "", element("code", name), ` ${typeOf(field)}${needed}${told}`));
  }
  return list;
}

function routeOf(method, path, told, schemas) {
  const section = element("details");
  section.className = "panel";
  section.append(element("summary", "", element("code", `${method.toUpperCase()} ${path}`), ` ${told.summary ?? ""}`));
  if (told.description) section.append(element("p", told.description));
  if (told.parameters?.length) {
    const list = element("ul");
    for (const each of told.parameters) {
      list.append(element("li", "", element("code", each.name), ` ${typeOf(each.schema)}, in the ${each.in}`));
    }
    section.append(element("h2", "Parameters"), list);
  }
  for (const [kind, { schema }] of Object.entries(told.requestBody?.content ?? {})) {
    section.append(element("h2", `Body (${kind})`), fieldsOf(schema, schemas));
  }
  const answer = told.responses["200"]?.content?.["application/json"]?.schema;
  if (answer) section.append(element("h2", `Answer: ${typeOf(answer)}`), fieldsOf(answer, schemas));
  return section;
}

try {
  const response = await fetch("../openapi.json");
  const { paths, components } = await response.json();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, told] of Object.entries(methods)) {
      routes.append(routeOf(method, path, told, components.schemas));
    }
  }
} catch (error) {
  const problem = element("p", `The description could not be read: ${error.message}`);
  problem.className = "problem";
  routes.append(problem);
}
routes.removeAttribute("aria-busy");
