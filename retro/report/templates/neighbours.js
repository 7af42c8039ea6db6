"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (selector) => document.querySelector(selector);
const NATS_TO_BITS = 1 / (100 * Math.LN2);
const sum = (values) => values.reduce((a, b) => a + b, 0);

// An element with text: text is only ever set as text, never as HTML.
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (key === "style") element.style.cssText = value;
    else if (key === "text") element.textContent = value;
    else if (key === "class") element.className = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

data.documents.forEach((documents, number) => {
  for (let chunk = documents.first; chunk < documents.first + documents.count; chunk++) {
    data.chunks[chunk].document = number;
  }
});
data.chunks.forEach((chunk) => { chunk.text = chunk.pieces.join(""); });
let view = 0;
// Take the losses of a view: a run under a condition.
function take(number) {
  view = number;
  data.chunks.forEach((chunk) => {
    chunk.retro = chunk.views[view];
    chunk.bits = [sum(chunk.gpt) * NATS_TO_BITS, sum(chunk.retro) * NATS_TO_BITS];
    chunk.change = chunk.bits[0] ? chunk.bits[1] / chunk.bits[0] - 1 : 0;
  });
  data.documents.forEach((entry) => {
    const chunks = data.chunks.slice(entry.first, entry.first + entry.count);
    const bits = [0, 1].map((model) => sum(chunks.map((chunk) => chunk.bits[model])));
    entry.change = bits[0] ? bits[1] / bits[0] - 1 : 0;
  });
  byChange = [...ordered].sort((a, b) => saved(a) - saved(b));
}

const last = (chunk) => { const d = data.documents[data.chunks[chunk].document]; return chunk === d.first + d.count - 1; };
// Bits by which the chunk after one is dearer with retrieval: negative where that helped.
const saved = (chunk) => data.chunks[chunk + 1].bits[1] - data.chunks[chunk + 1].bits[0];
const ordered = data.chunks.map((_, number) => number).filter((number) => !last(number));
let byChange = [];
// Long titles lose their middle: what tells pages of a document apart stands at the end.
const clipped = (text, most) => (text.length <= most ? text : text.slice(0, Math.ceil(most * 0.55)).trimEnd() + "…" + text.slice(text.length - Math.floor(most * 0.4)).trimStart());
const percent = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(100 * value).toFixed(Math.abs(value) < 0.0995 ? 1 : 0) + " %";
const tone = (value) => (value < -0.005 ? "good" : value > 0.005 ? "bad" : "");
// Colour of a difference in nats, GPT's minus RETRO's.
function shade(difference, full) {
  const strength = Math.min(1, Math.abs(difference) / full);
  return strength < 0.04 ? "" : `background: rgba(var(--${difference > 0 ? "good" : "bad"}), ${(0.75 * strength).toFixed(3)})`;
}
const chance = (hundredths) => {
  const value = 100 * Math.exp(-hundredths / 100);
  return (value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : value.toPrecision(1)) + " %";
};

