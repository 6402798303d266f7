// Shows what follows the head of the page once that is painted, and draws a picture that is pointed at once more, with
// the library, which then shows values. Without scripts the page is the same, and its pictures are still.
(() => {
  "use strict";
  const unfold = () => document.querySelectorAll("noscript").forEach((part) => {
    part.outerHTML = part.textContent;
  });
  requestAnimationFrame(() => setTimeout(unfold));
  addEventListener("beforeprint", unfold);

  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  addEventListener("keydown", (event) => { tip.hidden ||= event.key === "Escape"; });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  const show = (handler, event, item, values) => {
    tip.hidden = values === null || values === undefined || values === "";
    if (tip.hidden) return;
    tip.replaceChildren(...Object.entries(values).map(([name, value]) => {
      const line = document.createElement("div");
      line.append(`${name}: `, Object.assign(document.createElement("strong"), { textContent: value }));
      return line;
    }));
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18, fits = below + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${fits ? below : event.clientY - tip.offsetHeight - 12}px`;
  };

  let library;
  const unpack = (part) => {
    const packed = Uint8Array.from(atob(part.textContent), (char) => char.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip")));
  };
  const load = async () => {
    const script = document.createElement("script");
    script.textContent = await unpack(document.getElementById("library")).text();
    document.head.append(script);
    return window.vega;
  };
  const draw = async (plot) => {
    const vega = await (library ??= load());
    const view = new vega.View(vega.parse(await unpack(plot.querySelector("script")).json()), {
      renderer: "svg", tooltip: show,
    });
    const drawn = document.createElement("div");
    await view.initialize(drawn).hover().runAsync();
    const still = plot.querySelector("svg");
    for (const name of ["role", "aria-label"]) drawn.setAttribute(name, still.getAttribute(name));
    drawn.querySelector("svg").setAttribute("aria-hidden", "true");
    still.replaceWith(drawn);
  };
  addEventListener("pointerover", (event) => {
    const plot = event.target.closest(".live:not([data-drawn])");
    if (!plot) return;
    plot.dataset.drawn = "";
    draw(plot).catch((error) => console.warn("The picture stays still:", error));
  });
})();
