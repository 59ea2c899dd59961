import { UserError } from "./errors.js";

const MAX_WORDS = 4096;

/**
 * The labels in a text, as the other demo reads them: one per line, where commas list synonyms, or a single line of
 * labels separated by commas. Repeated labels are dropped.
 */
function parseLabels(text) {
  const lines = text.trim().split(/\r?\n/);
  const parts = lines.length === 1 ? lines[0].split(",") : lines;
  const labels = parts.map((part) => part.trim().replace(/\s+/g, " ").replace(/^[, ]+|[, ]+$/g, ""));
  return [...new Set(labels.filter(Boolean))];
}

/**
 * The classes that a text names: `names`, the `words` that are segmented for them, and `classIndices`, each word's
 * class. Bars separate several words for one class, which is shown as the first: "sofa|couch".
 */
export function readClasses(text) {
  const labels = parseLabels(text);
  if (!labels.length) {
    throw new UserError("No words were given: type what to look for, separated by commas.");
  }
  const wordsOfClasses = labels.map((label) => label.split("|").map((word) => word.trim()));
  for (const [index, words] of wordsOfClasses.entries()) {
    if (words.includes("")) {
      throw new UserError(`"${labels[index]}" has a bar with no word on one side: write one there, or leave it out.`);
    }
  }
  const names = wordsOfClasses.map(([name]) => name);
  const words = wordsOfClasses.flat();
  const repeated = words.find((word, index) => words.indexOf(word) < index);
  if (repeated !== undefined) {
    throw new UserError(`"${repeated}" is there twice: leave it out of one of its classes.`);
  }
  if (words.length > MAX_WORDS) {
    throw new UserError(`There are ${words.length} words, but at most ${MAX_WORDS} are segmented together: leave some out.`);
  }
  return { names, words, classIndices: wordsOfClasses.flatMap((own, index) => own.map(() => index)) };
}
