// From images to the network's input: resize, colour order, normalisation and HWC -> CHW in one pass over the images.
//
// The resize gives cv2's bytes exactly (INTER_LINEAR and INTER_AREA of uint8, 3 channels); which source pixels make an
// output pixel, and with which weights, comes from tables that the host computes (runtime/gpu/resize_taps.py). Compile
// with -fmad=false: a fused multiply-add rounds once where cv2 rounds twice.
//
// Every block makes one stretch of some output rows of one image: blockIdx = (stretch, `tile` output rows, image).

#include "image.cuh"

#define STAGE_BYTES 12288  // source bytes a block holds in shared memory, twice: 5 rows x 128 output pixels of 1920 -> 320

struct Rgb {
  float r, g, b;
};

__device__ inline u32 bytes_at(const u32* words, int offset) {  // the 4 bytes from `offset`, aligned or not
  return __funnelshift_r(words[offset >> 2], words[(offset >> 2) + 1], (offset & 3) * 8);
}

// A byte as float without the conversion unit, of which there are few: 2**23 + byte has the byte in its lowest bits.
template <int K>
__device__ inline float byte_of(u32 bytes) {
  return __uint_as_float(__byte_perm(bytes, 0x4B000000u, 0x7440 + K)) - 8388608.0f;
}

__device__ inline void store(float* place, float value) { *place = value; }
__device__ inline void store(unsigned short* place, float value) { *place = half_bits(value); }

// ---- LINEAR

// Two pixels side by side, three bytes each, from three words that begin `offset` & 3 bytes before them.
struct Neighbours {
  u32 left, right;

  // pixels: of the image. at: where the left one begins. step: 3, or 0 where it has no right neighbour. Reads the words
  // that hold them, and nothing else.
  __device__ Neighbours(const u8* pixels, size_t at, int step) {
    const u32* words = (const u32*)(pixels + (at & ~(size_t)3));
    const int begin = at & 3, last = (begin + step + 2) / 4, next = begin + step;
    const u32 first = words[0], second = words[min(1, last)], third = words[last];
    left = __funnelshift_r(first, second, begin * 8);
    right = next < 4 ? __funnelshift_r(first, second, next * 8) : __funnelshift_r(second, third, (next - 4) * 8);
  }
  template <int K>
  __device__ int mean(int wl, int wr) const {
    return (int)(__byte_perm(left, 0, 0x4440 + K) * wl + __byte_perm(right, 0, 0x4440 + K) * wr) >> 4;
  }
};

// One output pixel by cv2's fixed-point bilinear rule: 11-bit weights, 4 bits dropped after the horizontal pass.
__device__ inline Rgb linear_pixel(const Image& image, const Tap& row, const Tap& column) {
  const size_t pitch = (size_t)image.width * 3;
  const int left = column.first * 3, step = (column.last - column.first) * 3;
  const int wl = (int)column.head, wr = (int)column.tail, wt = (int)row.head, wb = (int)row.tail;
  const Neighbours top(image.pixels, row.first * pitch + left, step), bottom(image.pixels, row.last * pitch + left, step);
  const auto mean = [&](int above, int below) {
    return (float)((((wt * above) >> 16) + ((wb * below) >> 16) + 2) >> 2);
  };
  return {mean(top.mean<0>(wl, wr), bottom.mean<0>(wl, wr)), mean(top.mean<1>(wl, wr), bottom.mean<1>(wl, wr)),
          mean(top.mean<2>(wl, wr), bottom.mean<2>(wl, wr))};
}

// ---- AREA and HALVE

// The taps' bodies, of AREA.
__device__ inline const float* bodies(const Tap* taps, int count) { return (const float*)(taps + count); }

template <int K>  // the pixel that begins at byte K of three words
__device__ inline void add(Rgb& sum, const u32* words, float weight) {
  sum.r += byte_of<K % 4>(words[K / 4]) * weight;
  sum.g += byte_of<(K + 1) % 4>(words[(K + 1) / 4]) * weight;
  sum.b += byte_of<(K + 2) % 4>(words[(K + 2) / 4]) * weight;
}

__device__ inline void add_pixel(Rgb& sum, const u32* words, int offset, float weight) {
  const u32 pixel = bytes_at(words, offset);
  add<0>(sum, &pixel, weight);
}

