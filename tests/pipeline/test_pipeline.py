"""The open-vocabulary pipeline, and the built-in one."""

import http.server
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from transformers import AutoProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from catseg_hf import (
    CATSegForSemanticSegmentation,
    CATSegModel,
    OpenVocabularySegmentationPipeline,
    image_sources_catseg,
    load_vocabulary,
    pipeline_catseg,
)
from catseg_hf.errors import UserError
from conftest import FIXTURES


TASK = "zero-shot-image-segmentation"
PICTURE = FIXTURES / "picture.png"
LABELS = ["cat", "sofa", "wall"]


@pytest.fixture(scope="module")
def shared_segmenter(small_checkpoint):
    return pipeline(TASK, model=str(small_checkpoint), device="cpu")


@pytest.fixture
def segmenter(shared_segmenter):
    """For tests that change nothing of the model."""
    before = shared_segmenter.model.config.to_dict()
    yield shared_segmenter
    assert shared_segmenter.model.config.to_dict() == before


@pytest.fixture
def own_segmenter(small_checkpoint):
    """For tests that change the model."""
    return pipeline(TASK, model=str(small_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def image():
    return Image.open(PICTURE).convert("RGB")


@pytest.fixture(scope="module")
def images(image):
    """Images of different sizes and contents."""
    return [image, image.resize((60, 40)).rotate(180), image.crop((100, 50, 250, 290))]


def assert_same(actual, expected):
    """Whether two results are equal, but for the last bits of their scores: batches are summed in another order."""
    assert [segment["label"] for segment in actual] == [segment["label"] for segment in expected]
    for segment, other in zip(actual, expected, strict=True):
        assert segment["score"] == pytest.approx(other["score"], abs=1e-5)
        different = np.array(segment["mask"]) != np.array(other["mask"])
        assert different.mean() < 1e-3


def probabilities(segmenter, image, labels):
    """The probabilities (T, H, W) by the model and its processor alone."""
    inputs = segmenter.processor(images=image, text=labels)
    with torch.no_grad():
        outputs = segmenter.model(**inputs)
    (result,) = segmenter.processor.post_process_semantic_segmentation(
        outputs, [image.size[::-1]], return_segmentation_scores=True
    )
    return result.segmentation_scores


def test_segments(segmenter, image):
    segments = segmenter(image, candidate_labels=LABELS)
    scores = probabilities(segmenter, image, LABELS)
    classes = scores.argmax(dim=0).numpy()
    areas = [(classes == index).sum() for index in range(3)]
    expected = sorted((index for index in range(3) if areas[index]), key=lambda index: -areas[index])
    assert [segment["label"] for segment in segments] == [LABELS[index] for index in expected]
    for index, segment in zip(expected, segments, strict=True):
        assert set(segment) == {"label", "score", "mask"}
        assert segment["mask"].mode == "L" and segment["mask"].size == image.size
        assert np.array_equal(np.array(segment["mask"]), 255 * (classes == index))
        assert type(segment["score"]) is float
        assert segment["score"] == pytest.approx(float(scores[index][torch.tensor(classes == index)].mean()), abs=1e-6)


def test_segmentation_map_and_threshold(segmenter, image):
    scores = probabilities(segmenter, image, LABELS)
    best, classes = scores.max(dim=0)
    threshold = float(best.median())
    result = segmenter(image, LABELS, threshold=threshold, return_segmentation_map=True)
    expected = torch.where(best < threshold, -1, classes)
    assert torch.equal(result["segmentation"], expected)
    assert 0.4 < float((expected < 0).float().mean()) < 0.6
    union = sum(np.array(segment["mask"]).astype(int) for segment in result["segments"])
    assert np.array_equal(union, 255 * (expected >= 0).numpy())
    areas = [np.count_nonzero(segment["mask"]) for segment in result["segments"]]
    assert areas == sorted(areas, reverse=True) and min(areas) > 0
    for segment in result["segments"]:
        mask = expected == LABELS.index(segment["label"])
        assert segment["score"] == pytest.approx(float(best[mask].mean()), abs=1e-6) and segment["score"] >= threshold

    nothing = segmenter(image, LABELS, threshold=1, return_segmentation_map=True)
    assert nothing["segments"] == [] and (nothing["segmentation"] == -1).all()
    assert_same(segmenter(image, LABELS, threshold=0), segmenter(image, LABELS))


def test_strings_and_lists_of_labels(segmenter, image):
    expected = segmenter(image, candidate_labels=["cat", "sofa", "wall"])
    assert_same(segmenter(image, candidate_labels=" cat,sofa , wall,"), expected)
    assert_same(segmenter(image, candidate_labels=("cat", "sofa", "wall")), expected)
    assert_same(segmenter(image, candidate_labels=iter(LABELS)), expected)
    # Of synonyms only the first is prompted, and the label comes back as it was given.
    synonyms = segmenter(image, candidate_labels=["cat, kitten", "sofa", "wall"])
    assert [segment["label"].split(",")[0] for segment in synonyms] == [segment["label"] for segment in expected]
    assert "cat, kitten" in [segment["label"] for segment in synonyms]


def test_without_labels_the_checkpoint_decides(own_segmenter, image):
    segmenter, own = own_segmenter, ["cat", "sofa", "sky", "tree, oak"]
    assert_same(segmenter(image), segmenter(image, own))
    segmenter(image, ["nothing", "of this stays"])
    assert_same(segmenter(image), segmenter(image, own))
    labels = ["mouse", "lamp"]
    segmenter.model.set_vocabulary(labels, segmenter.processor(text=labels).input_ids)
    assert {segment["label"] for segment in segmenter(image)} <= set(labels)
    assert_same(segmenter(image), segmenter(image, labels))


def test_labels_given_at_construction_are_defaults(small_checkpoint, image):
    segmenter = pipeline(TASK, model=str(small_checkpoint), candidate_labels="cat, sofa", threshold=0.0)
    expected = segmenter(image, ["cat", "sofa"])
    assert_same(segmenter(image), expected)
    assert {segment["label"] for segment in segmenter(image, "wall")} == {"wall"}
    assert_same(segmenter(image), expected)


def test_prompt_templates(segmenter, image):
    default = segmenter.processor.prompt_templates
    assert_same(segmenter(image, LABELS, prompt_templates=default), segmenter(image, LABELS))
    result = segmenter(image, LABELS, prompt_templates="a bad drawing of the {}.", return_segmentation_map=True)
    other = AutoProcessor.from_pretrained(segmenter.model.config._name_or_path)
    other.prompt_templates = ["a bad drawing of the {}."]
    with torch.no_grad():
        outputs = segmenter.model(**other(images=image, text=LABELS))
    (expected,) = other.post_process_semantic_segmentation(outputs, [image.size[::-1]])
    assert torch.equal(result["segmentation"], expected)
    assert segmenter.processor.prompt_templates == default
    # The checkpoint's own labels in other prompts.
    own = list(segmenter.model.config.id2label.values())
    assert_same(segmenter(image, prompt_templates=["the {}"]), segmenter(image, own, prompt_templates=["the {}"]))


@pytest.mark.parametrize("name", ["inputs", "images"])
def test_names_of_the_image(segmenter, image, name):
    assert_same(segmenter(**{name: image}, candidate_labels=LABELS), segmenter(image, LABELS))


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ({"hypothesis_template": "a {}"}, {"prompt_templates": "a {}"}),
        ({"subtask": "semantic"}, {}),
        ({"mask_threshold": 0.9, "overlap_mask_area_threshold": 0.9}, {}),
    ],
    ids=lambda arguments: " and ".join(arguments),
)
def test_arguments_of_other_pipelines(segmenter, image, arguments, same):
    assert_same(segmenter(image, LABELS, **arguments), segmenter(image, LABELS, **same))


