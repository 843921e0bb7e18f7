// Elements, without a framework. Text is only ever set as text.

/** An element with attributes and children; a child that is a string is text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** "+0.42", "−0.07". */
export const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

/** "a, b and c". */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** A question as JSON; throws an Error with the sentence and the fields of the problem document. Nothing is put in an address. */
export async function ask(path, body, signal) {
  for (let attempt = 0; ; attempt += 1) {
    const options = { signal, credentials: "omit", referrerPolicy: "no-referrer" };
    if (body !== undefined) Object.assign(options, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    const answer = await fetch(path, options);
    if (answer.ok) return answer.json();
    if (answer.status !== 503 || attempt === 3) {
      const problem = await answer.json().catch(() => ({ detail: `the gateway answered with status ${answer.status}` }));
      throw Object.assign(new Error(problem.detail), { fields: (problem.errors ?? []).map((error) => error.field) });
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
