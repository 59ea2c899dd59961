"""The clock of a file's streams, set to 0 where they begin."""

from fractions import Fraction
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import av


# Seconds without a packet of any stream after which a clock that may jump is taken to have jumped.
MAX_GAP = 10


class Clock:
    """
    Lets the packets of all streams begin at 0 together, and go on where their clock jumps.

    Args:
        start (`Fraction`): When the first stream begins, in seconds.
        may_jump (`bool`): Whether jumps belong to the format, as in transport streams, where a recording may be joined
            of several; elsewhere a gap is one between frames.
    """

    def __init__(self, start: Fraction, may_jump: bool):
        self._zero = self._end = start
        self._may_jump = may_jump
        self._last: dict[int, Fraction] = {}  # decoding times within a stream never go back

    def set_times(self, packet: "av.Packet"):
        """Gives a packet its new times. To be called for all packets, in the order of the file."""
        if self._may_jump and packet.dts is not None:
            time = packet.dts * packet.time_base
            if time < self._last.get(packet.stream_index, time) or abs(time - self._end) > MAX_GAP:
                self._zero += time - self._end
                self._end = time
                self._last.clear()
            self._last[packet.stream_index] = time
            self._end = max(self._end, time + (packet.duration or 0) * packet.time_base)
        shift = round(self._zero / packet.time_base)
        packet.dts = None if packet.dts is None else packet.dts - shift
        packet.pts = None if packet.pts is None else packet.pts - shift
