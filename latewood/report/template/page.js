"use strict";
(() => {
  const root = document.documentElement;
  const COLOURS = new Set(["color", "colorscale", "fillcolor", "bordercolor"]);
  const narrow = 560;

  function theme() {
    const style = getComputedStyle(root);
    const read = (name) => style.getPropertyValue(name).trim();
    const list = (name) => read(name).split(/\s+/);
    return {
      ink: read("--ink"), muted: read("--muted"), grid: read("--grid"), rule: read("--rule"),
      card: read("--card"), sans: read("--sans"),
      runs: list("--runs"), ramp: list("--ramp"), heat: list("--heat"),
    };
  }

  function channels(colour) {
    return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  }

  function along(stops, share) {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const from = Math.min(Math.floor(place), stops.length - 2);
    const low = channels(stops[from]), high = channels(stops[from + 1]);
    return `rgb(${low.map((c, i) => Math.round(c + (high[i] - c) * (place - from))).join(",")})`;
  }

  function colour(name, hues) {
    const [kind, value] = name.split(" ");
    if (kind === "run") return hues.runs[Number(value) % hues.runs.length];
    if (kind === "ramp" && value !== undefined) return along(hues.ramp, Number(value));
    if (kind === "ramp" || kind === "heat")
      return hues[kind].map((stop, i) => [i / (hues[kind].length - 1), stop]);
    return hues[kind];
  }

  function painted(node, hues) {
    if (Array.isArray(node)) return node.map((item) => painted(item, hues));
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [
      key,
      COLOURS.has(key) && typeof value === "string" ? colour(value, hues) : painted(value, hues),
    ]));
  }

  function axis(own, hues, width) {
    const merged = {
      automargin: true, gridcolor: hues.grid, zeroline: false, exponentformat: "power", minexponent: 4, linecolor: hues.rule,
      tickfont: { size: 11, color: hues.muted }, nticks: width < narrow ? 5 : 7, ...own,
    };
    if (own?.title) {
      merged.title = { standoff: 6, ...own.title, font: { size: 12, color: hues.muted } };
    }
    if (own?.ticktext) {
      const most = width < narrow ? 14 : 30;
      merged.ticktext = own.ticktext.map((text) => shortened(text, most));
    }
    return merged;
  }

  // The ends of a layer's name tell more than its middle. Entities count as one letter.
  function shortened(text, most) {
    const letters = text.match(/&\w+;|[^]/gu) ?? [];
    if (letters.length <= most) return text;
    const half = Math.floor((most - 1) / 2);
    return letters.slice(0, half).join("") + "…" + letters.slice(letters.length - half).join("");
  }

  function picture(plot) {
    const hues = theme(), figure = plot.figure, width = plot.clientWidth;
    const data = figure.data.map((trace) => {
      const full = painted(trace, hues);
      full.x ??= figure.x;
      if (trace.meta?.rows) {
        full.customdata = trace.type === "heatmap"
          ? trace.meta.rows.map((row) => full.x.map(() => row)) : trace.meta.rows;
      }
      if (full.colorbar) {
        full.colorbar = {
          outlinewidth: 0, len: 1, ...full.colorbar, tickfont: { size: 11, color: hues.muted },
          title: { ...full.colorbar.title, font: { size: 12, color: hues.muted } },
        };
      }
      return full;
    });
    const { xaxis, yaxis, ...own } = painted(figure.layout, hues);
    for (const key of Object.keys(own).filter((name) => /^[xy]axis\d/.test(name)))
      own[key] = axis(own[key], hues, width);
    const layout = {
      font: { family: hues.sans, size: 12, color: hues.ink },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 12, t: 10, b: 8, ...own.margin },
      hovermode: "x unified",
      hoverlabel: { bgcolor: hues.card, bordercolor: hues.rule, font: { color: hues.ink }, namelength: 40 },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 12 } },
      dragmode: width < narrow ? false : "zoom",
      ...own,
      xaxis: axis(xaxis, hues, width), yaxis: axis(yaxis, hues, width),
    };
    layout.margin = { l: 8, r: 12, t: 10, b: 8, ...own.margin };
    if (plot.logarithmic && figure.layout.yaxis?.ticktext === undefined) layout.yaxis.type = "log";
    return [data, layout];
  }

  // Plotly's own buttons are left out: one of them would send the data away.
  const OPTIONS = { responsive: true, displayModeBar: false, doubleClick: "reset" };

  function show(plot) {
    if (plot.closest("details:not([open])")) return;  // Drawn when it is unfolded.
    const [data, layout] = picture(plot);
    Plotly.react(plot, data, layout, OPTIONS);
    plot.drawn = true;
  }

  function paintPage() {
    const hues = theme();
    for (const key of document.querySelectorAll(".key"))
      key.style.background = hues.runs[Number(key.dataset.run) % hues.runs.length];
    for (const bar of document.querySelectorAll(".ramp i"))
      bar.style.background = `linear-gradient(90deg, ${hues.ramp.join(",")})`;
  }

  const plots = [...document.querySelectorAll(".plot")];
  for (const plot of plots) plot.figure = JSON.parse(plot.nextElementSibling.textContent);
  const redraw = () => { paintPage(); for (const plot of plots) if (plot.drawn) show(plot); };

  for (const box of document.querySelectorAll("input.log")) {
    box.addEventListener("change", () => {
      for (const plot of box.closest("section").querySelectorAll(".plot")) {
        plot.logarithmic = box.checked;
        if (plot.drawn) show(plot);
      }
    });
  }
  for (const fold of document.querySelectorAll("details.group")) {
    fold.addEventListener("toggle", () => {
      if (fold.open) for (const plot of fold.querySelectorAll(".plot")) show(plot);
    });
  }
  for (const button of document.querySelectorAll("button.save")) {
    button.addEventListener("click", () => {
      const plot = button.closest("figure").querySelector(".plot");
      const filename = button.title.replace(/[^\w.-]+/g, "-");
      Plotly.downloadImage(plot, {
        format: "svg", filename, width: plot.clientWidth, height: plot.clientHeight,
      });
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    root.dataset.printing = "";
    for (const fold of document.querySelectorAll("details")) fold.open = true;
    paintPage();
    for (const plot of plots) show(plot);
  });
  addEventListener("afterprint", () => { delete root.dataset.printing; redraw(); });

  // One after the other, so that the page answers while its figures are drawn.
  paintPage();
  const waiting = [...plots];
  (function next() {
    const until = performance.now() + 40;
    while (waiting.length && performance.now() < until) show(waiting.shift());
    if (waiting.length) setTimeout(next);
    else root.dataset.figures = "drawn";
  })();
})();
