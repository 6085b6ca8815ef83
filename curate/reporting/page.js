"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));

  // Light or dark: as the system has it, until it is chosen here.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const theme = $("#theme");
  const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  name();

  // A patch's place in its photograph.
  const photos = JSON.parse($("#photos").textContent);
  const viewer = $("#viewer");
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes) => {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const show = (tile) => {
    const button = $("button", tile);
    const [y, x, size, height, width] = button.dataset.box.split(" ");
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": button.title });
    const photo = photos[button.dataset.photo];
    svg.append(draw("image", { href: photo, width, height, preserveAspectRatio: "none" }));
    for (const kind of ["border casing", "border k1"])
      svg.append(draw("rect", { class: kind, x, y, width: size, height: size }));
    const patch = $("img", tile).cloneNode();
    const details = $("dl", tile).cloneNode(true);
    details.className = "facts";
    $("#viewer-title").textContent = $(".from", tile).textContent;
    $(".place", viewer).replaceChildren(svg, patch);
    $(".details", viewer).replaceChildren(details);
    viewer.showModal();
  };
  for (const tile of all(".tile")) $("button", tile).addEventListener("click", () => show(tile));
  $("#viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

  // Maps: how strong the score is drawn, and whose windows.
  const maps = $("#maps");
  if (maps) {
    const section = $("#maps-section"); // its legend too
    $("#heat").addEventListener("input", (event) => {
      const there = event.target.value > 0;
      section.style.setProperty("--heat", event.target.value / 100);
      section.style.setProperty("--grey", there ? 1 : 0);
      section.style.setProperty("--contrast", there ? 0.6 : 1);
    });
    for (const box of all("[data-show]"))
      box.addEventListener("change", () => maps.classList.toggle(`show${box.dataset.show}`, box.checked));
  }

  // Tables: sorted by a click on a heading, filtered by a name.
  const value = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  };
  for (const table of all("table.sortable")) {
    const headings = all("th", table);
    headings.forEach((heading, column) => {
      $("button", heading).addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") !== "descending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const compare = (a, b) => {
          const [one, two] = [value(a, column), value(b, column)];
          return typeof one === "number" ? one - two : one.localeCompare(two);
        };
        body.append(...Array.from(body.rows).sort((a, b) => (down ? -1 : 1) * compare(a, b)));
      });
    });
  }
  const find = $("#find");
  if (find) find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase();
    for (const row of $("#images").tBodies[0].rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
})();
