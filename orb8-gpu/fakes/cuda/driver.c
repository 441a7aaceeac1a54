/* A stand-in for the driver's libcuda.so.1: the functions that orb8 traces, with their genuine signatures and results,
 * and no device behind them. It has FAKE_CUDA_MEMORY bytes (1 GiB) of addresses that nothing lies at, and refuses what the
 * driver refuses: more memory than there is, addresses that it did not give, launches of no threads, streams it did not make.
 * Synchronising takes FAKE_CUDA_SYNC_US microseconds.
 *
 *   cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 driver.c
 */
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

typedef int CUresult;
typedef unsigned long long CUdeviceptr;
typedef void *CUfunction;
typedef void *CUstream;

enum {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_INVALID_HANDLE = 400
};

#define ALLOCATIONS 65536
#define BASE 0x7f0000000000ULL

static struct {
  CUdeviceptr address;
  size_t bytes;
} allocations[ALLOCATIONS];
static size_t used;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static size_t setting(const char *name, size_t otherwise) {
  const char *text = getenv(name);
  return text ? strtoull(text, NULL, 0) : otherwise;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
  if (!address || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
  pthread_mutex_lock(&mutex);
  if (bytes <= setting("FAKE_CUDA_MEMORY", 1 << 30) - used) {
    for (size_t at = 0; at < ALLOCATIONS; at++) {
      if (allocations[at].bytes == 0) {
        /* An address of its own, which the next allocation gets again once this is freed, as with real ones. */
        allocations[at].address = BASE + ((CUdeviceptr)at << 32);
        allocations[at].bytes = bytes;
        used += bytes;
        *address = allocations[at].address;
        result = CUDA_SUCCESS;
        break;
      }
    }
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
  if (address == 0) return CUDA_SUCCESS;
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  CUdeviceptr at = (address - BASE) >> 32;
  pthread_mutex_lock(&mutex);
  if (address >= BASE && at < ALLOCATIONS && allocations[at].bytes != 0 && allocations[at].address == address) {
    used -= allocations[at].bytes;
    allocations[at].bytes = 0;
    result = CUDA_SUCCESS;
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

CUresult cuLaunchKernel(CUfunction function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX,
                        unsigned blockY, unsigned blockZ, unsigned sharedBytes, CUstream stream, void **parameters,
                        void **extra) {
  (void)function, (void)sharedBytes, (void)stream, (void)parameters, (void)extra;
  if (!gridX || !gridY || !gridZ || !blockX || !blockY || !blockZ) return CUDA_ERROR_INVALID_VALUE;
  return CUDA_SUCCESS;
}

static CUresult copied(CUdeviceptr to, CUdeviceptr from) {
  return to && from ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  (void)bytes;
  return copied(to, from);
}

CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  (void)bytes, (void)stream;
  return copied(to, from);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
  (void)bytes;
  return copied(to, (CUdeviceptr)from);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
  (void)bytes, (void)stream;
  return copied(to, (CUdeviceptr)from);
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
  (void)bytes;
  return copied((CUdeviceptr)to, from);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
  (void)bytes, (void)stream;
  return copied((CUdeviceptr)to, from);
}

CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  (void)bytes;
  return copied(to, from);
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  (void)bytes, (void)stream;
  return copied(to, from);
}

/* A real one under the name that programs use which were compiled for a default stream per thread. */
CUresult cuMemcpyHtoD_v2_ptds(CUdeviceptr to, const void *from, size_t bytes) {
  (void)bytes;
  return copied(to, (CUdeviceptr)from);
}

static CUresult synchronize(void) {
  size_t wait = setting("FAKE_CUDA_SYNC_US", 0);
  if (wait) usleep(wait);
  return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
  return stream ? CUDA_ERROR_INVALID_HANDLE : synchronize();
}

CUresult cuCtxSynchronize(void) { return synchronize(); }
