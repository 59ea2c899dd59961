"""What a project of Label Studio accepts, by its labelling configuration, and whether a prediction does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from ..annotations.rle import decode_label_studio
from ..class_words_catseg import BAR
from ..errors import UserError, first_line


@dataclass(frozen=True)
class LabelingConfig:
    """
    The brush of a project.

    Attributes:
        from_name (`str`): Name of its BrushLabels.
        to_name (`str`): Name of the Image that they are painted on.
        data_key (`str`): What the image is called in a task's data.
        words (`dict[str, str]`): What is looked for, for each of the labels: those of `predicted_values`, separated by
            commas, or else the label itself.
    """

    from_name: str
    to_name: str
    data_key: str
    words: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> "LabelingConfig":
        """
        Reads a configuration.

        Raises:
            UserError: If it is damaged, or has not one BrushLabels with labels on an Image.
        """
        try:
            view = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise UserError(f"The labelling configuration is no XML that can be read: {first_line(error)}.") from error
        images = {image.get("name"): image for image in view.iter("Image")}
        brushes = [brush for brush in view.iter("BrushLabels") if brush.get("toName") in images]
        if len(brushes) != 1:
            raise UserError(
                f"The labelling configuration has {len(brushes)} BrushLabels whose toName is an Image, but one is "
                'needed: <BrushLabels name="label" toName="image"> beside <Image name="image" value="$image"/>.'
            )
        (brush,) = brushes
        words = {}
        for label in brush.iter("Label"):
            value, predicted = label.get("value", ""), label.get("predicted_values")
            words[label.get("alias") or value] = predicted.replace(",", BAR) if predicted else value
        if not words:
            raise UserError("The labelling configuration has no <Label> in its BrushLabels: add the classes.")
        to_name = brush.get("toName")
        return cls(brush.get("name", ""), to_name, images[to_name].get("value", "").lstrip("$"), words)


def check_prediction(prediction: Mapping[str, Any], config: LabelingConfig, size: tuple[int, int]):
    """
    Compares a prediction with a project, which itself stores anything.

    Args:
        prediction (`dict`): What is to be sent.
        config ([`LabelingConfig`]): The project's.
        size (`tuple[int, int]`): Height and width of the image.

    Raises:
        UserError: If it does not fit, with the region and the reason.
    """
    _check_score(prediction.get("score"), "The prediction")
    for number, region in enumerate(prediction["result"], start=1):
        name = f"Region {number} of the prediction"
        expected = {
            "from_name": config.from_name,
            "to_name": config.to_name,
            "type": "brushlabels",
            "original_height": size[0],
            "original_width": size[1],
        }
        for key, value in expected.items():
            if region.get(key) != value:
                raise UserError(f"{name} has {key} {region.get(key)!r}, but the project needs {value!r}.")
        labels = region["value"].get("brushlabels")
        if not labels or not set(labels) <= config.words.keys():
            raise UserError(f"{name} has the labels {labels!r}, but the project has {', '.join(config.words)}.")
        _check_score(region.get("score"), name)
        if not decode_label_studio(region["value"]["rle"], size).any():
            raise UserError(f"{name} has no pixel.")


def _check_score(score: Any, name: str):
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        raise UserError(f"{name} has the score {score!r}, but a probability between 0 and 1 is needed.")
