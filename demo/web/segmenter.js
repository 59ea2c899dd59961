import { Tokenizer } from "./packages/tokenizers.min.mjs";
import { UserError } from "./errors.js";
import { mostProbableWords, normalisedView } from "./resize.js";

/** Tokenises prompts as the processor does. */
export class PromptTokenizer {
  constructor(tokenizer, tokenizerConfig, settings) {
    this.tokenizer = new Tokenizer(tokenizer, tokenizerConfig);
    this.settings = settings;
  }

  /** Token ids (T, P, L) of words in every prompt template, padded on the right: `ids` and `length`, which is L. */
  encode(words) {
    const { templates, padding, maxLength } = this.settings;
    const rows = words.flatMap((word) => {
      const name = word.split(",")[0].trim();
      return templates.map((template) => {
        const { ids } = this.tokenizer.encode(template.replace("{}", () => name));
        if (ids.length > maxLength) {
          throw new UserError(`"${word}" makes a prompt of ${ids.length} tokens, but at most ${maxLength} are taken: shorten it.`);
        }
        return ids;
      });
    });
    const length = Math.max(...rows.map((row) => row.length));
    const ids = new BigInt64Array(rows.length * length).fill(BigInt(padding));
    rows.forEach((row, index) => ids.set(row.map(BigInt), index * length));
    return { ids, length };
  }
}

/** The two graphs of the model. Text features are computed once for each word and kept. */
export class Segmenter {
  constructor(runtime, textEncoder, segmenter, tokenizer, settings) {
    Object.assign(this, { runtime, textEncoder, segmenter, tokenizer, settings });
    this.textFeatures = new Map();
  }

  /** Text features (T, P, D) of words. */
  async encodeText(words) {
    const missing = words.filter((word) => !this.textFeatures.has(word));
    const numPrompts = this.settings.prompts.templates.length;
    if (missing.length) {
      const { ids, length } = this.tokenizer.encode(missing);
      const inputs = { input_ids: this.runtime.tensor("int64", ids, [missing.length, numPrompts, length]) };
      const { text_embeds: features } = await this.textEncoder.run(inputs);
      const size = features.data.length / missing.length;
      missing.forEach((word, index) => {
        this.textFeatures.set(word, features.data.slice(index * size, (index + 1) * size));
      });
    }
    const kept = words.map((word) => this.textFeatures.get(word));
    const features = new Float32Array(words.length * kept[0].length);
    kept.forEach((own, index) => features.set(own, index * own.length));
    return this.runtime.tensor("float32", features, [words.length, numPrompts, kept[0].length / numPrompts]);
  }

  /** Probabilities (T, h, w) of words in an image, at the model's own resolution. */
  async probabilities(image, words) {
    const { view } = this.settings;
    const pixels = this.runtime.tensor("float32", normalisedView(image, view), [1, 3, view.size, view.size]);
    const { logits } = await this.segmenter.run({ pixel_values: pixels, text_embeds: await this.encodeText(words) });
    const [, numWords, height, width] = logits.dims;
    return { values: logits.data.map((logit) => 1 / (1 + Math.exp(-logit))), numWords, height, width };
  }

  /**
   * Segments an image into classes (see `readClasses`): its `classes` (H, W), the words' `probabilities`, and the
   * `segments`, largest first, with their share of the `area` and the mean probability of their pixels, the `score`.
   */
  async segment(image, { names, words, classIndices }) {
    const probabilities = await this.probabilities(image, words);
    const found = mostProbableWords(probabilities, image.height, image.width);
    const counts = new Float64Array(names.length);
    const totals = new Float64Array(names.length);
    const classes = found.words.map((word, pixel) => {
      const index = classIndices[word];
      counts[index]++;
      totals[index] += found.scores[pixel];
      return index;
    });
    const segments = names
      .map((label, index) => ({ index, label, area: counts[index] / classes.length, score: totals[index] / counts[index] }))
      .filter(({ area }) => area > 0)
      .sort((first, second) => second.area - first.area);
    return { classes, probabilities, segments };
  }
}
