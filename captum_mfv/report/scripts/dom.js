// Elements and numbers as text. Text from files becomes text nodes and attributes only, never markup.
const dom = (() => {
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "class") element.className = value;
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  };
  const name = (text) => make("bdi", {}, text);
  const byId = (id) => document.getElementById(id);

  const figure = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);
  const number = (value) => (Math.abs(value) < 1000 ? String(Number(value.toPrecision(3))) : Math.round(value).toLocaleString("en"));
  const pValue = (p) => (p === null || p === undefined ? "–" : p < 0.001 ? "< .001" : String(Number(p.toPrecision(2))).replace(/^0\./, "."));
  const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  return { make, name, byId, figure, percent, number, pValue, count };
})();
