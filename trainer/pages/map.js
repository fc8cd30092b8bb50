"use strict";
// Explores the map of a page: zoom, search, neighbours. All that it shows is on the page already, and stays text.
(() => {
  const find = (name, within = document) => within.querySelector(name);
  const map = find("svg.map"), tools = find(".tools"), panel = find(".chosen"), field = find("[type=search]");
  const links = [...map.querySelectorAll("a")], entries = [...document.querySelectorAll(".points > li")];
  const [, , width, height] = map.getAttribute("viewBox").split(" ").map(Number);
  const points = links.map(link => ["cx", "cy"].map(name => +link.firstElementChild.getAttribute(name)));
  const names = entries.map(entry => find("p", entry).textContent.toLowerCase());
  const radius = links.length > 3000 ? 2.5 : links.length > 300 ? 4 : 6;  // pixels
  const drawn = (tag, attributes, within = map) => {
    const made = document.createElementNS(map.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    within.append(made);
    return made;
  };
  const [rays, ring, pictures] = [["path", "rays"], ["circle", "ring"], ["g", "pictures"]]
    .map(([tag, kind]) => drawn(tag, {class: kind}));
  let view = {x: 0, y: 0, scale: 1}, chosen = -1, matches = null, waiting = 0;

  const pixel = () => width / view.scale / map.clientWidth;  // in units of the drawing

  const show = () => {
    if (!map.clientWidth) return;  // not laid out
    view.scale = Math.min(200, Math.max(1, view.scale));
    view.x = Math.min(width - width / view.scale, Math.max(0, view.x));
    view.y = Math.min(height - height / view.scale, Math.max(0, view.y));
    map.setAttribute("viewBox", [view.x, view.y, width / view.scale, height / view.scale].join(" "));
    map.style.setProperty("--radius", radius * pixel() + "px");
    map.style.touchAction = view.scale > 1 ? "none" : "pan-y";
    if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; paint(); });
  };

  const paint = () => {  // pictures of points in view, as many as fit side by side
    if (!map.clientWidth) return;
    pictures.replaceChildren();
    if (!find("[type=checkbox]", tools).checked) return;
    const unit = pixel(), taken = [], order = chosen < 0 ? points.keys() : [chosen, ...points.keys()];
    for (const i of order) {
      const image = find("img", entries[i]), [x, y] = points[i];
      if (!image || (matches && !matches[i])) continue;
      const wide = 72 * unit, high = wide * image.getAttribute("height") / image.getAttribute("width");
      const right = view.x + width / view.scale - wide, bottom = view.y + height / view.scale - high;
      const left = Math.min(right, Math.max(view.x, x - wide / 2)), top = Math.min(bottom, Math.max(view.y, y - high / 2));
      if (Math.abs(left + wide / 2 - x) > wide || Math.abs(top + high / 2 - y) > high || taken.some(([a, b, c, d]) => left < a + c && a < left + wide && top < b + d && b < top + high)) continue;
      taken.push([left, top, wide, high]);
      const shown = {href: image.src, x: left, y: top, width: wide, height: high};
      const color = links[i].firstElementChild.getAttribute("fill");
      drawn("rect", {...shown, fill: color, stroke: color, "stroke-width": 5 * unit}, pictures);
      drawn("image", shown, pictures).dataset.point = i;
      if (taken.length > 150) break;
    }
  };

  const zoom = (factor, x = view.x + width / view.scale / 2, y = view.y + height / view.scale / 2) => {
    const before = view.scale;
    view.scale = factor ? Math.min(200, Math.max(1, before * factor)) : 1;
    view.x = x - (x - view.x) * before / view.scale;
    view.y = y - (y - view.y) * before / view.scale;
    show();
  };

  const near = entry => [...entry.querySelectorAll(".near a")].map(link => +link.hash.slice(2));

  const choose = i => {
    if (i < 0 || i >= points.length) return;
    const [x, y] = points[chosen = i], others = near(entries[i]);
    rays.setAttribute("d", others.map(j => `M${x} ${y}L${points[j][0]} ${points[j][1]}`).join(""));
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    const copy = [...entries[i].cloneNode(true).childNodes];
    panel.replaceChildren(...copy);
    panel.querySelectorAll(".near a").forEach(link => {
      const image = find("img", entries[+link.hash.slice(2)]);
      if (image) link.prepend(image.cloneNode());
    });
    const wide = width / view.scale, high = height / view.scale;
    if (x < view.x || y < view.y || x > view.x + wide || y > view.y + high) {
      view.x = x - wide / 2;
      view.y = y - high / 2;
    }
    map.setAttribute("aria-label", `Map, at ${find("p", entries[i]).textContent}`);
    show();
  };

  const place = event => {  // of a pointer, in units of the drawing
    const box = map.getBoundingClientRect();
    return [view.x + (event.clientX - box.left) * pixel(), view.y + (event.clientY - box.top) * pixel()];
  };

  const closest = (x, y, within) => {  // the point at a place, or -1
    let best = -1, least = within ** 2;
    points.forEach(([a, b], i) => {
      const apart = (a - x) ** 2 + (b - y) ** 2;
      if (apart < least && (!matches || matches[i])) [best, least] = [i, apart];
    });
    return best;
  };

  const step = (right, down) => {  // to the nearest point in a direction
    if (chosen < 0) return choose(closest(view.x + width / view.scale / 2, view.y + height / view.scale / 2, Infinity));
    const [x, y] = points[chosen];
    let best = -1, least = Infinity;
    points.forEach(([a, b], i) => {
      const along = (a - x) * right + (b - y) * down, across = Math.abs((a - x) * down) + Math.abs((b - y) * right);
      const cost = along + 3 * across;
      if (along > 0 && across <= 2 * along && cost < least && (!matches || matches[i])) [best, least] = [i, cost];
    });
    choose(best);
  };

  const search = () => {
    const text = field.value.trim().toLowerCase();
    matches = text ? names.map(name => name.includes(text)) : null;
    links.forEach((link, i) => link.classList.toggle("other", !!matches && !matches[i]));
    entries.forEach((entry, i) => { entry.hidden = !!matches && !matches[i]; });
    find("output").textContent = matches ? `${matches.filter(Boolean).length} of ${names.length}` : "";
    show();
  };

  // Pointers: one drags, two pinch, one that stays in its place chooses.
  const down = new Map();
  let moved = false;
  map.addEventListener("pointerdown", event => {
    if (event.button) return;
    if (!down.size) moved = false;
    down.set(event.pointerId, event);
  });
  map.addEventListener("pointermove", event => {
    const before = down.get(event.pointerId);
    if (!before) return;
    const other = [...down.values()].find(one => one.pointerId !== event.pointerId);
    const right = event.clientX - before.clientX, below = event.clientY - before.clientY;
    if (!moved && !other && Math.hypot(right, below) < 5) return;
    moved = true;
    if (map.hasPointerCapture && !map.hasPointerCapture(event.pointerId)) map.setPointerCapture(event.pointerId);
    if (other) {
      const apart = one => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      zoom(apart(event) / Math.max(1, apart(before)), ...place(other));
    } else {
      view.x -= right * pixel();
      view.y -= below * pixel();
      show();
    }
    down.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    addEventListener(name, event => down.delete(event.pointerId));
  }
  map.addEventListener("click", event => {
    event.preventDefault();
    if (!moved) choose(+(event.target.dataset.point ?? closest(...place(event), 24 * pixel())));
  });
  map.addEventListener("dragstart", event => event.preventDefault());
  map.addEventListener("dblclick", event => zoom(2, ...place(event)));
  map.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(2 ** (-event.deltaY / 200), ...place(event));
  }, {passive: false});

  map.addEventListener("keydown", event => {
    const keys = {
      ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
      "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), 0: () => zoom(0), Enter: () => find("a", panel)?.focus(),
    };
    if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  field.addEventListener("input", search);
  field.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !matches) return;
    for (let i = 1; i <= points.length; i++) {  // the next one that matches
      const next = (chosen + i) % points.length;
      if (matches[next]) return choose(next);
    }
  });
  tools.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) zoom(+button.dataset.zoom);
  });
  tools.addEventListener("change", show);
  document.addEventListener("click", event => {
    const link = event.target.closest(".near a");
    if (!link) return;
    event.preventDefault();
    const inside = panel.contains(link);
    choose(+link.hash.slice(2));
    map.focus({preventScroll: inside});
    if (!inside) map.scrollIntoView({block: "nearest"});
  });
  addEventListener("resize", show);

  tools.hidden = find(".keys").hidden = false;
  links.forEach(link => link.setAttribute("tabindex", -1));
  map.setAttribute("tabindex", 0);
  map.setAttribute("role", "application");
  document.body.classList.add("scripted");
  show();
})();
