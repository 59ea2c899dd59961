"""Whole files are told from those that were cut off."""

import pytest

from catseg_hf.video import VideoReader
from catseg_hf.video.file_sizes import stated_size
from catseg_testing.video_clips import RATE, pan, write_clip


NUM_FRAMES = 20
CONTAINERS = {
    "mkv": {},
    "silent.mkv": {"audio": None},
    "webm": {"codec": "libvpx-vp9", "audio": "libopus", "sample_rate": 48000},
    "fast.mp4": {"options": {"movflags": "faststart"}},
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "fast.mov": {"options": {"movflags": "faststart"}},
    "ts": {},
    "silent.ts": {"audio": None},
    "m2ts": {"format": "mpegts", "options": {"mpegts_m2ts_mode": "1"}},
    "avi": {"codec": "mpeg4", "audio": "libmp3lame"},
    "silent.avi": {"codec": "mpeg4", "audio": None},
    "flv": {"sample_rate": 44100},
}


class OneWay:
    """A file that is written like a pipe, so that sizes cannot be filled in."""

    def __init__(self, path):
        self.file = open(path, "wb")

    def write(self, content):
        return self.file.write(content)


def read_is_whole(path):
    with VideoReader(path) as video:
        for _ in video.read_frames(lambda packet: None):
            pass
        return video.is_whole()


@pytest.mark.parametrize("start", [0, 100])
@pytest.mark.parametrize("name", CONTAINERS)
def test_whole_and_cut_off(tmp_path, name, start):
    clip = write_clip(tmp_path / f"clip.{name}", pan(0, NUM_FRAMES), start=start, **CONTAINERS[name])
    assert read_is_whole(clip)
    content = clip.read_bytes()
    for share in (0.9, 0.97):
        cut = int(share * len(content))
        while min(cut % 188, cut % 192) < 5:  # transport streams cannot tell where no packet is cut
            cut += 1
        clip.write_bytes(content[:cut])
        assert not read_is_whole(clip), share


@pytest.mark.parametrize("audio", [None, "libmp3lame"])
def test_an_avi_with_empty_frames(tmp_path, audio):
    times = [0, 1, 2, 20, 21, 60]
    clip = write_clip(tmp_path / "clip.avi", pan(0, len(times)), times, codec="mpeg4", audio=audio)
    with VideoReader(clip) as video:
        assert video.stream.frames > len(times)
    assert read_is_whole(clip)


@pytest.mark.parametrize(
    ("format", "kwargs"),
    [
        ("matroska", {}),
        ("avi", {"codec": "mpeg4", "audio": "libmp3lame"}),
        ("flv", {"sample_rate": 44100}),
        ("mpegts", {}),
        ("mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
    ],
)
@pytest.mark.parametrize("start", [0, 100])
def test_files_written_to_a_pipe(tmp_path, format, kwargs, start):
    pipe = OneWay(tmp_path / "clip")
    write_clip(pipe, pan(0, NUM_FRAMES), start=start, format=format, **kwargs)
    pipe.file.close()
    assert read_is_whole(tmp_path / "clip")


@pytest.mark.parametrize("tail", [b"\0" * 64, b"SEFT and more of a camera's own", b"\xff" * 5])
def test_what_a_camera_writes_behind(tmp_path, tail):
    clip = write_clip(tmp_path / "clip.mp4", pan(0, RATE))
    clip.write_bytes(clip.read_bytes() + tail)
    assert read_is_whole(clip)


@pytest.mark.parametrize(
    ("format_name", "content", "size"),
    [
        ("mov,mp4,m4a,3gp,3g2,mj2", b"\0\0\0\x08free\0\0\0\x01mdat" + (1 << 33).to_bytes(8, "big"), (1 << 33) + 8),
        ("mov,mp4,m4a,3gp,3g2,mj2", b"\0\0\0\x08free\0\0\0\0mdat to the end", 0),
        ("avi", b"RIFF\x04\0\0\0AVI RIFF\x20\0\0\0AVIX", 12 + 8 + 32),  # more than 1 GB is several in a row
        ("avi", b"RIFF\xff\xff\xff\xffAVI ", 0),
        ("matroska,webm", b"\x1a\x45\xdf\xa3\x81\0\x18\x53\x80\x67\x40\x10", 6 + 6 + 16),
        ("matroska,webm", b"\x1a\x45\xdf\xa3\x81\0\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff", 6),
        ("mpegts", 6 * (b"G" + bytes(187)), 6 * 188),
        ("mpegts", bytes(50) + 6 * (b"G" + bytes(187)) + b"G123", 50 + 7 * 188),
        ("mpegts", 6 * (b"G" + bytes(187)) + bytes(40), 6 * 188 + 40),  # filled up by a recorder
        ("mpegts", 6 * (b"time" + b"G" + bytes(187)), 6 * 192),
        ("mpegts", 6 * (b"time" + b"G" + bytes(187)) + b"timeG", 7 * 192),
        ("flv", b"FLV", None),
    ],
)
def test_stated_size(tmp_path, format_name, content, size):
    (tmp_path / "clip").write_bytes(content)
    assert stated_size(tmp_path / "clip", format_name) == size
