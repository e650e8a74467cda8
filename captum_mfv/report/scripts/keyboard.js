// Keys that work everywhere, and what starts the page.
(() => {
  const help = dom.byId("help");
  const toolbar = dom.byId("toolbar");
  const views = { wall: (now) => (now.density === "table" ? table : wall), map: () => map };
  const title = document.title;
  let scrolled = 0;

  const show = async (now, before) => {
    const found = query.run(now);
    const from = before.unit !== now.unit ? data.byName.get(before.unit) : null;
    if (!before.unit && now.unit) scrolled = window.scrollY;
    const chosen = now.unit ? unitView : views[now.view](now);
    for (const view of [wall, table, map, unitView]) if (view !== chosen) view.hide();
    for (const part of [toolbar, dom.byId("intro")]) part.hidden = now.unit !== "";
    document.body.dataset.view = now.unit ? "unit" : now.view;
    document.title = now.unit ? `${now.unit} · ${title}` : title;
    controls.show(now, found);
    dom.byId("none").hidden = now.unit !== "" || found.order.length > 0;
    if (chosen === wall || chosen === table) {
      chosen.show(found.order, now);
      if (before.unit && !now.unit) window.scrollTo(0, scrolled);
      if (from && !now.unit) chosen.focus(from);
    } else {
      await chosen.show(found, now);
      if (chosen === map && from) map.focus();
    }
  };
  const guarded = (now, before) => show(now, before).catch(fail);
  const fail = (error) => {
    const place = dom.byId("failure");
    place.hidden = false;
    place.textContent = `${error.message}. Keep index.html in the atlas's folder, with the folders data and images; captum-mfv report writes both again.`;
  };

  const keys = {
    "/": () => {
      if (state.now.unit) state.go({ unit: "" });
      controls.search();
    },
    "?": () => help.showModal(),
    Escape: () => {
      if (state.now.unit) state.go({ unit: "" });
      else if (state.now.q) state.amend({ q: "" });
    },
    ArrowLeft: () => state.now.unit && unitView.step("prev"),
    ArrowRight: () => state.now.unit && unitView.step("next"),
  };
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const typing = event.target.matches("input, select, textarea, pre, .scroll");
    if (typing && event.key === "Escape" && event.target.type === "search") {
      event.preventDefault();
      if (state.now.q) state.amend({ q: "" });
      event.target.blur();
    }
    if (typing || !keys[event.key]) return;
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") event.preventDefault();
    keys[event.key]();
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();  // the hash is the state
    dom.byId("main").focus();
  });
  for (const button of document.querySelectorAll("[data-help]")) button.addEventListener("click", () => help.showModal());
  document.addEventListener("load", (event) => {  // small images are enlarged without smoothing
    const image = event.target;
    if (image instanceof HTMLImageElement && "small" in image.dataset) image.classList.toggle("pixels", image.naturalWidth <= 64);
  }, true);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width && !state.now.unit && state.now.view === "wall") guarded(state.now, state.now);
    width = window.innerWidth;
  });

  data.open().then(() => {
    controls.open();
    state.start(guarded);
    dom.byId("main").removeAttribute("aria-busy");
  }).catch(fail);
})();
