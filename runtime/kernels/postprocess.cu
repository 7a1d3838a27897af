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

// Four values side by side, at a place aligned to all four of them.
__device__ inline void load_four(const float* place, float* values) {
  const float4 four = *(const float4*)place;
  values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
}
__device__ inline void load_four(const unsigned short* place, float* values) {
  const uint2 four = *(const uint2*)place;
  values[0] = half_value((unsigned short)four.x), values[1] = half_value((unsigned short)(four.x >> 16));
  values[2] = half_value((unsigned short)four.y), values[3] = half_value((unsigned short)(four.y >> 16));
}

// outputs: (N, pixels). blockIdx = (part of the map, image).
template <class T>
__device__ inline void output_range(const T* outputs, int pixels, int logit, Range* ranges) {
  __shared__ Range block;
  if (threadIdx.x == 0) block = {0, 0, 0};
  __syncthreads();
  float least = __uint_as_float(0x7F800000u), greatest = -least;  // infinite
  bool broken = false;
  const auto take = [&](float output) {
    const float value = probability(output, logit);
    broken |= !(fabsf(value) <= 3.402823466e38f);
    least = fminf(least, value), greatest = fmaxf(greatest, value);
  };
  const T* output = outputs + (size_t)blockIdx.y * pixels;
  const int first = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
  if (pixels % 4 == 0) {
    for (int i = first; i < pixels / 4; i += threads) {
      float values[4];
      load_four(output + 4 * i, values);
#pragma unroll
      for (int k = 0; k < 4; k++) take(values[k]);
    }
  } else {
    for (int i = first; i < pixels; i += threads) take(load(output + i));
  }
  atomicMax(&block.least, ~ordered(least));
  atomicMax(&block.greatest, ordered(greatest));
  if (broken) atomicMax(&block.broken, 1u);
  __syncthreads();
  if (threadIdx.x != 0) return;
  atomicMax(&ranges[blockIdx.y].least, block.least);
  atomicMax(&ranges[blockIdx.y].greatest, block.greatest);
  if (block.broken) atomicMax(&ranges[blockIdx.y].broken, 1u);
}

extern "C" __global__ void output_range_f32(const float* outputs, int pixels, int logit, Range* ranges) {
  output_range(outputs, pixels, logit, ranges);
}
extern "C" __global__ void output_range_f16(const unsigned short* outputs, int pixels, int logit, Range* ranges) {
  output_range(outputs, pixels, logit, ranges);
}

// ---- output and image to picture

enum Style { MAP, RGBA, GREEN, OVERLAY };  // what they look like: runtime/composition.py

// One picture to make. image and pixels are aligned to 16 bytes.
struct Picture {
  u8* pixels;          // (height, width, channels)
  const u8* image;     // (height, width, 3)
  const Tap* rows;     // of the map, one for every row of the picture
  const Tap* columns;  // one for every column
  int height, width;
  int stripe;  // rows that a thread makes, one after another
  int unused;
};

// What the network put out for one image, and how its values become saliency.
template <class T>
struct Output {
  const T* values;  // (height, width)
  int width, logit;
  float low, divisor, inverse;  // the map is stretched by (value - low) / divisor, where `stretch`
  bool stretch, quickly;

  __device__ Output(const T* values, int width, int logit, bool wanted, const Range& range)
      : values(values), width(width), logit(logit) {
    const float high = from_ordered(range.greatest);
    low = from_ordered(~range.least), divisor = high - low, inverse = 1.0f / divisor;
    stretch = wanted && high > low;  // a constant map stays as it is
    quickly = divisor > 1e-30f && divisor < 1e30f;
  }

  // In [0, 1].
  __device__ float saliency(int y, int x) const {
    float value = probability(load(values + y * width + x), logit);
    if (stretch) {
      value -= low;
      if (quickly) {  // the same quotient: an approximate one, corrected by its remainder (Markstein 1990)
        const float quotient = value * inverse;
        value = __fmaf_rn(__fmaf_rn(-quotient, divisor, value), inverse, quotient);
      } else {
        value /= divisor;
      }
    }
    return fminf(fmaxf(value, 0.0f), 1.0f);
  }
};