def test_thresholds_without_a_meaning_say_so(segmenter, image, monkeypatch):
    warnings = []
    monkeypatch.setattr(pipeline_catseg.logger, "warning_once", warnings.append)
    segmenter(image, LABELS, mask_threshold=0.9)
    assert "`mask_threshold` and `overlap_mask_area_threshold` change nothing" in warnings[0]


def test_top_k(segmenter, image):
    segments = segmenter(image, LABELS)
    assert len(segments) > 1
    for top_k in (1, len(segments), 100):
        assert_same(segmenter(image, LABELS, top_k=top_k), segments[:top_k])


def test_the_model_and_the_processor_alone_are_enough(small_checkpoint, image, segmenter):
    expected = segmenter(image, LABELS)
    model = CATSegForSemanticSegmentation.from_pretrained(small_checkpoint).train()
    processor = AutoProcessor.from_pretrained(small_checkpoint)
    assert_same(OpenVocabularySegmentationPipeline(model=model, processor=processor)(image, LABELS), expected)
    of_another_task = pipeline(
        "image-segmentation", model=str(small_checkpoint), pipeline_class=OpenVocabularySegmentationPipeline
    )
    assert type(of_another_task) is OpenVocabularySegmentationPipeline
    assert_same(of_another_task(image, LABELS), expected)


