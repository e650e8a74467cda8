// The table of units: one row each; only rows near the screen are in the document.
const table = (() => {
  const box = dom.byId("table");
  const body = box.querySelector("tbody");
  const height = 44;
  const margin = 12;  // rows above and below the screen
  const cells = [
    ["n_facets", (unit) => (unit.status === "done" ? unit.n_facets : "–")],
    ["multifacetedness", (unit) => dom.figure(unit.multifacetedness)],
    ["p_value", (unit) => dom.pValue(unit.p_adjusted)],
    ["stability", (unit) => dom.figure(unit.stability)],
    ["coverage", (unit) => dom.percent(unit.coverage)],
    ["retention", (unit) => dom.percent(unit.retention)],
    ["label", (unit) => (unit.labels ? dom.make("bdi", { title: unit.labels }, unit.labels) : "")],
    ["status", (unit) => unit.status],
  ];
  let order = [];
  let range = [-1, -1];

  const row = (unit, place) => dom.make("tr", { "aria-rowindex": place + 2, "data-row": unit.position },
    dom.make("th", { scope: "row" }, dom.make("a", { href: state.hash({ unit: unit.name }) }, dom.name(unit.name))),
    dom.make("td", { class: "thumbs" }, dom.make("span", {}, unit.sizes.map((_, facet) => dom.make("img", {
      src: data.image(unit, facet), alt: "", decoding: "async", width: 32, height: 32 })))),
    cells.map(([name, text]) => dom.make("td", { class: `of-${name}` }, text(unit))));
  const spacer = (n) => {
    const made = dom.make("tr", { class: "spacer", "aria-hidden": "true" }, dom.make("td", { colspan: cells.length + 2 }));
    made.style.height = `${n * height}px`;
    return made;
  };
  const draw = (always = false, all = false) => {
    if (box.hidden) return;
    const above = -body.getBoundingClientRect().top;
    const from = all ? 0 : Math.max(0, Math.min(Math.floor(above / height) - margin, order.length - margin));
    const to = all ? order.length : Math.min(order.length, Math.ceil((above + window.innerHeight) / height) + margin);
    if (!always && from === range[0] && to === range[1]) return;
    range = [from, to];
    if (always || body.children.length < 2) body.replaceChildren(spacer(0), spacer(0));
    const wanted = order.slice(from, to);
    const positions = new Set(wanted.map((unit) => String(unit.position)));
    for (const one of body.querySelectorAll("[data-row]")) if (!positions.has(one.dataset.row)) one.remove();
    let next = body.firstElementChild.nextElementSibling;  // rows that stay aren't moved: they may be clicked just now
    wanted.forEach((unit, n) => {
      if (next.dataset.row === String(unit.position)) next = next.nextElementSibling;
      else next.before(row(unit, from + n));
    });
    body.firstElementChild.style.height = `${from * height}px`;
    body.lastElementChild.style.height = `${(order.length - to) * height}px`;
  };

  const show = (found, now) => {
    order = found;
    box.hidden = false;
    box.querySelector("table").setAttribute("aria-rowcount", order.length + 1);
    for (const button of box.querySelectorAll("[data-sort]")) {
      const chosen = button.dataset.sort === now.sort;
      const head = button.closest("th");
      if (chosen) head.setAttribute("aria-sort", query.isDescending(now) ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    draw(true);
  };
  const hide = () => { box.hidden = true; };
  const focus = (unit) => {
    const place = order.indexOf(unit);
    if (place < 0) return;
    const y = body.getBoundingClientRect().top + place * height;
    if (y < 120 || y > window.innerHeight - height) window.scrollBy(0, y - window.innerHeight / 3);
    draw();
    body.querySelector(`[data-row="${unit.position}"] a`)?.focus({ preventScroll: true });
  };

  for (const button of box.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const again = state.now.sort === button.dataset.sort;
      state.go({ sort: button.dataset.sort, reverse: again && state.now.reverse === "" ? "1" : "" });
    });
  }
  box.addEventListener("keydown", (event) => {
    const place = order.findIndex((unit) => String(unit.position) === event.target.closest("[data-row]")?.dataset.row);
    const target = { ArrowUp: place - 1, ArrowDown: place + 1, Home: 0, End: order.length - 1 }[event.key];
    if (place < 0 || target === undefined || !order[target]) return;
    event.preventDefault();
    focus(order[target]);
  });
  window.addEventListener("scroll", () => requestAnimationFrame(() => draw()), { passive: true });
  window.addEventListener("beforeprint", () => draw(true, true));
  window.addEventListener("afterprint", () => draw(true));
  return { show, hide, focus };
})();