#define STRIPES 4          // of a block: its threads are (32, STRIPES)
#define PATCH_VALUES 6144  // of the map that a block holds in shared memory

// Values of the map at a column and its right neighbour, weighed. Here and in make_pixels products are fused with sums:
// maps need not be cv2's to the bit, and these are nearer to the true values.
__device__ inline float weighed(float a, float weight_a, float b, float weight_b) {
  return __fmaf_rn(b, weight_b, a * weight_a);
}

// The part of the map below a block's part of the picture, in shared memory: each value is computed once.
struct Patch {
  const float* values;
  int pitch, first_row, first_column;  // of the map

  __device__ int column(int x) const { return opaque((x - first_column) * (int)sizeof(float)); }
  __device__ int row(int y) const { return opaque((y - first_row) * pitch * (int)sizeof(float)); }
  __device__ float mean(int row, int column, float wl, float wr) const {
    const float* pair = (const float*)((const char*)values + (row + column));
    return weighed(pair[0], wl, pair[1], wr);
  }
};

// The same where that part is too large: values are computed anew for every pixel.
template <class T>
struct Whole {
  Output<T> output;

  __device__ int column(int x) const { return x; }
  __device__ int row(int y) const { return y; }
  __device__ float mean(int y, int x, float wl, float wr) const {
    return weighed(output.saliency(y, x), wl, output.saliency(y, min(x + 1, output.width - 1)), wr);
  }
};

// (over * alpha + under * (255 - alpha)) / 255, rounded to nearest, in the highest byte; all in 0..255. The division:
// x * 0x10102 >> 24 is x / 255 for x < 2**16.
__device__ inline u32 mixed(u32 over, u32 under, u32 alpha) {
  return (over * alpha + under * (255 - alpha) + 127) * 0x10102u;
}

template <int K>
__device__ inline u32 byte_in(const u32* words) {
  return __byte_perm(words[K / 4], 0, 0x4440 + K % 4);
}

