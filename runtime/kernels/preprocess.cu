// From images to the network's input: resize, colour order, normalisation and HWC -> CHW in one pass over the images.
//
// The resize gives cv2's bytes exactly (INTER_LINEAR and INTER_AREA of uint8, 3 channels); which source pixels make an
// output pixel, and with which weights, comes from tables that the host computes (runtime/gpu/resize_taps.py). Compile
// with -fmad=false: a fused multiply-add rounds once where cv2 rounds twice.
//
// Every block makes one stretch of one output row of one image: blockIdx = (stretch, output row, image).

#include "image.cuh"

#define STAGE_BYTES 12288  // source bytes a block holds in shared memory: 5 rows x 128 output pixels of 1920 -> 320

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

__device__ inline void add(Rgb& sum, u32 pixel, float weight) {
  sum.r += byte_of<0>(pixel) * weight;
  sum.g += byte_of<1>(pixel) * weight;
  sum.b += byte_of<2>(pixel) * weight;
}

__device__ inline const float* bodies(const Tap* taps, int count) { return (const float*)(taps + count); }

// One output pixel's sum over a cell of source pixels, in cv2's order: along each row, then over the rows.
// All threads of the block take part: they copy the rows of their stretch into shared memory, 16 bytes a time.
__device__ inline Rgb area_sum(const Image& image, const Tap& row, float row_body, const Tap& column, float body,
                               int begin, int end, bool active) {
  __shared__ uint4 stage[STAGE_BYTES / 16 + 1];  // one more: bytes_at reads the word after the last
  const int pitch = (end - begin + 30) / 16;     // 16-byte pieces of a source row's stretch, wherever it begins
  const int fit = STAGE_BYTES / 16 / pitch;
  Rgb sum = {0.0f, 0.0f, 0.0f};
  for (int base = row.first; base <= row.last; base += fit) {
    const int rows = min(fit, row.last - base + 1);
    for (int piece = threadIdx.x; piece < rows * pitch; piece += blockDim.x) {
      const int r = piece / pitch;
      const size_t start = (size_t)(base + r) * image.width * 3 + begin;
      const size_t at = (start & ~(size_t)15) + (size_t)(piece - r * pitch) * 16;
      if (at < start + (end - begin)) stage[piece] = *(const uint4*)(image.pixels + at);
    }
    __syncthreads();
    if (active)
      for (int r = 0; r < rows; r++) {
        const size_t start = (size_t)(base + r) * image.width * 3 + begin;
        const u32* words = (const u32*)(stage + r * pitch);
        int offset = (int)(start & 15) + column.first * 3 - begin;
        Rgb line = {0.0f, 0.0f, 0.0f};
        add(line, bytes_at(words, offset), column.head);
        for (int x = column.first + 1; x < column.last; x++) add(line, bytes_at(words, offset += 3), body);
        if (column.last > column.first) add(line, bytes_at(words, offset + 3), column.tail);
        const int y = base + r;
        const float weight = y == row.first ? row.head : y == row.last ? row.tail : row_body;
        sum.r += line.r * weight;
        sum.g += line.g * weight;
        sum.b += line.b * weight;
      }
    __syncthreads();
  }
  return sum;
}

__device__ inline float area_value(const Image& image, float sum) {
  return image.rule == HALVE ? (float)(((int)sum + 2) >> 2) : fminf(rintf(sum * image.scale), 255.0f);
}

// The resized pixel of this thread: whole numbers in [0, 255]. `x` is its output column; threads beyond the stretch
// or the row are not `active` and get nothing, but must come along.
__device__ inline Rgb resized_pixel(const Image image, int x, int width, int stretch, bool active) {
  const Tap row = image.rows[blockIdx.y];
  const int x0 = blockIdx.x * stretch, x1 = min(x0 + stretch, width) - 1;
  const Tap column = image.columns[min(x, x1)];
  if (image.rule == LINEAR) return active ? linear_pixel(image, row, column) : Rgb{0.0f, 0.0f, 0.0f};
  const int begin = image.columns[x0].first * 3, end = (image.columns[x1].last + 1) * 3;
  const float row_body = bodies(image.rows, gridDim.y)[blockIdx.y], body = bodies(image.columns, width)[min(x, x1)];
  const Rgb sum = area_sum(image, row, row_body, column, body, begin, end, active);
  return {area_value(image, sum.r), area_value(image, sum.g), area_value(image, sum.b)};
}

// images: one for each of the batch. batch: (N, 3, gridDim.y, width). bgr: the network wants blue first.
// normalisation: the divisor's factors, then what is taken off: x * normalisation[c] - normalisation[3 + c].
template <class T>
__device__ inline void resize_normalise(const Image* images, T* batch, int width, int stretch, int bgr,
                                        const float* normalisation) {
  const int x = blockIdx.x * stretch + threadIdx.x;
  const bool active = (int)threadIdx.x < stretch && x < width;
  const Rgb pixel = resized_pixel(images[blockIdx.z], x, width, stretch, active);
  if (!active) return;
  const size_t plane = (size_t)gridDim.y * width;
  T* place = batch + blockIdx.z * 3 * plane + (size_t)blockIdx.y * width + x;
  store(place, (bgr ? pixel.b : pixel.r) * normalisation[0] - normalisation[3]);
  store(place + plane, pixel.g * normalisation[1] - normalisation[4]);
  store(place + 2 * plane, (bgr ? pixel.r : pixel.b) * normalisation[2] - normalisation[5]);
}

extern "C" __global__ void resize_normalise_f32(const Image* images, float* batch, int width, int stretch, int bgr,
                                                const float* normalisation) {
  resize_normalise(images, batch, width, stretch, bgr, normalisation);
}

extern "C" __global__ void resize_normalise_f16(const Image* images, unsigned short* batch, int width, int stretch,
                                                int bgr, const float* normalisation) {
  resize_normalise(images, batch, width, stretch, bgr, normalisation);
}

// Where an image is divided by its own maximum, that must be known before the first value is written: so resize to
// bytes first, (N, 3, gridDim.y, width) in the network's colour order, and note each image's largest in `maxima`,
// (N,) zeros before.
extern "C" __global__ void resize_bytes(const Image* images, u8* batch, int width, int stretch, int bgr, u32* maxima) {
  __shared__ u32 largest;
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  const int x = blockIdx.x * stretch + threadIdx.x;
  const bool active = (int)threadIdx.x < stretch && x < width;
  const Rgb pixel = resized_pixel(images[blockIdx.z], x, width, stretch, active);
  if (active) {
    const size_t plane = (size_t)gridDim.y * width;
    u8* place = batch + blockIdx.z * 3 * plane + (size_t)blockIdx.y * width + x;
    place[0] = (u8)(bgr ? pixel.b : pixel.r);
    place[plane] = (u8)pixel.g;
    place[2 * plane] = (u8)(bgr ? pixel.r : pixel.b);
    atomicMax(&largest, (u32)fmaxf(pixel.r, fmaxf(pixel.g, pixel.b)));
  }
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
