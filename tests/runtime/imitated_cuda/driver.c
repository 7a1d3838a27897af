/* An imitation of NVIDIA's driver library, libcuda.so.1: the driver API on host memory, for tests where there is no GPU.

   It keeps these rules of CUDA:
   - Work on a stream runs later: at the next wait for the stream, an event on it, or the context. Host memory that is
     changed too early, or read too early, shows.
   - A stream in capture runs nothing; its graph runs the recorded work, with the recorded addresses, at every launch.
     To allocate or to wait meanwhile is an error that spoils the capture.
   - Copies, sets and frees are checked against the table of allocations. Fresh device memory holds 0xCB.
   - An error of a kernel shows at the next wait, and from then on at every call in that context.
   - A context that nobody retains is gone: using it is an error.

   Kernels run as functions of the libraries in IMITATED_CUDA_KERNELS: cpuk_NAME(grid, block, parameters), whose
   parameters have the sizes cpuk_NAME_size(0), cpuk_NAME_size(1), ... until 0.

   IMITATED_CUDA_CAPABILITY   compute capability; 9.0 by default
   IMITATED_CUDA_MEMORY       bytes of device memory; 8 GiB by default
   IMITATED_CUDA_PINNED       bytes of page-locked memory that can be had; no limit by default
   IMITATED_CUDA_FAULT        NAME:N - the Nth launch of the kernel NAME makes an illegal access
   IMITATED_CUDA_REPORT       print at exit how much was left open
   IMITATED_CUDA_NO_DEPRECATED  functions that a later CUDA may drop are gone

   Functions that are not written here answer CUDA_ERROR_NOT_SUPPORTED (build.py). It proves memory handling, the order
   of work, argument passing and control flow; nothing about speed, races or a real GPU. */

#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define API __attribute__((visibility("default"))) CUresult
#define OK CUDA_SUCCESS
#define CHECK(call)                 \
  do {                              \
    CUresult status_ = (call);      \
    if (status_ != OK) return status_; \
  } while (0)

/* ---- state of the machine; one lock for all of it */

enum { DEVICE, PINNED };
typedef struct {
  uintptr_t begin;
  size_t size;
  int kind;
} Allocation;

static pthread_mutex_t lock;
static Allocation* allocations;
static size_t allocated, capacity, device_memory = (size_t)8 << 30, device_used, pinned_memory = SIZE_MAX, pinned_used;
static long launches, graphs_open, streams_open, events_open;
static int initialised, retained, major = 9, minor = 0;
static CUresult broken; /* the error that has ended the primary context */
static char fault_kernel[64];
static int fault_launch;

static void report(void) {
  fprintf(stderr, "imitated CUDA: %zu allocations, %ld graphs, %ld streams, %ld events, %d contexts open; %ld launches\n",
          allocated, graphs_open, streams_open, events_open, retained, launches);
}

__attribute__((constructor)) static void start(void) {
  pthread_mutexattr_t recursive;
  pthread_mutexattr_init(&recursive);
  pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&lock, &recursive);
  const char* value;
  if ((value = getenv("IMITATED_CUDA_CAPABILITY"))) sscanf(value, "%d.%d", &major, &minor);
  if ((value = getenv("IMITATED_CUDA_MEMORY"))) device_memory = strtoull(value, 0, 0);
  if ((value = getenv("IMITATED_CUDA_PINNED"))) pinned_memory = strtoull(value, 0, 0);
  if ((value = getenv("IMITATED_CUDA_FAULT"))) sscanf(value, "%63[^:]:%d", fault_kernel, &fault_launch);
  if (getenv("IMITATED_CUDA_REPORT")) atexit(report);
}

/* ---- contexts: one primary context, a stack of current ones in each thread */

typedef struct {
  int unused;
} Context;
static Context primary;
static _Thread_local Context* current[64];
static _Thread_local int depth;

/* What every call that works in a context asks first. */
static CUresult usable(void) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
  if (!retained) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  return broken;
}