// The words with the highest bytes, or the lowest, of four numbers.
__device__ inline u32 highest_bytes(u32 a, u32 b, u32 c, u32 d) {
  return __byte_perm(__byte_perm(a, b, 0x0073), __byte_perm(c, d, 0x0073), 0x5410);
}
__device__ inline u32 lowest_bytes(u32 a, u32 b, u32 c, u32 d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

template <int STYLE, int K>
__device__ inline void mix_pixel(u32 alpha, const u32* image, u32* channels) {
  const u32 r = byte_in<3 * K>(image), g = byte_in<3 * K + 1>(image), b = byte_in<3 * K + 2>(image);
  if (STYLE == OVERLAY) alpha = (alpha + 1) / 2;
  channels[3 * K] = STYLE == GREEN ? mixed(r, 0, alpha) : mixed(255, r, alpha);
  channels[3 * K + 1] = STYLE == GREEN ? mixed(g, 255, alpha) : mixed(0, g, alpha);
  channels[3 * K + 2] = STYLE == GREEN ? mixed(b, 0, alpha) : mixed(0, b, alpha);
}

// Four pixels. alphas: their values of the map as 0..255 in the lowest byte, other bits above. image: their 12 bytes.
// picture: the words of the picture, as many as it has channels.
template <int STYLE>
__device__ inline void paint(const u32* alphas, const u32* image, u32* picture) {
  if (STYLE == MAP) {
    picture[0] = lowest_bytes(alphas[0], alphas[1], alphas[2], alphas[3]);
  } else if (STYLE == RGBA) {
    picture[0] = __byte_perm(image[0], alphas[0], 0x4210);
    picture[1] = __byte_perm(__byte_perm(image[0], image[1], 0x0543), alphas[1], 0x4210);
    picture[2] = __byte_perm(__byte_perm(image[1], image[2], 0x0432), alphas[2], 0x4210);
    picture[3] = __byte_perm(image[2], alphas[3], 0x4321);
  } else {
    u32 channels[12];
    mix_pixel<STYLE, 0>(alphas[0] & 255, image, channels);
    mix_pixel<STYLE, 1>(alphas[1] & 255, image, channels);
    mix_pixel<STYLE, 2>(alphas[2] & 255, image, channels);
    mix_pixel<STYLE, 3>(alphas[3] & 255, image, channels);
#pragma unroll
    for (int i = 0; i < 3; i++)
      picture[i] = highest_bytes(channels[4 * i], channels[4 * i + 1], channels[4 * i + 2], channels[4 * i + 3]);
  }
}

// Three words of each lane become three words in the order of memory: lane i holds the words 3i .. 3i + 2 and gets the
// words i, i + 32 and i + 64, so that lanes side by side store side by side. In round r every lane gives its word r.
struct Transpose {
  int from[3];     // the lane to take from, by round
  bool zero, one;  // lane % 3

  __device__ explicit Transpose(int lane) {
    const int rest = lane % 3;
    zero = rest == 0, one = rest == 1;
#pragma unroll
    for (int round = 0; round < 3; round++) from[round] = (lane + (round + 3 - rest) * 2 % 3 * 32) / 3;
  }

  __device__ void operator()(u32* words) const {
    u32 got[3];
#pragma unroll
    for (int round = 0; round < 3; round++) got[round] = __shfl_sync(0xFFFFFFFFu, words[round], from[round]);
    words[0] = zero ? got[0] : one ? got[1] : got[2];
    words[1] = zero ? got[2] : one ? got[0] : got[1];
    words[2] = zero ? got[1] : one ? got[2] : got[0];
  }
};

// Stores 4 * GROUPS pixels of a row: `place` is where the thread's first pixel belongs, `columns` how many the row has
// from there on.
template <int CHANNELS, int GROUPS, bool IN_WORDS>
__device__ inline void store_pixels(u8* place, u32* words, int columns, const Transpose& transpose) {
  if (IN_WORDS && CHANNELS == 3) {
    transpose(words);
    const int lane = threadIdx.x, left = (columns + 4 * lane) * 3 / 4;  // words of the warp's part of the row
    u32* row = (u32*)place - 3 * lane;
#pragma unroll
    for (int i = 0; i < 3; i++)
      if (lane + 32 * i < left) row[lane + 32 * i] = words[i];
  } else if (IN_WORDS && CHANNELS == 4) {
    *(uint4*)place = make_uint4(words[0], words[1], words[2], words[3]);
  } else if (IN_WORDS) {
    static_assert(CHANNELS > 1 || GROUPS == 2, "8 pixels of a map are stored at once");
    *(uint2*)place = make_uint2(words[0], words[GROUPS - 1]);
  } else if (CHANNELS == 4) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < columns) ((u32*)place)[i] = words[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4 * GROUPS * CHANNELS; i++)
      if (i < columns * CHANNELS) place[i] = (u8)(words[i / 4] >> 8 * (i % 4));
  }
}

