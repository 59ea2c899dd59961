"""The command `catseg-hf video` and what it is made of."""

import subprocess
import sys
import weakref
from fractions import Fraction
from io import StringIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from catseg_hf import EMBEDDED_MODEL, cli
from catseg_hf.errors import UserError
from catseg_hf.video import FrameSegmenter, TemporalAverage, files, segment_video, segmentation
from catseg_hf.video.files import VideoReader, VideoWriter
from catseg_hf.visualization import overlay_segmentation
from catseg_testing.video_clips import RATE, SAMPLE_RATE, SIZE, copy, names, pan, read_clip, write_clip


LABELS = ["grass", "water", "snow", "cat", "balloon"]
FASTSTART = {"movflags": "faststart"}


@pytest.fixture(scope="module")
def segmenter():
    return pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL)


def run(source, output, *options, labels="grass, water, snow, cat, balloon"):
    return cli.main(["video", str(source), "--output", str(output), "--labels", labels, *options])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", pytest.param(".mkv", marks=pytest.mark.slow)])
def test_ten_seconds_keep_their_frames_rate_size_and_audio(tmp_path, capsys, suffix):
    clip = write_clip(tmp_path / f"clip{suffix}", pan(0, 5 * RATE) + pan(3, 5 * RATE))
    assert run(clip, tmp_path / f"out{suffix}") == 0
    assert names(tmp_path) == [f"clip{suffix}", f"out{suffix}", "out_legend.png"]
    printed = capsys.readouterr().out
    assert f"{clip}: " in printed and f"Segmented 50 frames into {tmp_path / f'out{suffix}'}" in printed
    (about, times, packets, frames), written = read_clip(clip), read_clip(tmp_path / f"out{suffix}")
    assert about == written[0] == (*SIZE, RATE) and len(times) == 50 and len(packets) > 50
    assert written[1:3] == (times, packets)
    difference = np.abs(written[3][0].to_ndarray(format="rgb24") - frames[0].to_ndarray(format="rgb24").astype(int))
    assert difference.mean() > 20


def test_frames_are_drawn_as_images_are(segmenter, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pan(61, 1))
    with VideoReader(clip) as reader:
        summary = segment_video(segmenter, reader, tmp_path / "out.mp4", LABELS, threshold=0.3, opacity=0.8)
    image = read_clip(clip)[3][0].to_image()
    expected = segmenter(image, LABELS, threshold=0.3, return_segmentation_map=True)["segmentation"]
    assert -1 in expected and len(expected.unique()) > 2
    drawn = np.asarray(overlay_segmentation(image, expected, opacity=0.8)).astype(int)
    written = read_clip(tmp_path / "out.mp4")[3][0].to_ndarray(format="rgb24")
    assert np.abs(written - drawn).mean() < 10  # colours are stored at half the resolution
    shares = {index: (expected == index).float().mean().item() for index in expected.unique().tolist()}
    assert summary.num_frames == 1 and summary.shares == pytest.approx(shares, abs=1e-3)
    assert list(summary.shares.values()) == sorted(summary.shares.values(), reverse=True)


@pytest.mark.parametrize("sliding_window", [None, False, True])
def test_sliding_window(segmenter, sliding_window):
    (image,) = pan(1, 1)
    kwargs = {} if sliding_window is None else {"sliding_window": sliding_window}
    expected = segmenter(image, LABELS, return_segmentation_map=True, **kwargs)["segmentation"]
    assert (FrameSegmenter(segmenter, LABELS, sliding_window)(image, 0.0) == expected).float().mean() > 0.999
    if sliding_window:
        assert (segmenter(image, LABELS, return_segmentation_map=True)["segmentation"] != expected).any()


def test_the_text_tower_runs_once(segmenter, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pan(0, 4), audio=None)
    calls = []
    hook = segmenter.model.clip.text_model.register_forward_hook(lambda *arguments: calls.append(arguments))
    with VideoReader(clip) as reader, hook:
        segment_video(segmenter, reader, tmp_path / "out.mp4", LABELS)
    assert len(calls) == 1


