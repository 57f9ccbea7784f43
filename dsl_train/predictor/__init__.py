"""The survival predictor: training by Lightning, export, and the light runtime (onnxruntime only)."""
