// What both kernel files share: images and the taps that resize them.
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;

// Where an output row or column comes from: the source rows or columns first..last, weighed head, body, ..., body, tail.
// LINEAR has the two taps first and last; for bytes head and tail are whole numbers, in units of 1/2048.
// The bodies, which AREA alone has, stand behind the taps of a side, a float for each.
struct alignas(16) Tap {
  int first, last;
  float head, tail;
};

enum Rule { LINEAR = 0, AREA = 1, HALVE = 2 };  // HALVE: the mean of 2 x 2 pixels, a half rounded up

// `pixels` is (height, width, 3) contiguous, aligned to 16 bytes and readable to the next multiple of 16 after its end.
struct Image {
  const u8* pixels;
  const Tap* rows;     // one for every output row
  const Tap* columns;  // one for every output column
  int height, width;
  int rule;
  float scale;  // of AREA's sum: 1 where the weights are fractions, 1 / (pixels of a cell) where they are all 1
  int stretch;  // output pixels of a row that a block makes
  int cell;     // source pixels of a row that make an output pixel, at most; of AREA and HALVE
};

#ifdef __CUDACC__
// The same number, of which the compiler does not know how it was computed, so that it does not compute it again.
__device__ inline int opaque(int value) {
  asm("" : "+r"(value));
  return value;
}
// That a pointer is to global memory, which the compiler cannot know of one that it finds in memory.
__device__ inline void assume_global(const void* pointer) { __builtin_assume(__isGlobal(pointer)); }
// in PTX rather than by cuda_fp16.h, which NVRTC does not bring along
__device__ inline unsigned short half_bits(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ inline float half_value(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Copies of 16 bytes from global to shared memory, in the background where the GPU can.
__device__ inline void copy_async(uint4* to, const u8* from) {
#if __CUDA_ARCH__ >= 800
  const u32 place = (u32)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(__cvta_generic_to_global(from)));
#else
  *to = *(const uint4*)from;
#endif
}
__device__ inline void end_copies() {  // of a group
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#endif
}
__device__ inline void await_copies_but_last() {  // all groups but the last, of this thread
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}
#endif