def test_save_and_load_the_pipeline(own_segmenter, image, tmp_path):
    expected = own_segmenter(image)
    own_segmenter.save_pretrained(tmp_path / "saved")
    again = pipeline(TASK, model=str(tmp_path / "saved"))
    assert again.processor.prompt_templates == own_segmenter.processor.prompt_templates
    assert_same(again(image), expected)


def test_kinds_of_pictures(segmenter, image, tmp_path):
    expected = segmenter(image, LABELS)
    assert_same(segmenter(str(PICTURE), LABELS), expected)
    assert_same(segmenter(PICTURE, LABELS), expected)
    pixels = np.array(image)
    assert_same(segmenter(pixels, LABELS), expected)
    assert_same(segmenter(torch.tensor(pixels).permute(2, 0, 1), LABELS), expected)
    assert_same(segmenter(PICTURE.read_bytes(), LABELS), expected)
    assert_same(segmenter([BytesIO(PICTURE.read_bytes())], LABELS)[0], expected)
    image.convert("RGBA").save(tmp_path / "alpha.png")
    assert_same(segmenter(str(tmp_path / "alpha.png"), LABELS), expected)
    grey = segmenter(image.convert("L"), LABELS)
    assert_same(grey, segmenter(np.array(image.convert("L")), LABELS))
    assert_same(grey, segmenter(np.array(image.convert("L")).astype(np.uint16) * 257, LABELS))
    assert segmenter(Image.new("RGB", (1, 1)), "cat")[0]["mask"].size == (1, 1)


def test_pictures_are_shown_upright(segmenter, image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    expected = segmenter(image, LABELS)
    assert_same(segmenter(str(tmp_path / "turned.png"), LABELS), expected)
    assert_same(segmenter(Image.open(tmp_path / "turned.png"), LABELS), expected)


@pytest.fixture(scope="module")
def server():
    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/slow.png":
                released.wait(20)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    released = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=FIXTURES))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    released.set()
    server.shutdown()
    server.server_close()


def test_urls(segmenter, image, server):
    assert_same(segmenter(f"{server}/picture.png", LABELS), segmenter(image, LABELS))
    with pytest.raises(ValueError, match=r"absent\.png' could not be read: .*404"):
        segmenter(f"{server}/absent.png", LABELS)
    with pytest.raises(ValueError, match=r"slow\.png' could not be read: .*timed out"):
        segmenter(f"{server}/slow.png", LABELS, timeout=0.2)
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/a\.png' could not be read: .*refused"):
        segmenter("http://127.0.0.1:9/a.png", LABELS)


