// Sorting, choosing rows, hover. The page is complete without it, and it asks nothing of the network.
"use strict";
(() => {
  const all = (where, what) => Array.from(where.querySelectorAll(what));
  const number = (text) => {
    const found = text.replace(/,/g, "").match(/^\s*[-−]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return found ? Number(found[0].replace("−", "-")) : null;
  };

  // a click on a heading sorts the rows under it, each part of a table by itself; unknown cells stay last
  const sort = (table, place) => {
    const head = table.tHead.rows[0].cells[place];
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[place].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [number(value(a)), number(value(b))];
      if (x === null && y === null) return value(a).localeCompare(value(b)) * (down ? 1 : -1);
      if (x === null || y === null) return x === null ? 1 : -1;
      return down ? y - x : x - y;
    };
    const body = table.tBodies[0];
    const parts = [[]];
    for (const row of Array.from(body.rows)) {
      if (row.classList.contains("part")) parts.push([row, []]);
      else (parts.length === 1 ? parts[0] : parts[parts.length - 1][1]).push(row);
    }
    const [first, ...rest] = parts;
    body.append(...first.sort(compare));
    for (const [heading, rows] of rest) body.append(heading, ...rows.sort(compare));
  };
  for (const table of all(document, ".wide table")) {
    if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
    table.classList.add("sortable");
    Array.from(table.tHead.rows[0].cells).forEach((cell, place) => {
      cell.tabIndex = 0;
      cell.title = "sort";
      cell.addEventListener("click", () => sort(table, place));
      cell.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(table, place); });
    });
  }

  for (const section of all(document, "section")) {
    const marked = all(section, "[data-row]");
    const drawn = new Set(all(section, "svg [data-row]").map((one) => one.dataset.row));
    const labels = [...new Set(all(section, "tr[data-row]").map((one) => one.dataset.row))].filter((one) => drawn.has(one));
    if (labels.length < 2) continue;

    // buttons above the first figure hide rows in all figures of the section
    const chosen = new Set(labels);
    const bar = document.createElement("div");
    bar.className = "chooser";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "rows that the figures show");
    const show = () => {
      for (const one of marked) {
        one.classList.toggle("unchosen", labels.includes(one.dataset.row) && !chosen.has(one.dataset.row));
      }
      for (const button of all(bar, "[data-of]")) button.setAttribute("aria-pressed", chosen.has(button.dataset.of));
    };
    const button = (text, act) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.addEventListener("click", () => { act(); show(); });
      bar.append(made);
      return made;
    };
    button("all", () => labels.forEach((one) => chosen.add(one)));
    button("none", () => chosen.clear());
    // the colour of a row's lines, so that a figure is read where its legend is out of sight, as on a phone
    const colour = (label) => {
      const drawn = marked.filter((one) => one.dataset.row === label && one.closest("svg"));
      const styles = drawn.flatMap((one) => all(one, "[style]")).map((one) => one.getAttribute("style"));
      return styles.map((text) => text.match(/(?:stroke|fill): (var\(--c\d\)|#[0-9a-f]{6})/i)).find(Boolean)?.[1];
    };
    for (const label of labels) {
      const made = button(label, () => chosen.delete(label) || chosen.add(label));
      made.dataset.of = label;
      made.style.setProperty("--row", colour(label) ?? "transparent");
    }
    const figures = section.querySelector(".plots");
    figures.before(bar);
    show();

    // the pointer on a row, in a table or a figure, picks it out in the figures
    const pick = (label) => {
      section.classList.toggle("picked", label !== undefined);
      for (const one of marked) {
        const same = one.dataset.row === label;
        if (one.closest("svg")) one.classList.toggle("other", label !== undefined && !same);
        else one.classList.toggle("hovered", same);
      }
    };
    for (const one of marked) {
      one.addEventListener("pointerenter", () => { if (drawn.has(one.dataset.row)) pick(one.dataset.row); });
      one.addEventListener("pointerleave", () => pick(undefined));
    }
  }
})();
