// The network of the imitated TensorRT: saliency = clip(0.3 R + 0.4 G + 0.3 B, 0, 1), or `value` unless that is -1. One
// thread makes one value of the output.

#include "image.cuh"

__device__ inline float get(const float* place) { return *place; }
__device__ inline float get(const unsigned short* place) { return half_value(*place); }
__device__ inline void put(float* place, float value) { *place = value; }
__device__ inline void put(unsigned short* place, float value) { *place = half_bits(value); }

template <class T>
__device__ inline void network(const T* input, T* output, int pixels, int count, float value) {
  const int place = blockIdx.x * blockDim.x + threadIdx.x;
  if (place >= pixels * count) return;
  const T* image = input + (size_t)(place / pixels) * 3 * pixels + place % pixels;
  const float sum = 0.3f * get(image) + 0.4f * get(image + pixels) + 0.3f * get(image + 2 * pixels);
  put(output + place, value != -1 ? value : sum < 0 ? 0 : sum > 1 ? 1 : sum);
}

extern "C" __global__ void imitated_network_f32(const float* input, float* output, int pixels, int count, float value) {
  network(input, output, pixels, count, value);
}
extern "C" __global__ void imitated_network_f16(const unsigned short* input, unsigned short* output, int pixels,
                                                int count, float value) {
  network(input, output, pixels, count, value);
}
