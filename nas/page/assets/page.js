"use strict";
// Draws what nas/page/payload.py embeds as JSON. Nothing is fetched, and text only ever becomes text nodes.
(() => {
  const studies = JSON.parse(document.getElementById("data").textContent);
  const classes = ["one", "two"]; // of the studies of a comparison
  let selected, against; // {study, index}: the network that was chosen, and the one beside it
  let view = "all";
  let axis = "latency_ms"; // what accuracy is drawn against: one of the arrays of `networks`
  const axisLabels = {
    latency_ms: "latency in ms, one image",
    macs: "multiply-accumulates in millions",
    parameters: "parameters in millions",
  };

  // -- elements --------------------------------------------------------------------------------
  const make = (name, attributes = {}, ...children) =>
    fill(document.createElement(name), attributes, children);
  const draw = (name, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  function fill(element, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // -- networks --------------------------------------------------------------------------------
  const at = (study, index) => {
    const s = studies[study], n = s.networks;
    return {
      study, index, id: n.id[index], name: s.names[index] || null, top1: n.top1[index],
      deviation: n.deviation[index], latency: n.latency_ms[index], macs: n.macs[index],
      parameters: n.parameters[index], resolution: n.resolution[index], trial: n.trial[index],
      latencyError: n.latency_error_ms[index], percentiles: n.percentiles_ms[index], energy: n.energies_mj[index],
      accuracySource: s.sources[n.accuracy_source[index]], latencySource: s.sources[n.latency_source[index]],
      layers: (n.layers[index] || []).map((i) => s.layers[i]),
    };
  };
  const label = (network) => network.name || network.id;
  const full = (network) => label(network) + (studies.length > 1 ? ` (${studies[network.study].name})` : "");
  const millions = (count) => (count / 1e6).toFixed(count < 1e8 ? 2 : 0) + " M";
  // Significant digits, as in nas/quantities.py.
  const decimals = (value, digits) =>
    value && Number.isFinite(value) ? Math.max(0, digits - 1 - +value.toExponential(digits - 1).split("e")[1]) : 0;
  function latencyText(ms, error, unit = " ms") {
    if (!error) return ms.toFixed(decimals(ms, 3)) + unit;
    const shown = Math.max(decimals(error, 2), decimals(ms, 2));
    return `${ms.toFixed(shown)} ± ${error.toFixed(shown)}${unit}`;
  }
  const latency = (n) => latencyText(n.latency, n.latencyError);
  const accuracy = (n) => n.accuracySource === "proxy" ? `score ${n.top1.toFixed(2)}` : `${n.top1.toFixed(2)}${n.deviation == null ? "" : " ± " + n.deviation.toFixed(2)} %`;

  // -- scales ----------------------------------------------------------------------------------
  function ticks(low, high, count) {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
      found.push([i * step, (i * step).toFixed(digits)]);
    }
    return found;
  }
  // 1, 2, 5, 10, ...: all of them where there is room, else only powers of ten.
  function logTicks(low, high, count) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      for (const factor of [1, 2, 5]) found.push([factor * 10 ** power, factor]);
    }
    const inside = found.filter(([value]) => value >= low && value <= high);
    const tens = inside.filter(([, factor]) => factor === 1);
    return (inside.length > count && tens.length > 1 ? tens : inside).map(([value]) => [value, String(+value.toPrecision(1))]);
  }
  const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);
  const logScale = (low, high, from, to) => {
    const linear = scale(Math.log(low), Math.log(high), from, to);
    return (value) => linear(Math.log(value));
  };
  function axes(svg, box, xs, ys, xLabel, yLabel, isLog = false) {
    const x = (isLog ? logScale : scale)(xs[0], xs[1], box.left, box.right), y = scale(ys[0], ys[1], box.bottom, box.top);
    const group = draw("g", { class: "axis" });
    for (const [value, text] of ticks(ys[0], ys[1], Math.max(3, (box.bottom - box.top) / 55))) {
      group.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
        draw("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, text));
    }
    for (const [value, text] of (isLog ? logTicks : ticks)(xs[0], xs[1], Math.max(3, (box.right - box.left) / (isLog ? 40 : 90)))) {
      group.append(draw("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }),
        draw("text", { x: x(value), y: box.bottom + 16, "text-anchor": "middle" }, text));
    }
    svg.append(group, draw("text", { class: "label", x: box.left, y: box.top - 9 }, yLabel),
      draw("text", { class: "label", x: box.right, y: box.bottom + 33, "text-anchor": "end" }, xLabel));
    return { x, y };
  }
  function canvas(holder, height, title) {
    const width = Math.max(280, holder.clientWidth);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": title });
    return [svg, { left: 42, right: width - 12, top: 24, bottom: height - 40 }];
  }

  // -- accuracy against latency ----------------------------------------------------------------
  const holder = document.getElementById("pareto");
  const tip = make("div", { class: "tip", role: "status", hidden: "" });
  const logarithmic = document.getElementById("logarithmic");
  let placed = []; // [x, y, study, index] of everything drawn
  let marks;

  // Where each network of a study lies on the horizontal axis.
  const across = (s) => (axis === "latency_ms" ? s.networks.latency_ms : s.networks[axis].map((count) => count / 1e6));

  function limits() {
    const xs = [], ys = [];
    studies.forEach((s) => {
      const far = 1.3 * (s.budget_ms ?? Math.max(...s.front.map((i) => s.networks.latency_ms[i])));
      const near = [...s.front, ...s.references.filter((i) => s.networks.latency_ms[i] <= far)];
      const shown = view === "front" && near.length ? near : s.networks.id.map((_, i) => i);
      for (const i of shown) {
        const spread = s.onFront.has(i) ? s.networks.deviation[i] || 0 : 0;
        xs.push(across(s)[i]);
        ys.push(s.networks.top1[i] - spread, s.networks.top1[i] + spread);
      }
      if (s.budget_ms != null && axis === "latency_ms") xs.push(s.budget_ms);
    });
    const range = (values) => {
      const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
      const pad = (high - low) * 0.04 || 1;
      return [low - pad, high + pad];
    };
    if (logarithmic.checked) {
      const [left, right] = range(xs.map(Math.log));
      return [[Math.exp(left), Math.exp(right)], range(ys)];
    }
    const [left, right] = range(xs);
    return [[Math.max(0, left), right], range(ys)];
  }

  function drawPareto() {
    const height = Math.round(Math.min(560, Math.max(340, holder.clientWidth * 0.5)));
    const count = studies.reduce((sum, s) => sum + s.networks.id.length, 0);
    const [svg, box] = canvas(holder, height, `Accuracy against ${axisLabels[axis]} of ${count} networks`);
    const [xs, ys] = limits();
    const { x, y } = axes(svg, box, xs, ys, axisLabels[axis], studies[0].accuracy_label, logarithmic.checked);
    const inside = (px, py) =>
      px >= box.left - 1 && px <= box.right + 1 && py >= box.top - 1 && py <= box.bottom + 1;
    placed = [];
    const layers = ["candidates", "fronts", "references", "labels"].map((c) => draw("g", { class: c }));
    const [dots, fronts, references, labels] = layers;
    const boxes = [];
    studies.forEach((s, study) => {
      const n = s.networks, where = across(s), c = classes[study], isReference = new Set(s.references);
      const same = study > 0 && s.budget_ms === studies[0].budget_ms;
      if (s.budget_ms != null && !same && axis === "latency_ms") {
        const px = x(s.budget_ms);
        dots.append(draw("line", { class: "budget", x1: px, x2: px, y1: box.top, y2: box.bottom }));
        const atLeft = px < box.left + 110;
        labels.append(draw("text", { class: "label", x: atLeft ? px + 5 : px - 5, y: box.bottom - 8 - 14 * study,
          "text-anchor": atLeft ? "start" : "end" }, `budget ${latencyText(s.budget_ms)}`));
      }
      // A front in three objectives, or along another axis, is no line.
      if (s.front.length && axis === "latency_ms" && !s.third) {
        let line = "";
        for (const i of s.front) {
          line += line ? `H${x(n.latency_ms[i]).toFixed(1)}V${y(n.top1[i]).toFixed(1)}`
            : `M${x(n.latency_ms[i]).toFixed(1)} ${y(n.top1[i]).toFixed(1)}`;
        }
        fronts.append(draw("path", { class: `frontline ${c}`, d: line }));
      }
      // Of a dense front bars of deviations would be a thicket: one band instead.
      const dense = s.front.length > 40 && axis === "latency_ms" && !s.third;
      const banded = dense ? s.front.filter((i) => inside(x(where[i]), y(n.top1[i])) && n.deviation[i]) : [];
      if (banded.length > 1) {
        const edge = (sign) => banded.map((i) => `${x(where[i]).toFixed(1)} ${y(n.top1[i] + sign * n.deviation[i]).toFixed(1)}`);
        fronts.prepend(draw("path", { class: `band ${c}`, d: `M${edge(1).join("L")}L${edge(-1).reverse().join("L")}Z` }));
      }
      for (let i = 0; i < n.id.length; i++) {
        const px = x(where[i]), py = y(n.top1[i]);
        if (!inside(px, py)) continue;
        placed.push([px, py, study, i]);
        const onFront = s.onFront.has(i);
        if (((onFront && !dense) || isReference.has(i)) && n.deviation[i]) {
          fronts.append(draw("line", { class: `deviation ${isReference.has(i) ? "reference" : c}`, x1: px, x2: px,
            y1: y(n.top1[i] - n.deviation[i]), y2: y(n.top1[i] + n.deviation[i]) }));
        }
        if (isReference.has(i)) {
          references.append(draw("path", { class: `point reference ${c}`,
            d: `M${px} ${py - 7}l7 7l-7 7l-7 -7z` }));
          boxes.push([px, py, s.names[i] || n.id[i]]);
        } else if (onFront) {
          fronts.append(draw("circle", { class: `point front ${c}`, cx: px.toFixed(1), cy: py.toFixed(1), r: dense ? 3.2 : 4.5 }));
        } else {
          dots.append(draw("circle", { class: `point candidate ${c}`, cx: px.toFixed(1), cy: py.toFixed(1), r: 2.4 }));
        }
      }
    });
    labelReferences(labels, boxes, placed.filter(([, , study, i]) => studies[study].onFront.has(i)).map(([px, py]) => [px - 4, py + 4, 8]), box);
    marks = draw("g");
    svg.append(...layers, marks);
    holder.replaceChildren(svg, tip);
    tip.hidden = true;
    svg.addEventListener("pointermove", (event) => showTip(nearest(event, svg)));
    svg.addEventListener("pointerleave", () => showTip(null));
    svg.addEventListener("click", (event) => {
      const found = nearest(event, svg);
      if (found) choose({ study: found[2], index: found[3] });
    });
    markSelection();
  }

  // Names beside their diamonds, at the other side or moved until they cover no other name and, if it can be, no
  // point of the front; without the beginning that all have. Networks of other libraries come last, and go unnamed where there is none.
  function labelReferences(group, items, front, box) {
    const ink = document.createElement("canvas").getContext("2d");
    ink.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
    const taken = items.map(([px, py]) => [px - 7, py + 4, 14]);
    const alike = items.every((item) => item[2].startsWith("mobilenet_"));
    const named = []; // in a comparison the same reference may lie in one place twice
    const foreign = (item) => item[2].includes(":");
    for (const item of items.sort((a, b) => foreign(a) - foreign(b) || a[1] - b[1])) {
      const [px, py, name] = item;
      if (named.some(([x, y, other]) => other === name && Math.hypot(x - px, y - py) < 8)) continue;
      named.push([px, py, name]);
      const text = alike ? name.slice("mobilenet_".length) : name.split(":").at(-1), width = ink.measureText(text).width;
      const starts = [px + 12, px - 12 - width].filter((x) => x >= box.left && x + width <= box.right);
      if (!starts.length) starts.push(px < (box.left + box.right) / 2 ? px + 12 : px - 12 - width);
      const places = [0, 9, -9, 16, -16, 24, -24, 32].flatMap((shift) => starts.map((x) => [x, py + 4 + shift]));
      const clear = (things) => ([x, y]) => things.every(([tx, ty, tw]) => Math.abs(ty - y) >= 13 || x > tx + tw || tx > x + width);
      const place = places.find(clear([...taken, ...front])) ?? places.find(clear(taken)) ?? (foreign(item) ? null : places[0]);
      if (!place) continue;
      taken.push([...place, width]);
      const left = place[0] < px;
      group.append(draw("text", { class: "reference", x: left ? px - 12 : px + 12, y: place[1],
        "text-anchor": left ? "end" : "start" }, text));
    }
  }

  function nearest(event, svg) {
    const frame = svg.getBoundingClientRect(), ratio = svg.viewBox.baseVal.width / frame.width;
    const mx = (event.clientX - frame.left) * ratio, my = (event.clientY - frame.top) * ratio;
    let best = null, least = (event.pointerType === "touch" ? 28 : 16) ** 2;
    for (const point of placed) {
      const s = studies[point[2]];
      // Front and references are what people aim at.
      const weight = s.onFront.has(point[3]) || s.names[point[3]] ? 0.5 : 1;
      const distance = ((point[0] - mx) ** 2 + (point[1] - my) ** 2) * weight;
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  function showTip(point) {
    marks.querySelector(".hovered")?.remove();
    tip.hidden = !point;
    if (!point) return;
    const network = at(point[2], point[3]);
    tip.replaceChildren(
      make("div", {}, full(network)),
      make("div", {}, `${latency(network)}, ${network.latencySource}`),
      ...(network.percentiles
        ? [make("div", {}, `p90 ${latencyText(network.percentiles[0])}, p99 ${latencyText(network.percentiles[1])}`)] : []),
      ...(network.energy ? [make("div", {}, `${Number(network.energy.toPrecision(3))} mJ, whole processor`)] : []),
      make("div", {}, `${accuracy(network)}, ${network.accuracySource}`),
      make("div", {}, `${millions(network.parameters)} parameters`),
      make("div", {}, `${millions(network.macs)} MACs`),
    );
    if (network.name && network.name !== network.id) tip.append(make("div", {}, `id ${network.id}`));
    marks.append(draw("circle", { class: "hovered", cx: point[0], cy: point[1], r: 8 }));
    const right = point[0] > holder.clientWidth / 2;
    tip.style.left = right ? "auto" : `${point[0] + 14}px`;
    tip.style.right = right ? `${holder.clientWidth - point[0] + 14}px` : "auto";
    tip.style.top = `${Math.max(0, point[1] - 40)}px`;
  }

  function markSelection() {
    marks.replaceChildren();
    for (const [network, name, radius] of [[against, "ring against", 11], [selected, "ring", 9]]) {
      const point = network && placed.find((p) => p[2] === network.study && p[3] === network.index);
      if (point) marks.append(draw("circle", { class: name, cx: point[0], cy: point[1], r: radius }));
    }
  }

  // -- the selected network beside a reference -------------------------------------------------
  const partners = () => studies.length > 1
    ? studies.flatMap((s, study) => (study === selected.study ? s.references : s.front).map((index) => ({ study, index })))
    : studies[0].references.map((index) => ({ study: 0, index }));

  function choose(network, other) {
    selected = network;
    const options = partners().filter((o) => !(o.study === selected.study && o.index === selected.index));
    const latency = at(selected.study, selected.index).latency;
    const distance = (o) => Math.abs(at(o.study, o.index).latency - latency)
      // A comparison is about the other study: its front comes first.
      + (studies.length > 1 && o.study === selected.study ? 1e9 : 0);
    against = other || options.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
    const list = document.getElementById("against");
    list.replaceChildren(...options.map((o) => {
      const option = make("option", { value: `${o.study}:${o.index}` }, full(at(o.study, o.index)));
      option.selected = against && o.study === against.study && o.index === against.index;
      return option;
    }));
    list.parentElement.hidden = !options.length;
    markSelection();
    drawPair();
    for (const button of document.querySelectorAll("button[data-index]")) {
      const chosen = +button.dataset.study === selected.study && +button.dataset.index === selected.index;
      const row = button.closest("tr"), list = button.closest(".tall");
      row?.classList.toggle("chosen", chosen);
      if (chosen && list) list.scrollTop = row.offsetTop - list.clientHeight / 2;
    }
  }

  // Rows in groups that correspond: between two halvings of the resolution, and the parts of the head.
  function grouped(network) {
    const groups = new Map(), add = (name, row) =>
      (groups.has(name) ? groups.get(name) : groups.set(name, []).get(name)).push(row);
    let halvings = 0;
    network.layers.forEach((layer, position) => {
      const head = position === network.layers.length - 1;
      let part = "head";
      layer.rows.forEach((cells, i) => {
        if (!head) {
          if (i === 0 && layer.stride === 2) halvings++;
          part = `size ${halvings}`;
        } else if (cells[1].startsWith("pool")) part = "pool";
        else if (i === layer.rows.length - 1) part = "classifier";
        else if (part === "pool") part = "hidden";
        add(part, { cells, layer, first: i === 0 });
      });
    });
    return groups;
  }

  const after = ["pool", "hidden", "classifier"];
  function aligned(one, two) {
    const a = grouped(one), b = two ? grouped(two) : new Map(), rows = [];
    const sizes = [...new Set([...a.keys(), ...b.keys()])].filter((part) => part.startsWith("size")).sort();
    for (const part of [...sizes, "head", ...after]) {
      const left = a.get(part) || [], right = b.get(part) || [];
      for (let i = 0; i < Math.max(left.length, right.length); i++) {
        rows.push({ pair: [left[i], right[i]], down: i === 0 && rows.length > 0 && !after.includes(part) });
      }
    }
    return rows;
  }

  function drawPair() {
    const pair = [at(selected.study, selected.index), against && at(against.study, against.index)];
    const shown = pair.filter((n) => n && n.layers.length);
    // Latencies where every layer of both is known, else multiply-accumulates for both.
    const timed = shown.every((n) => n.layers.every((layer) => layer.ms != null));
    const value = (layer) => (timed ? layer.ms : layer.macs / 1e6);
    const largest = Math.max(1e-9, ...shown.flatMap((n) => n.layers.map(value)));
    const total = Math.max(1e-9, ...shown.map((n) => n.layers.reduce((sum, l) => sum + Math.max(0, value(l)), 0)));
    const rows = aligned(pair[0], pair[1]);
    const sides = pair.map((network, side) => {
      if (!network) return make("div", {}, "There is no reference to compare with.");
      const block = make("div", side ? { class: "two" } : {}, make("h3", {}, full(network)), facts(network));
      if (!network.layers.length) {
        block.append(make("p", { class: "quiet" }, "Its block table is not kept: it is of another family, or one of very many trials."));
        return block;
      }
      block.append(strip(network, value, total, timed), make("div", { class: "scroll" },
        blockTable(rows, side, pair[1 - side] && pair[1 - side].layers.length, value, largest, timed)));
      return block;
    });
    document.getElementById("pair").replaceChildren(...sides);
    document.getElementById("pair-note").textContent = (timed
      ? "Bars: milliseconds of each layer inside the network, on one scale for both, pale where not measured; "
        + "above each table the same by input size."
      : "Bars: millions of multiply-accumulates of each layer, as the study keeps layer latencies for its front only.")
      + " Shaded bold cells differ from the other network; rows are aligned where resolution halves.";
  }

  function facts(n) {
    const source = (text) => make("span", { class: "source", title: studies[n.study].words[text] || "" }, text);
    const fact = (...children) => make("span", {}, ...children);
    return make("div", { class: "facts" },
      fact(accuracy(n) + " ", source(n.accuracySource)), fact(latency(n) + " ", source(n.latencySource)),
      fact(`${millions(n.parameters)} parameters`), fact(`${millions(n.macs)} MACs`),
      fact(n.resolution ? `${n.resolution} px` : ""), fact(!n.name ? `trial ${n.trial}` : n.name === n.id ? "" : `id ${n.id}`),
      fact(studies[n.study].onFront.has(n.index) && n.layers.length ? make("code", {}, `architectures/${n.id}.yaml`) : ""));
  }

  // All of a network's time as one bar, cut where resolution halves.
  function strip(network, value, total, timed) {
    const svg = draw("svg", { class: "strip", height: 22 }), room = document.getElementById("pair").clientWidth;
    const width = room > 900 ? room / 2 : room; // two columns, or one on a phone
    const parts = new Map();
    network.layers.forEach((layer, position) => {
      const head = position === network.layers.length - 1;
      const name = head ? "head" : `${layer.size}²`;
      parts.set(name, (parts.get(name) || 0) + Math.max(0, value(layer)));
    });
    let from = 0;
    for (const [name, sum] of parts) {
      const share = (100 * sum) / total;
      const text = `${name}: ${timed ? latencyText(sum) : sum.toFixed(2) + " M MACs"}`;
      const part = draw("g", {}, draw("rect", { x: `${from}%`, y: 0, width: `${share}%`, height: 22 }), draw("title", {}, text));
      if ((share * width) / 100 > 7 * name.length + 4) part.append(draw("text", { x: `${from + share / 2}%`, y: 15 }, name));
      svg.append(part);
      from += share;
    }
    return svg;
  }

  function blockTable(rows, side, compare, value, largest, timed) {
    const table = make("table", { class: "blocks" });
    const heads = [...studies[0].columns, timed ? "ms" : "M MACs"];
    table.append(make("thead", {}, make("tr", {}, ...heads.map((h, i) =>
      make("th", i >= 2 && i < 7 ? { class: "number" } : {}, h)))));
    const body = make("tbody");
    for (const { pair, down } of rows) {
      const row = pair[side], other = pair[1 - side];
      const line = make("tr", down ? { class: "down" } : {});
      if (!row) {
        line.append(make("td", { class: "absent", colspan: heads.length }, "–"));
      } else {
        row.cells.forEach((cell, i) => {
          // The input size follows from the resolution: only the image itself is worth a mark.
          const differs = compare && (!other || (other.cells[i] !== cell && (i > 0 || !body.children.length)));
          line.append(make("td", { class: (i >= 2 ? "number " : "") + (differs ? "differs" : "") }, cell));
        });
        line.append(row.first ? timeCell(row.layer, value(row.layer), largest) : make("td", { class: "time" }));
      }
      body.append(line);
    }
    table.append(body);
    return table;
  }

  function timeCell(layer, amount, largest) {
    const guessed = layer.source && layer.source !== "measured";
    const svg = draw("svg", { height: 12, "aria-hidden": "true" },
      draw("rect", { class: guessed ? "guessed" : "", y: 0, width: `${(100 * Math.max(0, amount)) / largest}%`, height: 12 }));
    const text = latencyText(amount, null, "");
    return make("td", { class: "time", title: layer.source ? `${text} ms, ${layer.source}` : `${text} M MACs` },
      make("div", { class: "timed" }, svg, make("span", {}, text)));
  }

  // -- hypervolume and importances -------------------------------------------------------------
  function drawHypervolume() {
    const place = document.getElementById("hypervolume");
    if (!place || !studies.some((s) => s.hypervolume.length)) return;
    const [svg, box] = canvas(place, 260, "Hypervolume over trials");
    const last = Math.max(1, ...studies.map((s) => s.hypervolume.at(-1)?.[0] || 0));
    // The leap of the first trials would flatten all that follows: start the axis behind it.
    const early = (s) => s.hypervolume.filter((p) => p[0] <= last / 50).at(-1) || s.hypervolume[0];
    const low = 100 * Math.min(...studies.map((s) => early(s)?.[1] ?? 1));
    const high = 100 * Math.max(...studies.map((s) => s.hypervolume.at(-1)?.[1] || 0));
    const pad = (high - low) * 0.06 || 1;
    const { x, y } = axes(svg, box, [0, last], [low - pad, high + pad], "trials", "hypervolume in % of the box");
    studies.forEach((s, study) => {
      const height = (share) => Math.min(box.bottom, y(100 * share)).toFixed(1);
      const line = s.hypervolume.map(([trial, share], i) =>
        i ? `H${x(trial).toFixed(1)}V${height(share)}` : `M${x(trial).toFixed(1)} ${height(share)}`);
      svg.append(draw("path", { class: `frontline ${classes[study]}`, d: line.join("") }));
    });
    place.replaceChildren(svg);
  }

  function drawImportances() {
    for (const place of document.querySelectorAll("[data-importances]")) {
      const all = studies[+place.dataset.importances].importances
        .filter((row) => Math.max(row[1], row[2]) >= 0.005)
        .sort((a, b) => Math.max(b[1], b[2]) - Math.max(a[1], a[2])).slice(0, 12);
      const most = Math.max(1e-9, ...all.flatMap((row) => [row[1], row[2]]));
      place.replaceChildren(...all.map(([name, forAccuracy, forLatency]) => make("div", { class: "bar" },
        make("span", {}, name),
        draw("svg", { height: 14, role: "img",
          "aria-label": `${name}: accuracy ${Math.round(100 * forAccuracy)} %, latency ${Math.round(100 * forLatency)} %` },
        draw("rect", { class: "one", y: 0, width: `${(100 * forAccuracy) / most}%`, height: 6 }),
        draw("rect", { class: "two", y: 8, width: `${(100 * forLatency) / most}%`, height: 6 })),
        make("span", {}, `${Math.round(100 * forAccuracy)} %`), make("span", {}, `${Math.round(100 * forLatency)} %`))));
    }
  }

  // -- start -----------------------------------------------------------------------------------
  for (const s of studies) s.onFront = new Set(s.front);
  for (const button of document.querySelectorAll("button[data-index]")) {
    button.addEventListener("click", () => {
      choose({ study: +button.dataset.study, index: +button.dataset.index });
      document.getElementById("selected").scrollIntoView({ behavior: "smooth", block: "nearest" });
    });
  }
  document.getElementById("against").addEventListener("change", (event) => {
    const [study, index] = event.target.value.split(":").map(Number);
    choose(selected, { study, index });
  });
  for (const button of document.querySelectorAll("button[data-view]")) {
    button.addEventListener("click", () => {
      view = button.dataset.view;
      for (const b of document.querySelectorAll("button[data-view]")) b.setAttribute("aria-pressed", b === button);
      drawPareto();
    });
  }
  document.getElementById("axis").addEventListener("change", (event) => {
    axis = event.target.value;
    fitAxis();
    drawPareto();
  });
  logarithmic.addEventListener("change", drawPareto);
  // Networks of very different costs would crowd at one end of a linear axis.
  function fitAxis() {
    const all = studies.flatMap(across);
    const low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    logarithmic.disabled = !(low > 0);
    logarithmic.checked = low > 0 && high > 8 * low;
  }
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], front = studies[selected.study].front;
    if (!step || !front.length) return;
    event.preventDefault();
    const position = front.indexOf(selected.index);
    choose({ study: selected.study, index: front[Math.min(front.length - 1, Math.max(0, position + step))] });
  });
  let width = holder.clientWidth;
  addEventListener("resize", () => {
    if (holder.clientWidth === width) return;
    width = holder.clientWidth;
    drawPareto();
    drawHypervolume();
  });
  fitAxis();
  drawPareto();
  const first = studies[0];
  choose({ study: 0, index: first.best ?? first.front.at(-1) ?? 0 });
  drawHypervolume();
  drawImportances();
  document.documentElement.dataset.ready = "true";
})();
