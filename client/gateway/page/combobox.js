// A search field with suggestions: the editable combobox with list of the WAI-ARIA Authoring Practices.

import { ask, make } from "./dom.js";

const WAIT = 120; // milliseconds after the last key

/** Wire the field; `choose(item)` is called with what was chosen, `say(text)` announces, `back()` is Backspace in an empty field. */
export function combobox(input, list, { choose, say, back, trouble }) {
  let items = [];
  let active = -1;
  let timer = 0;
  let asked = null;

  function close() {
    asked?.abort();
    clearTimeout(timer);
    items = [];
    list.hidden = true;
    list.replaceChildren();
    input.setAttribute("aria-expanded", "false");
    activate(-1);
  }

  function activate(to) {
    active = to;
    for (const [place, option] of [...list.children].entries()) {
      option.setAttribute("aria-selected", String(place === active));
      if (place === active) option.scrollIntoView({ block: "nearest" });
    }
    if (active < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", `option-${active}`);
  }

  function take(place) {
    const item = items[place];
    input.value = "";
    close();
    choose(item);
  }

  function show(found, typed) {
    items = found;
    list.replaceChildren(...found.map((item, place) => option(item, place, typed)));
    list.hidden = found.length === 0;
    input.setAttribute("aria-expanded", String(found.length > 0));
    activate(-1);
    say(found.length ? `${found.length} title${found.length === 1 ? "" : "s"} fit` : "No title fits");
  }

  function option(item, place, typed) {
    const about = [item.year, ...item.categories.slice(0, 3)].filter(Boolean).join(" · ");
    const element = make("li", { role: "option", id: `option-${place}`, "aria-selected": "false" }, ...marked(item.title, typed));
    if (about) element.append(make("small", {}, about));
    element.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
    element.addEventListener("click", () => take(place));
    return element;
  }

  async function search() {
    const typed = input.value.trim();
    if (!typed) return close();
    asked?.abort();
    asked = new AbortController();
    try {
      const answer = await ask("v1/items/search", { q: typed, limit: 8 }, asked.signal);
      if (typed === input.value.trim() && document.activeElement === input) show(answer.items, typed);
    } catch (error) {
      if (error.name !== "AbortError") trouble(error.message);
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, WAIT);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const keys = {
      ArrowDown: () => (items.length ? activate((active + 1) % items.length) : search()),
      ArrowUp: () => items.length && activate(active <= 0 ? items.length - 1 : active - 1),
      Enter: () => items.length && take(Math.max(active, 0)),
      Escape: () => (items.length ? close() : (input.value = "")),
    };
    if (event.key === "Backspace" && input.value === "") return back();
    if (event.isComposing || !(event.key in keys)) return undefined;
    event.preventDefault();
    return keys[event.key]();
  });
}

/** The title with the typed part marked. */
function marked(title, typed) {
  const at = title.toLowerCase().indexOf(typed.toLowerCase());
  if (at < 0) return [title];
  return [title.slice(0, at), make("mark", {}, title.slice(at, at + typed.length)), title.slice(at + typed.length)];
}
