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

// `COUNT` words from byte `offset` on, aligned or not; each word of memory is read once.
template <int COUNT>
__device__ inline void read_words(const u32* words, int offset, u32* read) {
  const u32* place = words + (offset >> 2);
  u32 before = place[0];
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const u32 next = place[i + 1];
    read[i] = __funnelshift_r(before, next, (offset & 3) * 8);
    before = next;
  }
}

template <int I, int COUNT>
__device__ inline void add_pixels(Rgb& sum, const u32* words, const float* weights) {
  if constexpr (I < COUNT) {
    add<3 * I>(sum, words, weights[I]);
    add_pixels<I + 1, COUNT>(sum, words, weights);
  }
}

// The pixels of a source row that make an output pixel, the same for every row; at most MOST. A pixel of weight 0 adds
// nothing, so all threads do the same.
template <int MOST>
struct Cell {
  int start;  // in bytes from the beginning of the block's stretch
  float weights[MOST];

  __device__ Cell(const Tap& column, float body, int begin) : start(column.first * 3 - begin) {
    const int last = column.last - column.first;
#pragma unroll
    for (int i = 0; i < MOST; i++)
      weights[i] = i == 0 ? column.head : i < last ? body : i == last ? column.tail : 0.0f;
  }

  // Their sum, in cv2's order.
  __device__ Rgb sum(const u32* words, int offset) const {
    Rgb total = {0.0f, 0.0f, 0.0f};
    u32 read[(MOST * 3 + 3) / 4];
    read_words<(MOST * 3 + 3) / 4>(words, offset + start, read);
    add_pixels<0, MOST>(total, read, weights);
    return total;
  }
};

// The same for more pixels, four at a time.
template <>
struct Cell<0> {
  int start, between;  // pixels between the first four and the last ones, which are a multiple of four
  float first[4], body, last[4];

  __device__ Cell(const Tap& column, float body, int begin) : start(column.first * 3 - begin), body(body) {
    const int count = column.last - column.first + 1, rest = (count - 1) % 4 + 1;
    between = count > 4 ? count - 4 - rest : -1;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      first[i] = i == 0 ? column.head : i < count - 1 ? body : i == count - 1 ? column.tail : 0.0f;
      last[i] = i < rest - 1 ? body : i == rest - 1 ? column.tail : 0.0f;
    }
  }

  __device__ Rgb sum(const u32* words, int offset) const {
    Rgb total = {0.0f, 0.0f, 0.0f};
    u32 four[3];
    const float bodies[4] = {body, body, body, body};
    offset += start;
    read_words<3>(words, offset, four);
    add_pixels<0, 4>(total, four, first);
    for (int left = between; left > 0; left -= 4) {
      read_words<3>(words, offset += 12, four);
      add_pixels<0, 4>(total, four, bodies);
    }
    if (between < 0) return total;
    read_words<3>(words, offset + 12, four);
    add_pixels<0, 4>(total, four, last);
    return total;
  }
};

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
template <int MOST, class Sink>
__device__ inline void area_rows(const Image& image, const Stretch& stretch, int y0, int y1, int height,
                                 const Cell<MOST>& cell, bool active, uint4* stage, Sink& sink) {
  constexpr int PIECES = STAGE_BYTES / 16;
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
        const Rgb line = cell.sum(words, (int)stretch.start(source) & 15);
        for (;;) {
          const float weight = source == row.first ? row.head : source == row.last ? row.tail : row_body;
          sum.r += line.r * weight;
          sum.g += line.g * weight;
          sum.b += line.b * weight;
          if (source != row.last) break;
          sink.put({area_value(image, sum.r), area_value(image, sum.g), area_value(image, sum.b)});
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

// The resized pixels of a block, whole numbers in [0, 255], into `sink`: one after another those of the thread's
// column `x`, and none of a thread beyond the stretch or the row.
template <class Sink>
__device__ inline void resize(const Image& image, int width, int height, int tile, int x, Sink& sink) {
  const int x0 = blockIdx.x * image.stretch, x1 = min(x0 + image.stretch, width) - 1;
  const int y0 = blockIdx.y * tile, y1 = min(y0 + tile, height);
  const bool active = x <= x1;
  assume_global(image.pixels), assume_global(image.rows), assume_global(image.columns);
  const Tap column = image.columns[min(x, x1)];
  if (image.rule == LINEAR) {
    if (active)
      for (int y = y0; y < y1; y++) sink.put(linear_pixel(image, image.rows[y], column));
    return;
  }
  const int begin = image.columns[x0].first * 3, bytes = (image.columns[x1].last + 1) * 3 - begin;
  const Stretch stretch = {image.pixels, (size_t)image.width * 3, begin, bytes, (bytes + 30) / 16};
  __shared__ uint4 stage[2 * STAGE_BYTES / 16 + 2];  // two more: words behind a cell are read, and weighed 0
  const float body = bodies(image.columns, width)[min(x, x1)];
  const auto rows = [&](const auto& cell) { area_rows(image, stretch, y0, y1, height, cell, active, stage, sink); };
  if (image.cell <= 3) {
    rows(Cell<3>(column, body, begin));
  } else if (image.cell <= 4) {
    rows(Cell<4>(column, body, begin));
  } else if (image.cell <= 6) {
    rows(Cell<6>(column, body, begin));
  } else {
    rows(Cell<0>(column, body, begin));
  }
}

// x * factor - offset of each channel, planes of (height, width) one after another.
template <class T>
struct Normalised {
  T* place;  // of the next pixel
  size_t plane;
  int width, bgr;
  float factors[3], offsets[3];

  __device__ void put(const Rgb& pixel) {
    store(place, (bgr ? pixel.b : pixel.r) * factors[0] - offsets[0]);
    store(place + plane, pixel.g * factors[1] - offsets[1]);
    store(place + 2 * plane, (bgr ? pixel.r : pixel.b) * factors[2] - offsets[2]);
    place += width;
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
  Normalised<T> sink = {batch + blockIdx.z * 3 * plane + (size_t)blockIdx.y * tile * width + x, plane, width, bgr,
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

  __device__ void put(const Rgb& pixel) {
    place[0] = (u8)(bgr ? pixel.b : pixel.r);
    place[plane] = (u8)pixel.g;
    place[2 * plane] = (u8)(bgr ? pixel.r : pixel.b);
    place += width;
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
  Bytes sink = {batch + blockIdx.z * 3 * plane + (size_t)blockIdx.y * tile * width + x, plane, width, bgr, 0.0f};
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
