"use strict";
// Texts of data sets and models enter the page through text nodes only.
const field = name => document.getElementById(name);
const make = (tag, name, ...children) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
};

for (const table of document.querySelectorAll("[data-sort]")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const numbers = "value" in (body.rows[0]?.cells[column].dataset ?? {});
    const first = numbers ? "descending" : "ascending", other = numbers ? "ascending" : "descending";
    const order = head.ariaSort === first ? other : first;
    for (const each of heads) each.setAttribute("aria-sort", each === head ? order : "none");
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => numbers ? a - b : a.localeCompare(b);
    body.append(...[...body.rows].sort((a, b) => sign * compare(value(a, column), value(b, column))));
  }));
}

const PAGE = 50, FILTERS = ["benchmark", "group", "outcome", "problem", "text"];
const PROBLEMS = { none: "no verdict", both: "both verdicts", truncated: "truncated", prompt_too_long: "prompt too long", forced: "forced at the budget" };
const PARTS = { type: "kind of task", rubric: "rubric", justify: "justification", solution: "own solution", eval: "evaluation", answer: "answer", think: "thinking", quote_A: "quote of A", quote_B: "quote of B", summary_A: "summary of A", summary_B: "summary of B" };
const OUTCOMES = { "right": "right", "wrong": "wrong", "no verdict": "none" };

