"use strict";
(() => {
  const config = { displayModeBar: false, responsive: true, showTips: false };
  const touch = matchMedia("(pointer: coarse)").matches;
  const drawn = new Set();

  // A finger scrolls the page; it never gets stuck in a figure.
  const touchable = (layout) => (touch ? { ...layout, dragmode: false } : layout);

  // The library, several MB of code, runs once the page is there to be read.
  const load = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("library").textContent;
    document.head.append(script);
  };

  const draw = (plot) => {
    if (drawn.has(plot)) return;
    drawn.add(plot);
    load();
    const { data, layout } = JSON.parse(document.getElementById(`${plot.id}-data`).textContent);
    Plotly.newPlot(plot, data, touchable(layout), config);
    plot.dataset.drawn = "true";
  };

  // Figures are drawn as they come near, one at a time: a page of a hundred opens as fast as one of two.
  const plots = [...document.querySelectorAll(".plot")];
  const waiting = [];
  const drawNext = () => {
    const plot = waiting.shift();
    if (plot) draw(plot);
    if (waiting.length) setTimeout(drawNext);
  };
  const near = new IntersectionObserver(
    (entries) => {
      const came = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
      came.forEach((plot) => near.unobserve(plot));
      if (!waiting.length && came.length) requestAnimationFrame(() => setTimeout(drawNext));
      waiting.push(...came);
    },
    { rootMargin: "400px" },
  );
  plots.forEach((plot) => near.observe(plot));

  for (const button of document.querySelectorAll("button[data-log]")) {
    button.addEventListener("click", () => {
      const plot = document.getElementById(button.dataset.log);
      const on = button.getAttribute("aria-pressed") !== "true";
      draw(plot);
      Plotly.relayout(plot, { "yaxis.type": on ? "log" : "linear", "yaxis.autorange": true });
      button.setAttribute("aria-pressed", String(on));
    });
  }

  // On paper all of them are drawn, as wide as their column, and what is folded stays folded.
  const shown = () => plots.filter((plot) => plot.checkVisibility());
  addEventListener("beforeprint", () => {
    for (const plot of shown()) {
      draw(plot);
      const alone = plot.closest(".figures").childElementCount === 1;
      Plotly.relayout(plot, { width: alone ? 680 : 330, autosize: false });
    }
  });
  addEventListener("afterprint", () => {
    for (const plot of shown()) Plotly.relayout(plot, { width: null, autosize: true });
  });
})();