// A thread's share of the picture: 4 * GROUPS columns from x on, the rows y0 .. y1 - 1. It keeps what it has read of
// the map from one row to the next. IN_WORDS: the picture's width is a multiple of 4 * GROUPS.
template <int STYLE, int GROUPS, bool IN_WORDS, class Source>
__device__ inline void make_pixels(const Picture& picture, const Source& source, int x, int y0, int y1) {
  constexpr int CHANNELS = STYLE == MAP ? 1 : STYLE == RGBA ? 4 : 3, COLUMNS = 4 * GROUPS;
  const int width = picture.width, columns = width - x;  // that exist from there on; may be none
  if (IN_WORDS && CHANNELS != 3 && columns <= 0) return;  // for three channels the lanes of a warp work together
  const Transpose transpose(threadIdx.x);
  int left[COLUMNS];
  float wl[COLUMNS], wr[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) {
    const Tap column = picture.columns[min(x + i, width - 1)];
    left[i] = source.column(column.first), wl[i] = column.head, wr[i] = column.tail;
  }
  // The two rows of the map that the last row of the picture lies between. Usually the next one lies between the same,
  // or there is one new row of the map, which takes the place of the upper one.
  float even[COLUMNS] = {}, odd[COLUMNS] = {};
  int upper = -2;
  bool upper_is_odd = false;
  const size_t begin = (size_t)y0 * width + x, stride = (size_t)width * CHANNELS, image_stride = (size_t)width * 3;
  const u8* image_place = picture.image + begin * 3;
  u8* place = picture.pixels + begin * CHANNELS;
  const Tap* rows = picture.rows + y0;
  for (int left_over = y1 - y0; left_over > 0; left_over--) {
    const Tap row = *rows++;
    if (row.first != upper) {
      const bool both = row.first != upper + 1;
      upper_is_odd = !both && !upper_is_odd;
      upper = row.first;
      if (both || upper_is_odd) {
        const int offset = source.row(upper_is_odd ? row.last : row.first);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) even[i] = source.mean(offset, left[i], wl[i], wr[i]);
      }
      if (!upper_is_odd) {
        const int offset = source.row(row.last);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) odd[i] = source.mean(offset, left[i], wl[i], wr[i]);
      }
    }
    const float of_even = upper_is_odd ? row.tail : row.head, of_odd = upper_is_odd ? row.head : row.tail;
    u32 alphas[COLUMNS], image[3] = {0, 0, 0}, words[CHANNELS * GROUPS];
    if (STYLE != MAP && IN_WORDS) {
      if (columns > 0)
#pragma unroll
        for (int i = 0; i < 3; i++) image[i] = ((const u32*)image_place)[i];
    } else if (STYLE != MAP) {
#pragma unroll
      for (int i = 0; i < 12; i++)
        if (i < columns * 3) image[i / 4] |= (u32)image_place[i] << 8 * (i % 4);
    }
    // Rounded to nearest, a half to even: 2**23 + value has no bits left for a fraction, and the value in its lowest
    // byte. The conversion instructions would do it at a quarter of the speed.
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
      alphas[i] = __float_as_uint(__fmaf_rn(weighed(even[i], of_even, odd[i], of_odd), 255.0f, 8388608.0f));
#pragma unroll
    for (int i = 0; i < GROUPS; i++) paint<STYLE>(alphas + 4 * i, image, words + CHANNELS * i);
    store_pixels<CHANNELS, GROUPS, IN_WORDS>(place, words, columns, transpose);
    place += stride, image_place += image_stride;
  }
}

