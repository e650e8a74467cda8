// What is shown, as the hash of the address: every state can be sent, and the browser's back and forward buttons work.
const state = (() => {
  const defaults = {
    unit: "", view: "wall", density: "facets", sort: "p_value", reverse: "", q: "", layer: "", status: "", label: "",
    facets_min: "", facets_max: "", p_max: "", multifacetedness_min: "", stability_min: "", coverage_min: "",
    retention_min: "", at: "",
  };
  const allowed = {
    view: ["wall", "map"], density: ["facets", "members", "table"], status: ["", "done", "dead", "failed"],
    sort: ["unit", "multifacetedness", "p_value", "n_facets", "stability", "coverage", "retention", "label", "status"],
    label: ["", "with", "without"], reverse: ["", "1"],
  };
  const filters = ["q", "layer", "status", "label", "facets_min", "facets_max", "p_max", "multifacetedness_min",
    "stability_min", "coverage_min", "retention_min"];
  const listeners = [];
  let current = defaults;

  const parse = (hash) => {
    const found = { ...defaults };
    for (const [name, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
      if (!Object.hasOwn(defaults, name) || (allowed[name] && !allowed[name].includes(value))) continue;
      if (value === "members" && name === "density" && !data.isReal) continue;
      if (/_(min|max)$/.test(name) && !(value !== "" && Number.isFinite(Number(value)))) continue;
      found[name] = value;
    }
    return found;
  };
  const hash = (changes = {}) => {
    const wanted = { ...current, ...changes };
    const given = Object.entries(wanted).filter(([name, value]) => value !== defaults[name]);
    return `#${new URLSearchParams(given).toString().replaceAll("%3A", ":").replaceAll("%2C", ",")}`;
  };

  const notify = () => {
    const before = current;
    current = parse(location.hash);
    for (const listener of listeners) listener(current, before);
  };
  const go = (changes) => {  // a step that the back button takes back
    const wanted = hash(changes);
    if (wanted === hash()) return;
    history.pushState(null, "", wanted);
    notify();
  };
  const amend = (changes, quietly = false) => {  // a step that it doesn't: typing, moving a slider, panning
    history.replaceState(null, "", hash(changes));
    if (quietly) current = parse(location.hash);
    else notify();
  };
  const cleared = () => Object.fromEntries(filters.map((name) => [name, ""]));
  const start = (listener) => {
    listeners.push(listener);
    window.addEventListener("popstate", notify);
    window.addEventListener("hashchange", () => { if (hash() !== hash(parse(location.hash))) notify(); });
    notify();
  };
  return { start, go, amend, hash, cleared, filters, get now() { return current; } };
})();
