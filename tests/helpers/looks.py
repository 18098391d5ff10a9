"""What a page looks like in a browser: its colours, letters and images, and what stands over its edges."""

PROBE = """() => {
  document.querySelectorAll("details").forEach(details => details.open = true);
  const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = colour => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const shown = [...document.body.querySelectorAll("*")].filter(element => element.getClientRects().length);
  const letters = shown.filter(element => [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim()));
  const strokes = shown.filter(element => element.matches("svg path, svg use, svg line")).map(e => getComputedStyle(e));
  return {
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    back: rgb(getComputedStyle(document.body).backgroundColor),
    images: [...document.images].filter(image => !image.naturalWidth || image.clientHeight < 20).length,
    outside: shown.filter(e => e.matches("svg, img") && e.getBoundingClientRect().right > innerWidth).length,
    pictures: shown.filter(e => e.matches("figure svg")).length,
    letters: letters.map(element => {
      const style = getComputedStyle(element), inside = element.ownerSVGElement;
      const scale = inside ? element.getScreenCTM() : {a: 1, b: 0};
      return [element.textContent.slice(0, 40), rgb(inside ? style.fill : style.color),
              parseFloat(style.fontSize) * Math.hypot(scale.a, scale.b)];
    }),
    lines: strokes.filter(style => style.stroke != "none" && style.strokeOpacity == 1 && style.opacity == 1)
      .map(style => rgb(style.stroke)),
    title: document.title,
  };
}"""