// outputs: (N, map_height, map_width). Threads (32, STRIPES); blockIdx = (columns, STRIPES stripes of rows, picture),
// over the largest picture of the batch.
template <int STYLE, class T>
__device__ inline void compose(const Picture* pictures, const T* outputs, int map_height, int map_width, int logit,
                               int stretch, const Range* ranges) {
  constexpr int GROUPS = STYLE == MAP ? 2 : 1, COLUMNS = 4 * GROUPS;
  __shared__ float values[PATCH_VALUES + 1];  // one more: a map one column wide has no right neighbours
  const Picture picture = pictures[blockIdx.z];  // a copy: for all the compiler knows, what is stored changes the original
  const int x0 = blockIdx.x * 32 * COLUMNS, top = blockIdx.y * STRIPES * picture.stripe;
  if (x0 >= picture.width || top >= picture.height) return;  // the whole block
  assume_global(picture.pixels), assume_global(picture.image);
  assume_global(picture.rows), assume_global(picture.columns);
  const Output<T> output(outputs + (size_t)blockIdx.z * map_height * map_width, map_width, logit, stretch,
                         ranges[blockIdx.z]);
  const int first_row = picture.rows[top].first, first_column = picture.columns[x0].first;
  const int last_row = picture.rows[min(top + STRIPES * picture.stripe, picture.height) - 1].last;
  const int last_column = picture.columns[min(x0 + 32 * COLUMNS, picture.width) - 1].last;
  const Patch patch = {values, last_column - first_column + 1, first_row, first_column};
  const bool fits = (last_row - first_row + 1) * patch.pitch <= PATCH_VALUES;
  if (fits) {  // half a warp to a row of the map
    for (int y = first_row + threadIdx.y * 2 + threadIdx.x / 16; y <= last_row; y += 2 * STRIPES)
      for (int x = first_column + threadIdx.x % 16; x <= last_column; x += 16)
        values[(y - first_row) * patch.pitch + x - first_column] = output.saliency(y, x);
    if (threadIdx.x + threadIdx.y == 0) values[(last_row - first_row + 1) * patch.pitch] = 0.0f;
  }
  __syncthreads();
  const int x = x0 + threadIdx.x * COLUMNS;
  const int y0 = top + threadIdx.y * picture.stripe, y1 = min(y0 + picture.stripe, picture.height);
  if (!fits)
    make_pixels<STYLE, GROUPS, false>(picture, Whole<T>{output}, x, y0, y1);
  else if (picture.width % COLUMNS)
    make_pixels<STYLE, GROUPS, false>(picture, patch, x, y0, y1);
  else
    make_pixels<STYLE, GROUPS, true>(picture, patch, x, y0, y1);
}

extern "C" __global__ void compose_map_f32(const Picture* pictures, const float* outputs, int map_height, int map_width,
                                           int logit, int stretch, const Range* ranges) {
  compose<MAP>(pictures, outputs, map_height, map_width, logit, stretch, ranges);
}
extern "C" __global__ void compose_map_f16(const Picture* pictures, const unsigned short* outputs, int map_height,
                                           int map_width, int logit, int stretch, const Range* ranges) {
  compose<MAP>(pictures, outputs, map_height, map_width, logit, stretch, ranges);
}
extern "C" __global__ void compose_rgba_f32(const Picture* pictures, const float* outputs, int map_height,
                                            int map_width, int logit, int stretch, const Range* ranges) {
  compose<RGBA>(pictures, outputs, map_height, map_width, logit, stretch, ranges);
}
extern "C" __global__ void compose_rgba_f16(const Picture* pictures, const unsigned short* outputs, int map_height,
                                            int map_width, int logit, int stretch, const Range* ranges) {
  compose<RGBA>(pictures, outputs, map_height, map_width, logit, stretch, ranges);
}
extern "C" __global__ void compose_green_f32(const Picture* pictures, const float* outputs, int map_height,
                                             int map_width, int logit, int stretch, const Range* ranges) {
  compose<GREEN>(pictures, outputs, map_height, map_width, logit, stretch, ranges);
}
extern "C" __global__ void compose_green_f16(const Picture* pictures, const unsigned short* outputs, int map_height,
                                             int map_width, int logit, int stretch, const Range* ranges) {
  compose<GREEN>(pictures, outputs, map_height, map_width, logit, stretch, ranges);
}
extern "C" __global__ void compose_overlay_f32(const Picture* pictures, const float* outputs, int map_height,
                                               int map_width, int logit, int stretch, const Range* ranges) {
  compose<OVERLAY>(pictures, outputs, map_height, map_width, logit, stretch, ranges);
}
extern "C" __global__ void compose_overlay_f16(const Picture* pictures, const unsigned short* outputs, int map_height,
                                               int map_width, int logit, int stretch, const Range* ranges) {
  compose<OVERLAY>(pictures, outputs, map_height, map_width, logit, stretch, ranges);
}
