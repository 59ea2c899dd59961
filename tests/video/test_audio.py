"""Audio that is copied, and what the formats of the output take."""

import re

import av
import numpy as np
import pytest

from catseg_hf.errors import UserError
from catseg_hf.video import VideoReader, check_audio_output
from catseg_hf.video.audio import FORMATS
from catseg_testing.video_clips import RATE, SIZE, copy, names, pan, read_clip, write_clip


# The format that each comes in here, and its sample rate.
AUDIO = {
    "aac": (".mkv", 48000),
    "libmp3lame": (".avi", 48000),
    "mp2": (".ts", 48000),
    "ac3": (".mkv", 48000),
    "eac3": (".nut", 48000),  # which FFmpeg takes for AC-3 of another kind
    "libopus": (".mkv", 48000),
    "vorbis": (".mkv", 48000),
    "flac": (".mkv", 48000),
    "alac": (".mov", 48000),
    "pcm_s16le": (".mov", 48000),
    "pcm_u8": (".avi", 8000),
    "pcm_mulaw": (".mov", 8000),
    "adpcm_ms": (".avi", 8000),
    "wavpack": (".mkv", 48000),
    "libopencore_amrnb": (".mov", 8000),
}


def packet_contents(path):
    return [content for _, content in read_clip(path)[2]]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("audio", [name for name in AUDIO if name in av.codecs_available])
def test_audio_is_written_or_refused_with_a_way_out(tmp_path, audio, suffix):
    source_suffix, sample_rate = AUDIO[audio]
    clip = write_clip(tmp_path / f"clip{source_suffix}", pan(0, 3), audio=audio, sample_rate=sample_rate)
    output = tmp_path / f"out{suffix}"
    try:
        copy(clip, output)
    except UserError as error:
        head, _, advice = str(error).partition("): ")
        assert head.startswith(f"{str(output)!r} cannot hold the audio of {str(clip)!r} (")
        assert advice.endswith("convert the audio first.")
        assert names(tmp_path) == [clip.name]
        advised = re.findall(r"\.m\w\w", advice)
        assert suffix not in advised
        with VideoReader(clip) as video:
            for other in FORMATS:
                if other in advised:
                    copy(clip, tmp_path / f"other{other}")
                else:
                    with pytest.raises(UserError):
                        check_audio_output(video, f"other{other}")
    else:
        assert packet_contents(output) == packet_contents(clip)


def test_codecs_are_named(tmp_path):
    clip = tmp_path / "clip.mkv"
    with av.open(str(clip), "w") as container:
        video = container.add_stream("libx264", RATE, width=SIZE[0], height=SIZE[1], pix_fmt="yuv420p")
        tones = [container.add_stream(name, 48000, layout="mono") for name in ("aac", "flac", "libopus")]
        container.mux(video.encode(av.VideoFrame.from_image(*pan(0, 1))))
        container.mux(video.encode(None))
        for tone in tones:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
            sound.sample_rate, sound.pts = 48000, 0
            container.mux(tone.encode(sound))
            container.mux(tone.encode(None))
    with VideoReader(clip) as reader:
        with pytest.raises(UserError, match=r"\(flac, opus\): name an output that ends in \.mp4 or \.mkv, or convert"):
            check_audio_output(reader, "out.mov")
        check_audio_output(reader, "out.MKV")


def test_failures_at_the_end_are_explained(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.nut", pan(0, 3), audio="eac3", sample_rate=48000)
    monkeypatch.setattr("catseg_hf.video.files.check_audio_output", lambda video, output: None)
    with pytest.raises(UserError, match=r"Could not write .*out\.mp4: Invalid argument"):
        copy(clip, tmp_path / "out.mp4")
