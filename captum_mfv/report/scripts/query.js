// Which units are shown, and in which order.
const query = (() => {
  const least = { multifacetedness_min: "multifacetedness", stability_min: "stability", coverage_min: "coverage",
    retention_min: "retention", facets_min: "n_facets" };
  const descending = new Set(["multifacetedness", "n_facets", "stability", "coverage", "retention"]);
  const ranks = { done: 0, failed: 1, dead: 2 };
  let known = { key: null, order: [], places: new Map() };

  const accepts = (now) => {
    const words = now.q.toLowerCase().split(/\s+/).filter(Boolean);
    const bounds = Object.entries(least).filter(([bound]) => now[bound] !== "").map(([bound, name]) => [name, Number(now[bound])]);
    const layer = now.layer === "" ? -1 : data.layers.findIndex((one) => one.name === now.layer);
    return (unit) => words.every((word) => unit.text.includes(word))
      && (now.layer === "" || unit.layer === layer)
      && (now.status === "" || unit.status === now.status)
      && (now.label === "" || (unit.labels !== "") === (now.label === "with"))
      && (now.facets_max === "" || unit.n_facets <= Number(now.facets_max))
      && (now.p_max === "" || (unit.p_adjusted ?? 2) <= Number(now.p_max))
      && bounds.every(([name, bound]) => (unit[name] ?? -1) >= bound);
  };

  const isDescending = ({ sort, reverse }) => descending.has(sort) !== (reverse === "1");
  const comparison = (now) => {
    const { sort } = now;
    const direction = isDescending(now) ? -1 : 1;
    if (sort === "unit") return (a, b) => direction * (a.position - b.position);
    const value = { label: (unit) => unit.labels || null, status: (unit) => ranks[unit.status] }[sort]
      ?? ((unit) => (unit.status === "done" ? unit[sort] ?? null : null));
    return (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a.position - b.position;  // without a value: last
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return direction * order || (b.multifacetedness ?? -1) - (a.multifacetedness ?? -1) || a.position - b.position;
    };
  };

  const run = (now) => {
    const key = JSON.stringify([now.sort, now.reverse, ...state.filters.map((name) => now[name])]);
    if (key !== known.key) {
      const order = data.units.filter(accepts(now)).sort(comparison(now));
      known = { key, order, places: new Map(order.map((unit, place) => [unit, place])) };
    }
    return known;
  };
  return { run, isDescending };
})();
