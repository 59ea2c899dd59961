const MOST_PROBABLE = 8;

/** The colour of a class; they repeat after the last. */
export function colorOf(colors, index) {
  return colors[index % colors.length];
}

/** Draws an image, and over it the classes (H, W) in their colours. */
export function drawSegmentation({ bitmap, width, height }, classes, colors, imageCanvas, overlayCanvas) {
  for (const canvas of [imageCanvas, overlayCanvas]) {
    Object.assign(canvas, { width, height });
  }
  imageCanvas.getContext("2d").drawImage(bitmap, 0, 0);
  const drawn = new ImageData(width, height);
  classes.forEach((index, pixel) => drawn.data.set([...colorOf(colors, index), 255], 4 * pixel));
  overlayCanvas.getContext("2d").putImageData(drawn, 0, 0);
}

function entry(colors, index, text) {
  const item = document.createElement("li");
  const colour = document.createElement("span");
  colour.className = "colour";
  colour.style.background = `rgb(${colorOf(colors, index)})`;
  item.append(colour, text);
  return item;
}

/** The classes of a segmentation with their shares of the area. */
export function drawLegend(segments, colors, list) {
  list.replaceChildren(...segments.map(({ index, label, area }) => entry(colors, index, `${label} ${percent(area)}`)));
}

/** The most probable classes of a pixel; of several words for a class the most probable one counts. */
export function drawProbabilities({ x, y }, wordProbabilities, { names, classIndices }, colors, place) {
  const probabilities = names.map(() => 0);
  wordProbabilities.forEach((probability, word) => {
    probabilities[classIndices[word]] = Math.max(probabilities[classIndices[word]], probability);
  });
  const order = names.map((_, index) => index).sort((first, second) => probabilities[second] - probabilities[first]);
  const list = document.createElement("ul");
  list.append(
    ...order
      .slice(0, MOST_PROBABLE)
      .map((index) => entry(colors, index, `${names[index]} ${percent(probabilities[index])}`)),
  );
  place.replaceChildren(`Probabilities at (${x}, ${y}): `, list);
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}