// Words, for marking what a page shares with the chunk that was to be predicted.
const words = (text) => [...text.matchAll(/[\p{L}\p{N}]+(?:[.,'’][\p{N}\p{L}]+)*/gu)].map((match) => ({ word: match[0].toLowerCase(), start: match.index, end: match.index + match[0].length }));
const telling = (word) => word.length > 3 || (/\p{N}/u.test(word) && word.length > 1);
function marked(text, target) {
  const wanted = words(target).map((entry) => entry.word);
  const known = new Set(wanted.filter(telling));
  const runs = new Set(wanted.map((_, at) => wanted.slice(at, at + 3).join(" ")).filter((run) => run.split(" ").length === 3));
  const found = words(text);
  const strong = new Set();
  found.forEach((_, at) => {
    const run = found.slice(at, at + 3);
    if (run.length === 3 && runs.has(run.map((entry) => entry.word).join(" "))) run.forEach((_, step) => strong.add(at + step));
  });
  const fragment = document.createDocumentFragment();
  let done = 0, at = 0;
  while (at < found.length) {
    let end = at;
    while (end < found.length && strong.has(end)) end++;
    const run = end > at;
    if (!run && !known.has(found[at].word)) { at++; continue; }
    if (!run) end = at + 1;
    fragment.append(text.slice(done, found[at].start));
    done = found[end - 1].end;
    fragment.append(make("mark", { class: run ? "run" : "", text: text.slice(found[at].start, done) }));
    at = end;
  }
  fragment.append(text.slice(done));
  return fragment;
}

const tip = $("#tip");
let shown = null; // the token that the tip is of
function showTip(event, chunk, piece) {
  const gpt = chunk.gpt[piece], retro = chunk.retro[piece], text = chunk.pieces[piece];
  const row = (name, loss) => make("tr", {}, make("td", { text: name }), make("td", { text: chance(loss) }), make("td", { text: (loss / 100).toFixed(2) + " nats" }));
  shown = event.currentTarget;
  const times = Math.exp(Math.abs(gpt - retro) / 100);
  const verdict = times < 1.05 ? "No difference." : `${times < 10 ? times.toFixed(1) : Math.round(times).toLocaleString("en")} times ${gpt > retro ? "likelier" : "less likely"} with retrieval (${percentless(retro - gpt)} nats).`;
  tip.replaceChildren(
    text ? make("code", { text: text.replaceAll("\n", "⏎").replaceAll(" ", "␣") }) : make("span", { text: "End of document" }),
    make("table", {}, row("GPT", gpt), row("RETRO", retro)),
    make("span", { text: verdict }),
  );
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), target = shown.getClientRects()[0] || shown.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(target.left, innerWidth - box.width - 8)) + "px";
  tip.style.top = (target.bottom + box.height + 12 > innerHeight ? target.top - box.height - 8 : target.bottom + 8) + "px";
}
const percentless = (hundredths) => (hundredths > 0 ? "+" : "−") + Math.abs(hundredths / 100).toFixed(2);
const hideTip = () => { tip.hidden = true; shown = null; };

function tokens(chunk) {
  return chunk.pieces.map((text, piece) => {
    const options = {
      class: text ? "token" : "token end",
      style: shade((chunk.gpt[piece] - chunk.retro[piece]) / 100, 2.5),
      on: {
        pointerenter: (event) => { if (event.pointerType === "mouse") showTip(event, chunk, piece); },
        pointerleave: (event) => { if (event.pointerType === "mouse") hideTip(); },
        click: (event) => { // a tap shows it, a second one or one elsewhere hides it
          event.stopPropagation();
          if (shown === event.currentTarget && event.pointerType !== "mouse") hideTip(); else showTip(event, chunk, piece);
        },
      },
    };
    if (!text) return make("span", { ...options, text: "end of document" });
    const breaks = (text.match(/\n/g) || []).length;
    if (breaks && !text.trim()) return make("span", options, make("span", { class: "break", text: "⏎".repeat(breaks) }), text);
    return make("span", { ...options, text });
  });
}

function neighbour([number, score], rank, target) {
  const found = data.texts[number], page = data.pages[found.page], source = data.sources[page.source];
  const label = (text) => make("span", { class: "label", text });
  return make("div", { class: "neighbour" },
    make("h4", { title: page.title }, `${rank + 1}. ${clipped(page.title, 72)}`, make("span", { class: "badge" + (source.book ? " book" : ""), text: source.name }),
      make("span", { class: "score", text: "score " + score.toFixed(3) })),
    make("div", { class: "text" },
      make("span", { class: "found" }, marked(found.text, target)),
      found.next ? label(" ▸ it goes on: ") : null, found.next ? marked(found.next, target) : null));
}

let current = -1;
function show(number, keepList) {
  number = Math.max(0, Math.min(number, data.chunks.length - 1));
  current = number;
  const chunk = data.chunks[number], entry = data.documents[chunk.document], end = last(number);
  const next = end ? null : data.chunks[number + 1];
  $("#title").textContent = clipped(entry.title, 90);
  $("#title").title = entry.title;
  $("#why").hidden = number !== data.opened || view !== 0;
  $("#source").textContent = data.sources[entry.source].name;
  $("#place").textContent = `chunk ${number - entry.first + 1} of ${entry.count}`;
  $("#previous").disabled = number === 0;
  $("#following").disabled = number === data.chunks.length - 1;
  $("#map").replaceChildren(...data.chunks.slice(entry.first, entry.first + entry.count).map((each, step) => {
    const at = entry.first + step;
    return make("button", {
      class: at === number ? "read" : at === number + 1 ? "next" : "",
      style: shade(-each.change, 0.35), title: `Chunk ${step + 1}: ${percent(each.change)} bits with retrieval`,
      on: { click: () => show(step ? at - 1 : at) },
    });
  }));
  const here = $("#map .read"), map = $("#map");
  map.scrollTop = here ? here.offsetTop - map.offsetTop - map.clientHeight / 2 : 0;
  $("#read .text").replaceChildren(chunk.text);
  const target = next ? next.text : "";
  const { used, reads } = data.views[view], near = chunk.near.slice(0, used);
  $("#looked small").textContent = reads === "stored" && near.length < used ? `${near.length} of the ${used} neighbours` : "";
  const instead = { none: "Retrieval is off here: none of this was read.", random: "Here it read chunks drawn at random in place of these." }[reads];
  $("#looked .found").replaceChildren(
    ...(instead ? [make("p", { class: "instead", text: instead })] : []),
    ...(near.length ? near.map((each, rank) => neighbour(each, rank, target)) : [make("p", { text: "Nothing was found for this chunk." })]));
  $("#next .legend").hidden = $("#next small").hidden = !next;
  if (next) {
    $("#next .text").replaceChildren(...tokens(next));
    const most = Math.max(...next.bits);
    const line = (name, bits, colour) => [make("span", { text: name }), make("span", { class: "bar", style: `width: ${(100 * bits / most).toFixed(1)}%; background: var(--${colour})` }), make("b", { text: bits.toFixed(0) + " bits" })];
    $("#next .bill").replaceChildren(...line("GPT", next.bits[0], "gpt"), ...line("RETRO", next.bits[1], "on"),
      make("p", {}, "To write this chunk RETRO needs ", make("b", { class: tone(next.change), text: `${Math.abs(100 * next.change).toFixed(1)} % ${next.change < 0 ? "fewer" : "more"} bits` }), " than its GPT twin.",
        reads === "stored" ? ` The longest run of it that stood in what was read is ${next.overlap} of ${next.length} tokens.` : ""));
  } else {
    $("#next .text").replaceChildren(make("p", { class: "over", text: "The document ends here. What was looked up is used for the beginning of the document that follows it." }));
    $("#next .bill").replaceChildren();
  }
  history.replaceState(null, "", `#chunk=${number}` + (view ? `&view=${view}` : ""));
  hideTip();
  if (!keepList) mark();
}

let tab = "documents";
const gain = (value) => make("span", { class: "gain " + tone(value), text: percent(value) });

function item(number, name, change, snippet) {
  return make("button", { type: "button", "data-chunk": number, on: { click: () => { aside(false); show(number); } } }, make("span", { class: "name", text: clipped(name, 28), title: name }), gain(change), snippet || null);
}
function list() {
  const query = $("#search").value.trim().toLowerCase();
  let items;
  if (query) {
    // A chunk is shown where it was predicted, and with what that saved, as in the other lists; a document's first one
    // where it was read, with what was saved on the next.
    const hits = data.chunks.flatMap((chunk, number) => {
      const entry = data.documents[chunk.document], first = number === entry.first;
      const at = chunk.text.toLowerCase().indexOf(query);
      if (at < 0 && !(first && entry.title.toLowerCase().includes(query))) return [];
      const target = first ? number : number - 1;
      return [{ chunk, at, target, change: last(target) ? entry.change : data.chunks[target + 1].change }];
    });
    const worth = ({ target }) => (last(target) ? 0 : saved(target));
    const found = tab === "documents" ? hits : hits.filter((hit) => (tab === "helped" ? worth(hit) < 0 : worth(hit) > 0));
    if (tab !== "documents") found.sort((a, b) => (tab === "helped" ? 1 : -1) * (worth(a) - worth(b)));
    items = found.slice(0, 200).map(({ chunk, at, target, change }) => {
      const from = Math.max(0, at - 30), end = at + query.length;
      const snippet = at < 0 ? null : make("span", { class: "snippet" }, (from ? "…" : "") + chunk.text.slice(from, at), make("mark", { text: chunk.text.slice(at, end) }), chunk.text.slice(end, end + 50) + "…");
      return item(target, data.documents[chunk.document].title, change, snippet);
    });
    const where = { documents: "", helped: " where retrieval helped, most bits first", hurt: " where retrieval hurt, most bits first" }[tab];
    items.unshift(make("p", { text: found.length ? `${found.length} chunk${found.length > 1 ? "s" : ""}${where}${found.length > 200 ? "; 200 are shown" : ""}` : `Nothing found${where.split(",")[0]}.` }));
  } else if (tab === "documents") {
    // Titles that read "Country: Section" are listed under their country.
    let heading = null;
    items = data.documents.flatMap((entry) => {
      const at = entry.title.lastIndexOf(": "), above = at > 0 ? entry.title.slice(0, at) : null;
      const shown = item(entry.first, above === null ? entry.title : entry.title.slice(at + 2), entry.change);
      if (above === null || above === heading) { heading = above; return [shown]; }
      heading = above;
      return [make("h4", { text: clipped(above, 36), title: above }), shown];
    });
  } else {
    const chosen = tab === "helped" ? byChange.filter((chunk) => saved(chunk) < 0).slice(0, 60) : byChange.filter((chunk) => saved(chunk) > 0).slice(-60).reverse();
    items = chosen.map((number) => {
      const next = data.chunks[number + 1];
      return item(number, data.documents[next.document].title, next.change, make("span", { class: "snippet", text: next.text.trim().slice(0, 90) + "…" }));
    });
    items.unshift(make("p", { text: `Chunks where retrieval ${tab} most, by bits.` }));
  }
  $("#list").replaceChildren(...items);
  mark();
}
function mark() {
  const entry = data.documents[data.chunks[current].document];
  const whole = tab === "documents" && !$("#search").value.trim();
  for (const button of document.querySelectorAll("#list button")) {
    const mine = Number(button.dataset.chunk) === (whole ? entry.first : current);
    button.setAttribute("aria-current", mine);
    if (mine) button.scrollIntoView({ block: "nearest" });
  }
}
function toDocument(step) {
  const wanted = data.documents[data.chunks[current].document + step];
  if (wanted) show(wanted.first);
}

document.querySelectorAll(".tabs button").forEach((button) => button.addEventListener("click", () => {
  tab = button.dataset.tab;
  document.querySelectorAll(".tabs button").forEach((each) => each.setAttribute("aria-pressed", each === button));
  list();
}));
$("#search").addEventListener("input", list);
$("#previous").addEventListener("click", () => show(current - 1));
$("#following").addEventListener("click", () => show(current + 1));
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.id === "search") { if (event.key === "Escape") event.target.blur(); return; }
  const actions = {
    ArrowRight: () => show(current + 1), ArrowLeft: () => show(current - 1), ArrowDown: () => toDocument(1), ArrowUp: () => toDocument(-1),
    "/": () => $("#search").focus(), r: () => show(ordered[Math.floor(Math.random() * ordered.length)] ?? 0),
  };
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});
document.addEventListener("click", hideTip);
addEventListener("scroll", hideTip, { capture: true, passive: true });
function aside(open) {
  $("#aside").classList.toggle("open", open);
  $("#open").setAttribute("aria-expanded", open);
  if (open) mark();
}
$("#open").addEventListener("click", () => aside(!$("#aside").classList.contains("open")));
function choose(number) {
  take(Math.min(number, data.views.length - 1));
  if ($("#view")) $("#view").value = view;
}
if ($("#view")) $("#view").addEventListener("change", () => { choose(Number($("#view").value)); show(current, true); list(); });
const fromAddress = () => { const match = /^#chunk=(\d+)(?:&view=(\d+))?$/.exec(location.hash); return match ? [Number(match[1]), Number(match[2] || 0)] : null; };
addEventListener("hashchange", () => {
  const wanted = fromAddress();
  if (wanted === null || (wanted[0] === current && wanted[1] === view)) return;
  choose(wanted[1]);
  show(wanted[0], true);
  list();
});

const asked = fromAddress() ?? [data.opened, 0];
choose(asked[1]);
show(asked[0], true);
list();