@pytest.mark.slow
def test_many_pictures(segmenter, images):
    expected = [segmenter(image, LABELS) for image in images]
    column = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    calls = {
        "list": lambda **kwargs: segmenter(images, LABELS, **kwargs),
        "tuple": lambda **kwargs: segmenter(tuple(images), LABELS, **kwargs),
        "generator": lambda **kwargs: segmenter((image for image in images), LABELS, **kwargs),
        "iterator": lambda **kwargs: segmenter(iter(images), LABELS, **kwargs),
        "KeyDataset": lambda **kwargs: segmenter(KeyDataset(column, "image"), LABELS, **kwargs),
        "column": lambda **kwargs: segmenter(column["image"], LABELS, **kwargs),
        "streamed column": lambda **kwargs: segmenter(column.to_iterable_dataset()["image"], LABELS, **kwargs),
    }
    for name, call in calls.items():
        # The last batch of two has one image.
        for batch_size in (1, 2) if name in ("list", "generator", "KeyDataset") else (2,):
            results = call(batch_size=batch_size)
            assert isinstance(results, list) == (name in ("list", "tuple"))
            for actual, wanted in zip(results, expected, strict=True):
                assert_same(actual, wanted)
    assert segmenter([], LABELS) == []


def test_batches_of_the_checkpoints_vocabulary(segmenter, images):
    for actual, image in zip(segmenter(images, batch_size=3), images, strict=True):
        assert_same(actual, segmenter(image))


def test_generators_are_read_as_they_are_needed(segmenter, image):
    read = []

    def pictures():
        for index in range(100):
            read.append(index)
            yield image

    results = iter(segmenter(pictures(), "cat"))
    next(results)
    next(results)
    assert len(read) <= 3


def test_probabilities(segmenter, images):
    results = segmenter(images[:2], LABELS, batch_size=2, return_probabilities=True)
    for image, result in zip(images, results, strict=False):
        assert set(result) == {"segments", "probabilities"}
        resized = torch.nn.functional.interpolate(result["probabilities"][None], image.size[::-1], mode="bilinear")[0]
        torch.testing.assert_close(resized, probabilities(segmenter, image, LABELS), atol=1e-5, rtol=0)
        both = segmenter(image, LABELS, return_probabilities=True, return_segmentation_map=True)
        assert set(both) == {"segments", "probabilities", "segmentation"}


def test_sliding_window_of_one_call(segmenter, own_segmenter, image):
    own_segmenter.model.config.sliding_window = True
    own_segmenter.processor.image_processor.sliding_window = True
    on = segmenter(image, LABELS, sliding_window=True, return_probabilities=True)
    torch.testing.assert_close(
        on["probabilities"], own_segmenter(image, LABELS, return_probabilities=True)["probabilities"]
    )
    off = own_segmenter(image, LABELS, sliding_window=False, return_probabilities=True)
    torch.testing.assert_close(
        off["probabilities"],
        segmenter(image, LABELS, sliding_window=False, return_probabilities=True)["probabilities"],
    )


def test_sliding_window(own_segmenter, images):
    own_segmenter.model.config.sliding_window = True
    expected = probabilities(own_segmenter, images[0], LABELS).argmax(dim=0)
    results = own_segmenter(images[:2], LABELS, batch_size=2, return_segmentation_map=True)
    different = results[0]["segmentation"] != expected
    assert float(different.float().mean()) < 1e-3
    assert_same(results[1]["segments"], own_segmenter(images[1], LABELS))


def test_labels_of_one_call_never_reach_another(segmenter, images):
    vocabularies = [["cat", "sofa"], ["sofa", "cat"], ["sky", "tree", "road"], ["lamp"], None]
    work = [(image, labels) for labels in vocabularies for image in images[:2]]
    expected = [segmenter(image, labels) for image, labels in work]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda arguments: segmenter(*arguments), work))
    for actual, wanted in zip(results, expected, strict=True):
        assert_same(actual, wanted)