// The sum over one source row of a cell, from its first pixel at `offset`, in cv2's order.
__device__ inline Rgb row_sum(const u32* words, int offset, const Tap& column, float body) {
  Rgb sum = {0.0f, 0.0f, 0.0f};
  add_pixel(sum, words, offset, column.head);
  int left = column.last - column.first - 1;  // pixels before the last
  offset += 3;
  if (left >= 4) {  // four pixels are three words, each of which is read once
    const u32* place = words + (offset >> 2);
    const int shift = (offset & 3) * 8;
    u32 before = *place;
    do {
      const u32 a = place[1], b = place[2], c = place[3];
      const u32 four[3] = {__funnelshift_r(before, a, shift), __funnelshift_r(a, b, shift),
                           __funnelshift_r(b, c, shift)};
      add<0>(sum, four, body), add<3>(sum, four, body), add<6>(sum, four, body), add<9>(sum, four, body);
      before = c, place += 3, left -= 4, offset += 12;
    } while (left >= 4);
  }
  for (; left > 0; left--, offset += 3) add_pixel(sum, words, offset, body);
  if (left == 0) add_pixel(sum, words, offset, column.tail);
  return sum;
}

// Where a block's stretch of a source row begins, and how it lies in shared memory.
struct Stretch {
  const u8* pixels;
  size_t row_bytes;
  int begin, bytes;  // of a row
  int pitch;         // 16-byte pieces of a row's stretch, wherever it begins

  __device__ size_t start(int row) const { return row * row_bytes + begin; }

  // Begin to copy rows into `stage`, 16 bytes a time, a warp to a row.
  __device__ void copy(int first, int rows, uint4* stage) const {
    const int lane = threadIdx.x % 32;
    for (int r = threadIdx.x / 32; r < rows; r += blockDim.x / 32) {
      const size_t from = start(first + r), aligned = from & ~(size_t)15;
      const u8* source = pixels + aligned;
      const int pieces = ((int)(from - aligned) + bytes + 15) / 16;
      for (int piece = lane; piece < pieces; piece += 32) copy_async(stage + r * pitch + piece, source + piece * 16);
    }
    end_copies();
  }
};

__device__ inline float area_value(const Image& image, float sum) {
  return image.rule == HALVE ? (float)(((int)sum + 2) >> 2) : fminf(rintf(sum * image.scale), 255.0f);
}

// The output rows y0 .. y1 - 1 of the threads' columns. Source rows go through shared memory once, some at a time while
// the next are copied, and each is summed once for both output rows that may share it.
template <class Sink>
__device__ inline void area_rows(const Image& image, const Stretch& stretch, int y0, int y1, int height,
                                 const Tap& column, float body, bool active, Sink& sink) {
  constexpr int PIECES = STAGE_BYTES / 16;
  __shared__ uint4 stage[2 * PIECES + 1];  // one more: bytes_at reads the word after the last
  const int warps = blockDim.x / 32, most = PIECES / stretch.pitch, fit = most < warps ? most : most / warps * warps;
  const float* row_bodies = bodies(image.rows, height);
  const int first = image.rows[y0].first, last = image.rows[y1 - 1].last;
  int y = y0, half = 0;
  Tap row = image.rows[y];
  float row_body = row_bodies[y];
  Rgb sum = {0.0f, 0.0f, 0.0f};
  stretch.copy(first, min(fit, last - first + 1), stage);
  for (int base = first; base <= last; base += fit, half ^= 1) {
    const int next = base + fit;
    stretch.copy(next, min(fit, last - next + 1), stage + (half ^ 1) * PIECES);  // may be none
    await_copies_but_last();
    __syncthreads();
    if (active)
      for (int source = base; source < min(next, last + 1); source++) {
        const u32* words = (const u32*)(stage + half * PIECES + (source - base) * stretch.pitch);
        const int offset = (int)(stretch.start(source) & 15) + column.first * 3 - stretch.begin;
        const Rgb line = row_sum(words, offset, column, body);
        for (;;) {
          const float weight = source == row.first ? row.head : source == row.last ? row.tail : row_body;
          sum.r += line.r * weight;
          sum.g += line.g * weight;
          sum.b += line.b * weight;
          if (source != row.last) break;
          sink.put(y, {area_value(image, sum.r), area_value(image, sum.g), area_value(image, sum.b)});
          if (++y == y1) break;
          row = image.rows[y], row_body = row_bodies[y];
          sum = {0.0f, 0.0f, 0.0f};
          if (source != row.first) break;
        }
      }
    __syncthreads();
  }
}

// ---- all rules

// The resized pixels of a block, whole numbers in [0, 255], into `sink`: put(output row, pixel) of the thread's column
// `x`, and of no thread beyond the stretch or the row.
template <class Sink>
__device__ inline void resize(const Image& image, int width, int height, int tile, int x, Sink& sink) {
  const int x0 = blockIdx.x * image.stretch, x1 = min(x0 + image.stretch, width) - 1;
  const int y0 = blockIdx.y * tile, y1 = min(y0 + tile, height);
  const bool active = x <= x1;
  assume_global(image.pixels), assume_global(image.rows), assume_global(image.columns);
  const Tap column = image.columns[min(x, x1)];
  if (image.rule == LINEAR) {
    if (active)
      for (int y = y0; y < y1; y++) sink.put(y, linear_pixel(image, image.rows[y], column));
    return;
  }
  const int begin = image.columns[x0].first * 3, bytes = (image.columns[x1].last + 1) * 3 - begin;
  const Stretch stretch = {image.pixels, (size_t)image.width * 3, begin, bytes, (bytes + 30) / 16};
  area_rows(image, stretch, y0, y1, height, column, bodies(image.columns, width)[min(x, x1)], active, sink);
}

