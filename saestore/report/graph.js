"use strict";
// The graph is walked from unit to unit: one is in the middle, its neighbours around it.
(function () {
  var stage = document.getElementById("walk-drawn");
  if (!stage) { return; }
  var read = function (name) { return JSON.parse(document.getElementById(name).textContent); };
  var units = read("graph_units"), edges = read("graph_edges"), examples = read("graph_examples");
  var count = units.unit.length, near = [], shown = {}, path = [], current = -1;
  var space = stage.firstChild.namespaceURI;  // of drawings
  var ends = units.end.filter(function (end, place) { return units.end.indexOf(end) === place; });
  var shades = ["#3b4a5e", "#12703c", "#7a5fa8", "#9a8a1c", "#0f7f8a", "#a3337a", "#6b4a2f", "#5b6675"];
  var least = 1;
  for (var place = 0; place < count; place++) { near.push([]); }
  edges.r.forEach(function (r, edge) {  // the strongest come first
    near[edges.place_a[edge]].push(edge);
    near[edges.place_b[edge]].push(edge);
    least = Math.min(least, Math.abs(r));
  });
  examples.unit_place.forEach(function (place, row) { (shown[place] = shown[place] || []).push(row); });
  var other = function (edge, place) {
    return edges.place_a[edge] === place ? edges.place_b[edge] : edges.place_a[edge];
  };
  var named = function (place) {
    return (ends.length > 1 ? units.end[place] + ": " : "") + units.unit[place];
  };
  var cut = function (words, length) { return words.length > length ? words.slice(0, length - 1) + "…" : words; };
  var shade = function (place) { return shades[ends.indexOf(units.end[place]) % shades.length]; };
  var signed = function (r) { return (r > 0 ? "+" : "−") + Math.abs(r).toFixed(3); };
  var make = function (tag, attributes, words) {
    var isDrawn = ["svg", "g", "line", "circle", "text", "title", "path"].indexOf(tag) >= 0;
    var made = isDrawn ? document.createElementNS(space, tag) : document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) { made.setAttribute(name, attributes[name]); });
    if (words !== undefined) { made.textContent = words; }
    return made;
  };
  var width = function (r) { return 0.8 + 6 * (Math.abs(r) - least) / Math.max(1e-9, 1 - least); };

  function draw() {
    var across = Math.max(300, stage.clientWidth), down = Math.max(340, Math.min(620, across * 0.72));
    var most = Math.max(10, Math.min(44, Math.round(across / 20)));
    var drawn = near[current].slice(0, most);
    var order = drawn.slice().sort(function (one, two) {
      var a = other(one, current), b = other(two, current);
      return ends.indexOf(units.end[a]) - ends.indexOf(units.end[b]) || units.community[a] - units.community[b] ||
        Math.abs(edges.r[two]) - Math.abs(edges.r[one]);
    });
    var svg = make("svg", { viewBox: "0 0 " + across + " " + down, role: "group",
      "aria-label": "Unit " + named(current) + " and its neighbours" });
    var at = {}, x = across / 2, y = down / 2;
    at[current] = [x, y];
    order.forEach(function (edge, turn) {
      var angle = 2 * Math.PI * turn / order.length - Math.PI / 2;
      // Strong ones closer; of many every second one too, so that their names have room.
      var away = 0.62 + 0.3 * (1 - Math.abs(edges.r[edge])) / Math.max(1e-9, 1 - least);
      if (order.length > 14) { away -= 0.16 * (turn % 2); }
      at[other(edge, current)] = [x + (across / 2 - 34) * away * Math.cos(angle), y + (down / 2 - 22) * away * Math.sin(angle)];
    });
    var line = function (edge, faint) {
      var a = at[edges.place_a[edge]], b = at[edges.place_b[edge]];
      var made = make("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], "stroke-width": width(edges.r[edge]).toFixed(2),
        "class": (edges.r[edge] > 0 ? "above" : "below") + (faint ? " faint" : "") });
      made.appendChild(make("title", {}, named(edges.place_a[edge]) + " and " + named(edges.place_b[edge]) + ", r " +
        signed(edges.r[edge])));
      svg.appendChild(made);
    };
    order.forEach(function (edge) {
      var place = other(edge, current);
      near[place].forEach(function (further) {
        var end = other(further, place);
        if (end !== current && end > place && at[end]) { line(further, true); }
      });
    });
    order.forEach(function (edge) { line(edge, false); });
    [current].concat(order.map(function (edge) { return other(edge, current); })).forEach(function (place) {
      var node = make("g", { "class": place === current ? "node here" : "node", tabindex: 0, role: "button",
        transform: "translate(" + at[place][0].toFixed(1) + " " + at[place][1].toFixed(1) + ")",
        "data-place": place, "aria-label": "Unit " + named(place) + " " + units.label[place] });
      node.appendChild(make("title", {}, named(place) + (units.label[place] ? ", " + units.label[place] : "")));
      node.appendChild(make("circle", { r: place === current ? 11 : 6.5, fill: shade(place) }));
      node.appendChild(make("text", { y: place === current ? 26 : -10 }, String(units.unit[place])));
      if (units.label[place] && (place === current || (across > 560 && order.length < 17))) {
        node.appendChild(make("text", { y: place === current ? 40 : 17, "class": "named" },
          cut(units.label[place], place === current ? 40 : 16)));
      }
      node.addEventListener("click", function () { go(place); });
      node.addEventListener("keydown", function (event) {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); go(place); }
      });
      svg.appendChild(node);
    });
    stage.replaceChildren(svg);
    var key = document.getElementById("walk-key");
    var told = near[current].length > drawn.length
      ? "The strongest " + drawn.length + " of " + near[current].length + " neighbours are drawn; the list has all."
      : "";
    key.replaceChildren(document.createTextNode(told + " "));
    if (ends.length > 1) {
      ends.forEach(function (end, number) {
        var part = make("span", { "class": "end" });
        part.appendChild(make("i", { style: "background:" + shades[number % shades.length] }));
        part.appendChild(document.createTextNode(end));
        key.appendChild(part);
      });
    }
  }

  function listed(place, most) {
    var list = make("ol", { "class": "examples" });
    (shown[place] || []).slice(0, most).forEach(function (row) {
      var item = make("li", { title: examples.dataset[row] });
      item.appendChild(make("span", { "class": "value" }, String(Number(examples.value[row].toPrecision(3)))));
      item.appendChild(document.createTextNode(examples.before[row]));
      if (examples.marked[row]) { item.appendChild(make("b", {}, examples.marked[row])); }
      item.appendChild(document.createTextNode(examples.after[row]));
      list.appendChild(item);
    });
    return list.children.length ? list : make("p", { "class": "note" }, "no examples in this page");
  }

  function tell() {
    var told = document.getElementById("walk-told"), parts = [];
    var here = make("div", { "class": "card" });
    here.appendChild(make("h4", {}, "Unit " + named(current) + (units.label[current] ? ": " + units.label[current] : "")));
    var facts = units.edges[current] + (units.edges[current] === 1 ? " edge" : " edges");
    if (units.active[current] !== null) {
      facts += ", active in " + units.active[current].toLocaleString("en") + " rows (" +
        Number((100 * units.base_rate[current]).toPrecision(3)) + " %)";
    }
    facts += ", component " + units.component[current] + ", community " + units.community[current];
    here.appendChild(make("p", { "class": "note" }, facts));
    here.appendChild(listed(current, 12));
    parts.push(here);
    var box = make("div", { "class": "scroll next" }), table = make("table"), head = make("tr");
    var counted = near[current].some(function (edge) { return edges.n_ab[edge] !== null; });
    ["neighbour", "r"].concat(counted ? ["both active", "lift"] : [], ["strongest example"]).forEach(function (name) {
      head.appendChild(make("th", { scope: "col" }, name));
    });
    table.appendChild(make("thead")).appendChild(head);
    table.className = "neighbours";
    var body = table.appendChild(make("tbody"));
    near[current].forEach(function (edge) {
      var place = other(edge, current), row = make("tr"), cell = make("td"), r = edges.r[edge];
      var button = make("button", { type: "button", "data-go": place }, named(place));
      button.addEventListener("click", function () { go(place); });
      cell.appendChild(button);
      if (units.label[place]) { cell.appendChild(document.createTextNode(" " + units.label[place])); }
      row.appendChild(cell);
      row.appendChild(make("td", { "class": "number " + (r > 0 ? "above" : "below") }, signed(r)));
      if (counted) {
        row.appendChild(make("td", { "class": "number" }, edges.n_ab[edge] === null ? "" : String(edges.n_ab[edge])));
        row.appendChild(make("td", { "class": "number" },
          edges.lift[edge] === null ? "" : String(Number(edges.lift[edge].toPrecision(3)))));
      }
      var text = make("td", { "class": "long" }), first = (shown[place] || [])[0];
      if (first !== undefined) {
        text.appendChild(document.createTextNode(examples.before[first].slice(-30)));
        if (examples.marked[first]) { text.appendChild(make("b", {}, examples.marked[first])); }
        text.appendChild(document.createTextNode(cut(examples.after[first], 40)));
      }
      row.appendChild(text);
      body.appendChild(row);
    });
    box.appendChild(table);
    parts.push(box);
    told.replaceChildren.apply(told, parts);
  }

  function show(place) {
    current = place;
    document.getElementById("walk-back").disabled = !path.length;
    draw();
    tell();
  }

  function go(place) {
    if (place === current) { return; }
    if (current >= 0) { path.push(current); }
    show(place);
  }

  document.getElementById("walk-back").addEventListener("click", function () {
    if (path.length) { show(path.pop()); }
  });
  var find = document.getElementById("walk-find"), list = document.getElementById("walk-found");
  function matches(words) {
    // A unit's own number before what only begins so, before labels that hold the words.
    var asked = words.toLowerCase().split(/\s+/).filter(Boolean), found = [];
    for (var place = 0; place < count; place++) {
      var id = String(units.unit[place]), whole = (units.end[place] + " " + id + " " + units.label[place]).toLowerCase();
      if (!asked.every(function (word) { return whole.indexOf(word) >= 0; })) { continue; }
      var rank = asked.some(function (word) { return word === id; }) ? 0
        : asked.some(function (word) { return id.indexOf(word) === 0; }) ? 1 : 2;
      found.push([rank, -units.edges[place], place]);
    }
    found.sort(function (a, b) { return a[0] - b[0] || a[1] - b[1] || a[2] - b[2]; });
    return found.map(function (one) { return one[2]; });
  }
  function seek() {
    var words = find.value.trim();
    list.hidden = !words;
    if (!words) { return; }
    var found = matches(words);
    list.replaceChildren.apply(list, found.slice(0, 12).map(function (place) {
      var item = make("li"), label = units.label[place] ? " " + cut(units.label[place], 60) : "";
      var button = make("button", { type: "button" }, named(place) + label + " (" + units.edges[place] + ")");
      button.addEventListener("click", function () { choose(place); });
      item.appendChild(button);
      return item;
    }));
    if (found.length > 12) { list.appendChild(make("li", { "class": "note" }, found.length - 12 + " more")); }
    if (!found.length) { list.appendChild(make("li", { "class": "note" }, "no unit with edges in this page fits")); }
  }
  function choose(place) {
    find.value = "";
    list.hidden = true;
    go(place);
  }
  find.addEventListener("input", seek);
  find.addEventListener("keydown", function (event) {
    if (event.key === "Escape") { find.value = ""; seek(); }
    if (event.key === "Enter") {
      var found = find.value.trim() ? matches(find.value) : [];
      if (found.length) { choose(found[0]); }
    }
  });
  var start = 0;
  units.edges.forEach(function (edges, place) { if (edges > units.edges[start]) { start = place; } });
  show(start);
  var lastWidth = stage.clientWidth;
  window.addEventListener("resize", function () {
    if (stage.clientWidth !== lastWidth) { lastWidth = stage.clientWidth; draw(); }
  });
})();
// The numbers of a heat map are read where the pointer rests.
document.querySelectorAll("figure.heat").forEach(function (figure) {
  var image = figure.querySelector("image"), reading = figure.querySelector(".reading"), columns = null;
  figure.addEventListener("pointermove", function (event) {
    columns = columns || JSON.parse(document.getElementById(figure.getAttribute("data-of")).textContent);
    var box = image.getBoundingClientRect(), names = Object.keys(columns).slice(1), rows = columns.unit.length;
    var column = Math.floor((event.clientX - box.left) / box.width * names.length);
    var row = Math.floor((event.clientY - box.top) / box.height * rows);
    reading.textContent = column < 0 || row < 0 || column >= names.length || row >= rows ? "\u00a0"
      : columns.unit[row] + " and " + names[column].replace("unit_", "") + ": r " + columns[names[column]][row];
  });
});