def test_threads_may_meet_in_an_unused_tokenizer(small_checkpoint, image):
    segmenter = pipeline(TASK, model=str(small_checkpoint))
    work = [[f"thing {first}", f"thing {first + 1}"] for first in range(8)]
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda labels: segmenter(image, labels), work))
    for labels, segments in zip(work, results, strict=True):
        assert {segment["label"] for segment in segments} <= set(labels)


def test_labels_are_encoded_once(own_segmenter, images, monkeypatch):
    calls = []
    encode = CATSegModel.get_text_embeds
    monkeypatch.setattr(CATSegModel, "get_text_embeds", lambda *args: calls.append(args) or encode(*args))
    for _ in range(3):
        own_segmenter(images, LABELS, batch_size=2)
    assert len(calls) == 1
    own_segmenter(images, ["something else"])
    own_segmenter(images, LABELS)
    assert len(calls) == 3


def test_labels_are_segmented_together(own_segmenter, image, monkeypatch):
    calls = []
    forward = CATSegForSemanticSegmentation.forward
    monkeypatch.setattr(
        CATSegForSemanticSegmentation,
        "forward",
        lambda *args, **kwargs: calls.append(len(kwargs["input_ids"])) or forward(*args, **kwargs),
    )
    own_segmenter(image, [f"label {index}" for index in range(40)])
    assert calls == [40]


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype(small_checkpoint, image, segmenter, dtype):
    half = pipeline(TASK, model=str(small_checkpoint), dtype=dtype)
    assert half.model.dtype == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    result = half([image, image], LABELS, batch_size=2, return_segmentation_map=True)[0]
    expected = segmenter(image, LABELS, return_segmentation_map=True)
    assert float((result["segmentation"] == expected["segmentation"]).float().mean()) > 0.8
    assert all(segment["mask"].size == image.size for segment in result["segments"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpu(small_checkpoint, images, segmenter, dtype):
    on_gpu = pipeline(TASK, model=str(small_checkpoint), device="cuda:0", dtype=dtype)
    assert on_gpu.model.device.type == "cuda"
    results = on_gpu(images, LABELS, batch_size=2, return_segmentation_map=True)
    for result, image in zip(results, images, strict=True):
        expected = segmenter(image, LABELS, return_segmentation_map=True)["segmentation"]
        assert result["segmentation"].device.type == "cpu"
        same = float((result["segmentation"] == expected).float().mean())
        assert same > (0.99 if dtype == "float32" else 0.8)


def test_many_masks_are_kept_packed(segmenter, image, monkeypatch):
    expected = segmenter(image, LABELS)
    monkeypatch.setattr(pipeline_catseg, "_MAX_MASK_BYTES", 0)
    packed = segmenter(image, LABELS)
    for segment in packed:
        # Pillow's class of files that are not read yet.
        assert isinstance(segment["mask"], ImageFile.ImageFile)
        assert segment["mask"].mode == "L" and segment["mask"].size == image.size
    assert_same(packed, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidate_labels": []}, "at least one"),
        ({"candidate_labels": ""}, "at least one"),
        ({"candidate_labels": " , ,"}, "at least one"),
        ({"candidate_labels": 5}, "a list of labels"),
        ({"candidate_labels": ["cat", 5]}, "Label 1 is 5"),
        ({"candidate_labels": ["cat", None]}, "Label 1 is None"),
        ({"candidate_labels": ["cat", ["sofa"]]}, r"Label 1 is \['sofa'\]"),
        ({"candidate_labels": ["cat", "  "]}, "blank"),
        ({"candidate_labels": ["cat", "cat"]}, "occurs twice"),
        ({"candidate_labels": ["cat", "word " * 500]}, "'word word .* tokens, but at most 77"),
        ({"candidate_labels": [str(index) for index in range(5000)]}, "5000 labels and words, but at most 4096"),
        ({"threshold": 1.5}, "between 0 and 1, got 1.5"),
        ({"threshold": float("nan")}, "between 0 and 1, got nan"),
        ({"threshold": "0.5"}, "between 0 and 1, got '0.5'"),
        ({"prompt_templates": ["a {}", "the {}"]}, "2 prompt templates, but the model takes 1"),
        ({"prompt_templates": "a photo"}, "'a photo' is not accepted"),
        ({"prompt_templates": []}, "empty"),
        ({"prompt_templates": "a {}", "hypothesis_template": "a {}"}, "Got both"),
        ({"subtask": "panoptic"}, "'panoptic', but CAT-Seg does semantic segmentation only"),
        ({"top_k": 0}, "`top_k` is 0, but a number of segments"),
    ],
)
def test_bad_arguments(segmenter, image, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        segmenter(image, **{"candidate_labels": LABELS, **arguments})
    assert "\n" not in str(error.value)
    # The next call knows nothing of it.
    assert {segment["label"] for segment in segmenter(image, LABELS)} <= set(LABELS)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "No image"),
        ("no_such_file.png", "'no_such_file.png' could not be read: there is no such file"),
        (FIXTURES, "could not be read: there is no such file"),
        (str(FIXTURES / "training.json"), "training.json' could not be read: Pillow knows no such format"),
        ("data:image/png;base64,AAAA", "could not be read"),
        (b"no image", "of type bytes could not be read: Pillow knows no such format"),
        (5, "of type int could not be read: paths, URLs"),
        ({"image": "a.png"}, r"of type dict .*dataset\['image'\]"),
        ([["a.png"]], "of type list"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "at least one pixel"),
        (np.zeros((5, 5, 7), dtype=np.uint8), "channels"),
    ],
)
def test_bad_images(segmenter, image, message):
    with pytest.raises(ValueError, match=message) as error:
        segmenter(image, LABELS)
    assert "\n" not in str(error.value)


