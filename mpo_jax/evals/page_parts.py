"""Style and skeleton of ``report.html``."""

from __future__ import annotations

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 110em;
  padding: 0 1.2em 2em; color: #222; }
h1 { font-size: 1.4em; margin: .7em 0 .3em; }
table { border-collapse: collapse; margin: .6em 0; font-size: 90%; }
th, td { border: 1px solid #ccc; padding: .2em .6em; text-align: right; }
th { background: #f5f6f8; } .left { text-align: left; }
.tables { display: flex; flex-wrap: wrap; gap: 0 1.5em; align-items: start; }
summary { cursor: pointer; margin: .3em 0; font-weight: 600; }
.plots img { max-width: 48%; }
.note { color: #777; font-size: 90%; margin: .3em 0; }
nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid #ccc;
  padding: .6em 0; margin-top: .8em; z-index: 1; display: flex; flex-wrap: wrap;
  gap: .5em 1.1em; align-items: center; }
nav select, nav input, nav button { font: inherit; max-width: 18em; }
nav #count { font-weight: 600; margin-left: auto; }
main { display: grid; grid-template-columns: minmax(15em, 21em) minmax(0, 1fr);
  gap: 1.2em; align-items: start; }
aside { position: sticky; top: 3.6em; }
#list { list-style: none; margin: .5em 0; padding: 0; overflow-y: auto;
  max-height: calc(100vh - 8em); border: 1px solid #ddd; border-radius: 6px; }
#list li { padding: .3em .6em; border-bottom: 1px solid #eee; cursor: pointer;
  display: flex; gap: .5em; }
#list li > span:first-child { white-space: nowrap; flex: none; width: 2.2em; }
#list li > span:last-child { white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
#list li[aria-selected=true] { background: #e8eef9; }
.pages { display: flex; gap: .6em; align-items: center; font-size: 90%; }
article h2 { font-size: 1.1em; margin: .7em 0 .4em; overflow-wrap: anywhere; }
.tag { border: 1px solid #bbb; border-radius: 4px; margin-right: .4em;
  padding: 0 .35em; color: #555; font-size: 85%; font-weight: 400; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.pictures img { max-height: 300px; max-width: 100%; margin: 0 .5em .5em 0;
  border: 1px solid #ddd; cursor: zoom-in; }
.pictures img.large { max-height: none; cursor: zoom-out; }
.truth { margin: .5em 0; } .truth b { color: #2c6e2c; }
.options { margin: .4em 0; padding-left: 0; list-style: none; }
.sides { display: grid; gap: 1em; grid-auto-flow: column;
  grid-auto-columns: minmax(0, 1fr); margin-top: .8em; }
.side { border: 1px solid #ccc; border-radius: 6px; padding: .7em .9em; }
.side.right { background: #f1faf1; border-color: #a9d3a9; }
.side.wrong { background: #fdf3f2; border-color: #e3b5b0; }
.side.undecided { background: #fdf9ec; border-color: #dccb8d; }
.side h3 { margin: 0 0 .4em; font-size: 1em; }
.side dl { display: grid; grid-template-columns: max-content 1fr; gap: .1em .8em;
  margin: 0 0 .6em; font-size: 92%; }
.side dt { color: #777; } .side dd { margin: 0; overflow-wrap: anywhere; }
.side .answer { border-top: 1px solid #0002; padding-top: .5em; }
.samples button { font: inherit; font-size: 90%; margin: 0 .25em .35em 0; }
.samples button[aria-pressed=true] { font-weight: 700; border-color: #1f5fbf; }
mark { background: #ffe9a8; }
.v-right { color: #217a21; } .v-wrong { color: #b3382c; }
.v-undecided { color: #8a6d00; } .v-failed { color: #777; }
"""

BODY = """
<nav>
<label>show <select id="filter"></select></label>
<label>benchmark <select id="benchmark"></select></label>
<label>category <select id="category"></select></label>
<label>search <input id="q" type="search" placeholder="text, id (/)"></label>
<span><button id="previous" title="k or left arrow">previous</button>
<button id="next" title="j or right arrow">next</button></span>
<span id="count"></span>
</nav>
<main>
<aside>
<div class="pages"><button id="back">&lsaquo;</button><span id="page"></span>
<button id="on">&rsaquo;</button></div>
<ul id="list" role="listbox" aria-label="items"></ul>
<p class="note">direct, CoT: &#10003; right, &#10007; wrong, ? undecided,
&ndash; no answer. Keys: j, k or arrows; / searches.</p>
</aside>
<article id="item"></article>
</main>
"""
