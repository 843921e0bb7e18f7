// The page's state: what was chosen, and what is shown for it. It lives in this tab's memory and nowhere else.

import { bars, because, explained, rowsOf, scaleOf, titlesOf } from "./bars.js";
import { cardSheets, isProtected } from "./card.js";
import { combobox } from "./combobox.js";
import { ask, byId, make } from "./dom.js";

const SHOWN = 10;
const HUES = 6;
const VARIETY = ["none: by score alone", "a little", "a little", "some", "some", "some", "much", "much", "very much", "very much"];

let chosen = []; // oldest first
let bundle = null;
let asked = null;

const hueOf = (id) => `hue-${chosen.findIndex((item) => item.id === id) % HUES}`;
const say = (text) => { byId("said").textContent = text; };

function trouble(text) {
  byId("trouble").hidden = !text;
  byId("trouble").textContent = text;
}

function choose(item) {
  if (!chosen.some((other) => other.id === item.id)) chosen.push(item);
  refresh();
}

function remove(id) {
  const place = chosen.findIndex((item) => item.id === id);
  chosen.splice(place, 1);
  refresh();
  const left = byId("chosen").querySelectorAll("button");
  (left[Math.min(place, left.length - 1)] ?? byId("search")).focus();
}

function refresh() {
  showChoices();
  recommend();
}

function showChoices() {
  byId("choices").hidden = chosen.length === 0;
  byId("chosen").replaceChildren(
    ...chosen.map((item) => {
      const button = make("button", { type: "button", "aria-label": `Remove ${item.title}` }, "×");
      button.addEventListener("click", () => remove(item.id));
      return make("li", {}, make("i", { class: `dot ${hueOf(item.id)}`, "aria-hidden": "true" }), make("span", {}, item.title), button);
    }),
  );
}

async function recommend(notice = "") {
  asked?.abort();
  asked = new AbortController();
  const { signal } = asked;
  const category = byId("category").value;
  const body = {
    history: chosen.map((item) => item.id),
    k: SHOWN,
    diversity: Number(byId("diversity").value),
    categories: category ? [category] : [],
    explain: true,
  };
  byId("results").classList.add("old");
  try {
    const answer = await ask("v1/recommend", body, signal);
    if (bundle === null || answer.bundle !== bundle.bundle) await readBundle();
    if (signal.aborted) return;
    if (chosen.some((item, place) => item.title !== answer.history[place]?.title)) {
      chosen = answer.history; // as the bundle that answered has them
      showChoices();
    }
    trouble(notice);
    show(answer.recommendations, category);
  } catch (error) {
    if (error.name === "AbortError") return;
    const gone = chosen.filter((_, place) => error.fields?.includes(`history[${place}]`));
    if (gone.length) {
      chosen = chosen.filter((item) => !gone.includes(item));
      showChoices();
      return recommend(`No longer in the catalogue: ${titlesOf(gone)}.`);
    }
    if (error.fields?.includes("categories[0]")) {
      byId("category").value = "";
      return recommend(`No longer a category: ${category}.`);
    }
    trouble(error.message);
  } finally {
    if (!signal.aborted) byId("results").classList.remove("old");
  }
}

function show(items, category) {
  const known = chosen.length > 0;
  const within = category ? ` in ${category}` : "";
  byId("results-title").textContent = `${known ? "For you" : "Popular"}${within}`;
  byId("results-note").textContent = known ? "" : "Nothing is chosen yet: these are what is popular with everybody.";
  byId("results").classList.toggle("plain", !known);

  const looks = new Map(chosen.map((item) => [item.id, hueOf(item.id)]));
  const rows = items.map((item) => rowsOf(item, looks, bundle.typical_popularity));
  const scale = scaleOf(rows.flat());
  byId("results").replaceChildren(...items.map((item, place) => result(item, place, known ? rows[place] : null, scale)));
  if (!items.length) byId("results").append(make("li", { class: "nothing" }, "No item is left: choose another category."));
  byId("key").hidden = !known || !items.length;
  byId("key").textContent = known ? explained(items) : "";
  const to = known ? ` after ${titlesOf(chosen)}` : ", what is popular";
  say(`${items.length} recommendations${within}${to}`);
}

function result(item, place, rows, scale) {
  const about = [item.year, ...item.categories].filter(Boolean).join(" · ");
  const text = make("div", {}, make("h3", {}, item.title), make("p", { class: "meta" }, about));
  const add = make("button", { type: "button", class: "add", "aria-label": `Add ${item.title} to your choices` }, "Add");
  add.addEventListener("click", () => {
    choose(item);
    byId("results-title").focus();
  });
  if (rows) text.append(because(item, bundle.typical_popularity));
  const parts = [make("span", { class: "rank" }, String(place + 1)), text];
  if (rows) parts.push(bars(item.title, rows, scale));
  return make("li", {}, ...parts, add);
}

/** The bundle that answers now, its categories and its card. */
async function readBundle() {
  const [facts, card] = await Promise.all([ask("v1/bundle"), ask("v1/card")]);
  const taken = bundle !== null;
  bundle = facts;
  byId("digest").textContent = facts.bundle.slice(0, 16);
  const select = byId("category");
  const before = select.value;
  const options = facts.categories.map(({ name, items }) => make("option", { value: name }, `${name} (${items.toLocaleString("en")})`));
  select.replaceChildren(make("option", { value: "" }, "All categories"), ...options);
  select.value = facts.categories.some(({ name }) => name === before) ? before : "";
  byId("card").replaceChildren(...cardSheets(card.card, facts));
  alarm(card.card.privacy);
  if (taken) say("A newer model has taken over");
}

function alarm(privacy) {
  byId("alarm").hidden = isProtected(privacy);
  byId("alarm").replaceChildren(
    make("strong", {}, "Trained without privacy protection"),
    "This model can give away what single people did. It is for reference, not for use.",
  );
}

/** Tabs as the WAI-ARIA Authoring Practices have them: arrow keys move, and moving shows. */
function tabs() {
  const all = [...document.querySelectorAll('[role="tab"]')];
  function select(tab) {
    for (const other of all) {
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = other !== tab;
    }
  }
  for (const [place, tab] of all.entries()) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = all[(to + all.length) % all.length];
      select(next);
      next.focus();
    });
  }
}

function variety() {
  const slider = byId("diversity");
  const words = VARIETY[Math.round(10 * Number(slider.value))];
  slider.setAttribute("aria-valuetext", words);
  byId("diversity-help").textContent = words;
}

combobox(byId("search"), byId("suggestions"), {
  choose,
  say,
  trouble,
  back: () => chosen.length && (chosen.pop(), refresh()),
});
byId("diversity").addEventListener("input", variety);
byId("diversity").addEventListener("change", () => recommend());
byId("category").addEventListener("change", () => recommend());
byId("clear").addEventListener("click", () => {
  chosen = [];
  refresh();
  byId("search").focus();
});
tabs();
variety();
refresh();
