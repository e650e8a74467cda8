// The tool bar: search, sort, filters, density and views write the state; what is shown follows the state.
const controls = (() => {
  const bar = dom.byId("toolbar");
  const fields = [...bar.querySelectorAll("[data-key]")];
  const outputs = new Map([...bar.querySelectorAll("output")].map((one) => [one.htmlFor.value, one]));

  const isSlider = (field) => field.type === "range";
  for (const field of fields) {
    const key = field.dataset.key;
    const value = () => (isSlider(field) && field.value === field.min ? "" : field.value);
    const typed = field.type === "search" || isSlider(field) || field.type === "number";
    field.addEventListener(typed ? "input" : "change", () => (typed ? state.amend : state.go)({ [key]: value(), ...(key === "layer" ? { at: "" } : {}) }));
  }
  for (const button of bar.querySelectorAll("[data-set]")) {
    const [key, value] = button.dataset.set.split("=");
    button.addEventListener("click", () => state.go({ [key]: value }));
  }
  dom.byId("direction").addEventListener("click", () => state.go({ reverse: state.now.reverse ? "" : "1" }));
  for (const button of document.querySelectorAll("[data-clear]")) button.addEventListener("click", () => state.go(state.cleared()));

  const open = () => {
    const layers = bar.querySelector("[data-key=layer]");
    layers.append(...data.layers.map((layer) => dom.make("option", { value: layer.name }, layer.name)));
    layers.closest("label").hidden = data.layers.length < 2;
    const most = Math.max(1, ...data.units.map((unit) => unit.n_facets));
    for (const key of ["facets_min", "facets_max"]) bar.querySelector(`[data-key=${key}]`).max = most;
    bar.querySelector("[data-key=label]").closest("label").hidden = !data.units.some((unit) => unit.labels);
  };

  const show = (now, found) => {
    for (const field of fields) {
      const value = now[field.dataset.key];
      const wanted = isSlider(field) && value === "" ? field.min : value;
      if (field.value !== wanted) field.value = wanted;
    }
    for (const [id, output] of outputs) {
      const { value } = dom.byId(id);
      output.textContent = value === dom.byId(id).min ? "any" : `≥ ${Number(value).toFixed(2)}`;
    }
    for (const button of bar.querySelectorAll("[data-set]")) {
      const [key, value] = button.dataset.set.split("=");
      button.setAttribute("aria-pressed", now[key] === value);
    }
    const descending = query.isDescending(now);
    const direction = dom.byId("direction");
    direction.textContent = descending ? "↓" : "↑";
    direction.setAttribute("aria-label", descending ? "Descending; sort ascending" : "Ascending; sort descending");
    const n = state.filters.filter((key) => now[key] !== "" && key !== "q").length;
    dom.byId("n-filters").textContent = n ? ` (${n})` : "";
    for (const button of document.querySelectorAll("[data-clear]")) button.hidden = n === 0 && now.q === "";
    dom.byId("densities").hidden = now.view === "map";
    const all = data.units.length;
    dom.byId("count").textContent = found.order.length === all ? dom.count(all, "unit")
      : `${found.order.length.toLocaleString("en")} of ${dom.count(all, "unit")}`;
  };
  return { open, show, search: () => bar.querySelector("[type=search]").focus() };
})();