def test_cut_file(segmenter, tmp_path):
    (tmp_path / "cut.png").write_bytes(PICTURE.read_bytes()[:20000])
    for picture in (tmp_path / "cut.png", Image.open(tmp_path / "cut.png")):
        with pytest.raises(ValueError, match="could not be read: .*truncated"):
            segmenter(picture, LABELS)


@pytest.mark.parametrize("fault", [ZeroDivisionError, ValueError, TypeError, RuntimeError])
@pytest.mark.parametrize("name", ["open_image", "process_image"])
def test_faults_of_this_program_keep_their_type(segmenter, name, fault, monkeypatch):
    """They are not taken for an image that cannot be read."""

    def fail(*arguments, **options):
        raise fault("fault")

    owner = image_sources_catseg if name == "open_image" else segmenter.processor.image_processor
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(fault, match="^fault$") as error:
        segmenter(str(PICTURE), LABELS)
    assert not isinstance(error.value, UserError)


def test_bad_addresses(segmenter):
    for address in ("http://[::1", "http://127.0.0.1:9/\udc80", "http://"):
        with pytest.raises(UserError, match="could not be read"):
            segmenter(address, LABELS)


def test_unknown_argument(segmenter, image):
    with pytest.raises(TypeError, match="treshold"):
        segmenter(image, LABELS, treshold=0.5)


def test_other_models_are_refused(small_checkpoint, processor):
    base = CATSegModel.from_pretrained(small_checkpoint)
    with pytest.raises(ValueError, match="CATSegModel.*only CATSegForSemanticSegmentation"):
        OpenVocabularySegmentationPipeline(model=base, processor=processor)
    model = CATSegForSemanticSegmentation.from_pretrained(small_checkpoint)
    with pytest.raises(ValueError, match="NoneType, but a CATSegProcessor is needed"):
        OpenVocabularySegmentationPipeline(model=model)