// x * factor - offset of each channel, planes of (height, width) one after another.
template <class T>
struct Normalised {
  T* place;  // of the column's first row
  size_t plane;
  int width, bgr;
  float factors[3], offsets[3];

  __device__ void put(int y, const Rgb& pixel) {
    T* at = place + (size_t)y * width;
    store(at, (bgr ? pixel.b : pixel.r) * factors[0] - offsets[0]);
    store(at + plane, pixel.g * factors[1] - offsets[1]);
    store(at + 2 * plane, (bgr ? pixel.r : pixel.b) * factors[2] - offsets[2]);
  }
};

// images: one for each of the batch. batch: (N, 3, height, width). bgr: the network wants blue first.
// normalisation: the divisor's factors, then what is taken off.
template <class T>
__device__ inline void resize_normalise(const Image* images, T* batch, int width, int height, int tile, int bgr,
                                        const float* normalisation) {
  const Image image = images[blockIdx.z];
  const int x = blockIdx.x * image.stretch + threadIdx.x;
  if ((int)blockIdx.x * image.stretch >= width) return;  // the whole block
  const size_t plane = (size_t)height * width;
  Normalised<T> sink = {batch + blockIdx.z * 3 * plane + x, plane, width, bgr,
                        {normalisation[0], normalisation[1], normalisation[2]},
                        {normalisation[3], normalisation[4], normalisation[5]}};
  resize(image, width, height, tile, x, sink);
}

extern "C" __global__ void resize_normalise_f32(const Image* images, float* batch, int width, int height, int tile,
                                                int bgr, const float* normalisation) {
  resize_normalise(images, batch, width, height, tile, bgr, normalisation);
}

extern "C" __global__ void resize_normalise_f16(const Image* images, unsigned short* batch, int width, int height,
                                                int tile, int bgr, const float* normalisation) {
  resize_normalise(images, batch, width, height, tile, bgr, normalisation);
}

// Bytes, planes as above, and the largest of them.
struct Bytes {
  u8* place;
  size_t plane;
  int width, bgr;
  float largest;

  __device__ void put(int y, const Rgb& pixel) {
    u8* at = place + (size_t)y * width;
    at[0] = (u8)(bgr ? pixel.b : pixel.r);
    at[plane] = (u8)pixel.g;
    at[2 * plane] = (u8)(bgr ? pixel.r : pixel.b);
    largest = fmaxf(largest, fmaxf(pixel.r, fmaxf(pixel.g, pixel.b)));
  }
};

// Where an image is divided by its own maximum, that must be known before the first value is written: so resize to
// bytes first, (N, 3, height, width) in the network's colour order, and note each image's largest in `maxima`, (N,)
// zeros before.
extern "C" __global__ void resize_bytes(const Image* images, u8* batch, int width, int height, int tile, int bgr,
                                        u32* maxima) {
  __shared__ u32 largest;
  const Image image = images[blockIdx.z];
  if ((int)blockIdx.x * image.stretch >= width) return;  // the whole block
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  const int x = blockIdx.x * image.stretch + threadIdx.x;
  const size_t plane = (size_t)height * width;
  Bytes sink = {batch + blockIdx.z * 3 * plane + x, plane, width, bgr, 0.0f};
  resize(image, width, height, tile, x, sink);
  atomicMax(&largest, (u32)sink.largest);
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(maxima + blockIdx.z, largest);
}

// bytes: (N, 3, pixels). normalisation: (256, 3) factors for every possible maximum, then (3,) what is taken off.
template <class T>
__device__ inline void normalise_by_maximum(const u8* bytes, T* batch, int pixels, const u32* maxima,
                                            const float* normalisation) {
  const int pixel = blockIdx.x * blockDim.x + threadIdx.x, channel = blockIdx.y;
  if (pixel >= pixels) return;
  const size_t at = ((size_t)blockIdx.z * 3 + channel) * pixels + pixel;
  store(batch + at, (float)bytes[at] * normalisation[maxima[blockIdx.z] * 3 + channel] - normalisation[768 + channel]);
}

extern "C" __global__ void normalise_by_maximum_f32(const u8* bytes, float* batch, int pixels, const u32* maxima,
                                                    const float* normalisation) {
  normalise_by_maximum(bytes, batch, pixels, maxima, normalisation);
}

extern "C" __global__ void normalise_by_maximum_f16(const u8* bytes, unsigned short* batch, int pixels,
                                                    const u32* maxima, const float* normalisation) {
  normalise_by_maximum(bytes, batch, pixels, maxima, normalisation);
}
