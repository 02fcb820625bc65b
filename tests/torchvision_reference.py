"""torchvision v2's functions, with uint8 images resized as on most processors.

v2 resizes such images with torch's uint8 kernel on x86 with AVX2 and on ARM. Otherwise it resizes in float32 and rounds
at the end, which differs by a level in places, so that a test would depend on the processor.
"""

import torchvision.transforms.v2.functional as functional
from torchvision.transforms.v2.functional import _geometry

assert callable(_geometry._do_native_uint8_resize_on_cpu)
_geometry._do_native_uint8_resize_on_cpu = lambda interpolation: True

__all__ = ["functional"]