def test_progress(segmenter, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mkv", pan(0, 4), audio=None)
    bars = []

    class Bar(segmentation.tqdm):
        def close(self):
            bars.append((self.n, self.total))

    monkeypatch.setattr(segmentation, "tqdm", lambda **kwargs: Bar(**kwargs | {"disable": False, "file": StringIO()}))
    with VideoReader(clip) as reader:
        segment_video(segmenter, reader, tmp_path / "out.mp4", LABELS)
    assert (4, 4) in bars


def test_no_lag_on_cuts(segmenter, monkeypatch):
    before, after = pan(0, 4), pan(3, 2)

    def segment_cut():
        segment = FrameSegmenter(segmenter, LABELS, smoothing=2.0)
        return [segment(image, index / RATE) for index, image in enumerate(before + after)]

    alone = [FrameSegmenter(segmenter, LABELS, smoothing=2.0)(image, 0.0) for image in (before[3], after[0])]
    averaged = segment_cut()
    assert torch.equal(averaged[4], alone[1])
    assert not torch.equal(averaged[3], alone[0])  # no cut
    monkeypatch.setattr(segmentation, "CUT_DIFFERENCE", 1.0)
    assert (segment_cut()[4] != alone[1]).float().mean() > 0.01


def test_smoothing_reduces_flicker(segmenter):
    (scene,) = pan(0, 1)
    noise = np.random.default_rng(0).normal(0, 30, (12, SIZE[1], SIZE[0], 3))
    images = [Image.fromarray((np.asarray(scene) + n).clip(0, 255).astype(np.uint8)) for n in noise]

    def flicker(smoothing):
        segment = FrameSegmenter(segmenter, LABELS, smoothing=smoothing)
        maps = torch.stack([segment(image, index / 25) for index, image in enumerate(images)])
        return (maps[1:] != maps[:-1]).float().mean().item()

    assert flicker(0.2) < 0.5 * flicker(0)


@pytest.mark.parametrize("times", [[0, 0.5], [0, 0.1, 0.3, 0.5], np.arange(51) / 100])
def test_the_average_does_not_depend_on_the_frame_rate(times):
    average, image = TemporalAverage(0.5), Image.new("RGB", SIZE)
    for time in times:
        mean = average(torch.tensor([float(time == 0)]), image, time)
    assert mean.item() == pytest.approx(np.exp(-1), abs=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, float("nan"), float("inf")])
def test_smoothing_that_is_no_time(smoothing):
    with pytest.raises(UserError, match="smoothing"):
        TemporalAverage(smoothing)


@pytest.mark.parametrize("num_frames", [6, 24])
def test_one_frame_is_kept_at_a_time(segmenter, tmp_path, monkeypatch, num_frames):
    live, most = weakref.WeakSet(), []

    class CountedFrame(files.Frame):
        __hash__ = object.__hash__

        def __init__(self, *arguments):
            super().__init__(*arguments)
            live.add(self)
            most.append(len(live))

    monkeypatch.setattr(files, "Frame", CountedFrame)
    clip = write_clip(tmp_path / "clip.mp4", pan(0, num_frames), audio=None)
    with VideoReader(clip) as reader:
        segment_video(segmenter, reader, tmp_path / "out.mp4", LABELS)
    assert len(most) == num_frames and max(most) == 2  # the next one, while the last one has its name


