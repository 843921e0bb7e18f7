// Why an item is recommended: one row for each part of its score.

import { listed, make, signed } from "./dom.js";

const REASONS = 3; // rows for items of the history; the rest of them share one

/** Rows of {what, value, look} for one recommended item, given the colour of each chosen item and the typical popularity. */
export function rowsOf(item, looks, typical) {
  const reasons = item.reasons.map((reason) => ({ what: reason.title, value: reason.contribution, look: looks.get(reason.id) }));
  const rows = reasons.slice(0, reasons.length > REASONS + 1 ? REASONS : REASONS + 1);
  const others = reasons.slice(rows.length);
  const exact = item.reasons.some((reason) => reason.kind === "pool");
  if (others.length && exact) rows.push({ what: `${others.length} more choices`, value: total(others), look: "order" });
  if (exact) rows.push({ what: "learned patterns", value: item.sequence, look: "order" });
  rows.push({ what: "popularity", value: item.popularity - typical, look: "popular" });
  return rows;
}

/** The scale that all rows share: where zero is, and how much of the width one nat takes. */
export function scaleOf(rows) {
  const low = Math.min(0, ...rows.map((row) => row.value));
  const high = Math.max(0.01, ...rows.map((row) => row.value));
  return { zero: -low / (high - low), nat: 1 / (high - low) };
}

export function bars(title, rows, scale) {
  const list = make("ul", { class: "bars", "aria-label": `What made the score of ${title}` });
  for (const row of rows) {
    const size = Math.abs(row.value) * scale.nat;
    const bar = make("i", { class: row.value < 0 ? "minus" : null });
    const track = make("span", { class: `track ${row.look}`, "aria-hidden": "true" }, bar);
    track.style.setProperty("--zero", percent(scale.zero));
    track.style.setProperty("--from", percent(row.value < 0 ? scale.zero - size : scale.zero));
    track.style.setProperty("--size", percent(size));
    list.append(
      make("li", {}, make("span", { class: "what", title: row.what }, row.what), track, make("span", { class: "value" }, signed(row.value))),
    );
  }
  return list;
}

/** "Because of A and B": what helped at least half as much as what helped most. */
export function because(item, typical) {
  const best = item.reasons.length ? item.reasons[0].contribution : 0;
  const popularity = item.popularity - typical;
  const named = item.reasons.filter((reason) => reason.contribution > 0 && reason.contribution >= best / 2).slice(0, 2);
  const line = make("p", { class: "because" });
  if (!named.length) {
    line.append(popularity > 0 ? "Because it is popular" : "By all your choices together");
    return line;
  }
  line.append("Because of ");
  named.forEach((reason, i) => line.append(...(i ? [" and "] : []), make("b", {}, reason.title)));
  if (popularity > best) line.append(", and it is popular");
  return line;
}

/** How the rows are to be read. */
export function explained(items) {
  const exact = items.some((item) => item.reasons.some((reason) => reason.kind === "pool"));
  const what = exact
    ? "Each bar is a part of the score, and the parts add up to it (popularity counts from that of a typical item): "
      + "what likeness to each of your choices adds, what the model has learned of sequences beside that, and popularity."
    : "A choice's bar says how much lower the score would be without that choice; these need not add up. "
      + "Popularity counts from that of a typical item.";
  return `${what} Striped bars lower the score. The unit is the nat: +0.69 makes an item twice as likely.`;
}

export const titlesOf = (items) => listed(items.map((item) => item.title));

const total = (rows) => rows.reduce((sum, row) => sum + row.value, 0);
const percent = (share) => `${(100 * share).toFixed(2)}%`;
