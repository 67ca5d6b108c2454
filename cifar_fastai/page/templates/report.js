"use strict";
(() => {
  const $ = id => document.getElementById(id), all = q => [...document.querySelectorAll(q)];
  const data = JSON.parse($("data").textContent), n = data.index.length, names = data.classes;
  const FIRST = 120, state = { t: "", p: "", o: "loss", r: false, m: false, i: null, l: 0, c: "predicted" };
  const placeOf = new Map(data.index.map((index, k) => [index, k]));
  const wrong = k => data.true[k] !== data.predicted[k];
  const percent = p => (100 * p).toFixed(p > 0.0995 ? 0 : 1) + " %";
  let chosen = [], limit = FIRST, opener = null;

  function make(tag, attributes = {}, ...children) {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(attributes)) k === "class" ? (e.className = v) : e.setAttribute(k, v);
    e.append(...children);
    return e;
  }

  // sheets: many pictures in one image
  function sheetRule(name, sheet) {
    const rows = Math.ceil(sheet.n / sheet.columns);
    document.head.append(make("style", {}, `.${name} { background-image: url(${sheet.uri}); background-size: ` +
      `${100 * sheet.columns}% ${100 * rows}%; }`));
  }
  function putTile(e, name, sheet, k) {
    const rows = Math.ceil(sheet.n / sheet.columns), x = k % sheet.columns, y = Math.floor(k / sheet.columns);
    e.classList.add(name);
    e.style.backgroundPosition = `${sheet.columns > 1 ? 100 * x / (sheet.columns - 1) : 0}% ` +
      `${rows > 1 ? 100 * y / (rows - 1) : 0}%`;
    return e;
  }
  const loaded = new Map();
  function pixels(sheet) {        // a promise of the sheet as an image
    if (!loaded.has(sheet.uri)) loaded.set(sheet.uri, new Promise(done => {
      const image = new Image();
      image.onload = () => done(image);
      image.src = sheet.uri;
    }));
    return loaded.get(sheet.uri);
  }
  function corner(sheet, k) {
    return [k % sheet.columns * sheet.width, Math.floor(k / sheet.columns) * sheet.height, sheet.width, sheet.height];
  }

  // marks: kept in the browser, by the page they belong to
  const key = "label looks wrong: " + location.pathname;
  let marks = new Set();
  try { marks = new Set(JSON.parse(localStorage.getItem(key) || "[]")); } catch { /* a browser without storage */ }
  function mark(index, on) {
    on ? marks.add(index) : marks.delete(index);
    try { localStorage.setItem(key, JSON.stringify([...marks])); } catch { /* a browser without storage */ }
    $("export").disabled = !marks.size;
  }
  function exported() {
    const cell = v => /[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : String(v);
    const rows = [...marks].filter(i => placeOf.has(i)).sort((a, b) => a - b).map(i => {
      const k = placeOf.get(i);
      return [i, data.name[k] || "", names[data.true[k]], names[data.predicted[k]], data.loss[k]].map(cell).join(",");
    });
    return ["index,file,true,predicted,loss", ...rows].join("\n") + "\n";
  }

  // the address holds what is shown, so that a link shows the same
  function write() {
    const q = new URLSearchParams();
    for (const [k, v] of Object.entries(state)) {
      if (v === "" || v === false || v === null || (k === "o" && v === "loss")) continue;
      if (k === "r" && !data.mistakes) continue;               // nothing else is there to be shown
      if ((k === "l" || k === "c") && state.i === null) continue;
      q.set(k, v === true ? 1 : v);
    }
    const hash = q.toString() ? "#" + q : "";
    if (hash === location.hash) return;
    try { history.replaceState(null, "", hash || location.pathname + location.search); } catch { /* too often */ }
  }
  function read() {
    if (location.hash && !location.hash.includes("=")) return false;     // a place on the page
    const q = new URLSearchParams(location.hash.slice(1)), known = v => /^\d+$/.test(v) && +v < names.length ? v : "";
    Object.assign(state, { t: known(q.get("t") ?? ""), p: known(q.get("p") ?? ""), o: q.get("o") || "loss",
      r: q.has("r") || !data.mistakes, m: q.has("m"), i: q.has("i") ? +q.get("i") : null, l: +(q.get("l") || 0),
      c: q.get("c") === "true" ? "true" : "predicted" });
    if (!placeOf.has(state.i)) state.i = null;
    return true;
  }

  // the grid
  const orders = { loss: (a, b) => data.loss[b] - data.loss[a], confidence: (a, b) => data.confidence[b] -
    data.confidence[a], true: (a, b) => data.true[a] - data.true[b] || data.loss[b] - data.loss[a],
    index: (a, b) => data.index[a] - data.index[b] };
  function filter() {
    chosen = [];
    for (let k = 0; k < n; k++) {
      if (!state.r && !wrong(k)) continue;
      if (state.t !== "" && data.true[k] !== +state.t) continue;
      if (state.p !== "" && data.predicted[k] !== +state.p) continue;
      if (state.m && !marks.has(data.index[k])) continue;
      chosen.push(k);
    }
    chosen.sort(orders[state.o] || orders.loss);
  }
  function told(k) {              // of a picture, to those who do not see it
    const index = data.index[k], marked = marks.has(index) ? ", marked" : "";
    return `picture ${index}: predicted ${names[data.predicted[k]]}, true ${names[data.true[k]]}, ` +
      `loss ${data.loss[k].toFixed(2)}${marked}`;
  }
  function tile(k) {
    const index = data.index[k], p = names[data.predicted[k]], t = names[data.true[k]];
    const b = make("button", { type: "button", class: "tile", "data-open": index, "aria-label": told(k) });
    b.classList.toggle("marked", marks.has(index));
    b.append(putTile(make("span", { class: "crop" }), "sheet", data.pictures, k),
      make("b", { class: wrong(k) ? "wrong" : "right", title: p }, `${p} ${percent(data.confidence[k])}`),
      make("span", { title: t }, `true ${t}`), make("span", {}, `loss ${data.loss[k].toFixed(2)}`));
    return make("li", {}, b);
  }
  function show() {
    filter();
    const shown = chosen.slice(0, limit), mistakes = chosen.filter(wrong).length;
    $("tiles").replaceChildren(...shown.map(tile));
    $("count").textContent = `${mistakes} mistake${mistakes === 1 ? "" : "s"}` +
      (state.r ? ` and ${chosen.length - mistakes} right` : "") + (chosen.length > shown.length ?
        `, the first ${shown.length} shown` : "");
    $("more").hidden = chosen.length <= limit;
    for (const b of all("#confusion button"))
      b.setAttribute("aria-pressed", b.dataset.true === state.t && b.dataset.predicted === state.p);
    $("f-true").value = state.t; $("f-predicted").value = state.p; $("f-order").value = state.o;
    $("f-right").checked = state.r; $("f-marked").checked = state.m;
    write();
  }
  function choose(changes) { Object.assign(state, changes); limit = FIRST; show(); }

  // one picture
  const viewer = $("viewer");
  const HOT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];     // matplotlib's inferno
  function hot(v) {
    const at = Math.min(3, Math.floor(4 * v)), share = 4 * v - at;
    return HOT[at].map((low, c) => low + share * (HOT[at + 1][c] - low));
  }
  async function heat(k) {
    const layer = data.maps[state.l], sheet = layer[state.c], picture = data.pictures, canvas = $("v-heat");
    const [image, map] = await Promise.all([pixels(picture), pixels(sheet)]);
    if (placeOf.get(state.i) !== k || sheet !== data.maps[state.l][state.c]) return;      // chosen meanwhile: another
    const scale = Math.max(1, Math.round(320 / Math.max(picture.width, picture.height)));
    for (const [c, s] of [[canvas, scale], [$("v-plain"), scale], [$("v-own"), 1]]) {
      c.width = picture.width * s; c.height = picture.height * s;
      const g = c.getContext("2d");
      g.imageSmoothingEnabled = false;
      g.drawImage(image, ...corner(picture, k), 0, 0, c.width, c.height);
    }
    const small = document.createElement("canvas");
    small.width = sheet.width; small.height = sheet.height;
    const g = small.getContext("2d", { willReadFrequently: true });
    g.drawImage(map, ...corner(sheet, k), 0, 0, sheet.width, sheet.height);
    const values = g.getImageData(0, 0, sheet.width, sheet.height);
    for (let j = 0; j < values.data.length; j += 4) {
      const v = values.data[j] / 255;
      values.data.set([...hot(v), 255 * Math.sqrt(v)], j);
    }
    g.putImageData(values, 0, 0);
    const over = canvas.getContext("2d");
    over.imageSmoothingEnabled = true;
    over.globalAlpha = $("v-opacity").value / 100;
    over.drawImage(small, 0, 0, canvas.width, canvas.height);
    over.globalAlpha = 1;
  }
  function tabs(box, labels, selected, pick) {
    const had = box.contains(document.activeElement);         // else keys would go to a button that is gone
    box.replaceChildren(...labels.map((label, k) => {
      const b = make("button", { type: "button", role: "tab", "aria-selected": k === selected, tabindex: k === selected
        ? 0 : -1 }, label);
      b.addEventListener("click", () => pick(k));
      return b;
    }));
    if (had) box.children[selected].focus();
  }
  function view() {
    const k = placeOf.get(state.i);
    if (k === undefined) { if (viewer.open) viewer.close(); return; }
    const index = data.index[k], p = names[data.predicted[k]], t = names[data.true[k]], layer = data.maps[state.l];
    if (!layer) state.l = 0;
    $("v-title").textContent = `Picture ${index}` + (data.name[k] ? ` (${data.name[k]})` : "");
    const facts = make("p", {}, make("b", { class: wrong(k) ? "wrong" : "right" }, `predicted ${p}`), ` (${percent(
      data.confidence[k])}), true ${t} (${percent(data.of_true[k])}), loss ${data.loss[k].toFixed(3)}`);
    if (facts.textContent !== $("v-facts").textContent) $("v-facts").replaceChildren(...facts.childNodes);  // is said
    tabs($("v-layers"), data.maps.map(m => m.layer), state.l, l => { state.l = l; view(); });
    const kinds = ["predicted", "true"];
    tabs($("v-targets"), [`why ${p}`, `where ${t}`], kinds.indexOf(state.c), c => { state.c = kinds[c]; view(); });
    const of = state.c === "true" ? t : p, m = data.maps[state.l];
    $("v-heat-of").textContent = `${m.method} at ${m.layer} for ${of}`;
    $("v-heat").setAttribute("aria-label", `heat map: ${m.method} at ${m.layer} for ${of}`);
    $("v-top").tBodies[0].replaceChildren(...data.top[k].map(([c, q]) => make("tr", {}, make("th", { scope: "row" },
      names[c]), make("td", { class: "bar" }, make("i", { style: `width: ${100 * q}%` }), make("span", {}, percent(q))))));
    const near = data.near[k] || [];
    $("v-near").hidden = !near.length;
    $("v-near-list").replaceChildren(...near.map(([j, cosine]) => make("li", {}, putTile(make("span", { class: "crop",
      role: "img", "aria-label": `training picture ${data.near_index[j]}` }), "near-sheet", data.near_sheet, j),
      make("b", { class: data.near_label[j] === data.true[k] ? "right" : "wrong" }, names[data.near_label[j]]),
      make("div", {}, `cosine ${cosine.toFixed(2)}`))));
    $("v-mark").checked = marks.has(index);
    if (!viewer.open) viewer.showModal();
    heat(k);
    write();
  }
  function open(index, from) {
    if (!placeOf.has(index)) return;
    if (!chosen.includes(placeOf.get(index))) choose({ t: "", p: "", m: false, r: state.r || !wrong(placeOf.get(index)) });
    opener = from || opener;
    state.i = index;
    view();
  }
  function shut() {
    const index = state.i, same = opener && opener.isConnected && +opener.dataset.open === index;
    state.i = null;
    viewer.close();
    (same ? opener : document.querySelector(`#tiles [data-open="${index}"]`) || opener || document.body).focus();
    write();
  }
  function step(by) {
    const at = chosen.indexOf(placeOf.get(state.i)), next = chosen[(at + by + chosen.length) % chosen.length];
    if (next !== undefined) { state.i = data.index[next]; view(); }
  }
  function toggle() {
    mark(state.i, !marks.has(state.i));
    $("v-mark").checked = marks.has(state.i);
    for (const b of all(`#tiles [data-open="${state.i}"]`)) {
      b.classList.toggle("marked", marks.has(state.i));
      b.setAttribute("aria-label", told(placeOf.get(state.i)));
    }
  }
  const keys = { ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    ArrowUp: () => { state.l = (state.l + data.maps.length - 1) % data.maps.length; view(); },
    ArrowDown: () => { state.l = (state.l + 1) % data.maps.length; view(); },
    t: () => { state.c = state.c === "true" ? "predicted" : "true"; view(); }, m: toggle };

  document.addEventListener("click", e => {
    const b = e.target.closest("button");
    if (!b) return;
    if (b.dataset.open !== undefined) open(+b.dataset.open, b);
    else if (b.dataset.true !== undefined) {
      const again = b.dataset.true === state.t && b.dataset.predicted === state.p;
      choose(again ? { t: "", p: "" } : { t: b.dataset.true, p: b.dataset.predicted });
      if (!again) { $("count").scrollIntoView({ block: "center" }); $("count").focus({ preventScroll: true }); }
    }
  });
  function matrix() {             // of many classes: a picture, whose rows are scaled to their sum
    const canvas = $("matrix"), counts = JSON.parse($("counts").textContent), side = counts.length;
    const small = document.createElement("canvas"), g = small.getContext("2d");
    small.width = small.height = side;
    const image = g.createImageData(side, side);
    counts.forEach((row, y) => {
      const total = row.reduce((a, b) => a + b, 0) || 1;
      row.forEach((v, x) => image.data.set([11, 87, 176, 255 * Math.sqrt(v / total)], 4 * (y * side + x)));
    });
    g.putImageData(image, 0, 0);
    const big = canvas.getContext("2d");
    big.imageSmoothingEnabled = false;
    big.drawImage(small, 0, 0, canvas.width, canvas.height);
    canvas.addEventListener("click", e => {
      const box = canvas.getBoundingClientRect(), at = (v, of) => Math.min(side - 1, Math.floor(side * v / of));
      choose({ t: String(at(e.clientY - box.top, box.height)), p: String(at(e.clientX - box.left, box.width)) });
    });
  }
  if ($("matrix")) matrix();
  if (!n) return;

  sheetRule("sheet", data.pictures);
  if (data.near_sheet) sheetRule("near-sheet", data.near_sheet);
  for (const e of all("[data-place]")) putTile(e, "sheet", data.pictures, +e.dataset.place);
  for (const id of ["f-true", "f-predicted"])
    $(id).append(...names.map((name, k) => make("option", { value: k }, name)));
  $("f-true").addEventListener("change", e => choose({ t: e.target.value }));
  $("f-predicted").addEventListener("change", e => choose({ p: e.target.value }));
  $("f-order").addEventListener("change", e => choose({ o: e.target.value }));
  $("f-right").addEventListener("change", e => choose({ r: e.target.checked }));
  $("f-marked").addEventListener("change", e => choose({ m: e.target.checked }));
  $("f-clear").addEventListener("click", () => choose({ t: "", p: "", o: "loss", r: !data.mistakes, m: false }));
  $("more").addEventListener("click", () => { limit += 2 * FIRST; show(); });
  $("export").disabled = !marks.size;
  $("export").addEventListener("click", () => {
    const a = make("a", { href: URL.createObjectURL(new Blob([exported()], { type: "text/csv" })),
      download: "labels-that-look-wrong.csv" });
    a.click();
    URL.revokeObjectURL(a.href);
  });
  $("v-opacity").addEventListener("input", () => heat(placeOf.get(state.i)));
  $("v-before").addEventListener("click", () => step(-1));
  $("v-next").addEventListener("click", () => step(1));
  $("v-close").addEventListener("click", shut);
  $("v-mark").addEventListener("change", toggle);
  viewer.addEventListener("cancel", e => { e.preventDefault(); shut(); });      // Esc
  viewer.addEventListener("keydown", e => {
    if (e.target.type === "range" || e.ctrlKey || e.metaKey || e.altKey) return;
    const act = keys[e.key.length === 1 ? e.key.toLowerCase() : e.key];
    if (act) { e.preventDefault(); act(); }
  });
  function follow() { if (read()) { show(); view(); } else show(); }
  addEventListener("hashchange", follow);
  follow();
})();
