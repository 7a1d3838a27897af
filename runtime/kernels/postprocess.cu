// From the network's output to pictures of the images' own sizes: sigmoid, min-max, bilinear resize, rounding to bytes
// and composition with the image. Compile with -fmad=false, so that roundings are those of numpy and cv2.

#include "image.cuh"

__device__ inline float load(const float* place) { return *place; }
__device__ inline float load(const unsigned short* place) { return half_value(*place); }

__device__ inline float probability(float output, int logit) {
  return logit ? 0.5f * tanhf(0.5f * output) + 0.5f : output;
}

// Floats as unsigned numbers of the same order, for atomicMax.
__device__ inline u32 ordered(float value) {
  const u32 bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_ordered(u32 number) {
  return __uint_as_float(number & 0x80000000u ? number & 0x7FFFFFFFu : ~number);
}

// Of one map: ~ordered(least), ordered(greatest), and 1 if a value is NaN or infinite. Zeros before.
struct Range {
  u32 least, greatest, broken;
};

// outputs: (N, pixels). blockIdx = (part of the map, image).
template <class T>
__device__ inline void output_range(const T* outputs, int pixels, int logit, Range* ranges) {
  __shared__ Range block;
  if (threadIdx.x == 0) block = {0, 0, 0};
  __syncthreads();
  Range mine = {0, 0, 0};
  const T* output = outputs + (size_t)blockIdx.y * pixels;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < pixels; i += gridDim.x * blockDim.x) {
    const float value = probability(load(output + i), logit);
    if (!(fabsf(value) <= 3.402823466e38f)) mine.broken = 1;
    mine.least = max(mine.least, ~ordered(value));
    mine.greatest = max(mine.greatest, ordered(value));
  }
  atomicMax(&block.least, mine.least);
  atomicMax(&block.greatest, mine.greatest);
  if (mine.broken) atomicMax(&block.broken, 1u);
  __syncthreads();
  if (threadIdx.x != 0) return;
  atomicMax(&ranges[blockIdx.y].least, block.least);
  atomicMax(&ranges[blockIdx.y].greatest, block.greatest);
  if (block.broken) atomicMax(&ranges[blockIdx.y].broken, 1u);
}

// saliency: (N, pixels) in [0, 1], stretched to its own range if `stretch`; a constant map stays as it is.
template <class T>
__device__ inline void saliency_maps(const T* outputs, int pixels, int logit, int stretch, const Range* ranges,
                                     float* saliency) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pixels) return;
  const size_t at = (size_t)blockIdx.y * pixels + i;
  float value = probability(load(outputs + at), logit);
  const float low = from_ordered(~ranges[blockIdx.y].least), high = from_ordered(ranges[blockIdx.y].greatest);
  if (stretch && high > low) value = (value - low) / (high - low);
  saliency[at] = fminf(fmaxf(value, 0.0f), 1.0f);
}

extern "C" __global__ void output_range_f32(const float* outputs, int pixels, int logit, Range* ranges) {
  output_range(outputs, pixels, logit, ranges);
}
extern "C" __global__ void output_range_f16(const unsigned short* outputs, int pixels, int logit, Range* ranges) {
  output_range(outputs, pixels, logit, ranges);
}
extern "C" __global__ void saliency_maps_f32(const float* outputs, int pixels, int logit, int stretch,
                                             const Range* ranges, float* saliency) {
  saliency_maps(outputs, pixels, logit, stretch, ranges, saliency);
}
extern "C" __global__ void saliency_maps_f16(const unsigned short* outputs, int pixels, int logit, int stretch,
                                             const Range* ranges, float* saliency) {
  saliency_maps(outputs, pixels, logit, stretch, ranges, saliency);
}

// ---- saliency map and image to picture

enum Style { MAP, RGBA, GREEN, OVERLAY };  // what they look like: runtime/composition.py

// One picture to make. image and pixels are aligned to 4 bytes.
struct Picture {
  u8* pixels;          // (height, width, channels)
  const u8* image;     // (height, width, 3)
  const Tap* rows;     // of the map, one for every row of the picture
  const Tap* columns;  // one for every column
  int height, width;
};

#define COLUMNS 4  // a thread's share of a picture: one word of the map in each row,
#define ROWS 16    // over so many rows that it keeps what it has read of the map from one row to the next

__device__ inline int mixed(int over, int under, int alpha) {  // rounded to nearest; alpha in 0..255
  return (over * alpha + under * (255 - alpha) + 127) / 255;
}

// To nearest, a half to even, of a value in [0, 2**22): 2**23 + value has no bits left for a fraction. The conversion
// instructions would do it at a quarter of the speed.
__device__ inline int rounded(float value) { return (int)(__float_as_uint(value + 8388608.0f) - 0x4B000000u); }

