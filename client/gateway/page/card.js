// The model card: what is promised to people first, then how good the model is, then where it comes from.

import { make } from "./dom.js";

const MODES = {
  none: "none",
  silo: "each silo protects its users against everybody, the coordinator included",
  distributed: "the silos add the noise together, and only the sum is seen",
};

export function cardSheets(card, bundle) {
  return [
    promise(card.privacy),
    make("div", { class: "pair" }, quality(card), origin(card)),
    make("div", { class: "pair" }, model(card, bundle), identity(bundle)),
    ...(card.notes.length ? [sheet("Notes", make("ul", {}, ...card.notes.map((note) => make("li", {}, note))))] : []),
  ];
}

export const isProtected = (privacy) => privacy.mode !== "none" && privacy.epsilon !== null;

function promise(privacy) {
  const kept = isProtected(privacy);
  const answer = kept ? privacy.statement : "Nobody whose data this model was trained on is protected.";
  const rows = kept
    ? [["ε", upwards(privacy.epsilon)], ["δ", small(privacy.delta)], ["Protected unit", privacy.unit], ["Trust needed", privacy.trust], ["How", MODES[privacy.mode]]]
    : [["Mode", privacy.mode], ["Statement", privacy.statement], ["Trust needed", privacy.trust]];
  const asked = "Your own choices are ranked on the server that this page comes from. They are not sent on, not logged and not kept.";
  return sheet("Privacy", make("p", { class: "answer" }, answer), facts(rows), make("p", { class: "help" }, asked), `promise${kept ? "" : " broken"}`);
}

function quality(card) {
  if (!card.quality.length) return sheet("Quality", make("p", {}, "The card gives no figures."));
  const head = make("tr", {}, ...["Measure", "Value", "Interval", "Note"].map((name) => make("th", { scope: "col", class: name.toLowerCase() }, name)));
  const rows = card.quality.map((figure) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, figure.name),
      make("td", {}, number(figure.value)),
      make("td", { class: "interval" }, figure.low === null ? "–" : `${number(figure.low)} to ${number(figure.high)}`),
      make("td", { class: "note" }, figure.note),
    ),
  );
  const table = make("table", { "aria-label": "Quality" }, make("thead", {}, head), make("tbody", {}, ...rows));
  return sheet("Quality", make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of quality" }, table));
}

function origin(card) {
  return sheet(
    "Training",
    facts([
      ["Data", card.data.name],
      ["Silos", whole(card.data.silos)],
      ["Users declared", whole(card.data.declared_users)],
      ["Rounds", whole(card.training.rounds)],
      ["Backbone", card.training.backbone],
      ["Text encoder", card.training.encoder],
      ["Licence", card.training.licence],
    ]),
  );
}

function model(card, bundle) {
  const search = bundle.search === "exact" ? "exact, all items are scored" : `approximate, finds ${(100 * bundle.recall).toFixed(1)} % of the best`;
  const added = card.added_items ? [["Added later", whole(card.added_items)]] : [];
  return sheet(
    "Model",
    facts([
      ["Items", whole(bundle.items)],
      ...added,
      ["Reads", `the last ${card.model.window} choices`],
      ["Size", `${whole(card.model.parameters)} parameters, ${card.model.layers} layer${card.model.layers === 1 ? "" : "s"} of width ${card.model.width}, ${card.model.precision}`],
      ["Search", search],
    ]),
  );
}

function identity(bundle) {
  return sheet(
    "Bundle",
    facts([
      ["Name", bundle.name],
      ["Made", bundle.created],
      ["Digest", make("code", {}, bundle.bundle)],
      ["Signed by", make("code", {}, bundle.fingerprint)],
      ["In use since", new Date(bundle.since * 1000).toLocaleString()],
    ]),
  );
}

function sheet(title, ...rest) {
  const kind = typeof rest.at(-1) === "string" ? ` ${rest.pop()}` : "";
  return make("section", { class: `sheet${kind}` }, make("h2", {}, title), ...rest);
}

const facts = (rows) => make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
const whole = (value) => value.toLocaleString("en");
const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3))));

/** Two decimals, rounded up: a guarantee is never shown better than it is. */
const upwards = (value) => (Math.ceil(value * 100 - 1e-9) / 100).toFixed(2);

/** Two digits, rounded up, as a power of ten. */
function small(value) {
  const power = Math.floor(Math.log10(value));
  const digits = Math.ceil((value / 10 ** power) * 10 - 1e-6) / 10;
  const raised = [...String(power)].map((digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])).join("");
  return digits === 1 ? `10${raised}` : `${digits}·10${raised}`;
}