API cuInit(unsigned flags) { return initialised = 1, OK; }
API cuDriverGetVersion(int* version) { return *version = CUDA_VERSION, OK; }
API cuDeviceGetCount(int* count) { return *count = 1, OK; }
API cuDeviceGet(CUdevice* device, int ordinal) { return *device = 0, ordinal ? CUDA_ERROR_INVALID_DEVICE : OK; }
API cuDeviceGetName(char* name, int size, CUdevice device) {
  return snprintf(name, size, "imitated sm_%d%d", major, minor), OK;
}
API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) { return *bytes = device_memory, OK; }
API cuDeviceGetPCIBusId(char* id, int size, CUdevice device) { return snprintf(id, size, "0000:01:00.0"), OK; }
API cuDeviceComputeCapability(int* high, int* low, CUdevice device) { return *high = major, *low = minor, OK; }
API cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? major
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? minor
           : attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT     ? 132
           : attribute == CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK    ? 1024
           : attribute == CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING       ? 1
                                                                       : 0;
  return OK;
}
API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
  return retained++, *context = (CUcontext)&primary, OK;
}
API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  if (!retained) return CUDA_ERROR_INVALID_CONTEXT;
  if (!--retained) broken = OK;
  return OK;
}
API cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  return *flags = 0, *active = retained > 0, OK;
}
API cuCtxPushCurrent_v2(CUcontext context) {
  if (!retained) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  return current[depth++] = (Context*)context, OK;
}
API cuCtxPopCurrent_v2(CUcontext* context) {
  if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
  depth--;
  if (context) *context = (CUcontext)current[depth];
  return OK;
}
API cuCtxGetCurrent(CUcontext* context) { return *context = depth ? (CUcontext)current[depth - 1] : NULL, OK; }
API cuCtxSetCurrent(CUcontext context) {
  if (depth) depth--;
  if (context) current[depth++] = (Context*)context;
  return OK;
}
API cuCtxGetDevice(CUdevice* device) { return *device = 0, depth ? OK : CUDA_ERROR_INVALID_CONTEXT; }
API cuCtxGetApiVersion(CUcontext context, unsigned* version) { return *version = CUDA_VERSION, OK; }

static const struct {
  CUresult code;
  const char *name, *text;
} errors[] = {
    {OK, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
     "operation not permitted on an event last recorded in a capturing stream"},
    {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};
API cuGetErrorName(CUresult code, const char** name) {
  *name = "CUDA_ERROR_OF_THE_IMITATION";
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) *name = errors[i].name;
  return OK;
}
API cuGetErrorString(CUresult code, const char** text) {
  *text = "an error that the imitation does not name";
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) *text = errors[i].text;
  return OK;
}

/* ---- work, streams, graphs */

typedef void (*Function)(const unsigned* grid, const unsigned* block, void** parameters);
typedef struct {
  char name[128];
  Function run;
  unsigned (*size)(unsigned index);
} Kernel;

enum { COPY, SET, LAUNCH, RECORD };
#define MOST_PARAMETERS 16
#define PARAMETER_BYTES 8 /* our kernels take addresses and numbers */
typedef struct {
  struct timespec time;
  int recorded, captured, reached;
} Event;
typedef struct {
  int kind;
  void* target;
  const void* source;
  size_t size;
  unsigned char value;
  Event* event;
  Kernel* kernel;
  unsigned grid[3], block[3];
  char parameters[MOST_PARAMETERS][PARAMETER_BYTES];
} Work;
typedef struct {
  Work* items;
  size_t count, room;
} Queue;
typedef struct {
  Queue waiting;
  Queue* capture; /* the graph that is being recorded */
  CUresult spoiled;
} Stream;

static _Thread_local Stream* capturing; /* by this thread */
static Stream default_stream;

static Stream* stream_of(CUstream handle) { return handle > (CUstream)2 ? (Stream*)handle : &default_stream; }

static void append(Queue* queue, const Work* work) {
  if (queue->count == queue->room)
    queue->items = realloc(queue->items, (queue->room = queue->room ? 2 * queue->room : 16) * sizeof *queue->items);
  queue->items[queue->count++] = *work;
}

static CUresult enqueue(CUstream handle, const Work* work) {
  CHECK(usable());
  Stream* stream = stream_of(handle);
  pthread_mutex_lock(&lock);
  append(stream->capture ? stream->capture : &stream->waiting, work);
  pthread_mutex_unlock(&lock);
  return OK;
}

static CUresult perform(Work* work) {
  switch (work->kind) {
    case COPY: memmove(work->target, work->source, work->size); break;
    case SET: memset(work->target, work->value, work->size); break;
    case RECORD: clock_gettime(CLOCK_MONOTONIC, &work->event->time), work->event->reached = 1; break;
    case LAUNCH: {
      void* parameters[MOST_PARAMETERS];
      for (int i = 0; i < MOST_PARAMETERS; i++) parameters[i] = work->parameters[i];
      launches++;
      if (fault_launch && !strcmp(work->kernel->name, fault_kernel) && !--fault_launch)
        return broken = CUDA_ERROR_ILLEGAL_ADDRESS;
      work->kernel->run(work->grid, work->block, parameters);
    }
  }
  return OK;
}

