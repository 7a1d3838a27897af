// Our CUDA kernels, and the one of the tests, as a CPU library; compile with -include cuda_on_cpu.h and
// -I runtime/kernels.

#include "preprocess.cu"
KERNEL(resize_normalise_f32)
KERNEL(resize_normalise_f16)
KERNEL(resize_bytes)
KERNEL(normalise_by_maximum_f32)
KERNEL(normalise_by_maximum_f16)

#include "postprocess.cu"
KERNEL(output_range_f32)
KERNEL(output_range_f16)
KERNEL(compose_map_f32)
KERNEL(compose_map_f16)
KERNEL(compose_rgba_f32)
KERNEL(compose_rgba_f16)
KERNEL(compose_green_f32)
KERNEL(compose_green_f16)
KERNEL(compose_overlay_f32)
KERNEL(compose_overlay_f16)

#include "imitated_network.cu"
KERNEL(imitated_network_f32)
KERNEL(imitated_network_f16)
