// What both kernel files share: images, the taps that resize them, and cv2's bilinear rule for bytes.
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
};

struct Rgb {
  float r, g, b;
};

// One output pixel by cv2's fixed-point bilinear rule: 11-bit weights, 4 bits dropped after the horizontal pass.
__device__ inline Rgb linear_pixel(const Image& image, const Tap& row, const Tap& column) {
  const u8* top = image.pixels + (size_t)row.first * image.width * 3;
  const u8* bottom = image.pixels + (size_t)row.last * image.width * 3;
  const int left = column.first * 3, right = column.last * 3;
  const int wl = (int)column.head, wr = (int)column.tail, wt = (int)row.head, wb = (int)row.tail;
  float value[3];
#pragma unroll
  for (int c = 0; c < 3; c++) {
    const int above = (top[left + c] * wl + top[right + c] * wr) >> 4;
    const int below = (bottom[left + c] * wl + bottom[right + c] * wr) >> 4;
    value[c] = (float)((((wt * above) >> 16) + ((wb * below) >> 16) + 2) >> 2);
  }
  return {value[0], value[1], value[2]};
}

#ifdef __CUDACC__
// The same number, of which the compiler does not know how it was computed, so that it does not compute it again.
__device__ inline int opaque(int value) {
  asm("" : "+r"(value));
  return value;
}
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
#endif
