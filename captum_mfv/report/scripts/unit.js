// One unit: its facets with what is measured of them, the same seen by other units, and the command of its run.
const unitView = (() => {
  const box = dom.byId("unit");
  const { make, name } = dom;

  const stat = (term, value, ...text) => make("div", {}, make("dt", {}, term), make("dd", {}, make("strong", {}, value), text));
  const figures = (unit) => make("dl", { class: "figures" },
    stat(unit.n_facets === 1 ? "facet" : "facets", unit.n_facets,
      `${unit.n_facets === 1 ? "group" : "groups"} of similar images among the ${unit.n_images} that activate the unit most.`),
    stat("multifacetedness", dom.figure(unit.multifacetedness),
      "how much better several clusters describe these images than one does; 0 means one facet."),
    stat("p-value of one facet", dom.pValue(unit.p_adjusted),
      `corrected for the number of units of the layer (false discovery rate); ${dom.pValue(unit.p_value)} before. Below .05, several facets are likely.`),
    unit.coverage !== null && stat("in stable facets", dom.percent(unit.coverage),
      "of the unit's activation is in facets that are found again when the images are resampled (stability of at least .6)."),
    stat("show their own facet", `${Math.round(unit.retention * unit.n_facets)} of ${unit.n_facets}`,
      unit.n_facets === 1 ? "with one facet, this is no test."
        : "synthesized images are nearest to the center of their own facet, by the network that made them; by chance, 1 is."));

  const fact = (term, ...text) => make("div", {}, make("dt", {}, term), make("dd", {}, text));
  const stable = (row) => {
    const [low, high] = row.stability_interval ?? [];
    return fact("Stability", make("strong", {}, dom.figure(row.stability)),
      low === undefined ? "" : ` (${dom.figure(low)} to ${dom.figure(high)} in 95 % of samples)`,
      row.stability < 0.6 ? ", low: resampled images often don't show this facet" : ": resampled images show the facet again");
  };
  const auroc = (score) => `${dom.figure(score.auroc[0])} (${dom.figure(score.auroc[1])} to ${dom.figure(score.auroc[2])})`;
  const words = (score) => score.others.flatMap(([word, value], place) => [place ? ", " : " Next: ", name(word), ` ${dom.figure(value)}`]);
  const image = (score) => (score.agrees === null ? "" : `; the synthesized image ${score.agrees ? "shows it too" : "doesn’t show it"}`);
  const labeled = (label, score) => fact("Label", ...(label
    ? [make("strong", {}, name(label)), `, AUROC ${auroc(score)}${image(score)}.`]
    : [make("strong", {}, "none"), " of the words holds; the best, ", name(score.best), `, has an AUROC of ${auroc(score)}.`]), ...words(score));
  const meaning = (unit, score) => data.namer && make("p", { class: "note" },
    unit.n_facets > 1
      ? "A label is a word of which a facet’s images have more than those of the unit’s other facets; the unit’s label, one of which its images have more than images of the layer’s other units."
      : "A label is a word of which these images have more than images of the layer’s other units.",
    " It was chosen, of ", dom.count(data.namer[1], "word"), " scored by ", name(data.namer[0]), ", on half of the images and tested on the other half. AUROC: the share of pairs of images in which the facet’s has more of it; .5 is chance.",
    unit.n_facets > 1 && score !== null && (unit.label ? [" The unit’s label has an AUROC of ", auroc(score), "."]
      : [" The unit has no label; the best word, ", name(score.best), `, has an AUROC of ${auroc(score)}.`]));
  const neighbors = (unit, index, row) => row.neighbors.length > 0 && make("div", { class: "neighbors" },
    make("h3", {}, "Nearest facets of other units"),
    make("ul", {}, row.neighbors.map(([position, facet, cosine]) => {
      const other = data.units[position];
      return make("li", {}, make("a", { href: state.hash({ unit: other.name }), title: `cosine of the codes ${dom.figure(cosine)}` },
        make("img", { src: data.image(other, facet), alt: "", loading: "lazy", decoding: "async" }),
        make("span", {}, name(other.name)), other.facetLabels[facet] && make("span", {}, name(other.facetLabels[facet])), make("span", { class: "sr" }, `, facet ${facet}, cosine ${dom.figure(cosine)}`)));
    })));
  const others = (row) => make("details", {},
    make("summary", {}, `The ${row.members.length} nearest images`),
    make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "The nearest images" },
      make("table", { class: "grid" },
        make("thead", {}, make("tr", {}, ["image", "activation", "distance to the center"].map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, row.members.map(([path, activation, distance]) => make("tr", {},
          make("th", { scope: "row" }, name(path)), make("td", {}, dom.number(activation)), make("td", {}, dom.number(distance))))))));

  const card = (unit, row, index, score) => {
    const share = row.size / unit.sizes.reduce((sum, size) => sum + size, 0);
    const title = `facet-${index}-title`;
    const above = row.activation_percentile === 1 ? "all" : dom.percent(row.activation_percentile);
    return make("article", { class: "facet", "aria-labelledby": title },
      make("img", { class: "result", src: data.image(unit, index), alt: `Synthesized image of facet ${index}`, "data-small": "" }),
      make("div", { class: "about" },
        make("h2", { id: title }, `Facet ${index}`, unit.facetLabels[index] && make("span", {}, " ", name(unit.facetLabels[index])),
          make("small", {}, `${dom.count(row.size, "image")} · ${dom.percent(share)}`)),
        data.isReal && make("img", { class: "sheet", src: data.members(unit, index), alt: `The ${Math.min(row.size, 9)} images nearest to the center of facet ${index}` }),
        make("dl", { class: "facts" },
          fact("Activation", make("strong", {}, dom.number(row.image_activation)),
            `, above ${above} of the real images; mean of the facet's real images ${dom.number(row.activation)}`),
          fact("Nearest facet", make("strong", {}, row.retention ? "its own" : "another"), ", in the codes of the network that made the image"),
          row.stability !== null && stable(row), score && labeled(unit.facetLabels[index], score)),
        neighbors(unit, index, row), data.isReal && others(row)));
  };

  const command = (text) => make("section", { "aria-labelledby": "command-title" },
    make("h2", { id: "command-title" }, "Open as a run"),
    text === null ? make("p", { class: "note" }, "captum-mfv run reads a folder of images, and needs the index of a unit; it can't repeat this unit.") : [
      make("p", { class: "note" }, "This command makes the whole page of the unit, with attributions and a map of its images."),
      make("div", { class: "command" },
        make("pre", { tabindex: 0, role: "group", "aria-label": "The command", dir: "ltr" }, make("code", { id: "command" },
          text.split(" ").flatMap((word, n) => (n ? [" ", make("span", {}, word)] : [make("span", {}, word)])))),
        make("button", { type: "button", class: "plain-button", "data-copy": "command" }, "Copy"),
        make("span", { class: "sr", role: "status", "data-copied": "" }))]);

  const steps = (unit, found) => {
    const place = found.places.get(unit) ?? -1;
    const step = (other, text, rel) => (other
      ? make("a", { class: "plain-button", rel, href: state.hash({ unit: other.name }), "aria-label": `${text} unit, ${other.name}` }, text)
      : make("span", { class: "plain-button", "aria-disabled": "true" }, text));
    return make("nav", { class: "steps", "aria-label": "Units" },
      make("a", { class: "plain-button", href: state.hash({ unit: "" }), "data-back": "" }, state.now.view === "map" ? "‹ Map" : "‹ All units"),
      make("span", {}, place < 0 ? "not among the units found" : `${(place + 1).toLocaleString("en")} of ${found.order.length.toLocaleString("en")}`),
      step(place < 0 ? null : found.order[place - 1], "Previous", "prev"), step(place < 0 ? null : found.order[place + 1], "Next", "next"));
  };

  const show = async (found, now) => {
    box.hidden = false;
    const unit = data.byName.get(now.unit);
    const title = make("h1", { id: "unit-title", tabindex: -1 }, name(now.unit));
    if (!unit) {
      box.replaceChildren(make("nav", { class: "steps" }, make("a", { class: "plain-button", href: state.hash({ unit: "" }) }, "‹ All units")),
        title, make("p", {}, "This atlas has no such unit."));
      return;
    }
    const head = [steps(unit, found), title, unit.label && make("p", { class: "lead" }, name(unit.label))];
    if (unit.status !== "done") {
      box.replaceChildren(...head.filter(Boolean), make("p", {}, unit.status === "dead" ? "Dead: no image activates this unit above zero."
        : "Failed: "), unit.error ? make("p", {}, name(unit.error)) : "");
    } else {
      const { rows, command: text, scores } = await data.facetsOf(unit);
      if (state.now !== now) return;  // another unit was opened meanwhile
      const parts = [[figures(unit), scores && meaning(unit, scores[0])], make("div", { class: "cards" }, rows.map((row, index) => card(unit, row, index, scores?.[index + 1])))];
      box.replaceChildren(...head.filter(Boolean), rows.length < 2 ? "" : make("ul", { class: "strip", "aria-label": "The facets' images" },
        rows.map((row, index) => make("li", {}, make("button", { type: "button", "aria-label": `Go to facet ${index}`,
          onclick: () => box.querySelectorAll(".facet")[index].scrollIntoView({ block: "start" }) },
        make("img", { src: data.image(unit, index), alt: "", "data-small": "" }))))),
      ...(rows.length < 2 ? parts.reverse() : parts).flat().filter(Boolean), data.isReal ? command(text)
        : make("p", { class: "note" }, "The real images nearest to each facet aren't published."));
    }
    window.scrollTo(0, 0);
    title.focus({ preventScroll: true });
  };
  const hide = () => {
    box.hidden = true;
    box.replaceChildren();
  };
  const step = (direction) => box.querySelector(`[rel="${direction}"]`)?.click();
  return { show, hide, step };
})();
