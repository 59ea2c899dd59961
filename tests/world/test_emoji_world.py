"""The emoji world: scenes, what their label maps and captions say, and folders of them. No font is needed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import emoji_world
from catseg_hf.errors import UserError
from catseg_training.world import scenes
from catseg_training.world.captions import caption
from catseg_training.world.evaluation import read_scenes
from catseg_training.world.folders import NO_CLASS, write_scenes
from catseg_training.world.glyphs import EmojiFont, FluentIcons, GlyphCache
from catseg_training.world.scenes import draw_scene
from catseg_training.world.scoring import word_iou
from catseg_training.world.words import backgrounds, classes, noun_phrase, seen_words, things, unseen_words


def plain_colour(class_id: int) -> tuple[int, int, int]:
    """A colour of each thing's own, which no others mixed give by chance."""
    return tuple(np.random.default_rng(class_id).integers(0, 256, 3).tolist())


def draw_disc(word: str) -> Image.Image:
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((2, 2, 62, 62), fill=(*plain_colour(classes().index(word)), 255))
    return image


@pytest.fixture(scope="module")
def glyphs() -> GlyphCache:
    return GlyphCache(draw_disc)


def test_words():
    assert len(things()) >= 120 and len(backgrounds()) == 10
    assert len(set(classes())) == len(classes())
    unseen_things = [word for word in unseen_words() if word in things()]
    assert len(unseen_things) == len(things()) // 5 and len(unseen_words()) - len(unseen_things) == 2
    assert sorted((*seen_words(), *unseen_words())) == sorted(classes())


def test_scenes_are_a_function_of_seed_and_index(glyphs):
    first, again = draw_scene(glyphs, 3, 5), draw_scene(GlyphCache(draw_disc), 3, 5)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.labels, again.labels)
    assert (first.words, first.caption) == (again.words, again.caption)
    for other in (draw_scene(glyphs, 3, 6), draw_scene(glyphs, 4, 5)):
        assert not np.array_equal(first.image, other.image)


def test_labels_are_those_of_the_pixels(glyphs, monkeypatch):
    monkeypatch.setattr(scenes, "_photograph", lambda rng, image: np.asarray(image))
    for index in range(10):
        scene = draw_scene(glyphs, 0, index, size=96)
        num_things = 0
        for word in set(scene.words) & set(things()):
            class_id = classes().index(word)
            in_its_colour = (scene.image == plain_colour(class_id)).all(axis=-1)
            assert (scene.labels[in_its_colour] == class_id).all()
            num_things += in_its_colour.any()
        assert num_things