/* Run what waits on a stream, up to `event` if one is given. */
static CUresult run(Stream* stream, Event* event) {
  pthread_mutex_lock(&lock);
  CUresult status = broken;
  size_t done = 0;
  while (status == OK && done < stream->waiting.count) {
    Work* work = &stream->waiting.items[done++];
    status = perform(work);
    if (event && work->kind == RECORD && work->event == event) break;
  }
  if (status != OK) done = stream->waiting.count;
  stream->waiting.count -= done;
  memmove(stream->waiting.items, stream->waiting.items + done, stream->waiting.count * sizeof(Work));
  pthread_mutex_unlock(&lock);
  return status;
}

/* Calls that a capture does not allow spoil it. */
static CUresult outside_capture(Stream* stream) {
  CHECK(usable());
  Stream* found = stream && stream->capture ? stream : capturing;
  if (!found) return OK;
  found->spoiled = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

static Stream* streams[1024];
API cuStreamCreate(CUstream* handle, unsigned flags) {
  CHECK(usable());
  pthread_mutex_lock(&lock);
  *handle = calloc(1, sizeof(Stream));
  for (int i = 0; i < 1024; i++)
    if (!streams[i]) {
      streams[i] = (Stream*)*handle;
      break;
    }
  streams_open++;
  pthread_mutex_unlock(&lock);
  return OK;
}
API cuStreamDestroy_v2(CUstream handle) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < 1024; i++)
    if (streams[i] == (Stream*)handle) {
      run(streams[i], NULL);
      streams[i] = NULL;
      streams_open--;
      free(((Stream*)handle)->waiting.items);
      free(handle);
    }
  pthread_mutex_unlock(&lock);
  return OK;
}
API cuStreamSynchronize(CUstream handle) {
  CHECK(outside_capture(stream_of(handle)));
  return run(stream_of(handle), NULL);
}
API cuStreamQuery(CUstream handle) {
  CHECK(outside_capture(stream_of(handle)));
  return stream_of(handle)->waiting.count ? CUDA_ERROR_NOT_READY : OK;
}
static CUresult run_all(void) {
  CUresult status = run(&default_stream, NULL);
  for (int i = 0; i < 1024; i++)
    if (streams[i] && !streams[i]->capture && status == OK) status = run(streams[i], NULL);
  return status;
}
API cuCtxSynchronize(void) {
  CHECK(outside_capture(NULL));
  return run_all();
}

API cuEventCreate(CUevent* event, unsigned flags) {
  CHECK(usable());
  return *event = calloc(1, sizeof(Event)), events_open++, OK;
}
API cuEventDestroy_v2(CUevent event) { return run_all(), free(event), events_open--, OK; }
API cuEventRecord(CUevent event, CUstream stream) {
  ((Event*)event)->recorded = 1, ((Event*)event)->reached = 0;
  ((Event*)event)->captured = stream_of(stream)->capture != NULL;
  return enqueue(stream, &(Work){.kind = RECORD, .event = (Event*)event});
}
API cuEventSynchronize(CUevent event) {
  Event* wanted = (Event*)event;
  CUresult allowed = outside_capture(NULL);
  if (wanted->captured) return CUDA_ERROR_CAPTURED_EVENT;
  CHECK(allowed);
  if (!wanted->recorded) return OK;
  CHECK(run(&default_stream, wanted));
  for (int i = 0; i < 1024 && !wanted->reached; i++) {
    if (!streams[i]) continue;
    int here = 0;
    for (size_t k = 0; k < streams[i]->waiting.count; k++)
      here |= streams[i]->waiting.items[k].kind == RECORD && streams[i]->waiting.items[k].event == wanted;
    if (here) CHECK(run(streams[i], wanted));
  }
  return OK;
}
API cuEventQuery(CUevent event) { return ((Event*)event)->reached ? OK : CUDA_ERROR_NOT_READY; }
API cuEventElapsedTime_v2(float* milliseconds, CUevent before, CUevent after) {
  CHECK(usable());
  Event *a = (Event*)before, *b = (Event*)after;
  if (!a->recorded || !b->recorded) return CUDA_ERROR_INVALID_HANDLE;
  if (!a->reached || !b->reached) return CUDA_ERROR_NOT_READY;
  *milliseconds = (b->time.tv_sec - a->time.tv_sec) * 1e3f + (b->time.tv_nsec - a->time.tv_nsec) * 1e-6f;
  return OK;
}
API cuEventElapsedTime(float* milliseconds, CUevent before, CUevent after) {
  return cuEventElapsedTime_v2(milliseconds, before, after);
}

API cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
  CHECK(usable());
  Stream* stream = stream_of(handle);
  if (stream == &default_stream || stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capture = calloc(1, sizeof(Queue));
  stream->spoiled = OK;
  return capturing = stream, OK;
}
API cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  Stream* stream = stream_of(handle);
  if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
  Queue* recorded = stream->capture;
  stream->capture = NULL, capturing = NULL;
  if (stream->spoiled == OK) return *graph = (CUgraph)recorded, graphs_open++, OK;
  free(recorded->items), free(recorded);
  return *graph = NULL, stream->spoiled;
}
API cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
  *status = stream_of(handle)->capture ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return OK;
}
API cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
  CHECK(usable());
  Queue* copy = calloc(1, sizeof *copy);
  for (size_t i = 0; i < ((Queue*)graph)->count; i++) append(copy, &((Queue*)graph)->items[i]);
  return *executable = (CUgraphExec)copy, graphs_open++, OK;
}
static CUresult drop(Queue* queue) { return free(queue->items), free(queue), graphs_open--, OK; }
API cuGraphDestroy(CUgraph graph) { return drop((Queue*)graph); }
API cuGraphExecDestroy(CUgraphExec executable) { return run_all(), drop((Queue*)executable); }
API cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  Queue* graph = (Queue*)executable;
  for (size_t i = 0; i < graph->count; i++) CHECK(enqueue(stream, &graph->items[i]));
  return usable();
}

/* ---- memory */

static CUresult allocate(void** address, size_t size, int kind) {
  CHECK(outside_capture(NULL));
  if (!size) return CUDA_ERROR_INVALID_VALUE;
  pthread_mutex_lock(&lock);
  size_t* used = kind == DEVICE ? &device_used : &pinned_used;
  const int full = *used + size > (kind == DEVICE ? device_memory : pinned_memory);
  if (full || posix_memalign(address, 512, size)) return pthread_mutex_unlock(&lock), CUDA_ERROR_OUT_OF_MEMORY;
  memset(*address, 0xCB, size);
  if (allocated == capacity)
    allocations = realloc(allocations, (capacity = capacity ? 2 * capacity : 64) * sizeof *allocations);
  allocations[allocated++] = (Allocation){(uintptr_t)*address, size, kind};
  *used += size;
  pthread_mutex_unlock(&lock);
  return OK;
}
static CUresult give_back(uintptr_t address, int kind) {
  CHECK(usable());
  run_all(); /* as cuMemFree: nothing may still use it */
  pthread_mutex_lock(&lock);
  CUresult status = CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; i < allocated; i++)
    if (allocations[i].begin == address && allocations[i].kind == kind) {
      *(kind == DEVICE ? &device_used : &pinned_used) -= allocations[i].size;
      allocations[i] = allocations[--allocated];
      free((void*)address);
      status = OK;
      break;
    }
  pthread_mutex_unlock(&lock);
  return status;
}
/* Whether a range lies within one allocation of the device. */
static int inside(CUdeviceptr address, size_t size) {
  int found = !size;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < allocated && !found; i++)
    found = allocations[i].kind == DEVICE && address >= allocations[i].begin &&
            address + size <= allocations[i].begin + allocations[i].size;
  pthread_mutex_unlock(&lock);
  return found;
}
static CUresult copy(void* target, const void* source, size_t size, int to_device, int from_device, CUstream stream) {
  CHECK(usable());
  if (to_device && !inside((CUdeviceptr)target, size)) return CUDA_ERROR_INVALID_VALUE;
  if (from_device && !inside((CUdeviceptr)source, size)) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(stream, &(Work){.kind = COPY, .target = target, .source = source, .size = size});
}
API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  CHECK(usable());
  return *free_bytes = device_memory - device_used, *total = device_memory, OK;
}
API cuMemAlloc_v2(CUdeviceptr* address, size_t size) { return allocate((void**)address, size, DEVICE); }
API cuMemFree_v2(CUdeviceptr address) { return give_back(address, DEVICE); }
API cuMemHostAlloc(void** address, size_t size, unsigned flags) { return allocate(address, size, PINNED); }
API cuMemAllocHost_v2(void** address, size_t size) { return allocate(address, size, PINNED); }
API cuMemFreeHost(void* address) { return give_back((uintptr_t)address, PINNED); }
API cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void* source, size_t size, CUstream stream) {
  return copy((void*)target, source, size, 1, 0, stream);
}
API cuMemcpyDtoHAsync_v2(void* target, CUdeviceptr source, size_t size, CUstream stream) {
  return copy(target, (const void*)source, size, 0, 1, stream);
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
  return copy((void*)target, (const void*)source, size, 1, 1, stream);
}
API cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t size, CUstream stream) {
  if (!inside(target, size)) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(stream, &(Work){.kind = SET, .target = (void*)target, .value = value, .size = size});
}

