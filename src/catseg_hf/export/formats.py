"""The formats that a model can be exported to, as data: nothing heavy is imported to tell what there is, and a request
that a format cannot serve is refused in its own words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from ..errors import UserError


# The oldest transformers that has exporters.
_TRANSFORMERS = (5, 24)

INT8, FREE_SIZES, GIS = "int8", "free sizes", "gis"
"""What a format may not be able to do: integer weights, graphs for any number of images and classes, and
`--target gis`."""


@dataclass(frozen=True)
class Format:
    """
    A format that models are exported to.

    Its module has `OPTIONS`, what transformers' exporter is told; `prepare(module)`, which changes a module for the
    format before it is exported; `finish(program, example, dynamic_shapes)`, which
    completes what the exporter made; `FILE`, the name of a fixed artefact; and `save(component, path, metadata)`,
    which writes one.

    Attributes:
        name (`str`): As on the command line.
        title (`str`): What messages call it.
        module (`str`): Of this package.
        exporter (`str`): What transformers' exporters call it.
        runtime (`str`): The package that runs it.
        packages (`tuple[str, ...]`): What it needs, as imported; under the same names on PyPI.
        extra (`str`, *optional*): The extra of this package that installs them.
        cannot (`dict[str, str]`): Why the format cannot do something, for [`INT8`], [`FREE_SIZES`] and [`GIS`].
    """

    name: str
    title: str
    module: str
    exporter: str
    runtime: str
    packages: tuple[str, ...] = ()
    extra: str | None = None
    cannot: Mapping[str, str] = field(default_factory=dict)

    def check_can(self, ability: str, request: str):
        """
        Raises:
            UserError: If the format cannot do what `request`, words of the command line, asks for.
        """
        if ability in self.cannot:
            able = [known.name for known in FORMATS.values() if ability not in known.cannot]
            raise UserError(
                f"{request} goes with --format {' or '.join(able)}, not with {self.name}: {self.cannot[ability]}"
            )

    def check_installed(self):
        """
        Raises:
            UserError: If a package that it needs is not installed.
        """
        needed = "transformers>=" + ".".join(map(str, _TRANSFORMERS))
        try:
            found = tuple(int(part) for part in version("transformers").split(".")[:2])
        except (PackageNotFoundError, ValueError):
            found = _TRANSFORMERS  # one of no known version is tried
        missing = [name for name in self.packages if find_spec(name) is None]
        if found < _TRANSFORMERS:
            missing.append(needed)
        if missing:
            install = " ".join(f'"{name}"' if ">" in name else name for name in missing)
            extra = f', or `pip install "catseg_hf[{self.extra}]"`' if self.extra else ""
            raise UserError(
                f"--format {self.name} needs {' and '.join(missing)}, which this Python does not have: "
                f"`pip install {install}`{extra}."
            )

    def load(self) -> ModuleType:
        """
        The format's module.

        Raises:
            UserError: If a package that it needs is not installed.
        """
        self.check_installed()
        return import_module(f".{self.module}", __package__)


_ONNX_READERS_ONLY = "QGIS Deepness and GeoDeep read ONNX files only."
FORMATS = {
    known.name: known
    for known in (
        Format("onnx", "ONNX", "onnx_format", "onnx", "onnxruntime", ("onnx", "onnxscript", "onnxruntime"), "export"),
        Format(
            "torch_export",
            "torch.export",
            "torch_export_format",
            "dynamo",
            "torch",
            cannot={
                INT8: "torchao keeps the weights of the model itself in 8 bits, see docs/export.md.",
                GIS: _ONNX_READERS_ONLY,
            },
        ),
        Format(
            "openvino",
            "OpenVINO",
            "openvino_format",
            "openvino",
            "openvino",
            ("openvino",),
            "openvino",
            cannot={
                INT8: "OpenVINO computes in bfloat16 by itself where the processor has it, which is faster.",
                GIS: _ONNX_READERS_ONLY,
            },
        ),
        Format(
            "executorch",
            "ExecuTorch",
            "executorch_format",
            "executorch",
            "executorch",
            ("executorch",),
            cannot={
                INT8: "ExecuTorch's XNNPACK takes the weights as they are.",
                FREE_SIZES: "ExecuTorch reserves memory for the sizes that it is exported with: --batch_size and "
                "--num_classes name them.",
                GIS: _ONNX_READERS_ONLY,
            },
        ),
    )
}
