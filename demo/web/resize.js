/**
 * Of every new position along an axis the two old ones that it lies between and the weight of the upper one: a
 * bilinear resize with pixel centres aligned and no antialiasing.
 */
export function bilinear(oldSize, newSize) {
  const lower = new Int32Array(newSize);
  const upper = new Int32Array(newSize);
  const weight = new Float64Array(newSize);
  for (let position = 0; position < newSize; position++) {
    const place = Math.max(0, ((position + 0.5) * oldSize) / newSize - 0.5);
    lower[position] = Math.min(Math.floor(place), oldSize - 1);
    upper[position] = Math.min(lower[position] + 1, oldSize - 1);
    weight[position] = place - lower[position];
  }
  return { lower, upper, weight };
}

/**
 * An image (RGBA, 0..255) as the model takes it: normalised, `size` x `size`, as Float32Array (3, size, size).
 */
export function normalisedView({ rgba, width, height }, { size, mean, std, scale }) {
  const rows = bilinear(height, size);
  const columns = bilinear(width, size);
  const view = new Float32Array(3 * size * size);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const corners = [rows.lower[y], rows.upper[y]].flatMap((row) =>
        [columns.lower[x], columns.upper[x]].map((column) => 4 * (row * width + column)),
      );
      const [down, right] = [rows.weight[y], columns.weight[x]];
      for (let channel = 0; channel < 3; channel++) {
        const [a, b, c, d] = corners.map((corner) => rgba[corner + channel]);
        const value = (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d);
        view[(channel * size + y) * size + x] = (value * scale - mean[channel]) / std[channel];
      }
    }
  }
  return view;
}

/** Probabilities (T, h, w) of all words at one row of an image of `height` rows, as (T, w). */
function rowOf({ values, numWords, height: oldHeight, width: oldWidth }, lower, upper, weight) {
  const row = new Float32Array(numWords * oldWidth);
  for (let word = 0; word < numWords; word++) {
    const first = (word * oldHeight + lower) * oldWidth;
    const second = (word * oldHeight + upper) * oldWidth;
    for (let x = 0; x < oldWidth; x++) {
      row[word * oldWidth + x] = (1 - weight) * values[first + x] + weight * values[second + x];
    }
  }
  return row;
}

/** Those words of a row (T, w) that may be the most probable one somewhere between two of its columns. */
function candidates(row, numWords, oldWidth, left, right) {
  let reached = 0;
  for (let word = 0; word < numWords; word++) {
    reached = Math.max(reached, Math.min(row[word * oldWidth + left], row[word * oldWidth + right]));
  }
  const found = [];
  for (let word = 0; word < numWords; word++) {
    if (Math.max(row[word * oldWidth + left], row[word * oldWidth + right]) >= reached) {
      found.push(word);
    }
  }
  return found;
}

/**
 * The most probable word of every pixel of an image, the first of several: Uint16Array (H, W), and its probability,
 * Float32Array (H, W). Probabilities (T, h, w) are resized to the image on the way, and never all at once.
 */
export function mostProbableWords(probabilities, height, width) {
  const { numWords, width: oldWidth } = probabilities;
  const rows = bilinear(probabilities.height, height);
  const columns = bilinear(oldWidth, width);
  const words = new Uint16Array(height * width);
  const scores = new Float32Array(height * width);
  for (let y = 0; y < height; y++) {
    const row = rowOf(probabilities, rows.lower[y], rows.upper[y], rows.weight[y]);
    let found = [];
    for (let x = 0; x < width; x++) {
      const [left, right, weight] = [columns.lower[x], columns.upper[x], columns.weight[x]];
      if (x === 0 || left !== columns.lower[x - 1] || right !== columns.upper[x - 1]) {
        found = candidates(row, numWords, oldWidth, left, right);
      }
      let best = -1;
      for (const word of found) {
        const value = (1 - weight) * row[word * oldWidth + left] + weight * row[word * oldWidth + right];
        if (value > best) {
          best = value;
          words[y * width + x] = word;
        }
      }
      scores[y * width + x] = best;
    }
  }
  return { words, scores };
}

/** The probabilities of all words at one pixel of an image of `height` x `width`. */
export function probabilitiesAt(probabilities, height, width, y, x) {
  const { numWords, width: oldWidth } = probabilities;
  const rows = bilinear(probabilities.height, height);
  const columns = bilinear(oldWidth, width);
  const row = rowOf(probabilities, rows.lower[y], rows.upper[y], rows.weight[y]);
  return Array.from({ length: numWords }, (_, word) => {
    const [left, right] = [columns.lower[x], columns.upper[x]].map((column) => row[word * oldWidth + column]);
    return (1 - columns.weight[x]) * left + columns.weight[x] * right;
  });
}
