"use strict";
// Draws the figures of the page with Plotly, in the page's colours; sends no request.
(() => {
  // Browsers allow a page few WebGL contexts or none: further maps are drawn as SVG.
  const MOST_WEBGL = 4;
  const hasWebgl = (() => {
    try {
      const context = document.createElement("canvas").getContext("webgl");
      if (!context) return false;
      context.getExtension("WEBGL_lose_context")?.loseContext();
      return true;
    } catch {
      return false;
    }
  })();
  let webgl = 0;

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--quiet") };
    const modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") };
    return { font: colour("--ink"), ground: colour("--ground"), axis, modebar };
  }

  function themed(layout) {
    const { font, ground, axis, modebar } = theme();
    const shapes = (layout.shapes || []).map((shape) => ({ ...shape, line: { color: font, ...shape.line } }));
    return {
      ...layout,
      shapes,
      modebar,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: font, family: getComputedStyle(document.body).fontFamily, size: 13 },
      hoverlabel: { bgcolor: ground, bordercolor: font, font: { color: font }, align: "left", namelength: -1 },
      margin: { l: 60, r: 20, t: 30, b: 50, ...layout.margin },
      xaxis: { automargin: true, ...axis, ...layout.xaxis },
      yaxis: { automargin: true, ...axis, ...layout.yaxis },
    };
  }

  function draw(chart) {
    const { data, layout } = JSON.parse(document.getElementById(`${chart.id}-data`).textContent);
    const isMap = data.some((trace) => trace.type === "scattergl");
    if (isMap && (!hasWebgl || ++webgl > MOST_WEBGL)) {
      for (const trace of data) trace.type = "scatter";
    }
    const narrow = chart.clientWidth < 640;
    if (narrow && layout.showlegend && !(layout.legend?.y > 1)) {
      const y = chart.classList.contains("tall") ? -0.16 : -0.35;
      layout.legend = { ...layout.legend, orientation: "h", y, yanchor: "top" };
    }
    const config = {
      displaylogo: false,
      responsive: true,
      scrollZoom: false,
      // No other buttons: one of Plotly's own sends the chart to its makers' cloud.
      modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
      showSendToCloud: false,
      showEditInChartStudio: false,
      plotlyServerURL: "",
    };
    return Plotly.newPlot(chart, data, themed(layout), config).then(() => {
      chart.dataset.drawn = "yes";
      chart.plain = layout;
    });
  }

  function find(form) {
    const chart = document.getElementById(form.dataset.map);
    const wanted = form.querySelector("input").value.trim();
    const result = form.querySelector("output");
    // Labels contain markup characters as entities.
    const label = wanted.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    for (const trace of chart.data) {
      const pointNumber = trace.text.findIndex((text) => text === label || text.startsWith(`${label}<br>`));
      if (pointNumber < 0 || trace.visible === "legendonly") continue;
      const group = trace.name ? `, ${trace.name.replace(/ \([\d,]+\)$/, "")}` : "";
      result.textContent = `${wanted}${group}: ${trace.x[pointNumber]}, ${trace.y[pointNumber]}`;
      const arrow = { text: label, showarrow: true, arrowhead: 2, ax: 30, ay: -40, captureevents: false };
      Plotly.relayout(chart, { annotations: [{ ...arrow, x: trace.x[pointNumber], y: trace.y[pointNumber] }] });
      return;
    }
    result.textContent = wanted ? "not among the points of the map" : "";
  }

  const charts = [...document.querySelectorAll(".chart")];
  const drawn = Promise.all(charts.map(draw));
  drawn.then(() => (document.documentElement.dataset.drawn = "yes"));
  const redraw = () => charts.forEach((chart) => chart.plain && Plotly.relayout(chart, themed(chart.plain)));
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", redraw);
  for (const form of document.querySelectorAll(".find")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      find(form);
    });
  }
})();
