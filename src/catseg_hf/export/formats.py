"""The formats that a model can be exported to."""

# What transformers' exporters call them.
FORMATS = {"onnx": "onnx", "torch_export": "dynamo", "openvino": "openvino", "executorch": "executorch"}
