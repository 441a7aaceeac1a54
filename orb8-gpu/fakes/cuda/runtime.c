/* A stand-in for libcudart.so.12, over the stand-in for the driver: each function calls the driver's, as the real ones
 * do, through its exported symbol, so that a tracer of both libraries sees both calls. As the real ones, they return
 * themselves, rather than jump to the driver: with -foptimize-sibling-calls instead they jump.
 *
 *   cc -shared -fPIC -O2 -fno-optimize-sibling-calls -Wl,-soname,libcudart.so.12 -Wl,-rpath,'$ORIGIN' -o libcudart.so.12 runtime.c libcuda.so.1
 */
#include <stddef.h>

typedef int CUresult;
typedef int cudaError_t;
typedef unsigned long long CUdeviceptr;
typedef void *cudaStream_t;
typedef struct {
  unsigned x, y, z;
} dim3;

extern CUresult cuMemAlloc_v2(CUdeviceptr *, size_t);
extern CUresult cuMemFree_v2(CUdeviceptr);
extern CUresult cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                               void **, void **);
extern CUresult cuMemcpy(CUdeviceptr, CUdeviceptr, size_t);
extern CUresult cuMemcpyAsync(CUdeviceptr, CUdeviceptr, size_t, void *);
extern CUresult cuCtxSynchronize(void);
extern CUresult cuStreamSynchronize(void *);

cudaError_t cudaMalloc(void **address, size_t bytes) {
  if (!address) return 1;
  *address = NULL;
  /* The real one succeeds, with no address. */
  if (bytes == 0) return 0;
  CUdeviceptr driver = 0;
  cudaError_t result = cuMemAlloc_v2(&driver, bytes);
  *address = (void *)driver;
  return result;
}

/* Without an address nothing is freed, and it succeeds. */
cudaError_t cudaFree(void *address) { return address ? cuMemFree_v2((CUdeviceptr)address) : 0; }

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
  cudaError_t result = cuLaunchKernel((void *)function, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                                      (unsigned)shared, stream, arguments, NULL);
  return result;
}

/* Synchronous: two calls of the driver. */
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  (void)kind;
  cudaError_t result = cuMemcpyAsync((CUdeviceptr)to, (CUdeviceptr)from, bytes, NULL);
  cudaError_t waited = cuStreamSynchronize(NULL);
  return result ? result : waited;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, cudaStream_t stream) {
  (void)kind;
  cudaError_t result = cuMemcpyAsync((CUdeviceptr)to, (CUdeviceptr)from, bytes, stream);
  return result;
}

cudaError_t cudaDeviceSynchronize(void) {
  cudaError_t result = cuCtxSynchronize();
  return result;
}
