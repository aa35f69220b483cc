// Figures are drawn when they come into sight; tables sort and give CSV files; models are switched; dark or light.
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const template = read("figure-template");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const PRINTED = 660; // pixels across a printed page
  let printing = false;

  const isDark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

  // ---- figures ----

  const LIGHT_OF = {
    "#222222": "#e8e8e8", "#222": "#e8e8e8", "#000": "#e8e8e8", "#000000": "#e8e8e8", black: "#e8e8e8",
    "#444": "#c8ccd0", "#444444": "#c8ccd0", "#555": "#b3b9bf", "#555555": "#b3b9bf", "#666": "#b3b9bf",
    "#666666": "#b3b9bf", "#8a8a8a": "#9aa0a6", "rgb(36,36,36)": "#c8ccd0", "#cccccc": "#4a5056",
    "#dddddd": "#4a5056", "#d8d8d8": "#4a5056", "#e6e6e6": "#33383d", "#eef3f7": "#2a2f35",
    white: "#15171a", "#ffffff": "#15171a", "#fff": "#15171a",
    // Blue and vermillion of small marks are lighter on dark, and still those of the palette by hue.
    "#0072b2": "#3d9fdc", "#d55e00": "#ea7a2a",
  };

  /** Ink becomes light and paper dark; scales of color stay, for their ends mean something. */
  function darkened(value, key = "") {
    if (typeof value === "string") {
      const found = LIGHT_OF[value.toLowerCase().replaceAll(" ", "")];
      return found ?? value.replace(/color:\s*(#[0-9a-f]{3,6})/gi, (whole, color) => `color:${LIGHT_OF[color.toLowerCase()] ?? color}`);
    }
    if (value === null || typeof value !== "object" || /colorscale|^(x|y|z|customdata|ids)$/.test(key)) return value;
    if (Array.isArray(value)) return value.map((item) => darkened(item, key));
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, darkened(item, name)]));
  }

  function content(box) {
    const { data, layout } = read(box.dataset.figure);
    const whole = { data, layout: { template, ...layout } };
    const { data: traces, layout: look } = isDark() ? darkened(whole) : whole;
    look.paper_bgcolor = look.plot_bgcolor = "rgba(0,0,0,0)";
    look.modebar = { bgcolor: "rgba(0,0,0,0)", color: "#8a8f94", activecolor: isDark() ? "#e8e8e8" : "#222222" };
    if (coarse) look.dragmode = false; // a finger on a figure scrolls the page
    const wide = !printing && box.offsetWidth > box.parentElement.clientWidth; // it scrolls: the legend begins where the eye does
    if (wide && look.legend?.orientation === "h") Object.assign(look.legend, { x: 0, xanchor: "left" });
    if (printing) look.width = PRINTED;
    return [traces, look];
  }

  function draw(box) {
    if (box.dataset.circuits) {
      if (box.dataset.drawn) return;
      const prefix = box.closest("figure").id;
      read(box.dataset.circuits).forEach(({ element, props }, at) =>
        CircuitsVis.render(`${prefix}-${at + 1}`, CircuitsVis[element], props));
      box.dataset.drawn = "true";
      return;
    }
    const [traces, look] = content(box);
    const name = box.closest("figure").id;
    const config = {
      displaylogo: false,
      responsive: true,
      displayModeBar: coarse ? false : "hover",
      modeBarButtonsToRemove: ["sendChartToCloud"], // nothing leaves this page
      plotlyServerURL: "",
      toImageButtonOptions: { format: "svg", filename: name },
    };
    return Plotly.react(box, traces, look, config).then(() => { box.dataset.drawn = "true"; });
  }

  const boxes = all("[data-figure], [data-circuits]");
  const redrawn = () => boxes.filter((box) => box.dataset.drawn && box.dataset.figure).forEach(draw);
  const drawAll = () => Promise.all(boxes.filter((box) => !box.dataset.drawn).map(draw));
  window.knLens = { drawAll };

  if ("IntersectionObserver" in window) {
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        if (!target.dataset.drawn) draw(target);
      }
    }, { rootMargin: "500px" });
    boxes.forEach((box) => observer.observe(box));
  } else drawAll();

  /** A figure that was drawn while hidden has no width of its own. */
  const fit = (within) => all("[data-figure][data-drawn]", within).forEach((box) => {
    if (box.offsetParent) Plotly.Plots.resize(box);
  });

  // ---- dark or light ----

  const toggle = document.getElementById("theme");
  const showTheme = () => {
    toggle.setAttribute("aria-pressed", String(isDark()));
    redrawn();
  };
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("kn-lens-theme", root.dataset.theme); } catch { /* no storage: for this visit only */ }
    showTheme();
  });
  prefersDark.addEventListener("change", showTheme);
  showTheme();

  // ---- print ----

  let opened = [];
  addEventListener("beforeprint", () => {
    printing = true;
    opened = all("details.table:not([open]), details.more:not([open])");
    opened.forEach((details) => { details.open = true; });
    boxes.forEach(draw);
  });
  addEventListener("afterprint", () => {
    printing = false;
    opened.forEach((details) => { details.open = false; });
    redrawn();
  });

  // ---- tables ----

  const value = (cell) => (cell === "inf" ? Infinity : cell === "-inf" ? -Infinity : cell);
  const order = new Intl.Collator("en", { numeric: true }).compare;
  const quoted = (cell) => {
    const text = cell === null ? "" : cell === true ? "True" : cell === false ? "False" : String(cell);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  function sorted(data, column, descending) {
    const rows = data.rows.map((row, at) => at);
    const sign = descending ? -1 : 1;
    return rows.sort((first, second) => {
      const [a, b] = [data.rows[first][column], data.rows[second][column]];
      if (a === null || b === null) return (a === null) - (b === null) || first - second; // last in both directions
      const found = data.numeric[column] ? value(a) - value(b) : order(String(a), String(b));
      return sign * (found || 0) || first - second;
    });
  }

  function download(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  for (const details of all("details.table")) {
    const table = details.querySelector("table");
    const more = details.querySelector("button.all");
    let data, rows, whole = false;
    const load = () => {
      data ??= read(table.dataset.table);
      rows ??= data.rows.map((row, at) => at);
    };
    const fill = () => {
      const body = document.createElement("tbody");
      for (const at of whole ? rows : rows.slice(0, data.first)) {
        const row = body.insertRow();
        data.columns.forEach((name, column) => {
          const cell = row.insertCell();
          cell.textContent = data.texts[column]?.[at] ?? String(data.rows[at][column]);
          if (data.numeric[column]) cell.className = "num";
        });
      }
      table.tBodies[0].replaceWith(body);
    };
    const heads = all("th", table);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      load();
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      rows = sorted(data, column, descending);
      fill();
    }));
    more?.addEventListener("click", () => {
      load();
      whole = !whole;
      more.setAttribute("aria-expanded", String(whole));
      more.textContent = whole ? `Show the first ${data.first} rows` : `Show all ${data.rows.length} rows`;
      more.nextElementSibling.textContent = whole ? "all shown" : `first ${data.first} shown`;
      fill();
    });
    details.querySelector("button.csv").addEventListener("click", () => {
      load();
      download(data.file, [data.columns, ...data.rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n");
    });
  }

  // ---- models of a comparison ----

  const groups = all(".models");
  const select = (group, at) => {
    const beside = group.querySelector(".beside").getAttribute("aria-pressed") === "true";
    all('[role="tab"]', group).forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === at));
      tab.tabIndex = index === at ? 0 : -1;
    });
    all('[role="tabpanel"]', group).forEach((panel, index) => { panel.hidden = !beside && index !== at; });
    fit(group);
  };
  const chosen = (group) => all('[role="tab"]', group).findIndex((tab) => tab.getAttribute("aria-selected") === "true");
  for (const group of all(".models")) {
    const tabs = all('[role="tab"]', group);
    const beside = group.querySelector(".beside");
    tabs.forEach((tab, at) => {
      tab.addEventListener("click", () => select(group, at));
      tab.addEventListener("keydown", (event) => {
        const last = tabs.length - 1;
        const to = { ArrowRight: at < last ? at + 1 : 0, ArrowLeft: at ? at - 1 : last, Home: 0, End: last }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        select(group, to);
        tabs[to].focus();
      });
    });
    beside.addEventListener("click", () => {
      const pressed = beside.getAttribute("aria-pressed") !== "true";
      beside.setAttribute("aria-pressed", String(pressed));
      group.querySelector(".panels").classList.toggle("all", pressed);
      select(group, chosen(group));
    });
  }

  // ---- links to what is folded up or on another tab ----

  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const panel = target.closest('[role="tabpanel"][hidden]');
    if (panel) select(panel.closest(".models"), all('[role="tabpanel"]', panel.parentElement).indexOf(panel));
    if (target.tagName === "DETAILS") target.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
})();
