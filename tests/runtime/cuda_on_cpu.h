// Enough of CUDA to run our kernels on a CPU: g++ -include cuda_on_cpu.h -x c++ -ffp-contract=off kernels.cu
//
// Real: the arithmetic, the indices, who reads and writes what, barriers (each thread of a block is a fiber that gives
// way at __syncthreads). Not real: races between threads, timing, memory spaces.

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // blocks run one after another, so one copy serves them all
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static dim3 gridDim, blockDim, blockIdx, threadIdx;

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline unsigned atomicMax(unsigned* place, unsigned value) {
  const unsigned before = *place;
  if (value > before) *place = value;
  return before;
}
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline unsigned __float_as_uint(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}
static inline float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = (uint64_t)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) result |= (unsigned)((both >> (((selector >> (4 * i)) & 7) * 8)) & 255) << (8 * i);
  return result;
}
static inline void assume_global(const void*) {}
static inline void copy_async(uint4* to, const unsigned char* from) { *to = *(const uint4*)from; }
static inline void end_copies() {}
static inline void await_copies_but_last() {}
static inline int opaque(int value) { return value; }
static inline unsigned short half_bits(float value) {
  const _Float16 half = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}
static inline float half_value(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, 2);
  return (float)half;
}

// ---- a block of threads as fibers

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  dim3 index;
  bool done;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static Fiber* current;
static void (*body)(const void*);
static const void* arguments;
static std::mutex one_kernel_at_a_time;

static void fiber_main() {
  body(arguments);
  current->done = true;
}

static inline void __syncthreads() { swapcontext(&current->context, &scheduler); }

// Of a whole warp: all 32 lanes take part, and all threads of the block do so equally often between two barriers.
static inline unsigned __shfl_sync(unsigned, unsigned value, int lane) {
  static unsigned given[1024];
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  given[thread] = value;
  swapcontext(&current->context, &scheduler);
  const unsigned taken = given[(thread & ~31u) + lane];
  swapcontext(&current->context, &scheduler);
  return taken;
}

static void start(Fiber& fiber, dim3 index) {
  fiber.stack.resize(64 * 1024);
  fiber.index = index;
  fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, fiber_main, 0);
}

static void run_block() {
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  if (fibers.size() < threads) fibers.resize(threads);
  for (unsigned t = 0; t < threads; t++)
    start(fibers[t], {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y});
  for (unsigned left = threads; left;)  // each round takes every thread to its next barrier, or to its end
    for (unsigned i = 0; i < threads; i++) {
      if (fibers[i].done) continue;
      current = &fibers[i];
      threadIdx = current->index;
      swapcontext(&scheduler, &current->context);
      left -= current->done;
    }
}

// ---- launching: KERNEL(name) exports cpuk_name(grid, block, parameters) and cpuk_name_size(index), the bytes of a
// parameter, 0 past the last.

template <class... P, size_t... I>
static std::tuple<P...> pointed_to(void** parameters, std::index_sequence<I...>) {
  return {*(P*)parameters[I]...};
}

template <class... P>
static void launch(void (*kernel)(P...), const unsigned* grid, const unsigned* block, void** parameters) {
  std::lock_guard<std::mutex> lock(one_kernel_at_a_time);
  using Call = std::pair<void (*)(P...), std::tuple<P...>>;
  const Call call{kernel, pointed_to<P...>(parameters, std::index_sequence_for<P...>())};
  body = [](const void* p) { std::apply(((const Call*)p)->first, ((const Call*)p)->second); };
  arguments = &call;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; x < grid[0]; x++) {
        blockIdx = {x, y, z};
        run_block();
      }
}

template <class... P>
static unsigned size_of(void (*)(P...), unsigned index) {
  const unsigned sizes[] = {(unsigned)sizeof(P)..., 0};
  return sizes[index];
}

#define KERNEL(name)                                                                            \
  extern "C" void cpuk_##name(const unsigned* grid, const unsigned* block, void** parameters) { \
    launch(name, grid, block, parameters);                                                      \
  }                                                                                             \
  extern "C" unsigned cpuk_##name##_size(unsigned index) { return size_of(name, index); }
