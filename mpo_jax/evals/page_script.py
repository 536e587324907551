"""Scripts of ``report.html``.

All that comes from data is shown through ``textContent``. What is shown (filters and
item) stands in the address after ``#``, so that it can be sent to somebody.
"""

from __future__ import annotations

from mpo_jax.utils import web_page

LOADER = """
"use strict";
const items = [];
function addItems(more) { for (const item of more) items.push(item); }
"""

SCRIPT = (
    """
"use strict";
(() => {
"""
    + web_page.DOM
    + """
const embedded = document.getElementById("items");
if (embedded) addItems(JSON.parse(embedded.textContent));

const MODES = [["direct", "direct"], ["cot", "CoT"]];
const SIGNS = {right: "\\u2713", wrong: "\\u2717", undecided: "?", failed: "\\u2013"};
const PER_PAGE = 200;

// ---- what filters ask of an item -------------------------------------------------
const said = (item) => MODES.flatMap(([mode]) => item.answers[mode]);
const first = (item, mode) => item.answers[mode][0];
const right = (answer) => Boolean(answer) && answer.verdict === "right";
const wrong = (answer) => Boolean(answer) && answer.verdict !== "right";
const any = (test) => (item) => said(item).some(test);
const pair = (one, other) => (item) =>
  one(first(item, "direct")) && other(first(item, "cot"));
const FILTERS = {
  all: ["everything", () => true],
  direct_right_cot_wrong: ["direct right, CoT wrong", pair(right, wrong)],
  direct_wrong_cot_right: ["direct wrong, CoT right", pair(wrong, right)],
  both_wrong: ["both wrong", pair(wrong, wrong)],
  both_right: ["both right", pair(right, right)],
  right: ["any right", any(right)],
  wrong: ["any wrong", any(wrong)],
  undecided: ["undecided", any((a) => a.verdict === "undecided")],
  truncated: ["truncated", any((a) => a.finish === "length")],
  empty: ["empty", any((a) => a.empty)],
  unparsed: ["unparsed", any((a) => a.unparsed)],
  failed: ["failed or missing", any((a) => a.failure !== undefined)],
  rule_not_judge: ["rule \\u2260 judge", any((a) => a.judge && a.judge.differs)],
  rule_not_corrected: ["rule \\u2260 corrected",
    any((a) => a.corrected && right(a) !== right(a.corrected))],
  changed: ["changed against base", any((a) => a.base && right(a) !== right(a.base))],
  gained: ["base wrong, now right", any((a) => a.base && !right(a.base) && right(a))],
  lost: ["base right, now wrong", any((a) => a.base && right(a.base) && !right(a))],
};

function holds(item, words) {
  const texts = [item.id, item.question, item.group, String(item.truth),
    ...item.options];
  for (const answer of said(item))
    texts.push(answer.text || "", answer.prediction || "", answer.failure || "",
      answer.rule || "");
  const all = texts.join("\\n").toLowerCase();
  return words.every((word) => all.includes(word));
}

// ---- state: in the address -------------------------------------------------------
const state = {filter: "all", benchmark: "", category: "", q: "", item: ""};
let found = [];
let at = 0;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state)) state[name] = given.get(name) || "";
  if (!Object.hasOwn(FILTERS, state.filter)) state.filter = "all";
}

function writeAddress() {
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries(state))
    if (value && value !== "all") kept.set(name, value);
  history.replaceState(null, "", "#" + kept);
}

const nameOf = (item) => JSON.stringify([item.benchmark, item.id]);
const categoryOf = (axis, value) => JSON.stringify([axis, value]);

function search() {
  const words = state.q.toLowerCase().split(/\\s+/).filter(Boolean);
  const test = FILTERS[state.filter][1];
  found = items.filter((item) =>
    (!state.benchmark || item.benchmark === state.benchmark)
    && (!state.category
      || item.categories.some(([a, v]) => categoryOf(a, v) === state.category))
    && test(item) && (!words.length || holds(item, words)));
  at = Math.max(0, found.findIndex((item) => nameOf(item) === state.item));
}

// ---- the list --------------------------------------------------------------------
function sign(answer) {
  if (!answer) return el("span", "", " ");
  const verdict = answer.failure !== undefined ? "failed" : answer.verdict;
  return el("span", "v-" + verdict, SIGNS[verdict]);
}

function showList() {
  const start = PER_PAGE * Math.floor(at / PER_PAGE);
  const rows = found.slice(start, start + PER_PAGE).map((item, number) => {
    const marks = el("span", "", null, ...MODES.map(([m]) => sign(first(item, m))));
    const text = el("span", "", `${item.id}  ${item.question}`);
    const row = el("li", "", null, marks, text);
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(start + number === at));
    row.addEventListener("click", () => go(start + number));
    return row;
  });
  byId("list").replaceChildren(...rows);
  const chosen = byId("list").querySelector("[aria-selected=true]");
  if (chosen) chosen.scrollIntoView({block: "nearest"});
  const last = Math.min(start + PER_PAGE, found.length);
  byId("page").textContent = found.length ? `${start + 1} to ${last}` : "none";
  byId("count").textContent = `${found.length} of ${items.length} items`;
}

// ---- one item --------------------------------------------------------------------
function picture(path) {
  const image = el("img");
  image.src = path.split("/").map(encodeURIComponent).join("/");
  image.alt = path;
  image.addEventListener("click", () => image.classList.toggle("large"));
  image.addEventListener("error", () =>
    image.replaceWith(el("span", "note", `no picture at ${path} `)));
  return image;
}

// Where a text has the prediction last, as a word of its own; -1 if nowhere.
function lastPlace(text, prediction) {
  const inWord = (c) => c !== undefined && /[\\p{L}\\p{N}]/u.test(c);
  let where = prediction ? text.lastIndexOf(prediction) : -1;
  while (where >= 0) {
    const end = where + prediction.length;
    if (!(inWord(prediction[0]) && inWord(text[where - 1]))
        && !(inWord(prediction.at(-1)) && inWord(text[end]))) return where;
    where = where ? text.lastIndexOf(prediction, where - 1) : -1;
  }
  return -1;
}

function withMark(text, prediction) {
  const node = el("div", "answer text");
  const where = lastPlace(text, prediction);
  if (where < 0) {
    node.textContent = text;
  } else {
    node.append(text.slice(0, where), el("mark", "", prediction),
      text.slice(where + prediction.length));
  }
  return node;
}

function terms(pairs) {
  const list = el("dl");
  for (const [name, value] of pairs)
    if (value !== "" && value !== null && value !== undefined)
      list.append(el("dt", "", name), value instanceof Node ? el("dd", "", null, value)
        : el("dd", "text", String(value)));
  return list;
}

function verdict(grade) {
  const text = `${SIGNS[grade.verdict]} ${grade.verdict}`;
  const exact = grade.points === 0 || grade.points === 1;
  return el("span", "", null, el("b", "v-" + grade.verdict, text),
    ` by ${grade.rule}` + (exact ? "" : `, ${grade.points} points`));
}

function graded(grade) {
  const said = el("span", "", null, verdict(grade));
  if (grade.prediction) said.append(`: ${grade.prediction}`);
  return said;
}

function answerOf(answer) {
  if (answer.failure !== undefined)
    return [el("p", "text", `no answer: ${answer.failure}`)];
  const tokens = [
    answer.tokens === null ? "" : String(answer.tokens),
    answer.finish === "length" ? "cut off" : "",
    answer.logprob === null ? "" : `log-prob ${answer.logprob.toFixed(2)}`,
    answer.prompt_tokens === null ? "" : `prompt ${answer.prompt_tokens}`,
  ].filter(Boolean).join(", ");
  const nothing = answer.empty ? "nothing: the answer is empty" : "nothing was found";
  const parts = [terms([
    ["extracted", answer.prediction || el("i", "", nothing)],
    ["verdict", verdict(answer)],
    ["corrected rule", answer.corrected ? graded(answer.corrected) : ""],
    ["judge", answer.judge ? graded(answer.judge) : ""],
    ["tokens", tokens],
    ["picked by", answer.picked.join(", ")],
    ["base", answer.base ? graded(answer.base) : ""],
  ]), withMark(answer.text, answer.prediction)];
  if (answer.judge)
    parts.push(el("details", "", null, el("summary", "", answer.judge.model + " said"),
      el("div", "text", answer.judge.text)));
  if (answer.base)
    parts.push(el("details", "", null, el("summary", "", "answer of the base"),
      withMark(answer.base.text, answer.base.prediction)));
  return parts;
}

function side(item, mode, title) {
  const answers = item.answers[mode];
  const box = el("div", "side");
  function show(number) {
    const answer = answers[number];
    box.className = "side " + (answer.verdict || "failed");
    box.dataset.mode = mode;
    const parts = [el("h3", "", title)];
    if (answers.length > 1)
      parts.push(el("div", "samples", null, ...answers.map((other, k) => {
        const button = el("button", "", `${other.sample + 1} `, sign(other));
        button.setAttribute("aria-pressed", String(k === number));
        button.addEventListener("click", () => show(k));
        return button;
      })));
    box.replaceChildren(...parts, ...answerOf(answer));
  }
  show(0);
  return box;
}

function showItem() {
  const item = found[at];
  const place = byId("item");
  if (!item) {
    place.replaceChildren(el("p", "note", "No item is like this."));
    return;
  }
  const tags = [item.benchmark, item.protocol,
    ...item.categories.map(([axis, value]) => `${axis}: ${value}`)];
  if (item.group) tags.push(`group ${item.group}`);
  const truth = Array.isArray(item.truth) ? item.truth.join("  |  ") : item.truth;
  const letters = item.options.map((option, number) =>
    el("li", "text", `${String.fromCharCode(65 + number)}. ${option}`));
  const sides = MODES.filter(([mode]) => item.answers[mode].length)
    .map(([mode, title]) => side(item, mode, title));
  place.replaceChildren(
    el("h2", "", `${item.id}  `, ...tags.map((tag) => el("span", "tag", tag))),
    el("div", "pictures", null, ...item.images.map(picture)),
    el("div", "text question", item.question),
    el("ul", "options", null, ...letters),
    el("div", "truth text", "truth: ",
      truth === null ? el("i", "", "none; a judge grades") : el("b", "", truth)),
    el("div", "sides", null, ...sides));
}

// ---- moving about ----------------------------------------------------------------
function show() {
  showList();
  showItem();
}

function go(number) {
  if (number < 0 || number >= found.length) return;
  at = number;
  state.item = nameOf(found[at]);
  writeAddress();
  show();
}

function refresh() {
  search();
  writeAddress();
  show();
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => {
    const option = el("option", "", text);
    option.value = value;
    return option;
  }));
}

function fillChoices() {
  const counts = Object.entries(FILTERS).map(([name, [text, test]]) =>
    [name, text, items.filter(test).length]);
  options(byId("filter"), counts.filter(([name, , count]) =>
    count || name === state.filter).map(([name, text, count]) =>
    [name, `${text} (${count})`]));
  const names = [...new Set(items.map((item) => item.benchmark))];
  options(byId("benchmark"), [["", "all"], ...names.map((name) => [name, name])]);
  fillCategories();
}

function fillCategories() {
  const values = new Map();
  for (const item of items)
    if (!state.benchmark || item.benchmark === state.benchmark)
      for (const [axis, value] of item.categories)
        values.set(categoryOf(axis, value), `${axis}: ${value}`);
  if (!values.has(state.category)) state.category = "";
  const pairs = [...values].sort((a, b) => a[1].localeCompare(b[1]));
  options(byId("category"), [["", "all"], ...pairs]);
}

function showChoices() {
  for (const name of ["filter", "benchmark", "category", "q"])
    byId(name).value = state[name];
}

for (const name of ["filter", "benchmark", "category"])
  byId(name).addEventListener("change", (event) => {
    state[name] = event.target.value;
    if (name === "benchmark") {
      fillCategories();
      showChoices();
    }
    refresh();
  });
let waiting = 0;
byId("q").addEventListener("input", (event) => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    state.q = event.target.value;
    refresh();
  }, 200);
});
byId("previous").addEventListener("click", () => go(at - 1));
byId("next").addEventListener("click", () => go(at + 1));
byId("back").addEventListener("click", () => go(Math.max(0, at - PER_PAGE)));
byId("on").addEventListener("click", () =>
  go(Math.min(found.length - 1, at + PER_PAGE)));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const field = event.target.closest("input, select, textarea");
  if (field) {
    if (event.key === "Escape") field.blur();
    return;
  }
  if (event.key === "j" || event.key === "ArrowRight") go(at + 1);
  else if (event.key === "k" || event.key === "ArrowLeft") go(at - 1);
  else if (event.key === "/") byId("q").focus();
  else return;
  event.preventDefault();
});
window.addEventListener("hashchange", start);

function start() {
  readAddress();
  fillChoices();
  showChoices();
  refresh();
}
const asked = location.hash !== "";
start();
// Who comes for an item need not pass all scores.
if (asked) byId("about").open = false;
})();
"""
)
