"""torchvision v2's functions, which resize uint8 images as they do on most processors.

v2 resizes such images by torch's own kernel for uint8 on x86 with AVX2 and on ARM. Elsewhere it resizes in float32 and
rounds at the end, which differs by a level here and there: a test would then depend on the processor.
"""

import torchvision.transforms.v2.functional as functional
from torchvision.transforms.v2.functional import _geometry

assert callable(_geometry._do_native_uint8_resize_on_cpu)
_geometry._do_native_uint8_resize_on_cpu = lambda interpolation: True

__all__ = ["functional"]
