"""mess-benchmark without iopath and detectron2: what its modules import of them is stood in for; its catalogue and the
scores of its evaluator are its own."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np


def _stand_in(name: str, **members):
    sys.modules[name] = module = ModuleType(name)
    vars(module).update(members)


def _listed_files(gt_root: str, image_root: str, gt_ext: str, image_ext: str) -> dict[str, str]:
    """What a dataset is registered with, in place of the files that are there."""
    return {"labels": gt_root, "images": image_root, "label_suffix": gt_ext, "image_suffix": image_ext}


_stand_in("mess.utils.data", load_sem_seg=_listed_files)
import mess.datasets  # noqa: E402, F401  (which registers everything)
from mess.utils.catalog import DatasetCatalog, MetadataCatalog  # noqa: E402


class CountingEvaluator:
    """In place of detectron2's evaluator: the confusion matrix that it keeps, by prediction and label."""

    def __init__(self, name: str, distributed: bool, output_dir: str, num_classes: None, ignore_label: None):
        metadata = MetadataCatalog.get(name)
        self._distributed, self._output_dir = distributed, output_dir
        self._class_names, self._ignore_label = metadata.stuff_classes, metadata.ignore_label
        self._num_classes = len(self._class_names)
        self._conf_matrix = np.zeros((self._num_classes + 1,) * 2, dtype=np.int64)
        self._predictions = []
        self._logger = SimpleNamespace(info=lambda message: None)

    def count(self, prediction: np.ndarray, label: np.ndarray):
        label = np.where(label == self._ignore_label, self._num_classes, label)
        np.add.at(self._conf_matrix, (prediction.ravel(), label.ravel()), 1)


def evaluator_class() -> type:
    """The package's evaluator, which counts as [`CountingEvaluator`]."""
    files = SimpleNamespace(mkdirs=lambda path: None, open=open)
    _stand_in("detectron2")
    _stand_in("detectron2.data", MetadataCatalog=MetadataCatalog, DatasetCatalog=DatasetCatalog)
    _stand_in("detectron2.utils")
    _stand_in("detectron2.utils.comm", all_gather=None, is_main_process=None, synchronize=None)
    _stand_in("detectron2.utils.file_io", PathManager=files)
    _stand_in("detectron2.evaluation", SemSegEvaluator=CountingEvaluator)
    from mess.evaluation.sem_seg_evaluation import MESSSemSegEvaluator

    return MESSSemSegEvaluator
