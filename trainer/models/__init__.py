"""Models: functions of their YAML's keys, `input_shape` (C, H, W) and `num_outputs` that return a Module.

Every model maps float32 images_NCHW to outputs (N, num_outputs): logits for classification, values for regression. It
can be built and run under `torch.device("meta")`, where nothing is allocated.
"""
