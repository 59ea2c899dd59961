"""The interactive demo: segments images by words in the browser.

python demo/app.py
python demo/app.py --model base large --port 8080
"""

import argparse
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from PIL import Image

from catseg_app.downloads import python_code, summarize, write_files
from catseg_app.drawing import annotations, displayed, heat_map, heat_scale, overlay, to_image_pixel
from catseg_app.labels import format_labels, parse_classes
from catseg_app.segmentation import EMBEDDED, Segmentation, find_model, load_model, read_image, segment, top_labels
from catseg_hf import VOCABULARIES, OpenVocabularySegmentationPipeline, load_vocabulary
from catseg_hf.commands.model_options import MODEL_HELP
from catseg_hf.errors import UserError
from catseg_hf.guided_upsampling_catseg import UPSAMPLINGS
from catseg_hf.hub.released_weights import VARIANTS
from catseg_hf.repeated_prompts_catseg import describe_repeated_prompts
from catseg_hf.tiled_image_catseg import MAX_TILE_OVERLAP
from catseg_hf.tiles_catseg import DEFAULT_TILE_OVERLAP
from catseg_hf.utils.threads import limit_threads


HERE = Path(__file__).resolve().parent
INTRODUCTION = """
# CAT-Seg
Segments an image into any classes that you name in words. The model that comes with the package knows drawings of
emoji only: for photographs, choose *base* or *large* under *Settings*, which are downloaded and converted when they
are first used, or type the Hub id of another checkpoint.
"""
LABELS_INFO = "Separated by commas, or one per line; bars between several words for one: sofa|couch."
EXAMPLES = {
    "scene.png": "balloon, broccoli, corn, snow, water, zebra",
    "examples/rocket.jpg": "bicycle, car, duck, flamingo, rocket, snow, telephone",
    "examples/carpet.jpg": "apple, cake, carpet, duck, fire engine, kite, television",
}
CSS = """
.segmentation .mask:not(.inactive) { opacity: 1; }
.segmentation .legend-item { overflow-wrap: anywhere; text-align: start; }
#files .label-clear-button, footer .divider { display: none; }
"""
# On a phone the results lie below what was just pressed.
SHOW_RESULTS = "() => { if (innerWidth < 768) document.querySelector('#results').scrollIntoView(); }"
SAM_MODELS = ("facebook/sam2.1-hiera-tiny", "facebook/sam-vit-base")
HOUR = 3600
MAX_QUEUED = 64
LAUNCH_OPTIONS = {
    "theme": gr.themes.Default(font="system-ui, sans-serif"),
    "css": CSS,
    "footer_links": ["api"],
    "state_session_capacity": 32,  # sessions whose results are kept, each of up to half a gigabyte
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        help=f"models to offer before the one in the package, each {MODEL_HELP} (default: none)",
    )
    parser.add_argument(
        "--sam", nargs="+", default=[], help="folders or Hub ids of Segment Anything models to offer, beside two"
    )
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    arguments = parser.parse_args()
    limit_threads()
    build_app(arguments.model, arguments.sam).launch(
        server_port=arguments.port, share=arguments.share, **LAUNCH_OPTIONS
    )


