"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  const show = (card, kind) => {
    const frame = card.querySelector(".frame");
    const layer = frame.querySelector(".layer");
    const slider = frame.querySelector("input");
    const compares = kind === "start" || kind === "plain";
    for (const button of all("[data-show]", card)) {
      const pressed = button.dataset.show === kind;
      button.setAttribute("aria-pressed", pressed);
      if (pressed) {
        layer.src = kind === "plain" ? document.getElementById("plain").src : button.querySelector("img").src;
        frame.querySelector(".left").textContent = button.textContent;
      }
    }
    layer.hidden = kind === null;
    slider.hidden = !compares;
    frame.classList.toggle("compare", compares);
    card.classList.toggle("attributed", kind === "attribution");
  };

  const cards = all(".card");
  for (const card of cards) {
    for (const button of all("[data-show]", card)) {
      button.addEventListener("click", () => show(card, button.getAttribute("aria-pressed") === "true" ? null : button.dataset.show));
    }
    const slider = card.querySelector(".frame input");
    slider.addEventListener("input", () => slider.parentElement.style.setProperty("--cut", `${slider.value}%`));
  }

  const everywhere = document.querySelector("[data-overlays]");
  everywhere?.addEventListener("click", () => {
    const on = everywhere.getAttribute("aria-pressed") !== "true";
    everywhere.setAttribute("aria-pressed", on);
    for (const card of cards) show(card, on && card.querySelector("[data-show=attribution]") ? "attribution" : null);
  });

  const map = document.querySelector(".map");
  if (map) {
    const svg = map.querySelector("svg");
    const dots = all("a.dot", svg);
    const tip = map.querySelector(".tip");
    const place = (dot) => { const { e, f } = dot.transform.baseVal.consolidate().matrix; return [e, f]; };

    const tell = (dot) => {
      const thumbnail = document.getElementById(`image-${dot.dataset.row}`);
      const picture = tip.querySelector("img");
      picture.hidden = !thumbnail;
      if (thumbnail) picture.src = thumbnail.src;
      tip.querySelector(".badge").replaceWith(document.querySelector(`[data-key="${dot.dataset.facet}"] .badge`).cloneNode(true));
      tip.querySelector("bdi").textContent = dot.dataset.name;
      tip.querySelector("small").textContent = `activation ${dot.dataset.activation}`;
      tip.hidden = false;
      const here = dot.querySelector("use").getBoundingClientRect();
      const frame = map.getBoundingClientRect();
      const left = here.left - frame.left + here.width / 2 - tip.offsetWidth / 2;
      const below = here.top < tip.offsetHeight + 16;
      tip.style.left = `${Math.max(4, Math.min(left, frame.width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${here.top - frame.top + (below ? here.height + 8 : -tip.offsetHeight - 8)}px`;
    };
    const hide = () => { tip.hidden = true; };
    const choose = (dot) => {
      for (const other of dots) other.setAttribute("tabindex", other === dot ? 0 : -1);
      dot.focus();
    };
    const next = (dot, key) => {
      const [x, y] = place(dot);
      const along = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
      let best = null, least = Infinity;
      for (const other of dots) {
        const [dx, dy] = place(other).map((value, axis) => value - [x, y][axis]);
        const ahead = dx * along[0] + dy * along[1];
        const aside = Math.abs(dx * along[1]) + Math.abs(dy * along[0]);
        if (ahead > 0 && ahead + 2 * aside < least) [best, least] = [other, ahead + 2 * aside];
      }
      return best;
    };
    dots.forEach((dot, number) => dot.setAttribute("tabindex", number ? -1 : 0));
    for (const dot of dots) {
      dot.addEventListener("pointerenter", () => tell(dot));
      dot.addEventListener("pointerleave", hide);
      dot.addEventListener("focus", () => tell(dot));
      dot.addEventListener("blur", hide);
      dot.addEventListener("keydown", (event) => {
        const target = event.key === "Home" ? dots[0] : event.key === "End" ? dots.at(-1)
          : event.key.startsWith("Arrow") ? next(dot, event.key) : null;
        if (event.key === "Escape") hide();
        if (target) choose(target);
        if (target || event.key.startsWith("Arrow")) event.preventDefault();
      });
    }
    for (const key of all("[data-key]")) {
      const light = (on) => {
        svg.classList.toggle("one", on);
        for (const dot of dots) dot.classList.toggle("lit", on && dot.dataset.facet === key.dataset.key);
      };
      for (const event of ["pointerenter", "focus"]) key.addEventListener(event, () => light(true));
      for (const event of ["pointerleave", "blur"]) key.addEventListener(event, () => light(false));
    }
  }
})();