/* ---- kernels */

static void* exported(const char* name, const char* suffix) {
  char symbol[192];
  snprintf(symbol, sizeof symbol, "cpuk_%s%s", name, suffix);
  static void* library;
  if (!library && getenv("IMITATED_CUDA_KERNELS")) library = dlopen(getenv("IMITATED_CUDA_KERNELS"), RTLD_NOW);
  return library ? dlsym(library, symbol) : NULL;
}
API cuModuleLoadData(CUmodule* module, const void* image) {
  CHECK(outside_capture(NULL));
  return *module = malloc(1), OK;
}
API cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned count, CUjit_option* options, void** values) {
  return cuModuleLoadData(module, image);
}
API cuModuleUnload(CUmodule module) { return free(module), OK; }
API cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  Kernel* kernel = calloc(1, sizeof *kernel);
  snprintf(kernel->name, sizeof kernel->name, "%s", name);
  kernel->run = (Function)exported(name, "");
  kernel->size = (unsigned (*)(unsigned))exported(name, "_size");
  if (!kernel->run || !kernel->size) return free(kernel), CUDA_ERROR_NOT_FOUND;
  return *function = (CUfunction)kernel, OK;
}
API cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) { return *value = 0, OK; }
/* Deprecated; pycuda calls it before every launch. */
API cuFuncSetBlockShape(CUfunction function, int x, int y, int z) {
  return getenv("IMITATED_CUDA_NO_DEPRECATED") ? CUDA_ERROR_NOT_SUPPORTED : usable();
}
API cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** parameters,
                   void** extra) {
  const uint64_t threads = (uint64_t)block_x * block_y * block_z;
  if (!grid_x || !grid_y || !grid_z || !threads || threads > 1024 || block_z > 64 || grid_y > 65535 || grid_z > 65535)
    return CUDA_ERROR_INVALID_VALUE;
  Work work = {.kind = LAUNCH, .kernel = (Kernel*)function, .grid = {grid_x, grid_y, grid_z},
               .block = {block_x, block_y, block_z}};
  const char* packed = NULL;
  size_t packed_size = 0, at = 0;
  for (int i = 0; extra && extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
    if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER) packed = extra[i + 1];
    if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE) packed_size = *(size_t*)extra[i + 1];
  }
  unsigned size;
  for (int i = 0; (size = work.kernel->size(i)); i++) {
    if (i == MOST_PARAMETERS || size > PARAMETER_BYTES) return CUDA_ERROR_NOT_SUPPORTED;
    if (packed) {
      const size_t alignment = size;
      at = (at + alignment - 1) / alignment * alignment;
      if (at + size > packed_size) return CUDA_ERROR_INVALID_VALUE;
      memcpy(work.parameters[i], packed + at, size), at += size;
    } else {
      memcpy(work.parameters[i], parameters[i], size);
    }
  }
  return enqueue(stream, &work);
}

/* ---- the way cuda.bindings finds functions; build.py writes the table of names and versions from cuda.h */

extern const char* const versioned_names[][2];
API cuGetProcAddress_v2(const char* name, void** function, int version, cuuint64_t flags,
                        CUdriverProcAddressQueryResult* found) {
  static void* self;
  Dl_info here;
  if (!self && dladdr((void*)start, &here)) self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  *function = NULL;
  for (int i = 0; !*function && versioned_names[i][0]; i++)
    if (!strcmp(versioned_names[i][0], name)) *function = dlsym(self, versioned_names[i][1]);
  if (!*function) *function = dlsym(self, name);
  if (found) *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *function ? OK : CUDA_ERROR_NOT_FOUND;
}
