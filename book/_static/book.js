// Small repairs that every page needs in the browser: names for assistive technology that the
// widgets leave out, a stand-in for MathJax 2, and a search that works from disk. Landmarks are
// in _templates/layout.html.

// A page read from disk may not fetch others, so the search cannot quote them.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

const SCROLLING = "div.highlight pre, .cell_output pre, .pst-scrollable-table-container";

document.addEventListener("DOMContentLoaded", () => {
  // Wide code, tables and formulas scroll inside their box: let the keyboard scroll them too.
  for (const box of document.querySelectorAll(SCROLLING)) {
    box.tabIndex = 0;
  }

  // ipywidgets 8 asks MathJax 2's queue to typeset its labels; MathJax 3 has no queue.
  if (window.MathJax && !window.MathJax.Hub) {
    window.MathJax.Hub = {
      Queue: ([, , element]) => window.MathJax.typesetPromise?.([element]),
    };
  }

  nameWidgets(document);
  new MutationObserver((changes) => {
    for (const change of changes) {
      for (const node of change.addedNodes) {
        if (node.nodeType === Node.ELEMENT_NODE) nameWidgets(node);
      }
    }
  }).observe(document.body, { childList: true, subtree: true });
});

// Give sliders and images the names that ipywidgets does not give them.
function nameWidgets(root) {
  for (const handle of root.querySelectorAll(".noUi-handle:not([aria-label])")) {
    const label = handle.closest(".widget-slider")?.querySelector(".widget-label");
    handle.setAttribute("aria-label", label?.textContent.trim() || "Slider");
  }
  for (const readout of root.querySelectorAll(".widget-slider .widget-readout")) {
    readout.setAttribute("aria-live", "polite");
  }
  for (const image of root.querySelectorAll("img.widget-image:not([alt])")) {
    image.alt = "Figure chosen by the slider above";
  }
}
