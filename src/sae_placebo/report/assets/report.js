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

  // Plots are drawn when they come near the screen, so that a long report opens at once.
  if ("IntersectionObserver" in window) {
    const watch = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (entry.isIntersecting) {
            watch.unobserve(entry.target);
            draw(entry.target);
          }
        }
      },
      { rootMargin: "800px" }
    );
    plots.forEach((element) => watch.observe(element));
  } else {
    plots.forEach(draw);
  }
  window.addEventListener("beforeprint", () => plots.forEach(draw));

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
