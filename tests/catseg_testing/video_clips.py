"""Clips of some kilobytes: what tests of videos write and read."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image

from catseg_hf.video.files import VideoReader, VideoWriter
from conftest import FIXTURES


SCENES = sorted((FIXTURES / "emoji_world" / "images" / "gate").iterdir())
RATE, SIZE = 5, (96, 64)
SAMPLE_RATE = 8000


def pan(scene, num_frames):
    """A camera that moves slowly over a scene."""
    image = Image.open(SCENES[scene]).convert("RGB")
    return [image.crop((step % 30, step % 30, step % 30 + SIZE[0], step % 30 + SIZE[1])) for step in range(num_frames)]


def write_clip(
    path,
    images,
    times=None,
    time_base=Fraction(1, RATE),
    rotation=None,
    mirror=False,
    audio="aac",
    options=None,
    codec="libx264",
    start=0,
    audio_start=0,
    sample_rate=SAMPLE_RATE,
    format=None,
):
    """
    Writes images, at `times` in units of `time_base`, beside a tone that begins at `audio_start` seconds. The clock of
    both begins at `start`. `path` may be an object to write to, which has no way back.
    """
    times = range(len(images)) if times is None else times
    with av.open(
        path if hasattr(path, "write") else str(path), "w", format=format, options=options or {}
    ) as container:
        width, height = images[0].size
        stream = container.add_stream(codec, rate=RATE, width=width, height=height, time_base=time_base)
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirror)
        layout = "stereo" if audio == "vorbis" else "mono"  # all that FFmpeg's own encoder does
        tone = container.add_stream(audio, sample_rate, {"strict": "experimental"}, layout=layout) if audio else None
        for time, image in zip(times, images, strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = time + round(start / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            samples = np.arange(int((times[-1] + 1) * time_base * sample_rate))
            wave = (8000 * np.sin(samples / 5)).astype(np.int16)[None]
            sound = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            sound.sample_rate, sound.pts = sample_rate, round((start + audio_start) * sample_rate)
            container.mux(tone.encode(sound))
            container.mux(tone.encode(None))
    return path


def read_clip(path):
    """What a clip is like, its frames' times, its audio packets, and its frames as they are stored."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        about = (stream.width, stream.height, stream.average_rate)
        packets, frames = [], []
        for packet in container.demux():
            if packet.stream is stream:
                frames.extend(packet.decode())
            elif packet.size:
                packets.append((packet.pts * packet.time_base, bytes(packet)))
        times = [frame.pts * frame.time_base for frame in frames]
        return about, times, packets, frames


def copy(source, output):
    with VideoReader(source) as reader, VideoWriter(output, output, reader) as writer:
        for frame in reader.read_frames(writer.copy_audio):
            writer.write(frame, frame.image)
        return reader.is_whole()


def names(folder):
    return sorted(path.name for path in folder.iterdir())
