// The wall: units with their facets' images. Only what is near the screen is in the document.
const wall = (() => {
  const box = dom.byId("wall");
  const margin = 700;  // pixels above and below the screen
  let items = [];
  let order = [];
  let density = "facets";
  let focused = null;  // the unit that the tab key reaches
  let shown = new Map();
  let isFast = false;

  const layOutFacets = (width) => {
    const small = width < 600;
    const [target, gap, inner, between] = small ? [104, 14, 4, 22] : [136, 22, 4, 28];
    const most = Math.max(1, Math.floor((width + inner) / (target + inner)));
    let top = 0;
    let row = [];
    let used = 0;
    const close = (last) => {
      const slots = row.reduce((sum, one) => sum + one.columns, 0);
      const room = width - gap * (row.length - 1) - row.reduce((sum, one) => sum + inner * (one.columns - 1), 0);
      const tile = Math.floor(Math.min(room / slots, (last ? 1 : 1.8) * target) * 100) / 100;
      let left = 0;
      let tallest = 0;
      const caption = 6 + 19 * Math.max(...row.map(({ unit, columns }) => 1 + (unit.labels !== "") + (columns === 1)));
      for (const { unit, columns } of row) {
        const lines = Math.max(1, Math.ceil(unit.n_facets / columns));
        const own = columns * tile + inner * (columns - 1);
        const height = lines * (tile + inner) + caption;
        items.push({ unit, left, top, width: own, height, tile });
        left += own + gap;
        tallest = Math.max(tallest, height);
      }
      top += tallest + between;
      row = [];
      used = 0;
    };
    for (const unit of order) {
      const columns = Math.ceil(Math.max(unit.n_facets, 1) / Math.ceil(Math.max(unit.n_facets, 1) / most));
      const needs = columns * (target + inner) - inner;
      if (row.length && used + gap + needs > width) close(false);
      used += (row.length ? gap : 0) + needs;
      row.push({ unit, columns });
    }
    if (row.length) close(true);
    return top;
  };

  const layOutMembers = (width) => {
    const tile = Math.round(Math.max(76, Math.min(128, (width - 24) / 10)));
    let top = 0;
    for (const unit of order) {
      const height = 46 + Math.max(1, unit.n_facets) * (tile + 6);
      items.push({ unit, left: 0, top, width, height, tile });
      top += height + 30;
    }
    return top;
  };

  const figures = (unit) => {
    if (unit.status !== "done") return unit.status;
    return `${dom.count(unit.n_facets, "facet")}${unit.n_facets > 1 ? ` · ${dom.figure(unit.multifacetedness)}` : ""}`;
  };
  const image = (source, more) => dom.make("img", {  // while the wall flies by, images wait
    [isFast ? "data-src" : "src"]: source, alt: "", decoding: "async", draggable: "false", ...more,
  });
  const picture = (unit, facet) => image(data.image(unit, facet), { "data-small": "", title: unit.facetLabels[facet] || null });

  const card = ({ unit, left, top, width, height, tile }, place) => {
    const facets = Array.from({ length: unit.n_facets }, (_, facet) => facet);
    const pictures = dom.make("span", { class: "pictures" }, facets.map((facet) => (density === "members"
      ? dom.make("span", { class: "line" }, picture(unit, facet),
        image(data.members(unit, facet), { class: "sheet" }))
      : picture(unit, facet))), facets.length === 0 && dom.make("span", { class: "nothing" }, unit.status));
    const caption = dom.make("span", { class: "caption" }, dom.make("b", {}, dom.name(unit.name)),
      unit.labels && dom.make("i", {}, dom.name(unit.labels)), dom.make("small", { title: "number of facets · multifacetedness" }, figures(unit)));
    const link = dom.make("a", { href: state.hash({ unit: unit.name }), tabindex: unit === focused ? 0 : -1,
      "data-unit": unit.position }, density === "members" ? [caption, pictures] : [pictures, caption]);
    const element = dom.make("div", { class: `unit ${density}${unit.n_facets < 2 ? " narrow" : ""}`, role: "listitem", "aria-setsize": order.length,
      "aria-posinset": place + 1 }, link);
    Object.assign(element.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
    element.style.setProperty("--tile", `${tile}px`);
    return element;
  };

  const first = (y) => {  // the first item that ends below y; rows are at most as tall as the margin
    let [low, high] = [0, items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (items[middle].top < y) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const draw = (all = false) => {
    if (box.hidden || density === "table") return;
    const y = window.scrollY - (box.getBoundingClientRect().top + window.scrollY);
    const [from, to] = all ? [0, items.length] : [Math.max(0, first(y - margin)), first(y + window.innerHeight + margin)];
    const start = from > 0 ? first(items[from - 1].top) : 0;  // the whole row before
    const active = document.activeElement?.closest?.("[data-unit]")?.dataset.unit;
    const wanted = new Map();
    for (let place = start; place < to; place += 1) wanted.set(items[place].unit, place);
    for (const [unit, element] of shown) {
      if (!wanted.has(unit) && String(unit.position) !== active) {
        element.remove();
        shown.delete(unit);
      }
    }
    const added = [];
    for (const [unit, place] of wanted) {
      if (shown.has(unit)) continue;
      const element = card(items[place], place);
      shown.set(unit, element);
      added.push(element);
    }
    box.append(...added);
    if (!shown.has(focused) && wanted.size) reach(wanted.keys().next().value);
  };
  const reach = (unit) => {
    const link = (one) => shown.get(one)?.querySelector("a");
    link(focused)?.setAttribute("tabindex", -1);
    focused = unit;
    link(unit)?.setAttribute("tabindex", 0);
  };

  const show = (found, now) => {
    order = found;
    density = now.density;
    box.hidden = false;
    items = [];
    isFast = false;
    shown = new Map();
    const bottom = density === "members" ? layOutMembers(box.clientWidth) : layOutFacets(box.clientWidth);
    box.replaceChildren();
    box.style.height = `${bottom}px`;
    if (!order.includes(focused)) focused = order[0] ?? null;
    draw();
  };
  const hide = () => { box.hidden = true; };

  const itemOf = (unit) => items.find((item) => item.unit === unit);
  const focus = (unit) => {
    const item = itemOf(unit);
    if (!item) return;
    const y = box.getBoundingClientRect().top + item.top;
    const bar = dom.byId("toolbar").offsetHeight + 8;
    if (y < bar || y + item.height > window.innerHeight) window.scrollBy(0, y - Math.max(bar, (window.innerHeight - item.height) / 3));
    draw();
    reach(unit);
    shown.get(unit)?.querySelector("a").focus({ preventScroll: true });
  };
  const move = (key) => {
    const item = itemOf(focused);
    if (!item) return false;
    const place = items.indexOf(item);
    const middle = item.left + item.width / 2;
    const nearest = (rows) => rows.sort((a, b) => Math.abs(a.left + a.width / 2 - middle) - Math.abs(b.left + b.width / 2 - middle))[0];
    const tops = (top) => items.filter((one) => one.top === top);
    const target = {
      ArrowLeft: () => items[place - 1],
      ArrowRight: () => items[place + 1],
      ArrowUp: () => nearest(tops(items[first(item.top) - 1]?.top)),
      ArrowDown: () => nearest(tops(items[first(item.top + 1)]?.top)),
      Home: () => items[0],
      End: () => items.at(-1),
    }[key]?.();
    if (target) focus(target.unit);
    return Boolean(target);
  };

  let due = false;
  let settled = 0;
  let last = { y: 0, time: 0 };
  const settle = () => {
    isFast = false;
    for (const waiting of box.querySelectorAll("img[data-src]")) {
      waiting.src = waiting.dataset.src;
      delete waiting.dataset.src;
    }
  };
  const scroll = (time) => {
    due = false;
    isFast = Math.abs(window.scrollY - last.y) > 4 * Math.max(16, time - last.time);  // pixels per millisecond
    last = { y: window.scrollY, time };
    draw();
    clearTimeout(settled);
    settled = setTimeout(settle, 100);
  };
  window.addEventListener("scroll", () => {
    if (!due && !box.hidden) requestAnimationFrame(scroll);
    due = !box.hidden;
  }, { passive: true });
  window.addEventListener("beforeprint", () => draw(true));
  window.addEventListener("afterprint", () => draw());
  box.addEventListener("focusin", (event) => {
    const link = event.target.closest("[data-unit]");
    if (link) reach(data.units[Number(link.dataset.unit)]);
  });
  box.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey && move(event.key)) event.preventDefault();
  });
  return { show, hide, focus };
})();
