// The map: each facet's tile at its place, on a canvas. Facets with similar codes are near each other.
const map = (() => {
  const box = dom.byId("map");
  const canvas = box.querySelector("canvas");
  const context = canvas.getContext("2d", { alpha: false });
  const tip = box.querySelector(".tip");
  const spoken = box.querySelector("[data-spoken]");
  const large = new Map();  // whole images of facets that are seen close, by address
  let content = null;
  let sprites = [];
  let plane = null;  // of one layer: x, y in the unit square, unit, facet, tile
  let shown = [];  // whether the filters accept each facet
  let eye = { x: 0.5, y: 0.5, zoom: 1 };
  let size = { width: 0, height: 0, ratio: 1 };
  let aimed = -1;  // the facet under the pointer, or in the middle where the keyboard is used
  let byKeys = false;
  let due = false;
  const around = 0.3;  // share of the screen that is drawn beyond each edge
  const grounds = [dom.make("canvas"), dom.make("canvas")];
  let drawn = null;  // a canvas with all tiles, and the eye for which it was drawn
  let job = null;  // the canvas that is being drawn
  let stale = true;  // whether the tiles changed

  const scale = () => Math.min(size.width, size.height * plane.aspect) * 0.92 * eye.zoom;
  const side = () => {
    const dense = Math.sqrt((size.width * size.height * 0.5) / Math.max(1, plane.x.length));
    return Math.min(144, Math.max(6, Math.min(dense, 72)) * eye.zoom ** 0.8);
  };
  const toScreen = (place, factor = scale()) => [
    (plane.x[place] - eye.x) * factor + size.width / 2,
    (plane.y[place] - eye.y) * factor + size.height / 2,
  ];

  const whole = (place) => {
    const address = data.image(data.units[plane.unit[place]], plane.facet[place]);
    if (!large.has(address)) {
      if (large.size > 300) large.delete(large.keys().next().value);
      const image = new Image();
      image.onload = renew;
      image.src = address;
      large.set(address, image);
    }
    const image = large.get(address);
    return image.complete && image.naturalWidth ? image : null;
  };

  // Tiles are drawn on a canvas that is larger than the screen, in slices of a few milliseconds; while the map moves, that
  // canvas is moved or enlarged, and a second one is drawn for where the eye is.
  const slice = (most) => {
    const began = performance.now();
    const { near, eye: from, tile, close, target } = job;
    const { tile: pixels, tiles } = content;
    const brush = target.getContext("2d", { alpha: false });
    const level = tile * size.ratio > 20 ? 0 : 1;
    const part = pixels >> level;
    for (; job.next < near.length; job.next += 3) {
      if (job.next % 192 === 0 && performance.now() - began > most) return;
      const place = near[job.next];
      const image = close ? whole(place) : null;
      const number = plane.tile[place];
      brush.globalAlpha = shown[place] ? 1 : 0.1;
      if (image) brush.drawImage(image, near[job.next + 1], near[job.next + 2], tile, tile);
      else {
        brush.drawImage(sprites[Math.floor(number / tiles ** 2)][level], (number % tiles) * part,
          Math.floor((number % tiles ** 2) / tiles) * part, part, part, near[job.next + 1], near[job.next + 2], tile, tile);
      }
    }
    drawn = { canvas: target, eye: from };
    job = null;
  };
  const begin = () => {
    stale = false;
    const target = grounds.find((one) => one !== drawn?.canvas);
    const [width, height] = [size.width * (1 + 2 * around), size.height * (1 + 2 * around)];
    [target.width, target.height] = [Math.round(width * size.ratio), Math.round(height * size.ratio)];
    const brush = target.getContext("2d", { alpha: false });
    brush.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
    brush.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--card");
    brush.fillRect(0, 0, width, height);
    const factor = scale();
    const tile = side();
    const [faint, near] = [[], []];
    for (let place = 0; place < plane.x.length; place += 1) {
      const x = (plane.x[place] - eye.x) * factor + width / 2 - tile / 2;
      const y = (plane.y[place] - eye.y) * factor + height / 2 - tile / 2;
      if (x > -tile && y > -tile && x < width && y < height) (shown[place] ? near : faint).push(place, x, y);
    }
    job = { near: faint.concat(near), next: 0, eye: { ...eye }, tile, target, close: tile > 40 && near.length < 3 * 250 };
  };
  const draw = () => {
    due = false;
    if (box.hidden || !plane) return;
    const factor = scale();
    const ratio = drawn ? eye.zoom / drawn.eye.zoom : 0;
    const [dx, dy] = drawn ? [(drawn.eye.x - eye.x) * factor, (drawn.eye.y - eye.y) * factor] : [0, 0];
    const far = Math.abs(dx) > (around / 3) * size.width || Math.abs(dy) > (around / 3) * size.height || ratio < 0.8 || ratio > 1.5;
    if (!job && (stale || far)) begin();
    if (job) slice(drawn ? 7 : Infinity);
    if (job) schedule();
    const at = drawn.eye;
    const [width, height] = [size.width, size.height].map((length) => (length * (1 + 2 * around) * eye.zoom) / at.zoom);
    context.setTransform(size.ratio, 0, 0, size.ratio, 0, 0);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--card");
    context.fillRect(0, 0, size.width, size.height);
    context.drawImage(drawn.canvas, (at.x - eye.x) * factor + size.width / 2 - width / 2,
      (at.y - eye.y) * factor + size.height / 2 - height / 2, width, height);
    if (aimed >= 0) outline(getComputedStyle(document.documentElement), factor, side());
  };
  const outline = (style, factor, tile) => {
    const [ink, page] = ["--ink", "--card"].map((name) => style.getPropertyValue(name));
    plane.unit.forEach((unit, place) => {
      if (unit !== plane.unit[aimed]) return;
      const [x, y] = toScreen(place, factor);
      const half = tile / 2 + (place === aimed ? 3 : 1);
      for (const [color, width] of [[page, 5], [ink, place === aimed ? 3 : 1.5]]) {
        context.strokeStyle = color;
        context.lineWidth = width;
        context.strokeRect(x - half, y - half, 2 * half, 2 * half);
      }
    });
  };
  const schedule = () => {
    if (!due) requestAnimationFrame(draw);
    due = true;
  };
  const renew = () => {
    stale = true;
    schedule();
  };

  const nearest = (x, y, reach) => {
    let [best, least] = [-1, reach ** 2];
    const factor = scale();
    for (let place = 0; place < plane.x.length; place += 1) {
      if (!shown[place]) continue;
      const [a, b] = toScreen(place, factor);
      const distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < least) [best, least] = [place, distance];
    }
    return best;
  };
  const aim = (place) => {
    if (place === aimed) return;
    aimed = place;
    tip.hidden = place < 0;
    canvas.style.cursor = place < 0 ? "" : "pointer";
    schedule();
    if (place < 0) return;
    const unit = data.units[plane.unit[place]];
    const text = `facet ${plane.facet[place]} of ${unit.n_facets}`;
    const label = unit.facetLabels[plane.facet[place]] || unit.label;
    tip.replaceChildren(dom.make("img", { src: data.image(unit, plane.facet[place]), alt: "" }),
      dom.make("p", {}, dom.make("b", {}, dom.name(unit.name)), dom.make("br"), dom.make("small", {}, text),
        label && dom.make("br"), label && dom.name(label)));
    if (byKeys) spoken.textContent = `${unit.name}, ${text}${label ? `, ${label}` : ""}`;
    const [x, y] = toScreen(place);
    const half = side() / 2 + 10;
    const left = x + half + tip.offsetWidth > size.width ? x - half - tip.offsetWidth : x + half;
    tip.style.left = `${Math.max(4, Math.min(left, size.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(y - tip.offsetHeight / 2, size.height - tip.offsetHeight - 4))}px`;
  };
  const open = (place) => {
    if (place >= 0) state.go({ unit: data.units[plane.unit[place]].name, at: address() });
  };

  const address = () => [eye.x, eye.y, eye.zoom].map((value) => Number(value.toFixed(4))).join(",");
  let settled = 0;
  const changed = () => {
    eye.zoom = Math.max(0.5, Math.min(eye.zoom, 200));
    eye.x = Math.max(-0.2, Math.min(eye.x, 1.2));
    eye.y = Math.max(-0.2, Math.min(eye.y, 1.2 / plane.aspect));
    if (byKeys) aim(nearest(size.width / 2, size.height / 2, Infinity));
    schedule();
    clearTimeout(settled);
    settled = setTimeout(() => {
      if (box.hidden) return;
      state.amend({ at: address() }, true);
      renew();
    }, 200);
  };
  const pan = (dx, dy) => {
    eye.x -= dx / scale();
    eye.y -= dy / scale();
    changed();
  };
  const zoom = (factor, x = size.width / 2, y = size.height / 2) => {
    const before = scale();
    const [px, py] = [(x - size.width / 2) / before + eye.x, (y - size.height / 2) / before + eye.y];
    eye.zoom = Math.max(0.5, Math.min(eye.zoom * factor, 200));
    const after = scale();
    eye.x = px - (x - size.width / 2) / after;
    eye.y = py - (y - size.height / 2) / after;
    changed();
  };
  const reset = () => {
    eye = { x: 0.5, y: 0.5 / plane.aspect, zoom: 1 };
    changed();
  };

  const resize = () => {
    if (box.hidden) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    size = { width: canvas.clientWidth, height: canvas.clientHeight, ratio };
    canvas.width = Math.round(size.width * ratio);
    canvas.height = Math.round(size.height * ratio);
    drawn = null;
    job = null;
    if (plane) draw();
  };

  const picture = (number) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve([1, 2].map((divisor) => {  // whole, and half as large for small tiles
      const copy = dom.make("canvas", { width: image.naturalWidth / divisor, height: image.naturalHeight / divisor });
      copy.getContext("2d").drawImage(image, 0, 0, copy.width, copy.height);
      return copy;
    }));
    image.onerror = () => reject(new Error(`data/sprites-${number}.webp can't be loaded`));
    image.src = `data/sprites-${number}.webp`;
  });
  const choose = (layer) => {
    const table = content.layers[layer];
    const [left, top] = [Math.min(...table.x), Math.min(...table.y)];
    const width = Math.max(Math.max(...table.x) - left, 1e-9);
    const height = Math.max(Math.max(...table.y) - top, width / 4);
    const middle = (Math.max(...table.y) + top) / 2;
    plane = { ...table, layer, aspect: width / height };
    plane.x = table.x.map((x) => (x - left) / width);
    plane.y = table.y.map((y) => (y - middle + height / 2) / width);
    aimed = -1;
    tip.hidden = true;
  };

  const show = async (found, now) => {
    box.hidden = false;
    box.setAttribute("aria-busy", "true");
    content ??= await data.load("map");
    if (!sprites.length) sprites = await Promise.all(Array.from({ length: content.sprites }, (_, number) => picture(number)));
    if (state.now !== now) return;  // the state has changed meanwhile
    const layer = Math.max(0, data.layers.findIndex((one) => one.name === now.layer));
    const isNew = plane?.layer !== layer;
    if (isNew) choose(layer);
    shown = plane.unit.map((unit) => found.places.has(data.units[unit]));
    const [x, y, zoomed] = now.at.split(",").map(Number);
    if (now.at && [x, y, zoomed].every(Number.isFinite) && zoomed > 0) eye = { x, y, zoom: zoomed };
    else if (isNew || !now.at) eye = { x: 0.5, y: 0.5 / plane.aspect, zoom: 1 };
    box.removeAttribute("aria-busy");
    resize();
  };
  const hide = () => {
    box.hidden = true;
    clearTimeout(settled);
    aim(-1);
  };

  const pointers = new Map();
  let moved = 0;
  const at = (event) => {
    const frame = canvas.getBoundingClientRect();
    return [event.clientX - frame.left, event.clientY - frame.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 1) moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!plane) return;
    byKeys = false;
    const here = at(event);
    const before = pointers.get(event.pointerId);
    if (!before) {
      aim(nearest(...here, Math.max(10, side() * 0.7)));
      return;
    }
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    moved += Math.hypot(here[0] - before[0], here[1] - before[1]);
    pointers.set(event.pointerId, here);
    if (moved > 4) aim(-1);
    if (other) {
      const distance = (point) => Math.max(8, Math.hypot(point[0] - other[0], point[1] - other[1]));
      zoom(distance(here) / distance(before), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
    }
    const share = other ? 0.5 : 1;
    pan((here[0] - before[0]) * share, (here[1] - before[1]) * share);
  });
  const lift = (event) => {
    if (!pointers.delete(event.pointerId) || event.type !== "pointerup" || moved > 4 || !plane) return;
    open(nearest(...at(event), Math.max(10, side() * 0.7)));
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { if (!byKeys) aim(-1); });
  canvas.addEventListener("wheel", (event) => {
    if (!plane) return;
    event.preventDefault();
    aim(-1);
    zoom(Math.exp(-Math.max(-120, Math.min(event.deltaY * (event.deltaMode ? 30 : 1), 120)) / 300), ...at(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (!plane || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 80;
    const act = {
      ArrowLeft: () => pan(step, 0), ArrowRight: () => pan(-step, 0), ArrowUp: () => pan(0, step), ArrowDown: () => pan(0, -step),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: reset, Enter: () => open(aimed),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    byKeys = true;
    act();
  });
  canvas.addEventListener("blur", () => { byKeys = false; aim(-1); });
  for (const [name, act] of [["in", () => zoom(1.5)], ["out", () => zoom(1 / 1.5)], ["all", () => reset()]]) {
    box.querySelector(`[data-zoom="${name}"]`).addEventListener("click", act);
  }
  new ResizeObserver(resize).observe(canvas);
  new MutationObserver(renew).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", renew);
  return { show, hide, pan, focus: () => canvas.focus() };
})();