def test_built_in_pipeline(small_checkpoint, image, segmenter, caplog, capfd):
    built_in = pipeline("image-segmentation", model=str(small_checkpoint))
    segments = built_in(image)
    assert "not supported" not in caplog.text + capfd.readouterr().err
    expected = {segment["label"]: segment["mask"] for segment in segmenter(image)}
    assert {segment["label"] for segment in segments} == set(expected)
    for segment in segments:
        assert np.array_equal(np.array(segment["mask"]), np.array(expected[segment["label"]]))

    labels = ["mouse", "lamp"]
    processor = AutoProcessor.from_pretrained(small_checkpoint)
    built_in.model.set_vocabulary(labels, processor(text=labels).input_ids)
    assert {segment["label"] for segment in built_in(image)} <= set(labels)


OTHER_MODELS = """
import hashlib, json, sys
import torch
from PIL import Image
from transformers import (CLIPTokenizer, OneFormerConfig, OneFormerForUniversalSegmentation, SegformerConfig,
    SegformerForSemanticSegmentation, SwinConfig, pipeline)
from transformers.models.oneformer.image_processing_pil_oneformer import OneFormerImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

fixtures, folder = sys.argv[1:3]
with open(folder + "/classes.json", "w") as file:
    json.dump({str(i): {"isthing": i % 2, "name": f"class {i}"} for i in range(4)}, file)


def results():
    torch.manual_seed(0)
    image = Image.open(fixtures + "/picture.png").convert("RGB").resize((90, 60))
    segformer = SegformerForSemanticSegmentation(SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=4)).eval()
    oneformer = OneFormerForUniversalSegmentation(OneFormerConfig(
        backbone_config=SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"]), num_queries=8, hidden_dim=32, conv_dim=32,
        mask_dim=32, num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16, decoder_layers=2,
        encoder_layers=1, query_dec_layers=1, text_encoder_width=16, text_encoder_num_layers=1,
        text_encoder_vocab_size=512, num_labels=4, is_training=False)).eval()
    size = {"height": 64, "width": 64}
    segformer_pipe = pipeline("image-segmentation", model=segformer,
        image_processor=SegformerImageProcessorPil(size=size))
    oneformer_pipe = pipeline("image-segmentation", model=oneformer, image_processor=OneFormerImageProcessorPil(
        size=size, repo_path=folder, class_info_file="classes.json", num_labels=4),
        tokenizer=CLIPTokenizer.from_pretrained(fixtures + "/tokenizer"))
    for pipe, kwargs in ((segformer_pipe, {}), (oneformer_pipe, {"subtask": "semantic"})):
        yield [type(pipe).__name__] + [
            [s["label"], s["score"], hashlib.sha256(s["mask"].tobytes()).hexdigest()] for s in pipe(image, **kwargs)]


before = list(results())
import catseg_hf
after = list(results())
print(json.dumps([before, after]))
"""


@pytest.mark.slow
def test_built_in_pipelines_of_other_models_stay_the_same(tmp_path):
    command = [sys.executable, "-c", OTHER_MODELS, FIXTURES, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not supported" not in done.stderr
    before, after = json.loads(done.stdout)
    assert len(before) == 2 and all(len(result) > 1 for result in before)
    assert before == after


LARGE_PICTURE = """
import resource, sys
from PIL import Image
from transformers import pipeline
from catseg_hf import load_vocabulary

segmenter = pipeline("zero-shot-image-segmentation", model=sys.argv[1])
image = Image.open(sys.argv[2]).convert("RGB")
segmenter(image, "cat")
image = image.resize((4000, 3000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = segmenter(image, load_vocabulary("ade20k_847"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(result), *result[0]["mask"].size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_of_many_labels_on_a_large_picture(small_checkpoint, tmp_path):
    model = CATSegForSemanticSegmentation.from_pretrained(small_checkpoint)
    model.config.sliding_window = True
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(small_checkpoint).save_pretrained(tmp_path)
    command = [sys.executable, "-c", LARGE_PICTURE, tmp_path, PICTURE]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kilobytes, num_segments, *size = map(int, output.split())
    assert size == [4000, 3000] and 0 < num_segments <= len(load_vocabulary("ade20k_847"))
    assert kilobytes * 1024 < 3e9
