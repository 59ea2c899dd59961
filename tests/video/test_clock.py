"""Streams whose clock does not begin at 0, and clocks that jump."""

from fractions import Fraction

import av
import pytest

from catseg_hf import cli
from catseg_testing.video_clips import RATE, copy, pan, read_clip, write_clip


NUM_FRAMES = 10
HOURS = 24549  # of a channel that came up long ago, in seconds
CONTAINERS = {
    "mkv": {},
    "webm": {"codec": "libvpx-vp9", "audio": "libopus", "sample_rate": 48000},
    "mp4": {},
    "mov": {},
    "ts": {},
    "flv": {"sample_rate": 44100},
    "nut": {},
}


def starts(path):
    """When video and audio begin, in seconds."""
    with av.open(str(path)) as container:
        return [float(stream.start_time * stream.time_base) for stream in container.streams]


@pytest.mark.parametrize(("start", "output"), [(0, "out.mp4"), (2, "out.mp4"), (HOURS, "out.mp4"), (HOURS, "out.mkv")])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_the_output_begins_at_0(tmp_path, suffix, start, output):
    clip = write_clip(tmp_path / f"clip.{suffix}", pan(0, NUM_FRAMES), start=start, **CONTAINERS[suffix])
    assert copy(clip, tmp_path / output)
    _, times, packets, _ = read_clip(tmp_path / output)
    assert min(starts(tmp_path / output)) == 0
    assert times[0] < 0.2 and len(times) == NUM_FRAMES
    assert [float(time - times[0]) for time in times] == pytest.approx([i / RATE for i in range(NUM_FRAMES)], abs=2e-3)
    assert all(-0.2 < time < NUM_FRAMES / RATE + 0.2 for time, _ in packets)


@pytest.mark.parametrize("audio_start", [Fraction(4, 5), Fraction(-4, 5)])
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "flv"])
def test_audio_keeps_its_distance(tmp_path, suffix, audio_start):
    kwargs = CONTAINERS[suffix] | {"start": HOURS, "audio_start": audio_start}
    clip = write_clip(tmp_path / f"clip.{suffix}", pan(0, NUM_FRAMES), **kwargs)
    assert copy(clip, tmp_path / "out.mkv")
    (before, after) = (starts(path) for path in (clip, tmp_path / "out.mkv"))
    assert min(after) == 0
    assert after[1] - after[0] == pytest.approx(before[1] - before[0], abs=2e-3)
    assert after[1] - after[0] == pytest.approx(float(audio_start), abs=0.15)  # but for what encoders put before


@pytest.mark.parametrize(("suffix", "segment_format"), [("mkv", "matroska"), ("ts", "mpegts"), ("mp4", "mp4")])
def test_parts_that_a_segment_muxer_cut(tmp_path, capsys, suffix, segment_format):
    options = {"segment_time": "1", "segment_format": segment_format}
    with av.open(str(tmp_path / f"%d.{suffix}"), "w", format="segment", options=options) as container:
        stream = container.add_stream("libx264", RATE, {"g": str(RATE)}, width=96, height=64, pix_fmt="yuv420p")
        for index, image in enumerate(pan(0, 2 * RATE)):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    output = tmp_path / "out.mp4"
    assert cli.main(["video", str(tmp_path / f"1.{suffix}"), "--output", str(output), "--labels", "cat, grass"]) == 0
    assert read_clip(output)[1] == [Fraction(index, RATE) for index in range(RATE)]


@pytest.mark.parametrize("shown", [4, NUM_FRAMES])
def test_an_edit_list_that_leaves_frames_out(tmp_path, shown):
    times = range(shown - NUM_FRAMES, shown)
    clip = write_clip(tmp_path / "clip.mp4", pan(0, NUM_FRAMES), times, audio=None)
    with av.open(str(clip)) as container:
        assert container.streams.video[0].frames == NUM_FRAMES
    assert copy(clip, tmp_path / "out.mp4")
    assert read_clip(tmp_path / "out.mp4")[1] == [Fraction(index, RATE) for index in range(shown)]


@pytest.mark.parametrize("start", [0, 2.5, HOURS])
def test_a_clock_that_jumps_goes_on(tmp_path, start):
    parts = [write_clip(tmp_path / f"{at}.ts", pan(0, NUM_FRAMES), start=at) for at in (100, start)]
    clip = tmp_path / "clip.ts"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    copy(clip, tmp_path / "out.mp4")
    _, times, packets, _ = read_clip(tmp_path / "out.mp4")
    assert len(times) >= 2 * NUM_FRAMES - 1  # counters that begin anew let FFmpeg take one packet for damaged
    assert times[0] < 0.2 and times[-1] == pytest.approx(2 * NUM_FRAMES / RATE, abs=0.5)
    audio = [float(time) for time, _ in packets]
    assert audio == sorted(audio) and audio[-1] == pytest.approx(float(times[-1]), abs=0.5)


def test_a_long_pause_is_kept_where_clocks_do_not_jump(tmp_path):
    times = [0, 1, 500, 501]
    clip = write_clip(tmp_path / "clip.mkv", pan(0, 4), times, audio=None)
    assert copy(clip, tmp_path / "out.mkv")
    assert read_clip(tmp_path / "out.mkv")[1] == [Fraction(time, RATE) for time in times]
