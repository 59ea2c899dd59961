"""Reads rasters window by window as RGB, with which of their pixels hold something."""

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from typing_extensions import Self

from ..bands_catseg import Window
from ..errors import UserError, first_line
from ..image_pixels_catseg import check_value_range, rgb_pixels
from .opening import RasterioError, open_raster
from .resampling import resampled


try:
    import rasterio
    from rasterio.enums import ColorInterp, MaskFlags
    from rasterio.windows import Window as RasterWindow
except ImportError:  # the extra "geo"
    pass

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


# Of the pixels of an overview with so many on a side at most, the values at these percentiles become black and white.
OVERVIEW_SIDE = 1024
PERCENTILES = (2, 98)
LEAST_CACHE = 64 * 2**20  # bytes


class RasterReader:
    """
    A raster as RGB in 8 bits. A context manager, which closes the file.

    Args:
        source (`str`): Path or URL of a raster that GDAL reads.
        bands (`tuple[int, ...]`, *optional*): The numbers of three bands from 1, red first, or of one, which is shown
            as grey. By default those that the file calls red, green and blue, else its first three, else its first.
        value_range (`tuple[float, float]`, *optional*): The stored values that become black and white. By default
            8 bits stay as they are, and other types take the 2nd and 98th percentile of an overview.
        resolution (`float`, *optional*): Units of the CRS per pixel to resample to. By default the raster's own.

    Attributes:
        size (`tuple[int, int]`): Height and width in pixels.
        crs (`rasterio.crs.CRS` or `None`), transform (`affine.Affine`): Where the pixels lie.
        bands (`tuple[int, ...]`), value_range (`tuple[float, float]` or `None`): As they are used.
        remarks (`list[str]`): What there is to say of it, a sentence each.

    Raises:
        UserError: If it cannot be read to its end, is rotated, has no such bands, or cannot be resampled.
    """

    def __init__(
        self,
        source: str,
        bands: "tuple[int, ...] | None" = None,
        value_range: tuple[float, float] | None = None,
        resolution: float | None = None,
    ):
        self.source = source
        self.remarks: list[str] = []
        self._opened = ExitStack()
        self._stored = self._opened.enter_context(open_raster(source))
        try:
            self._open(resolution)
            self.size = (self._dataset.height, self._dataset.width)
            self.crs, self.transform = self._dataset.crs, self._dataset.transform
            self._alpha = [band for band in self._indexes if self._color(band) == ColorInterp.alpha]
            self.bands = self._choose_bands(bands)
            self._palette = self._find_palette()
            self._describe()
            self.value_range = None if value_range is None else check_value_range(value_range)
            if self.value_range is None and self._dtype != "uint8":
                self.value_range = self._percentiles()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def _open(self, resolution: float | None):
        """As it is stored or, at another resolution, as GDAL resamples it: a mask then becomes alpha, or is a raster
        of its own where there is nodata as well."""
        has_mask = _is_masked(self._stored)
        has_nodata = any(value is not None for value in self._stored.nodatavals)
        if resolution is None:
            self._dataset, self._mask = self._stored, self._stored if has_mask else None
            return

        def resample(by_mask: bool) -> "DatasetReader":
            return self._opened.enter_context(resampled(self._stored, self.source, resolution, by_mask=by_mask))

        self._dataset = resample(by_mask=has_mask and not has_nodata)
        self._mask = resample(by_mask=True) if has_mask and has_nodata else None

    def close(self):
        """Closes the file."""
        self._opened.close()

    def read(self, window: Window) -> tuple[torch.Tensor, np.ndarray]:
        """
        Some pixels.

        Args:
            window ([`Window`]): Where they lie, inside the raster.

        Returns:
            The pixels, `torch.ByteTensor` of shape (3, height, width) in RGB, and which of them hold something, bool
            of shape (height, width). Those that do not have the mean colour of those that do.

        Raises:
            UserError: If they cannot be read.
        """
        values = self._read(self.bands, window)
        is_valid = self._is_valid(values, window)
        if self._palette is not None:
            values = self._palette[values[0]].transpose(2, 0, 1)
        if self.value_range is not None:
            values = np.where(is_valid, values, self.value_range[0])
        pixels = rgb_pixels(
            values, f"The raster {self.source!r}", value_range=self.value_range, input_data_format="channels_first"
        )
        if not is_valid.all() and is_valid.any():
            held = torch.from_numpy(is_valid)
            pixels[:, ~held] = pixels[:, held].float().mean(dim=1, keepdim=True).round().to(torch.uint8)
        return pixels, is_valid

    def limited_cache(self, num_rows: int) -> "rasterio.Env":
        """A context in which GDAL keeps what so many rows are read from, twice, and not a share of the machine's
        memory, which would fill with the height of a raster."""
        stored = self._stored
        bytes_per_pixel = sum(np.dtype(dtype).itemsize for dtype in stored.dtypes)
        rows = max(num_rows, *(height for height, _ in stored.block_shapes))
        return rasterio.Env(GDAL_CACHEMAX=max(LEAST_CACHE, 2 * rows * stored.width * bytes_per_pixel))

    def is_valid(self, window: Window) -> np.ndarray:
        """Which pixels in a window hold something: bool of shape (height, width)."""
        if not self._alpha and self._mask is self._nodata is None and np.issubdtype(self._dtype, np.integer):
            return np.ones((window.height, window.width), dtype=bool)
        return self._is_valid(self._read(self.bands, window), window)

    def _is_valid(self, values: np.ndarray, window: Window, shape: tuple[int, int] | None = None) -> np.ndarray:
        is_valid = np.isfinite(values).all(axis=0)
        if self._alpha:
            is_valid &= (self._read(self._alpha, window, shape) > 0).all(axis=0)
        if self._nodata is not None and not np.isnan(self._nodata):
            is_valid &= (values != self._nodata).any(axis=0)
        if self._mask is not None:
            mask = self._guarded(lambda: self._mask.read_masks(1, window=_as_rasterio(window), out_shape=shape))
            is_valid &= mask > 0
        return is_valid

    @property
    def _indexes(self) -> tuple[int, ...]:
        return self._dataset.indexes

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(self._dataset.dtypes[self.bands[0] - 1])

    @property
    def _nodata(self) -> float | None:
        return self._dataset.nodatavals[self.bands[0] - 1]

    def _color(self, band: int) -> "ColorInterp":
        return self._dataset.colorinterp[band - 1]

    def _choose_bands(self, bands: "tuple[int, ...] | None") -> tuple[int, ...]:
        count = len(self._indexes)
        if bands is None:
            by_color = {self._color(band): band for band in reversed(self._indexes)}
            colors = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            if by_color.keys() >= set(colors):
                return tuple(by_color[color] for color in colors)
            shown = [band for band in self._indexes if band not in self._alpha] or list(self._indexes)
            return tuple(shown[:3] if len(shown) >= 3 else shown[:1])
        bands = tuple(bands)
        if len(bands) not in (1, 3):
            raise UserError(f"--bands has {len(bands)} numbers, but three are needed, red first, or one for grey.")
        if others := [band for band in bands if band not in self._indexes]:
            raise UserError(
                f"--bands is {' '.join(map(str, bands))}, but the raster {self.source!r} has "
                f"{count} band{'s' * (count != 1)} and so no band {others[0]}: give numbers from 1 to {count}, or "
                "leave the option out."
            )
        types = {self._dataset.dtypes[band - 1] for band in bands}
        if len(types) > 1:
            raise UserError(f"The bands {bands} of the raster {self.source!r} have several types: {sorted(types)}.")
        return bands

    def _find_palette(self) -> np.ndarray | None:
        """Colours (256, 3) of a band of one byte whose values are indices."""
        if len(self.bands) > 1 or self._color(self.bands[0]) != ColorInterp.palette or self._dtype != "uint8":
            return None
        palette = np.zeros((256, 3), dtype=np.uint8)
        for index, color in self._dataset.colormap(self.bands[0]).items():
            palette[index] = color[:3]
        return palette

    def _describe(self):
        if np.issubdtype(self._dtype, np.complexfloating):
            raise UserError(f"The raster {self.source!r} holds complex numbers, but real ones are needed: convert it.")
        height, width = self.size
        said = f"{width} x {height} pixels, band{'s' * (len(self.bands) > 1)} {' '.join(map(str, self.bands))}"
        self.remarks.append(f"{said} of {len(self._stored.indexes)} ({self._dtype})")
        if self.crs is None:
            self.remarks.append(
                "It has no coordinate reference system, and so has the result: if it should have one, "
                "`gdal_edit.py -a_srs EPSG:NUMBER`"
            )
        if self._alpha:
            self.remarks.append(f"Pixels that are transparent in band {self._alpha[0]}, alpha, get no class")
        if self._nodata is not None:
            self.remarks.append(f"Pixels of the value {self._nodata:g}, nodata, get no class")
        if self._mask is not None:
            self.remarks.append("Pixels outside its mask get no class")

    def _percentiles(self) -> tuple[float, float]:
        height, width = self.size
        scale = min(1.0, OVERVIEW_SIDE / max(self.size))
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        whole = Window(0, 0, height, width)
        values = self._read(self.bands, whole, shape)
        held = values[:, self._is_valid(values, whole, shape)]
        low, high = map(float, np.percentile(held, PERCENTILES)) if held.size else (0.0, 1.0)
        if low == high:
            high = low + 1
        self.remarks.append(
            f"Values from {low:g} to {high:g}, the {PERCENTILES[0]}nd and {PERCENTILES[1]}th percentile of an "
            f"overview, become 0 to 255 (--range {low:g} {high:g})"
        )
        return low, high

    def _read(self, bands: "tuple[int, ...] | list[int]", window: Window, shape: tuple[int, int] | None = None):
        shape = None if shape is None else (len(bands), *shape)
        return self._guarded(
            lambda: self._dataset.read(list(bands), window=_as_rasterio(window), out_shape=shape),
            f" in the rows from {window.top} to {window.top + window.height}",
        )

    def _guarded(self, read, where: str = "") -> np.ndarray:
        try:
            return read()
        except RasterioError as error:
            cause = error.__cause__ or error
            raise UserError(
                f"The raster {self.source!r} could not be read{where} ({first_line(cause)}): it may be damaged. "
                "Copy or download it again."
            ) from error


def _as_rasterio(window: Window) -> "RasterWindow":
    return RasterWindow(window.left, window.top, window.width, window.height)


def _is_masked(dataset: "DatasetReader") -> bool:
    """Whether there is a mask beside the bands."""
    flags = dataset.mask_flag_enums[0]
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
