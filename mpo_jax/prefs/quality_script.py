"""Style and script of a quality report.

All that comes from data is shown through ``textContent``. What is shown stands in the
address after ``#``, so that it can be sent to somebody.
"""

from __future__ import annotations

from mpo_jax.utils import web_page

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 86em;
  padding: 0 1.2em 3em; color: #222; }
h1 { font-size: 1.5em; margin: .8em 0 .2em; }
h2 { font-size: 1.2em; margin: 1.8em 0 .4em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1em; margin: 1em 0 .2em; }
table { border-collapse: collapse; margin: .6em 0; font-size: 92%; }
th, td { border: 1px solid #ccc; padding: .2em .6em; text-align: right; }
th { background: #f5f6f8; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
.texts td, .texts th { text-align: left; overflow-wrap: anywhere; min-width: 7em; }
.entries td, .entries th { text-align: left; overflow-wrap: anywhere; }
.note { color: #666; font-size: 92%; margin: .3em 0; max-width: 60em; }
.numbers { display: flex; flex-wrap: wrap; gap: .6em 2.2em; margin: .8em 0; }
.numbers b { display: block; font-size: 1.5em; }
.look { border-left: 4px solid #e08e0b; background: #fff8ec; padding: .4em 1em; }
.look li { margin: .25em 0; }
.fine { border-left-color: #2e8b57; background: #f1faf1; }
figure { margin: .6em 0; } figcaption { font-weight: 600; font-size: 92%; }
svg { max-width: 100%; height: auto; } svg text { font-size: 11px; fill: #555; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .8em; }
summary { cursor: pointer; margin: .4em 0; font-weight: 600; }
nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ccc;
  padding: .6em 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .5em 1.1em;
  align-items: center; }
nav select, nav input, nav button { font: inherit; max-width: 11em; }
nav #count { font-weight: 600; margin-left: auto; }
article { border: 1px solid #bbb; border-radius: 6px; margin: 1em 0;
  padding: .8em 1em; }
.tag { border: 1px solid #bbb; border-radius: 4px; margin-right: .4em;
  padding: 0 .35em; color: #555; font-size: 85%; overflow-wrap: anywhere; }
.asked { display: flex; flex-wrap: wrap; gap: 1em; margin: .6em 0; }
.asked > .text { flex: 1 1 24em; min-width: 0; max-height: 18em; overflow-y: auto; }
.pictures img { max-height: 260px; max-width: 100%; border: 1px solid #ddd;
  margin: 0 .5em .3em 0; }
.truth { margin: .5em 0; } .truth b { color: #2c6e2c; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.sides { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr);
  gap: 1em; }
.side { border: 1px solid #ccc; border-radius: 6px; padding: .6em .8em; }
.side.chosen { background: #f6fcf6; border-color: #a9d3a9; }
.side.rejected { background: #fef8f7; border-color: #e3b5b0; }
.side .answer { border-top: 1px solid #0002; margin-top: .5em; padding-top: .5em;
  max-height: 30em; overflow-y: auto; }
.same { color: #999; }
.chosen .differs { background: #cdeccd; } .rejected .differs { background: #f8d5d0; }
[hidden] { display: none; }
"""

BODY = """
<nav>
<label>reason <select id="reason"></select></label>
<label>source <select id="source"></select></label>
<label>verdict <select id="verdict"></select></label>
<label>search <input id="q" type="search" placeholder="text, id, answer"></label>
<span><button id="back">previous</button> <span id="page"></span>
<button id="on">next</button></span>
<span id="count"></span>
</nav>
<div id="pairs"></div>
"""

SCRIPT = (
    """
"use strict";
(() => {
"""
    + web_page.DOM
    + """
const {pairs, pictures} = JSON.parse(byId("data").textContent);
const PER_PAGE = 10;
const CHOICES = ["reason", "source", "verdict"];
const state = {reason: "", source: "", verdict: "", q: "", page: ""};
let found = [];

// ---- state: in the address -------------------------------------------------------
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state)) state[name] = given.get(name) || "";
}

function writeAddress() {
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value) kept.set(name, value);
  history.replaceState(null, "", "#" + kept);
}

// ---- what is found ---------------------------------------------------------------
const said = (side) => side.parts.map(([, text]) => text).join("");

function holds(pair, words) {
  const texts = [pair.id, pair.question, pair.verdict];
  for (const side of [pair.chosen, pair.rejected])
    texts.push(said(side), side.prediction || "", side.verdict);
  const all = texts.join("\\n").toLowerCase();
  return words.every((word) => all.includes(word));
}

function search() {
  const words = state.q.toLowerCase().split(/\\s+/).filter(Boolean);
  found = pairs.filter((pair) =>
    CHOICES.every((name) => !state[name] || pair[name] === state[name])
    && (!words.length || holds(pair, words)));
}

// ---- one pair --------------------------------------------------------------------
function picture(number) {
  const told = pictures[number];
  if (told.note !== undefined) return el("span", "note text", told.note);
  const image = el("img");
  image.src = told.data;
  image.alt = image.title = `${told.path} (${told.size})`;
  return image;
}

function side(name, told) {
  const size = `${told.characters.toLocaleString("en")} characters`
    + (told.tokens === null ? "" : `, ${told.tokens.toLocaleString("en")} tokens`);
  const answer = el("div", "answer text", null,
    ...told.parts.map(([kind, text]) => el("span", kind, text)));
  if (told.more)
    answer.append(` … ${told.more.toLocaleString("en")} more characters`);
  const box = el("div", "side " + name, null, el("b", "", name), " ",
    el("span", "note", size));
  if (told.verdict) box.append(" ", el("span", "tag text", told.verdict));
  if (told.prediction !== null)
    box.append(el("div", "", "final answer: ", el("b", "text", told.prediction)));
  box.append(answer);
  return box;
}

function article(pair) {
  const tags = [pair.reason, pair.source, pair.form, pair.id && `id ${pair.id}`];
  const shown = el("div", "pictures", null, ...pair.images.map(picture));
  const truth = pair.truth === null ? []
    : [el("div", "truth", "true answer: ", el("b", "text", pair.truth))];
  if (pair.image_note) shown.append(el("span", "note text", pair.image_note));
  return el("article", "", null,
    el("div", "", null, ...tags.filter(Boolean).map((tag) => el("span", "tag", tag))),
    el("div", "asked", null, shown, el("div", "text", pair.question)),
    ...truth,
    el("div", "sides", null, side("chosen", pair.chosen),
      side("rejected", pair.rejected)));
}

// ---- moving about ----------------------------------------------------------------
function show() {
  const last = Math.max(0, Math.ceil(found.length / PER_PAGE) - 1);
  const at = Math.min(last, Math.max(0, (parseInt(state.page, 10) || 1) - 1));
  state.page = at ? String(at + 1) : "";
  writeAddress();
  const shown = found.slice(at * PER_PAGE, (at + 1) * PER_PAGE);
  byId("pairs").replaceChildren(...shown.map(article));
  if (!found.length)
    byId("pairs").append(el("p", "note", "No pair of the sample is like this."));
  byId("page").textContent = `page ${at + 1} of ${last + 1}`;
  byId("back").disabled = at === 0;
  byId("on").disabled = at === last;
  byId("count").textContent = `${found.length} of ${pairs.length} pairs`;
}

function refresh() {
  search();
  show();
}

function turn(by) {
  state.page = String((parseInt(state.page, 10) || 1) + by);
  show();
  byId("browse").scrollIntoView();
}

function fillChoices() {
  for (const name of CHOICES) {
    const counts = new Map();
    for (const pair of pairs)
      counts.set(pair[name], (counts.get(pair[name]) || 0) + 1);
    counts.delete("");
    const values = [...counts].sort((a, b) => b[1] - a[1]);
    byId(name).replaceChildren(...[["", null], ...values].map(([value, count]) => {
      const option = el("option", "", value ? `${value} (${count})` : "all");
      option.value = value;
      return option;
    }));
    byId(name).closest("label").hidden = !counts.size;
  }
}

function start() {
  readAddress();
  for (const name of [...CHOICES, "q"]) byId(name).value = state[name];
  refresh();
}

for (const name of CHOICES)
  byId(name).addEventListener("change", (event) => {
    state[name] = event.target.value;
    state.page = "";
    refresh();
  });
let waiting = 0;
byId("q").addEventListener("input", (event) => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    state.q = event.target.value;
    state.page = "";
    refresh();
  }, 200);
});
byId("back").addEventListener("click", () => turn(-1));
byId("on").addEventListener("click", () => turn(1));
window.addEventListener("hashchange", start);
fillChoices();
start();
})();
"""
)
