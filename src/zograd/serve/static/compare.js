// The page on which a person answers: two candidates, or one and a number.
"use strict";

const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
const at = (id) => document.getElementById(id);

async function call(path, body) {
  const options = { headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" } };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const reply = await fetch(path, options);
  const told = await reply.json();
  if (!reply.ok) throw new Error(told.detail || reply.statusText);
  return told;
}

// Every text of a run is set as text, never as HTML.
function element(name, text, attributes = {}) {
  const made = Object.assign(document.createElement(name), attributes);
  if (text !== null) made.textContent = text;
  return made;
}

// [name, value] of each variable of a point, in the form of x0.
function variables(x, name = "") {
  if (typeof x === "number") return [[name || "x", x]];
  const parts = Array.isArray(x) ? x.map((v, i) => [`${name || "x"}[${i}]`, v]) : Object.entries(x);
  return parts.flatMap(([key, value]) => variables(value, key));
}

function rows(table, x) {
  const shown = variables(x).slice(0, 200).map(([name, value]) => {
    const row = element("tr", null);
    row.append(element("th", name), element("td", Number(value.toPrecision(6)).toString()));
    return row;
  });
  table.replaceChildren(...shown);
}

function card(title, x) {
  const made = element("section", null, { className: "candidate" });
  const table = element("table", null);
  rows(table, x);
  made.append(element("h2", title), table);
  return made;
}

function button(text, key, action) {
  const made = element("button", key ? `${text} (${key})` : text, { type: "button" });
  made.dataset.key = key;
  made.addEventListener("click", async () => {
    for (const other of document.querySelectorAll("button")) other.disabled = true;
    try {
      const { receipts } = await action();
      at("message").textContent = receipts.every((r) => r.status === "counted") ? "" : "Somebody else was faster.";
      await next();
    } catch (error) {
      at("message").textContent = error.message;
      for (const other of document.querySelectorAll("button")) other.disabled = false;
    }
  });
  return made;
}

function askPair(a, b) {
  const prefer = (winner, loser, tie) => () => call("/v1/comparisons", { winner: winner.id, loser: loser.id, tie });
  at("question").textContent = "Which is better?";
  at("candidates").replaceChildren(card("A", a.x), card("B", b.x));
  at("answers").replaceChildren(
    button("A is better", "1", prefer(a, b, false)),
    button("Equally good", "2", prefer(a, b, true)),
    button("B is better", "3", prefer(b, a, false)),
  );
}

function askValue(trial, maximize) {
  at("question").textContent = `How good is it? (${maximize ? "larger" : "smaller"} numbers are better)`;
  at("candidates").replaceChildren(card(`Trial ${trial.id}`, trial.x));
  const field = element("input", null, { type: "number", step: "any", id: "value" });
  const answer = (rest) => call("/v1/answers", { answers: [{ id: trial.id, ...rest }] });
  at("answers").replaceChildren(
    field,
    button("Send", "", () => {
      if (field.value === "") throw new Error("Enter a number first.");
      return answer({ value: Number(field.value) });
    }),
    button("It could not be tried", "", () => answer({ failed: true })),
  );
}

async function next() {
  const state = await call("/v1/state");
  rows(at("best"), state.x);
  at("progress").textContent = `${state.answers} answers, ${state.steps} steps of ${state.method}`;
  const compares = state.feedback === "pairs";
  const reply = await call(compares ? "/v1/pair" : "/v1/trials", compares ? {} : { n: 1 });
  at("answers").replaceChildren();
  at("candidates").replaceChildren();
  if (compares && reply.trials.length === 2) askPair(...reply.trials);
  else if (!compares && reply.trials.length === 1) askValue(reply.trials[0], state.maximize);
  else if (reply.done) at("question").textContent = `Finished: ${reply.message}.`;
  else {
    at("question").textContent = "Others have all open questions. Waiting …";
    setTimeout(start, 1000 * Math.min(Math.max(reply.wait || 0, 1), 10));
  }
}

async function start() {
  try {
    await next();
  } catch (error) {
    at("question").textContent = "The server does not answer";
    at("message").textContent = error.message;
  }
}

document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT") return;
  document.querySelector(`button[data-key="${CSS.escape(event.key)}"]:not(:disabled)`)?.click();
});
start();
