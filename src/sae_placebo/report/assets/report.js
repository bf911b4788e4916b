"use strict";
(function () {
  const holder = document.getElementById("figures");
  const figures = holder ? JSON.parse(holder.textContent) : {};
  const plots = Array.from(document.querySelectorAll(".plot[data-figure]"));
  const settings = { responsive: true, displayModeBar: false, displaylogo: false, doubleClick: false };

  function draw(element) {
    const figure = figures[element.dataset.figure];
    if (!figure || element.dataset.drawn || !window.Plotly) return;
    element.dataset.drawn = "yes";
    window.Plotly.newPlot(element, figure.data, figure.layout, settings);
  }

  // What is on the screen is drawn first, the rest one by one while the browser is idle: a long
  // report opens at once, and a print or a picture of the whole page lacks nothing.
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 1));
  function near(element) {
    const place = element.getBoundingClientRect();
    return place.top < window.innerHeight && place.bottom > 0;
  }
  // a plot that is folded away has no width yet: it is drawn when it is opened
  const visible = (element) => element.getClientRects().length > 0;
  function drawNext() {
    const waiting = plots.filter((element) => !element.dataset.drawn && visible(element));
    if (!waiting.length) return;
    draw(waiting.find(near) || waiting[0]);
    idle(drawNext);
  }
  plots.filter((element) => visible(element) && near(element)).forEach(draw);
  idle(drawNext);
  for (const folded of document.querySelectorAll("details")) {
    folded.addEventListener("toggle", () => plots.filter(visible).forEach(draw));
  }
  window.addEventListener("beforeprint", () => plots.filter(visible).forEach(draw));

  // a link to what is folded away unfolds it
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target || !target.closest("details")) return;
    for (let d = target.closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  document.addEventListener("click", function (event) {
    const link = event.target.closest("a[href^='#']");
    if (link && link.getAttribute("href") === location.hash) reveal();
  });
  reveal();

  const filter = document.getElementById("latent-filter");
  if (filter) {
    filter.hidden = false;
    const kind = filter.querySelector("select[name=class]");
    const arm = filter.querySelector("select[name=arm]");
    const apply = function () {
      for (const group of document.querySelectorAll("[data-class]")) {
        group.hidden = kind.value !== "" && group.dataset.class !== kind.value;
      }
      for (const column of document.querySelectorAll("[data-arm]")) {
        column.hidden = arm.value !== "" && column.dataset.arm !== arm.value;
      }
    };
    kind.addEventListener("change", apply);
    arm.addEventListener("change", apply);
    // a browser that comes back to the page may keep the choice
    apply();
  }
})();