template <int STYLE>
__device__ inline void paint(int alpha, int r, int g, int b, u8* pixel) {
  if (STYLE == MAP) {
    pixel[0] = (u8)alpha;
  } else if (STYLE == RGBA) {
    pixel[0] = (u8)r, pixel[1] = (u8)g, pixel[2] = (u8)b, pixel[3] = (u8)alpha;
  } else if (STYLE == GREEN) {
    pixel[0] = (u8)mixed(r, 0, alpha), pixel[1] = (u8)mixed(g, 255, alpha), pixel[2] = (u8)mixed(b, 0, alpha);
  } else {
    alpha = (alpha + 1) / 2;
    pixel[0] = (u8)mixed(255, r, alpha), pixel[1] = (u8)mixed(0, g, alpha), pixel[2] = (u8)mixed(0, b, alpha);
  }
}

__device__ inline void map_row(const float* row, const int* left, const int* right, const float* wl, const float* wr,
                               float* values) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) values[i] = row[left[i]] * wl[i] + row[right[i]] * wr[i];
}

// saliency: (N, map_height, map_width). Threads (32, 4); blockIdx = (128 columns, 64 rows, picture), over the largest
// picture of the batch.
template <int STYLE>
__device__ inline void compose(const Picture* pictures, const float* saliency, int map_height, int map_width) {
  constexpr int CHANNELS = STYLE == MAP ? 1 : STYLE == RGBA ? 4 : 3;
  const Picture picture = pictures[blockIdx.z];  // a copy: for all the compiler knows, what is stored changes the original
  const int width = picture.width;
  const int x = (blockIdx.x * blockDim.x + threadIdx.x) * COLUMNS;
  const int y0 = (blockIdx.y * blockDim.y + threadIdx.y) * ROWS, y1 = min(y0 + ROWS, picture.height);
  if (x >= width || y0 >= y1) return;
  const float* map = saliency + (size_t)blockIdx.z * map_height * map_width;
  const bool in_words = width % 4 == 0;  // else rows begin anywhere, and a thread's last columns may not exist
  int left[COLUMNS], right[COLUMNS];
  float wl[COLUMNS], wr[COLUMNS], above[COLUMNS], below[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) {
    const Tap column = picture.columns[min(x + i, width - 1)];
    left[i] = column.first, right[i] = column.last, wl[i] = column.head, wr[i] = column.tail;
  }
  int has_above = -1, has_below = -1;
  for (int y = y0; y < y1; y++) {
    const Tap row = picture.rows[y];
    if (row.first != has_above) {
#pragma unroll
      for (int i = 0; i < COLUMNS; i++) above[i] = below[i];
      if (row.first != has_below) map_row(map + (size_t)row.first * map_width, left, right, wl, wr, above);
      has_above = row.first;
    }
    if (row.last != has_below) {
      map_row(map + (size_t)row.last * map_width, left, right, wl, wr, below);
      has_below = row.last;
    }
    const size_t at = (size_t)y * width + x;
    u32 source[3] = {0, 0, 0}, result[CHANNELS];
    u8 rgb[COLUMNS * 3], pixels[COLUMNS * CHANNELS];
    const int columns = min(COLUMNS, width - x);
    if (STYLE != MAP && in_words)
      for (int i = 0; i < 3; i++) source[i] = ((const u32*)(picture.image + at * 3))[i];
#pragma unroll
    for (int i = 0; i < COLUMNS * 3; i++)
      rgb[i] = STYLE == MAP ? 0
               : in_words   ? (u8)(source[i / 4] >> (8 * (i % 4)))
               : i < columns * 3 ? picture.image[at * 3 + i] : 0;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
      const int alpha = rounded((above[i] * row.head + below[i] * row.tail) * 255.0f);
      paint<STYLE>(alpha, rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], pixels + i * CHANNELS);
    }
    if (in_words) {
#pragma unroll
      for (int i = 0; i < CHANNELS; i++) {
        result[i] = pixels[4 * i] | pixels[4 * i + 1] << 8 | pixels[4 * i + 2] << 16 | (u32)pixels[4 * i + 3] << 24;
        ((u32*)(picture.pixels + at * CHANNELS))[i] = result[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < COLUMNS * CHANNELS; i++)
        if (i < columns * CHANNELS) picture.pixels[at * CHANNELS + i] = pixels[i];
    }
  }
}

extern "C" __global__ void compose_map(const Picture* pictures, const float* saliency, int map_height, int map_width) {
  compose<MAP>(pictures, saliency, map_height, map_width);
}
extern "C" __global__ void compose_rgba(const Picture* pictures, const float* saliency, int map_height, int map_width) {
  compose<RGBA>(pictures, saliency, map_height, map_width);
}
extern "C" __global__ void compose_green(const Picture* pictures, const float* saliency, int map_height,
                                         int map_width) {
  compose<GREEN>(pictures, saliency, map_height, map_width);
}
extern "C" __global__ void compose_overlay(const Picture* pictures, const float* saliency, int map_height,
                                           int map_width) {
  compose<OVERLAY>(pictures, saliency, map_height, map_width);
}