def test_captions_name_what_is_visible(glyphs):
    for index in range(10):
        scene = draw_scene(glyphs, 1, index)
        assert scene.words == [classes()[class_id] for class_id in np.unique(scene.labels)]
        assert all(noun_phrase(word) in scene.caption for word in scene.words)
        assert not {"{", "}"} & set(scene.caption)
    rng = np.random.default_rng(0)
    sentences = {caption(["apple", "cat"], ["grass"], rng) for _ in range(50)}
    assert len(sentences) > 5
    assert all("an apple" in sentence and "a cat" in sentence and "a grass" not in sentence for sentence in sentences)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_folders_with_equal_arguments_are_equal(glyphs, tmp_path):
    for name in ("a", "b"):
        write_scenes(tmp_path / name, glyphs, 3, seed=7, size=48)
        write_scenes(tmp_path / name, glyphs, 2, seed=8, split="validation", size=48)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    lines = [json.loads(line) for line in (tmp_path / "a" / "captions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines][2:4] == ["images/train/000002.png", "images/validation/000000.png"]
    assert json.loads((tmp_path / "a" / "classes.json").read_text()) == list(classes())


def test_hidden_words_have_no_pixels(glyphs, tmp_path):
    write_scenes(tmp_path / "all", glyphs, 8, seed=2)
    write_scenes(tmp_path / "hidden", glyphs, 8, seed=2, hide_unseen=True)
    unseen = [classes().index(word) for word in unseen_words()]
    num_hidden = 0
    for path in sorted((tmp_path / "all" / "labels" / "train").iterdir()):
        labels = np.asarray(Image.open(path))
        hidden = np.asarray(Image.open(tmp_path / "hidden" / "labels" / "train" / path.name))
        assert np.array_equal(hidden == 255, np.isin(labels, unseen))
        assert np.array_equal(hidden[hidden != 255], labels[hidden != 255])
        num_hidden += (hidden == 255).any()
    assert num_hidden


def test_existing_folders(glyphs, tmp_path):
    write_scenes(tmp_path / "scenes", glyphs, 1, seed=0, size=32)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="has a split 'train' already"):
        write_scenes(tmp_path / "scenes", glyphs, 1, seed=1, size=32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UserError, match="something other than scenes"):
        write_scenes(tmp_path / "mine", glyphs, 1, seed=1, size=32)
    with pytest.raises(UserError, match="--size 3 is too small"):
        write_scenes(tmp_path / "small", glyphs, 1, seed=1, size=3)
    (tmp_path / "mine" / "classes.json").write_text("damaged")
    with pytest.raises(UserError, match="scenes of other words"):
        write_scenes(tmp_path / "mine", glyphs, 1, seed=1, size=32)
    (tmp_path / "mine" / "classes.json").unlink()
    for split in ("", "..", "a/b"):
        with pytest.raises(UserError, match="must name a folder"):
            write_scenes(tmp_path / "scenes", glyphs, 1, seed=1, split=split, size=32)
    assert contents(tmp_path) == {**before, "mine/file": b""}


@pytest.mark.parametrize("kind", ["labels", "images"])
def test_a_killed_run_leaves_no_split(glyphs, tmp_path, kind, monkeypatch):
    """Killed where it moves `kind` to its place."""
    write_scenes(tmp_path / "whole", glyphs, 2, seed=0, size=32)
    write_scenes(tmp_path / "whole", glyphs, 2, seed=1, split="test", size=32)
    write_scenes(tmp_path / "killed", glyphs, 2, seed=0, size=32)
    replace = os.replace

    def kill(source, target):
        if Path(source).name == kind:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "killed", glyphs, 2, seed=1, split="test", size=32)
    monkeypatch.undo()
    write_scenes(tmp_path / "killed", glyphs, 2, seed=1, split="test", size=32)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_scores_leave_out_pixels_of_no_class():
    labels = np.array([[0, 1, NO_CLASS]])
    for prediction in (0, 5):
        ious = word_iou(np.array([[0, 1, prediction]]), labels)
        assert ious[classes()[0]] == ious[classes()[1]] == 1


def test_no_such_scenes(tmp_path):
    with pytest.raises(UserError, match="no scenes of the split 'test'.*emoji_world.py"):
        read_scenes(tmp_path, "test")


def test_no_font(tmp_path, capsys):
    with pytest.raises(UserError, match="fonts-noto-color-emoji.*--font"):
        EmojiFont(tmp_path / "missing.ttf")
    (tmp_path / "font.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match="not a font with bitmaps"):
        EmojiFont(tmp_path / "font.ttf")
    arguments = ["--output", tmp_path / "out", "--num_scenes", 1, "--seed", 0, "--font", tmp_path / "missing.ttf"]
    assert emoji_world.main([str(argument) for argument in arguments]) == 1
    assert "fonts-noto-color-emoji" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def write_icons(folder: Path, words: list[str]) -> Path:
    """Red squares, in the layout of the icons' npm package."""
    folder.mkdir()
    names = {"-".join(f"{ord(character):x}" for character in things()[word]): word for word in words}
    icons = {word: {"body": '<rect x="4" y="8" width="24" height="12" fill="red"/>'} for word in words}
    (folder / "chars.json").write_text(json.dumps(names))
    (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 32, "height": 32}))
    return folder


def test_icons_of_another_style(tmp_path):
    icon = FluentIcons(write_icons(tmp_path / "icons", list(things())))("cat")
    assert icon.size == (120, 60) and icon.getpixel((60, 30)) == (255, 0, 0, 255)


def test_incomplete_icons(tmp_path):
    with pytest.raises(UserError, match="fluent-emoji-flat.*--icons"):
        FluentIcons(tmp_path)
    with pytest.raises(UserError, match="no icon for 'zebra'"):
        FluentIcons(write_icons(tmp_path / "icons", list(things())[:-1]))
