"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Sorting: by value where a cell has one, else by text; what is missing stays last in both directions.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const text = cell.classList.contains("none") ? "" : cell.textContent.trim();
    return text === "" ? null : text;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const sort = (head) => {
    const table = head.closest("table");
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of all("thead th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = [...table.tBodies[0].rows].map((row) => [key(row, head.cellIndex), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return up ? compare(a, b) : compare(b, a);
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  };
  for (const head of all("table.sortable thead th[aria-sort]")) {
    head.firstElementChild.addEventListener("click", () => sort(head));
  }

  // One stop of the Tab key for each table's figures and each plot's points; arrow keys go on from there.
  const rove = (items, next) => {
    items.forEach((item, index) => item.setAttribute("tabindex", index === 0 ? "0" : "-1"));
    for (const item of items) {
      item.addEventListener("keydown", (event) => {
        const to = next(item, event.key);
        if (!to) return;
        event.preventDefault();
        item.setAttribute("tabindex", "-1");
        to.setAttribute("tabindex", "0");
        to.focus();
      });
    }
  };
  const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  for (const table of all("table.sortable")) {
    rove(all("tbody .n", table), (item, pressed) => {
      if (!step[pressed]) return null;
      const [dx, dy] = step[pressed];
      let cell = item.closest("td");
      do {
        const row = dy ? cell.parentNode[dy > 0 ? "nextElementSibling" : "previousElementSibling"] : cell.parentNode;
        cell = row && row.cells[cell.cellIndex + dx];
      } while (cell && !cell.querySelector(".n"));
      return cell && cell.querySelector(".n");
    });
  }
  for (const hits of all(".hits")) {
    const points = all("a", hits);
    rove(points, (item, pressed) => {
      if (!step[pressed]) return null;
      const [dx, dy] = step[pressed];
      return points[points.indexOf(item) + (dx || dy)];
    });
  }

  // Tooltips, on hover, focus and tap.
  const tip = document.getElementById("tip");
  let shown = null;
  const text = (item) => {
    if (item.dataset.t) return item.dataset.t;
    const cell = item.closest("td");
    const table = item.closest("table");
    const head = table.tHead.rows[0].cells[cell.cellIndex];
    const lines = [head.dataset.c || head.textContent];
    if (item.dataset.s) lines[0] += ", " + item.dataset.s;
    lines.push(item.textContent + (item.dataset.i ? ", 95 % interval " + item.dataset.i : ""), item.dataset.n);
    const row = cell.parentNode.cells;
    const keys = [row[0].textContent.trim()];
    for (let i = 1; i < cell.cellIndex && !row[i].querySelector(".n"); i++) {
      const names = table.tHead.rows[0].cells[i].firstElementChild.firstChild;
      if (!["n", "Success"].includes(names.data) && row[i].textContent) keys.push(names.data.toLowerCase() + " " + row[i].textContent);
    }
    lines.push(keys.join(", "));
    return lines.join("\n");
  };
  const place = (item) => {
    const at = item.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - own.width / 2), innerWidth - own.width - 8);
    const above = at.top - own.height - 8;
    tip.style.left = left + "px";
    tip.style.top = (above < 8 ? Math.min(at.bottom + 8, innerHeight - own.height - 8) : above) + "px";
  };
  const hide = () => {
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  };
  const show = (item) => {
    if (shown === item) return;
    hide();
    shown = item;
    tip.textContent = text(item);
    tip.hidden = false;
    item.setAttribute("aria-describedby", "tip");
    place(item);
  };
  const tipped = (event) => event.target.closest && event.target.closest(".n, [data-t]");
  let touched = null;
  document.addEventListener("pointerover", (event) => {
    const item = tipped(event);
    if (item && event.pointerType !== "touch") show(item);
    else if (!item && shown && shown !== document.activeElement) hide();
  });
  document.addEventListener("focusin", (event) => (tipped(event) ? show(tipped(event)) : hide()));
  document.addEventListener("focusout", hide);
  // The first tap tells the value, the second follows the link.
  document.addEventListener("pointerdown", (event) => {
    const item = event.pointerType === "touch" && tipped(event);
    touched = item && item !== shown ? item : null;
  });
  document.addEventListener("click", (event) => {
    const item = tipped(event);
    if (item && item === touched) {
      event.preventDefault();
      show(item);
    } else if (!item) hide();
    touched = null;
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  addEventListener("scroll", () => shown && (shown.isConnected ? place(shown) : hide()), { passive: true, capture: true });

  // Light and dark: the system's choice until the reader makes one.
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const isDark = () => (chosen ? chosen === "dark" : system.matches);
  const paint = () => {
    document.documentElement.style.colorScheme = chosen || "";
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", (isDark() ? "Light" : "Dark") + " colours");
  };
  theme.addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    paint();
  });
  system.addEventListener("change", paint);
  theme.hidden = false;
  paint();
})();
