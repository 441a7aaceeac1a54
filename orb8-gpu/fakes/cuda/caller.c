/* Makes known calls of CUDA libraries.
 *
 *   caller LIBRARY… -- STEP…
 *
 * Loads the libraries, writes "ready", and takes the steps once it has read a line:
 *   FUNCTION:COUNT[:BYTES[:bad]]  calls it; what allocates keeps what it gets, what frees gives back what was kept last,
 *                                 or, with BYTES, that address; `bad`: so that it fails
 *   threads:COUNT                 the steps after this one are taken by so many threads at once, by each
 *   processes:COUNT               the same, by processes
 *   wait                          writes "waiting", and reads a line
 *   tell                          writes what the last call returned
 *   exec                          executes itself, without libraries and steps, and waits there
 *
 *   cc -o caller caller.c -ldl -lpthread
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEPT 65536

static void *libraries[8];
static char *self;

typedef struct {
  unsigned x, y, z;
} dim3;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "caller: %s: %s\n", what, why ? why : "failed");
  exit(1);
}

static void *function(const char *name) {
  for (int at = 0; libraries[at]; at++) {
    void *found = dlsym(libraries[at], name);
    if (found) return found;
  }
  fail(name, "no library has it");
  return NULL;
}

static void hear(const char *word) {
  char line[16];
  printf("%s\n", word);
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) exit(0);
}

static void take(char **from);

static void *in_thread(void *from) {
  take(from);
  return NULL;
}

static int call(const char *name, void *f, unsigned long long value, int has_value, int bad, unsigned long long *kept,
                size_t *count) {
  void *some = bad ? NULL : (void *)0x1000;
  if (strstr(name, "Alloc") || strstr(name, "Malloc")) {
    unsigned long long address = 0;
    int result = ((int (*)(unsigned long long *, size_t))f)(&address, value);
    if (result == 0 && *count < KEPT) kept[(*count)++] = address;
    return result;
  }
  if (strstr(name, "Free")) {
    unsigned long long address = has_value ? value : *count ? kept[--*count] : 1;
    return ((int (*)(unsigned long long))f)(address);
  }
  if (strncmp(name, "cudaLaunch", 10) == 0) {
    dim3 grid = {bad ? 0 : 1, 1, 1}, block = {32, 1, 1};
    return ((int (*)(void *, dim3, dim3, void **, size_t, void *))f)(some, grid, block, NULL, 0, NULL);
  }
  if (strncmp(name, "cuLaunch", 8) == 0)
    return ((int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                     void **))f)(some, bad ? 0 : 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL);
  /* The runtime's have the direction, from host to device, before the stream. */
  if (strncmp(name, "cudaMemcpy", 10) == 0)
    return ((int (*)(void *, void *, size_t, int, void *))f)(some, (void *)0x2000, value, 1, NULL);
  if (strncmp(name, "cuMemcpy", 8) == 0)
    return ((int (*)(void *, void *, size_t, void *))f)(some, (void *)0x2000, value, NULL);
  if (strncmp(name, "cuStream", 8) == 0) return ((int (*)(void *))f)(bad ? (void *)1 : NULL);
  return ((int (*)(void))f)();
}

static void take(char **from) {
  unsigned long long *kept = malloc(KEPT * sizeof *kept);
  size_t count = 0;
  int result = 0;
  for (; kept && *from; from++) {
    char step[256];
    snprintf(step, sizeof step, "%s", *from);
    char *rest = step, *name = strsep(&rest, ":"), *times = strsep(&rest, ":"), *value = strsep(&rest, ":");
    unsigned long n = times ? strtoul(times, NULL, 0) : 0;
    if (!strcmp(name, "threads")) {
      pthread_t threads[64];
      for (unsigned long at = 0; at < n && at < 64; at++)
        if (pthread_create(&threads[at], NULL, in_thread, from + 1)) fail("a thread", NULL);
      for (unsigned long at = 0; at < n && at < 64; at++) pthread_join(threads[at], NULL);
      break;
    } else if (!strcmp(name, "processes")) {
      for (unsigned long at = 0; at < n; at++)
        if (fork() == 0) {
          take(from + 1);
          _exit(0);
        }
      while (wait(NULL) > 0) continue;
      break;
    } else if (!strcmp(name, "wait")) {
      hear("waiting");
    } else if (!strcmp(name, "tell")) {
      printf("%d\n", result);
      fflush(stdout);
    } else if (!strcmp(name, "exec")) {
      execl(self, self, "--", "wait", NULL);
      fail("exec", NULL);
    } else {
      void *f = function(name);
      for (unsigned long at = 0; at < n; at++)
        result = call(name, f, value ? strtoull(value, NULL, 0) : 0, value != NULL, rest != NULL, kept, &count);
    }
  }
  free(kept);
}

int main(int count, char **arguments) {
  int at = 1, loaded = 0;
  self = arguments[0];
  for (; at < count && strcmp(arguments[at], "--"); at++) {
    if (loaded == 7 || !(libraries[loaded++] = dlopen(arguments[at], RTLD_NOW | RTLD_GLOBAL)))
      fail(arguments[at], dlerror());
  }
  hear("ready");
  take(arguments + at + (at < count));
  return 0;
}