@pytest.mark.parametrize(("rotation", "mirror"), [(0, False), (90, False), (180, False), (270, False), (90, True)])
def test_orientation(tmp_path, rotation, mirror):
    image = Image.new("RGB", SIZE, "black")
    image.paste("white", (0, 0, SIZE[0] // 2, SIZE[1] // 2))
    clip = write_clip(tmp_path / "clip.mp4", [image], rotation=rotation, mirror=mirror)
    with VideoReader(clip) as reader:
        (frame,) = reader.read_frames(lambda packet: None)
    upright = image.rotate(rotation, expand=True)  # both counterclockwise
    upright = upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else upright
    assert frame.image.size == upright.size
    assert np.abs(np.asarray(frame.image).astype(int) - np.asarray(upright)).mean() < 3
    assert copy(clip, tmp_path / "out.mp4")
    ((about, *_, (stored,)), (_, *_, (written,))) = read_clip(clip), read_clip(tmp_path / "out.mp4")
    matrices = [frame.side_data.get("DISPLAYMATRIX") for frame in (written, stored)]
    assert matrices == [None, None] if rotation == 0 else bytes(matrices[0]) == bytes(matrices[1])
    assert about[:2] == (written.width, written.height) == SIZE
    assert np.abs(written.to_ndarray(format="gray").astype(int) - stored.to_ndarray(format="gray")).mean() < 3


@pytest.mark.parametrize("output", ["out.mp4", "out.mov", "out.mkv"])
@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_variable_rate_and_odd_size(tmp_path, monkeypatch, output, encoder):
    monkeypatch.setattr(files, "ENCODERS", {encoder: files.ENCODERS[encoder]})
    times = [0, 3000, 9000, 40000, 41000, 100000, 180000]
    images = [image.crop((0, 0, 65, 33)) for image in pan(0, len(times))]
    clip = write_clip(tmp_path / "clip.mp4", images, times, time_base=Fraction(1, 90000), audio=None)
    assert copy(clip, tmp_path / output)
    about, written, *_ = read_clip(tmp_path / output)
    assert about[:2] == (65, 33)
    assert [float(time) for time in written] == pytest.approx([time / 90000 for time in times], abs=1e-3)


def test_audio_of_an_unknown_kind_is_left_out(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pan(0, 5))
    clip.write_bytes(clip.read_bytes().replace(b"mp4a", b"apac").replace(b"esds", b"dapa"))
    assert copy(clip, tmp_path / "out.mp4")
    _, times, packets, _ = read_clip(tmp_path / "out.mp4")
    assert len(times) == 5 and packets == []


def test_a_file_without_times(tmp_path):
    clip = write_clip(tmp_path / "clip.h264", pan(0, 5), audio=None)
    assert copy(clip, tmp_path / "out.mp4")
    _, times, *_ = read_clip(tmp_path / "out.mp4")
    assert times == [Fraction(index, RATE) for index in range(5)]


def test_colors_are_tagged_as_they_were(tmp_path):
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, width=SIZE[0], height=SIZE[1], colorspace=1, color_range=2)
        frame = av.VideoFrame.from_image(Image.new("RGB", SIZE, (200, 40, 90)))
        frame = frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=2)
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert copy(clip, tmp_path / "out.mp4")
    (written,) = read_clip(tmp_path / "out.mp4")[3]
    assert (written.colorspace, written.color_range) == (1, 2)
    assert np.abs(written.to_ndarray(format="rgb24").astype(int) - (200, 40, 90)).max() < 6


@pytest.mark.parametrize(("name", "options"), [("clip.mp4", FASTSTART), ("clip.mkv", {})])
@pytest.mark.parametrize("share", [0.6, 0.97])
def test_a_truncated_video_gives_what_can_be_read(tmp_path, capsys, name, options, share):
    clip = write_clip(tmp_path / name, pan(0, 30), options=options)
    content = clip.read_bytes()
    clip.write_bytes(content[: int(share * len(content))])
    output = tmp_path / "out.mp4"
    assert run(clip, output) == 1
    _, times, *_ = read_clip(output)
    assert 10 < len(times) < 30 or (share > 0.9 and len(times) == 30)
    assert times[:10] == [Fraction(index, RATE) for index in range(10)]
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"{str(clip)!r} is damaged or ends too early: the {len(times)} frames" in error and repr(str(output)) in error
    )
    assert names(tmp_path) == [name, "out.mp4", "out_legend.png"]


