// The files in data/: each is a script that calls atlasChunk. The page adds them as they are needed.
const data = (() => {
  const chunks = new Map();
  const { nonce } = document.currentScript;  // scripts without it don't run

  window.atlasChunk = (name, value) => chunks.get(name)?.resolve(value);

  const load = (name) => {
    if (chunks.has(name)) return chunks.get(name).promise;
    const chunk = {};
    chunk.promise = new Promise((resolve, reject) => Object.assign(chunk, { resolve, reject }));
    chunks.set(name, chunk);
    const script = document.createElement("script");
    script.nonce = nonce;
    script.src = `data/${name}.js`;
    script.onload = () => {
      script.remove();
      chunk.reject(new Error(`data/${name}.js holds no data`));  // without effect if it did
    };
    script.onerror = () => {
      script.remove();
      chunks.delete(name);
      chunk.reject(new Error(`data/${name}.js can't be loaded`));
    };
    document.head.append(script);
    return chunk.promise;
  };

  const units = [];
  const byName = new Map();
  const layers = [];
  let perChunk = 1;
  let isReal = true;  // whether members and their images are among the files
  let namer = null;  // name of what labeled the facets, and number of its words

  const open = async () => {
    const table = await load("units");
    perChunk = table.chunk;
    isReal = table.real;
    namer = table.namer;
    layers.push(...table.layers);
    const figures = ["n_images", "peak", "multifacetedness", "p_value", "p_adjusted", "coverage", "retention", "stability"];
    table.index.forEach((index, position) => {
      const layer = table.layers[table.layer[position]];
      const unit = { position, index, layer: table.layer[position], folder: layer.folder, name: `${layer.name}:${index}` };
      unit.status = table.status[position];
      unit.error = table.error[position] ?? null;
      unit.label = table.label[position] ?? "";
      unit.facetLabels = table.labels[position] ?? [];
      const others = [...new Set(unit.facetLabels)].filter((label) => label && label !== unit.label).join(", ");
      unit.labels = [unit.label, others].filter(Boolean).join(": ");  // as it is shown, sorted and searched
      unit.sizes = table.sizes[position];
      unit.n_facets = unit.sizes.length;
      for (const name of figures) unit[name] = table[name][position];
      unit.text = `${unit.name} ${unit.labels}`.toLowerCase();
      units.push(unit);
      byName.set(unit.name, unit);
    });
  };

  const facetsOf = async (unit) => {
    const chunk = await load(`facets-${Math.floor(unit.position / perChunk)}`);
    const place = unit.position % perChunk;
    return { rows: chunk.rows[place], command: chunk.commands[place], scores: chunk.scores[place] };
  };

  const image = (unit, facet) => `images/${unit.folder}/${unit.index}_${facet}.webp`;
  const members = (unit, facet) => `images/${unit.folder}/${unit.index}_${facet}_members.webp`;
  return { open, load, units, byName, layers, facetsOf, image, members, get isReal() { return isReal; }, get namer() { return namer; } };
})();
