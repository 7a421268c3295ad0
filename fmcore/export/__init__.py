"""How results leave the project: samples as files of images, models for diffusers, ONNX and plain torch."""