def test_damage_in_the_middle_is_skipped(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pan(0, 30), audio=None, options=FASTSTART)
    content = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packet = list(container.demux())[15]
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    clip.write_bytes(content)
    assert not copy(clip, tmp_path / "out.mp4")
    _, times, *_ = read_clip(tmp_path / "out.mp4")
    assert 20 < len(times) < 30 and times[-1] == Fraction(29, RATE)


def test_nothing_of_it_can_be_read(tmp_path, capsys):
    clip = write_clip(tmp_path / "clip.mp4", pan(0, 10))  # its index is at the end
    clip.write_bytes(clip.read_bytes()[:2000])
    assert run(clip, tmp_path / "out.mp4") != 0
    assert f"The video {str(clip)!r} could not be read" in capsys.readouterr().err
    assert names(tmp_path) == ["clip.mp4"]


def write_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts = SAMPLE_RATE, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("absent.mp4", "out.mp4", "'absent.mp4' could not be read: No such file"),
        ("empty.mp4", "out.mp4", "'empty.mp4' could not be read"),
        (".", "out.mp4", "'.' could not be read"),
        ("notes.txt", "out.mp4", "'notes.txt' has no video"),
        ("image.png", "out.mp4", "'image.png' has no video"),
        ("audio.m4a", "out.mp4", "'audio.m4a' has no video"),
        ("clip.mp4", "out.gif", "'out.gif' ends in '.gif', but a name in .mp4, .mov, .mkv is needed"),
        ("clip.mp4", "out", "'out' ends in ''"),
        ("clip.mp4", "clip.mp4", "'clip.mp4' exists already"),
        ("clip.mp4", "absent/out.mp4", "folder 'absent' does not exist"),
        ("strange.avi", "out.mp4", "'out.mp4' cannot hold the audio of 'strange.avi' (adpcm_ms)"),
    ],
)
def test_errors(tmp_path, monkeypatch, capsys, source, output, message):
    monkeypatch.chdir(tmp_path)
    write_clip("clip.mp4", pan(0, 2))
    write_clip("strange.avi", pan(0, 2), audio="adpcm_ms")
    write_audio("audio.m4a")
    Path("notes.txt").write_text("no video\n" * 99)
    Path("empty.mp4").touch()
    Image.new("RGB", SIZE).save("image.png")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(source, output) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("catseg-hf: error:")]
    assert message in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("options", "labels"), [(["--smoothing=-1"], "cat"), ([], "cat, cat"), ([], " , ")])
def test_bad_options(tmp_path, capsys, options, labels):
    clip = write_clip(tmp_path / "clip.mp4", pan(0, 2))
    assert run(clip, tmp_path / "out.mp4", *options, labels=labels) == 2
    assert "catseg-hf: error:" in capsys.readouterr().err
    assert names(tmp_path) == ["clip.mp4"]


def test_an_interrupted_run_leaves_nothing(segmenter, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", pan(0, 5))
    files = []

    def interrupt(self, frame, image, write=VideoWriter.write):
        write(self, frame, image)
        files[:] = names(tmp_path)
        if frame.pts:
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "write", interrupt)
    with VideoReader(clip) as reader, pytest.raises(KeyboardInterrupt):
        segment_video(segmenter, reader, tmp_path / "out.mp4", LABELS)
    assert files == [".out.mp4.incomplete", "clip.mp4"]
    assert names(tmp_path) == ["clip.mp4"]


@pytest.mark.slow
def test_without_pyav(tmp_path):
    code = (
        "import sys; sys.modules['av'] = None; from catseg_hf.cli import main; "
        f"sys.exit(main(['video', 'clip.mp4', '--labels', 'cat', '--output', {str(tmp_path / 'out.mp4')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        'catseg-hf: error: Videos need PyAV: install it, or catseg_hf with its extra, "catseg_hf[video]".'
    )