async function load(node) {
  if (!("packed" in node.dataset)) return JSON.parse(node.textContent);
  const bytes = Uint8Array.from(atob(node.textContent), each => each.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(unpacked).json();
}

function browse({ texts, samples, titles }) {
  let shown = samples, current = null, searched = new Map();

  function everything(sample) {
    if (!searched.has(sample)) {
      const parts = [sample.item, sample.group, ...(sample.answers ?? []).map(place => texts[place])];
      for (const each of sample.conversations ?? []) for (const [, place] of each) parts.push(texts[place]);
      for (const { trace } of sample.judgements)
        parts.push((trace ?? []).map(piece => typeof piece === "string" ? piece : piece[1] ?? "").join(""));
      searched.set(sample, parts.join("\n").toLowerCase());
    }
    return searched.get(sample);
  }
  const problems = sample => sample.judgements.flatMap(each => [each.problem, each.forced && "forced"]).filter(Boolean);
  const of = { benchmark: sample => [sample.benchmark], group: sample => [sample.group], outcome: sample => [sample.outcome], problem: problems };

  function options(name, any, among, words = each => each) {
    const counts = new Map(), before = field(name).value;
    for (const sample of among) for (const each of new Set(of[name](sample))) counts.set(each, (counts.get(each) ?? 0) + 1);
    const choices = [...counts].map(([each, n]) => new Option(`${words(each)} (${n.toLocaleString("en")})`, each));
    field(name).replaceChildren(new Option(any, ""), ...choices);
    field(name).value = counts.has(before) ? before : "";
    field(name).hidden = counts.size === 0;
  }
  function groups() {
    const benchmark = field("benchmark").value;
    options("group", "any group", samples.filter(sample => !benchmark || sample.benchmark === benchmark));
  }

  function filter() {
    const wanted = Object.fromEntries(FILTERS.map(name => [name, field(name).value]));
    const text = wanted.text.toLowerCase();
    shown = samples.filter(sample =>
      Object.keys(of).every(name => !wanted[name] || of[name](sample).includes(wanted[name])) && (!text || everything(sample).includes(text)));
    field("count").textContent = `${shown.length.toLocaleString("en")} of ${samples.length.toLocaleString("en")} samples`;
    if (!shown.includes(current)) current = shown[0] ?? null;
  }

  function draw() {
    const place = shown.indexOf(current), start = Math.max(0, place - place % PAGE);
    field("list").replaceChildren(...shown.slice(start, start + PAGE).map(row));
    field("page").textContent = shown.length ? `${start + 1} to ${Math.min(start + PAGE, shown.length)}` : "nothing fits";
    field("back").disabled = start === 0;
    field("forth").disabled = start + PAGE >= shown.length;
    field("back").onclick = () => show(shown[start - PAGE]);
    field("forth").onclick = () => show(shown[start + PAGE]);
    field("detail").replaceChildren(...(current ? detail(current) : [make("p", "soft", "No sample fits these filters.")]));
    field("list").querySelector("[aria-current=true]")?.scrollIntoView({ block: "nearest", container: "nearest" });
  }
  function remember() {
    const state = new URLSearchParams();
    for (const name of FILTERS) if (field(name).value) state.set(name, field(name).value);
    if (current) state.set("sample", current.key);
    history.replaceState(null, "", "#" + state);
  }
  function show(sample, moved = true) {
    current = sample;
    draw();
    remember();
    const top = field("detail").getBoundingClientRect().top;
    if (moved && (top < 0 || top > innerHeight / 2)) field("detail").scrollIntoView();
  }

  const place = sample => [
    titles[sample.benchmark] ?? sample.benchmark, sample.group, sample.cell, `at ${sample.chosen}`,
    sample.judgements.length === 1 && sample.judgements[0].vote ? `vote ${sample.judgements[0].vote}` : null,
  ].filter(Boolean).join(" · ");
  function row(sample) {
    const kind = OUTCOMES[sample.outcome] ?? "soft";
    const button = make("button", "", make("b", kind, sample.outcome), " ", sample.item, make("small", "", place(sample)));
    button.type = "button";
    button.setAttribute("aria-current", String(sample === current));
    button.addEventListener("click", () => show(sample));
    return make("li", "", button);
  }

  function detail(sample) {
    const heading = make("h3", "", `${titles[sample.benchmark] ?? sample.benchmark} · ${sample.group} · ${sample.item}`);
    const about = make("p", "note", ...[sample.cell, `the better answer was shown as ${sample.chosen}`].filter(Boolean).join(" · "));
    const link = make("a", "", "link to this sample");
    link.href = "#sample=" + sample.key;
    about.append(" · ", link);
    const nodes = [heading, about];
    const asked = (sample.conversations ?? []).map((messages, side) => {
      const title = sample.conversations.length > 1 ? `conversation before answer ${"AB"[side]}` : "question";
      return make("div", "", make("h4", "", title), ...messages.map(([role, place]) =>
        make("div", "message", messages.length > 1 || role !== "user" ? make("b", "", role) : null, make("pre", "", texts[place]))));
    });
    if (asked.length) nodes.push(make("div", "two", ...asked), answers(sample));
    else nodes.push(make("p", "soft", "Question and answers were not kept with these records."));
    nodes.push(make("div", sample.judgements.length > 1 ? "two" : "", ...sample.judgements.map(judged)));
    return nodes;
  }

  function answers(sample) {
    return make("div", "two", ...sample.answers.map((place, side) => {
      const name = "AB"[side], better = name === sample.chosen;
      const pickers = sample.judgements.filter(each => each.verdict === name).map(each => each.title ?? "the judge");
      return make("div", "", make("div", "head", make("h4", `side-${name.toLowerCase()}`, `answer ${name}`),
        make("span", better ? "right" : "soft", better ? "the better one, says the label" : "the other one"),
        pickers.length ? make("span", "pick", `picked by ${pickers.join(", ")}`) : null), make("pre", "", texts[place]));
    }));
  }

  function judged(each) {
    const says = each.verdict ? `said ${each.verdict}` : PROBLEMS[each.problem] ?? "";
    const facts = [
      each.verdict && each.problem ? PROBLEMS[each.problem] : null,
      each.forced ? "verdict forced at the budget" : null,
      each.confidence !== undefined ? `${(100 * (each.verdict === "B" ? 1 - each.confidence : each.confidence)).toFixed(1)} % ${each.verdict ? "sure" : "for A"}` : null,
      each.tokens !== undefined ? `${each.tokens.toLocaleString("en")} tokens` : null,
      each.prompt_tokens !== undefined ? `prompt ${each.prompt_tokens.toLocaleString("en")} tokens` : null,
      each.vote !== undefined ? `vote ${each.vote}` : null,
    ].filter(Boolean).join(" · ");
    const outcome = each.outcome === "no verdict" ? "" : `: ${each.outcome}`;
    return make("div", "trace", make("div", "head", each.title ? make("h4", "", each.title) : null,
      make("span", `badge ${OUTCOMES[each.outcome]}`, (says || each.outcome) + (says ? outcome : "")), make("span", "soft", facts)),
      each.trace ? marked(each.trace) : make("p", "soft", "The trace was not kept with this record."));
  }

  function marked(trace) {
    const at = [make("pre", "")];
    for (const piece of trace) {
      const top = at[at.length - 1];
      if (typeof piece === "string") top.append(piece);
      else if (piece.length === 2) top.append(make("b", `mark ${piece[0]}`, piece[1]));
      else if (piece.length === 0) at.pop();
      else {
        const part = make("span", `part ${piece[0]}`);
        part.title = PARTS[piece[0]] ?? piece[0];
        top.append(part);
        at.push(part);
      }
    }
    return at[0];
  }

  function step(by) {
    const next = shown[shown.indexOf(current) + by];
    if (next) show(next);
  }
  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    const linking = ["sample", ...FILTERS].some(name => state.has(name));
    if (current && !linking) return;  // a jump to another section
    for (const name of FILTERS) {
      if (name === "group") groups();
      field(name).value = state.get(name) ?? "";
      if (field(name).selectedIndex === -1) field(name).value = "";
    }
    const linked = samples.find(sample => sample.key === state.get("sample"));
    filter();
    if (linked && !shown.includes(linked)) {  // a link to a sample is stronger than a filter
      for (const name of FILTERS) field(name).value = "";
      filter();
    }
    current = linked ?? current;
    draw();
    if (linking) field("detail").scrollIntoView();
  }

  options("benchmark", "any benchmark", samples, name => titles[name] ?? name);
  options("outcome", field("outcome").ariaLabel, samples);
  options("problem", "any problem", samples, name => PROBLEMS[name] ?? name);
  let waiting;
  const changed = () => { filter(); show(current, false); };
  field("benchmark").addEventListener("input", () => { groups(); changed(); });
  for (const name of ["group", "outcome", "problem"]) field(name).addEventListener("input", changed);
  field("text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(changed, 150); });
  field("whole").addEventListener("change", event => document.body.classList.toggle("whole", event.target.checked));
  addEventListener("hashchange", recall);
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const inList = field("list").contains(event.target);
    const by = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1, ...(inList && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
    if (inList) field("list").querySelector("[aria-current=true]")?.focus();
  });
  recall();
}

const data = field("data");
if (data) load(data).then(browse).then(
  () => { document.documentElement.dataset.ready = "true"; },
  error => {
    field("detail").textContent = `The samples of this page could not be unpacked (${error.message}); a newer browser may help. They are also in the records.`;
    console.error(error);
  });
