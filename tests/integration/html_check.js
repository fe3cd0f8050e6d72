// Appended to a copy of report.html by html.rs: looks at the page as a reader would, and tells the frame around it.
(() => {
  const found = { name: document.documentElement.dataset.check, problems: [], contrast: {}, texts: 0 };
  const problem = (text) => found.problems.length < 40 && found.problems.push(text);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const name = (e) => e.tagName + (e.id ? "#" + e.id : "") + " " + (e.textContent || "").trim().slice(0, 40);

  const width = Number(document.documentElement.dataset.width);
  found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const layout = () => {
    if (innerWidth !== width) problem(`inner width ${innerWidth} instead of ${width}`);
    const own = document.documentElement.scrollWidth;
    if (own > innerWidth) problem(`the page is ${own} wide in ${innerWidth}`);
    for (const e of all("main *, header *, footer *")) {
      const at = e.getBoundingClientRect();
      const inside = e.closest(".scroll, nav") && !e.matches(".scroll, nav");
      if (!inside && at.width > 0 && (at.right > innerWidth + 0.5 || at.left < -0.5)) {
        problem(`${name(e)} lies from ${at.left} to ${at.right}`);
      }
    }
  };

  const figures = () => {
    found.figures = all("figure").length;
    found.marks = all("figure").map((f) => Number(f.dataset.marks));
    found.hits = all(".hits a").length;
    for (const figure of all("figure")) {
      const plot = figure.querySelector(".plot").getBoundingClientRect();
      if (plot.width < 200 || plot.height < 100) problem(`${figure.id} is ${plot.width} x ${plot.height}`);
      if (!figure.querySelector("img, polyline, path, polygon, line")) problem(`${figure.id} draws nothing`);
      for (const hit of all(".hits circle", figure)) {
        const at = hit.getBoundingClientRect();
        const [x, y] = [at.left + at.width / 2, at.top + at.height / 2];
        if (!(x >= plot.left && x <= plot.right && y >= plot.top && y <= plot.bottom)) {
          problem(`a value of ${figure.id} lies outside of it`);
        }
      }
    }
    const ids = all("[id]").map((e) => e.id);
    if (new Set(ids).size !== ids.length) problem("an id stands twice");
    for (const a of all("a[href^='#']")) {
      if (!document.getElementById(a.hash.slice(1))) problem(`${a.hash} leads nowhere`);
    }
  };

  // WCAG 2: relative luminance, and contrast of text with the first ground below it that is not transparent.
  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = numbers(color).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      const alpha = numbers(color)[3];
      if (alpha === undefined || alpha > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = () => {
    found.contrast = { least: 21, of: "" };
    for (const e of all("body *:not(script)")) {
      const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
      if (!text || !e.getClientRects().length || e.closest("img")) continue;
      found.texts += 1;
      const style = getComputedStyle(e);
      const [a, b] = [luminance(e.closest("svg") ? style.fill : style.color), luminance(ground(e))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < found.contrast.least) found.contrast = { least: ratio, of: name(e) };
    }
  };

  // A click on each head sorts by it, upwards and then downwards; what is missing stays last.
  const sorting = () => {
    found.sorted = 0;
    for (const table of all("table.sortable")) {
      const heads = all("thead th[aria-sort]", table);
      for (const direction of ["ascending", "descending"]) {
        for (const head of heads) {
          head.firstElementChild.click();
          if (direction === "descending" && head.getAttribute("aria-sort") === "ascending") head.firstElementChild.click();
          if (head.getAttribute("aria-sort") !== direction) problem(`${name(head)} is not ${direction}`);
          if (heads.filter((h) => h.getAttribute("aria-sort") !== "none").length !== 1) problem("two heads are sorted by");
          const values = [...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex].dataset.v);
          const known = values.filter((v) => v !== undefined).map(Number);
          if (known.length < 2) continue;
          const sign = direction === "ascending" ? 1 : -1;
          if (known.some((v, i) => i > 0 && (v - known[i - 1]) * sign < 0)) problem(`${name(head)}: ${known} ${direction}`);
          if (values.indexOf(undefined) >= 0 && values.indexOf(undefined) < known.length) problem(`${name(head)}: missing first`);
          found.sorted += 1;
        }
      }
    }
  };

  const tips = () => {
    found.tips = [];
    const tip = document.getElementById("tip");
    const one = (item) => {
      item.focus();
      const at = tip.getBoundingClientRect();
      if (tip.hidden || !tip.textContent.trim()) return problem(`no tip on focus of ${name(item)}`);
      if (at.left < 0 || at.right > innerWidth || at.top < 0 || at.bottom > innerHeight) problem(`the tip of ${name(item)} is cut`);
      if (item.getAttribute("aria-describedby") !== "tip") problem(`${name(item)} is not described by its tip`);
      found.tips.push(tip.textContent);
      item.blur();
      if (!tip.hidden) problem(`the tip of ${name(item)} stays`);
    };
    for (const root of all("table.sortable, .hits")) {
      const item = root.querySelector("tbody .n, a[data-t]");
      if (item) one(item);
    }
    const [first] = all("table.sortable tbody .n");
    if (first) {
      first.focus();
      first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
      if (document.activeElement === first || !document.activeElement.matches(".n")) problem("the arrow key moves nothing");
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
      if (!tip.hidden) problem("Escape does not hide the tip");
    }
  };

  const toggle = () => {
    const before = getComputedStyle(document.body).backgroundColor;
    document.getElementById("theme").click();
    if (getComputedStyle(document.body).backgroundColor === before) problem("the toggle changes nothing");
    document.getElementById("theme").click();
    if (getComputedStyle(document.body).backgroundColor !== before) problem("the toggle does not change back");
  };

  addEventListener("load", () => {
    for (const check of [layout, figures, contrast, sorting, tips, toggle, layout]) {
      try {
        check();
      } catch (error) {
        problem(`${check.name}: ${error}`);
      }
    }
    // What the page does later may go wrong too.
    setTimeout(tell, 100);
  });
  const tell = () => {
    found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
    found.errors = window.errorsOfPage;
    found.injected = typeof window.pwned !== "undefined";
    parent.postMessage(found, "*");
  };
})();
