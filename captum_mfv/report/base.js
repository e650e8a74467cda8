"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  const stored = () => {
    try { return localStorage.getItem("captum-mfv-theme"); } catch { return null; }  // some browsers refuse it to files
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    for (const button of document.querySelectorAll("[data-theme-switch]")) button.setAttribute("aria-pressed", isDark());
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  system.addEventListener("change", show);
  show();

  const switchTheme = () => {
    const theme = isDark() ? "light" : "dark";
    root.dataset.theme = theme;
    try { localStorage.setItem("captum-mfv-theme", theme); } catch { /* the switch works until the page is closed */ }
    show();
  };

  const copy = async (button) => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    document.querySelector("[data-copied]").textContent = "The command was copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };

  document.addEventListener("click", (event) => {
    if (event.target.closest?.("[data-theme-switch]")) switchTheme();
    const button = event.target.closest?.("[data-copy]");
    if (button) copy(button);
  });
})();