def build_app(models: Sequence[str] = (), sams: Sequence[str] = ()) -> gr.Blocks:
    """
    The page, with its API.

    Args:
        models (`Sequence[str]`, *optional*): Names, folders or Hub ids, offered before the model in the package.
        sams (`Sequence[str]`, *optional*): Those of Segment Anything models that are offered.
    """
    models = list(dict.fromkeys([*models, EMBEDDED, *VARIANTS]))
    sams = [*sams, *SAM_MODELS]

    @with_messages
    def segment_image(
        image: str | None,
        labels: str,
        model: str,
        threshold: float,
        sliding_window: bool,
        sam: str,
        background: str,
        upsampling: str,
        tile_size: float = 0,
        tile_overlap: float = DEFAULT_TILE_OVERLAP,
        progress: gr.Progress = gr.Progress(),
    ) -> tuple[Segmentation, dict[str, Any]]:
        if image is None:
            raise UserError("There is no image yet: upload one, paste one, or pick an example.")
        classes = parse_classes(labels, background)
        image, frames = read_image(image)
        if frames > 1:
            gr.Info(f"The file has {frames} frames: the first one is segmented.")
        progress(0.1, "Loading the model")
        segmenter = load_model(find_model(model, models))
        warn_of_repeated_prompts(segmenter, classes.words)
        progress(0.3, f"Segmenting into {len(classes.names)} classes")
        sam = find_model(sam, sams) if sam else None
        result = segment(
            segmenter,
            image,
            classes,
            threshold,
            sliding_window,
            sam,
            upsampling,
            tile_size=int(tile_size or 0) or None,
            tile_overlap=tile_overlap,
            on_tiles=lambda done, total: progress((done, total), "Segmenting", unit="tiles"),
        )
        return result, summarize(result)

    with gr.Blocks(title="CAT-Seg", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as app:
        result, folder, alone = (gr.State(time_to_live=HOUR) for _ in range(3))
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = gr.Image(
                    label="Image",
                    type="filepath",
                    sources=["upload", "clipboard", "webcam"],
                    height=320,
                    elem_id="image",
                )
                # The library reads the file, and says what is wrong with it.
                image.preprocess = lambda uploaded: uploaded and uploaded.path
                labels = gr.Textbox(label="Classes", info=LABELS_INFO, lines=3, max_lines=8)
                preset = gr.Dropdown(["", *VOCABULARIES], label="Preset", value="")
                with gr.Row():
                    run = gr.Button("Segment", variant="primary", min_width=120)
                    cancel = gr.Button("Cancel", min_width=120)
                with gr.Accordion("Settings", open=False):
                    model = gr.Dropdown(
                        models,
                        value=models[0],
                        label="Model",
                        info="From the list, or a Hub id.",
                        allow_custom_value=True,
                    )
                    background = gr.Textbox(
                        "", label="Background", info="What else there is: its pixels stay unlabelled.", lines=1
                    )
                    threshold = gr.Slider(
                        0, 1, 0, step=0.01, label="Threshold", info="Less probable pixels stay unlabelled."
                    )
                    sliding_window = gr.Checkbox(label="Sliding window", info="Slower, finer.")
                    upsampling = gr.Radio(
                        UPSAMPLINGS,
                        value="bilinear",
                        label="Upsampling",
                        info="Guided: the classes' borders follow those in the image.",
                    )
                    with gr.Row():
                        tile_size = gr.Number(
                            0,
                            label="Tile size",
                            info="Pixels of each of many views; 0: one of the whole image.",
                            precision=0,
                            minimum=0,
                        )
                        tile_overlap = gr.Slider(
                            0,
                            MAX_TILE_OVERLAP,
                            DEFAULT_TILE_OVERLAP,
                            step=0.05,
                            label="Tile overlap",
                            info="What neighbours have in common.",
                        )
                    sam = gr.Dropdown(
                        [("off", ""), *sams],
                        value="",
                        label="Segment Anything",
                        info="Classes follow the masks of this model, from the list or by Hub id.",
                        allow_custom_value=True,
                    )
                examples = [[str(HERE / name), text] for name, text in EXAMPLES.items()]
                gr.Examples(examples, [image, labels])
            with gr.Column(scale=3, min_width=320, elem_id="results"), gr.Tabs():
                with gr.Tab("Segmentation"):
                    segmentation = gr.AnnotatedImage(
                        label="Click a class to see it alone", elem_classes="segmentation"
                    )
                    opacity = gr.Slider(0, 1, 0.6, step=0.05, label="Opacity", interactive=False)
                with gr.Tab("Before and after"):
                    before_after = gr.ImageSlider(label="Before and after", max_height=720)
                with gr.Tab("Probabilities"):
                    label = gr.Dropdown(label="Class", allow_custom_value=True)
                    heat = gr.Image(
                        label="Click a pixel", interactive=False, buttons=["download", "fullscreen"], elem_id="heat"
                    )
                    gr.HTML(heat_scale())
                    with gr.Row():
                        x, y = (gr.Number(0, label=name, precision=0, minimum=0, min_width=80) for name in "xy")
                    best = gr.Label(label="Most probable at this pixel", show_heading=False)
                with gr.Tab("Compare"):
                    other_labels = gr.Textbox(label="Other classes for the same image", lines=2, max_lines=8)
                    compare = gr.Button("Compare")
                    with gr.Row():
                        left = gr.AnnotatedImage(label="Classes", elem_classes="segmentation")
                        right = gr.AnnotatedImage(label="Other classes", elem_classes="segmentation")
                with gr.Tab("Download"):
                    files = gr.File(label="Full-size files", file_count="multiple", interactive=False, elem_id="files")
                    summary = gr.JSON(label="Segments")
                with gr.Tab("Python"):
                    code = gr.Code(label="The same in Python", language="python", interactive=False, wrap_lines=True)

        on_model = {"concurrency_id": "model", "concurrency_limit": 1}
        private = {"api_visibility": "private"}
        preset.input(format_preset, preset, labels, **private)
        segmented = gr.on(
            [run.click, labels.submit],
            segment_image,
            [image, labels, model, threshold, sliding_window, sam, background, upsampling, tile_size, tile_overlap],
            [result, summary],
            show_progress_on=segmentation,
            api_name="segment",
            **on_model,
        )
        shown = segmented.success(
            show_result,
            [result, opacity],
            [segmentation, alone, before_after, code, opacity, label, heat, x, y, best, left, right, files],
            **private,
        )
        shown.success(None, js=SHOW_RESULTS, **private)
        saved = shown.success(save_files, [result, opacity], [folder, files], api_name="files")
        segmentation.select(isolate_class, [result, opacity, alone], [segmentation, alone], **private)
        opacity.release(redraw, [result, opacity], [segmentation, alone, before_after, code], **private).success(
            save_files, [result, opacity], [folder, files], **private
        )
        label.input(draw_heat_map, [result, label], heat, api_name="heat_map")
        heat.select(pick_pixel, result, [x, y], **private).success(find_top_labels, [result, x, y], best, **private)
        gr.on([x.submit, y.submit], find_top_labels, [result, x, y], best, api_name="top_labels")
        compared = compare.click(compare_labels, [result, other_labels, opacity], [left, right], **on_model, **private)
        cancel.click(tell_cancelled, cancels=[segmented, shown, saved, compared], **private)
    return app.queue(max_size=MAX_QUEUED, default_concurrency_limit=4)


def with_messages(function: Callable) -> Callable:
    """Shows what a user can mend as a message on the page."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def check(result: Segmentation | None) -> Segmentation:
    if result is None:
        raise UserError("Nothing is segmented yet: choose an image and classes, then press Segment.")
    return result


def warn_of_repeated_prompts(segmenter: OpenVocabularySegmentationPipeline, labels: list[str]):
    if message := describe_repeated_prompts(labels, segmenter.encode_vocabulary(labels)):
        gr.Warning(message)


def annotated(result: Segmentation, opacity: float, alone: int | None = None) -> gr.AnnotatedImage:
    image, masks, colors = annotations(result, opacity, alone)
    return gr.AnnotatedImage(value=(image, masks), color_map=colors)


def format_preset(name: str) -> str:
    return format_labels(load_vocabulary(name)) if name else ""


def show_result(result: Segmentation, opacity: float) -> list[Any]:
    largest = result.segments[0]["label"] if result.segments else result.labels[0]
    x, y = (side // 2 for side in result.image.size)
    return [
        *redraw(result, opacity),
        gr.Slider(interactive=True),
        gr.Dropdown(choices=result.labels, value=largest),
        heat_map(result, largest),
        x,
        y,
        top_labels(result, x, y),
        annotated(result, opacity),
        None,
        None,
    ]


def redraw(result: Segmentation, opacity: float) -> list[Any]:
    image, _ = displayed(result)
    return [annotated(result, opacity), None, (image, overlay(result, opacity)), python_code(result, opacity)]


def isolate_class(
    result: Segmentation, opacity: float, alone: int | None, event: gr.SelectData
) -> tuple[gr.AnnotatedImage, int | None]:
    alone = None if event.index == alone else event.index
    return annotated(result, opacity, alone), alone


@with_messages
def draw_heat_map(result: Segmentation | None, label: str) -> Image.Image:
    return heat_map(check(result), label)


@with_messages
def compare_labels(result: Segmentation | None, labels: str, opacity: float) -> list[gr.AnnotatedImage]:
    segmenter = load_model(check(result).model)
    settings = result.threshold, result.sliding_window, result.sam, result.upsampling
    tiles = {"tile_size": result.tile_size, "tile_overlap": result.tile_overlap}
    classes = parse_classes(labels)
    warn_of_repeated_prompts(segmenter, classes.words)
    other = segment(segmenter, result.image, classes, *settings, **tiles)
    return [annotated(result, opacity), annotated(other, opacity)]


def pick_pixel(result: Segmentation, event: gr.SelectData) -> tuple[int, int]:
    return to_image_pixel(result, *event.index)


@with_messages
def find_top_labels(result: Segmentation | None, x: int, y: int) -> dict[str, float]:
    return top_labels(check(result), x, y)


@with_messages
def save_files(result: Segmentation | None, opacity: float) -> tuple[TemporaryDirectory, list[str]]:
    folder = TemporaryDirectory(prefix="catseg-")  # goes with the state; Gradio serves copies
    return folder, [str(path) for path in write_files(check(result), opacity, Path(folder.name))]


def tell_cancelled():
    gr.Info("Cancelled.")


if __name__ == "__main__":
    main()
