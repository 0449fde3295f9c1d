"use strict";
// The viewer of episodes. Everything it shows is in the element #data; nothing is fetched.
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const { texts, fields, episodes } = JSON.parse(holder.textContent);
  const $ = (id) => document.getElementById(id);
  const text = (i) => (i === null || i === undefined ? "" : texts[i]);
  const number = (x) => (x === null || x === undefined ? "-" : Math.abs(x) >= 100 ? x.toFixed(0) : String(Number(x.toPrecision(3))));

  function make(tag, content, attributes = {}) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
    for (const child of [content].flat()) if (child !== null && child !== undefined) element.append(child);
    return element;
  }

  // ---------------------------------------------------------------- colours
  let field = fields[0]?.name ?? null;
  const scales = Object.fromEntries(fields.map((f) => [f.name, f]));

  function paint(element, value) {
    if (value === null || value === undefined) { element.removeAttribute("style"); return; }
    const { signed, bound } = scales[field];
    const share = Math.max(-1, Math.min(1, bound ? value / bound : 0));
    const size = Math.abs(share), thick = Math.round(size * 4);
    const colour = !signed ? "19 129 120" : share < 0 ? "9 105 218" : "209 112 11";
    element.style.backgroundColor = `rgb(${colour} / ${(0.72 * size).toFixed(2)})`;
    element.style.boxShadow = thick ? `inset 0 ${share < 0 ? thick : -thick}px 0 currentColor` : "none";
  }

  function legend() {
    const box = $("legend");
    box.replaceChildren();
    if (field === null) { box.append("no number of tokens is stored"); return; }
    const { signed, bound, unit } = scales[field];
    const steps = signed ? [-bound, -bound / 2, 0, bound / 2, bound] : [0, bound / 2, bound];
    for (const value of steps) {
      const patch = make("i", null);
      paint(patch, value);
      box.append(patch, number(value));
    }
    if (unit) box.append(` ${unit}`);
  }

  // ---------------------------------------------------------------- list and filters
  let shown = [], current = -1, beside = null;
  const chosen = () => Object.fromEntries(["text", "run", "what", "family", "outcome", "status", "skill", "least", "most"].map((id) => [id, $(id).value]));

  function options(id, values) {
    for (const value of [...new Set(values)].sort()) $(id).append(make("option", value, { value }));
  }

  function haystack(e) {
    e.words ??= [e.task, e.family, e.status, ...e.skills, text(e.instruction), ...e.turns.flatMap((t) => [text(t.seen), text(t.said)])].join("\n").toLowerCase();
    return e.words;
  }

  function fits(e, c) {
    return (!c.run || e.run === c.run) && (!c.what || e.what === c.what) && (!c.family || e.family === c.family) &&
      (!c.outcome || e.success === (c.outcome === "1")) && (!c.status || e.status === c.status) && (!c.skill || e.skills.includes(c.skill)) &&
      (!c.least || e.turns.length >= Number(c.least)) && (!c.most || e.turns.length <= Number(c.most)) &&
      (!c.text || haystack(e).includes(c.text.toLowerCase()));
  }

  function item(e, place) {
    return make("div", [
      make("b", e.task, { class: e.success ? "reached" : "missed" }), make("br"),
      `${e.what}, iteration ${e.iteration}, ${e.turns.length} turns, reward ${number(e.reward)}${e.status === "done" ? "" : `, ${e.status}`}`,
    ], { role: "option", "aria-selected": "false", "data-place": place, id: `episode-${e.number}` });
  }

  function list() {
    const c = chosen(), kept = current >= 0 ? shown[current] : null;
    shown = episodes.filter((e) => fits(e, c));
    $("list").replaceChildren(...shown.map(item));
    const reached = shown.filter((e) => e.success).length;
    $("count").textContent = `${shown.length} of ${episodes.length} episodes, ${reached} reached the goal`;
    current = -1;
    if (shown.length) select(Math.max(0, shown.indexOf(kept)));
    else { $("one").replaceChildren(make("p", "No episode fits these filters.")); $("two").hidden = true; }
  }

  function select(place) {
    if (place < 0 || place >= shown.length) return;
    const rows = $("list").children;
    if (current >= 0) rows[current].setAttribute("aria-selected", "false");
    current = place;
    rows[place].setAttribute("aria-selected", "true");
    const box = $("list").getBoundingClientRect(), row = rows[place].getBoundingClientRect();
    if (row.top < box.top) $("list").scrollTop -= box.top - row.top;
    else if (row.bottom > box.bottom) $("list").scrollTop += row.bottom - box.bottom;
    $("list").setAttribute("aria-activedescendant", rows[place].id);
    const e = shown[place], twins = episodes.filter((o) => o !== e && o.task === e.task && o.world === e.world);
    $("beside").replaceChildren(make("option", "nothing", { value: "" }), ...twins.map((o) =>
      make("option", `${o.success ? "reached" : "missed"}: ${o.run}, ${o.what}, iteration ${o.iteration}, attempt ${o.attempt}`, { value: o.number })));
    $("beside").disabled = twins.length === 0;
    if (beside !== null && !twins.includes(beside)) beside = twins.find((o) => o.what === beside.what && o.run === beside.run && o.iteration === beside.iteration) ?? null;
    $("beside").value = beside === null ? "" : beside.number;
    draw();
  }

  // ---------------------------------------------------------------- an episode
  function mean(values) {
    const known = (values ?? []).filter((x) => x !== null && x !== undefined);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  }

  function bar(value) {
    if (value === null || field === null) return null;
    const { signed, bound } = scales[field], ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg"), rect = document.createElementNS(ns, "rect");
    const share = Math.max(-1, Math.min(1, bound ? value / bound : 0)), half = signed ? 30 : 0, length = Math.abs(share) * (signed ? 30 : 60);
    for (const [name, v] of Object.entries({ x: share < 0 ? half - length : half, y: 1, width: Math.max(1, length), height: 8 })) rect.setAttribute(name, v);
    for (const [name, v] of Object.entries({ width: 60, height: 10, class: "mini", role: "img", "aria-label": `mean ${number(value)}` })) svg.setAttribute(name, v);
    svg.append(rect);
    return svg;
  }

  function turnOf(e, turn, k) {
    const value = field === null ? null : mean(turn.values[field]);
    const marks = [turn.valid ? null : "refused", turn.stopped ? null : "cut", turn.tool_ok === false ? "tool error" : null, turn.learned ? null : "not learned from",
      turn.weight === undefined ? null : `weight ${number(turn.weight)}`].filter((m) => m);
    const said = make("div", null, { class: "said" });
    (turn.pieces ?? [text(turn.said)]).forEach((piece, i) => said.append(make("span", piece, { "data-i": i })));
    const words = [`turn ${k + 1}`, value === null ? null : `${field} ${number(value)}`, marks.join(", ")].filter((w) => w);
    const head = make("div", [make("span", words.join(", ")), bar(value)], { class: "turn-head" });
    const told = [["what the policy was told", turn.prompt], ["what the teacher was told", turn.teacher_prompt]].filter(([, i]) => i !== undefined)
      .map(([name, i]) => make("details", [make("summary", name), make("pre", text(i))], { class: name.includes("teacher") ? "told" : null }));
    const block = make("div", [head, make("div", text(turn.seen), { class: "seen" }), ...told, said, turn.action ? make("div", `action: ${turn.action}`, { class: "quiet" }) : null], { class: "turn" });
    said.turn = turn;
    return block;
  }

  function show(pane, e) {
    pane.hidden = false;
    const scores = Object.entries(e.scores ?? {}).map(([name, value]) => `, ${name} ${number(value)}`).join("");
    pane.replaceChildren(
      make("h3", e.task, { class: e.success ? "reached" : "missed" }),
      make("p", `${e.run}: ${e.what}, iteration ${e.iteration}, attempt ${e.attempt}; ${e.family}; ${e.status}, reward ${number(e.reward)}${scores}${e.error ? `; ${e.error}` : ""}`, { class: "quiet" }),
      make("p", text(e.instruction)),
      e.skills.length ? make("details", [make("summary", `skills: ${e.skills.join(", ")}`), make("pre", text(e.skill_text))]) : make("p", "no skill was found", { class: "quiet" }),
      ...e.turns.map((turn, k) => turnOf(e, turn, k)),
      make("div", text(e.final), { class: "seen" }),
    );
    pane.scrollTop = 0;
    colour(pane);
  }

  function colour(pane) {
    for (const said of pane.querySelectorAll(".said")) {
      const values = (field === null ? null : said.turn.values[field]) ?? [];
      for (const span of said.children) paint(span, values[Number(span.dataset.i)]);
    }
  }

  function draw() {
    if (current < 0) return;
    show($("one"), shown[current]);
    if (beside === null) { $("two").hidden = true; $("two").replaceChildren(); } else show($("two"), beside);
  }

  function use(name) {
    field = name;
    for (const button of $("fields").children) button.setAttribute("aria-checked", String(button.dataset.field === name));
    legend();
    draw();
  }

  // ---------------------------------------------------------------- hands
  fields.forEach((f, i) => {
    const button = make("button", `${f.name}`, { type: "button", role: "radio", "aria-checked": "false", "data-field": f.name, title: `${f.about} (${i + 1})` });
    button.addEventListener("click", () => use(f.name));
    $("fields").append(button);
  });
  options("run", episodes.map((e) => e.run));
  options("what", episodes.map((e) => e.what));
  options("family", episodes.map((e) => e.family));
  options("status", episodes.map((e) => e.status));
  options("skill", episodes.flatMap((e) => e.skills));
  for (const id of ["text", "run", "what", "family", "outcome", "status", "skill", "least", "most"]) $(id).addEventListener("input", list);
  $("list").addEventListener("click", (event) => {
    const row = event.target.closest("[data-place]");
    if (row) select(Number(row.dataset.place));
  });
  $("beside").addEventListener("input", () => { beside = episodes.find((e) => String(e.number) === $("beside").value) ?? null; draw(); });
  const help = () => { $("help").hidden = !$("help").hidden; $("help-button").setAttribute("aria-expanded", String(!$("help").hidden)); };
  $("help-button").addEventListener("click", help);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { if (event.key === "Escape") event.target.blur(); return; }
    const inList = document.activeElement === $("list"), steps = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1 } : {}) };
    if (event.key in steps) select(current + steps[event.key]);
    else if (/^[1-9]$/.test(event.key) && fields[event.key - 1]) use(fields[event.key - 1].name);
    else if (event.key === "/") $("text").focus();
    else if (event.key === "?") help();
    else if (event.key === "b") {
      const known = [...$("beside").options].map((o) => o.value), next = known[(known.indexOf($("beside").value) + 1) % known.length];
      beside = episodes.find((e) => String(e.number) === next) ?? null;
      $("beside").value = next;
      draw();
    } else if (event.key === "t") {
      const told = [...document.querySelectorAll("details.told")], open = told.some((d) => !d.open);
      for (const d of told) d.open = open;
    } else return;
    event.preventDefault();
  });

  const tip = $("tip");
  document.addEventListener("mouseover", (event) => {
    const span = event.target.closest?.(".said > span");
    if (!span || !span.parentElement.turn) { tip.hidden = true; return; }
    const i = Number(span.dataset.i), turn = span.parentElement.turn;
    const rows = Object.entries(turn.values).map(([name, values]) => make("tr", [make("td", name), make("td", number(values[i]))]));
    tip.replaceChildren(make("b", JSON.stringify(span.textContent)), make("table", make("tbody", rows)));
    tip.hidden = false;
    const at = span.getBoundingClientRect(), size = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(at.left, innerWidth - size.width - 8))}px`;
    tip.style.top = `${at.bottom + size.height + 8 > innerHeight ? Math.max(4, at.top - size.height - 4) : at.bottom + 4}px`;
  });

  episodes.forEach((e, n) => { e.number = n; });
  use(field);
  list();
})();
