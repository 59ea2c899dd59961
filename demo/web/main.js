import { forgetOtherFiles, fetchJson, loadFiles, megabytes } from "./downloads.js";
import { colorOf, drawLegend, drawProbabilities, drawSegmentation } from "./drawing.js";
import { UserError } from "./errors.js";
import { readImage } from "./images.js";
import { readClasses } from "./labels.js";
import { encodeLabelMap } from "./png.js";
import { probabilitiesAt } from "./resize.js";
import { checkBrowser, chooseRuntime, loadRuntime } from "./runtime.js";
import { PromptTokenizer, Segmenter } from "./segmenter.js";

const byId = (id) => document.getElementById(id);
let settings;
let segmenter;
let image;
let result;

function showError(error) {
  byId("error").textContent = error instanceof UserError ? error.message : `The page failed: ${error?.message ?? error}`;
  byId("error").hidden = false;
  if (!(error instanceof UserError)) {
    console.error(error);
  }
}

/** Runs what the person asked for, and shows what keeps it from being done. */
async function attempt(action) {
  byId("error").hidden = true;
  try {
    await action();
  } catch (error) {
    showError(error);
  }
}

async function start() {
  byId("retry").hidden = true;
  byId("loading").hidden = false;
  try {
    checkBrowser();
    const manifest = await fetchJson("manifest.json");
    const licence = manifest.licence ? ` (licence: ${manifest.licence})` : "";
    byId("model").textContent = `The model is ${manifest.title}${licence}.`;
    const runtime = await chooseRuntime(new URLSearchParams(location.search));
    const entry = manifest.runtimes[runtime.device];
    const entries = [entry.wasm, ...manifest.model];
    const files = await loadFiles(entries, (arrived, total) => showProgress(entries, arrived, total));
    byId("what").textContent = "Starting the model.";
    settings = await fetchJson("settings.json");
    const tokenizer = new PromptTokenizer(
      await fetchJson("tokenizer.json"),
      await fetchJson("tokenizer_config.json"),
      settings.prompts,
    );
    const ort = await loadRuntime(runtime, entry, files);
    segmenter = new Segmenter(ort, await ort.textEncoder(), await ort.segmenter(), tokenizer, settings);
    showRuntime(manifest, runtime);
    await forgetOtherFiles([...manifest.model, ...Object.values(manifest.runtimes).map(({ wasm }) => wasm)]);
    byId("loading").hidden = true;
    byId("input").inert = false;
    await keepPage();
  } catch (error) {
    showError(error);
    byId("loading").hidden = true;
    byId("retry").hidden = segmenter !== undefined;
  }
}

function showProgress(entries, arrived, total) {
  const parts = entries.map(({ title, bytes }) => `${title} (${megabytes(bytes)})`).join(", ");
  byId("what").textContent = total
    ? `Downloads ${parts}, once: ${megabytes(arrived)} of ${megabytes(total)}.`
    : `Takes ${parts} from the browser's cache.`;
  byId("progress").value = total ? arrived / total : 1;
}

function showRuntime(manifest, { device, threads, notes }) {
  const on = device === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
  byId("runtime").textContent = [`On ONNX Runtime ${manifest.onnxruntime} (${on}).`, ...notes].join(" ");
}

/** Makes the page work without a network from now on. */
async function keepPage() {
  await navigator.serviceWorker.register("service_worker.js");
  await navigator.serviceWorker.ready;
  byId("offline").textContent = "The page is kept: it works without a network from now on.";
}

/** Reads an image while nothing else can be asked for. */
async function take(file, name) {
  byId("input").inert = true;
  try {
    image = await readImage(file, name);
  } finally {
    byId("input").inert = false;
  }
}

async function choose(file, name) {
  await attempt(async () => {
    await take(file, name);
    if (byId("words").value.trim()) {
      await segment();
    }
  });
}

async function takeExample() {
  await attempt(async () => {
    byId("words").value = (await fetchJson("scene_labels.json")).join(", ");
    await take(await (await fetch("scene.png")).blob(), "scene.png");
    await segment();
  });
}

async function segment() {
  if (!image) {
    throw new UserError("There is no image yet: drop one on the page, choose a file or take the example.");
  }
  const shown = image;
  const classes = readClasses(byId("words").value);
  byId("input").inert = true;
  byId("busy").textContent = `Segments ${shown.name} into ${classes.names.length} classes.`;
  await new Promise((resolve) => setTimeout(resolve)); // lets the browser show it
  try {
    result = { ...(await segmenter.segment(shown, classes)), image: shown, names: classes.names, asked: classes };
  } finally {
    byId("input").inert = false;
    byId("busy").textContent = "";
  }
  drawSegmentation(shown, result.classes, settings.colors, byId("image"), byId("overlay"));
  drawLegend(result.segments, settings.colors, byId("legend"));
  byId("pixel").textContent = "Click a pixel for its probabilities.";
  byId("result").hidden = false;
  byId("busy").textContent = `${shown.name}: ${result.segments.length} of ${classes.names.length} classes found.`;
}

function showPixel(event) {
  const { width, height } = result.image;
  const box = byId("overlay").getBoundingClientRect();
  const place = (from, side, pixels) => Math.max(0, Math.min(pixels - 1, Math.floor((from / side) * pixels)));
  const x = place(event.clientX - box.left, box.width, width);
  const y = place(event.clientY - box.top, box.height, height);
  const probabilities = probabilitiesAt(result.probabilities, height, width, y, x);
  drawProbabilities({ x, y }, probabilities, result.asked, settings.colors, byId("pixel"));
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function downloadMap() {
  const colors = result.names.map((_, index) => colorOf(settings.colors, index));
  download(await encodeLabelMap(result.classes, result.image.height, result.image.width, colors), "labels.png");
}

function downloadJson() {
  const { names, words, classIndices } = result.asked;
  const wordsOfClasses = names.map((_, index) => words.filter((_, word) => classIndices[word] === index));
  const summary = {
    model: settings.model,
    image: result.image.name,
    width: result.image.width,
    height: result.image.height,
    labels: names,
    ...(words.length > names.length && { words: wordsOfClasses }),
    segments: result.segments,
  };
  download(new Blob([`${JSON.stringify(summary, null, 2)}\n`], { type: "application/json" }), "segments.json");
}

byId("retry").addEventListener("click", () => attempt(start));
byId("file").addEventListener("change", ({ target }) => target.files[0] && choose(target.files[0], target.files[0].name));
byId("example").addEventListener("click", takeExample);
byId("segment").addEventListener("click", () => attempt(segment));
byId("overlay").addEventListener("click", showPixel);
byId("opacity").addEventListener("input", ({ target }) => (byId("overlay").style.opacity = target.value));
byId("overlay").style.opacity = byId("opacity").value;
byId("map").addEventListener("click", () => attempt(downloadMap));
byId("json").addEventListener("click", () => attempt(downloadJson));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file && segmenter && !byId("input").inert) {
    choose(file, file.name);
  }
});
attempt(start);
